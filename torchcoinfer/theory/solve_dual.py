"""Lagrangian bounds of all pairs (cut, state) at once, and the plans that they suggest (theory.md §5).

A pair is a multiple-choice knapsack: minimize the sum of costs of one item a decision under a few rows. With
multipliers m >= 0 on the rows (each scaled to a right side of about 1), every value of the Lagrangian is a
true lower bound; it is a sum of independent minima, so all pairs of all cuts are bounded by matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchcoinfer.theory.solve_table import ROWS, Table

STEPS, PATIENCE = 60, 4


@dataclass
class Knapsacks:
    """All pairs as scaled multiple-choice knapsacks.

    Attributes:
        names: the limited rows, R of them.
        objective: [P, BASE], objective_constant: [P].
        rows: [P, R, BASE], divided by ``scale`` [R]; slack: [P, R] right sides left after the constants.
        limits: [R] right sides as given.
    """

    table: Table
    objective_name: str
    names: tuple[str, ...]
    objective: np.ndarray
    objective_constant: np.ndarray
    rows: np.ndarray
    slack: np.ndarray
    scale: np.ndarray
    limits: np.ndarray

    def pair_costs(self, pair: int) -> tuple[np.ndarray, np.ndarray]:
        """Objective [G, I] and rows [R, G, I] of one pair; +inf marks padding in the objective."""
        cut = self.table.pair_cut[pair]
        base = self.table.base[cut]
        objective = np.where(self.table.valid[cut], base @ self.objective[pair], np.inf)
        return objective, np.moveaxis(base @ self.rows[pair].T, -1, 0)


def make_knapsacks(table: Table, objective: str, limits: Mapping[str, float]) -> Knapsacks:
    """Rows scaled so that right sides are 1; a right side of 0 is scaled by the row's own largest total."""
    o, names = ROWS.index(objective), tuple(limits)
    index = [ROWS.index(name) for name in names]
    bounds = np.array([limits[name] for name in names], dtype=np.float64)
    largest = table.base.max(axis=2, initial=0.0).sum(axis=1)[table.pair_cut]  # [P, BASE]
    totals = (table.rows[:, index] @ largest[:, :, None])[..., 0] + table.constant[:, index]
    scale = np.where(bounds > 0, bounds, np.maximum(totals.max(axis=0, initial=0.0), 1e-300))
    return Knapsacks(
        table, objective, names,
        table.rows[:, o], table.constant[:, o], table.rows[:, index] / scale[:, None],
        (bounds - table.constant[:, index]) / scale, scale, bounds,
    )  # fmt: skip


def minimize_items(table: Table, pairs: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least sum of ``weights . base`` for each pair: values [len(pairs)] and chosen items [len(pairs), G]."""
    cuts = table.pair_cut[pairs]
    values, items = np.empty(len(pairs)), np.empty((len(pairs), table.base.shape[1]), dtype=np.int64)
    starts = np.flatnonzero(np.diff(cuts, prepend=-1))
    for first, last in zip(starts, np.append(starts, len(pairs))[1:], strict=True):
        cut = cuts[first]
        scores = table.base[cut] @ weights[first:last].T  # [G, I, pairs of the cut]
        scores[~table.valid[cut]] = np.inf
        best = scores.argmin(axis=1)
        values[first:last] = np.take_along_axis(scores, best[:, None], axis=1)[:, 0].sum(axis=0)
        items[first:last] = best.T
    return values, items


def chosen_totals(table: Table, pairs: np.ndarray, items: np.ndarray) -> np.ndarray:
    """[pairs, BASE]: sums of the base quantities of the chosen items."""
    cuts = table.pair_cut[pairs]
    totals = np.zeros((len(pairs), table.base.shape[-1]))
    for g in range(items.shape[1]):
        totals += table.base[cuts, g, items[:, g]]
    return totals


@dataclass
class DualState:
    """Best known of every pair: ``bound`` [P] (objective units, constant included) and ``multipliers`` [P,
    R];
    and the incumbent over all pairs."""

    bound: np.ndarray
    multipliers: np.ndarray
    incumbent: float = np.inf
    incumbent_pair: int = -1
    incumbent_items: np.ndarray | None = None


def _possible(knapsacks: Knapsacks) -> np.ndarray:
    """Pairs whose rows can each be met when the others are dropped."""
    pairs = np.arange(len(knapsacks.table.pair_cut))
    for r in range(len(knapsacks.names)):
        least, _ = minimize_items(knapsacks.table, pairs, knapsacks.rows[pairs, r])
        pairs = pairs[least <= knapsacks.slack[pairs, r] + 1e-9]
    return pairs


def _probe(
    knapsacks: Knapsacks, state: DualState, pairs: np.ndarray, m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluates the Lagrangian at ``m`` [pairs, R]; records bounds and feasible plans. Returns value and
    slope."""
    weights = knapsacks.objective[pairs] + np.einsum("pr,prk->pk", m, knapsacks.rows[pairs])
    values, items = minimize_items(knapsacks.table, pairs, weights)
    totals = chosen_totals(knapsacks.table, pairs, items)
    slope = np.einsum("prk,pk->pr", knapsacks.rows[pairs], totals) - knapsacks.slack[pairs]
    values = values - (m * knapsacks.slack[pairs]).sum(axis=1) + knapsacks.objective_constant[pairs]
    better = values > state.bound[pairs]
    state.bound[pairs[better]] = values[better]
    state.multipliers[pairs[better]] = m[better]
    costs = np.einsum("pk,pk->p", knapsacks.objective[pairs], totals) + knapsacks.objective_constant[pairs]
    costs = np.where((slope <= 0).all(axis=1), costs, np.inf)
    for k in np.argsort(costs, kind="stable")[:4]:
        if costs[k] < state.incumbent:
            offer(knapsacks, state, int(pairs[k]), items[k])
    return values, slope


def offer(knapsacks: Knapsacks, state: DualState, pair: int, items: np.ndarray) -> bool:
    """Makes a plan the incumbent if it is better and keeps every row, both recomputed in float64 from the
    table."""
    values = knapsacks.table.evaluate(pair, items)
    o = values[knapsacks.objective_name]
    kept = all(values[name] <= limit for name, limit in zip(knapsacks.names, knapsacks.limits, strict=True))
    if not kept or not o < state.incumbent:
        return False
    state.incumbent, state.incumbent_pair, state.incumbent_items = o, pair, np.array(items)
    return True


def bound_pairs(knapsacks: Knapsacks, gap: float) -> DualState:
    """Bounds every pair until it is pruned by the incumbent or the steps are spent; impossible pairs get
    +inf.

    First a common multiplier over 18 decades (finds plans and the right magnitude), then subgradient steps of
    Polyak's length towards the incumbent.
    """
    pair_count, row_count = len(knapsacks.table.pair_cut), len(knapsacks.names)
    state = DualState(np.full(pair_count, np.inf), np.zeros((pair_count, row_count)))
    pairs = _possible(knapsacks)
    if not len(pairs):
        return state
    state.bound[pairs] = -np.inf
    _probe(knapsacks, state, pairs, np.zeros((len(pairs), row_count)))
    if row_count == 0:
        return state
    unit = (
        np.abs(knapsacks.objective[pairs] @ np.abs(knapsacks.table.base).max(axis=(0, 1, 2)))[:, None]
        + 1e-300
    )
    pairs, unit = _keep_open(state, pairs, gap, unit)
    for exponent in range(-12, 7):
        if not len(pairs):
            return state
        _probe(knapsacks, state, pairs, np.broadcast_to(unit * 10.0**exponent, (len(pairs), row_count)))
        pairs, unit = _keep_open(state, pairs, gap, unit)
    _subgradient(knapsacks, state, pairs, gap)
    return state


def _keep_open(
    state: DualState, pairs: np.ndarray, gap: float, *others: np.ndarray
) -> tuple[np.ndarray, ...]:
    limit = state.incumbent - gap * abs(state.incumbent) if np.isfinite(state.incumbent) else np.inf
    still = state.bound[pairs] < limit
    return (pairs[still], *(other[still] for other in others))


def _subgradient(knapsacks: Knapsacks, state: DualState, pairs: np.ndarray, gap: float) -> None:
    (pairs,) = _keep_open(state, pairs, gap)
    m, step, stale = state.multipliers[pairs].copy(), np.ones(len(pairs)), np.zeros(len(pairs), dtype=int)
    for _ in range(STEPS):
        if not len(pairs):
            return
        before = state.bound[pairs].copy()
        values, slope = _probe(knapsacks, state, pairs, m)
        improved = state.bound[pairs] > before + 1e-6 * np.abs(before)
        stale = np.where(improved, 0, stale + 1)
        shrink = stale >= PATIENCE
        step, stale = np.where(shrink, step / 2, step), np.where(shrink, 0, stale)
        m = np.where(shrink[:, None], state.multipliers[pairs], m)
        slope = np.where((m <= 0) & (slope < 0), 0.0, slope)
        target = state.incumbent if np.isfinite(state.incumbent) else np.inf
        reach = np.where(np.isfinite(target), target - values, 0.1 * np.abs(values))
        length = step * np.maximum(reach, 0.0) / np.maximum((slope**2).sum(axis=1), 1e-300)
        m = np.maximum(m + length[:, None] * slope, 0.0)
        pairs, m, step, stale = _keep_open(state, pairs, gap, m, step, stale)
