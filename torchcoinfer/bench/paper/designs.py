"""The joint design and its baselines over a sweep of budgets: [Q]'s bound as published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from torchcoinfer.bench.paper.figure import Figure, Panel, Series
from torchcoinfer.bench.paper.subjects import Subjects
from torchcoinfer.theory.papers import (
    Design,
    PaperProblem,
    feasible_random,
    fixed_frequency,
    joint_design,
    nearest_rounding,
    on_device,
    on_server,
)
from torchcoinfer.theory.papers_tables import Q_MODELS, Q_SYSTEM, PaperModel, Split, bit_levels, gap_table
from torchcoinfer.theory.resources import Allocation

JOINT, JOINT_SPLIT = "joint, split given", "joint, split chosen"
FIXED, RANDOM, DEVICE, SERVER = "fixed frequency", "feasible random", "on the device", "on the server"
DESIGNS = (JOINT_SPLIT, JOINT, FIXED, RANDOM, DEVICE, SERVER)
BITS = tuple(range(2, 17))
DEVICE_SHARE = 0.5  # of the FLOPs; [Q] does not state the split
_SHARES = tuple(round(0.1 * i, 1) for i in range(11))


def found_designs(
    problem: PaperProblem, given: int, clocks: Allocation, draws: int, seed: int = 0
) -> dict[str, list[Design]]:
    """Every design at one budget: one each, ``draws`` of the random one, none where nothing is feasible.

    Args:
        given: the split that the designs without a choice of it take.
        clocks: of the fixed design.
    """
    single = {
        JOINT_SPLIT: joint_design(problem),
        JOINT: joint_design(problem, [given]),
        FIXED: fixed_frequency(problem, clocks, [given]),
        DEVICE: on_device(problem),
        SERVER: on_server(problem),
    }
    found = {name: [design] if design is not None else [] for name, design in single.items()}
    return found | {RANDOM: feasible_random(problem, draws, seed, [given])}


def swept(
    problem: PaperProblem,
    field: str,
    values: Sequence[float],
    given: int,
    clocks: Allocation,
    draws: int,
    value_of: Callable[[Design], float],
) -> tuple[Series, ...]:
    """A line a design over budgets; the random one is a median with its 5-95 % band."""
    rows: dict[str, list[list[float]]] = {name: [] for name in DESIGNS}
    for value in values:
        found = found_designs(replace(problem, **{field: value}), given, clocks, draws)
        for name in DESIGNS:
            rows[name].append([value_of(design) for design in found[name]])
    series = []
    for name, cells in rows.items():
        middles = [float(np.median(cell)) if cell else None for cell in cells]
        band = {}
        if name == RANDOM:
            low, high = ([float(np.quantile(c, q)) if c else None for c in cells] for q in (0.05, 0.95))
            band = {"low": low, "high": high}
        series.append(Series(name, list(values), middles, **band))
    return tuple(series)


def advantages(panel: Panel) -> dict[str, dict[str, object]]:
    """How the joint designs stand against each baseline: where only they are feasible, and the ratios of the
    distortions where both are."""
    facts: dict[str, dict[str, object]] = {}
    for name in (JOINT, FIXED, RANDOM, DEVICE, SERVER):
        own = JOINT if name in (FIXED, RANDOM) else JOINT_SPLIT
        pairs = list(zip(panel[own].x, panel[own].y, panel[name].y))
        both = [(x, mine, other) for x, mine, other in pairs if None not in (mine, other)]
        ratios = [(x, other / mine) for x, mine, other in both if mine > 0]
        facts[name] = {
            "against": own,
            "budgets": len(pairs),
            "only_joint_feasible": sum(mine is not None and other is None for _, mine, other in pairs),
            "worse_than_joint": sum(other > mine * (1 + 1e-12) for _, mine, other in both),
            "better_than_joint": sum(other < mine * (1 - 1e-12) for _, mine, other in both),
            "exact_only_joint": sum(mine == 0 < other for _, mine, other in both),
            "median_ratio": float(np.median([r for _, r in ratios])) if ratios else None,
            "largest_ratio": max((r for _, r in ratios), default=None),
            "largest_ratio_at": max(ratios, key=lambda pair: pair[1])[0] if ratios else None,
        }
    return facts


def draw_designs(subjects: Subjects) -> tuple[Figure, ...]:
    """[Q]'s bound D_U - D_L per weight over T0 and E0, for BLIP-2 and GIT, with [Q]'s constants."""
    return tuple(_analytic(name, model, subjects) for name, model in Q_MODELS.items())


def _analytic(name: str, model: PaperModel, subjects: Subjects) -> Figure:
    count, draws = (5, 20) if subjects.fast else (25, 200)
    splits = tuple(
        Split(f"{share:g}", share * model.flops, 0.0, (1 - share) * model.flops) for share in _SHARES
    )
    given, table = _SHARES.index(DEVICE_SHARE), gap_table(splits, BITS)
    problem = PaperProblem(splits, bit_levels(BITS), table, model.latency_s, model.energy_j)
    nominal = joint_design(problem, [given])
    sweeps = {
        "latency_s": ("T0 (s)", np.geomspace(0.2, 2.0, count) * model.latency_s),
        "energy_j": ("E0 (J)", np.geomspace(0.02, 4.0, count) * model.energy_j),
    }
    panels = []
    for field, (label, values) in sweeps.items():
        other = f"E0 = {model.energy_j:g} J" if field == "latency_s" else f"T0 = {model.latency_s:g} s"
        lines = swept(
            problem, field, values.tolist(), given, nominal.allocation, draws, lambda d: d.distortion
        )
        panels.append(
            Panel(f"over {label}, {other}", label, "D_U - D_L per weight, 1/lambda", lines, "log", "log")
        )
    facts: dict[str, object] = {panel.x_label: advantages(panel) for panel in panels}
    facts["nominal"] = _nominal(problem, nominal)
    facts["rounded_to_nearest"] = _roundings(splits[given], sweeps, model)
    short = name.split()[0].lower()
    settings = {
        "model": model,
        "system": Q_SYSTEM,
        "device_share_given": DEVICE_SHARE,
        "shares": _SHARES,
        "bits": BITS,
        "random_draws": draws,
        "fixed_clocks": nominal.allocation,
    }
    notes = (
        "not stated in [Q], chosen here: lambda (the unit), 32-bit full precision, the split of the FLOPs",
        "fixed frequency: the clocks that are best at the nominal budget; random: median and 5-95 % band",
        "communication is left out, as in [Q]: all on the server is then exact wherever it is feasible",
    )
    return Figure(
        f"designs-{short}",
        f"{name}: [Q]'s bound for the joint design and its baselines",
        "[Q] P1",
        tuple(panels),
        settings,
        facts,
        notes,
    )


def _nominal(problem: PaperProblem, found: Design) -> dict[str, object]:
    chosen = joint_design(problem)
    return {
        own: {
            "bits": problem.levels[design.level].name if problem.splits[design.split].device_flops else None,
            "device_share": problem.splits[design.split].name,
            "allocation": design.allocation,
        }
        for own, design in ((JOINT, found), (JOINT_SPLIT, chosen))
    }


def _roundings(
    split: Split, sweeps: Mapping[str, tuple[str, np.ndarray]], model: PaperModel
) -> dict[str, object]:
    """How often the papers' rounding to nearest breaks a limit over the two sweeps."""
    budgets = [(float(t), model.energy_j) for t in sweeps["latency_s"][1]]
    budgets += [(model.latency_s, float(e)) for e in sweeps["energy_j"][1]]
    found = [(budget, nearest_rounding(split, *budget, BITS[-1])) for budget in budgets]
    broken = [(budget, r) for budget, r in found if r is not None and not r.rounded_is_feasible]
    return {
        "budgets": sum(r is not None for _, r in found),
        "rounded_is_infeasible": len(broken),
        "example": None if not broken else {"latency_s_energy_j": broken[0][0], "rounding": broken[0][1]},
    }
