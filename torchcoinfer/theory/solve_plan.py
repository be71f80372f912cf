"""A solution of the solver's arrays as a ``Plan``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchcoinfer.theory.graph import layer_sides
from torchcoinfer.theory.plan import PREDICTED_OF_ROW, CutPlan, LayerPlan, Plan
from torchcoinfer.theory.solve_problem import Problem
from torchcoinfer.theory.solve_table import DB, ROWS, SB, Table


@dataclass(frozen=True)
class Certificate:
    """Of the plan's own cut, clocks and power: the Lagrangian ``dual``, and the most that the optimum there
    can lie above it (None where the theorem says nothing, with the reason)."""

    dual: float
    shapley_folkman_gap: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Solution:
    """A proven answer: ``value`` of the objective and its lower ``bound``; ``rows``: all rows, exact."""

    pair: int
    items: np.ndarray
    value: float
    bound: float
    rows: Mapping[str, float]
    cuts: int = 1  # how many were compared
    lagrangian: float | None = None  # the part of the bound that needs no branching, float64 throughout
    certificate: Certificate | None = None

    @property
    def gap(self) -> float:
        """Relative distance of value and bound, 0 when both are equal."""
        return 0.0 if self.value <= self.bound else (self.value - self.bound) / abs(self.value)


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
    sides = layer_sides(problem.graph, cut)
    layers, groups = {}, {n: c.name for c in problem.couplings for n, a in c.members if a == "kept_rows"}
    for layer in problem.graph.layers:
        choice = problem.choices[layer.name][item_of[layer.name]]
        option = choice.option
        layers[layer.name] = LayerPlan(
            option.bits, float(option.sparsity), option.format, option.group_size, option.symmetric,
            option.activation_bits, option.algorithm, sides[layer.name],
            int(choice.packed_bytes), float(choice.distortion), None, groups.get(layer.name),
            float(option.kept_rows), float(option.kept_columns),
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
        resources={
            "device_hz": state.device_hz, "server_hz": state.server_hz,
            "transmit_w": state.transmit_w if chosen.rows["uplink"] > 0 else 0.0,
        },
        predicted=predicted,
        bounds={},
        optimality={
            "objective": problem.search.minimize, "value": best.value,
            "dual_bound": best.bound, "gap": best.gap,
            "lagrangian_bound": best.lagrangian,
            "over": table.over, "cuts": best.cuts, "here": _certified(best),
        },
        provenance={
            "device": problem.device.name, "server": problem.server.name, "link": problem.link.name,
            "seed": problem.search.seed,
        },
        budget=problem.budget.as_dict(),
    )  # fmt: skip


def _certified(best: Solution) -> dict[str, Any] | None:
    own = best.certificate
    if own is None:
        return None
    gap = own.shapley_folkman_gap
    told = {"unavailable": own.reason} if gap is None else gap
    return {"lagrangian_dual": own.dual, "shapley_folkman_gap": told}


def _basis(problem: Problem) -> dict[str, str]:
    def both(*parts: str) -> str:
        return "measured" if set(parts) == {"measured"} else "estimated"

    device, server, link = problem.device.basis, problem.server.basis, problem.link.basis
    return {
        "latency_s": both(device, server, link), "energy_j": "estimated", "server_energy_j": "estimated",
        "total_energy_j": "estimated", "device_bytes": "estimated", "server_bytes": "estimated",
        "uplink_bytes": "measured", "distortion": "estimated", "device_bits_per_weight": "measured",
    }  # fmt: skip
