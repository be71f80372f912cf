"""Stored fronts: re-plan for another link, clock or budget in milliseconds, and sweep a budget axis.

Loads do not change when a bandwidth, a clock or a limit does; only their weights do. So for every candidate
cut a set of good choices is kept as sums of the base quantities (``solve_table.BASE``), and a new situation
re-weighs them. What that may lose is proven each time: the Lagrangian bound at the new rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.budget import BUDGET_FIELDS, Budget
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.plan import PREDICTED_OF_ROW, Plan
from torchcoinfer.theory.solve import ceilings, optimum, solve, tightest
from torchcoinfer.theory.solve_dual import (
    DualState,
    Incumbent,
    Knapsacks,
    bound_pairs,
    chosen_totals,
    make_knapsacks,
    minimize_items,
    offer,
    relax_states,
    subgradient,
)
from torchcoinfer.theory.solve_pair import improve, repair
from torchcoinfer.theory.solve_plan import Solution, make_plan
from torchcoinfer.theory.solve_problem import Problem
from torchcoinfer.theory.solve_table import BASE, DB, DC, DS, SB, SC, SS, WIRE, E, Table, make_table

DIRECTIONS, MAGNITUDES = 24, 16  # mixtures of resources, and prices of each, that a front is sampled at
REPLAN_STEPS = 4  # subgradient steps on the bound of a re-plan
TRIED = 6  # stored choices that are improved by exchanges


class Fronts:
    """The fronts of a problem: per candidate cut, choices that are best at some prices of the resources.

    Args:
        problem: as for ``solve``; its budget rows and objective decide which states are considered.
        seed: of the sampled mixtures of resources.
    """

    def __init__(self, problem: Problem, seed: int = 0):
        self.problem = problem
        self.table = make_table(problem, {*problem.budget.rows(), problem.search.minimize})
        self.cuts, self.items = self._sample(seed)
        relaxed = relax_states(self._knapsacks(self.table, problem.budget))
        state = DualState.start(relaxed, Incumbent())
        bound_pairs(relaxed, state, 0.0, np.arange(len(relaxed.members)))
        self.names, self.multipliers = relaxed.names, state.multipliers
        self._add_exchanged(relaxed)

    def _add_exchanged(self, relaxed: Knapsacks) -> None:
        """Per cut the plan that exchanges reach from its Lagrangian choice: near this budget's optimum."""
        cuts, found = [], []
        for cut in range(len(relaxed.members)):
            objective, rows = relaxed.pair_costs(cut)
            choice = (objective + np.tensordot(self.multipliers[cut], rows, 1)).argmin(axis=1)
            start = repair(objective, rows, relaxed.slack[cut], choice)
            if start is not None:
                cuts.append(cut)
                found.append(improve(objective, rows, relaxed.slack[cut], start))
        both = np.concatenate([self.cuts, np.array(cuts, dtype=np.int64)])
        order = np.argsort(both, kind="stable")
        items = np.concatenate([self.items, np.array(found, dtype=np.int64).reshape(-1, self.items.shape[1])])
        self.cuts, self.items = both[order], items[order]
        self.totals = chosen_totals(replace(self.table, pair_cut=self.cuts), np.arange(len(both)), self.items)

    def _knapsacks(self, table: Table, budget: Budget) -> Knapsacks:
        limits = tightest(budget.rows(), ceilings(table.problem, table))
        return make_knapsacks(table, self.problem.search.minimize, limits)

    def _sample(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut [n] and items [n, G] of distinct choices: least distortion plus priced resources, for many
        prices."""
        rng = np.random.default_rng(seed)
        resources = [DC, DS, SC, SS, DB, SB, WIRE]
        mixtures = np.concatenate([np.eye(len(resources)), np.ones((1, len(resources)))])
        mixtures = np.concatenate([mixtures, rng.dirichlet(np.full(len(resources), 0.4), DIRECTIONS)])
        size = np.maximum(self.table.base.max(axis=(0, 1, 2)), 1e-300)
        prices = np.zeros((len(mixtures) * MAGNITUDES, len(BASE)))
        scale = size[E] / size[resources]
        steps = 10.0 ** np.linspace(-8, 2, MAGNITUDES)
        prices[:, resources] = (steps[:, None, None] * (mixtures * scale)[None]).reshape(-1, len(resources))
        prices[:, E] = 1.0
        count = len(self.table.cuts)
        cuts = np.repeat(np.arange(count), len(prices))
        _, items = minimize_items(
            replace(self.table, pair_cut=cuts), np.arange(len(cuts)), np.tile(prices, (count, 1))
        )
        rows = np.unique(np.concatenate([cuts[:, None], items], axis=1), axis=0)
        return rows[:, 0], rows[:, 1:]

    def replan(
        self,
        budget: Budget | None = None,
        *,
        link: LinkProfile | None = None,
        device: DeviceProfile | None = None,
    ) -> Plan:
        """The best stored choice for another budget, link, or clocks of the same device, improved by
        exchanges.

        ``optimality`` carries the bound of this situation, over the candidate cuts, and the gap to it.

        Raises:
            InfeasibleBudget: no plan fits (found by ``solve``, which is asked when no stored choice fits).
            ArgumentError: the budget limits other rows, which need other fronts.
        """
        budget = budget or self.problem.budget
        if set(budget.rows()) != set(self.problem.budget.rows()):
            raise ArgumentError(
                "a re-plan needs the rows of the stored fronts", got=sorted(budget.rows()),
                expected=f"{sorted(self.problem.budget.rows())}", remedy="make new Fronts for this budget",
            )  # fmt: skip
        problem = replace(
            self.problem, budget=budget, link=link or self.problem.link, device=device or self.problem.device
        )
        table = self.table.reweighed(problem)
        real, incumbent = self._knapsacks(table, budget), Incumbent()
        relaxed = relax_states(real)
        self._offer_stored(real, relaxed, incumbent)
        if incumbent.items is None:
            return solve(problem)
        outer = DualState.start(relaxed, incumbent)
        outer.multipliers[:] = self.multipliers if self.names == real.names else 0.0
        subgradient(relaxed, outer, np.arange(len(relaxed.members)), problem.search.gap, REPLAN_STEPS)
        bound = min(incumbent.value, max(0.0, float(outer.bound.min())))
        rows = table.evaluate(incumbent.pair, incumbent.items)
        best = Solution(incumbent.pair, incumbent.items, incumbent.value, bound, rows, len(table.cuts))
        return make_plan(table, best, best)

    def _offer_stored(self, real: Knapsacks, relaxed: Knapsacks, incumbent: Incumbent) -> None:
        """Re-weighs all stored choices in all states, and improves the best few."""
        table = real.table
        first = np.searchsorted(self.cuts, np.arange(len(table.cuts)))
        last = np.searchsorted(self.cuts, np.arange(len(table.cuts)), side="right")
        best: list[tuple[float, int, int]] = []
        for cut, pairs in enumerate(relaxed.members):
            totals = self.totals[first[cut] : last[cut]]
            used = np.einsum("nk,prk->npr", totals, real.rows[pairs])
            costs = totals @ real.objective[pairs].T + real.objective_constant[pairs]
            costs[(used > real.slack[pairs]).any(axis=2)] = np.inf
            k, p = np.unravel_index(costs.argmin(), costs.shape)
            best.append((float(costs[k, p]), int(pairs[p]), int(first[cut] + k)))
        for cost, pair, stored in sorted(best)[:TRIED]:
            if np.isfinite(cost):
                objective, rows = real.pair_costs(pair)
                better = improve(objective, rows, real.slack[pair], self.items[stored])
                if not offer(real, incumbent, pair, better):
                    offer(real, incumbent, pair, self.items[stored])


def pareto(problem: Problem, axis: str, points: int = 9) -> tuple[Plan, ...]:
    """Plans along one budget row, from its least value to where it no longer binds; dominated ones left out.

    The other rows of ``problem.budget`` stay as they are. Limits are spaced geometrically; each plan is
    solved to ``search.gap``.

    Args:
        axis: a row of Budget. points: limits tried, at least 2.

    Raises:
        ArgumentError: no such row. InfeasibleBudget: the other rows alone are impossible.
    """
    if axis not in BUDGET_FIELDS or axis == "certified_distortion" or axis == problem.search.minimize:
        raise ArgumentError(
            "there is no front along this row", got=repr(axis), expected=f"one of {sorted(PREDICTED_OF_ROW)}",
            remedy="choose a row of Budget other than the objective",
        )  # fmt: skip
    others = {name: value for name, value in problem.budget.rows().items() if name != axis}
    others = others or {"latency": 1e30}  # a row that never binds, since a budget needs one
    name = PREDICTED_OF_ROW[axis]
    free = solve(replace(problem, budget=Budget(**others)))
    least = optimum(problem, axis, others)[1]
    low = max(least.value * (1 + 1e-9) if least is not None else 0.0, 1e-6 * free.predicted[name])
    plans = []
    if low > 0:
        for limit in np.geomspace(low, max(free.predicted[name], low), max(points, 2))[:-1].tolist():
            plans.append(solve(replace(problem, budget=Budget(**{**others, axis: limit}))))
    plans.append(free)
    objective, kept = PREDICTED_OF_ROW[problem.search.minimize], []
    for plan in plans:
        if not kept or plan.predicted[objective] < kept[-1].predicted[objective]:
            kept.append(plan)
    return tuple(kept)
