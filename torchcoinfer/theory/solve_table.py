"""A ``Problem`` as arrays: for every candidate cut and every state of clocks and power, linear rows.

For a fixed cut, device clock, server clock and transmit power each row of the budget is a constant plus a
sum over decisions of a cost of the chosen item. A *decision* is a layer, a group of layers, or a tensor that
crosses. Per cut and item eight base quantities are kept (``BASE``); a row is a linear form of their sums.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from torchcoinfer.theory.costs import header_bytes
from torchcoinfer.theory.couplings import Coupled
from torchcoinfer.theory.graph import Cut, lost_sizes, peak_activation_bytes
from torchcoinfer.theory.solve_problem import Problem, check_problem, choose_cuts, couple

ROWS = (
    "latency", "energy", "server_energy", "total_energy", "device_memory", "server_memory", "uplink",
    "device_bits_per_weight", "distortion",
)  # fmt: skip
BASE = (
    "distortion",
    "device_cycles",
    "device_s",
    "server_cycles",
    "server_s",
    "device_bytes",
    "server_bytes",
    "wire",
)
ENERGY_ROWS = ("energy", "server_energy", "total_energy")
E, DC, DS, SC, SS, DB, SB, WIRE = range(len(BASE))


@dataclass(frozen=True)
class State:
    device_hz: float
    server_hz: float
    transmit_w: float
    rate_bps: float


@dataclass
class Table:
    """Arrays of one problem. Pair p is one cut with one state.

    Attributes:
        cuts, over: the candidates, and what they cover: "all frontiers" | "candidate cuts" | "the fixed cut".
        decisions: member layers of each layer decision; tensor decisions follow, ``tensors[c]`` names them.
        base: [cuts, decisions, items, BASE]; padding is zero and not ``valid``.
        valid: [cuts, decisions, items].
        coupled: per cut, what its items must agree in; None: nothing.
        largest: [cuts, BASE] sum over decisions of the greatest item.
        fixed: [cuts, BASE] of what no choice changes; bits, numel: [cuts] of parameters on the device.
        pair_cut, pair_state: [pairs], sorted by cut.
        rows: [pairs, ROWS, BASE] coefficients; constant: [pairs, ROWS].
    """

    problem: Problem
    cuts: tuple[Cut, ...]
    over: str
    decisions: tuple[tuple[str, ...], ...]
    tensors: tuple[tuple[str, ...], ...]
    base: np.ndarray
    valid: np.ndarray
    coupled: tuple[Coupled | None, ...]
    largest: np.ndarray
    fixed: np.ndarray
    bits: np.ndarray
    numel: np.ndarray
    goals: tuple[str, ...]
    states: tuple[State, ...]
    pair_cut: np.ndarray
    pair_state: np.ndarray
    rows: np.ndarray
    constant: np.ndarray

    def reweighed(self, problem: Problem) -> Table:
        """The same loads with another link, other clocks or another budget."""
        units = len(problem.graph.units)
        sides = [(bool(cut.device), len(cut.device) < units) for cut in self.cuts]
        states = _states(problem, set(self.goals))
        weighed = _weigh(problem, states, sides, self.fixed, self.bits, self.numel)
        names = ("pair_cut", "pair_state", "rows", "constant")
        return replace(self, problem=problem, states=states, **dict(zip(names, weighed, strict=True)))

    def evaluate(self, pair: int, items: np.ndarray) -> dict[str, float]:
        """All rows of one choice, each an exactly rounded sum (``math.fsum``), so the order does not
        matter."""
        chosen = self.base[self.pair_cut[pair], np.arange(len(items)), items]
        values = {}
        for r, name in enumerate(ROWS):
            terms = (chosen * self.rows[pair, r]).ravel()
            values[name] = math.fsum([*terms[terms != 0].tolist(), float(self.constant[pair, r])])
        return values


def layer_decisions(problem: Problem) -> tuple[tuple[str, ...], ...]:
    members: dict[tuple[str, str], list[str]] = {}
    for layer in problem.graph.layers:
        key = ("layer", layer.name) if layer.group is None else ("group", layer.group)
        members.setdefault(key, []).append(layer.name)
    return tuple(tuple(names) for names in members.values())


def _fill_layers(
    problem: Problem,
    decisions: tuple[tuple[str, ...], ...],
    on_device: np.ndarray,
    base: np.ndarray,
    valid: np.ndarray,
) -> None:
    """Layer decisions of ``base`` for all cuts at once. ``on_device``: [cuts, units] of 0 and 1."""
    positions: dict[str, list[int]] = {}
    for i, unit in enumerate(problem.graph.units):
        if unit.layer is not None:
            positions.setdefault(unit.layer, []).append(i)
    for d, names in enumerate(decisions):
        for name in names:
            choices, own = problem.choices[name], on_device[:, positions.get(name, [])]
            items = len(choices)
            sides = ((own, "device", DC, DS, DB), (1.0 - own, "server", SC, SS, SB))
            base[:, d, :items, E] += [c.distortion for c in choices]
            valid[:, d, :items] = True
            for here, side, cycles, seconds, size in sides:
                loads = [[(u.cycles, u.seconds) for u in getattr(c, side)] for c in choices]
                load = np.array(loads, dtype=np.float64).reshape(items, own.shape[1], 2)
                base[:, d, :items, cycles] += here @ load[:, :, 0].T
                base[:, d, :items, seconds] += here @ load[:, :, 1].T
                some = here.any(axis=1).astype(np.float64)
                base[:, d, :items, size] += np.outer(some, [c.packed_bytes for c in choices])


def _cut_constants(problem: Problem, cuts: tuple[Cut, ...], on_device: np.ndarray) -> tuple[np.ndarray, ...]:
    """[cuts, BASE] of what no choice changes, [cuts] bits of uncompressed parameters and [cuts] parameter
    count."""
    graph = problem.graph
    constant = np.zeros((len(cuts), len(BASE)))
    for side, loads, cycles, seconds in (
        (on_device, problem.fixed_device, DC, DS),
        (1.0 - on_device, problem.fixed_server, SC, SS),
    ):
        values = [
            (loads[u.name].cycles, loads[u.name].seconds) if u.name in loads else (0.0, 0.0)
            for u in graph.units
        ]
        constant[:, [cycles, seconds]] += side @ np.array(values).reshape(-1, 2)
    bits, numel = np.zeros(len(cuts)), np.zeros(len(cuts))
    layers = {layer.name: layer.numel for layer in graph.layers}
    for c, cut in enumerate(cuts):
        device = set(cut.device)
        here = [u for u in graph.units if u.name in device]
        there = [u for u in graph.units if u.name not in device]
        for units, column in ((here, DB), (there, SB)):
            constant[c, column] += sum(graph.parameters[n] for n in {n for u in units for n in u.parameters})
        lost = lost_sizes(graph, frozenset(device), cut.tensors)
        constant[c, WIRE] += header_bytes(len(lost) + 1) if lost else 0
        bits[c] = 8.0 * constant[c, DB]
        numel[c] = sum(graph.parameter_numel[n] for n in {n for u in here for n in u.parameters})
        numel[c] += sum(layers[name] for name in {u.layer for u in here if u.layer is not None})
        constant[c, DB] += peak_activation_bytes(graph, cut.device, graph.inputs)
        if there:
            constant[c, SB] += peak_activation_bytes(graph, (u.name for u in there), cut.tensors)
    return constant, bits, numel


def _states(problem: Problem, goals: set[str]) -> tuple[State, ...]:
    """Clock and power states worth trying. Without an energy in a row or in the objective the fastest is best
    at everything; without the server's energy so is the server's highest clock."""
    device, server, link = problem.device, problem.server, problem.link
    device_clocks = device.clocks_hz if goals & {"energy", "total_energy"} else device.clocks_hz[-1:]
    server_clocks = server.clocks_hz if goals & {"server_energy", "total_energy"} else server.clocks_hz[-1:]
    powers = link.transmit_w if goals & {"energy", "total_energy"} else (max(link.transmit_w),)
    if link.bandwidth_hz is None or link.snr_per_w is None:
        powers = (min(link.transmit_w),)  # the rate is the same at every power
    product = itertools.product(
        sorted(device_clocks, reverse=True), sorted(server_clocks, reverse=True), sorted(powers)
    )
    return tuple(State(f, g, p, link.rate_bps(p)) for f, g, p in product)


def _state_rows(runs_there: bool, state: State, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """[ROWS, BASE] coefficients and [ROWS] extra constants of one state, ``device_bits_per_weight`` left out.
    ``runs_there``: whether the server runs any unit."""
    device, link, there = problem.device, problem.link, problem.workload.answer == "server"
    papers = problem.search.mode == "analytic"  # [Q]'s energy has no static and no receive term
    static_w, receive_w = (0.0, 0.0) if papers else (device.static_w, link.receive_w)
    per_byte = 8.0 / state.rate_bps
    row = {name: np.zeros(len(BASE)) for name in ROWS}
    extra = dict.fromkeys(ROWS, 0.0)
    row["latency"][[DC, DS, SC, SS, WIRE]] = [1 / state.device_hz, 1.0, 1 / state.server_hz, 1.0, per_byte]
    receive_s, sent = 0.0, 0.0
    if runs_there:
        receive_s = 0.0 if there else 8.0 * problem.answer_bytes / link.downlink_bps
        extra["latency"] = receive_s + (0.5 * link.rtt_s if there else link.rtt_s)
    elif there:  # the answer itself is sent up
        sent = float(problem.answer_bytes)
        extra["latency"] = sent * per_byte + 0.5 * link.rtt_s
    row["energy"] = static_w * row["latency"]
    row["energy"][DC] += device.energy_coefficient * state.device_hz**2
    row["energy"][WIRE] += state.transmit_w * per_byte
    extra["energy"] = static_w * extra["latency"] + receive_w * receive_s
    extra["energy"] += state.transmit_w * per_byte * sent
    row["server_energy"][SC] = problem.server.energy_coefficient * state.server_hz**2
    row["total_energy"] = row["energy"] + row["server_energy"]
    extra["total_energy"] = extra["energy"]
    row["device_memory"][[DB, WIRE]] = 1.0
    extra["device_memory"] = sent
    row["server_memory"][[SB, WIRE]] = 1.0
    row["uplink"][WIRE] = 1.0
    extra["uplink"] = sent
    row["distortion"][E] = 1.0
    return np.stack([row[name] for name in ROWS]), np.array([extra[name] for name in ROWS])


def optimistic_rows(problem: Problem, goals: set[str]) -> tuple[np.ndarray, np.ndarray]:
    """[ROWS, BASE] and [ROWS]: the least of all states, for a cut with units on both sides."""
    rows, extra = zip(*(_state_rows(True, state, problem) for state in _states(problem, goals)), strict=True)
    return np.min(rows, axis=0), np.min(extra, axis=0)


def _pairs(
    sides: list[tuple[bool, bool]], states: tuple[State, ...], answer_there: bool
) -> tuple[list[int], list[int]]:
    """Cut and state of each pair; a clock that drives nothing and a power that sends nothing have one state
    each."""
    pair_cut, pair_state = [], []
    for c, (here, there) in enumerate(sides):
        seen = set()
        for s, state in enumerate(states):
            key = (
                here and state.device_hz,
                there and state.server_hz,
                (there or answer_there) and state.transmit_w,
            )
            if key not in seen:
                seen.add(key)
                pair_cut.append(c)
                pair_state.append(s)
    return pair_cut, pair_state


def _weigh(
    problem: Problem,
    states: tuple[State, ...],
    sides: list[tuple[bool, bool]],
    constant: np.ndarray,
    bits: np.ndarray,
    numel: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """pair_cut, pair_state, rows and constants of a table: what depends on link, clocks and power."""
    pair_cut, pair_state = _pairs(sides, states, problem.workload.answer == "server")
    per_state = [[_state_rows(there, state, problem) for state in states] for there in (False, True)]
    made = [per_state[sides[c][1]][s] for c, s in zip(pair_cut, pair_state, strict=True)]
    rows, extra = (np.stack(part) for part in zip(*made, strict=True))
    constants = (rows @ constant[pair_cut][:, :, None])[..., 0] + extra
    counted, r = np.maximum(numel, 1.0)[pair_cut], ROWS.index("device_bits_per_weight")
    rows[:, r, DB] = np.where(numel[pair_cut] > 0, 8.0 / counted, 0.0)
    constants[:, r] = bits[pair_cut] / counted  # parameters only, no activations
    return np.array(pair_cut), np.array(pair_state), rows, constants


def make_table(problem: Problem, goals: Mapping[str, float] | set[str]) -> Table:
    """Compiles a problem. ``goals``: the rows that are limited or minimized; they decide which states are
    tried."""
    check_problem(problem)
    cuts, over = choose_cuts(problem)
    decisions = layer_decisions(problem)
    # an empty decision is harmless, and one stands where there is nothing else to decide
    tensor_count = max(0 if decisions else 1, *(len(cut.tensors) for cut in cuts))
    sizes = [len(problem.choices[names[0]]) for names in decisions]
    sizes += [len(problem.cut_options[name]) for cut in cuts for name in cut.tensors]
    shape = (len(cuts), len(decisions) + tensor_count, max(sizes, default=1))
    base, valid = np.zeros((*shape, len(BASE))), np.zeros(shape, dtype=bool)
    on_device = np.zeros((len(cuts), len(problem.graph.units)))
    for c, cut in enumerate(cuts):
        device = set(cut.device)
        on_device[c] = [unit.name in device for unit in problem.graph.units]
        for t in range(tensor_count):
            options = problem.cut_options[cut.tensors[t]] if t < len(cut.tensors) else ()
            d = len(decisions) + t
            valid[c, d, : max(1, len(options))] = True
            for i, option in enumerate(options):
                base[c, d, i, [E, WIRE]] = option.distortion, option.wire_bytes
    _fill_layers(problem, decisions, on_device, base, valid)
    coupled = couple(problem, decisions, cuts, valid)
    constant, bits, numel = _cut_constants(problem, cuts, on_device)
    sides = [(bool(own.any()), not own.all()) for own in on_device]
    states = _states(problem, set(goals))
    weighed = _weigh(problem, states, sides, constant, bits, numel)
    return Table(
        problem, cuts, over, decisions, tuple(cut.tensors for cut in cuts), base, valid, coupled,
        base.max(axis=2, initial=0.0).sum(axis=1), constant, bits, numel,
        tuple(sorted(goals)), states, *weighed,
    )  # fmt: skip
