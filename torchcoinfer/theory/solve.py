"""The planner's solver: joint choice of cut, clocks, transmit power, layer options and cut bits (theory.md
§5).

For every candidate cut and every state of clocks and power the rows are linear, so a pair (cut, state) is a
multiple-choice knapsack. All pairs are bounded at once by their Lagrangians; those that the incumbent does
not prune are solved exactly. The answer carries its bound; nothing depends on time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from torchcoinfer.errors import InfeasibleBudget
from torchcoinfer.theory.budget import Budget
from torchcoinfer.theory.plan import PREDICTED_OF_ROW, CutPlan, LayerPlan, Plan
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
from torchcoinfer.theory.solve_problem import Choice, CutOption, Problem, build_problem
from torchcoinfer.theory.solve_relax import least_violation, round_up
from torchcoinfer.theory.solve_table import DB, ROWS, SB, Table, make_table

__all__ = ["Choice", "CutOption", "Problem", "Solution", "build_problem", "solve", "solve_table"]


@dataclass(frozen=True)
class Solution:
    """A proven answer: ``value`` of the objective and its lower ``bound``; ``rows``: all rows, exact."""

    pair: int
    items: np.ndarray
    value: float
    bound: float
    rows: Mapping[str, float]

    @property
    def gap(self) -> float:
        """Relative distance of value and bound, 0 when both are equal."""
        return 0.0 if self.value <= self.bound else (self.value - self.bound) / abs(self.value)


def solve_table(table: Table, objective: str, limits: Mapping[str, float], gap: float) -> Solution | None:
    """Least ``objective`` over all pairs of the table within ``limits``, to a relative gap; None: impossible.

    The states of a cut are first relaxed into one knapsack: mostly its plan is feasible in one of them, or
    its
    bound rules all of them out.
    """
    real, incumbent = make_knapsacks(table, objective, limits), Incumbent()
    relaxed = relax_states(real)
    outer, inner = DualState.start(relaxed, incumbent), DualState.start(real, incumbent)
    bound_pairs(relaxed, outer, gap, np.arange(len(relaxed.members)))
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
    bound = min(incumbent.value, float(outer.bound.min()))
    rows = table.evaluate(incumbent.pair, incumbent.items)
    return Solution(incumbent.pair, incumbent.items, incumbent.value, bound, rows)


def _finish_states(real: Knapsacks, state: DualState, pairs: np.ndarray, bound: float, gap: float) -> None:
    """The states of one cut, each on its own. ``bound``: what is known of all of them."""
    state.bound[pairs] = bound
    bound_pairs(real, state, gap, pairs)
    for pair in pairs[np.argsort(state.bound[pairs], kind="stable")]:
        if state.bound[pair] < state.incumbent.target(gap):
            finish_pair(real, state, int(pair), gap)


def _ceilings(problem: Problem, table: Table) -> dict[str, float]:
    """Memory that the machines have, where some choice could exceed it."""
    own = {"device_memory": problem.device.memory_bytes, "server_memory": problem.server.memory_bytes}
    most = table.base.max(axis=2).sum(axis=1)[table.pair_cut]
    ceilings = {}
    for name, limit in own.items():
        r = ROWS.index(name)
        if ((table.rows[:, r] * most).sum(axis=1) + table.constant[:, r]).max() > limit:
            ceilings[name] = float(limit)
    return ceilings


def _tightest(*limits: Mapping[str, float]) -> dict[str, float]:
    names = dict.fromkeys(name for given in limits for name in given)
    return {name: min(given[name] for given in limits if name in given) for name in names}


def _infeasible(
    table: Table, rows: Mapping[str, float], ceilings: Mapping[str, float], gap: float
) -> InfeasibleBudget:
    """The error for an impossible budget, with its least common relaxation and the least value of each
    row."""
    problem = table.problem
    names = [*rows, *(name for name in ceilings if name not in rows)]
    least = {}
    for name in rows:
        solution = solve_table(table, name, ceilings, gap)
        if solution is not None:
            least[name] = solution.value
    attainable = None
    if least:
        limits = {**ceilings, **rows}
        knapsacks = make_knapsacks(table, "latency", {name: limits[name] for name in names})
        relaxed = np.array([name in rows for name in names], dtype=np.float64)
        found = least_violation(knapsacks, relaxed, gap)
        scale = dict(zip(knapsacks.names, knapsacks.scale, strict=True))
        reached = table.evaluate(found.pair, found.items) if found.items is not None else {}
        values = {n: round_up(max(v + found.value * scale[n], reached.get(n, 0.0))) for n, v in rows.items()}
        if found.items is not None and math.isfinite(found.value):
            attainable = Budget(**values, certified_distortion=problem.budget.certified_distortion)
    hopeless = sorted(name for name, value in least.items() if value > rows[name])
    fact = (
        f"no plan fits the budget ({', '.join(hopeless)} out of reach)"
        if hopeless
        else "no plan fits all rows at once"
    )
    return InfeasibleBudget(fact, attainable=attainable, least=least, got=dict(rows))


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
    rows, gap, objective = problem.budget.rows(), problem.search.gap, problem.search.minimize
    table = make_table(problem, {*rows, objective})
    ceilings = _ceilings(problem, table)
    limits = _tightest(rows, ceilings)
    best = solve_table(table, objective, limits, gap)
    if best is None:
        raise _infeasible(table, rows, ceilings, gap)
    return make_plan(table, _settle_ties(table, best, objective, limits, gap), best)


def _settle_ties(
    table: Table, best: Solution, objective: str, limits: Mapping[str, float], gap: float
) -> Solution:
    """Among plans no worse in the objective: the least distortion, and at distortion 0 the least latency."""
    chosen = best
    if objective != "distortion":
        chosen = solve_table(table, "distortion", _tightest(limits, {objective: best.value}), gap) or best
    if chosen.rows["distortion"] == 0.0:
        exact = replace(table, valid=table.valid & (table.base[..., 0] == 0.0))
        rest = limits if objective == "distortion" else _tightest(limits, {objective: best.value})
        chosen = solve_table(exact, "latency", rest, gap) or chosen
    elif objective == "distortion":
        chosen = _fastest_state(table, chosen, limits)
    return chosen


def _fastest_state(table: Table, best: Solution, limits: Mapping[str, float]) -> Solution:
    """The same options and cut at the clocks and power that are fastest within the limits."""
    cut = table.pair_cut[best.pair]
    for pair in np.flatnonzero(table.pair_cut == cut):
        rows = table.evaluate(int(pair), best.items)
        if rows["latency"] < best.rows["latency"] and all(rows[name] <= v for name, v in limits.items()):
            best = replace(best, pair=int(pair), rows=rows)
    return best


def _latency_parts(table: Table, solution: Solution) -> dict[str, float]:
    cut, state = table.pair_cut[solution.pair], table.states[table.pair_state[solution.pair]]
    chosen = table.base[cut, np.arange(len(solution.items)), solution.items]
    row = table.rows[solution.pair, ROWS.index("latency")]
    total, wire = solution.rows["latency"], math.fsum((chosen[:, -1] * row[-1]).tolist())
    fixed = table.fixed[cut]
    device_s = math.fsum(
        [*(chosen[:, 1] / state.device_hz + chosen[:, 2]).tolist(), fixed[1] / state.device_hz + fixed[2]]
    )
    server_s = math.fsum(
        [*(chosen[:, 3] / state.server_hz + chosen[:, 4]).tolist(), fixed[3] / state.server_hz + fixed[4]]
    )
    return {
        "device_s": device_s,
        "server_s": server_s,
        "uplink_s": wire,
        "link_s": max(0.0, total - device_s - server_s),
    }


def make_plan(table: Table, chosen: Solution, best: Solution) -> Plan:
    """The plan of a solution; ``best`` is the one whose bound is proven."""
    problem, pair, items = table.problem, chosen.pair, chosen.items
    cut, state = table.cuts[table.pair_cut[pair]], table.states[table.pair_state[pair]]
    item_of = {name: int(items[d]) for d, names in enumerate(table.decisions) for name in names}
    sides = {layer.name: set() for layer in problem.graph.layers}
    device = set(cut.device)
    for unit in problem.graph.units:
        if unit.layer is not None:
            sides[unit.layer].add("device" if unit.name in device else "server")
    layers = {}
    for layer in problem.graph.layers:
        choice = problem.choices[layer.name][item_of[layer.name]]
        option, side = choice.option, sides[layer.name] or {"device" if cut.name == "device" else "server"}
        layers[layer.name] = LayerPlan(
            option.bits, float(option.sparsity), option.format, option.group_size, option.symmetric,
            option.activation_bits, option.algorithm, "both" if len(side) > 1 else next(iter(side)),
            int(choice.packed_bytes), float(choice.distortion),
        )  # fmt: skip
    first = len(table.decisions)
    sent = tuple((n, problem.cut_options[n][int(items[first + t])].bits) for t, n in enumerate(cut.tensors))
    chosen_base = table.base[table.pair_cut[pair], np.arange(len(items)), items]
    predicted = {PREDICTED_OF_ROW[name]: value for name, value in chosen.rows.items()}
    predicted.update(_latency_parts(table, chosen))
    predicted["device_weight_bytes"] = math.fsum(chosen_base[:, DB].tolist())
    predicted["server_weight_bytes"] = math.fsum(chosen_base[:, SB].tolist())
    predicted["basis"] = _basis(problem)
    return Plan(
        layers=layers,
        cut=CutPlan(cut.name, sent),
        resources={"device_hz": state.device_hz, "server_hz": state.server_hz,
        "transmit_w": state.transmit_w},
        predicted=predicted,
        bounds={},
        optimality={
            "objective": problem.search.minimize, "value": best.value,
            "dual_bound": best.bound, "gap": best.gap,
            "over": table.over, "cuts": len(table.cuts), "pairs": len(table.pair_cut),
        },
        provenance={
            "device": problem.device.name, "server": problem.server.name, "link": problem.link.name,
            "seed": problem.search.seed,
        },
        budget=problem.budget.as_dict(),
    )  # fmt: skip


def _basis(problem: Problem) -> dict[str, str]:
    def both(*parts: str) -> str:
        return "measured" if set(parts) == {"measured"} else "estimated"

    device, server, link = problem.device.basis, problem.server.basis, problem.link.basis
    return {
        "latency_s": both(device, server, link), "energy_j": "estimated", "server_energy_j": "estimated",
        "total_energy_j": "estimated", "device_bytes": "estimated", "server_bytes": "estimated",
        "uplink_bytes": "measured", "distortion": "estimated", "device_bits_per_weight": "measured",
    }  # fmt: skip
