"""What held-out errors allow to be said: conformal quantiles, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from torchcoinfer.errors import ArgumentError


@dataclass(frozen=True)
class Unavailable:
    """No number: the data cannot carry one.

    Attributes:
        reason: in words.
        n: samples at hand.
        needs: samples that the level asks for.
    """

    reason: str
    n: int
    needs: int

    def __str__(self) -> str:
        return f"unavailable (n={self.n}, needs {self.needs}: {self.reason})"


def certify(errors: Sequence[float], alpha: float, rounds: int = 1) -> float | Unavailable:
    """A level that a fresh sample's error stays below with probability at least 1 − alpha.

    The conformal upper quantile: the error of rank ⌈(n + 1)(1 − α)⌉ of n. True for exchangeable samples that
    no step of the choice has seen, averaged over samples; exists only when n ≥ 1/α − 1. The rank is computed
    in exact rational arithmetic of the decimal that ``alpha`` prints as.

    Args:
        errors: per sample, any order; an infinite one (a model that diverges) is covered by nothing finite.
        alpha: in (0, 1).
        rounds: how many certificates are drawn from the same samples; each then has level alpha / rounds.

    Raises:
        ArgumentError: alpha outside (0, 1), rounds below 1, or an error that is NaN.
    """
    if not 0.0 < alpha < 1.0:
        raise ArgumentError(
            "alpha", got=alpha, expected="a value in (0, 1)", remedy="0.1 asks for a level of 90 %"
        )
    if rounds < 1:
        raise ArgumentError("rounds", got=rounds, expected="at least 1", remedy="pass 1 for one certificate")
    values = sorted(float(error) for error in errors)
    if any(math.isnan(value) for value in values):
        raise ArgumentError(
            "an error is NaN",
            got=f"{len(values)} errors",
            expected="numbers",
            remedy="count what a model that diverges makes as infinite",
        )
    level = Fraction(repr(float(alpha))) / rounds
    rank = math.ceil((len(values) + 1) * (1 - level))
    if rank > len(values):
        needs = math.ceil(1 / level - 1)
        return Unavailable(f"level {float(level):g} needs more validation samples", len(values), needs)
    return values[rank - 1]


def kappa(predicted: Sequence[float], measured: Sequence[float], alpha: float) -> float | Unavailable:
    """The factor κ by which a prediction is scaled to cover: conformal quantile of measured / predicted.

    Over *random* configurations of the allowed range: a fresh random configuration has measured ≤ κ·predicted
    with probability at least 1 − alpha. It does not cover the optimized one: optimizing selects for optimism.

    Raises:
        ArgumentError: different lengths, a prediction that is not positive and finite, or a NaN.
    """
    if len(predicted) != len(measured):
        lengths = len(predicted), len(measured)
        raise ArgumentError("predicted and measured", got=lengths, expected="one length")
    bad = [float(value) for value in predicted if not 0.0 < value < math.inf]
    if bad:
        raise ArgumentError(
            "predicted distortion",
            got=bad[0],
            expected="positive values, all finite",
            remedy="leave out what is not predicted",
        )
    factor = certify([m / p for p, m in zip(predicted, measured)], alpha)
    if isinstance(factor, Unavailable):
        return replace(factor, reason=f"level {alpha:g} needs more random configurations")
    return factor
