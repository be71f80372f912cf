"""The front of the objective against one budget row: whole plans, found from one set of stored fronts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.budget import BUDGET_FIELDS, Budget
from torchcoinfer.theory.plan import PREDICTED_OF_ROW, Plan
from torchcoinfer.theory.solve import ceilings, infeasible, optimum, solve_table, tightest
from torchcoinfer.theory.solve_front import Fronts
from torchcoinfer.theory.solve_plan import Solution, make_plan
from torchcoinfer.theory.solve_problem import Problem
from torchcoinfer.theory.solve_table import ROWS, Table
from torchcoinfer.theory.units import spoken

RELAXED = 1 + 1e-9  # a limit at the least value of a row, kept clear of the last bit


@dataclass(frozen=True)
class Front:
    """Plans along one budget row, ascending in it; none is dominated by another.

    Attributes:
        axis: the row of ``Budget`` that was swept. objective: what each plan minimizes.
        plans: each solved within ``plan.budget``, which holds the limit tried on the axis.
    """

    axis: str
    objective: str
    plans: tuple[Plan, ...]

    def __iter__(self) -> Iterator[Plan]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index: int) -> Plan:
        return self.plans[index]

    def rows(self) -> list[dict[str, Any]]:
        """One plain row a plan: limit, objective, what it takes, cut, clocks, proven gap."""
        return [plan_row(plan, self.axis) for plan in self.plans]

    def __str__(self) -> str:
        name, axis = PREDICTED_OF_ROW[self.objective], PREDICTED_OF_ROW[self.axis]
        units, of_axis = BUDGET_FIELDS[self.objective][0], BUDGET_FIELDS[self.axis][0]
        lines = [f"{axis:>16}  {name:>14}  {'gap':>8}  cut"]
        lines += [
            f"{spoken(plan.predicted[axis], of_axis):>16}  {spoken(plan.predicted[name], units):>14}"
            f"  {plan.optimality['gap']:>8.2g}  {plan.cut.name}"
            for plan in self.plans
        ]
        return "\n".join(lines)


def plan_row(plan: Plan, axis: str) -> dict[str, Any]:
    """A plan as one row of a front."""
    keys = ("distortion", "latency_s", "energy_j", "device_bytes", "uplink_bytes", PREDICTED_OF_ROW[axis])
    return {
        "limit": plan.budget[axis],
        "cut": plan.cut.name,
        "gap": plan.optimality["gap"],
        **{key: plan.predicted[key] for key in dict.fromkeys(keys)},
    }


def check_axis(objective: str, axis: str) -> None:
    """Raises ArgumentError where there is no front along the row."""
    if not isinstance(axis, str) or axis not in BUDGET_FIELDS or axis in ("certified_distortion", objective):
        raise ArgumentError(
            "there is no front along this row", got=repr(axis),
            expected=f"one of {sorted(set(PREDICTED_OF_ROW) - {objective})}",
            remedy="choose a row of Budget other than the objective",
        )  # fmt: skip


def check_points(points: int) -> None:
    """Raises ArgumentError unless ``points`` is an integer of at least 2."""
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ArgumentError(
            "a front needs a number of points", got=repr(points), expected="an integer >= 2",
            remedy="try points=9",
        )  # fmt: skip


def check_uncertified(budget: Budget) -> None:
    """Raises ArgumentError for a row that only a compressed model can be held to."""
    if budget.certified_distortion is not None:
        raise ArgumentError(
            "certified_distortion is measured on a compressed model, and nothing is compressed here",
            got=budget.certified_distortion, expected="a budget without it",
            remedy="limit the predicted distortion, or call compress_and_split",
        )  # fmt: skip


def pareto(problem: Problem, axis: str, points: int = 9, fronts: Fronts | None = None) -> Front:
    """The front of the objective against one budget row, from the row's least value to where it no longer
    binds.

    The other rows of the budget stay as they are. The limits tried are spaced geometrically, and a limit that
    the budget gives is one of them; each plan is found among the stored choices, and solved to
    ``search.gap`` from there where they do not prove it; what is found is stored for the next.

    Args:
        axis: a row of ``Budget`` other than the objective.
        points: limits tried, at least 2.
        fronts: stored before, with this axis among its rows; default: made here.

    Raises:
        ArgumentError: no such row, too few points, or a budget with ``certified_distortion``.
        InfeasibleBudget: the other rows alone are impossible.
    """
    check_axis(problem.search.minimize, axis)
    check_points(points)
    check_uncertified(problem.budget)
    fronts = fronts or Fronts(problem, rows=(axis,))
    others = {name: value for name, value in problem.budget.rows().items() if name != axis}
    sweep = Sweep(fronts, axis, others)
    low, high = sweep.ends()
    given = problem.budget.rows().get(axis)
    limits = _spaced(sweep.least_positive(low, high), high, points - (low == 0.0))
    limits += [low] * (low == 0.0) + [given] * (given is not None and low < given < high)
    if not BUDGET_FIELDS[axis][1]:  # a budget of 0 cannot be given: the least that can stands for it
        limits = [limit or 1e-9 * (high or 1.0) for limit in limits]
    plans = [plan for plan in map(sweep.plan, sorted(set(limits))) if plan is not None]
    name, kept = PREDICTED_OF_ROW[problem.search.minimize], []
    for plan in plans:
        if not kept or plan.predicted[name] < kept[-1].predicted[name]:
            kept.append(plan)
    return Front(axis, problem.search.minimize, tuple(kept))


def _spaced(low: float, high: float, points: int) -> list[float]:
    if not 0.0 < low < high:
        return [high]
    inner = np.geomspace(low, high, max(points, 2))[1:-1].tolist()
    return [low, *inner, high]  # the ends to the last bit


class Sweep:
    """One axis, the other rows fixed; plans are proven to ``gap`` (default: that of the search)."""

    def __init__(self, fronts: Fronts, axis: str, others: Mapping[str, float], gap: float | None = None):
        self.fronts, self.axis, self.others = fronts, axis, others
        self.problem, self.table = fronts.problem, fronts.table
        self.gap = self.problem.search.gap if gap is None else gap
        self.papers = self.problem.search.mode == "analytic"

    def _least(self, objective: str, limits: Mapping[str, float]) -> Solution | None:
        if self.papers:
            return optimum(self.problem, objective, limits)[1]
        ceiling = tightest(limits, ceilings(self.problem, self.table))
        return solve_table(self.table, objective, ceiling, self.gap)

    def _best(self, limits: Mapping[str, float]) -> tuple[Table, Solution | None]:
        if self.papers:
            return optimum(self.problem, self.problem.search.minimize, limits)
        return self.table, self.fronts.best(self.table, limits, self.gap)

    def ends(self) -> tuple[float, float]:
        """The least value of the row, and the least at which the objective is as good as without it."""
        free = self._best(self.others)[1]
        if free is None:
            raise infeasible(self.table, self.others)
        objective = self.problem.search.minimize
        least, enough = (
            self._least(self.axis, self.others),
            self._least(self.axis, tightest(self.others, {objective: free.value})),
        )
        high = enough.value if enough is not None else free.rows[self.axis]
        low = min(least.value, high) if least is not None else high
        return (low * RELAXED if low < high else high), high

    def least_positive(self, low: float, high: float) -> float:
        """Where a geometric sweep starts: the least value, or the least positive one stored if that is 0."""
        if low > 0.0:
            return low
        r = ROWS.index(self.axis)
        found = [
            self.fronts.totals[cut] @ self.table.rows[p, r] + self.table.constant[p, r]
            for p, cut in enumerate(self.table.pair_cut)
        ]
        positive = np.concatenate(found)
        positive = positive[(positive > 1e-6 * high) & (positive < high)]
        return float(positive.min()) if len(positive) else high

    def plan(self, limit: float) -> Plan | None:
        """The best plan with this limit on the axis; None where nothing fits."""
        limits = {**self.others, self.axis: limit}
        table, best = self._best(limits)
        if best is None:
            return None
        return replace(make_plan(table, best, best), budget=limits)
