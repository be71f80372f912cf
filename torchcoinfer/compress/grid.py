"""The grid of a scale group: scale and zero point by clip search, then least squares given the codes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcoinfer import ops
from torchcoinfer.errors import ArgumentError

# Shrunken ranges tried, as a share of the full one: the fewer the levels, the more clipping pays.
SMALLEST_RATIO = {2: 0.35, 3: 0.5, 4: 0.62, 5: 0.76, 6: 0.88, 8: 0.96}
RATIOS = {2: 10, 3: 9, 4: 8, 5: 6, 6: 4, 8: 2}
REFINEMENTS = 2
LARGEST_WEIGHT = 1e36  # beyond it a grid point may overflow float32


@dataclass(frozen=True)
class ScaleRange:
    """How a layer's scales are stored: their dtype, and a power of two by which weights are divided first.

    float16 unless the layer's largest scale would overflow it or be subnormal; then bfloat16, no larger.
    Dividing keeps squared errors of weights of any magnitude inside float32.
    """

    dtype: torch.dtype
    unit: float

    @classmethod
    def of(cls, weight: Tensor, bits: int) -> ScaleRange:
        largest = float(weight.abs().max())
        if not math.isfinite(largest) or largest > LARGEST_WEIGHT:
            raise ArgumentError(
                "weight",
                got=f"largest magnitude {largest}",
                expected=f"finite values up to {LARGEST_WEIGHT}",
                remedy="leave this layer uncompressed, or load a sound checkpoint",
            )
        if largest == 0.0:
            return cls(torch.float16, 1.0)
        scale = largest / (1 << (bits - 1))
        tiny, huge = torch.finfo(torch.float16).tiny, torch.finfo(torch.float16).max
        unit = math.ldexp(1.0, max(min(math.frexp(largest)[1], 126), -125))
        return cls(torch.float16 if tiny <= scale <= huge / 2 else torch.bfloat16, unit)

    def round(self, scale: Tensor) -> Tensor:
        """The nearest storable scale, still divided by ``unit``, float32."""
        return self.store(scale).float().div_(self.unit)

    def store(self, scale: Tensor) -> Tensor:
        return (scale * self.unit).to(self.dtype)


def fit_grid(
    groups: Tensor, importance: Tensor, bits: int, symmetric: bool, storable: ScaleRange
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of least weighted squared error.

    Args:
        groups: float32 [..., g], weights divided by ``storable.unit``.
        importance: float32 [..., g], non-negative, the weight of each squared error; its leading dims are the
            last ones of ``groups``' (the rest repeats).
        bits: of a code.
        symmetric: the zero point is ``2**(bits - 1)``; its sign gives the longer side the extra level.
        storable: how a scale is rounded.

    Returns:
        scale and zero point, float32 [...]; an all-zero group has scale 0.
    """
    top = float((1 << bits) - 1)
    starts = _symmetric_starts(groups, bits) if symmetric else _asymmetric_starts(groups, bits, top)
    size = groups.shape[-1]
    scale, zero = ops.search_grid(
        groups.reshape(-1, size),
        importance.reshape(-1, size),
        torch.stack([full.flatten() for full, _ in starts]),
        torch.stack([zero.flatten() for _, zero in starts]),
        torch.linspace(1.0, SMALLEST_RATIO[bits], RATIOS[bits]).tolist(),
        storable.unit,
        storable.dtype,
        bits,
        REFINEMENTS,
    )
    return scale.view(groups.shape[:-1]), zero.view(groups.shape[:-1])


def _symmetric_starts(groups: Tensor, bits: int) -> list[tuple[Tensor, Tensor]]:
    """(scale, zero point) pairs without clipping: the extra level on the longer side, or on the other."""
    low, high = groups.amin(-1), groups.amax(-1)
    half = float(1 << (bits - 1))
    longer = torch.where(-low >= high, low, high) / -half
    zero = torch.full_like(longer, half)
    stretch = half / (half - 1.0)
    return [(longer * stretch, zero)] + ([(longer * -stretch, zero)] if bits <= 4 else [])


def _asymmetric_starts(groups: Tensor, bits: int, top: float) -> list[tuple[Tensor, Tensor]]:
    """(scale, zero point) pairs without clipping: the nearest integer zero point, and its neighbors.

    With few levels a neighbor often wins once the range is clipped: 3 % less error at 4 bits, groups of 32.
    """
    low, high = groups.amin(-1).clamp_(max=0.0), groups.amax(-1).clamp_(min=0.0)
    full = (high - low) / top
    exact = torch.where(full > 0, -low / full, 0.0)
    zero = exact.round()
    shifts = (0.0, 1.0, -1.0) if bits <= 4 else (0.0,)
    return [(full, (zero + shift).clamp_(0.0, top)) for shift in shifts]
