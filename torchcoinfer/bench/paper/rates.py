"""D_L, D_U and the true rate-distortion function (Blahut-Arimoto) over the rate."""

from __future__ import annotations

import numpy as np

from torchcoinfer.bench.paper.figure import Figure, Panel, Series
from torchcoinfer.bench.paper.subjects import Subjects
from torchcoinfer.theory.bounds import lower_distortion, upper_distortion
from torchcoinfer.theory.bounds_codes import best_uniform_grid, exponential_rate_point, lloyd_max_l1

_CELL = 0.08  # times 1/slope, about the distortion itself: coarser cells put points below the converse


def draw_rates(subjects: Subjects) -> tuple[Figure, ...]:
    """[Q eq. 23-26] against Blahut-Arimoto and what two real quantizers reach, all for E|w| = 1."""
    count = 6 if subjects.fast else 20
    slopes = np.geomspace(1.5, 20.0 if subjects.fast else 60.0, count)
    points = [exponential_rate_point(s, step=min(0.02, _CELL / s)) for s in slopes.tolist()]
    rate = np.array([point.rate for point in points])
    reached = np.array([point.distortion for point in points])
    fine = np.linspace(0.25, max(6.0, rate[-1]), 80)
    whole = np.arange(1, 8)
    grids = [best_uniform_grid(int(b) + 1)[1] for b in whole]
    curves = Panel(
        "E|w| = 1, sign apart",
        "magnitude bits R",
        "E|w - w'|",
        (
            Series("D_U, random code", fine, upper_distortion(fine)),
            Series("D_L, converse", fine, lower_distortion(fine)),
            Series("Blahut-Arimoto", rate, reached, "points"),
            Series("Lloyd-Max", whole, [lloyd_max_l1(int(b)) for b in whole], "points"),
            Series("best uniform grid", whole, grids, "points"),
        ),
        y_scale="log",
    )
    floor, top = lower_distortion(rate), upper_distortion(rate)
    ratios = Panel(
        "distance from the converse",
        "magnitude bits R",
        "ratio to D_L",
        (
            Series("D_U", rate, top / floor),
            Series("Blahut-Arimoto", rate, reached / floor),
        ),
    )
    facts = {
        "points": len(points),
        "ordered": int(np.sum((floor <= reached) & (reached <= top))),
        "largest_gap_bits": max(point.gap for point in points),
        "ratio_at_highest_rate": {"D_U": top[-1] / floor[-1], "Blahut-Arimoto": reached[-1] / floor[-1]},
    }
    note = "D_U/D_L tends to 2: one bit, at every rate; the true curve tends to D_L"
    return (Figure("rates", "Rate-distortion bounds of one layer", "[Q eq. 23-26]", (curves, ratios),
                   {"slopes": slopes}, facts, (note,)),)  # fmt: skip
