"""Coordinate descent on ``tr(ΔW H ΔWᵀ)``: over codes column by column, over scales group by group.

Started from the codes of ``obs.py``. Every step moves a code to the best grid point given all others, or a
scale to its least-squares value given the codes, so the error never rises. On MiniLM, judged on fresh
sentences, two sweeps take 4-11 % off the error at 4 and 3 bits, 10-30 % at 50 % sparsity. The step over
columns is that of QuantEase (Behdin et al., arXiv 2309.01885).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcoinfer.compress.grid import ScaleRange
from torchcoinfer.compress.hessian import Factor


@dataclass
class Columns:
    """Rows of a weight under work, transposed and in a factor's order, so that a column is contiguous.

    The weight is ``scale * step``; ``step = code - zero``, so that 0 is a pruned weight. Float survivors have
    scale 1 and steps that need not be integers (``top`` is None).
    """

    weight: Tensor  # [K, n], as given, divided by ``ScaleRange.unit``
    steps: Tensor  # [K, n]
    scales: Tensor  # [G, n]
    zeros: Tensor  # [G, n]
    mask: Tensor | None  # [K, n]: 1 = kept
    top: float | None  # the largest code

    def snapper(self, group: int) -> Callable[[Tensor, int], Tensor]:
        """(values [n], place of a column of the group) -> its nearest steps."""
        scale, mask = self.scales[group], self.mask
        if self.top is None:
            return lambda values, place: values if mask is None else values * mask[place]
        inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
        lowest = -self.zeros[group]
        highest = lowest + self.top

        def snap(values: Tensor, place: int) -> Tensor:
            steps = (values * inverse).round_().clamp_(lowest, highest)
            return steps if mask is None else steps.mul_(mask[place])

        return snap

    def dense(self, factor: Factor) -> Tensor:
        """``scale * step`` [K, n]."""
        dense = self.steps.clone()
        for unit in factor.units:
            dense[unit.start : unit.stop] *= self.scales[unit.group]
        return dense


def descend(columns: Columns, factor: Factor, storable: ScaleRange, sweeps: int) -> None:
    """Runs ``sweeps`` rounds over all columns, in place; scales are refitted before each and at the end."""
    gradient = factor.hessian @ (columns.dense(factor) - columns.weight)
    for _ in range(sweeps):
        _refit_scales(columns, gradient, factor, storable)
        for unit in factor.units:
            gradient.addmm_(
                factor.hessian[:, unit.start : unit.stop], _sweep_unit(columns, gradient, factor, unit)
            )
    if sweeps:
        _refit_scales(columns, gradient, factor, storable)


def _sweep_unit(columns: Columns, gradient: Tensor, factor: Factor, unit) -> Tensor:
    """Moves the codes of one unit; returns the change of its weights [k, n]."""
    inside = slice(unit.start, unit.stop)
    local, hessian = gradient[inside].clone(), factor.hessian[inside, inside]
    scale, snap = columns.scales[unit.group], columns.snapper(unit.group)
    inverse_curvature = hessian.diagonal().reciprocal().neg().tolist()
    moved = torch.empty_like(local)
    for j in range(unit.stop - unit.start):
        place = unit.start + j
        step = columns.steps[place]
        found = snap(torch.addcmul(local[j] * inverse_curvature[j], step, scale), place)
        torch.mul(found - step, scale, out=moved[j])
        columns.steps[place] = found
        local[j + 1 :].addr_(hessian[j, j + 1 :], moved[j])
    return moved


def _refit_scales(columns: Columns, gradient: Tensor, factor: Factor, storable: ScaleRange) -> None:
    """Moves each scale to its least-squares value, one group after another; the gradient follows."""
    if columns.top is None:
        return
    spans: dict[int, list[int]] = {}
    for unit in factor.units:
        spans.setdefault(unit.group, [unit.start, unit.stop])[1] = unit.stop
    for group, (start, stop) in spans.items():
        steps, scale = columns.steps[start:stop], columns.scales[group]
        slope = (gradient[start:stop] * steps).sum(0)
        curvature = (steps * (factor.hessian[start:stop, start:stop] @ steps)).sum(0)
        fitted = storable.round(torch.where(curvature > 0, scale - slope / curvature, scale))
        change = fitted - scale
        # storing rounds the scale: keep the old one where the rounded one is no better
        change = torch.where(change * (2 * slope + change * curvature) < 0, change, 0.0)
        columns.scales[group] = scale + change
        gradient.addmm_(factor.hessian[:, start:stop], steps * change)
