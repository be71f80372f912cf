"""Bounds over many layers: reverse water-filling, [Q Prop. III.1], the weights block of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.bounds import FloatArray, LaplaceFit, laplacian_distortion, not_negative, real_array


@dataclass(frozen=True)
class Allocation:
    """Rates (bits per weight) and weighted distortions per layer, and the common water level."""

    bits: FloatArray
    distortion: FloatArray
    level: float


def reverse_water_filling(
    scales: ArrayLike, counts: ArrayLike, total_bits: float, exponent: float = 1.0
) -> Allocation:
    """Least sum of counts * D_l(b_l) with sum of counts * b_l = total_bits and b_l >= 0 [D].

    For D_l(b) = scale_l 2^(-exponent b) the slope is proportional to D_l itself, so every layer that gets
    bits ends at one level: D_l = min(level, scale_l). Exact: the active set is found by sorting.

    Args:
        scales: distortion per weight at zero bits, times any sensitivity of the output to the layer: 1/lam
            under |.| (exact for the Laplacian), 2/lam^2 times the constant of a law of ``bounds`` for squared
            error.
        counts: weights per layer.
        total_bits: bits over all weights.
        exponent: 1 under |.|, 2 for squared error.
    """
    scale, count = real_array("scales", scales).ravel(), real_array("counts", counts).ravel()
    total, power = real_array("total_bits", total_bits), real_array("exponent", exponent)
    if (
        not all(np.isfinite(own).all() for own in (scale, count, total, power))
        or scale.shape != count.shape
        or np.any(scale < 0)
        or np.any(count <= 0)
        or np.any(total < 0)
        or np.any(power <= 0)
        or total.ndim + power.ndim > 0
    ):
        raise ArgumentError(
            "reverse water-filling got layers or a rate that make no sense",
            got=f"{scale.size} scales, {count.size} counts, total_bits={total_bits}, exponent={exponent}",
            expected="equal lengths, all finite, scales >= 0, counts > 0, total_bits >= 0, exponent > 0",
            remedy="leave out the layers that are not finite",
        )
    with np.errstate(divide="ignore"):
        logs = np.log2(scale)
    bits = np.zeros_like(scale)
    order = np.argsort(-logs, kind="stable")[: int(np.count_nonzero(scale > 0))]
    level = 0.0
    if order.size and total_bits > 0:
        size, weighted = np.cumsum(count[order]), np.cumsum(count[order] * logs[order])
        log_levels = (weighted - exponent * total_bits) / size
        # the active set is the longest prefix whose own level lies below its last member's scale
        # (rounding can hide that of the first layer alone, where total_bits is next to nothing)
        below = np.flatnonzero(log_levels <= logs[order])
        active = int(below[-1]) if below.size else 0
        bits[order] = np.maximum(0.0, (logs[order] - log_levels[active]) / exponent)
        level = float(np.exp2(log_levels[active]))
    elif order.size:
        level = float(scale.max())
    return Allocation(bits, scale * np.exp2(-exponent * bits), level)


@dataclass(frozen=True)
class WorstCase:
    """Bound on ||f(x, W) - f(x, W')||_1; ``log10_bound`` stays finite where ``bound`` overflows to inf."""

    bound: float
    log10_bound: float
    vacuous: bool


def worst_case(
    norms: ArrayLike,
    delta_norms: ArrayLike,
    input_norm: float = 1.0,
    signal: float = float("inf"),
    bias_norms: ArrayLike | None = None,
    delta_bias_norms: ArrayLike | None = None,
) -> WorstCase:
    """[Q Prop. III.1]: sum_l A_l ||W_l - W'_l||, A_l = prod_{j<l} ||W_j|| prod_{k>l} (||W_k|| + tau_k).

    Holds for feed-forward nets with 1-Lipschitz activations that map 0 to 0, in any one induced norm;
    tau_k = ||W_k - W'_k||. Layer by layer, d_l <= (||W_l|| + tau_l) d_(l-1) + tau_l h_(l-1) + ||b_l - b'_l||
    and h_l <= ||W_l|| h_(l-1) + ||b_l||, which without biases is the proposition and with them its extension
    [D]. In logarithms: deep nets overflow.

    Args:
        norms: ||W_l||, in order of the layers.
        delta_norms: ||W_l - W'_l||.
        input_norm: ||x||, 1 in [Q].
        signal: ||f(x)||, above which the bound says nothing (``vacuous``).
        bias_norms, delta_bias_norms: ||b_l|| and ||b_l - b'_l||; default: no biases.
    """
    norm, delta = real_array("norms", norms), real_array("delta_norms", delta_norms)
    bias, delta_bias = (
        np.zeros_like(norm) if given is None else real_array("norms of biases", given)
        for given in (bias_norms, delta_bias_norms)
    )
    not_negative("signal", signal)
    if not np.all(np.isfinite(not_negative("input_norm", input_norm))):
        raise ArgumentError(
            "input_norm out of range", got=input_norm, expected="finite", remedy="pass the largest ||x||"
        )
    sizes = (norm, delta, bias, delta_bias)
    if norm.ndim != 1 or any(
        own.shape != norm.shape or not np.all((own >= 0) & np.isfinite(own)) for own in sizes
    ):
        raise ArgumentError(
            "norms of the layers and of their errors do not go together",
            got=f"shapes {norm.shape} and {delta.shape}",
            expected="equally long lists of finite, non-negative numbers",
            remedy="give one norm a layer",
        )
    with np.errstate(divide="ignore"):
        logs = zip(*(np.log(own) for own in (norm, norm + delta, delta, bias, delta_bias)), strict=True)
        height, error = float(np.log(input_norm)), -np.inf
    for before, after, change, shift, shift_change in logs:
        error = np.logaddexp.reduce([after + error, change + height, shift_change])
        height = np.logaddexp(before + height, shift)
    bound = float(np.exp(error)) if error < 709.0 else float("inf")
    return WorstCase(bound, float(error) / float(np.log(10.0)), bound >= signal)


@dataclass(frozen=True)
class SpentLayer:
    """What a plan spends on one layer.

    Attributes:
        fit: of the original weights.
        bits: bits per weight really spent, 8 packed_bytes / numel: scales, zeros, indices, masks counted.
        measured_l1: mean |w - w'| of the compressed layer (weight units), or None where it was not measured.
    """

    fit: LaplaceFit
    bits: float
    measured_l1: float | None = None


def weights_block(layers: Mapping[str, SpentLayer]) -> dict[str, Any]:
    """The weights block of a report: the converse sum_l N_l 2^-b_l / lam_l beside the measured sum |w - w'|.

    Plain JSON. ``floor`` is a lower bound under the fitted Laplacian. A layer whose weights do not fit says
    so; for it ``floor_own_law``, the Shannon lower bound 2^-(b + excess_bits) / lam of its own histogram, is
    the valid converse for iid weights.
    """
    rows: dict[str, Any] = {}
    for name, layer in layers.items():
        fit = layer.fit
        zero = not np.isfinite(fit.lam)
        floor = 0.0 if zero else float(laplacian_distortion(layer.bits, fit.lam))
        rows[name] = {
            "numel": fit.numel,
            "bits_per_weight": layer.bits,
            "lam": None if zero else fit.lam,
            "ks": fit.ks,
            "fits": fit.fits,
            "verdict": fit.verdict,
            "floor_l1": floor,
            "floor_own_law_l1": 0.0 if zero else floor * float(np.exp2(-fit.excess_bits)),
            "measured_l1": layer.measured_l1,
        }
    measured = [row["measured_l1"] for row in rows.values()]
    total: float | dict[str, str]
    if not rows:
        total = {"unavailable": "no layer is compressed"}
    elif None in measured:
        total = {"unavailable": "some layers were not measured"}
    else:
        total = sum(row["numel"] * row["measured_l1"] for row in rows.values())
    return {
        "unit": "sum of |w - w'|, units of the weights",
        "floor": sum(row["numel"] * row["floor_l1"] for row in rows.values()),
        "floor_own_law": sum(row["numel"] * row["floor_own_law_l1"] for row in rows.values()),
        "measured": total,
        "misfits": [name for name, row in rows.items() if not row["fits"]],
        "layers": rows,
    }
