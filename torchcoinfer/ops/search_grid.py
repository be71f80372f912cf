"""Clip search: of many grids, the one of least weighted squared error, for every scale group at once.

A candidate is a storable scale and an integer zero point; the grid is scale * (code - zero), code in
0 .. 2^bits - 1. Each start (a full range) is shrunk by each share; then least squares refines the scale given
the codes. Of equal candidates the first wins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchcoinfer.ops.library import implement


def search_grid(
    groups: Tensor,
    importance: Tensor,
    start_scales: Tensor,
    start_zeros: Tensor,
    shares: Sequence[float],
    unit: float,
    scale_dtype: torch.dtype,
    bits: int,
    refinements: int,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each group.

    Args:
        groups: float32 [M, g], the weights divided by ``unit``.
        importance: float32 [R, g], non-negative; group m is weighed by row m % R.
        start_scales, start_zeros: float32 [S, M].
        shares: of a start's scale, tried in order.
        unit: power of two by which the weights were divided; scales are stored times it.
        scale_dtype: float16, bfloat16 or float32, as which scales are stored.
        bits: of a code.
        refinements: least-squares steps, each kept only if it helps.

    Returns:
        scale (storable, still divided by ``unit``) and zero point, float32 [M].

    Raises:
        RuntimeError, ArgumentError: shapes, dtypes or bits that do not fit.
    """
    return torch.ops.torchcoinfer.search_grid(
        groups, importance, start_scales, start_zeros, list(shares), unit, scale_dtype, bits, refinements
    )


def search_grid_reference(
    groups: Tensor,
    importance: Tensor,
    start_scales: Tensor,
    start_zeros: Tensor,
    shares: list[float],
    unit: float,
    scale_dtype: torch.dtype,
    bits: int,
    refinements: int,
) -> tuple[Tensor, Tensor]:
    top = float((1 << bits) - 1)
    weight = importance.repeat(-(-len(groups) // len(importance)), 1)[: len(groups)]

    def storable(scale: Tensor) -> Tensor:
        return (scale * unit).to(scale_dtype).float() / unit

    def error(scale: Tensor, zero: Tensor) -> Tensor:
        steps = round_to_grid(groups, scale[:, None], zero[:, None], top)
        return steps.mul_(scale[:, None]).sub_(groups).square_().mul_(weight).sum(1)

    best_scale, best_zero = storable(start_scales[0]), start_zeros[0]
    best = error(best_scale, best_zero)
    for full, zero in zip(start_scales, start_zeros):
        for share in shares:
            scale = storable(full * share)
            found = error(scale, zero)
            better = found < best
            best, best_scale = torch.where(better, found, best), torch.where(better, scale, best_scale)
            best_zero = torch.where(better, zero, best_zero)
    for _ in range(refinements):
        steps = round_to_grid(groups, best_scale[:, None], best_zero[:, None], top)
        weighted = steps * weight
        power = (weighted * steps).sum(1)
        scale = storable(torch.where(power > 0, (weighted * groups).sum(1) / power, best_scale))
        found = error(scale, best_zero)
        better = found < best
        best, best_scale = torch.where(better, found, best), torch.where(better, scale, best_scale)
    return best_scale, best_zero


def round_to_grid(groups: Tensor, scale: Tensor, zero: Tensor, top: float) -> Tensor:
    """``code - zero`` of the nearest grid point, float32, shape of ``groups``; scale and zero broadcast."""
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    return (groups * inverse).round_().clamp_(-zero, top - zero)


def _fake(groups, importance, start_scales, start_zeros, shares, unit, scale_dtype, bits, refinements):
    return groups.new_empty(groups.shape[0]), groups.new_empty(groups.shape[0])


implement("search_grid", search_grid_reference, _fake)
