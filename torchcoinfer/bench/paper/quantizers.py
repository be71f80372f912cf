"""The quantizers of [Q]'s evaluation: one symmetric grid a layer, uniform or of powers of two."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from torchcoinfer.errors import ArgumentError

_CLIPS = np.geomspace(
    0.05, 1.0, 40
)  # shares of max|w| tried as the largest level; the best in E|w - w'| wins
KINDS = ("uniform", "power of two")


def levels(kind: str, bits: int) -> np.ndarray:
    """Non-negative levels, the largest 1: ``2^(bits-1)`` of them with zero, signs apart.

    Uniform: multiples of 1/m, m = 2^(bits-1) - 1. Power of two: 0 and 2^-k for k = m - 1 ... 0.

    Raises:
        ArgumentError: an unknown kind, or no bit beside the sign.
    """
    if kind not in KINDS or bits < 2:
        raise ArgumentError(
            "no such quantizer",
            got=f"{kind!r} with {bits} bits",
            expected=f"one of {KINDS}, bits >= 2",
        )
    m = 2 ** (bits - 1) - 1
    if kind == "uniform":
        return np.arange(m + 1) / m
    return np.concatenate([[0.0], np.exp2(-np.arange(m - 1, -1, -1.0))])


def quantize(weight: Tensor, kind: str, bits: int) -> Tensor:
    """Round to nearest on the layer's grid; the largest level is searched for the least E|w - w'|."""
    points = torch.from_numpy(levels(kind, bits))
    magnitude = weight.detach().abs().double().flatten()
    ordered = magnitude.sort().values
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    scales = _CLIPS * float(magnitude.max())
    best = min(scales, key=lambda scale: _l1(ordered, sums, points * scale))
    grid = points * best
    found = grid[torch.bucketize(magnitude, 0.5 * (grid[1:] + grid[:-1]))].reshape(weight.shape)
    return (found * weight.sign()).to(weight.dtype)


def _l1(ordered: Tensor, sums: Tensor, grid: Tensor) -> float:
    """Sum of |w - w'| from the prefix sums of the sorted magnitudes: O(levels log weights)."""
    count = len(ordered)
    middles = torch.searchsorted(ordered, 0.5 * (grid[1:] + grid[:-1]))
    first, last = torch.tensor([0]), torch.tensor([count])
    starts, ends = torch.cat([first, middles]), torch.cat([middles, last])
    at = torch.searchsorted(ordered, grid).clamp(min=starts, max=ends)
    below = grid * (at - starts) - (sums[at] - sums[starts])
    above = (sums[ends] - sums[at]) - grid * (ends - at)
    return float((below + above).sum())


def quantized(weights: Mapping[str, Tensor], kind: str, bits: int) -> dict[str, Tensor]:
    """Every layer at one bit-width."""
    return {name: quantize(weight, kind, bits) for name, weight in weights.items()}


def pruned(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Every layer without its ``sparsity`` share of smallest magnitudes."""
    kept = {}
    for name, weight in weights.items():
        count = round(sparsity * weight.numel())
        smallest = weight.detach().abs().flatten().argsort(stable=True)[:count]
        kept[name] = weight.detach().flatten().index_fill(0, smallest, 0.0).reshape(weight.shape)
    return kept
