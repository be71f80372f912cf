"""The package's one exception tree. Every message says the fact, the value, and the remedy."""

from __future__ import annotations

from typing import Any


class TorchCoinferError(Exception):
    """Base of every error that torchcoinfer raises itself."""

    def __init__(self, fact: str, *, got: Any = None, expected: str | None = None, remedy: str | None = None):
        self.fact, self.got, self.expected, self.remedy = fact, got, expected, remedy
        parts = [fact]
        if got is not None:
            parts.append(f"got: {got}")
        if expected is not None:
            parts.append(f"expected: {expected}")
        if remedy is not None:
            parts.append(f"remedy: {remedy}")
        super().__init__("; ".join(parts))


class ArgumentError(TorchCoinferError, ValueError):
    """An argument of a public function has a wrong value, type, unit or shape."""


class UnitError(ArgumentError):
    """A budget or profile quantity cannot be read: no number, wrong unit, or not positive."""


class FormatError(TorchCoinferError, ValueError):
    """Packed tensors, a wire frame or a file disagree with the stated format."""


class KernelError(TorchCoinferError, RuntimeError):
    """A kernel was asked for something that it does not do, or the kernel library cannot serve it."""


class MissingExtra(TorchCoinferError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str):
        super().__init__(
            f"the package {package!r} is not installed",
            remedy=f"pip install 'torchcoinfer[{extra}]'",
        )
        self.package, self.extra = package, extra


class TraceError(TorchCoinferError):
    """The model cannot be traced by torch.export."""


class CalibrationError(TorchCoinferError, ValueError):
    """Calibration or validation data are empty, non-finite, too few, or of another shape."""


class PlanError(TorchCoinferError, ValueError):
    """A plan does not belong to this model or cannot be read."""


class ExportError(TorchCoinferError):
    """A half cannot be exported or an exported file cannot be loaded."""


class BudgetExceeded(TorchCoinferError, RuntimeError):
    """A monitored run spent more than its budget, and the monitor was told to raise."""


class InfeasibleBudget(TorchCoinferError, ValueError):
    """No plan of the search fits the budget.

    Attributes:
        attainable: one whole ``Budget`` that is feasible: the least common relative relaxation of the given
            one, rounded up.
        least: per budget row, the least value attainable when the other rows are dropped (SI units);
            ``told_least`` says it in the message.
    """

    def __init__(
        self, fact: str, *, attainable: Any, least: dict[str, float], told_least: str, got: str | None = None
    ):
        super().__init__(
            fact,
            got=got,
            expected=f"all rows alike relaxed as little as possible: {attainable}; "
            f"row by row, the others dropped: at least {told_least}",
            remedy="pass error.attainable as the budget, or relax the rows named, or widen Search",
        )
        self.attainable, self.least = attainable, least
