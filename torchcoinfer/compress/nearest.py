"""Rounding to nearest, with the clip search of ``grid.py``, and pruning by importance-weighted magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcoinfer.compress.grid import ScaleRange, fit_grid
from torchcoinfer.compress.prune import choose_mask
from torchcoinfer.compress.quantized import Quantized, split_groups
from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.search_grid import round_to_grid
from torchcoinfer.theory.options import Option

CHUNK_ELEMENTS = 1 << 18  # the clip search passes over a chunk many times: it should stay in the cache


def nearest(
    weight: Tensor, option: Option, importance: Tensor | None = None, mask: Tensor | None = None
) -> Quantized:
    """Rounds each weight to the nearest point of its group's grid.

    Args:
        weight: [N, K], floating point, finite.
        option: bits, group size, symmetric or not, sparsity and format. ``algorithm`` is not read.
        importance: [K], the second moment of each input column; None weighs all columns alike.
        mask: bool [N, K], what ``pruning_mask`` gave for an option of the same format and sparsity: scoring
            many bit-widths of one mask makes it once. None: made here.

    Raises:
        ArgumentError: weights not finite, or too large for any scale; an importance of another shape.
    """
    weight = checked_weight(weight)
    importance = checked_importance(importance, weight)
    mask = _mask(weight, option, importance) if mask is None else mask
    if option.bits >= 16:
        return float_survivors(weight, mask, option)
    storable = ScaleRange.of(weight, option.bits)
    rows, columns = weight.shape
    group_importance = split_groups(importance[None], option.group_size)
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    scales, zeros = [], []
    step = max(1, CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        part = weight[start : start + step] / storable.unit
        if mask is not None:
            part *= mask[start : start + step]
        groups = split_groups(part, option.group_size)
        scale, zero = fit_grid(groups, group_importance, option.bits, option.symmetric, storable)
        steps = round_to_grid(groups, scale[..., None], zero[..., None], float((1 << option.bits) - 1))
        found = steps.add_(zero[..., None]).to(torch.uint8).reshape(part.shape[0], -1)
        codes[start : start + step] = found[:, :columns]
        scales.append(storable.store(scale))
        zeros.append(zero.to(torch.uint8))
    return Quantized(codes, torch.cat(scales), None if option.symmetric else torch.cat(zeros), mask, option)


def pruning_mask(weight: Tensor, option: Option, importance: Tensor | None = None) -> Tensor | None:
    """The mask of ``nearest``: importance-weighted magnitude; None for dense formats. Arguments as there."""
    weight = checked_weight(weight)
    return _mask(weight, option, checked_importance(importance, weight))


def _mask(weight: Tensor, option: Option, importance: Tensor) -> Tensor | None:
    return choose_mask(weight.abs() * importance.sqrt(), option)


def float_survivors(weight: Tensor, mask: Tensor | None, option: Option) -> Quantized:
    """Pruned weights whose survivors stay floating point: float16 for 16 bits, else float32."""
    dtype = torch.float16 if option.bits == 16 else torch.float32
    values = weight.to(dtype)
    if not bool(torch.isfinite(values).all()):
        raise ArgumentError(
            "weight",
            got=f"largest magnitude {float(weight.abs().max())}",
            expected="float16's range, 65504",
            remedy="choose quantized survivors, or leave this layer uncompressed",
        )
    return Quantized(values if mask is None else values * mask, None, None, mask, option)


def checked_weight(weight: Tensor) -> Tensor:
    """The weight as float32 [N, K], detached."""
    if weight.dim() != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise ArgumentError(
            "weight", got=f"{weight.dtype} {tuple(weight.shape)}", expected="floating point [N, K], not empty"
        )
    weight = weight.detach().float()
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise ArgumentError(
            "weight holds NaN or Inf",
            got=f"{bad} of {weight.numel()} values",
            expected="finite values",
            remedy="load a sound checkpoint, or leave this layer uncompressed",
        )
    return weight


def checked_importance(importance: Tensor | None, weight: Tensor) -> Tensor:
    """The importance as float32 [K] of mean 1; all ones where it is None or all zero."""
    columns = weight.shape[1]
    if importance is None:
        return torch.ones(columns, device=weight.device)
    if tuple(importance.shape) != (columns,) or not bool((importance >= 0).all()):
        raise ArgumentError(
            "importance",
            got=f"shape {tuple(importance.shape)}, least value {float(importance.min())}",
            expected=f"shape {(columns,)}, values >= 0",
        )
    mean = float(importance.double().mean())
    return (importance.double() / mean).float() if mean > 0 else torch.ones(columns, device=weight.device)
