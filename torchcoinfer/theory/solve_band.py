"""Within which link rates a plan stays feasible and the best of the stored fronts.

Of a fixed choice every row is linear in x = 1 / (factor on the link's rates), so where a choice keeps the
budget and where one beats another are intervals of x with closed ends: no sweep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from torchcoinfer.theory.costs import LinkProfile
from torchcoinfer.theory.solve import ceilings, tightest
from torchcoinfer.theory.solve_front import Fronts
from torchcoinfer.theory.solve_plan import Solution
from torchcoinfer.theory.solve_table import ROWS, Table

REFINEMENTS = 6  # re-plans at the ends of the band, whose plans join the stored ones
INSIDE = 1e-3  # how far inside of an end they are
MARGIN = 1e-9  # a plan that is better by less is not better


def scaled_link(link: LinkProfile, factor: float) -> LinkProfile:
    """The link with both rates times ``factor``, at every power; the round trip stays."""
    bandwidth = None if link.bandwidth_hz is None else link.bandwidth_hz * factor
    return replace(
        link,
        uplink_bps=link.uplink_bps * factor,
        downlink_bps=link.downlink_bps * factor,
        bandwidth_hz=bandwidth,
    )


def bandwidth_band(fronts: Fronts, plan: Solution) -> dict[str, Any]:
    """The interval of link rates around the present one in which no row is exceeded and no stored choice, on
    any candidate cut and in any state of clocks and power, is better by more than ``search.gap``.

    Both rates of the link scale together. A plan without distortion is compared by its latency.

    Returns:
        ``uplink_bps``: the present rate at the plan's power; ``least_bps``, ``most_bps``: the interval's ends
        (0 and None: no end); ``least_because``, ``most_because``: the row that is exceeded beyond, or the cut
        whose plan is better there.
    """
    band = _band(fronts, plan)
    for _ in range(0 if fronts.problem.search.mode == "analytic" else REFINEMENTS):
        for x in (band.first * (1 + INSIDE), band.last * (1 - INSIDE)):
            if 0.0 < x < math.inf:
                problem = replace(fronts.problem, link=scaled_link(fronts.problem.link, 1.0 / x))
                fronts.best(fronts.table.reweighed(problem), problem.budget.rows())
        before, band = band, _band(fronts, plan)
        if band == before:
            break
    rate = fronts.table.states[fronts.table.pair_state[plan.pair]].rate_bps
    return {
        "uplink_bps": rate,
        "least_bps": 0.0 if math.isinf(band.last) else rate / band.last,
        "most_bps": None if band.first == 0.0 else rate / band.first,
        "least_because": band.why_last,
        "most_because": band.why_first,
    }


@dataclass(frozen=True)
class _Band:
    first: float  # x = 1 / factor
    last: float
    why_first: str | None
    why_last: str | None


def _linear(table: Table) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Rows and constants of all pairs at x = 0, and what they grow by per unit of x."""
    slower = table.reweighed(replace(table.problem, link=scaled_link(table.problem.link, 0.5)))  # x = 2
    more = slower.rows - table.rows, slower.constant - table.constant
    return (table.rows - more[0], table.constant - more[1]), more


def _band(fronts: Fronts, plan: Solution) -> _Band:
    table, problem = fronts.table, fronts.problem
    objective = problem.search.minimize
    limits = tightest(problem.budget.rows(), ceilings(problem, table))
    if objective == "distortion" and plan.rows["distortion"] == 0.0:
        objective, limits = "latency", {**limits, "distortion": 0.0}
    start, more = _linear(table)
    names, o = list(limits), ROWS.index(objective)
    index, bound = [ROWS.index(name) for name in names], np.array([limits[name] for name in names])

    def lines(pair: int, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[n, ROWS] values at x = 0 and slopes of choices with these totals."""
        return tuple(totals @ rows[pair].T + constant[pair] for rows, constant in (start, more))

    own = table.base[table.pair_cut[plan.pair], np.arange(len(plan.items)), plan.items].sum(axis=0)
    at_zero, slope = (part[0] for part in lines(plan.pair, own[None]))
    ends = _latest(at_zero[None, index], slope[None, index], bound)[0]
    last, why_last = max(1.0, ends.min(initial=math.inf)), None
    if not math.isinf(last):
        why_last = names[int(ends.argmin())]
    first, why_first = 0.0, None
    share = 1.0 - problem.search.gap - MARGIN
    for pair, cut in enumerate(table.pair_cut.tolist()):
        low, high = _better(lines(pair, fronts.totals[cut]), (at_zero, slope), (index, bound, o), share)
        before, after = high[(high < 1.0) & (low < high)], low[(low > 1.0) & (low < high)]
        if len(before) and before.max() > first:
            first, why_first = float(before.max()), f"a plan at cut {table.cuts[cut].name!r} is better"
        if len(after) and after.min() < last:
            last, why_last = float(after.min()), f"a plan at cut {table.cuts[cut].name!r} is better"
    return _Band(first, last, why_first, why_last)


def _latest(at_zero: np.ndarray, slope: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """[n, R] the greatest x at which each row keeps its bound; -inf: at none."""
    room = bound - at_zero
    grows = slope > 1e-15 * np.maximum(np.abs(at_zero), np.abs(slope).max(initial=0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(grows, room / slope, np.where(room >= -1e-12 * np.abs(bound), math.inf, -math.inf))


def _better(
    lines: tuple[np.ndarray, np.ndarray],
    plan: tuple[np.ndarray, np.ndarray],
    rows: tuple[list[int], np.ndarray, int],
    share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """[n] and [n]: between which x each choice keeps the bounds and beats ``share`` of the plan's
    objective."""
    (at_zero, slope), (index, bound, o) = lines, rows
    high = _latest(at_zero[:, index], slope[:, index], bound).min(axis=1, initial=math.inf)
    low = np.zeros(len(high))
    ahead, closing = at_zero[:, o] - share * plan[0][o], slope[:, o] - share * plan[1][o]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = -ahead / closing
    high = np.where(closing > 0, np.minimum(high, crossing), high)
    low = np.where(closing < 0, np.maximum(low, crossing), low)
    never = (closing == 0) & (ahead >= 0)
    return low, np.where(never, -math.inf, high)
