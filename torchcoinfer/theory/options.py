"""What each layer may choose, and how many bytes a choice takes: the exact arithmetic of ``csrc/layout.h``."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_ROWS = 16
TILE_COLUMNS = 32
CHUNK = 64  # survivors of a sparse block are stored in chunks of 64
WEIGHT_BITS = (2, 3, 4, 5, 6, 8)
SCALE_BYTES = 2  # float16 scales


@dataclass(frozen=True, order=True)
class Option:
    """One way to store and run a layer's weight.

    ``bits`` 32 with format "float" means: left as it is. ``group_size`` 0 is the whole row.
    ``format``: "float" | "int" (dense codes) | "2:4" | "bitmap" (quantized survivors when bits < 32,
    float16 survivors when bits == 16).
    """

    bits: int = 32
    sparsity: float = 0.0
    format: str = "float"
    group_size: int = 0
    symmetric: bool = False
    activation_bits: int | None = None
    algorithm: str = "none"  # "none" | "nearest" (clip search) | "obs" (error-compensated)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def kept_per_block(rows_in_block: int, columns: int, sparsity: float) -> int:
    """Survivors of one block of up to 16 rows: the same share in every block, so that bytes are known first."""
    return round((1.0 - sparsity) * rows_in_block * columns)


def packed_bytes(option: Option, rows: int, columns: int, float_bytes: int = 4) -> int:
    """Bytes of the packed weight: codes, scales, zero points, indices and masks; not the bias.

    Args:
        option: the storage format.
        rows, columns: N and K of the weight seen as a matrix.
        float_bytes: bytes of an uncompressed element.
    """
    if option.format == "float":
        return rows * columns * float_bytes
    blocks, tiles = ceil_div(rows, BLOCK_ROWS), ceil_div(columns, TILE_COLUMNS)
    quantized = option.bits < 16
    groups = ceil_div(columns, option.group_size) if option.group_size else 1
    scale_bytes = (
        blocks * groups * BLOCK_ROWS * (SCALE_BYTES + (0 if option.symmetric else 1)) if quantized else 0
    )
    if option.format == "int":
        return blocks * tiles * 64 * option.bits + scale_bytes
    bits = option.bits
    if option.format == "2:4":
        return blocks * tiles * (64 + 32 * bits) + scale_bytes
    chunks = 0
    for block in range(blocks):
        rows_in_block = min(BLOCK_ROWS, rows - block * BLOCK_ROWS)
        chunks += ceil_div(kept_per_block(rows_in_block, columns, option.sparsity), CHUNK)
    mask_bytes, offset_bytes = blocks * tiles * 8 * 8, (blocks + 1) * 4
    return chunks * CHUNK * bits // 8 + mask_bytes + offset_bytes + scale_bytes
