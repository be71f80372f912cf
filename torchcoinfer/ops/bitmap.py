"""The bitmap sparse format (``csrc/layout_sparse.h``): 64-bit masks, one stream of survivors a block of
16 rows.

``mask`` int64 [ceil(N/16), ceil(K/32), 8]: one word for 16 rows x 4 columns (group g of the tile), bit
4 * n + k % 4 set = kept. The survivors of a block of rows are one stream in the order tile, group, bit; each
stream is padded with zeros to a multiple of 64. ``values``: all streams, one after another; floats
[total], or codes uint8 [total / 64 * 8 * bits] in chunks of 64 (``survivors.py``). ``offsets`` int32
[ceil(N/16) + 1]: where a block's stream begins, in units of 64.

Worked example: W [16, 32] keeps W[0, 1] = 5 and W[2, 0] = 7. Mask word 0 is 1 << 1 | 1 << 8 = 0x102, the
others are 0; values 5, 7, then 62 zeros; offsets 0, 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.library import implement
from torchcoinfer.ops.pack import BLOCK_N, TILE_K, ceil_div, check_format, check_shape
from torchcoinfer.ops.survivors import CHUNK, blocked, check_mask, pack_chunks, unblocked, unpack_chunks


def bitmap_pack(values: Tensor, mask: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packs a weight with any mask.

    Args:
        values: [N, K]; bits 0: float32, bfloat16 or float16; else uint8 codes below ``2**bits``.
        mask: bool [N, K], True = kept.
        bits: 0, or the width of the codes.

    Returns:
        mask int64 [NB, KT, 8], offsets int32 [NB + 1], values: floats [total] or uint8 [total / 64 * 8 *
        bits].

    Raises:
        RuntimeError, ArgumentError: dtypes or shapes disagree, a kept code is too large.
    """
    return torch.ops.torchcoinfer.bitmap_pack(values, mask, bits)


def bitmap_pack_reference(values: Tensor, mask: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    check_mask("bitmap_pack", values, mask, bits)
    tiles = blocked(mask)
    kept = tiles.flatten(1)
    place = torch.arange(64, device=mask.device)
    words = (tiles.flatten(3).long() << place).sum(-1)
    chunks = (kept.sum(1) + CHUNK - 1) // CHUNK
    offsets = functional.pad(chunks.cumsum(0), (1, 0))
    stream = values.new_zeros(int(offsets[-1]) * CHUNK)
    target = offsets[:-1, None] * CHUNK + kept.cumsum(1) - 1
    stream[target[kept]] = blocked(values).flatten(1)[kept]
    return words, offsets.int(), pack_chunks(stream, bits) if bits else stream


def bitmap_unpack(
    mask: Tensor, offsets: Tensor, values: Tensor, bits: int, N: int, K: int
) -> tuple[Tensor, Tensor]:
    """Inverse of ``bitmap_pack``: dense values [N, K], 0 where not kept, and which are kept, bool [N, K]."""
    return torch.ops.torchcoinfer.bitmap_unpack(mask, offsets, values, bits, N, K)


def bitmap_unpack_reference(
    mask: Tensor, offsets: Tensor, values: Tensor, bits: int, N: int, K: int
) -> tuple[Tensor, Tensor]:
    if bits:
        check_format("bitmap_unpack", bits)
    blocks = ceil_div(N, BLOCK_N)
    check_shape("bitmap_unpack", "mask", mask, (blocks, ceil_div(K, TILE_K), 8))
    check_shape("bitmap_unpack", "offsets", offsets, (blocks + 1,))
    check_shape("bitmap_unpack", "values", values, (int(offsets[-1]) * (8 * bits if bits else CHUNK),))
    place = torch.arange(64, device=mask.device)
    tiles = (mask.unsqueeze(-1) >> place & 1).bool().unflatten(-1, (BLOCK_N, 4))
    kept = tiles.flatten(1)
    begin = offsets.long()
    if not torch.equal((kept.sum(1) + CHUNK - 1) // CHUNK, begin.diff()) or (blocks and int(begin[0])):
        fact = "torchcoinfer::bitmap_unpack: argument 'offsets'"
        raise ArgumentError(fact, got="offsets that disagree", expected="the masks' survivors in units of 64")
    survivors = unpack_chunks(values, bits) if bits else values
    dense = survivors.new_zeros(kept.shape)
    dense[kept] = survivors[(begin[:-1, None] * CHUNK + kept.cumsum(1) - 1)[kept]]
    return unblocked(dense.view_as(tiles), N, K), unblocked(tiles, N, K)


def _pack_fake(values: Tensor, mask: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    N, K = values.shape
    blocks = ceil_div(N, BLOCK_N)
    words = values.new_empty(blocks, ceil_div(K, TILE_K), 8, dtype=torch.int64)
    offsets = values.new_empty(blocks + 1, dtype=torch.int32)
    chunks = torch.library.get_ctx().new_dynamic_size()  # known only from the mask
    return words, offsets, values.new_empty(chunks * (8 * bits if bits else CHUNK))


def _unpack_fake(
    mask: Tensor, offsets: Tensor, values: Tensor, bits: int, N: int, K: int
) -> tuple[Tensor, Tensor]:
    return values.new_empty(N, K), values.new_empty(N, K, dtype=torch.bool)


implement("bitmap_pack", bitmap_pack_reference, _pack_fake)
implement("bitmap_unpack", bitmap_unpack_reference, _unpack_fake)
