"""Which weights stay: masks with the exact counts that ``theory/options.py`` promises."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcoinfer.theory.options import BLOCK_ROWS, Option, kept_per_block

CHUNK_ELEMENTS = 1 << 18


def choose_mask(score: Tensor, option: Option) -> Tensor | None:
    """The mask of an option: bool [N, K], True = kept; None for dense formats.

    Args:
        score: [N, K], what is lost by pruning a weight, on any increasing scale: ``|w| * sqrt(E[x²])`` is
            the criterion of Wanda (Sun et al., arXiv 2306.11695), ``w² / [H⁻¹]_kk`` that of optimal brain
            surgery.
    """
    if option.format == "2:4":
        return keep_two_of_four(score)
    if option.format == "bitmap":
        return keep_per_block(score, option.sparsity)
    return None


def keep_two_of_four(score: Tensor) -> Tensor:
    """The two largest of each four consecutive columns of a row; a tail of one or two columns stays whole."""
    rows, columns = score.shape
    padded = torch.nn.functional.pad(score, (0, -columns % 4), value=-1.0).view(rows, -1, 4)
    mask = torch.zeros_like(padded, dtype=torch.bool)
    mask.scatter_(2, padded.topk(2, dim=2).indices, True)
    return mask.view(rows, -1)[:, :columns].contiguous()


def keep_per_block(score: Tensor, sparsity: float) -> Tensor:
    """The largest scores of each block of 16 rows: ``kept_per_block`` of them, ties broken by position."""
    rows, columns = score.shape
    chunk = max(1, CHUNK_ELEMENTS // (columns * BLOCK_ROWS)) * BLOCK_ROWS
    parts = []
    for start in range(0, rows, chunk):
        part = score[start : start + chunk]
        heights = [min(BLOCK_ROWS, len(part) - at) for at in range(0, len(part), BLOCK_ROWS)]
        quota = [kept_per_block(height, columns, sparsity) for height in heights]
        parts.append(keep_quota(part, torch.tensor(quota, device=score.device)))
    return torch.cat(parts)


def keep_quota(score: Tensor, quota: Tensor) -> Tensor:
    """The ``quota[i]`` largest scores of block i of 16 rows; score [N, k], quota int64 [ceil(N/16)]."""
    rows, columns = score.shape
    blocks = torch.nn.functional.pad(score, (0, 0, 0, -rows % BLOCK_ROWS), value=-1.0).reshape(len(quota), -1)
    mask = torch.zeros_like(blocks, dtype=torch.bool)
    for kept in quota.unique().tolist():
        of_quota = (quota == kept).nonzero().flatten()
        if kept > 0:
            mask[of_quota] = _largest(blocks[of_quota], kept)
    return mask.view(-1, columns)[:rows]


def _largest(values: Tensor, count: int) -> Tensor:
    """The ``count`` largest of each row, ties broken by position; selection, which is faster than sorting."""
    threshold = values.kthvalue(values.shape[1] - count + 1, dim=1, keepdim=True).values
    mask = values > threshold
    tied = values == threshold
    return mask | (tied & (tied.cumsum(1) <= count - mask.sum(1, keepdim=True)))
