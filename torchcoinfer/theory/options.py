"""What each layer may choose, and how many bytes a choice takes: the exact arithmetic of
``csrc/layout.h``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

BLOCK_ROWS = 16
TILE_COLUMNS = 32
CHUNK = 64  # survivors of a sparse block are stored in chunks of 64
WEIGHT_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (0, 32, 64, 128)  # 0: the whole row
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
    kept_rows: float = 1.0  # structured pruning: shares of the output and input channels that stay
    kept_columns: float = 1.0


# "float" is "left as it is"; 16 bits are float16 survivors
_CODES = tuple(range(2, 9))  # of which kernels have ``WEIGHT_BITS``
FORMAT_BITS = {"float": (16, 32), "int": _CODES, "2:4": (*_CODES, 16), "bitmap": (*_CODES, 16)}
ALGORITHMS = ("none", "nearest", "obs")


def option_error(option: Option) -> str | None:
    """What no layer can be stored as, in words; None: nothing."""
    if option.format not in FORMAT_BITS:
        return f"format {option.format!r}, which is none of {tuple(FORMAT_BITS)}"
    if isinstance(option.bits, bool) or option.bits not in FORMAT_BITS[option.format]:
        return f"{option.bits!r} bits in format {option.format!r}, which takes {FORMAT_BITS[option.format]}"
    if option.group_size not in GROUP_SIZES:
        return f"group_size {option.group_size!r}, which is none of {GROUP_SIZES}"
    if not 0.0 <= option.sparsity < 1.0 or (option.sparsity > 0.0 and option.format in ("float", "int")):
        return f"sparsity {option.sparsity!r} in format {option.format!r}"
    if option.format == "2:4" and option.sparsity != 0.5:
        return f"sparsity {option.sparsity!r} in format '2:4', which keeps half"
    if option.activation_bits not in (None, 8):
        return f"activation_bits {option.activation_bits!r}, which is neither None nor 8"
    if option.algorithm not in ALGORITHMS:
        return f"algorithm {option.algorithm!r}, which is none of {ALGORITHMS}"
    if not (0.0 < option.kept_rows <= 1.0 and 0.0 < option.kept_columns <= 1.0):
        return f"kept shares {option.kept_rows!r} and {option.kept_columns!r}, which are not in (0, 1]"
    return None


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def kept_per_block(rows_in_block: int, columns: int, sparsity: float) -> int:
    """Survivors of one block of up to 16 rows: the same share in every block, so that bytes are known
    first."""
    return round((1.0 - sparsity) * rows_in_block * columns)


def kept_size(option: Option, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns that structured pruning leaves: at least one of each."""
    return max(1, round(option.kept_rows * rows)), max(1, round(option.kept_columns * columns))


def packed_bytes(option: Option, rows: int, columns: int, float_bytes: int = 4) -> int:
    """Bytes of the packed weight: codes, scales, zero points, indices and masks; not the bias.

    Args:
        option: the storage format.
        rows, columns: N and K of the weight seen as a matrix.
        float_bytes: bytes of an uncompressed element.
    """
    rows, columns = kept_size(option, rows, columns)
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
    full, tail_rows = divmod(rows, BLOCK_ROWS)
    chunks = full * ceil_div(kept_per_block(BLOCK_ROWS, columns, option.sparsity), CHUNK)
    chunks += ceil_div(kept_per_block(tail_rows, columns, option.sparsity), CHUNK)
    mask_bytes, offset_bytes = blocks * tiles * 8 * 8, (blocks + 1) * 4
    return chunks * CHUNK * bits // 8 + mask_bytes + offset_bytes + scale_bytes


def candidate_options(
    kind: str,
    *,
    bits: Iterable[int],
    sparsities: Iterable[float],
    formats: Iterable[str],
    group_sizes: Iterable[int],
    activation_bits: Iterable[int | None] = (None,),
    algorithm: str = "nearest",
) -> tuple[Option, ...]:
    """Every option of a search for one layer: uncompressed first, then dense codes, 2:4, bitmap.

    Only linear layers are pruned or take coded activations; an embedding or a convolution takes dense codes.
    "2:4" is one option a width, whatever ``sparsities`` says, as long as .5 is among them.
    """
    sparsities, options = tuple(sparsities), [Option()]
    dense_only = kind != "linear"
    for format_ in formats:
        if format_ == "int":
            shares: tuple[float, ...] = (0.0,)
        elif dense_only:
            continue
        else:
            shares = tuple(s for s in sparsities if s == 0.5 or (s > 0 and format_ == "bitmap"))
        for share in shares:
            for width in bits:
                for group_size in group_sizes:
                    for activation in (None,) if dense_only else activation_bits:
                        options.append(
                            Option(width, share, format_, group_size, False, activation, algorithm)
                        )
    return tuple(dict.fromkeys(options))


def drop_dominated(items: Iterable[Item], costs: Callable[[Item], tuple[float, ...]]) -> tuple[Item, ...]:
    """Items to which no other is at least as good in every cost; of equal items the first stays."""
    listed = list(items)
    vectors = [costs(item) for item in listed]
    kept = []
    for i, own in enumerate(vectors):
        dominated = any(
            all(a <= b for a, b in zip(other, own, strict=True)) and (other != own or j < i)
            for j, other in enumerate(vectors)
            if j != i
        )
        if not dominated:
            kept.append(listed[i])
    return tuple(kept)
