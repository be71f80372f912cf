"""The papers' choices: one option for the whole part on the device (``Search(mode="analytic")``).

[Q] takes one bit-width, [P*] one pruned share for both parts, with linear work models
(``costs.unit_load(analytic=True)``) and energies without static and receive terms. Clocks and power are
continuous there: beside the profile's states every cut gets the closed form of ``resources``, between the
lowest and the highest of them, wherever a latency and one of the energies are limited.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from torchcoinfer.theory.costs import LinkProfile
from torchcoinfer.theory.options import Option
from torchcoinfer.theory.resources import Allocation, Radio, Stage, least_energy, least_energy_with_link
from torchcoinfer.theory.solve_table import DC, SC, Table

FLOAT_SURVIVORS = 16  # bits from which the survivors of pruning are floating point
_TIGHT = 1.0 - 1e-9  # of the latency: the closed form uses all of it, and rounding must not exceed it


def uniform_tables(table: Table) -> list[Table]:
    """The papers' choices ([Q], [P*]; ``Search(mode="analytic")``): tables for each option that all layers
    have, one over the profile's states and, where there is a closed form, one over its clocks and power.

    A bit-width is taken by every layer with a unit on the device, the others stay uncompressed ([Q]). A
    pruned share alone, survivors in floating point, is taken by all layers on both sides ([P*]).
    """
    discrete = list(_one_option(table))
    continuous = [own for own in map(_with_closed_forms, discrete) if own is not None]
    return discrete + continuous


def _one_option(table: Table) -> Iterator[Table]:
    problem = table.problem
    if not table.decisions:
        yield table
        return
    options = [
        {choice.option: i for i, choice in enumerate(problem.choices[names[0]])} for names in table.decisions
    ]
    common = [option for option in options[0] if all(option in own for own in options)]
    units = {
        layer.name: {u.name for u in problem.graph.units if u.layer == layer.name}
        for layer in problem.graph.layers
    }
    here = [
        [any(units[n] & set(cut.device) for n in names) for names in table.decisions] for cut in table.cuts
    ]
    for option in common:
        valid = table.valid.copy()
        for d, own in enumerate(options):
            valid[:, d] = False
            for c in range(len(table.cuts)):
                taken = here[c][d] or (option.sparsity > 0 and option.bits >= FLOAT_SURVIVORS)
                valid[c, d, own[option] if taken else own[Option()]] = True
        yield replace(table, valid=valid)


def _with_closed_forms(table: Table) -> Table | None:
    """The table over the closed forms' clocks and power, a few pairs a cut; None: none keeps the energy."""
    limits = table.problem.budget.rows()
    energies = [n for n in ("total_energy", "energy") if n in (*limits, table.problem.search.minimize)]
    if "latency" not in limits or not energies:
        return None
    parts = []
    for cut in range(len(table.cuts)):
        for items in _codings(table, cut):
            for energy in energies:
                clocks = _closed_form(table, cut, items, energy)
                if clocks is not None and clocks.energy_j <= limits.get(energy, np.inf):
                    parts.append(_pair(table, cut, clocks))
    if not parts:
        return None
    cuts, states, rows_, constants = zip(*parts, strict=True)
    return replace(
        table,
        states=states,
        pair_cut=np.array(cuts),
        pair_state=np.arange(len(states)),
        rows=np.stack(rows_),
        constant=np.stack(constants),
    )


def _codings(table: Table, cut: int) -> Iterator[np.ndarray]:
    """Items of a cut: its layers' only ones, its tensors all by the same place among their options."""
    valid, first = table.valid[cut], len(table.decisions)
    counts = valid.sum(axis=1)
    for place in range(int(counts[first:].max(initial=1))):
        wanted = np.minimum(np.where(np.arange(len(valid)) < first, 0, place), counts - 1)
        yield np.array([np.flatnonzero(own)[k] for own, k in zip(valid, wanted, strict=True)])


def _closed_form(table: Table, cut: int, items: np.ndarray, energy: str) -> Allocation | None:
    """Clocks and power of least ``energy`` for these items within the budget's latency."""
    problem, pair = table.problem, int(np.flatnonzero(table.pair_cut == cut)[0])
    state, reached = table.states[table.pair_state[pair]], table.evaluate(pair, items)
    chosen = table.base[cut, np.arange(len(items)), items].sum(axis=0) + table.fixed[cut]
    a1, a2, bits = float(chosen[DC]), float(chosen[SC]), 8.0 * reached["uplink"]
    clocked = a1 / state.device_hz + a2 / state.server_hz
    device = Stage(problem.device.energy_coefficient, problem.device.clocks_hz[-1])
    server = Stage(problem.server.energy_coefficient, problem.server.clocks_hz[-1])
    left = problem.budget.rows()["latency"] * _TIGHT - (reached["latency"] - clocked)
    if energy == "energy":  # the server's energy is nobody's: it runs at its highest clock
        left, a2 = left - a2 / server.max_hz, 0.0
    radio = _radio(problem.link)
    if radio is not None:
        left += bits / state.rate_bps
    lowest = (problem.device.clocks_hz[0], problem.server.clocks_hz[0], min(problem.link.transmit_w))
    return _bounded([a1, a2, bits if radio is not None else 0.0], left, (device, server, radio), lowest)


def _radio(link: LinkProfile) -> Radio | None:
    if link.bandwidth_hz is None or link.snr_per_w is None:
        return None
    return Radio(link.bandwidth_hz, link.snr_per_w, max(link.transmit_w))


def _bounded(
    loads: list[float],
    left: float,
    stages: tuple[Stage, Stage, Radio | None],
    lowest: tuple[float, float, float],
) -> Allocation | None:
    """The closed form with clocks and power not below ``lowest``; idle stages run at their highest.

    What would run below its bound runs at it and gives time to the others; with more time in all it would
    want to run even lower, so it stays at its bound.

    Args:
        loads: cycles on the device and on the server, bits on the link.
    """
    device, server, radio = stages
    highest = [device.max_hz, server.max_hz, radio.max_w if radio is not None else lowest[2]]
    chosen = [top if load == 0 else None for load, top in zip(loads, highest, strict=True)]
    while True:
        a1, a2, bits = (load if own is None else 0.0 for load, own in zip(loads, chosen, strict=True))
        if left <= 0:
            return None
        if radio is None:
            found = least_energy(a1, a2, left, device, server)
        else:
            found = least_energy_with_link(a1, bits, a2, left, device, server, radio)
        if found is None:
            return None
        wanted = (found.device_hz, found.server_hz, found.transmit_w)
        low = [k for k in range(3) if chosen[k] is None and wanted[k] < lowest[k]]
        if not low:
            device_hz, server_hz, transmit_w = (
                own if own is not None else free for own, free in zip(chosen, wanted, strict=True)
            )
            return replace(found, device_hz=device_hz, server_hz=server_hz, transmit_w=transmit_w)
        for k in low:
            chosen[k] = lowest[k]
            left -= loads[k] / (radio.rate_bps(lowest[k]) if k == 2 else lowest[k])


def _pair(table: Table, cut: int, clocks: Allocation) -> tuple:
    """Cut, state, rows and constants of one cut at the given clocks and power."""
    problem = table.problem
    one = replace(
        problem,
        device=replace(problem.device, clocks_hz=(clocks.device_hz,)),
        server=replace(problem.server, clocks_hz=(clocks.server_hz,)),
        link=replace(problem.link, transmit_w=(clocks.transmit_w,)),
    )
    own = slice(cut, cut + 1)
    alone = replace(
        table, cuts=table.cuts[own], fixed=table.fixed[own], bits=table.bits[own], numel=table.numel[own]
    )
    weighed = alone.reweighed(one)
    return cut, weighed.states[weighed.pair_state[0]], weighed.rows[0], weighed.constant[0]
