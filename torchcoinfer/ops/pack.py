"""Packing and unpacking of weight codes, quantizing and dequantizing (format: ``csrc/layout.h``)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.library import implement

BLOCK_N = 16  # rows of W in a block
TILE_K = 32  # columns of W in a tile
PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
GROUP_SIZES = (0, 32, 64, 128)


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


def group_count(K: int, group_size: int) -> int:
    """Groups a row: ceil(K / group_size), 1 for group_size 0 (the whole row)."""
    return 1 if group_size == 0 else ceil_div(K, group_size)


def check_format(op: str, bits: int, group_size: int = 0) -> None:
    """Raises ArgumentError unless bits and group size are of the format."""
    if bits not in PLANES:
        raise ArgumentError(f"torchcoinfer::{op}: argument 'bits'", got=bits, expected="2, 3, 4, 5, 6 or 8")
    if group_size not in GROUP_SIZES:
        expected = "32, 64, 128 or 0 (whole row)"
        raise ArgumentError(f"torchcoinfer::{op}: argument 'group_size'", got=group_size, expected=expected)


def check_shape(op: str, argument: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raises ArgumentError unless the tensor has that shape."""
    if tuple(tensor.shape) != expected:
        fact = f"torchcoinfer::{op}: argument '{argument}'"
        raise ArgumentError(fact, got=tuple(tensor.shape), expected=f"shape {expected}")


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Packs codes uint8 [N, K], each below 2^bits, into uint8 [ceil(N/16), ceil(K/32), 64 * bits]."""
    return torch.ops.torchcoinfer.pack_codes(codes, bits)


def pack_codes_reference(codes: Tensor, bits: int) -> Tensor:
    check_format("pack_codes", bits)
    N, K = codes.shape
    if codes.numel() and int(codes.max()) >> bits:
        raise ArgumentError("torchcoinfer::pack_codes: argument 'codes'", expected=f"values below 2^{bits}")
    blocks, tiles = ceil_div(N, BLOCK_N), ceil_div(K, TILE_K)
    padded = functional.pad(codes, (0, tiles * TILE_K - K, 0, blocks * BLOCK_N - N))
    padded = padded.view(blocks, BLOCK_N, tiles, TILE_K).transpose(1, 2)
    planes, shift = [], 0
    for p in PLANES[bits]:
        fields = (padded >> shift & (1 << p) - 1).unflatten(-1, (p, 8 // p, 4))  # n, vector, field, byte
        merged = sum(fields[..., f, :] << p * f for f in range(8 // p))
        planes.append(merged.transpose(-3, -2).flatten(-3))  # vector, n, byte
        shift += p
    return torch.cat(planes, -1)


def unpack_codes(packed: Tensor, bits: int, N: int, K: int) -> Tensor:
    """Inverse of ``pack_codes``: uint8 [N, K]."""
    return torch.ops.torchcoinfer.unpack_codes(packed, bits, N, K)


def unpack_codes_reference(packed: Tensor, bits: int, N: int, K: int) -> Tensor:
    check_format("unpack_codes", bits)
    blocks, tiles = ceil_div(N, BLOCK_N), ceil_div(K, TILE_K)
    check_shape("unpack_codes", "packed", packed, (blocks, tiles, 64 * bits))
    codes = packed.new_zeros(blocks, tiles, BLOCK_N, TILE_K)
    shift = 0
    for p in PLANES[bits]:
        plane = packed[..., 64 * shift : 64 * (shift + p)].unflatten(-1, (p, BLOCK_N, 4)).transpose(-3, -2)
        fields = torch.stack([plane >> p * f & (1 << p) - 1 for f in range(8 // p)], -2)
        codes |= fields.flatten(-3) << shift
        shift += p
    return codes.transpose(1, 2).reshape(blocks * BLOCK_N, tiles * TILE_K)[:N, :K].contiguous()


def _pack_codes_fake(codes: Tensor, bits: int) -> Tensor:
    N, K = codes.shape
    return codes.new_empty(ceil_div(N, BLOCK_N), ceil_div(K, TILE_K), 64 * bits)


def _unpack_codes_fake(packed: Tensor, bits: int, N: int, K: int) -> Tensor:
    return packed.new_empty(N, K)


implement("pack_codes", pack_codes_reference, _pack_codes_fake)
implement("unpack_codes", unpack_codes_reference, _unpack_codes_fake)
