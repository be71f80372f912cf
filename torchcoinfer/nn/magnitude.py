"""Masks of the largest weights: 2:4, or the same count in every block of 16 rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.pack import BLOCK_N
from torchcoinfer.theory.options import kept_per_block


def sparsity_format(sparsity: float | str) -> str:
    """The storage format of a sparsity: "2:4" is its own, a share of pruned weights in [0, 1) is a bitmap.

    Raises:
        ArgumentError: anything else.
    """
    if sparsity == "2:4":
        return "2:4"
    if isinstance(sparsity, (int, float)) and 0 <= sparsity < 1:
        return "bitmap"
    raise ArgumentError(
        "sparsity", got=repr(sparsity), expected="'2:4' or a share in [0, 1)", remedy="say .5 for half"
    )


def magnitude_mask(score: Tensor, sparsity: float | str) -> Tensor:
    """Keeps the largest scores; ties go to the lower position.

    Args:
        score: [N, K], e.g. ``weight.abs()``; larger is kept.
        sparsity: "2:4" keeps two of four consecutive columns; a share rho keeps ``(1 - rho) * rows * K``,
        rounded,
            in every block of 16 rows (the last one may have fewer), so that the packed bytes are known
            beforehand.

    Returns:
        bool [N, K], True = kept.

    Raises:
        ArgumentError: an unknown sparsity.
    """
    rows, columns = score.shape
    if sparsity_format(sparsity) == "2:4":
        padded = functional.pad(score.float(), (0, -columns % 4), value=-1.0).unflatten(1, (-1, 4))
        best = padded.sort(dim=-1, descending=True, stable=True).indices[..., :2]
        return torch.zeros_like(padded, dtype=torch.bool).scatter(-1, best, True).flatten(1)[:, :columns]
    mask = torch.zeros_like(score, dtype=torch.bool)
    for start in range(0, rows, BLOCK_N):
        block = score[start : start + BLOCK_N]
        kept = kept_per_block(block.shape[0], columns, float(sparsity))
        best = block.flatten().sort(dim=0, descending=True, stable=True).indices[:kept]
        mask[start : start + BLOCK_N].view(-1)[best] = True
    return mask
