"""The planner's solver: joint choice of cut, clocks, transmit power, layer options and cut bits.

For every candidate cut and every state of clocks and power the rows are linear, so a pair (cut, state) is a
multiple-choice knapsack. All pairs are bounded at once by their Lagrangians; those that the incumbent does
not prune are solved exactly. The answer carries its bound; nothing depends on time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from torchcoinfer.errors import InfeasibleBudget
from torchcoinfer.theory.budget import Budget, spoken_rows
from torchcoinfer.theory.graph import Cut
from torchcoinfer.theory.plan import Plan
from torchcoinfer.theory.solve_analytic import uniform_tables
from torchcoinfer.theory.solve_certificate import certificate
from torchcoinfer.theory.solve_dual import (
    DualState,
    Incumbent,
    Knapsacks,
    bound_pairs,
    make_knapsacks,
    offer,
    relax_states,
)
from torchcoinfer.theory.solve_pair import finish_pair
from torchcoinfer.theory.solve_placement import UNIT_LIMIT, Placement
from torchcoinfer.theory.solve_plan import Solution, make_plan
from torchcoinfer.theory.solve_problem import Choice, CutOption, Problem, build_problem
from torchcoinfer.theory.solve_relax import least_violation, round_up
from torchcoinfer.theory.solve_table import ROWS, Table, layer_decisions, make_table

PROPOSALS = 60  # frontiers asked for at most; what is left unproven then shows in the gap

__all__ = ["Choice", "CutOption", "Problem", "Solution", "build_problem", "solve", "solve_table"]


def solve_table(
    table: Table,
    objective: str,
    limits: Mapping[str, float],
    gap: float,
    start: tuple[int, np.ndarray] | None = None,
) -> Solution | None:
    """Least ``objective`` over all pairs of the table within ``limits``, to a relative gap; None: impossible.

    The states of a cut are first relaxed into one knapsack: mostly its plan is feasible in one of them, or
    its bound rules all of them out. ``start``: pair and items of a plan that is known already.
    """
    real, incumbent = make_knapsacks(table, objective, limits), Incumbent()
    if start is not None:
        offer(real, incumbent, *start)
    relaxed = relax_states(real)
    outer, inner = DualState.start(relaxed, incumbent), DualState.start(real, incumbent)
    bound_pairs(relaxed, outer, gap, np.arange(len(relaxed.members)))
    lagrangian = float(outer.bound.min())
    if np.isposinf(lagrangian):  # some row is out of reach alone
        return None
    if incumbent.items is None and limits:
        found = least_violation(real, np.ones(len(limits)), 0.0, hopeless=1e-9)
        if found.items is None or found.value > 0 or not offer(real, incumbent, found.pair, found.items):
            return None
    for cut in np.argsort(outer.bound, kind="stable"):
        if outer.bound[cut] < incumbent.target(gap):
            finish_pair(relaxed, outer, int(cut), gap)
        if outer.bound[cut] < incumbent.target(gap):
            _finish_states(real, inner, relaxed.members[cut], outer.bound[cut], gap)
            outer.bound[cut] = max(outer.bound[cut], inner.bound[relaxed.members[cut]].min())
    if incumbent.items is None:
        return None
    bound = min(incumbent.value, max(0.0, float(outer.bound.min())))  # no row is ever negative
    rows = table.evaluate(incumbent.pair, incumbent.items)
    least = min(max(0.0, lagrangian), incumbent.value)
    return Solution(incumbent.pair, incumbent.items, incumbent.value, bound, rows, len(table.cuts), least)


def _finish_states(real: Knapsacks, state: DualState, pairs: np.ndarray, bound: float, gap: float) -> None:
    """The states of one cut, each on its own. ``bound``: what is known of all of them."""
    state.bound[pairs] = bound
    bound_pairs(real, state, gap, pairs)
    for pair in pairs[np.argsort(state.bound[pairs], kind="stable")]:
        if state.bound[pair] < state.incumbent.target(gap):
            finish_pair(real, state, int(pair), gap)


def _search_frontiers(
    problem: Problem,
    objective: str,
    limits: Mapping[str, float],
    gap: float,
    known: Sequence[Cut],
    incumbent: float,
    solve_cut: Callable[[Cut], float],
) -> float:
    """Looks for frontiers beyond ``known`` that could beat the incumbent, and has each solved exactly.

    Args:
        incumbent: the best objective so far, inf if none.
        solve_cut: solves one cut and returns the best objective so far.

    Returns:
        a lower bound of the objective over all frontiers that were neither known nor solved.
    """
    placement = Placement(problem, objective, limits, incumbent if np.isfinite(incumbent) else 0.0)
    for cut in known:
        placement.exclude(cut)
    bound = -np.inf
    for _ in range(PROPOSALS):
        proposal = placement.propose(gap / 2)
        bound = max(bound, proposal.bound)
        target = incumbent - gap * abs(incumbent) if np.isfinite(incumbent) else np.inf
        if proposal.cut is None or bound >= target:
            break
        incumbent = solve_cut(proposal.cut)
        placement.exclude(proposal.cut)
    return bound


def ceilings(problem: Problem, table: Table) -> dict[str, float]:
    """Memory that the machines have, where some choice could exceed it."""
    own = {"device_memory": problem.device.memory_bytes, "server_memory": problem.server.memory_bytes}
    most = table.largest[table.pair_cut]
    limits = {}
    for name, limit in own.items():
        r = ROWS.index(name)
        if ((table.rows[:, r] * most).sum(axis=1) + table.constant[:, r]).max() > limit:
            limits[name] = float(limit)
    return limits


def tightest(*limits: Mapping[str, float]) -> dict[str, float]:
    names = dict.fromkeys(name for given in limits for name in given)
    return {name: min(given[name] for given in limits if name in given) for name in names}


def optimum(problem: Problem, objective: str, rows: Mapping[str, float]) -> tuple[Table, Solution | None]:
    """Least ``objective`` within ``rows`` and the machines' own memory, over all frontiers where they are few
    or the placement program covers them, else over the candidate cuts; with the table it was found in."""
    gap, goals = problem.search.gap, {*rows, objective}
    table = make_table(problem, goals)
    if problem.search.mode == "analytic":
        return _uniform_optimum(table, objective, rows, gap)
    best = solve_table(table, objective, tightest(rows, ceilings(problem, table)), gap)
    if table.over != "candidate cuts" or problem.cuts is not None or len(problem.graph.units) > UNIT_LIMIT:
        return table, best
    candidates, found, bounds = table.cuts, [(table, best)], [best.bound if best else np.inf]

    def solve_cut(cut: Cut) -> float:
        own = make_table(replace(problem, cuts=(cut,)), goals)
        solution = solve_table(own, objective, tightest(rows, ceilings(problem, own)), gap)
        if solution is not None:
            bounds.append(solution.bound)
            if found[-1][1] is None or solution.value < found[-1][1].value:
                found.append((own, solution))
        return found[-1][1].value if found[-1][1] is not None else np.inf

    own_memory = {"device_memory": problem.device.memory_bytes, "server_memory": problem.server.memory_bytes}
    start = best.value if best is not None else np.inf
    limits = tightest(rows, own_memory)
    left = _search_frontiers(problem, objective, limits, gap, candidates, start, solve_cut)
    table, best = found[-1]
    if best is not None:
        cuts = len(candidates) + len(bounds) - 1
        best = replace(best, bound=min(best.value, left, *bounds), cuts=cuts, lagrangian=None)
    return replace(table, over="all frontiers"), best


def _uniform_optimum(
    table: Table, objective: str, rows: Mapping[str, float], gap: float
) -> tuple[Table, Solution | None]:
    """The papers' problem: one option for everything on the device, the rest as it is."""
    best: tuple[Table, Solution | None] = (table, None)
    for own in uniform_tables(table):
        found = solve_table(own, objective, tightest(rows, ceilings(table.problem, own)), gap)
        if found is not None and (best[1] is None or found.value < best[1].value):
            best = (own, found)
    return best


def infeasible(table: Table, rows: Mapping[str, float]) -> InfeasibleBudget:
    """The error for an impossible budget: its least common relaxation, and the least value of each row."""
    problem, least, best = table.problem, {}, None
    for own in uniform_tables(table) if problem.search.mode == "analytic" else [table]:
        own_memory = ceilings(problem, own)
        for name in rows:
            solution = solve_table(own, name, own_memory, problem.search.gap)
            if solution is not None:
                least[name] = min(solution.value, least.get(name, math.inf))
        far = max(
            [1.0, *(least[name] / limit for name, limit in rows.items() if name in least and limit > 0)]
        )
        knapsacks = make_knapsacks(own, "latency", [*rows.items(), *own_memory.items()], far)
        relaxed = np.array([1.0] * len(rows) + [0.0] * len(own_memory))
        found = least_violation(knapsacks, relaxed, problem.search.gap)
        if found.items is not None and (best is None or found.value * far < best[2]):
            best = (knapsacks, found, found.value * far)
    attainable = None
    if best is not None:
        knapsacks, found, _ = best
        reached = knapsacks.table.evaluate(found.pair, found.items)
        values = {
            name: round_up(max(limit + found.value * scale, reached[name]))
            for (name, limit), scale in zip(rows.items(), knapsacks.scale)
        }
        attainable = Budget(**values, certified_distortion=problem.budget.certified_distortion)
    hopeless = sorted(name for name, value in least.items() if value > rows[name])
    fact = (
        f"no plan fits the budget ({', '.join(hopeless)} out of reach)"
        if hopeless
        else "no plan fits all rows at once"
    )
    told = spoken_rows(least)
    return InfeasibleBudget(fact, attainable=attainable, least=least, told_least=told, got=spoken_rows(rows))


def solve(problem: Problem) -> Plan:
    """The best plan within the budget, with its certificate.

    The objective is ``search.minimize``. Ties go to the least distortion, then the least latency: when
    everything fits uncompressed, the answer is the uncompressed model where it is fastest.

    Returns:
        A plan whose rows, recomputed in float64 from the problem, do not exceed the budget.

    Raises:
        InfeasibleBudget: no plan fits; it says what would.
        ArgumentError: ``search.cut`` names no cut of the graph.
    """
    rows, objective = problem.budget.rows(), problem.search.minimize
    table, best = optimum(problem, objective, rows)
    if best is None:
        raise infeasible(table, rows)
    limits = tightest(rows, ceilings(problem, table))
    settled, chosen = _settle_ties(problem, table, best, objective, rows)
    pair = chosen.pair if settled is table else best.pair
    return make_plan(settled, chosen, replace(best, certificate=certificate(table, objective, limits, pair)))


def _settle_ties(
    problem: Problem, table: Table, best: Solution, objective: str, rows: Mapping[str, float]
) -> tuple[Table, Solution]:
    """Among plans no worse in the objective: the least distortion, and at distortion 0 the least latency."""
    chosen, rest = best, rows
    if objective != "distortion":
        rest = tightest(rows, {objective: best.value})
        own, other = optimum(problem, "distortion", rest)
        table, chosen = (own, other) if other is not None else (table, best)
    if chosen.rows["distortion"] == 0.0:
        harmless = _without_distortion(problem)
        if any(not options for options in harmless.cut_options.values()):
            harmless, rest = problem, {**rest, "distortion": 0.0}
        own, other = optimum(harmless, "latency", rest)
        return (own, other) if other is not None else (table, chosen)
    if objective == "distortion":
        chosen = fastest_state(table, chosen, tightest(rows, ceilings(problem, table)))
    return table, chosen


def _without_distortion(problem: Problem) -> Problem:
    """Only the options that cost nothing; layers of a group keep those that cost none of them anything."""
    choices = {}
    for names in layer_decisions(problem):
        free = [
            all(c.distortion == 0.0 for c in row)
            for row in zip(*(problem.choices[n] for n in names), strict=True)
        ]
        for name in names:
            choices[name] = tuple(c for c, keep in zip(problem.choices[name], free, strict=True) if keep)
    cut_options = {n: tuple(o for o in own if o.distortion == 0.0) for n, own in problem.cut_options.items()}
    return replace(problem, choices=choices, cut_options=cut_options)


def fastest_state(table: Table, best: Solution, limits: Mapping[str, float]) -> Solution:
    """The same options and cut at the clocks and power that are fastest within the limits."""
    cut = table.pair_cut[best.pair]
    for pair in np.flatnonzero(table.pair_cut == cut):
        rows = table.evaluate(int(pair), best.items)
        if rows["latency"] < best.rows["latency"] and all(rows[name] <= v for name, v in limits.items()):
            best = replace(best, pair=int(pair), rows=rows)
    return best
