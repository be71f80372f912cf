"""What both sparse formats share: tile order, and chunks of 64 survivor codes (``csrc/layout_sparse.h``).

A chunk of 64 codes of b bits takes ``8 * b`` bytes: the bit planes of the code one after another, the low
bits first (6 = [4, 2], 5 = [4, 1], 3 = [2, 1]). A plane of p bits takes ``8 * p`` bytes; its byte i holds
the codes i, i + 8p, i + 16p, ..., the first in the lowest bits. Worked example, b = 4, code i = i % 16:
byte 1 holds the codes 1 and 33, both 1: 0x11; byte 15 is 0xff.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.pack import BLOCK_N, PLANES, TILE_K, check_format, check_shape
from torchcoinfer.ops.quant_linear import check_variant, rows_by_weight
from torchcoinfer.ops.quantize import dequantize_codes

CHUNK = 64


def pack_chunks(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., 64 * c] to bytes uint8 [..., 8 * bits * c]."""
    chunks = codes.reshape(*codes.shape[:-1], codes.shape[-1] // CHUNK, CHUNK)
    planes, shift = [], 0
    for plane in PLANES[bits]:
        fields = (chunks >> shift & (1 << plane) - 1).unflatten(-1, (8 // plane, 8 * plane))
        planes.append(sum(fields[..., f, :] << plane * f for f in range(8 // plane)))
        shift += plane
    return torch.cat(planes, -1).flatten(-2)


def unpack_chunks(packed: Tensor, bits: int) -> Tensor:
    """Inverse of ``pack_chunks``: bytes uint8 [..., 8 * bits * c] to codes uint8 [..., 64 * c]."""
    width = 8 * bits
    chunks = packed.view(*packed.shape[:-1], packed.shape[-1] // width, width)
    codes, shift, start = chunks.new_zeros(*chunks.shape[:-1], CHUNK), 0, 0
    for plane in PLANES[bits]:
        part = chunks[..., start : start + 8 * plane]
        fields = [part >> plane * f & (1 << plane) - 1 for f in range(8 // plane)]
        codes |= torch.cat(fields, -1) << shift
        shift, start = shift + plane, start + 8 * plane
    return codes.flatten(-2)


def blocked(matrix: Tensor) -> Tensor:
    """A matrix [N, K] in the order of the tiles: [ceil(N/16), ceil(K/32), 8 groups, 16 n, 4 k], 0 beyond
    it.
    """
    N, K = matrix.shape
    padded = functional.pad(matrix, (0, -K % TILE_K, 0, -N % BLOCK_N))
    tiles = padded.view(padded.shape[0] // BLOCK_N, BLOCK_N, padded.shape[1] // TILE_K, 8, 4)
    return tiles.permute(0, 2, 3, 1, 4)


def unblocked(tiles: Tensor, N: int, K: int) -> Tensor:
    """Inverse of ``blocked``, the padding cut off: [N, K]."""
    return tiles.permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)[:N, :K].contiguous()


def check_mask(op: str, values: Tensor, mask: Tensor, bits: int) -> None:
    """Raises ArgumentError unless the arguments of a sparse pack op agree."""
    if bits:
        check_format(op, bits)
    if values.dtype not in ((torch.uint8,) if bits else (torch.float32, torch.bfloat16, torch.float16)):
        expected = "uint8 codes" if bits else "float32, bfloat16 or float16"
        raise ArgumentError(f"torchcoinfer::{op}: argument 'values'", got=values.dtype, expected=expected)
    if mask.dtype != torch.bool:
        raise ArgumentError(f"torchcoinfer::{op}: argument 'mask'", got=mask.dtype, expected="bool")
    check_shape(op, "mask", mask, tuple(values.shape))
    if bits and values.numel() and int(torch.where(mask, values, 0).max()) >> bits:
        raise ArgumentError(f"torchcoinfer::{op}: argument 'values'", expected=f"codes below 2^{bits}")


def survivor_linear(
    op: str,
    x: Tensor,
    stored: tuple[Tensor, Tensor],
    scales: Tensor | None,
    zeros: Tensor | None,
    bias: Tensor | None,
    variant: tuple[int, int, int, int],
) -> Tensor:
    """x times the unpacked weight (values [N, K], which are stored) transposed; variant as the ops'
    integers.
    """
    bits, group_size, activation_bits, layout = variant
    check_variant(op, activation_bits, layout)
    weight, kept = stored
    if bits:
        if scales is None:
            raise ArgumentError(
                f"torchcoinfer::{op}: argument 'scales'", got="None", expected="the codes' scales"
            )
        check_format(op, bits, group_size)
        weight = dequantize_codes(weight, scales, zeros, bits, group_size) * kept
    elif activation_bits or group_size:
        fact = f"torchcoinfer::{op}: arguments 'activation_bits' and 'group_size'"
        raise ArgumentError(fact, got=(activation_bits, group_size), expected="0 for float survivors")
    y = rows_by_weight(x.float(), weight.float(), activation_bits)
    return (y if bias is None else y + bias.float()).to(x.dtype)
