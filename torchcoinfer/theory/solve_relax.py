"""What an impossible budget could become: the least common relative relaxation
(``InfeasibleBudget.attainable``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from torchcoinfer.theory.solve_dual import Knapsacks, chosen_totals, minimize_items, relax_states
from torchcoinfer.theory.solve_milp import solve_violation

STEPS = 60


@dataclass
class Violation:
    """Least common violation v: a plan of ``pair`` keeps every relaxable row within ``limit + v * scale``."""

    value: float
    pair: int
    items: np.ndarray | None


def _exact_violation(knapsacks: Knapsacks, relaxed: np.ndarray, pair: int, items: np.ndarray) -> float:
    """v of one plan, from exactly rounded rows; 0 if all rows hold, inf if a row that may not be relaxed
    does not."""
    values, worst = knapsacks.table.evaluate(pair, items), 0.0
    for r, name in enumerate(knapsacks.names):
        excess = values[name] - knapsacks.limits[r]
        if excess > 0:
            worst = max(worst, excess / knapsacks.scale[r]) if relaxed[r] else math.inf
    return worst


def _project(m: np.ndarray, relaxed: np.ndarray) -> np.ndarray:
    """Euclidean projection of each row of ``m``: relaxable entries to the simplex, the others to >= 0."""
    m = np.maximum(m, np.where(relaxed > 0, -np.inf, 0.0))
    own = m[:, relaxed > 0]
    ordered = -np.sort(-own, axis=1)
    sums = (np.cumsum(ordered, axis=1) - 1.0) / np.arange(1, own.shape[1] + 1)
    last = (ordered > sums).sum(axis=1) - 1
    m[:, relaxed > 0] = np.maximum(own - np.take_along_axis(sums, last[:, None], axis=1), 0.0)
    return m


def least_violation(
    knapsacks: Knapsacks, relaxed: np.ndarray, gap: float, hopeless: float = math.inf
) -> Violation:
    """Least v over all pairs to an absolute gap; v = 0 means that the limits themselves can be kept.

    As in ``solve``, each cut's states are relaxed into one knapsack first. All pairs are bounded at once by
    the Lagrangian with multipliers on the simplex (for any such m, the least of ``m . (rows - slack)`` is a
    lower bound of v); those still open go to HiGHS.

    Args:
        relaxed: [R] of 0 and 1; rows with 0 (a machine's own memory) may not be relaxed.
        hopeless: pairs that are proven above it are given up (to ask only whether v = 0 is possible).
    """
    best, outer = Violation(math.inf, -1, None), relax_states(knapsacks)

    def still_open(bound: float) -> bool:
        return best.value > 0 and bound < best.value - gap and bound <= hopeless

    bound = np.zeros(len(outer.members))
    _bound_violations(outer, relaxed, best, bound, np.arange(len(bound)), gap, hopeless)
    for cut in np.argsort(bound, kind="stable"):
        if still_open(bound[cut]):
            bound[cut] = max(bound[cut], _finish_violation(outer, relaxed, best, int(cut), gap))
        if still_open(bound[cut]):
            pairs = outer.members[cut]
            inner = np.zeros(len(knapsacks.table.pair_cut))
            inner[pairs] = bound[cut]
            _bound_violations(knapsacks, relaxed, best, inner, pairs, gap, hopeless)
            for pair in pairs[np.argsort(inner[pairs], kind="stable")]:
                if still_open(inner[pair]):
                    _finish_violation(knapsacks, relaxed, best, int(pair), gap)
    return best


def _offer(knapsacks: Knapsacks, relaxed: np.ndarray, best: Violation, pair: int, items: np.ndarray) -> None:
    real, pairs = (knapsacks, [pair]) if knapsacks.real is None else (knapsacks.real, knapsacks.members[pair])
    totals = chosen_totals(knapsacks.table, np.array([pair]), items[None])[0]
    over = (real.rows[pairs] @ totals - real.slack[pairs]).max(axis=1)
    for k in np.argsort(over, kind="stable")[:3]:
        value = _exact_violation(real, relaxed, int(pairs[k]), items)
        if value < best.value:
            best.value, best.pair, best.items = value, int(pairs[k]), items.copy()


def _bound_violations(
    knapsacks: Knapsacks,
    relaxed: np.ndarray,
    best: Violation,
    bound: np.ndarray,
    pairs: np.ndarray,
    gap: float,
    hopeless: float,
) -> None:
    """Raises ``bound`` of ``pairs`` by subgradient steps on the multipliers, and improves ``best`` on the
    way."""
    m = np.tile(relaxed / max(relaxed.sum(), 1.0), (len(pairs), 1))
    for step in range(STEPS if relaxed.any() else 0):
        if not len(pairs) or best.value <= 0:
            return
        weights = np.einsum("pr,prk->pk", m, knapsacks.rows[pairs])
        values, items = minimize_items(knapsacks.table, pairs, weights)
        values = values - (m * knapsacks.slack[pairs]).sum(axis=1)
        bound[pairs] = np.maximum(bound[pairs], values)
        totals = chosen_totals(knapsacks.table, pairs, items)
        over = np.einsum("prk,pk->pr", knapsacks.rows[pairs], totals) - knapsacks.slack[pairs]
        worst = over.max(axis=1)
        for k in np.argsort(worst, kind="stable")[:3]:
            if worst[k] < best.value:
                _offer(knapsacks, relaxed, best, int(pairs[k]), items[k])
        still = (bound[pairs] < best.value - gap) & (bound[pairs] <= hopeless)
        reach = (best.value if math.isfinite(best.value) else 1.0 + bound[pairs]) - values
        length = np.maximum(reach, 0.0) / np.maximum((over**2).sum(axis=1), 1e-300) / (1 + step // 20)
        m, pairs = _project(m + length[:, None] * over, relaxed)[still], pairs[still]


def _finish_violation(
    knapsacks: Knapsacks, relaxed: np.ndarray, best: Violation, pair: int, gap: float
) -> float:
    """Solves one pair exactly, offers its plan, and returns the lower bound of its v."""
    objective, rows = knapsacks.pair_costs(pair)
    coupled = knapsacks.table.coupled[knapsacks.table.pair_cut[pair]]
    result = solve_violation(rows, knapsacks.slack[pair], np.isfinite(objective), relaxed, gap, coupled)
    if result.items is not None:
        _offer(knapsacks, relaxed, best, pair, result.items)
    return result.bound


def round_up(value: float, digits: int = 4) -> float:
    """The least number of ``digits`` significant digits that is not below ``value``."""
    if value <= 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    rounded = math.ceil(value / unit) * unit
    clean = float(f"{rounded:.{digits}g}")  # without the tail of the multiplication
    return clean if clean >= value else math.nextafter(rounded, math.inf)
