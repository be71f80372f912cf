"""One pair (cut, state) to the end: tight Lagrangian bound, plans by exchange, reduction, exact finish."""

from __future__ import annotations

import numpy as np

from torchcoinfer.theory.solve_dual import DualState, Knapsacks, keeps_rows, offer
from torchcoinfer.theory.solve_milp import relaxation_multipliers, solve_knapsack

PARTIAL_LIMIT = 20_000  # partial plans kept by the exact enumeration before HiGHS takes over
CORE_LIMIT = 60_000  # combinations tried at once in search of a good plan
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


def core_plan(
    reduced: np.ndarray, objective: np.ndarray, rows: np.ndarray, slack: np.ndarray, room: float
) -> np.ndarray | None:
    """The best plan that leaves the Lagrangian's choice only for the items of least reduced cost.

    Items enter in ascending reduced cost, at most ``room``, while their combinations number ``CORE_LIMIT``.
    """
    base, groups = reduced.argmin(axis=1), np.arange(len(reduced))
    core: dict[int, list[int]] = {}
    count = 1
    for flat in np.argsort(reduced, axis=None, kind="stable"):
        g, i = divmod(int(flat), reduced.shape[1])
        if reduced[g, i] > room:
            break
        if i == base[g]:
            continue
        size = len(core.get(g, ())) + 1
        if count // size * (size + 1) > CORE_LIMIT:
            break
        count = count // size * (size + 1)
        core.setdefault(g, []).append(i)
    cost, used, picks = np.zeros(1), rows[:, groups, base].sum(axis=1)[None], []
    for g, items in core.items():
        own = np.array([base[g], *items])
        cost = (cost[:, None] + objective[g, own] - objective[g, base[g]]).ravel()
        used = used[:, None, :] + (rows[:, g, own] - rows[:, g, base[g]][:, None]).T
        used = used.reshape(len(cost), len(rows))
        picks.append((g, own))
    cost = np.where((used <= slack).all(axis=1), cost, np.inf)
    best = int(cost.argmin())
    if not np.isfinite(cost[best]):
        return None
    plan = base.copy()
    for (g, own), k in zip(picks, np.unravel_index(best, [len(own) for _, own in picks]), strict=True):
        plan[g] = own[k]
    return plan


def enumerate_core(
    reduced: np.ndarray,
    rows: np.ndarray,
    slack: np.ndarray,
    room: float,
) -> np.ndarray | None:
    """All plans [plans, G] within the rows whose reduced costs sum to at most ``room``; None: too many.

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
    return plans.astype(np.int64)


def finish_pair(knapsacks: Knapsacks, state: DualState, pair: int, gap: float) -> None:
    """Brings the bound of a pair within ``gap`` of the incumbent, or to the pair's own optimum.

    Items that no plan below the target can have (by reduced cost) are left out first, so that the linear
    relaxation sees numbers of one magnitude; its multipliers then give a tighter bound over all items.
    """
    if knapsacks.table.coupled[knapsacks.table.pair_cut[pair]] is not None:
        _finish_coupled(knapsacks, state, pair, gap)
        return
    objective, rows = knapsacks.pair_costs(pair)
    slack, constant = knapsacks.slack[pair], knapsacks.objective_constant[pair]
    scores, bound, lost = _lagrangian(objective, rows, slack, state.multipliers[pair], constant)
    target = state.incumbent.target(gap)
    kept = scores - scores.min(axis=1, keepdims=True) <= _room(target, bound, lost)
    m = relaxation_multipliers(np.where(kept, objective, np.inf), rows, slack)
    if m is None:  # nothing below the target fits
        state.bound[pair] = max(state.bound[pair], target)
        return
    tight = _lagrangian(objective, rows, slack, m, constant)
    if tight[1] > bound:
        (scores, bound, lost), state.multipliers[pair] = tight, m
    state.bound[pair] = max(bound, state.bound[pair])
    start = repair(objective, rows, slack, scores.argmin(axis=1))
    if start is not None:
        offer(knapsacks, state.incumbent, pair, improve(objective, rows, slack, start))
    target = state.incumbent.target(gap)
    if bound >= target:
        return
    room = _room(target, bound, lost)
    reduced = scores - scores.min(axis=1, keepdims=True)
    plan = core_plan(reduced, objective, rows, slack, room)
    if plan is not None:
        offer(knapsacks, state.incumbent, pair, improve(objective, rows, slack, plan))
    target = state.incumbent.target(gap)
    if bound >= target:
        return
    plans = enumerate_core(reduced, rows, slack, _room(target, bound, lost))
    if plans is not None:
        least = _offer_least(knapsacks, state, pair, plans, objective)
        state.bound[pair] = max(bound, min(target, least))  # every plan below the target has been seen
        return
    _branch_and_bound(knapsacks, state, pair, gap, (objective, rows, slack), reduced <= room)


def _finish_coupled(knapsacks: Knapsacks, state: DualState, pair: int, gap: float) -> None:
    """The same with coupled decisions: the reduced costs of single items prove nothing there, so HiGHS sees
    all of them."""
    objective, rows = knapsacks.pair_costs(pair)
    slack, constant = knapsacks.slack[pair], knapsacks.objective_constant[pair]
    coupled, groups = knapsacks.table.coupled[knapsacks.table.pair_cut[pair]], np.arange(len(objective))
    m = relaxation_multipliers(objective, rows, slack, coupled)
    if m is None:  # nothing fits, coupled or not
        state.bound[pair] = np.inf
        return
    scores = np.tensordot(m, rows, 1) + objective
    items = coupled.minimum(scores[:, :, None])[:, 0]
    bound = float(scores[groups, items].sum() - m @ slack + constant)
    if bound > state.bound[pair]:
        state.bound[pair], state.multipliers[pair] = bound, m
    alike = knapsacks.pair_costs(pair, items)[0]
    start = repair(alike, rows, slack, items)
    if start is not None:
        offer(knapsacks, state.incumbent, pair, improve(alike, rows, slack, start))
    if state.bound[pair] < state.incumbent.target(gap):
        _branch_and_bound(knapsacks, state, pair, gap, (objective, rows, slack), np.isfinite(objective))


def _room(target: float, bound: float, lost: float) -> float:
    """Reduced cost that a plan below the target may have; ``lost``: what float sums may have lost."""
    return target - bound + lost + 1e-12 * abs(target) if np.isfinite(target) else np.inf


def _lagrangian(
    objective: np.ndarray, rows: np.ndarray, slack: np.ndarray, m: np.ndarray, constant: float
) -> tuple[np.ndarray, float, float]:
    """Scores [G, I] at multipliers m, the lower bound of the pair, and the rounding error it may have."""
    scores = np.tensordot(m, rows, 1) + objective
    least = scores.min(axis=1)
    error = 1e-12 * (float(np.abs(least).sum()) + float(np.abs(m * slack).sum()) + abs(constant))
    return scores, float(least.sum() - m @ slack + constant), error


def _offer_least(
    knapsacks: Knapsacks, state: DualState, pair: int, plans: np.ndarray, objective: np.ndarray
) -> float:
    """Offers the least plan that keeps every row exactly; returns its objective, inf if there is none."""
    costs = objective[np.arange(len(objective)), plans].sum(axis=1)
    for k in np.argsort(costs, kind="stable"):
        values = knapsacks.table.evaluate(pair, plans[k])
        if keeps_rows(knapsacks, values):
            offer(knapsacks, state.incumbent, pair, plans[k])
            return values[knapsacks.objective_name]
    return np.inf


def _branch_and_bound(
    knapsacks: Knapsacks,
    state: DualState,
    pair: int,
    gap: float,
    costs: tuple[np.ndarray, np.ndarray, np.ndarray],
    kept: np.ndarray,
) -> None:
    """HiGHS on what is left; a plan that breaks a row when recomputed exactly is excluded, and HiGHS asked
    again."""
    objective, rows, slack = costs
    constant, target = knapsacks.objective_constant[pair], state.incumbent.target(gap)
    coupled = knapsacks.table.coupled[knapsacks.table.pair_cut[pair]]
    sizes = (
        abs(state.incumbent.value),
        abs(state.bound[pair]),
        float(objective[np.isfinite(objective)].max()),
    )
    magnitude = next((size for size in sizes if np.isfinite(size) and size > 0), 1.0)
    excluded: list[np.ndarray] = []
    while True:
        result = solve_knapsack(objective, rows, slack, kept, gap / 2, magnitude, excluded, coupled=coupled)
        if result.items is None or keeps_rows(knapsacks, knapsacks.table.evaluate(pair, result.items)):
            break
        excluded.append(result.items)
    if result.items is not None:
        offer(knapsacks, state.incumbent, pair, result.items)
    # items that lead above the target were left out, so the bound proves nothing beyond it
    state.bound[pair] = max(state.bound[pair], min(target, result.bound + constant))
