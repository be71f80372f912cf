"""The joint design and its baselines on real networks: measured output error, link included."""

from __future__ import annotations

import numpy as np

from torchcoinfer.bench.paper.designs import advantages, swept
from torchcoinfer.bench.paper.figure import Figure, Panel, Series
from torchcoinfer.bench.paper.networks import BANDWIDTH_HZ, Measured, pruned_errors, quantized_errors
from torchcoinfer.bench.paper.subjects import Subject, Subjects
from torchcoinfer.theory.options import WEIGHT_BITS
from torchcoinfer.theory.papers import Design, joint_design
from torchcoinfer.theory.resources import Allocation

_SHARES = tuple(round(0.1 * i, 1) for i in range(10))
# budgets in units of the whole network at full precision on the device at its highest clock
_LATENCY, _ENERGY = (0.06, 3.0), (0.003, 2.0)
_NOMINAL = (0.75, 0.3)  # latency, energy
_TIGHT = (0.75, 0.2)  # too little for the server alone: the split matters
_BANDWIDTHS = (0.02, 50.0)  # in units of the network's own


def _subjects(subjects: Subjects) -> list[Subject]:
    return [subjects.autoencoder] if subjects.fast else [subjects.autoencoder, subjects.minilm]


def _quantized(subject: Subject, subjects: Subjects) -> Measured:
    bits = (2, 4, 8) if subjects.fast else WEIGHT_BITS
    key = f"quantized {subject.name}"
    return subjects.once(key, lambda: quantized_errors(subject, bits, subjects.progress))


def draw_trials(subjects: Subjects) -> tuple[Figure, ...]:
    """Measured output error over T0 and E0, one figure a network."""
    return tuple(_trial(_quantized(subject, subjects), subjects) for subject in _subjects(subjects))


def _fixed_clocks(measured: Measured) -> Allocation:
    """The clocks and the power of the nominal budget; half of their maxima where nothing is feasible."""
    problem = measured.problem(*_NOMINAL)
    found, system = joint_design(problem, [measured.middle]), problem.system
    if found is not None:
        return found.allocation
    halves = (0.5 * top for top in (system.device.max_hz, system.server.max_hz, system.radio.max_w))
    return Allocation(0.0, 0.0, *halves)


def _trial(measured: Measured, subjects: Subjects) -> Figure:
    count, draws = (5, 10) if subjects.fast else (20, 100)
    problem, clocks = measured.problem(*_NOMINAL), _fixed_clocks(measured)
    latency_s, energy_j = problem.latency_s, problem.energy_j
    sweeps = {
        "latency_s": ("T0 (s)", np.geomspace(*_LATENCY, count) * measured.device_s, f"E0 = {energy_j:.3g} J"),
        "energy_j": ("E0 (J)", np.geomspace(*_ENERGY, count) * measured.device_j, f"T0 = {latency_s:.3g} s"),
    }
    panels, facts = [], {}
    for field, (label, values, other) in sweeps.items():
        for judged, table in (("choosing data", measured.chosen_on), ("held-out data", measured.judged_on)):
            lines = swept(
                problem,
                field,
                values.tolist(),
                measured.middle,
                clocks,
                draws,
                lambda d, table=table: float(table[d.split, d.level]),
            )
            panel = Panel(
                f"over {label}, {other}, {judged}", label, "relative output error", lines, "log", "symlog"
            )
            facts[f"{label}, {judged}"] = advantages(panel)
            panels.append(panel)
    settings = {
        "network": measured.name,
        "system": problem.system,
        "splits": measured.splits,
        "levels": [level.name for level in measured.levels],
        "split_given": measured.splits[measured.middle].name,
        "fixed_clocks": clocks,
        "random_draws": draws,
        "device_s": measured.device_s,
        "device_j": measured.device_j,
    }
    notes = (
        "chosen on one part of the data, judged on another; on the first the joint design is never worse",
        "full precision has error 0: on the symlog axis the range below 1e-5 is linear",
        "constants of device and server are [Q]'s, the radio is chosen here; energy is the sum of all three",
    )
    name = measured.name.lower()
    return Figure(
        f"trials-{name}",
        f"{measured.name}: measured output error of the joint design and its baselines",
        "[Q] P1 with the link of [P*]",
        tuple(panels),
        settings,
        facts,
        notes,
    )


def draw_splits(subjects: Subjects) -> tuple[Figure, ...]:
    """Measured output error over split point and bandwidth, for one width ([Q]) and one share ([P*])."""
    figures = []
    for subject in _subjects(subjects):
        shares = _SHARES[::3] if subjects.fast else _SHARES
        coded = _quantized(subject, subjects)
        pruned = pruned_errors(subject, coded.splits, shares, subjects.progress)
        problems = {"one bit-width": coded, "one pruned share": pruned}
        figures.append(_splits(subject.name, problems, 3 if subjects.fast else 10))
    return tuple(figures)


def _splits(name: str, problems: dict[str, Measured], count: int) -> Figure:
    times = np.geomspace(*_BANDWIDTHS, count).tolist()
    megahertz = [t * BANDWIDTH_HZ[name] / 1e6 for t in times]
    panels, best, chosen = [], [], []
    for label, measured in problems.items():
        budgets = [measured.problem(*_TIGHT, t) for t in times]
        index = range(len(measured.splits))
        lines = [
            [_judged(measured, joint_design(problem, [split])) for split in index] for problem in budgets
        ]
        shown = sorted({0, count // 2, count - 1})
        panels.append(
            Panel(
                f"{label}: over the split point",
                "split point (0: all on the server)",
                "relative output error",
                tuple(Series(f"{megahertz[i]:.3g} MHz", list(index), lines[i]) for i in shown),
                y_scale="symlog",
            )
        )
        found = [joint_design(problem) for problem in budgets]
        best.append(Series(label, megahertz, [_judged(measured, design) for design in found]))
        chosen.append(Series(label, megahertz, [None if d is None else d.split for d in found]))
    panels += [
        Panel("best split", "bandwidth (MHz)", "relative output error", tuple(best), "log", "symlog"),
        Panel("split chosen", "bandwidth (MHz)", "split point", tuple(chosen), "log"),
    ]
    first = next(iter(problems.values()))
    tight = first.problem(*_TIGHT)
    settings = {
        "network": name,
        "splits": first.splits,
        "latency_s": tight.latency_s,
        "energy_j": tight.energy_j,
        "system": tight.system,
        "bandwidth_mhz": megahertz,
    }
    facts = {
        "chosen": {s.label: [None if i is None else first.splits[i].name for i in s.y] for s in chosen},
        "error": {s.label: s.y for s in best},
    }
    notes = ("a gap in a line: no width (or share) keeps both limits at that split",)
    return Figure(f"splits-{name.lower()}", f"{name}: split point and bandwidth", "[P*] with the link",
                  tuple(panels), settings, facts, notes)  # fmt: skip


def _judged(measured: Measured, design: Design | None) -> float | None:
    return None if design is None else float(measured.judged_on[design.split, design.level])
