"""Moments of layer inputs: the diagonal for clip search, XᵀX and the sum of X for error compensation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torchcoinfer.calibrate.interpret import LayerCall

UNFOLD_BYTES = 32 << 20  # unfolded convolution inputs are made this many bytes at a time


def positions(call: LayerCall, args: Sequence[Any], output: Tensor, keep: Tensor | None = None) -> int:
    """How many input vectors the call multiplies by the weight, padding left out."""
    h = args[call.input_position]
    if call.kind == "linear":
        return _vectors(h, keep).shape[0]
    return output.shape[0] * output.shape[2] * output.shape[3]


def diagonal(call: LayerCall, args: Sequence[Any], output: Tensor, keep: Tensor | None = None) -> Tensor:
    """Sum of squares of each of the K inputs, float64 [K]; for grouped convolutions the mean over groups."""
    h = args[call.input_position].detach()
    if call.kind == "linear":
        return _sum_of_squares(_vectors(h, keep), 0)
    kernel = args[call.weight_position].shape[2:]
    stride, dilation, groups = _geometry(args)
    h = _padded(call, args, h)
    rows, columns = output.shape[2:]
    sums = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            below, beyond = top + stride[0] * (rows - 1) + 1, left + stride[1] * (columns - 1) + 1
            seen = h[:, :, top : below : stride[0], left : beyond : stride[1]]
            sums.append(_sum_of_squares(seen, (0, 2, 3)))
    return torch.stack(sums, 1).reshape(groups, -1).mean(0)  # [C, kh * kw] -> [C / groups * kh * kw]


def gram(call: LayerCall, args: Sequence[Any], keep: Tensor | None = None) -> Tensor:
    """XᵀX of the call's inputs, float32 [K, K]; for a grouped convolution [groups, K, K].

    Args:
        call, args: a linear or convolution call and its arguments.
        keep: [B, S], 0 where a position is padding: left out of linear inputs that begin with (B, S).
    """
    return cross(call, args, args, keep)


def cross(call: LayerCall, plain: Sequence[Any], args: Sequence[Any], keep: Tensor | None = None) -> Tensor:
    """XᵀX' with X the inputs in ``plain``, X' those in ``args``, of one call in two runs; as ``gram``."""
    if call.kind == "linear":
        x, y = (_vectors(a[call.input_position].detach(), keep).float() for a in (plain, args))
        return x.t() @ y
    product: Tensor | None = None
    ours = _patch_parts(call, args)
    pairs = ((y, y) for y in ours) if plain is args else zip(_patch_parts(call, plain), ours)
    for x, y in pairs:
        part = x.transpose(1, 2) @ y
        product = part if product is None else product.add_(part)
    return product[0] if product.shape[0] == 1 else product


def total(call: LayerCall, args: Sequence[Any], keep: Tensor | None = None) -> Tensor:
    """Sum of the call's input vectors, then how many there are: float64 [K + 1], or [groups, K + 1]."""
    if call.kind == "linear":
        return _sum_and_count(_vectors(args[call.input_position].detach(), keep).float())
    sums = torch.stack([_sum_and_count(x) for x in _patch_parts(call, args)]).sum(0)
    return sums[0] if sums.shape[0] == 1 else sums


def _sum_and_count(x: Tensor) -> Tensor:
    """x [..., positions, K] -> [..., K + 1]."""
    count = torch.full((*x.shape[:-2], 1), float(x.shape[-2]), dtype=torch.float64, device=x.device)
    return torch.cat([x.sum(-2).double(), count], -1)


def _patch_parts(call: LayerCall, args: Sequence[Any]) -> Iterator[Tensor]:
    """A convolution's input vectors, [groups, positions, K], some samples at a time."""
    h = args[call.input_position].detach()
    patch_bytes = 4 * math.prod(args[call.weight_position].shape[1:]) * math.prod(h.shape[1:]) // h.shape[1]
    for part in h.split(max(1, UNFOLD_BYTES // patch_bytes)):
        yield patches(call, args, part.float()).transpose(0, 1).flatten(1, 2)


def patches(call: LayerCall, args: Sequence[Any], h: Tensor) -> Tensor:
    """The input vectors of a convolution call: [B, groups, output pixels, K]."""
    kernel = tuple(args[call.weight_position].shape[2:])
    stride, dilation, groups = _geometry(args)
    x = torch.nn.functional.unfold(_padded(call, args, h), kernel, dilation=dilation, stride=stride)
    return x.unflatten(1, (groups, -1)).transpose(2, 3)


def _vectors(h: Tensor, keep: Tensor | None) -> Tensor:
    """A linear input as [positions, K], padded positions left out."""
    if keep is not None and h.dim() == 3 and h.shape[:2] == keep.shape:
        return h[keep != 0]
    return h.reshape(-1, h.shape[-1])


def _sum_of_squares(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return wide.square().sum(dims).double()


def _geometry(args: Sequence[Any]) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(stride, dilation, groups) of a convolution call, defaults filled in."""
    stride = args[3] if len(args) > 3 else 1
    dilation = args[5] if len(args) > 5 else 1
    return _pair(stride), _pair(dilation), args[6] if len(args) > 6 else 1


def _padded(call: LayerCall, args: Sequence[Any], h: Tensor) -> Tensor:
    padding = args[4] if len(args) > 4 else 0
    if padding == "valid":
        return h
    if padding == "same":  # torch puts the odd one at the end
        kernel, (_, dilation, _) = args[call.weight_position].shape[2:], _geometry(args)
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        sides = [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    else:
        top, left = _pair(padding)
        sides = [left, left, top, top]
    return torch.nn.functional.pad(h, sides) if any(sides) else h


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
