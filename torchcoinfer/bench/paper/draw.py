"""Figures as PNG, with matplotlib (extra ``report``)."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchcoinfer.bench.paper.figure import Figure, Panel, Series
from torchcoinfer.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# dark to light as well as by hue, so that they are told apart in gray
_COLORS = ("#0f766e", "#d97706", "#6366f1", "#be123c", "#1f2937", "#65a30d", "#94a3b8", "#0891b2")
_DASHES = ("-", "--", "-.", ":")
_COLUMNS = 4
_LINEAR_BELOW = 1e-5  # of a "symlog" axis, which shows an error of exactly 0


def check_matplotlib() -> None:
    """Raises MissingExtra before any work is done, not after."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error


def write_png(figure: Figure, folder: Path, dpi: int = 150) -> Path:
    """Draw the figure into ``folder``; the file appears whole or not at all."""
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    columns = 2 if len(figure.panels) == 4 else min(_COLUMNS, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    canvas = Canvas(figsize=(max(5.6, 4.3 * columns), 3.3 * rows + 0.4), layout="constrained")
    grid = canvas.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, figure.panels):
        _draw_panel(axes, panel)
    for axes in grid[len(figure.panels) :]:
        axes.set_axis_off()
    canvas.suptitle(figure.title, fontsize=11)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"font.family": ["DejaVu Sans"]}):
        canvas.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    path = folder / f"{figure.name}.png"
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        file.write(buffer.getvalue())
    os.replace(temporary, path)
    return path


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_xscale(panel.x_scale)
    axes.set_yscale(panel.y_scale, **({"linthresh": _LINEAR_BELOW} if panel.y_scale == "symlog" else {}))
    for index, series in enumerate(panel.series):
        _draw_series(axes, series, _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)])
    if panel.y_scale == "symlog":
        axes.set_ylim(bottom=-0.1 * _LINEAR_BELOW)  # errors: nothing is below 0
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel(panel.x_label, fontsize=8)
    axes.set_ylabel(panel.y_label, fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.series) > 1:
        axes.legend(frameon=False, fontsize=7)


def _draw_series(axes: Axes, series: Series, color: str, dash: str) -> None:
    x, y = _numbers(series.x), _numbers(series.y)
    if series.kind == "bars":
        axes.stairs(y, x, fill=True, color=color, alpha=0.35, label=series.label)
        return
    if series.low is not None and series.high is not None:
        axes.fill_between(x, _numbers(series.low), _numbers(series.high), color=color, alpha=0.15, lw=0)
    if series.kind == "points":
        axes.plot(x, y, "o", ms=3, color=color, label=series.label)
    else:
        axes.plot(
            x, y, dash, lw=1.4, marker="o", ms=2.5 if len(x) < 40 else 0, color=color, label=series.label
        )


def _numbers(values: object) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
