"""What every algorithm returns: integer codes with their scales, and the dense weight that they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchcoinfer.theory.options import Option, ceil_div


@dataclass(frozen=True)
class Quantized:
    """A compressed weight [N, K] before it is packed; ``w = scale * (code - zero)`` where kept, else 0.

    Attributes:
        codes: uint8 [N, K] below ``2**bits``. With float survivors (``option.bits`` 16 or 32): the survivors
            themselves, float16 or float32 [N, K], 0 where pruned.
        scales: [N, G] float16, or bfloat16 where the weights lie outside float16's range; None with float
            survivors. A negative scale is legal. G = ceil(K / group_size), 1 for group_size 0.
        zeros: uint8 [N, G], or None: symmetric, with the implicit zero point ``2**(bits - 1)``.
        mask: bool [N, K], True = kept; None when nothing is pruned.
        option: how the codes are to be stored.
    """

    codes: Tensor
    scales: Tensor | None
    zeros: Tensor | None
    mask: Tensor | None
    option: Option

    def dequantize(self) -> Tensor:
        """The dense weight, float32 [N, K]: bit for bit what the packed module computes with.

        Exact: a scale has at most 11 significant bits and ``code - zero`` at most 8, float32 holds 24.
        """
        if self.scales is None:
            return self.codes.float()
        rows, columns = self.codes.shape
        zeros = float(1 << (self.option.bits - 1)) if self.zeros is None else self.zeros.float()[..., None]
        grouped = split_groups(self.codes.float(), self.option.group_size)
        dense = grouped.sub_(zeros).mul_(self.scales.float()[..., None]).reshape(rows, -1)[:, :columns]
        return dense.contiguous() if self.mask is None else dense.mul_(self.mask)


def split_groups(matrix: Tensor, group_size: int) -> Tensor:
    """[N, K] as [N, G, group_size], a tail group filled up with zeros; a view where nothing is filled up."""
    rows, columns = matrix.shape
    size = group_size or columns
    missing = ceil_div(columns, size) * size - columns
    if missing:
        matrix = torch.nn.functional.pad(matrix, (0, missing))
    return matrix.view(rows, -1, size) if matrix.is_contiguous() else matrix.reshape(rows, -1, size)
