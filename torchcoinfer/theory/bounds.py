"""Rate-distortion laws of one layer's weights: Laplacian source, rates in bits per weight.

Every rate and distortion argument may be an array, at least 0; ``lam`` is the Laplace parameter, above 0,
1/lam = E|w|; anything else raises ArgumentError. Marks in the docstrings: [Q] = arXiv 2602.13052, [P*] =
derived from the abstract of arXiv 2505.09214, [D] = derived here.
Quantizers and Blahut-Arimoto are in ``bounds_codes``; networks and layer allocations in ``bounds_network``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchcoinfer.errors import ArgumentError

FloatArray = NDArray[np.float64]

KS_LIMIT = 0.05  # a Gaussian of the same E|w| scores .083, a uniform .153: both must fail
_FIT_SAMPLES = 1 << 20  # the sorted sample of the goodness of fit; the mean always uses every weight
_HISTOGRAM_BINS = 512


@dataclass(frozen=True)
class LaplaceFit:
    """A layer's weights seen as iid Laplacian.

    Attributes:
        lam: maximum-likelihood parameter, 1/mean|w| (1/weight units); infinite for an all-zero layer.
        numel: number of weights.
        ks: Kolmogorov-Smirnov distance between the law of |w| and Exp(lam).
        excess_bits: KL(weights || Laplacian) in bits per weight, 0 for a perfect fit. A Laplacian maximizes
            the entropy at given E|w|, so the Shannon lower bound of the weights' own law is the Laplacian
            floor at a rate larger by ``excess_bits``.
        fits: ks <= KS_LIMIT. The verdict is an effect size: at a million weights a p-value rejects anything.
    """

    lam: float
    numel: int
    ks: float
    excess_bits: float
    fits: bool

    @property
    def verdict(self) -> str:
        """One sentence for a report."""
        word = "fits" if self.fits else "does not fit"
        return f"{word} a Laplacian (KS distance {self.ks:.3f}, limit {KS_LIMIT})"


def real_array(what: str, values: ArrayLike) -> FloatArray:
    """The values as float64. Raises ArgumentError for complex, ragged or non-numeric ones."""
    try:
        raw = np.asarray(values)
        if raw.dtype.kind in "cSUMm":
            raise TypeError(f"{raw.dtype} holds no real numbers")
        return np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{what} cannot be read as real numbers",
            got=f"{type(values).__name__}: {error}",
            expected="numbers, or one array of them",
            remedy="pass a float array",
        ) from error


def not_negative(what: str, values: ArrayLike) -> FloatArray:
    """The values as float64, infinity allowed. Raises ArgumentError for one that is negative or NaN."""
    found = real_array(what, values)
    if not np.all(found >= 0.0):
        raise ArgumentError(
            f"{what} out of range", got=values, expected="at least 0", remedy="pass no negative number or NaN"
        )
    return found


def _parameter(lam: ArrayLike) -> FloatArray:
    found = real_array("lam", lam)
    if not np.all(found > 0.0):
        raise ArgumentError("lam out of range", got=lam, expected="above 0", remedy="pass 1 / E|w|")
    return found


def _rate(bits: ArrayLike) -> FloatArray:
    return not_negative("bits", bits)


def fit_laplace(weights: ArrayLike) -> LaplaceFit:
    """Fit |w| ~ Exp(lam) by maximum likelihood and say how well it fits.

    Args:
        weights: any shape, any real dtype.

    Raises:
        ArgumentError: no weights, NaN/Inf among them, or no real numbers.
    """
    magnitudes = np.abs(real_array("weights to fit", weights)).ravel()
    if magnitudes.size == 0 or not np.isfinite(magnitudes).all():
        raise ArgumentError(
            "weights to fit are empty or not finite",
            got=f"{magnitudes.size} weights",
            expected="at least one weight, all finite",
            remedy="repair the layer before planning",
        )
    with np.errstate(over="ignore"):
        mean = float(magnitudes.mean())
    if mean == np.inf:  # the sum overflows, the mean does not
        mean = float(np.sum(magnitudes / magnitudes.size))
    if mean == 0.0:
        return LaplaceFit(float("inf"), magnitudes.size, 1.0, float("inf"), False)
    sample = np.sort(magnitudes[:: -(-magnitudes.size // _FIT_SAMPLES)]) / mean
    law = -np.expm1(-sample)
    steps = np.arange(sample.size + 1) / sample.size
    ks = float(max(np.max(steps[1:] - law), np.max(law - steps[:-1])))
    return LaplaceFit(1.0 / mean, magnitudes.size, ks, _excess_bits(sample), ks <= KS_LIMIT)


def _excess_bits(sample: FloatArray) -> float:
    """KL(|w| || Exp) over bins of equal probability under Exp, with the Miller-Madow bias taken off."""
    bins = min(_HISTOGRAM_BINS, max(2, sample.size // 8))
    cells = np.minimum((-np.expm1(-sample) * bins).astype(np.int64), bins - 1)
    share = np.bincount(cells, minlength=bins) / sample.size
    kept = share[share > 0]
    bias_nats = (bins - 1) / (2.0 * sample.size)
    return max(0.0, float(np.sum(kept * np.log2(kept * bins)) - bias_nats / np.log(2.0)))


def lower_distortion(magnitude_bits: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """D_L(R) = 2^-(R+1) / lam, the converse for E|w - w'| at R magnitude bits [Q eq. 23-24]."""
    return np.exp2(-(_rate(magnitude_bits) + 1.0)) / _parameter(lam)


def upper_distortion(magnitude_bits: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """D_U(R) = (sqrt(1 + 4/(2^R - 1)) - 1) / (2 lam) [Q eq. 25-26], at most ln2/lam (no code at all) [D]."""
    growth = np.expm1(_rate(magnitude_bits) * np.log(2.0))
    with np.errstate(divide="ignore", over="ignore"):
        channel = 0.5 * (np.sqrt(1.0 + 4.0 / growth) - 1.0)
    return np.minimum(channel, np.log(2.0)) / _parameter(lam)


def laplacian_distortion(bits: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """Exact distortion-rate function of the Laplacian under |.|: D(b) = 2^-b / lam = D_L(b - 1) [D].

    A true converse for any code of ``bits`` bits per weight (sign, scales and indices counted) on iid
    Laplacian weights.
    """
    return np.exp2(-_rate(bits)) / _parameter(lam)


def laplacian_rate(distortion: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """R(D) = log2(1/(lam D)) bits for 0 < lam D <= 1, 0 above, infinite at D = 0: the inverse of
    ``laplacian_distortion`` [D]."""
    level, scale = not_negative("distortion", distortion), _parameter(lam)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.maximum(0.0, -np.log2(level * scale))
    return np.where(np.isinf(scale), 0.0, rate)[()]  # a source of zeros needs no bits


def optimal_zero_fraction(bits: ArrayLike) -> FloatArray:
    """Share of exact zeros in an optimal Laplacian code at rate R: 2^(-2R). Pruning is part of it [D]."""
    return np.exp2(-2.0 * _rate(bits))


def fixed_rate_l1(bits: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """High-rate law of the best 2^b-level quantizer under |.|: (1/4)(int sqrt p)^2 2^-b = 2 2^-b/lam [D]."""
    return 2.0 * laplacian_distortion(bits, lam)


def entropy_coded_l1(bits: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """High-rate law of a uniform scalar quantizer with entropy coding under |.|: (e/2) 2^-R / lam [D]."""
    return 0.5 * np.e * laplacian_distortion(bits, lam)


def shannon_mse(bits: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """Shannon lower bound of the squared error: (e/pi) s2 4^-R, s2 = 2/lam^2 [D]."""
    return np.e / np.pi * _variance(lam) * np.exp2(-2.0 * _rate(bits))


def fixed_rate_mse(bits: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """High-rate law of the best 2^b-level scalar quantizer, squared error: 4.5 s2 4^-b, s2 = 2/lam^2 [D]."""
    return 4.5 * _variance(lam) * np.exp2(-2.0 * _rate(bits))


def entropy_coded_mse(bits: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """High-rate law of an entropy-coded uniform grid, squared error: (e^2/6) s2 4^-R, s2 = 2/lam^2 [D]."""
    return np.e**2 / 6.0 * _variance(lam) * np.exp2(-2.0 * _rate(bits))


def _variance(lam: ArrayLike) -> FloatArray:
    return 2.0 / np.square(_parameter(lam))


def _survival(sparsity: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Share kept 1 - rho, and the magnitude threshold u = -ln(1 - rho) in units of 1/lam (none kept: any)."""
    kept = 1.0 - real_array("sparsity", sparsity)
    if not np.all((kept >= 0.0) & (kept <= 1.0)):
        raise ArgumentError(
            "sparsity outside its range",
            got=sparsity,
            expected="0 <= sparsity <= 1",
            remedy="pass the share that is pruned",
        )
    return kept, -np.log(np.where(kept > 0.0, kept, 1.0))


def pruning_l1(sparsity: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """D1(rho) = [rho + (1-rho) ln(1-rho)] / lam: E|w - w'| after magnitude pruning [D, P*]."""
    kept, threshold = _survival(sparsity)
    return (1.0 - kept - kept * threshold) / _parameter(lam)


def pruning_mse(sparsity: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """D2(rho) = (2/lam^2)[1 - (1-rho)(1 + u + u^2/2)], u = -ln(1-rho) [D, P*]."""
    kept, u = _survival(sparsity)
    return _variance(lam) * (1.0 - kept * (1.0 + u + 0.5 * u * u))


def joint_rate(sparsity: ArrayLike, magnitude_bits: ArrayLike) -> FloatArray:
    """Bits per weight of pruning and quantizing jointly: h2(rho) + (1-rho)(1 + b_m) [D]."""
    kept, _ = _survival(sparsity)
    pruned = 1.0 - kept
    inside = (kept > 0.0) & (pruned > 0.0)
    p, q = np.where(inside, pruned, 0.5), np.where(inside, kept, 0.5)
    mask_bits = np.where(inside, -p * np.log2(p) - q * np.log2(q), 0.0)
    return mask_bits + kept * (1.0 + _rate(magnitude_bits))


def joint_l1(sparsity: ArrayLike, survivor_l1: ArrayLike, lam: ArrayLike = 1.0) -> FloatArray:
    """D(rho, b_m) = D1(rho) + (1-rho) D_q(b_m): what survives of an exponential is exponential [D].

    Args:
        sparsity: rho.
        survivor_l1: D_q of the quantizer on Exp(1), unit-free (``lloyd_max_l1`` or ``upper_distortion``).
        lam: Laplace parameter.
    """
    kept, _ = _survival(sparsity)
    return pruning_l1(sparsity, lam) + kept * not_negative("survivor_l1", survivor_l1) / _parameter(lam)
