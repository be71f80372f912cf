"""Stored fronts: re-plan for another link, clock or budget in milliseconds.

Loads do not change when a bandwidth, a clock or a limit does; only their weights do. So for every candidate
cut a set of good choices is kept as sums of the base quantities (``solve_table.BASE``), and a new situation
re-weighs them. What that may lose is proven each time: the Lagrangian bound at the new rows. Every plan found
on the way is kept, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.budget import Budget
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.plan import Plan
from torchcoinfer.theory.solve import ceilings, fastest_state, solve, solve_table, tightest
from torchcoinfer.theory.solve_analytic import uniform_tables
from torchcoinfer.theory.solve_dual import (
    DualState,
    Incumbent,
    Knapsacks,
    bound_pairs,
    chosen_totals,
    make_knapsacks,
    minimize_items,
    offer,
    possible_pairs,
    relax_states,
    subgradient,
)
from torchcoinfer.theory.solve_milp import relaxation_multipliers
from torchcoinfer.theory.solve_pair import core_plan, improve, repair
from torchcoinfer.theory.solve_plan import Solution, make_plan
from torchcoinfer.theory.solve_problem import Problem
from torchcoinfer.theory.solve_table import BASE, DB, DC, DS, SB, SC, SS, WIRE, E, Table, make_table

DIRECTIONS, MAGNITUDES = 24, 16  # mixtures of resources, and prices of each, that a front is sampled at
REPLAN_STEPS = 10  # subgradient steps on the bound of a re-plan
TIGHTENED = 8  # cuts whose stored multipliers come from their linear relaxation
TRIED = 6  # stored choices that are improved by exchanges


class Fronts:
    """The fronts of a problem: per candidate cut, choices that are best at some prices of the resources.

    Args:
        problem: as for ``solve``; its budget rows and objective decide which states are considered.
        seed: of the sampled mixtures of resources.
        rows: further rows that later budgets may limit.

    Attributes:
        table: the problem as arrays.
        items, totals: per cut, the stored choices [n, G] and their sums of base quantities [n, BASE].
    """

    def __init__(self, problem: Problem, seed: int = 0, rows: Iterable[str] = ()):
        self.problem, self.objective = problem, problem.search.minimize
        self.table = make_table(problem, {*problem.budget.rows(), self.objective, *rows})
        papers = problem.search.mode == "analytic"
        tables = uniform_tables(self.table) if papers else [self.table]
        empty = (np.empty((0, self.table.base.shape[1]), dtype=np.int64), np.empty((0, len(BASE))))
        self.items, self.totals = ([part] * len(self.table.cuts) for part in empty)
        for own in tables:
            self.add(*self._sample(own, seed))
        relaxed = relax_states(self._knapsacks(self.table, problem.budget.rows()))
        state = DualState.start(relaxed, Incumbent())
        bound_pairs(relaxed, state, 0.0, np.arange(len(relaxed.members)))
        self.names, self.multipliers = relaxed.names, state.multipliers
        for cut in np.argsort(state.bound, kind="stable")[:TIGHTENED]:
            objective, rows = relaxed.pair_costs(cut)
            m = relaxation_multipliers(objective, rows, relaxed.slack[cut], relaxed.table.coupled[cut])
            self.multipliers[cut] = self.multipliers[cut] if m is None else m
        if not papers:
            self._add_exchanged(relaxed)

    def add(self, cuts: np.ndarray, items: np.ndarray) -> None:
        """Stores more choices. cuts [m], items [m, G]."""
        totals = chosen_totals(replace(self.table, pair_cut=cuts), np.arange(len(cuts)), items)
        for cut in np.unique(cuts):
            own = cuts == cut
            self.items[cut] = np.concatenate([self.items[cut], items[own]])
            self.totals[cut] = np.concatenate([self.totals[cut], totals[own]])

    def _add_exchanged(self, relaxed: Knapsacks) -> None:
        """Per cut the plan that exchanges reach from its Lagrangian choice: near this budget's optimum."""
        cuts, found = [], []
        for cut in range(len(relaxed.members)):
            better = _exchanged(relaxed, self.multipliers[cut], cut)
            if better is not None:
                cuts.append(cut)
                found.append(better)
        if found:
            self.add(np.array(cuts, dtype=np.int64), np.array(found, dtype=np.int64))

    def _knapsacks(self, table: Table, rows: Mapping[str, float]) -> Knapsacks:
        return make_knapsacks(table, self.objective, tightest(rows, ceilings(table.problem, table)))

    def _sample(self, table: Table, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Cuts [n] and items [n, G] of choices: least distortion plus priced resources, for many prices."""
        rng = np.random.default_rng(seed)
        resources = [DC, DS, SC, SS, DB, SB, WIRE]
        mixtures = np.concatenate([np.eye(len(resources)), np.ones((1, len(resources)))])
        mixtures = np.concatenate([mixtures, rng.dirichlet(np.full(len(resources), 0.4), DIRECTIONS)])
        size = np.maximum(table.base.max(axis=(0, 1, 2)), 1e-300)
        prices = np.zeros((len(mixtures) * MAGNITUDES, len(BASE)))
        scale = size[E] / size[resources]
        steps = 10.0 ** np.linspace(-8, 2, MAGNITUDES)
        prices[:, resources] = (steps[:, None, None] * (mixtures * scale)[None]).reshape(-1, len(resources))
        prices[:, E] = 1.0
        cuts, found = [], []
        for cut in range(len(table.cuts)):
            own, every = replace(table, pair_cut=np.full(len(prices), cut)), np.arange(len(prices))
            items = minimize_items(own, every, prices)[1]
            first = np.unique(chosen_totals(own, every, items), axis=0, return_index=True)[1]
            found.append(items[np.sort(first)])
            cuts.append(np.full(len(first), cut))
        return np.concatenate(cuts), np.concatenate(found)

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
        if not set(budget.rows()) <= set(self.table.goals):
            raise ArgumentError(
                "a re-plan needs the rows of the stored fronts", got=sorted(budget.rows()),
                expected=f"among {sorted(self.table.goals)}", remedy="make new Fronts for this budget",
            )  # fmt: skip
        problem = replace(
            self.problem, budget=budget, link=link or self.problem.link, device=device or self.problem.device
        )
        table = self.table.reweighed(problem)
        best = None if problem.search.mode == "analytic" else self.best(table, budget.rows())
        return make_plan(table, best, best) if best is not None else solve(problem)

    def best(self, table: Table, limits: Mapping[str, float], gap: float | None = None) -> Solution | None:
        """The best stored choice within ``limits``, and what it may lose; None if no stored choice fits.

        Args:
            table: this problem's, perhaps re-weighed.
            gap: relative gap to which the answer is finished exactly, starting from the stored choice (then
                None says that no plan at all fits); None: as good as the stored choices are.
        """
        real, incumbent = self._knapsacks(table, limits), Incumbent()
        relaxed = relax_states(real)
        stored, best = self._stored(real, relaxed), None
        self._offer_stored(real, stored, incumbent)
        if incumbent.items is not None:
            outer = DualState.start(relaxed, incumbent)
            outer.multipliers[:] = self.multipliers if self.names == real.names else 0.0
            # where a stored choice fits, the cut is possible: nothing has to be computed to know that
            fits = np.isfinite([cost for cost, _, _ in stored])
            there = np.union1d(np.flatnonzero(fits), possible_pairs(relaxed, np.flatnonzero(~fits)))
            outer.bound[np.setdiff1d(np.arange(len(stored)), there)] = np.inf
            subgradient(relaxed, outer, there, self.problem.search.gap, REPLAN_STEPS)
            cut = int(outer.bound.argmin())
            if outer.bound[cut] < incumbent.target(self.problem.search.gap):
                found = _core(relaxed, outer.multipliers[cut], cut)
                if found is not None:
                    offer(relaxed, incumbent, cut, found)
            bound = min(incumbent.value, max(0.0, float(outer.bound.min())))
            rows = table.evaluate(incumbent.pair, incumbent.items)
            best = Solution(incumbent.pair, incumbent.items, incumbent.value, bound, rows, len(table.cuts))
        if gap is not None and (best is None or best.gap > gap):
            start = None if best is None else (best.pair, best.items)
            best = solve_table(table, self.objective, dict(zip(real.names, real.limits)), gap, start)
        if best is None:
            return None
        self.add(table.pair_cut[[best.pair]], best.items[None])
        if self.objective == "distortion":
            best = fastest_state(table, best, dict(zip(real.names, real.limits)))
        return best

    def best_of_cuts(self, table: Table, limits: Mapping[str, float]) -> dict[int, Solution]:
        """Cut -> its best stored choice within ``limits``, where it has one."""
        real, found = self._knapsacks(table, limits), {}
        for cut, (cost, pair, k) in enumerate(self._stored(real, relax_states(real))):
            if np.isfinite(cost):
                items = self.items[cut][k]
                rows = table.evaluate(pair, items)
                found[cut] = Solution(pair, items, rows[self.objective], 0.0, rows, 1)
        return found

    def _stored(self, real: Knapsacks, relaxed: Knapsacks) -> list[tuple[float, int, int]]:
        """Per cut: the least objective of its stored choices in all states, the pair, and which of the
        choices. An infinite one: none fits."""
        best: list[tuple[float, int, int]] = []
        for totals, pairs in zip(self.totals, relaxed.members, strict=True):
            used = np.einsum("nk,prk->npr", totals, real.rows[pairs])
            costs = totals @ real.objective[pairs].T + real.objective_constant[pairs]
            costs[(used > real.slack[pairs]).any(axis=2)] = np.inf
            k, p = np.unravel_index(costs.argmin(), costs.shape)
            best.append((float(costs[k, p]), int(pairs[p]), int(k)))
        return best

    def _offer_stored(
        self, real: Knapsacks, best: list[tuple[float, int, int]], incumbent: Incumbent
    ) -> None:
        """Improves the best few of the cuts' best choices."""
        for cost, pair, k in sorted(best)[:TRIED]:
            if np.isfinite(cost):
                stored = self.items[real.table.pair_cut[pair]][k]
                objective, rows = real.pair_costs(pair, like=stored)
                better = improve(objective, rows, real.slack[pair], stored)
                if not offer(real, incumbent, pair, better):
                    offer(real, incumbent, pair, stored)


def _core(relaxed: Knapsacks, multipliers: np.ndarray, cut: int) -> np.ndarray | None:
    """The best plan near the Lagrangian's choice at these multipliers; None if there is none, or if decisions
    are coupled."""
    if relaxed.table.coupled[relaxed.table.pair_cut[cut]] is not None:
        return None
    objective, rows = relaxed.pair_costs(cut)
    scores = objective + np.tensordot(multipliers, rows, 1)
    reduced = scores - scores.min(axis=1, keepdims=True)
    return core_plan(reduced, objective, rows, relaxed.slack[cut], np.inf)


def _exchanged(relaxed: Knapsacks, multipliers: np.ndarray, cut: int) -> np.ndarray | None:
    """What exchanges make of the Lagrangian's choice at these multipliers; None if it cannot be repaired."""
    weights = relaxed.objective[cut] + multipliers @ relaxed.rows[cut]
    choice = minimize_items(relaxed.table, np.array([cut]), weights[None])[1][0]
    objective, rows = relaxed.pair_costs(cut, like=choice)
    start = repair(objective, rows, relaxed.slack[cut], choice)
    return None if start is None else improve(objective, rows, relaxed.slack[cut], start)
