"""What a plan was chosen over: other cuts, the front over its tightest budget row, and the link rates at
which it stays the best."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from torchcoinfer.errors import InfeasibleBudget, PlanError
from torchcoinfer.theory.budget import Search
from torchcoinfer.theory.couplings import Coupled
from torchcoinfer.theory.graph import cut_from_tensors
from torchcoinfer.theory.pareto import Sweep, plan_row
from torchcoinfer.theory.plan import PREDICTED_OF_ROW, Plan
from torchcoinfer.theory.solve import solve
from torchcoinfer.theory.solve_band import bandwidth_band
from torchcoinfer.theory.solve_front import Fronts
from torchcoinfer.theory.solve_plan import Solution, make_plan
from torchcoinfer.theory.solve_problem import Problem, choose_cuts
from torchcoinfer.theory.solve_table import Table

FRONT_STEPS = 3  # on either side of the plan, of the front over the tightest row
FRONT_GAP = 0.01  # proven, of its points
FRONT_SPAN = 4.0  # from the limit divided by this to the limit times this
OTHER_CUTS = 4  # beside "device" and "server"


def explored(problem: Problem, plan: Plan) -> Plan:
    """The plan with ``alternatives``; ``problem`` is what it was solved from.

    * ``cuts``: the plan, everything on the device, everything on the server, and the next best cuts, each
      with its best plan or the reason why there is none.
    * ``front``: the objective over the row of the budget that the plan uses most of, around its limit; None
      where no row but the objective is limited. Every row carries its own proven gap.
    * ``bandwidth``: see ``bandwidth_band``.
    """
    problem = _with_state(_with_cut(problem, plan), plan)
    fronts = Fronts(problem)
    table, solution = fronts.table, solution_of(fronts.table, plan)
    fronts.add(table.pair_cut[[solution.pair]], solution.items[None])
    told = {
        "cuts": _cut_rows(problem, fronts, plan),
        "front": _front(fronts, plan),
        "bandwidth": bandwidth_band(fronts, solution),
    }
    return replace(plan, alternatives=told)


def _with_cut(problem: Problem, plan: Plan) -> Problem:
    """The problem with candidates that hold the plan's cut, which the solver may have found beyond them."""
    cuts, _ = choose_cuts(problem)
    if all(cut.name != plan.cut.name for cut in cuts):
        own = cut_from_tensors(problem.graph, [name for name, _ in plan.cut.tensors])
        cuts = (*cuts, own)
        return replace(problem, cuts=cuts, search=replace(problem.search, cut=None))
    return problem


def _with_state(problem: Problem, plan: Plan) -> Problem:
    """The problem with the plan's clocks and power among the states: analytic mode finds them in between."""
    if problem.search.mode != "analytic":
        return problem
    device_hz, server_hz, power = (plan.resources[n] for n in ("device_hz", "server_hz", "transmit_w"))

    def also(states: tuple[float, ...], own: float) -> tuple[float, ...]:
        return tuple(sorted({*states, own} - {0.0}))

    return replace(
        problem,
        device=replace(problem.device, clocks_hz=also(problem.device.clocks_hz, device_hz)),
        server=replace(problem.server, clocks_hz=also(problem.server.clocks_hz, server_hz)),
        link=replace(problem.link, transmit_w=also(problem.link.transmit_w, power)),
    )


def solution_of(table: Table, plan: Plan) -> Solution:
    """The plan as the table's pair and items.

    Raises:
        PlanError: the table has no such cut, option, clock or power.
    """
    problem, cut = table.problem, next((c for c in table.cuts if c.name == plan.cut.name), None)
    if cut is None:
        raise _foreign(f"cut {plan.cut.name!r}")
    sent, items = dict(plan.cut.tensors), []
    for names in table.decisions:
        options = [choice.option for choice in problem.choices[names[0]]]
        items.append(_position(options, plan.layers[names[0]].option, names[0]))
    for name in cut.tensors:
        items.append(_position([o.bits for o in problem.cut_options[name]], sent.get(name), name))
    items += [0] * (table.base.shape[1] - len(items))
    chosen, coupled = np.array(items, dtype=np.int64), table.coupled[table.cuts.index(cut)]
    if coupled is not None:  # a tensor of these bits may cross with more or fewer channels: as the layers do
        for d, name in enumerate(cut.tensors, start=len(table.decisions)):
            bits = [option.bits == sent.get(name) for option in problem.cut_options[name]]
            chosen[d] = _agreeing(coupled, chosen[: len(table.decisions)], d, bits)
    pairs = np.flatnonzero(table.pair_cut == table.cuts.index(cut))
    wanted = tuple(plan.resources[name] for name in ("device_hz", "server_hz", "transmit_w"))
    for pair in pairs.tolist():
        rows, state = table.evaluate(pair, chosen), table.states[table.pair_state[pair]]
        power = state.transmit_w if rows["uplink"] > 0 else 0.0
        if (state.device_hz, state.server_hz, power) == wanted:
            value = rows[problem.search.minimize]
            return Solution(pair, chosen, value, min(value, plan.optimality["dual_bound"]), rows)
    raise _foreign(f"state {dict(plan.resources)}")


def _agreeing(coupled: Coupled, layers: np.ndarray, decision: int, allowed: list[bool]) -> int:
    """The allowed item of a tensor that agrees with the layers in every coupling."""
    own = coupled.labels[:, np.arange(len(layers)), layers].max(axis=1)  # what the layers chose, -1: nothing
    labels = coupled.labels[:, decision, : len(allowed)]
    agrees = ((labels == own[:, None]) | (labels < 0) | (own < 0)[:, None]).all(axis=0) & np.array(allowed)
    return int(agrees.argmax())


def _position(options: list[Any], wanted: Any, name: str) -> int:
    if wanted not in options:
        raise _foreign(f"option {wanted} of {name!r}")
    return options.index(wanted)


def _foreign(what: str) -> PlanError:
    return PlanError(
        "the plan was not made from this problem", got=what, expected="choices of the problem's own table",
        remedy="solve the problem again",
    )  # fmt: skip


def _cut_rows(problem: Problem, fronts: Fronts, plan: Plan) -> list[dict[str, Any]]:
    rows = [_cut_row(plan, "chosen")]
    for name in ("device", "server"):
        if name != plan.cut.name and problem.search.cut in (None, name):
            try:
                rows.append(_cut_row(solve(replace(problem, cuts=None, search=_only(problem, name))), ""))
            except InfeasibleBudget as error:
                rows.append({"name": name, "note": error.fact})
    told = {"device", "server", plan.cut.name}
    others = {c: cut for c, cut in enumerate(fronts.table.cuts) if cut.name not in told}
    best = fronts.best_of_cuts(fronts.table, problem.budget.rows())
    for cut in sorted(others, key=lambda c: best[c].value if c in best else math.inf)[:OTHER_CUTS]:
        if cut in best:
            rows.append(_cut_row(make_plan(fronts.table, best[cut], best[cut]), "best stored"))
    return rows


def _only(problem: Problem, cut: str) -> Search:
    return replace(problem.search, cut=cut)


def _cut_row(plan: Plan, note: str) -> dict[str, Any]:
    keys = ("distortion", "latency_s", "energy_j", "device_bytes", "uplink_bytes")
    return {"name": plan.cut.name, "note": note, **{key: plan.predicted[key] for key in keys}}


def tightest_row(plan: Plan) -> str | None:
    """The row of its budget that the plan uses most of, the objective left out; None: there is none."""
    shares = {
        name: plan.predicted[PREDICTED_OF_ROW[name]] / limit
        for name, limit in plan.budget.items()
        if limit > 0 and name in PREDICTED_OF_ROW and name != plan.optimality["objective"]
    }
    return max(shares, key=shares.get) if shares else None


def _front(fronts: Fronts, plan: Plan) -> dict[str, Any] | None:
    axis = tightest_row(plan)
    if axis is None:
        return None
    limit, rows = plan.budget[axis], []
    gap = max(FRONT_GAP, fronts.problem.search.gap)
    sweep = Sweep(fronts, axis, fronts.problem.budget.rows(), gap)
    for step in range(-FRONT_STEPS, FRONT_STEPS + 1):
        if step == 0:
            rows.append(plan_row(plan, axis))
            continue
        other = sweep.plan(limit * FRONT_SPAN ** (step / FRONT_STEPS))
        if other is not None:
            rows.append(plan_row(other, axis))
    objective, kept = PREDICTED_OF_ROW[fronts.objective], []
    for row in rows:
        if not kept or row[objective] < kept[-1][objective]:
            kept.append(row)
    return {"axis": axis, "objective": fronts.objective, "rows": kept}
