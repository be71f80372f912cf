"""The 2:4 sparse format (``csrc/layout_sparse.h``): of four consecutive columns two are stored, 2-bit
indices.

A tile is 16 rows x 32 columns, 8 groups of 4 columns. ``index`` uint8 [ceil(N/16), ceil(K/32), 64]: byte
8 * g + n // 2 holds the nibble i0 | i1 << 2 (i0 < i1) of group g and row n, even rows in the low half.
``values``: the 256 survivors of a tile in the order group, row, slot; floats [.., .., 256], or codes uint8
[.., .., 32 * bits] in four chunks of 64 (``survivors.py``). Where a group keeps fewer than two, its
lowest free columns fill the slots: floats with 0, codes with the code given there (a caller puts the zero
point there).

Worked example: row 0 keeps the columns 1 and 3 of a tile, nothing else is kept. Index byte 0 is 0x4d:
0b1101 for row 0, 0b0100 for row 1, which stores its columns 0 and 1; every other byte is 0x44.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.library import implement
from torchcoinfer.ops.pack import BLOCK_N, PLANES, TILE_K, ceil_div, check_format, check_shape
from torchcoinfer.ops.survivors import blocked, check_mask, pack_chunks, unblocked, unpack_chunks

TILE_SURVIVORS = BLOCK_N * TILE_K // 2


def sparse24_pack(values: Tensor, mask: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Packs a weight of which at most two of four consecutive columns are kept.

    Args:
        values: [N, K]; bits 0: float32, bfloat16 or float16; else uint8 codes below ``2**bits``.
        mask: bool [N, K], True = kept.
        bits: 0, or the width of the codes.

    Returns:
        index uint8 [NB, KT, 64] and values: floats [NB, KT, 256] or uint8 [NB, KT, 32 * bits].

    Raises:
        RuntimeError, ArgumentError: dtypes or shapes disagree, a code is too large, more than two are kept.
    """
    return torch.ops.torchcoinfer.sparse24_pack(values, mask, bits)


def sparse24_pack_reference(values: Tensor, mask: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    check_mask("sparse24_pack", values, mask, bits)
    kept = blocked(mask)
    most = int(kept.sum(-1).max()) if kept.numel() else 0
    if most > 2:
        fact = "torchcoinfer::sparse24_pack: argument 'mask'"
        raise ArgumentError(fact, got=f"{most} of 4 consecutive columns kept", expected="at most 2 of 4")
    order = torch.arange(4, device=mask.device) + 4 * (~kept)
    slots = order.argsort(-1)[..., :2].sort(-1).values
    stored = values if bits else torch.where(mask, values, 0)
    survivors = blocked(stored).gather(-1, slots).flatten(2)
    nibbles = (slots[..., 0] | slots[..., 1] << 2).to(torch.uint8)
    index = (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).flatten(2)
    return index, pack_chunks(survivors, bits) if bits else survivors


def sparse24_unpack(index: Tensor, values: Tensor, bits: int, N: int, K: int) -> tuple[Tensor, Tensor]:
    """Inverse of ``sparse24_pack``: dense values [N, K], 0 where not stored, and which are stored, bool
    [N, K].
    """
    return torch.ops.torchcoinfer.sparse24_unpack(index, values, bits, N, K)


def sparse24_unpack_reference(
    index: Tensor, values: Tensor, bits: int, N: int, K: int
) -> tuple[Tensor, Tensor]:
    if bits:
        check_format("sparse24_unpack", bits)
    tiles = (ceil_div(N, BLOCK_N), ceil_div(K, TILE_K))
    check_shape("sparse24_unpack", "index", index, (*tiles, 64))
    check_shape("sparse24_unpack", "values", values, (*tiles, 32 * bits if bits else TILE_SURVIVORS))
    nibbles = torch.stack((index & 15, index >> 4), -1).flatten(2).unflatten(2, (8, BLOCK_N)).long()
    slots = torch.stack((nibbles & 3, nibbles >> 2), -1)
    survivors = (unpack_chunks(values, bits) if bits else values).unflatten(2, (8, BLOCK_N, 2))
    dense = survivors.new_zeros(*slots.shape[:-1], 4).scatter(-1, slots, survivors)
    kept = torch.zeros_like(dense, dtype=torch.bool).scatter(-1, slots, True)
    return unblocked(dense, N, K), unblocked(kept, N, K)


def _pack_fake(values: Tensor, mask: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    N, K = values.shape
    tiles = (ceil_div(N, BLOCK_N), ceil_div(K, TILE_K))
    index = values.new_empty(*tiles, 64, dtype=torch.uint8)
    return index, values.new_empty(*tiles, 32 * bits if bits in PLANES else TILE_SURVIVORS)


def _unpack_fake(index: Tensor, values: Tensor, bits: int, N: int, K: int) -> tuple[Tensor, Tensor]:
    return values.new_empty(N, K), values.new_empty(N, K, dtype=torch.bool)


implement("sparse24_pack", sparse24_pack_reference, _pack_fake)
implement("sparse24_unpack", sparse24_unpack_reference, _unpack_fake)
