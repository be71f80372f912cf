"""Lagrangian bounds of all pairs (cut, state) at once, and the plans that they suggest.

A pair is a multiple-choice knapsack: minimize the sum of costs of one item a decision under a few rows. With
multipliers m >= 0 on the rows (each scaled to a right side of about 1), every value of the Lagrangian is a
true lower bound; it is a sum of independent minima, so all pairs of all cuts are bounded by matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
        real, members: of a relaxation over states (``relax_states``): the knapsacks it relaxes, and their
            pairs for each of its own; plans found here are offered there.
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
    real: Knapsacks | None = None
    members: tuple[np.ndarray, ...] = ()

    def pair_costs(self, pair: int, like: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Objective [G, I] and rows [R, G, I] of one pair; +inf marks padding in the objective.

        ``like``: only items that agree with this plan in everything that is coupled.
        """
        cut = self.table.pair_cut[pair]
        base, allowed = self.table.base[cut], self.table.valid[cut]
        if like is not None and self.table.coupled[cut] is not None:
            allowed = allowed & self.table.coupled[cut].like(like)
        objective = np.where(allowed, base @ self.objective[pair], np.inf)
        return objective, np.moveaxis(base @ self.rows[pair].T, -1, 0)


def make_knapsacks(
    table: Table,
    objective: str,
    limits: Mapping[str, float] | Sequence[tuple[str, float]],
    factor: float = 1.0,
) -> Knapsacks:
    """Rows scaled so that right sides are 1; a right side of 0 is scaled by the row's own largest total.

    As a sequence, ``limits`` may hold a row twice (a budget, and what the machine has). ``factor`` makes the
    scale of all rows coarser: for budgets far below what is possible.
    """
    pairs = list(limits.items()) if isinstance(limits, Mapping) else list(limits)
    o, names = ROWS.index(objective), tuple(name for name, _ in pairs)
    index = [ROWS.index(name) for name in names]
    bounds = np.array([limit for _, limit in pairs], dtype=np.float64)
    largest = table.largest[table.pair_cut]  # [P, BASE]
    totals = (table.rows[:, index] @ largest[:, :, None])[..., 0] + table.constant[:, index]
    scale = factor * np.where(bounds > 0, bounds, np.maximum(totals.max(axis=0, initial=0.0), 1e-300))
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
        coupled = table.coupled[cut]
        best = scores.argmin(axis=1) if coupled is None else coupled.minimum(scores)
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


def relax_states(knapsacks: Knapsacks) -> Knapsacks:
    """One knapsack a cut, with the least of all states in every coefficient and constant: a lower bound of
    each of them (all base quantities are at least 0), and its plans are often feasible in one of them."""
    table = knapsacks.table
    cuts, first = np.unique(table.pair_cut, return_index=True)

    def least(values: np.ndarray) -> np.ndarray:
        return np.minimum.reduceat(values, first, axis=0)

    relaxed = replace(
        table,
        pair_cut=cuts,
        pair_state=np.zeros_like(cuts),
        rows=least(table.rows),
        constant=least(table.constant),
    )
    return replace(
        knapsacks,
        table=relaxed,
        objective=least(knapsacks.objective),
        objective_constant=least(knapsacks.objective_constant),
        rows=least(knapsacks.rows),
        slack=-least(-knapsacks.slack),
        real=knapsacks,
        members=tuple(np.flatnonzero(table.pair_cut == cut) for cut in cuts),
    )


@dataclass
class Incumbent:
    """The best plan so far over all pairs; ``pair`` counts in the real knapsacks."""

    value: float = np.inf
    pair: int = -1
    items: np.ndarray | None = None

    def target(self, gap: float) -> float:
        """Bounds at or above it are good enough."""
        return self.value - gap * abs(self.value) if np.isfinite(self.value) else np.inf


@dataclass
class DualState:
    """Best known of every pair: ``bound`` [P] (with the constant) and ``multipliers`` [P, R]."""

    bound: np.ndarray
    multipliers: np.ndarray
    incumbent: Incumbent

    @classmethod
    def start(cls, knapsacks: Knapsacks, incumbent: Incumbent) -> DualState:
        pairs = len(knapsacks.table.pair_cut)
        return cls(np.full(pairs, -np.inf), np.zeros((pairs, len(knapsacks.names))), incumbent)


def possible_pairs(knapsacks: Knapsacks, pairs: np.ndarray) -> np.ndarray:
    """Pairs whose rows can each be met when the others are dropped."""
    for r in range(len(knapsacks.names)):
        least, _ = minimize_items(knapsacks.table, pairs, knapsacks.rows[pairs, r])
        pairs = pairs[least <= knapsacks.slack[pairs, r] + 1e-9]
    return pairs


def _probe(
    knapsacks: Knapsacks, state: DualState, pairs: np.ndarray, m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The Lagrangian at ``m`` [pairs, R]: records bounds and feasible plans; returns value and slope."""
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
    for k in np.argsort(costs, kind="stable")[:3]:
        if costs[k] < state.incumbent.value:
            offer(knapsacks, state.incumbent, int(pairs[k]), items[k])
    return values, slope


def keeps_rows(knapsacks: Knapsacks, values: Mapping[str, float]) -> bool:
    return all(values[name] <= limit for name, limit in zip(knapsacks.names, knapsacks.limits, strict=True))


def offer(knapsacks: Knapsacks, incumbent: Incumbent, pair: int, items: np.ndarray) -> bool:
    """Makes a plan the incumbent if it is better and keeps every row, both recomputed in float64 from the
    table.

    A plan of a relaxation over states is tried in each state, the one with the least objective first.
    """
    if knapsacks.real is not None:
        real, pairs = knapsacks.real, knapsacks.members[pair]
        totals = chosen_totals(knapsacks.table, np.array([pair]), items[None])[0]
        used, costs = (
            real.rows[pairs] @ totals,
            real.objective[pairs] @ totals + real.objective_constant[pairs],
        )
        fits = (used <= real.slack[pairs] + 1e-9 * np.maximum(1.0, np.abs(real.slack[pairs]))).all(axis=1)
        order = np.argsort(costs, kind="stable")
        return any(offer(real, incumbent, int(pairs[k]), items) for k in order if fits[k])
    values = knapsacks.table.evaluate(pair, items)
    value = values[knapsacks.objective_name]
    if not value < incumbent.value or not keeps_rows(knapsacks, values):
        return False
    incumbent.value, incumbent.pair, incumbent.items = value, pair, np.array(items)
    return True


def bound_pairs(knapsacks: Knapsacks, state: DualState, gap: float, pairs: np.ndarray) -> None:
    """Bounds these pairs until the incumbent prunes them or the steps are spent; impossible pairs get +inf.

    First a common multiplier over 18 decades (finds plans and the right magnitude), then subgradient steps of
    Polyak's length towards the incumbent.
    """
    row_count, possible = len(knapsacks.names), possible_pairs(knapsacks, pairs)
    state.bound[np.setdiff1d(pairs, possible)] = np.inf
    pairs = possible
    _probe(knapsacks, state, pairs, np.zeros((len(pairs), row_count)))
    if row_count == 0:
        return
    unit = (
        np.abs(knapsacks.objective[pairs] @ np.abs(knapsacks.table.base).max(axis=(0, 1, 2)))[:, None]
        + 1e-300
    )
    pairs, unit = _keep_open(state, pairs, gap, unit)
    for exponent in range(-12, 7):
        if not len(pairs):
            return
        _probe(knapsacks, state, pairs, np.broadcast_to(unit * 10.0**exponent, (len(pairs), row_count)))
        pairs, unit = _keep_open(state, pairs, gap, unit)
    subgradient(knapsacks, state, pairs, gap)


def _keep_open(
    state: DualState, pairs: np.ndarray, gap: float, *others: np.ndarray
) -> tuple[np.ndarray, ...]:
    still = state.bound[pairs] < state.incumbent.target(gap)
    return (pairs[still], *(other[still] for other in others))


def subgradient(
    knapsacks: Knapsacks, state: DualState, pairs: np.ndarray, gap: float, steps: int = STEPS
) -> None:
    """Raises the bounds of pairs from their stored multipliers, by steps of Polyak's length to the
    incumbent."""
    (pairs,) = _keep_open(state, pairs, gap)
    m, step, stale = state.multipliers[pairs].copy(), np.ones(len(pairs)), np.zeros(len(pairs), dtype=int)
    for _ in range(steps):
        if not len(pairs):
            return
        before = state.bound[pairs].copy()
        values, slope = _probe(knapsacks, state, pairs, m)
        enough = np.where(np.isfinite(before), 1e-6 * np.abs(before), 0.0)
        improved = state.bound[pairs] > before + enough
        stale = np.where(improved, 0, stale + 1)
        shrink = stale >= PATIENCE
        step, stale = np.where(shrink, step / 2, step), np.where(shrink, 0, stale)
        m = np.where(shrink[:, None], state.multipliers[pairs], m)
        slope = np.where((m <= 0) & (slope < 0), 0.0, slope)
        known = np.isfinite(state.incumbent.value)
        reach = state.incumbent.value - values if known else 0.1 * np.abs(values)
        norm = (slope**2).sum(axis=1)
        length = step * np.maximum(reach, 0.0) / np.where(norm > 1e-100, norm, np.inf)
        m = np.maximum(m + length[:, None] * slope, 0.0)
        pairs, m, step, stale = _keep_open(state, pairs, gap, m, step, stale)
