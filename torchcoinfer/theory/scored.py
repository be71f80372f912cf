"""A scored model as a file: everything that plans are made of but the budget, so that another budget, link or
machine needs no model, no data and no scoring."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torchcoinfer.errors import ArgumentError, FormatError, TorchCoinferError
from torchcoinfer.theory.alternatives import explored
from torchcoinfer.theory.budget import Budget, Search, Workload
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.graph import Graph, Layer, Tensor, Unit
from torchcoinfer.theory.options import Option, option_error
from torchcoinfer.theory.pareto import Front, check_uncertified, pareto
from torchcoinfer.theory.plan import Plan
from torchcoinfer.theory.profile_check import check_profile
from torchcoinfer.theory.solve import Problem, build_problem, solve

VERSION = 1


@dataclass(frozen=True)
class Scored:
    """The table of one model.

    Attributes:
        curves: layer -> (option, E_l(o)); what error compensation was scored for lies near the budget that
            the table was made for.
        cut_curves: tensor -> (bits, distortion of coding it).
        provenance: of the model: its hash, versions, alpha, seed; every plan carries it.
    """

    graph: Graph
    curves: Mapping[str, tuple[tuple[Option, float], ...]]
    cut_curves: Mapping[str, tuple[tuple[int, float], ...]]
    device: DeviceProfile
    server: DeviceProfile
    link: LinkProfile
    search: Search = Search()
    workload: Workload = Workload()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def narrowed(self, cut: str | None = None, bits: tuple[int, ...] | None = None) -> Scored:
        """The table with one cut, or fewer widths, to choose from.

        Raises:
            ArgumentError: a cut or widths that were not scored.
        """
        scored = self.search
        if scored.cut is not None and cut not in (None, scored.cut):
            raise ArgumentError(
                "the table was scored for another cut", got=repr(cut), expected=repr(scored.cut),
                remedy="score the model again, without --cut",
            )  # fmt: skip
        if bits is not None and not set(bits) <= set(scored.bits):
            raise ArgumentError(
                "the table was scored for other widths", got=bits, expected=f"among {scored.bits}",
                remedy="score the model again with these --bits",
            )  # fmt: skip
        return replace(self, search=replace(scored, cut=cut or scored.cut, bits=bits or scored.bits))

    def problem(self, budget: Budget) -> Problem:
        """What ``solve`` takes; options of other widths than ``search.bits`` are left out."""
        curves = {
            name: tuple((o, d) for o, d in own if o.bits >= 16 or o.bits in self.search.bits)
            for name, own in self.curves.items()
        }
        return build_problem(
            self.graph, curves, self.cut_curves, self.device, self.server, self.link, budget, self.search,
            self.workload,
        )  # fmt: skip

    def plan(self, budget: Budget) -> Plan:
        """The best plan within a budget, with its alternatives; ``apply_plan`` takes it.

        Raises:
            InfeasibleBudget: no plan fits.
        """
        check_uncertified(budget)
        problem = self.problem(budget)
        return self._signed(explored(problem, solve(problem)))

    def front(self, budget: Budget, axis: str, points: int = 9) -> Front:
        """The front along one row of the budget; see ``theory.pareto.pareto``."""
        front = pareto(self.problem(budget), axis, points)
        return replace(front, plans=tuple(map(self._signed, front.plans)))

    def _signed(self, plan: Plan) -> Plan:
        return replace(plan, provenance={**plan.provenance, **self.provenance})

    def to_json(self) -> str:
        """Sorted keys, no timestamp. ``search.output``, a function, is left out: no plan needs it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {name: asdict(values[name]) for name in ("graph", "device", "server", "link", "workload")}
        curves = {name: [[list(vars(o).values()), d] for o, d in own] for name, own in self.curves.items()}
        search = {f.name: getattr(self.search, f.name) for f in fields(Search) if f.name != "output"}
        told = {
            **plain, "curves": curves, "cut_curves": dict(self.cut_curves), "search": search,
            "provenance": json.loads(json.dumps(self.provenance, default=dict)),
            "option_fields": [f.name for f in fields(Option)], "version": VERSION,
        }  # fmt: skip
        return json.dumps(told, sort_keys=True, allow_nan=False, default=dict) + "\n"

    def _check(self) -> None:
        """What a hand may have changed in the file."""
        for role in ("device", "server", "link"):
            check_profile(getattr(self, role), f"{role} of the table")
        graph, layers = self.graph, {layer.name for layer in self.graph.layers}
        read = {n for unit in graph.units for n in (*unit.inputs, *unit.outputs)}
        unknown = sorted({*read, *graph.inputs, *graph.outputs} - set(graph.tensors))
        unknown += sorted({unit.layer for unit in graph.units if unit.layer is not None} - layers)
        unknown += sorted({n for unit in graph.units for n in unit.parameters} - set(graph.parameters))
        unknown += sorted(layers ^ set(self.curves)) + sorted(set(self.cut_curves) - set(graph.tensors))
        if unknown:
            raise _broken(f"names that belong to nothing: {unknown[:8]}")
        sizes = [tensor.nbytes for tensor in graph.tensors.values()] + [unit.flops for unit in graph.units]
        sizes += [*graph.parameters.values(), *graph.parameter_numel.values()]
        sizes += [d for own in (*self.curves.values(), *self.cut_curves.values()) for _, d in own]
        if not all(0 <= size < math.inf for size in sizes):
            raise _broken("a size, a work or a distortion that is negative or not finite")
        if not all(min(layer.rows, layer.columns, layer.weight_bytes) > 0 for layer in graph.layers):
            raise _broken("a layer without weights")
        for option in (option for own in self.curves.values() for option, _ in own):
            wrong = option_error(option)
            if wrong:
                raise _broken(wrong)

    @classmethod
    def from_json(cls, text: str | bytes) -> Scored:
        """The inverse of ``to_json``.

        Raises:
            FormatError: truncated text, another version, wrong fields, or what no model or option has.
            UnitError: a number of a profile that cannot be used.
        """
        try:
            told = json.loads(text)
            if told["version"] != VERSION:
                raise _broken(f"version {told['version']!r}")
            found = cls(
                graph=_graph(told["graph"]),
                curves=_curves(told["curves"], told["option_fields"]),
                cut_curves=_tuples(told["cut_curves"]),
                device=DeviceProfile(**_tuples(told["device"])),
                server=DeviceProfile(**_tuples(told["server"])),
                link=LinkProfile(**_tuples(told["link"])),
                search=Search(**_tuples(told["search"])),
                workload=Workload(**told["workload"]),
                provenance=dict(told["provenance"]),
            )
            found._check()
            return found
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, TorchCoinferError):
                raise
            raise _broken(f"{type(error).__name__}: {error}") from error


def _broken(got: str) -> FormatError:
    return FormatError(
        "this is no table of a scored model", got=got, expected=f"version {VERSION}, by Scored.to_json",
        remedy="score the model again: torchcoinfer plan --save-table",
    )  # fmt: skip


def _tuples(value: Any) -> Any:
    """Lists as tuples, to any depth."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _graph(told: dict[str, Any]) -> Graph:
    plain = _tuples(told)
    return Graph(
        **{
            **plain,
            "tensors": {name: Tensor(**own) for name, own in plain["tensors"].items()},
            "units": tuple(Unit(**own) for own in plain["units"]),
            "layers": tuple(Layer(**own) for own in plain["layers"]),
        }
    )


def _curves(told: dict[str, Any], names: list[str]) -> dict[str, tuple[tuple[Option, float], ...]]:
    return {
        layer: tuple((Option(**dict(zip(names, values, strict=True))), d) for values, d in own)
        for layer, own in told.items()
    }
