"""The roofline as a picture: operations a second over operations a byte of weight, with the ceilings."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from torchcoinfer.bench.peers import PEERS
from torchcoinfer.errors import MissingExtra

OWN, OTHER, INK = "#0f766e", "#d97706", "#1f2937"


def save(rows: Sequence[dict[str, Any]], path: Path, peers: Collection[str] = PEERS) -> Path:
    """Draw the rows of ``bench kernels`` and write a PNG; ``peers`` are drawn in another color.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    measured = [row for row in rows if "missing" not in row]
    figure = Figure(figsize=(8.6, 5.4), layout="constrained")
    axes = figure.subplots()
    for others, color, name in ((False, OWN, "torchcoinfer"), (True, OTHER, "peers")):
        chosen = [row for row in measured if (row["kernel"] in peers) is others]
        judged = [row for row in chosen if row["judged"] is True]
        rest = [row for row in chosen if row["judged"] is not True]
        axes.scatter(*_points(judged), s=14, color=color, lw=0, label=name)
        if rest:
            axes.scatter(
                *_points(rest), s=14, facecolors="none", edgecolors=color, label=f"{name}, not judged"
            )
    intensities = sorted(row["flops"] / row["bytes"] for row in measured)
    _ceilings(axes, measured, intensities[0], intensities[-1])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte of weight", fontsize=9, color=INK)
    axes.set_ylabel("operations per second", fontsize=9, color=INK)
    first = measured[0]
    axes.set_title(f"{first['cpu']}, {first['isa']}, {first['threads']} threads", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    unfinished = path.with_name(path.name + ".tmp")
    figure.savefig(unfinished, format="png", dpi=150)
    os.replace(unfinished, path)
    return path


def _points(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["flops"] / row["bytes"] for row in rows], [row["flops"] / row["median_s"] for row in rows]


def _ceilings(axes: Any, rows: Sequence[dict[str, Any]], least: float, most: float) -> None:
    """Memory's slope and the flat tops: the median of what was measured beside each race."""
    bandwidth = median(row["bandwidth_bytes_per_s"] for row in rows)
    peaks = [
        (name, median(values))
        for name in ("bf16", "int8")
        if (values := [row["peak_flops"][name] for row in rows if row["peak_flops"][name]])
    ]
    bend = min(most, max([peak for _, peak in peaks], default=most * bandwidth) / bandwidth)
    axes.plot([least, bend], [least * bandwidth, bend * bandwidth], color=INK, lw=1)
    axes.text(least, 1.25 * least * bandwidth, f"memory, {bandwidth / 1e9:.0f} GB/s", fontsize=8, color=INK)
    for name, peak in peaks:
        axes.plot([min(most, peak / bandwidth), most], [peak, peak], color=INK, lw=1, ls="--")
        axes.text(most, 1.06 * peak, f"{name}, {peak / 1e12:.2f} T/s", ha="right", fontsize=8, color=INK)
