"""Numbers with units, and tables of them, in plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_BYTE_STEPS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_SI_STEPS = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def format_bytes(count: float) -> str:
    """1536 -> "1.50 KiB"."""
    for step, unit in _BYTE_STEPS:
        if abs(count) >= step:
            return f"{_three_digits(count / step)} {unit}"
    return f"{count:.0f} B"


def format_si(value: float, unit: str) -> str:
    """0.0123, "s" -> "12.3 ms"."""
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    for step, prefix in _SI_STEPS:
        if abs(value) >= step * 0.9995:
            return f"{_three_digits(value / step)} {prefix}{unit}"
    return f"{value:.2e} {unit}"


def format_error(value: float) -> str:
    """A relative error with three digits: 0.0123 -> "0.0123", 1.2e-06 -> "1.20e-06"."""
    return f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:.3g}"


def _three_digits(value: float) -> str:
    return (
        f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
    )


def format_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as an aligned text table; numbers to the right, a missing or None cell as a dash.

    Args:
        rows: one mapping a row.
        columns: keys in order; default those of the first row.
    """
    if not rows:
        return ""
    names = list(columns or rows[0])
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    right = [all(_looks_numeric(line[i]) for line in cells) for i in range(len(names))]

    def line(parts: Sequence[str]) -> str:
        aligned = (part.rjust(w) if r else part.ljust(w) for part, w, r in zip(parts, widths, right))
        return "  ".join(aligned).rstrip()

    return "\n".join([line(names), "  ".join("-" * width for width in widths), *map(line, cells)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _looks_numeric(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit() or (cell[:1] in "+-." and cell[1:2].isdigit())
