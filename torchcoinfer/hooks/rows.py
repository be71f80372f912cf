"""What a ResourceMonitor saw of one module, and the table of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class ModuleRow:
    """One module over all runs.

    Attributes:
        name: FQN; "" is the monitored model itself.
        type: class name.
        calls: how often it was called.
        seconds: wall time of all calls, without the time of submodules that have rows of their own.
        flops: of all calls, without those of such submodules; multiply and add count as two.
        parameter_bytes: its own parameters and buffers, not those of submodules that were called; shared
            tensors count once, in the module that comes first.
        activation_bytes: largest size of its output tensors in one call.
    """

    name: str
    type: str
    parameter_bytes: int
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    activation_bytes: int = 0


def table(rows: Sequence[ModuleRow]) -> str:
    """Rows as aligned text, the slowest first, with each one's share of the time."""
    total = sum(row.seconds for row in rows) or 1.0
    head = ("module", "type", "calls", "ms", "share", "MFLOP", "parameters", "output")
    lines = [
        (
            row.name or "(itself)",
            row.type,
            str(row.calls),
            f"{1e3 * row.seconds:.3f}",
            f"{100 * row.seconds / total:.1f} %",
            f"{row.flops / 1e6:.3f}",
            f"{row.parameter_bytes} B",
            f"{row.activation_bytes} B",
        )
        for row in sorted(rows, key=lambda row: -row.seconds)
    ]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in (head, *lines)
    )
