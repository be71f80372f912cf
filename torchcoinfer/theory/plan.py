"""The plan: frozen, printable, diffable, versioned JSON; everything after the solver obeys it and nothing
else decides."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from torchcoinfer.errors import PlanError
from torchcoinfer.theory.options import Option, option_error

PLAN_VERSION = 2
SIDES = ("device", "server", "both")
READABLE = {1: ("alternatives",)}  # older version -> fields that it does not have yet


@dataclass(frozen=True)
class LayerPlan:
    """What one layer gets. ``predicted`` is E_l(o), its share of the relative output error."""

    bits: int
    sparsity: float
    format: str
    group_size: int
    symmetric: bool
    activation_bits: int | None
    algorithm: str
    side: str  # one of SIDES
    packed_bytes: int
    predicted: float
    kept_channels: tuple[int, ...] | None = None  # structured pruning, with its coupling group
    channel_group: str | None = None
    kept_rows: float = 1.0  # shares of the output and input channels that structured pruning keeps
    kept_columns: float = 1.0

    @property
    def option(self) -> Option:
        """The storage and algorithm that this row asks for."""
        return Option(**{f.name: getattr(self, f.name) for f in fields(Option)})


@dataclass(frozen=True)
class CutPlan:
    """The cut's name, and what crosses: (tensor name, bits or None = as it is)."""

    name: str
    tensors: tuple[tuple[str, int | None], ...]


# name -> (accepted types, whether None is accepted)
LAYER_TYPES: Mapping[str, tuple[tuple[type, ...], bool]] = {
    "bits": ((int,), False),
    "sparsity": ((float, int), False),
    "format": ((str,), False),
    "group_size": ((int,), False),
    "symmetric": ((bool,), False),
    "activation_bits": ((int,), True),
    "algorithm": ((str,), False),
    "side": ((str,), False),
    "packed_bytes": ((int,), False),
    "predicted": ((float, int), False),
    "kept_channels": ((list, tuple), True),
    "channel_group": ((str,), True),
    "kept_rows": ((float, int), False),
    "kept_columns": ((float, int), False),
}
LAYER_OPTIONAL = {"kept_channels", "channel_group", "kept_rows", "kept_columns"}


def _frozen(value: Any) -> Any:
    """Read-only view of nested mappings and lists."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (LayerPlan, CutPlan)):
        return _plain(asdict(value))
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _broken(fact: str, got: Any, expected: str) -> PlanError:
    return PlanError(fact, got=got, expected=expected, remedy="make the plan again, or restore the file")


def _layer_from(name: str, values: Any) -> LayerPlan:
    if (
        not isinstance(values, dict)
        or not set(LAYER_TYPES) >= set(values) >= set(LAYER_TYPES) - LAYER_OPTIONAL
    ):
        raise _broken(
            f"layer {name!r} of the plan has the wrong fields", values, f"the fields {sorted(LAYER_TYPES)}"
        )
    for key, value in values.items():
        types, optional = LAYER_TYPES[key]
        wrong_bool = isinstance(value, bool) and bool not in types
        if not (optional and value is None) and (wrong_bool or not isinstance(value, types)):
            raise _broken(
                f"{key} of layer {name!r} has the wrong type",
                repr(value),
                " or ".join(t.__name__ for t in types),
            )
    channels = values.get("kept_channels")
    row = LayerPlan(**{**values, "kept_channels": None if channels is None else tuple(channels)})
    wrong = option_error(row.option)
    if wrong is not None:
        raise _broken(
            f"layer {name!r} of the plan cannot be stored like this", wrong, "an option of theory.options"
        )
    if row.side not in SIDES:
        raise _broken(f"side of layer {name!r} is unknown", row.side, f"one of {SIDES}")
    if row.packed_bytes < 0 or not math.isfinite(row.predicted):
        raise _broken(
            f"layer {name!r} holds an impossible number", values, "bytes from 0, a finite prediction"
        )
    return row


def _cut_from(values: Any) -> CutPlan:
    good = (
        isinstance(values, dict)
        and isinstance(values.get("name"), str)
        and isinstance(values.get("tensors"), list)
    )
    pairs = values["tensors"] if good else []
    for pair in pairs:
        shaped = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
        good = (
            good
            and shaped
            and (pair[1] is None or (isinstance(pair[1], int) and not isinstance(pair[1], bool)))
        )
    good = good and len({name for name, _ in pairs}) == len(pairs)
    if not good or any(bits is not None and not 2 <= bits <= 8 for _, bits in pairs):
        raise _broken(
            "the plan's cut cannot be read",
            values,
            "a name and a list of [tensor, bits from 2 to 8 or null], each tensor once",
        )
    return CutPlan(values["name"], tuple((name, bits) for name, bits in pairs))


def _check_told(values: Mapping[str, Any]) -> None:
    """What reports and ``apply_plan`` read of a plan."""
    predicted, told = values["predicted"], values["alternatives"]
    for key in ("distortion", *(key for key in PREDICTED_OF_ROW.values() if key in predicted)):
        value = predicted.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise _broken(f"predicted.{key} of the plan is no finite number", repr(value), "a number")
    kinds = {"cuts": (list, type(None)), "front": (dict, type(None)), "bandwidth": (dict, type(None))}
    wrong = [f"alternatives.{key}" for key, kind in kinds.items() if not isinstance(told.get(key), kind)]
    wrong += [f"bounds.{key}" for key, value in values["bounds"].items() if not isinstance(value, dict)]
    if wrong:
        raise _broken(
            "a part of the plan has the wrong type", wrong, "lists and mappings as Plan.to_json writes them"
        )


@dataclass(frozen=True)
class Plan:
    """Everything that was decided, and what was predicted of it.

    Attributes:
        resources: device_hz, server_hz, transmit_w (0 when nothing is sent).
        predicted: latency_s (with its parts device_s, link_s, server_s), energy_j, server_energy_j,
            total_energy_j, device_bytes, server_bytes, uplink_bytes, distortion, device_bits_per_weight;
            ``basis``: name -> "measured" | "estimated".
        bounds: two blocks, weights and output.
        optimality: objective, value, and side by side what is proven of it: dual_bound (branch and bound, or
            enumeration) and the gap to it, lagrangian_bound (without branching; None if placement was part of
            the program), ``here``: of this cut, these clocks and this power alone (where ties went to another
            cut: of the one that was proven), the lagrangian_dual and the shapley_folkman_gap that the theorem
            allows above it (None in a re-plan); cuts (how many were
            compared), over ("all frontiers" | "candidate cuts" | "the fixed cut").
        provenance: model_hash, device, server, link, versions, seed.
        budget: the rows as given, SI.
        alternatives: what else was considered (``theory.alternatives``): ``cuts``, the best plan of other
            cuts; ``front``, the front over the budget's tightest row; ``bandwidth``, the interval of uplink
            rates in which this plan stays feasible and the best of the stored ones. Empty if not explored.
    """

    layers: Mapping[str, LayerPlan]
    cut: CutPlan
    resources: Mapping[str, float]
    predicted: Mapping[str, Any]
    bounds: Mapping[str, Any]
    optimality: Mapping[str, Any]
    provenance: Mapping[str, Any]
    budget: Mapping[str, float]
    alternatives: Mapping[str, Any] = field(default_factory=dict)
    version: int = field(default=PLAN_VERSION)

    def __post_init__(self) -> None:
        for name in {f.name for f in fields(self)} - {"cut", "version"}:
            object.__setattr__(self, name, _frozen(getattr(self, name)))

    def __reduce__(self) -> Any:  # read-only views do not pickle or deepcopy
        return Plan.from_json, (self.to_json(),)

    def __hash__(self) -> int:
        return hash(self.to_json())

    def to_json(self) -> str:
        """Sorted keys, no timestamp: equal plans give equal bytes. Raises PlanError on NaN or Inf."""
        values = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        try:
            return json.dumps(values, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
        except (TypeError, ValueError) as error:
            raise PlanError(
                "the plan holds what JSON cannot", got=str(error),
                expected="finite numbers, strings, lists, mappings",
                remedy="convert the value where it was put in",
            ) from error  # fmt: skip

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """The inverse of ``to_json``; also reads the versions in ``READABLE``, as plans of this version.

        Raises:
            PlanError: truncated text, another version, or wrong types.
        """
        try:
            values = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise _broken("the plan is no JSON", f"{error}", "a file written by Plan.to_json") from error
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or "version" not in values:
            raise _broken("this is not a plan", type(values).__name__, f"a mapping with {sorted(names)}")
        version = values["version"]
        if isinstance(version, bool) or version not in (PLAN_VERSION, *READABLE):
            raise PlanError(
                "the plan has another version", got=repr(version),
                expected=f"version {PLAN_VERSION}, or {', '.join(map(str, READABLE))}",
                remedy="make the plan again with this version of torchcoinfer",
            )  # fmt: skip
        values = {**dict.fromkeys(READABLE.get(version, ()), {}), **values, "version": PLAN_VERSION}
        if set(values) != names:
            raise _broken("the plan has the wrong fields", sorted(values), f"exactly {sorted(names)}")
        for name in sorted(names - {"cut", "version"}):
            if not isinstance(values[name], dict):
                raise _broken(
                    f"{name} of the plan has the wrong type", type(values[name]).__name__, "a mapping"
                )
        for name in ("resources", "budget"):
            for key, value in values[name].items():
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise _broken(f"{name}.{key} of the plan is no finite number", repr(value), "a number")
        _check_told(values)
        values["layers"] = {name: _layer_from(name, layer) for name, layer in values["layers"].items()}
        values["cut"] = _cut_from(values["cut"])
        return cls(**values)

    def diff(self, other: Plan) -> dict[str, tuple[Any, Any]]:
        """Dotted path -> (here, there) for every value that differs; None where one side has no such
        value."""
        own, theirs = (dict(_leaves("", json.loads(plan.to_json()))) for plan in (self, other))
        return {
            key: (own.get(key), theirs.get(key))
            for key in sorted({*own, *theirs})
            if own.get(key) != theirs.get(key)
        }

    def __str__(self) -> str:
        width = max([len(name) for name in self.layers] + [5])
        lines = [f"Plan v{self.version}: cut {self.cut.name!r}"]
        lines += [
            f"  sends {name} ({'as it is' if bits is None else f'{bits} bits'})"
            for name, bits in self.cut.tensors
        ]
        lines.append("  " + ", ".join(f"{key} {value:.4g}" for key, value in sorted(self.resources.items())))
        for name, value in sorted(self.predicted.items()):
            if isinstance(value, (int, float)):
                key = next((k for k, v in PREDICTED_OF_ROW.items() if v == name), None)
                limit = f"  (budget {self.budget[key]:.4g})" if key in self.budget else ""
                lines.append(f"  {name:<24}{value:.6g}{limit}")
        lines.append(f"  {'layer':<{width}}  side    bits  sparsity  format      bytes  predicted")
        for name, layer in self.layers.items():
            lines.append(
                f"  {name:<{width}}  {layer.side:<6}  {layer.bits:>4}  {layer.sparsity:>8.2f}"
                f"  {layer.format:<6}{layer.packed_bytes:>11,}  {layer.predicted:.3g}"
            )
        return "\n".join(lines)


PREDICTED_OF_ROW: Mapping[str, str] = {
    "latency": "latency_s",
    "energy": "energy_j",
    "server_energy": "server_energy_j",
    "total_energy": "total_energy_j",
    "device_memory": "device_bytes",
    "server_memory": "server_bytes",
    "uplink": "uplink_bytes",
    "device_bits_per_weight": "device_bits_per_weight",
    "distortion": "distortion",
}


def _leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [
            leaf for key, item in value.items() for leaf in _leaves(f"{path}.{key}" if path else key, item)
        ]
    return [(path, value)]
