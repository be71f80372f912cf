"""What the user may spend (``Budget``), on what run (``Workload``), and how the planner may search
(``Search``).

Everything is validated at construction and normalized to SI floats, so that no later stage sees a unit.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.options import GROUP_SIZES, WEIGHT_BITS
from torchcoinfer.theory.units import BYTE_UNITS, ENERGY_UNITS, TIME_UNITS, quantity, spoken

# field -> (units, whether 0 is allowed)
BUDGET_FIELDS: Mapping[str, tuple[Mapping[str, float], bool]] = {
    "latency": (TIME_UNITS, False),
    "energy": (ENERGY_UNITS, False),
    "server_energy": (ENERGY_UNITS, True),
    "total_energy": (ENERGY_UNITS, False),
    "device_memory": (BYTE_UNITS, False),
    "server_memory": (BYTE_UNITS, True),
    "uplink": (BYTE_UNITS, True),
    "device_bits_per_weight": ({}, False),
    "distortion": ({}, True),
    "certified_distortion": ({}, False),
}
MINIMIZE = ("distortion", "latency", "energy", "device_memory")


def spoken_rows(rows: Mapping[str, float]) -> str:
    """Budget rows with units: ``"latency 80 ms, device_memory 12 MiB"``."""
    return ", ".join(f"{name} {spoken(value, BUDGET_FIELDS[name][0])}" for name, value in rows.items())


def _integer(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise ArgumentError(
            f"{name} must be an integer of at least {low}",
            got=repr(value),
            remedy=f"give {name}={low} or more",
        )
    return int(value)


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    known = isinstance(value, (str, numbers.Real, type(None))) and not isinstance(value, bool)
    if not known or value not in allowed:
        raise ArgumentError(
            f"{name} has an unknown value", got=repr(value), expected=f"one of {allowed}",
            remedy=f"choose {name} from the list",
        )  # fmt: skip
    return allowed[allowed.index(value)]


@dataclass(frozen=True)
class Workload:
    """One run: ``batch`` inputs of ``prompt`` positions each (None: as in example_inputs).

    Attributes:
        answer: "device": the answer comes back over the link; "server": it is wanted where the server is.

    Raises:
        ArgumentError: a wrong value, or ``new_tokens`` > 0, which is not supported yet.
    """

    batch: int | None = None
    prompt: int | None = None
    new_tokens: int = 0
    answer: str = "device"

    def __post_init__(self) -> None:
        for name in ("batch", "prompt"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _integer(f"Workload.{name}", getattr(self, name), 1))
        object.__setattr__(self, "new_tokens", _integer("Workload.new_tokens", self.new_tokens, 0))
        if self.new_tokens:
            raise ArgumentError(
                "generation with a cache across the cut is not supported yet",
                got=f"new_tokens={self.new_tokens}", expected="new_tokens=0",
                remedy="plan one forward pass: Workload(batch=..., prompt=...)",
            )  # fmt: skip
        _one_of("Workload.answer", self.answer, ("device", "server"))


@dataclass(frozen=True, repr=False)
class Budget:
    """Ceilings of one run of the workload: SI numbers, or strings with units that become them.

    Attributes:
        latency: seconds, device + link + server ("80 ms").
        energy: joules of the device: dynamic + static + radio ("0.6 J").
        server_energy, total_energy: joules of the server's compute, and of both.
        device_memory, server_memory: bytes: packed weights + other parameters + peak activations + the frames
            of the link ("12 MiB").
        uplink: bytes that are sent, headers counted.
        device_bits_per_weight: bits per parameter over all parameters placed on the device; scales, indices
            and what stays uncompressed are counted.
        distortion: predicted mean relative output error E||Δf||²/E||f||².
        certified_distortion: the certified quantile of the same, checked on validation data after the plan.

    Raises:
        UnitError: a field cannot be read.
        ArgumentError: no field is given.
    """

    latency: float | str | None = None
    energy: float | str | None = None
    server_energy: float | str | None = None
    total_energy: float | str | None = None
    device_memory: float | str | None = None
    server_memory: float | str | None = None
    uplink: float | str | None = None
    device_bits_per_weight: float | None = None
    distortion: float | None = None
    certified_distortion: float | None = None

    def __post_init__(self) -> None:
        for name, (units, zero) in BUDGET_FIELDS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, quantity(f"Budget.{name}", value, units, zero=zero))
        if not self.as_dict():
            raise ArgumentError(
                "a Budget needs at least one field", expected=f"one of {', '.join(BUDGET_FIELDS)}",
                remedy='for example Budget(latency="80 ms")',
            )  # fmt: skip

    def as_dict(self) -> dict[str, float]:
        """The fields given, SI floats; ``Budget(**budget.as_dict()) == budget``."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in given.items() if value is not None}

    def __str__(self) -> str:
        return spoken_rows(self.as_dict())

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value:.10g}' for name, value in self.as_dict().items())})"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Budget:
        """The inverse of ``as_dict``. Raises ArgumentError on an unknown field."""
        unknown = sorted(set(values) - set(BUDGET_FIELDS))
        if unknown:
            raise ArgumentError(
                "a Budget has no such field", got=unknown, expected=f"among {', '.join(BUDGET_FIELDS)}",
                remedy="remove or rename it",
            )  # fmt: skip
        return cls(**values)

    def rows(self) -> dict[str, float]:
        """The rows that the solver sees: all fields given but ``certified_distortion``."""
        return {name: value for name, value in self.as_dict().items() if name != "certified_distortion"}


SEARCH_TUPLES: Mapping[str, tuple[Any, ...]] = {
    "bits": WEIGHT_BITS,
    "formats": ("int", "2:4", "bitmap"),
    "group_sizes": GROUP_SIZES,
    "algorithms": ("nearest", "obs"),
    "activation_bits": (None, 8),
    "cut_bits": (None, 2, 3, 4, 5, 6, 7, 8),
}


@dataclass(frozen=True)
class Search:
    """Every option of the search. A single value stands for a tuple of one.

    Attributes:
        bits, sparsities, formats, group_sizes, algorithms, activation_bits: what a layer may choose.
            Sparsities are those of "2:4" (.5 only) and "bitmap"; "int" is dense. A layer may stay as it is.
        cut_bits: widths of the tensors that cross; None: as they are.
        cut: "device" | "server" | a cut's name | None: chosen by the solver.
        minimize: "distortion" | "latency" | "energy" | "device_memory".
        trials: random configurations to measure: as many roundings on the validation data, for the factor
            kappa of the report; where errors do not add up, as many neighbors of the plan on the calibration
            data, to fit what layers do together.
        gap: proven relative optimality gap at which the solver may stop; 0: exact.

    Raises:
        ArgumentError: an unknown or malformed value.
    """

    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    sparsities: tuple[float, ...] = (0.0, 0.5)
    formats: tuple[str, ...] = ("int", "2:4", "bitmap")
    group_sizes: tuple[int, ...] = (64,)
    algorithms: tuple[str, ...] = ("nearest", "obs")
    activation_bits: tuple[int | None, ...] = (None,)  # of layers
    cut_bits: tuple[int | None, ...] = (None, 8, 6, 4)  # of the tensors that cross; None: as they are
    cut: str | None = None
    minimize: str = "distortion"
    metric: str = "output_mse"
    output: Callable[[Any], Any] | None = None
    costs: str = "preset"
    mode: str | None = None
    alpha: float = 0.1
    finetune_steps: int = 0
    trials: int = 0
    gap: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in SEARCH_TUPLES.items():
            values = tuple(_one_of(f"Search.{name}", v, allowed) for v in self._tuple(name))
            object.__setattr__(self, name, values)
        for share in self._tuple("sparsities"):
            self._share("sparsities", share, 0.0, 1.0)
        object.__setattr__(self, "sparsities", tuple(float(v) for v in self._tuple("sparsities")))
        self._check_sparsities()
        _one_of("Search.minimize", self.minimize, MINIMIZE)
        _one_of("Search.metric", self.metric, ("output_mse", "kl"))
        _one_of("Search.costs", self.costs, ("preset", "measured", "analytic"))
        _one_of("Search.mode", self.mode, (None, "analytic"))
        if self.cut is not None and (not isinstance(self.cut, str) or not self.cut):
            raise ArgumentError(
                "Search.cut must be a cut's name or None", got=repr(self.cut),
                expected='"device", "server", the name of a cut, or None',
                remedy="leave it out to have it chosen",
            )  # fmt: skip
        if self.output is not None and not callable(self.output):
            raise ArgumentError(
                "Search.output must be callable", got=repr(self.output),
                expected="a function from the model's output to the judged tensor", remedy="or leave it out",
            )  # fmt: skip
        self._share("alpha", self.alpha, 1e-12, 1.0)
        self._share("gap", self.gap, 0.0, 1.0)
        if _integer("Search.finetune_steps", self.finetune_steps, 0):
            raise ArgumentError(
                "fine-tuning after compression is not supported yet",
                got=f"finetune_steps={self.finetune_steps}", expected="finetune_steps=0",
                remedy="leave it out; algorithms=('obs',) compensates errors instead",
            )  # fmt: skip
        _integer("Search.trials", self.trials, 0)
        if _integer("Search.seed", self.seed, 0) >= 2**63:
            raise ArgumentError("Search.seed is too large", got=self.seed, expected="less than 2**63")

    def _check_sparsities(self) -> None:
        """Every sparsity but the defaults needs a format that stores it."""
        unusable = {s for s in self.sparsities if s > 0 and "bitmap" not in self.formats}
        unusable -= {0.5} if "2:4" in self.formats or "int" in self.formats else set()
        if unusable or ("int" not in self.formats and not any(self.sparsities)):
            raise ArgumentError(
                "no format of Search.formats stores the sparsities",
                got=f"sparsities={self.sparsities}, formats={self.formats}",
                expected='"int" stores 0, "2:4" stores .5, "bitmap" every other sparsity',
                remedy='add "bitmap" to formats, or leave sparsities out',
            )  # fmt: skip

    def _tuple(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        values = tuple(value) if isinstance(value, (tuple, list, set, frozenset, range)) else (value,)
        if not values:
            raise ArgumentError(
                f"Search.{name} is empty",
                got="()",
                expected="at least one value",
                remedy="leave it out for the default",
            )
        return values

    def _share(self, name: str, value: Any, low: float, high: float) -> None:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not low <= value < high:
            raise ArgumentError(
                f"Search.{name} is out of range", got=repr(value),
                expected=f"a number in [{low:g}, {high:g})",
                remedy=f"give {name} in that range",
            )  # fmt: skip
