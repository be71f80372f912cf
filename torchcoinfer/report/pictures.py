"""The report's pictures, drawn with matplotlib (extra ``report``) and embedded as SVG data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torchcoinfer.errors import MissingExtra
from torchcoinfer.report.text import format_si
from torchcoinfer.theory.bounds import laplacian_distortion, upper_distortion
from torchcoinfer.theory.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEVICE, SERVER, LINK = "#0f766e", "#6366f1", "#d97706"  # teal, indigo, amber: told apart in gray as well
INK, PALE, GRAY = "#1f2937", "#cbd5e1", "#94a3b8"
_SIDE_COLOR = {"device": DEVICE, "server": SERVER, "both": LINK}
_RATE_LABEL = "bits per weight, scales and indices counted"
_SHOWN_BITS = 12.0  # beyond it only tiny padded layers and uncompressed ones; they would squeeze the rest
_FONT = ["DejaVu Sans"]

Curves = Mapping[str, Sequence[Mapping[str, Any]]]
Point = tuple[float, float, bool]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    figure = Canvas(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(PALE)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    return figure, axes


def data_uri(figure: Figure) -> str:
    """The figure as an SVG data URI; the same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "torchcoinfer", "font.family": _FONT}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def bits_per_layer(plan: Plan, weight_numel: Mapping[str, int]) -> Figure:
    """One bar a layer: bits per weight, all counted, where the layer's size is known, else its bits."""
    names = list(plan.layers)
    layers = [plan.layers[name] for name in names]
    widths = [
        8 * layer.packed_bytes / weight_numel[name] if weight_numel.get(name) else layer.bits
        for name, layer in zip(names, layers)
    ]
    figure, axes = _figure(8.6, max(1.6, 0.19 * len(names) + 0.7))
    rows = np.arange(len(names))
    widest = max([width for width in widths if width <= _SHOWN_BITS], default=max(widths))
    shown = np.minimum(widths, 1.04 * widest)
    axes.barh(rows, shown, color=[_SIDE_COLOR[layer.side] for layer in layers], height=0.72)
    for row, width, layer in zip(rows, widths, layers):
        told = f"{width:.2f}" + (f"  {100 * layer.sparsity:.0f} % pruned" if layer.sparsity else "")
        told += "  as it is" if layer.format == "float" else ""
        axes.text(shown[row] + 0.01 * widest, row, told, va="center", fontsize=7, color=INK)
    axes.set_yticks(rows, [shorten(name) for name in names], fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.2 * widest)
    axes.set_xlabel(_RATE_LABEL, fontsize=8, color=INK)
    for side in dict.fromkeys(layer.side for layer in layers):
        axes.barh([0], [0], color=_SIDE_COLOR[side], label=side)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def weight_distortion(curves: Curves) -> Figure:
    """Every option of every layer as lam E|w - w'| over bits per weight, against the Laplacian's floor."""
    figure, axes = _figure(8.6, 3.7)
    options = _points(curves, "scaled_l1")
    axes.scatter(*_columns(options, chosen=False), s=8, color=GRAY, lw=0, label="options measured")
    axes.scatter(*_columns(options, chosen=True), s=22, color=DEVICE, lw=0, label="chosen", zorder=3)
    top = max([bits for bits, _, _ in options if bits <= _SHOWN_BITS], default=8.0)
    rates = np.linspace(0.5, top + 0.5, 200)
    axes.plot(rates, laplacian_distortion(rates), color=INK, lw=1.4, label="floor, $2^{-b}$")
    coded = rates[rates > 1.0]
    reached = upper_distortion(coded - 1.0)
    axes.plot(coded, reached, color=INK, lw=1, ls="--", label="$D_U$: a random code reaches it")
    axes.set_yscale("log")
    axes.set_xlim(rates[0], rates[-1])
    axes.set_xlabel(_RATE_LABEL, fontsize=8, color=INK)
    axes.set_ylabel(r"$\lambda\,E|w-\hat w|$", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8)
    return figure


def output_distortion(curves: Curves) -> Figure:
    """What the solver sees, one line a layer: relative output error over bits per weight."""
    figure, axes = _figure(8.6, 3.7)
    for options in curves.values():
        scored = [(p["bits_per_weight"], p["distortion"]) for p in options if p.get("distortion")]
        if scored and min(scored)[0] <= _SHOWN_BITS:
            axes.plot(*zip(*_front(scored)), color=PALE, lw=0.9, zorder=1)
    chosen = _columns(_points(curves, "distortion"), chosen=True)
    axes.scatter(*chosen, s=22, color=DEVICE, lw=0, label="chosen", zorder=3)
    axes.plot([], [], color=PALE, label="a layer's best options")
    axes.set_xlim(right=min(_SHOWN_BITS, axes.get_xlim()[1]))
    axes.set_yscale("log")
    axes.set_xlabel(_RATE_LABEL, fontsize=8, color=INK)
    axes.set_ylabel("relative output error of the layer alone", fontsize=8, color=INK)
    axes.legend(frameon=False, fontsize=8)
    return figure


def latency_split(parts: Sequence[tuple[str, float]], budget_s: float | None) -> Figure:
    """Where the time goes: one stacked bar, a legend with every part's time, the budget as a line."""
    figure, axes = _figure(8.6, 1.7)
    total, left = sum(seconds for _, seconds in parts), 0.0
    longest = max(total, budget_s or 0.0) or 1.0
    for name, seconds in parts:
        color = DEVICE if "device" in name else SERVER if "server" in name else LINK
        told = f"{name}, {format_si(seconds, 's')}"
        shade = 0.55 if "answer" in name else 1.0
        axes.barh([0], [seconds], left=left, color=color, alpha=shade, height=0.55, ec="white", label=told)
        left += seconds
    axes.legend(
        frameon=False, fontsize=8, ncols=len(parts), loc="lower left", bbox_to_anchor=(0, 1), borderpad=0,
        handlelength=1.0, handletextpad=0.5, columnspacing=1.4,
    )  # fmt: skip
    if budget_s:
        axes.axvline(budget_s, color=INK, lw=1.2, ls="--")
        axes.text(budget_s, 0.36, f"budget {format_si(budget_s, 's')} ", ha="right", fontsize=8, color=INK)
    axes.set_ylim(-0.42, 0.62)
    axes.set_xlim(0, 1.02 * longest)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(lambda value, _: format_si(value, "s"))
    axes.spines["left"].set_visible(False)
    return figure


def shorten(name: str, length: int = 46) -> str:
    """A dotted name that keeps its end: "…layer.0.attention.self.query"."""
    return name if len(name) <= length else "…" + name[len(name) - length + 1 :]


def _points(curves: Curves, key: str) -> list[Point]:
    return [
        (float(option["bits_per_weight"]), float(option[key]), bool(option.get("chosen")))
        for options in curves.values()
        for option in options
        if option.get(key)
    ]


def _columns(points: Sequence[Point], chosen: bool) -> tuple[list[float], list[float]]:
    kept = [point for point in points if point[2] is chosen]
    return [bits for bits, _, _ in kept], [value for _, value, _ in kept]


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Options that no other beats in both bits and distortion, by ascending bits."""
    front: list[tuple[float, float]] = []
    for bits, distortion in sorted(points):
        if not front or distortion < front[-1][1]:
            front.append((bits, distortion))
    return front
