"""What codes reach on the Laplacian source: Lloyd-Max, uniform grids, joint prune+quantize, Blahut-Arimoto.

All figures are for E|w| = 1 (lam = 1): an l1 distortion scales with 1/lam, a squared error with 1/lam^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize_scalar
from scipy.signal import lfilter

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.bounds import FloatArray, joint_l1, joint_rate, not_negative, real_array

_LN2 = float(np.log(2.0))
_MOST_GRID_BITS = 32  # the longest integers that a grid is stored in
_SUM_TOLERANCE = 1e-6
_LONGEST_CLIP = 64.0  # in units of E|w|: e^-64 of the weights lie beyond, less than any grid's error


def _whole(what: str, value: int, least: int, most: int | None = None) -> int:
    """The value as an int. Raises ArgumentError for anything but an integer of the range."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limits = f"an integer of at least {least}" + ("" if most is None else f" and at most {most}")
        raise ArgumentError(f"{what} out of range", got=value, expected=limits, remedy="round it yourself")
    return int(value)


def _positive(**values: float) -> None:
    for name, value in values.items():
        number = real_array(name, value)
        if number.ndim or not (np.isfinite(number) and number > 0.0):
            raise ArgumentError(
                f"{name} out of range",
                got=value,
                expected="one finite number above 0",
                remedy="pass such a number",
            )


@dataclass(frozen=True)
class ScalarQuantizer:
    """A quantizer of Exp(1): ``levels`` [M] and the ``thresholds`` [M-1] between them, ascending."""

    levels: FloatArray
    thresholds: FloatArray
    distortion: float


def lloyd_max(levels: int, power: int = 1) -> ScalarQuantizer:
    """The optimal ``levels``-level quantizer of Exp(1) under |.|^power, power 1 or 2 [D].

    Exp(1) is memoryless: behind the first threshold a the best code is the best one with a level less,
    shifted by a, so D_M = min_a cell(a) + e^-a D_{M-1}. Its stationary point (a - y(a))^power = D_{M-1}, y(a)
    the median or mean of the cell, is one scalar root: a global optimum, no Lloyd iteration.
    """
    chain = _lloyd_chain(_whole("levels", levels, 1), _whole("power", power, 1, 2))
    widths = np.array([width for width, _, _ in reversed(chain[1:])])
    points = np.array([point for _, point, _ in reversed(chain)])
    starts = np.concatenate([[0.0], np.cumsum(widths)])
    return ScalarQuantizer(starts + points, starts[1:], chain[-1][2])


@lru_cache(maxsize=256)
def _lloyd_chain(levels: int, power: int) -> tuple[tuple[float, float, float], ...]:
    """For 1..levels: (first cell's width, its level, distortion)."""
    last = (np.inf, _LN2, _LN2) if power == 1 else (np.inf, 1.0, 1.0)
    chain = [last]
    for _ in range(levels - 1):
        rest = chain[-1][2]
        target = rest ** (1.0 / power)
        width = brentq(lambda a, t=target: a - _cell_level(a, power) - t, 1e-12, 60.0, xtol=1e-15)
        level = _cell_level(width, power)
        chain.append((width, level, _cell_cost(width, level, power) + np.exp(-width) * rest))
    return tuple(chain)


def _cell_level(width: float, power: int) -> float:
    """Median (power 1) or mean (power 2) of Exp(1) on [0, width)."""
    if power == 1:
        return -float(np.log1p(0.5 * np.expm1(-width)))
    return 1.0 - width / float(np.expm1(width))


def _cell_cost(width: float, level: float, power: int) -> float:
    """Integral of |x - level|^power e^-x over [0, width)."""
    tail = float(np.exp(-width))
    if power == 1:
        return level - 1.0 + 2.0 * float(np.exp(-level)) - (width - level + 1.0) * tail
    gap = width - level
    return level * level - 2.0 * level + 2.0 - (gap * gap + 2.0 * gap + 2.0) * tail


def lloyd_max_l1(magnitude_bits: int) -> float:
    """E|x - x'| of the l1 Lloyd-Max code with 2^R levels on Exp(1): sign + R bits on the Laplacian [D]."""
    return lloyd_max(1 << _whole("magnitude_bits", magnitude_bits, 0), 1).distortion


def lloyd_max_mse(magnitude_bits: int) -> float:
    """E(x - x')^2 of the Lloyd-Max code with 2^R levels on Exp(1): sign + R bits on the Laplacian [D]."""
    return lloyd_max(1 << _whole("magnitude_bits", magnitude_bits, 0), 2).distortion


def uniform_grid_l1(step: ArrayLike, bits: int) -> FloatArray:
    """E|w - w'| of the symmetric integer grid {-m..m} step, m = 2^(b-1) - 1, on the unit Laplacian [D].

    Closed form: the granular part is m cells around each multiple of ``step``, the rest is overload.
    """
    delta = real_array("step", step)
    if not np.all(delta > 0.0):
        raise ArgumentError("step out of range", got=step, expected="above 0", remedy="pass a grid's step")
    top = float((1 << (_whole("bits", bits, 2, _MOST_GRID_BITS) - 1)) - 1)
    half = 0.5 * delta
    # cell around 0: int_0^{d/2} x e^-x; other cells: e^{-k d} times int_{-d/2}^{d/2} |x| e^-x, written so
    # that nothing cancels at the small steps of many bits
    zero_cell = -np.expm1(-half) - half * np.exp(-half)
    cell = 2.0 * half * np.sinh(half) - 4.0 * np.sinh(0.5 * half) ** 2
    inner = 1.0 + np.exp(half) * (half - 1.0)
    geometric = np.exp(-delta) * -np.expm1(-(top - 1.0) * delta) / -np.expm1(-delta)
    overload = np.exp(-top * delta) * (inner + 1.0)  # last cell: inner half, then everything above m step
    return zero_cell + geometric * cell + overload


def best_uniform_grid(bits: int) -> tuple[float, float]:
    """(step, distortion) of the best-clip symmetric integer grid on the unit Laplacian under |.| [D].

    Args:
        bits: 2 to 32, the sign among them.
    """
    top = (1 << (_whole("bits", bits, 2, _MOST_GRID_BITS) - 1)) - 1
    # the best clip lies between half of E|w| and where nothing is left to clip
    low, high = 0.5 / top, min(8.0, _LONGEST_CLIP / top)
    found = minimize_scalar(
        lambda log_step: float(uniform_grid_l1(np.exp(log_step), bits)),
        bounds=(np.log(low), np.log(high)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(np.exp(found.x)), float(found.fun)


def best_joint_l1(bits: float, magnitude_bits: tuple[int, ...] = tuple(range(9))) -> tuple[float, float, int]:
    """Best joint prune+quantize code of at most ``bits`` bits a weight: (distortion, sparsity, b_m) [D].

    Minimizes ``joint_l1`` with Lloyd-Max survivors over rho and b_m at ``joint_rate`` <= ``bits``.
    """
    not_negative("bits", bits)
    sparsity = np.linspace(0.0, 1.0, 20001)
    best = (1.0, 1.0, 0)  # everything pruned: E|w| = 1, rate 0
    for survivors in magnitude_bits:
        distortion = joint_l1(sparsity, lloyd_max_l1(survivors))
        distortion = np.where(joint_rate(sparsity, survivors) <= bits, distortion, np.inf)
        at = int(np.argmin(distortion))
        if distortion[at] < best[0]:
            best = (float(distortion[at]), float(sparsity[at]), survivors)
    return best


@dataclass(frozen=True)
class RatePoint:
    """One point of a rate-distortion curve.

    Attributes:
        rate: bits per symbol, achievable on the discretized source.
        distortion: at that rate.
        gap: bits by which ``rate`` can exceed the true rate at ``distortion`` (Blahut-Arimoto's own bound).
    """

    rate: float
    distortion: float
    gap: float


def blahut_arimoto(
    source: ArrayLike, distortion: ArrayLike, slope: float, tolerance: float = 1e-4, max_steps: int = 20000
) -> RatePoint:
    """Blahut-Arimoto for a discrete source at one slope -dR/dD (nats per unit of distortion).

    Args:
        source: probabilities [X].
        distortion: d(x, y) [X, Y].
        slope: positive; large slopes give small distortions.
        tolerance: bits; stops when the rate is proven to within it.
        max_steps: stops then at the latest, with ``gap`` telling what was reached.

    Raises:
        ArgumentError: no distribution, a table that does not go with it, or a number out of range.
    """
    _positive(slope=slope, tolerance=tolerance)
    _whole("max_steps", max_steps, 1)
    shares, table = not_negative("source", source), not_negative("distortion", distortion)
    if shares.ndim != 1 or table.ndim != 2 or table.shape[0] != shares.size or 0 in table.shape:
        raise ArgumentError(
            "source and distortion do not go together",
            got=f"shapes {shares.shape} and {table.shape}",
            expected="[X] and [X, Y]",
            remedy="give the table one row for each symbol of the source",
        )
    if not abs(shares.sum() - 1.0) <= _SUM_TOLERANCE or not np.isfinite(table).all():
        raise ArgumentError(
            "the source is no distribution, or a distortion is not finite",
            got=f"probabilities that sum to {shares.sum():g}",
            expected="a sum of 1, finite distortions",
            remedy="divide the source by its sum",
        )
    kernel = np.exp(-slope * table)
    weighted = kernel * table
    return _alternate(
        shares,
        np.full(table.shape[1], 1.0 / table.shape[1]),
        (lambda q: kernel @ q, lambda p: kernel.T @ p, lambda q: weighted @ q),
        slope,
        (tolerance, max_steps),
    )


def exponential_rate_point(
    slope: float, step: float = 0.005, length: float = 24.0, tolerance: float = 2e-3, max_steps: int = 4000
) -> RatePoint:
    """Blahut-Arimoto on Exp(1) under |.| at one slope.

    Cells of width ``step`` up to ``length``; on a uniform grid e^(-s|x-y|) is a two-sided recursive filter,
    so one step of the algorithm costs O(cells) and no matrix is stored.
    """
    _positive(slope=slope, step=step, length=length, tolerance=tolerance)
    _whole("max_steps", max_steps, 1)
    if step > length:
        raise ArgumentError("step out of range", got=step, expected=f"<= {length}", remedy="a smaller step")
    grid = (np.arange(round(length / step)) + 0.5) * step
    source = np.exp(-grid)
    decay = float(np.exp(-slope * step))

    def one_sided(values: FloatArray) -> FloatArray:
        return lfilter([1.0], [1.0, -decay], values)

    def kernel(values: FloatArray) -> FloatArray:
        return one_sided(values) + one_sided(values[::-1])[::-1] - values

    def ramp(values: FloatArray) -> FloatArray:
        """Sum over earlier cells of k decay^k, k cells away: the filter decay z^-1 applied to one_sided."""
        return lfilter([0.0, decay], [1.0, -decay], one_sided(values))

    def weighted(values: FloatArray) -> FloatArray:
        return step * (ramp(values) + ramp(values[::-1])[::-1])

    start = source / source.sum()
    return _alternate(start, start.copy(), (kernel, kernel, weighted), slope, (tolerance, max_steps))


Kernel = Callable[[FloatArray], FloatArray]


def _alternate(
    source: FloatArray,
    output: FloatArray,
    kernels: tuple[Kernel, Kernel, Kernel],
    slope: float,
    stop: tuple[float, int],
) -> RatePoint:
    """Alternate between channel and output law; ``kernels``: A q, A^T p and (A*d) q with A = e^(-slope d)."""
    forward, backward, forward_distortion = kernels
    tolerance, max_steps = stop
    step = 0
    while True:
        partition = forward(output)
        growth = backward(source / partition)
        updated = output * growth
        # R lies between -sD - E log Z - max log c and the same with the mean over the new output law
        mean_log = float(np.sum(updated * np.log(np.maximum(growth, 1e-300))))
        gap_bits = (float(np.log(growth.max())) - mean_log) / _LN2
        step += 1
        if gap_bits <= tolerance or step >= max_steps:
            break
        output = updated / updated.sum()
    distortion = float(np.sum(source * forward_distortion(output) / partition))
    nats = -slope * distortion - float(np.sum(source * np.log(partition))) - mean_log
    return RatePoint(nats / _LN2, distortion, gap_bits)
