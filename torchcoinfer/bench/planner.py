"""``torchcoinfer bench planner``: how fast the solver proves a plan on tables of large models.

The tables are made up (random sensitivities, real byte counts and a roofline's times) in the size of Llama 8B
(226 layers, 33 cuts) and of a 70B or mixture-of-experts model (1,200 layers, 81 cuts): 24 options a layer and
four budget rows. Timed are ``solve`` from the problem to the proven plan, and a re-plan for another bandwidth
from fronts that are stored. That the answers are right is tested against brute force, not here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from torchcoinfer.bench.arguments import natural, output_file
from torchcoinfer.report import format_table, write_text
from torchcoinfer.theory.budget import Budget, Search
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.graph import Graph, Layer, Tensor, Unit, make_cut
from torchcoinfer.theory.options import Option
from torchcoinfer.theory.plan import Plan
from torchcoinfer.theory.solve import Problem, build_problem, solve
from torchcoinfer.theory.solve_band import scaled_link
from torchcoinfer.theory.solve_front import Fronts
from torchcoinfer.theory.solve_table import make_table

REPEATS = 5
MOST_LOAD_PER_CORE = 0.5  # above it an absolute time says nothing
TOKENS = 128
PROVEN_GAP = 1e-3
BANDWIDTHS = (0.5, 0.8, 1.25, 2.0, 4.0)  # factors on the link's rates, one a repeat
WIDTHS = (2, 3, 4, 5, 6, 8)
DEVICE = DeviceProfile(
    "a board", (1.0e9, 1.6e9, 2.4e9), 64, 0.5, 3e10, 2e10, 1.5e-28, 3.0, "made up: a bench's board"
)
SERVER = DeviceProfile("a server", (3.0e9,), 4096, 0.5, 8e11, 2e11, 1e-26, 100.0, "made up: a bench's server")
LINK = LinkProfile("a link", 5e7, 1e8, 5e-3, (0.1, 0.4), 0.3, "made up: a bench's link", 1e7, 80.0)


@dataclass(frozen=True)
class Size:
    """A model: ``blocks`` times the (rows, columns) of a block's layers, between an embedding and a head."""

    name: str
    blocks: int
    width: int
    shapes: tuple[tuple[int, int], ...]
    goal_s: float


SIZES = (
    Size(
        "Llama 8B",
        32,
        4096,
        (*((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)), *((14336, 4096),) * 2, (4096, 14336)),
        2.0,
    ),
    Size("70B or MoE", 80, 8192, (*((8192, 8192),) * 4, *((3584, 8192),) * 7, *((8192, 3584),) * 4), 10.0),
)
REPLAN_GOAL_S = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer bench planner``."""
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0], help="tables to make up, one a seed")
    parser.add_argument("--output", type=output_file, help="file for the JSON rows, one a line")


def main(arguments: argparse.Namespace) -> int:
    """Time every size; print a table and write JSON rows where asked."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(f"load per core before the start: {load:.2f} (judged below {MOST_LOAD_PER_CORE})")
    rows = []
    for size in SIZES:
        for seed in arguments.seeds:
            rows += [_verdict(row, load) for row in measure(size, seed)]
    columns = ("what", "units", "cuts", "pairs", "median_s", "goal_s", "gap", "verdict")
    print(format_table(rows, columns))
    if arguments.output:
        lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        print(f"wrote {write_text(Path(arguments.output), lines)}")
    return 0


def made_problem(size: Size, seed: int) -> Problem:
    """A table of this size whose budget is met by about 4 bits a weight with a third of it on the device."""
    rng = np.random.default_rng(seed)
    graph = _graph(size)
    options = [
        *(Option(bits, 0.0, "int", group) for bits in WIDTHS for group in (32, 64, 128)),
        *(Option(bits, 0.5, "2:4", 64) for bits in WIDTHS[1:]),
    ]
    curves = {}
    for layer in graph.layers:
        scale = float(rng.lognormal(0.0, 1.2)) / len(graph.layers)
        noise = rng.lognormal(0.0, 0.1, len(options)).tolist()
        curves[layer.name] = [(o, scale * _distortion(o) * n) for o, n in zip(options, noise, strict=True)]
    cut_curves = {
        name: [(bits, 0.05 * 4.0**-bits * float(rng.lognormal(0.0, 0.5))) for bits in (4, 6, 8)]
        for name in graph.tensors
        if name != "tokens"
    }
    search = Search(gap=PROVEN_GAP)
    problem = build_problem(graph, curves, cut_curves, DEVICE, SERVER, LINK, Budget(latency=1.0), search)
    names = [unit.name for unit in graph.units]
    ends = [1 + block * len(size.shapes) for block in range(size.blocks + 1)]
    cuts = tuple(make_cut(graph, frozenset(names[:end])) for end in ends)
    problem = replace(problem, cuts=cuts)
    return replace(problem, budget=_budget(problem, cuts[len(cuts) // 3].name))


def _distortion(option: Option) -> float:
    """About what rounding costs: 4^-b, a little more in larger groups, more where half is pruned."""
    pruned = 0.05 if option.sparsity else 0.0
    return 4.0**-option.bits * (1.0 + option.group_size / 256) + pruned


def _graph(size: Size) -> Graph:
    tensors = {"tokens": Tensor("tokens", (1, TOKENS), "int64", 8 * TOKENS)}
    units, layers, previous = [], [], "tokens"

    def add(name: str, kind: str, rows: int, columns: int) -> None:
        nonlocal previous
        layers.append(Layer(name, kind, rows, columns, 2 * rows * columns, (name,)))
        width = columns if kind == "embedding" else rows
        made = Tensor(f"{name}#0:0", (1, TOKENS, width), "float16", 2 * TOKENS * width, 2)
        flops = 0.0 if kind == "embedding" else 2.0 * rows * columns * TOKENS
        units.append(Unit(f"{name}#0", kind, (previous,), (made.name,), flops, name))
        tensors[made.name] = made
        previous = made.name

    add("embed", "embedding", 128_000, size.width)
    for block in range(size.blocks):
        for k, (rows, columns) in enumerate(size.shapes):
            add(f"block{block}.layer{k}", "linear", rows, columns)
    add("head", "linear", 128_000, size.width)
    return Graph(("tokens",), (previous,), tensors, tuple(units), tuple(layers), {}, {})


def _budget(problem: Problem, cut: str) -> Budget:
    """What 4 bits in groups of 64 take at this cut, at the middle clock, and 2 % more: neither side can hold
    the whole model."""
    rows = ("latency", "energy", "device_memory", "server_memory")
    own = replace(problem, search=replace(problem.search, cut=cut))
    table = make_table(own, set(rows))
    items = []
    for names in table.decisions:
        options = [choice.option for choice in problem.choices[names[0]]]
        bits = [abs(option.bits - 4) + abs(option.group_size - 64) / 1000 for option in options]
        items.append(int(np.argmin(bits)))
    items += [0] * (table.base.shape[1] - len(items))
    taken = table.evaluate(len(table.pair_cut) // 2, np.array(items))
    return Budget(**{name: 1.02 * taken[name] for name in rows})


def measure(size: Size, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of one table: the solution from nothing, and re-plans for other bandwidths from stored fronts."""
    problem = made_problem(size, seed)
    shared = {
        "units": len(problem.graph.units), "options": 24, "cuts": len(problem.cuts), "seed": seed,
        "rows": len(problem.budget.rows()), "threads": 1, "machine": platform.machine(),
        "python": platform.python_version(), "numpy": np.__version__,
    }  # fmt: skip
    shared["pairs"] = len(make_table(problem, {*problem.budget.rows(), "distortion"}).pair_cut)
    seconds, plans = _timed([lambda: solve(problem)] * REPEATS)
    goal = {"goal_s": size.goal_s, "goal_gap": PROVEN_GAP}
    yield {"what": f"{size.name}: solve", **shared, **goal, **_spread(seconds), "gap": _gap(plans)}
    started = time.perf_counter()
    fronts = Fronts(problem)
    made_s = time.perf_counter() - started
    links = [scaled_link(problem.link, factor) for factor in BANDWIDTHS]
    seconds, plans = _timed([lambda link=link: fronts.replan(link=link) for link in links])
    row = {"what": f"{size.name}: re-plan", **shared, "goal_s": REPLAN_GOAL_S, **_spread(seconds)}
    yield {**row, "gap": _gap(plans), "fronts_s": made_s}


def _timed(calls: list[Callable[[], Plan]]) -> tuple[list[float], list[Plan]]:
    seconds, plans = [], []
    for call in calls:
        started = time.perf_counter()
        plans.append(call())
        seconds.append(time.perf_counter() - started)
    return seconds, plans


def _spread(seconds: list[float]) -> dict[str, Any]:
    return {"median_s": statistics.median(seconds), "max_s": max(seconds), "seconds": seconds}


def _gap(plans: list[Plan]) -> float:
    return max(plan.optimality["gap"] for plan in plans)


def _verdict(row: dict[str, Any], load: float) -> dict[str, Any]:
    """Met or missed, and not judged on a busy machine; a gap that is too large is a miss on any."""
    row = {**row, "load_per_core": load}
    if row["gap"] > row.get("goal_gap", 1.0):
        return {**row, "verdict": "missed: gap"}
    if load >= MOST_LOAD_PER_CORE:
        return {**row, "verdict": f"not judged: load {load:.2f} per core"}
    return {**row, "verdict": "met" if row["median_s"] <= row["goal_s"] else "missed"}
