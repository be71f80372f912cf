"""Round-to-nearest quantization into the packed format, and back (format: ``csrc/layout.h``)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.library import implement
from torchcoinfer.ops.pack import (
    BLOCK_N,
    TILE_K,
    ceil_div,
    check_format,
    check_shape,
    group_count,
    pack_codes_reference,
    unpack_codes_reference,
)


def quantize_pack(
    weight: Tensor, bits: int, group_size: int, symmetric: bool, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes a weight [N, K] (float32, bfloat16 or float16) by rounding to nearest, per (row, group).

    Symmetric: scale = absmax / (2^(bits-1) - 1), zero point 2^(bits-1). Asymmetric: minimum and maximum
    widened to contain 0, scale = (max - min) / (2^bits - 1), zero point rint(-min / scale). The scale is
    rounded to ``scale_dtype`` before the codes are taken.

    Returns:
        packed uint8 [NB, KT, 64 * bits], scales [NB, G, 16] of scale_dtype, zeros uint8 [NB, G, 16] (empty if
        symmetric); NB = ceil(N / 16), KT = ceil(K / 32), G = ceil(K / group_size).

    Raises:
        RuntimeError, ArgumentError: bits, group size or dtype not of the format; NaN or Inf in the weight.
    """
    return torch.ops.torchcoinfer.quantize_pack(weight, bits, group_size, symmetric, scale_dtype)


def quantize_pack_reference(
    weight: Tensor, bits: int, group_size: int, symmetric: bool, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    check_format("quantize_pack", bits, group_size)
    N, K = weight.shape
    groups = group_count(K, group_size)
    length = K if group_size == 0 else group_size
    grouped = functional.pad(weight.float(), (0, groups * length - K)).view(N, groups, length)
    # a zero column keeps the extremes defined for K = 0 and makes them contain 0
    low, high = functional.pad(grouped, (0, 1)).aminmax(dim=-1)
    top, middle = (1 << bits) - 1, 1 << bits - 1
    scale = torch.maximum(-low, high) / (middle - 1) if symmetric else (high - low) / top
    stored = scale.to(scale_dtype)
    scale = stored.float()
    if not (weight.isfinite().all() and scale.isfinite().all()):
        expected = f"finite values whose scales fit {scale_dtype}"
        fact = "torchcoinfer::quantize_pack: argument 'weight'"
        raise ArgumentError(fact, got="NaN or Inf", expected=expected)
    divisor = torch.where(scale > 0, scale, torch.inf)
    zero = torch.full_like(scale, middle) if symmetric else (-low / divisor).round().clamp(0, top)
    codes = ((grouped / divisor[..., None]).round() + zero[..., None]).clamp(0, top)
    codes = codes.view(N, groups * length)[:, :K].to(torch.uint8)
    zeros = weight.new_empty(0, dtype=torch.uint8) if symmetric else block_groups(zero.to(torch.uint8))
    return pack_codes_reference(codes, bits), block_groups(stored), zeros


def block_groups(values: Tensor) -> Tensor:
    """Per-row values [N, G] in the packed order [NB, G, 16], rows padded with 0."""
    N, groups = values.shape
    blocks = ceil_div(N, BLOCK_N)
    padded = functional.pad(values, (0, 0, 0, blocks * BLOCK_N - N))
    return padded.view(blocks, BLOCK_N, groups).transpose(1, 2).contiguous()


def unblock_groups(blocked: Tensor, N: int) -> Tensor:
    """Inverse of ``block_groups``: [NB, G, 16] to [N, G]."""
    return blocked.transpose(1, 2).flatten(0, 1)[:N]


def dequantize(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    group_size: int,
    N: int,
    K: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weight [N, K] that the packed buffers stand for: scale * (code - zero), rounded to ``dtype``."""
    return torch.ops.torchcoinfer.dequantize(packed, scales, zeros, bits, group_size, N, K, dtype)


def dequantize_reference(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    group_size: int,
    N: int,
    K: int,
    dtype: torch.dtype,
) -> Tensor:
    check_format("dequantize", bits, group_size)
    codes = unpack_codes_reference(packed, bits, N, K)
    return dequantize_codes(codes, scales, zeros, bits, group_size).to(dtype)


def dequantize_codes(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group_size: int
) -> Tensor:
    """float32 [N, K] from codes uint8 [N, K] and scales, zeros in packed order [NB, G, 16]."""
    N, K = codes.shape
    groups = group_count(K, group_size)
    check_shape("dequantize", "scales", scales, (ceil_div(N, BLOCK_N), groups, BLOCK_N))
    zero: Tensor | int = 1 << bits - 1
    group_of_column = torch.arange(K, device=codes.device) // (group_size or max(K, 1))
    if zeros is not None and zeros.numel():
        check_shape("dequantize", "zeros", zeros, tuple(scales.shape))
        zero = unblock_groups(zeros, N)[:, group_of_column].float()
    return unblock_groups(scales, N)[:, group_of_column].float() * (codes.float() - zero)


def _quantize_pack_fake(
    weight: Tensor, bits: int, group_size: int, symmetric: bool, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    N, K = weight.shape
    blocks, groups = ceil_div(N, BLOCK_N), group_count(K, group_size)
    packed = weight.new_empty(blocks, ceil_div(K, TILE_K), 64 * bits, dtype=torch.uint8)
    zeros_shape = (0,) if symmetric else (blocks, groups, BLOCK_N)
    scales = weight.new_empty(blocks, groups, BLOCK_N, dtype=scale_dtype)
    return packed, scales, weight.new_empty(zeros_shape, dtype=torch.uint8)


def _dequantize_fake(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    group_size: int,
    N: int,
    K: int,
    dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty(N, K, dtype=dtype)


implement("quantize_pack", quantize_pack_reference, _quantize_pack_fake)
implement("dequantize", dequantize_reference, _dequantize_fake)
