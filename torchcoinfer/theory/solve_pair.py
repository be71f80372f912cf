"""One pair (cut, state) to the end: tight Lagrangian bound, plans by exchange, reduction, exact finish."""

from __future__ import annotations

import numpy as np

from torchcoinfer.theory.solve_dual import DualState, Knapsacks, offer
from torchcoinfer.theory.solve_milp import relaxation_multipliers, solve_knapsack

PARTIAL_LIMIT = 20_000  # partial plans kept by the exact enumeration before HiGHS takes over
EXCHANGES = 400


def repair(
    objective: np.ndarray, rows: np.ndarray, slack: np.ndarray, items: np.ndarray
) -> np.ndarray | None:
    """Exchanges single items until no row is exceeded, each time the cheapest per violation removed."""
    groups = np.arange(len(items))
    items = items.copy()
    used = rows[:, groups, items].sum(axis=1)
    for _ in range(EXCHANGES):
        over = np.maximum(used - slack, 0.0)
        if not over.any():
            return items
        moved = used[:, None, None] + rows - rows[:, groups, items][:, :, None]
        left = np.maximum(moved - slack[:, None, None], 0.0).sum(axis=0)
        gain = over.sum() - left
        price = (objective - objective[groups, items][:, None]) / np.where(gain > 0, gain, 1.0)
        price[(gain <= 1e-15) | ~np.isfinite(objective)] = np.inf
        best = int(price.argmin())
        if not np.isfinite(price.flat[best]):
            return None
        g, i = divmod(best, objective.shape[1])
        used = used + rows[:, g, i] - rows[:, g, items[g]]
        items[g] = i
    return None


def improve(objective: np.ndarray, rows: np.ndarray, slack: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Exchanges single items, each time the one that lowers the objective most within the rows."""
    groups = np.arange(len(items))
    items = items.copy()
    used = rows[:, groups, items].sum(axis=1)
    for _ in range(EXCHANGES):
        moved = used[:, None, None] + rows - rows[:, groups, items][:, :, None]
        change = np.where(
            (moved <= slack[:, None, None]).all(axis=0), objective - objective[groups, items][:, None], np.inf
        )
        best = int(change.argmin())
        if not change.flat[best] < 0:
            break
        g, i = divmod(best, objective.shape[1])
        used = used + rows[:, g, i] - rows[:, g, items[g]]
        items[g] = i
    return items


def enumerate_core(
    reduced: np.ndarray,
    rows: np.ndarray,
    slack: np.ndarray,
    room: float,
) -> list[np.ndarray] | None:
    """All plans within the rows whose reduced costs sum to at most ``room``, least first; None: too many.

    Args:
        reduced: [G, I] >= 0, the Lagrangian's cost of leaving the best item of a decision; +inf: no item.
    """
    order = np.argsort((reduced <= room).sum(axis=1), kind="stable")
    tail = np.where(np.isfinite(reduced), rows, np.inf).min(axis=2)[:, order]  # [R, G]
    least_left = np.concatenate(
        [np.cumsum(tail[:, ::-1], axis=1)[:, ::-1][:, 1:], np.zeros((len(rows), 1))], axis=1
    )
    chosen, cost, used = np.zeros((1, 0), dtype=np.int16), np.zeros(1), np.zeros((1, len(rows)))
    for step, g in enumerate(order):
        own = np.flatnonzero(reduced[g] <= room)
        if len(cost) * len(own) > 8 * PARTIAL_LIMIT:
            return None
        parent = np.repeat(np.arange(len(cost)), len(own))
        item = np.tile(own, len(cost))
        new_cost, new_used = cost[parent] + reduced[g, item], used[parent] + rows[:, g, item].T
        good = (new_cost <= room) & (
            new_used + least_left[:, step] <= slack + 1e-9 * np.maximum(1.0, np.abs(slack))
        ).all(axis=1)
        chosen = np.concatenate([chosen[parent[good]], item[good, None].astype(np.int16)], axis=1)
        cost, used = new_cost[good], new_used[good]
        if len(cost) > PARTIAL_LIMIT:
            return None
    plans = np.empty_like(chosen)
    plans[:, order] = chosen
    return [plans[k].astype(np.int64) for k in np.argsort(cost, kind="stable")]


def finish_pair(knapsacks: Knapsacks, state: DualState, pair: int, gap: float) -> None:
    """Brings the bound of a pair within ``gap`` of the incumbent, or makes its optimum the incumbent."""
    objective, rows = knapsacks.pair_costs(pair)
    slack, constant = knapsacks.slack[pair], knapsacks.objective_constant[pair]
    groups = np.arange(len(objective))
    m = relaxation_multipliers(objective, rows, slack)
    if m is None:
        state.bound[pair] = np.inf
        return
    scores = np.tensordot(m, rows, 1) + objective
    bound = float(scores.min(axis=1).sum() - m @ slack + constant)
    if bound < state.bound[pair]:
        m = state.multipliers[pair]
        scores = np.tensordot(m, rows, 1) + objective
        bound = float(scores.min(axis=1).sum() - m @ slack + constant)
    state.bound[pair], state.multipliers[pair] = max(bound, state.bound[pair]), m
    start = repair(objective, rows, slack, scores.argmin(axis=1))
    if start is not None:
        offer(knapsacks, state, pair, improve(objective, rows, slack, start))
    target = state.incumbent - gap * abs(state.incumbent)
    if bound >= target:
        return
    reduced = scores - scores[groups, scores.argmin(axis=1)][:, None]
    # what the float sums of the bound may have lost, so that no optimum is cut off by rounding
    room = (
        target - bound + 1e-12 * (abs(target) + np.abs(scores[np.isfinite(scores)]).max())
        if np.isfinite(target)
        else np.inf
    )
    plans = enumerate_core(reduced, rows, slack, room)
    if plans is not None:
        _offer_least(knapsacks, state, pair, plans, objective)
        # every plan below the target has been seen
        state.bound[pair] = max(bound, min(target, state.incumbent))
        return
    _branch_and_bound(knapsacks, state, pair, gap, (objective, rows, slack), reduced <= room)


def _offer_least(
    knapsacks: Knapsacks, state: DualState, pair: int, plans: list[np.ndarray], objective: np.ndarray
) -> None:
    """Offers plans in ascending objective until one keeps every row exactly."""
    groups = np.arange(len(objective))
    costs = np.array([objective[groups, plan].sum() for plan in plans])
    for k in np.argsort(costs, kind="stable"):
        if offer(knapsacks, state, pair, plans[k]):
            return


def _branch_and_bound(
    knapsacks: Knapsacks,
    state: DualState,
    pair: int,
    gap: float,
    costs: tuple[np.ndarray, np.ndarray, np.ndarray],
    kept: np.ndarray,
) -> None:
    objective, rows, slack = costs
    constant, excluded = knapsacks.objective_constant[pair], []
    target = state.incumbent - gap * abs(state.incumbent)
    magnitude = max(abs(state.incumbent if np.isfinite(state.incumbent) else state.bound[pair]) - 0.0, 1e-300)
    if not np.isfinite(magnitude) or magnitude <= 1e-300:
        magnitude = float(objective[np.isfinite(objective)].max()) or 1.0
    while True:
        result = solve_knapsack(objective, rows, slack, kept, gap / 2, magnitude, excluded)
        bound = result.bound + constant
        if result.items is None:
            state.bound[pair] = max(state.bound[pair], min(target, bound))
            return
        values = knapsacks.table.evaluate(pair, result.items)
        if all(values[n] <= limit for n, limit in zip(knapsacks.names, knapsacks.limits, strict=True)):
            offer(knapsacks, state, pair, result.items)
            # plans above the target were cut off, so the bound proves nothing beyond it
            state.bound[pair] = max(state.bound[pair], min(target, bound))
            return
        excluded.append(result.items)  # feasible within HiGHS' tolerance only
