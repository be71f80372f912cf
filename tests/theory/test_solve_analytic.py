"""``Search(mode="analytic")`` on a chain with [Q]'s constants equals the papers' own problem: one width (or
one pruned share), continuous clocks, with and without the link."""

from dataclasses import replace

import numpy as np
import pytest

from torchcoinfer.errors import InfeasibleBudget
from torchcoinfer.theory.alternatives import explored
from torchcoinfer.theory.bounds import pruning_l1
from torchcoinfer.theory.budget import Budget, Search
from torchcoinfer.theory.costs import LinkProfile
from torchcoinfer.theory.graph import Graph, Layer, Tensor, Unit
from torchcoinfer.theory.options import Option
from torchcoinfer.theory.papers import PaperProblem, joint_design
from torchcoinfer.theory.papers_tables import (
    Q_DEVICE_PROFILE,
    Q_NO_LINK,
    Q_SERVER_PROFILE,
    Q_SYSTEM,
    Split,
    bit_levels,
    pruning_levels,
)
from torchcoinfer.theory.resources import Allocation, Radio
from torchcoinfer.theory.solve import build_problem, solve

BITS = (2, 3, 4, 5, 6, 8, 32)
LINK = LinkProfile("air", 1e8, 1e18, 0.0, (0.001, 0.2), 0.0, "test", 20e6, 495.0)
RADIO = Radio(20e6, 495.0, 0.2)


def chain(rng, layers=5):
    """Linear layers in a row, 10^7 to 10^8 FLOPs each."""
    units, tensors, made = [], {"x": Tensor("x", (1, 500), "float32", 2000)}, []
    source = "x"
    for i in range(layers):
        size = int(rng.integers(50, 20000))
        tensors[f"u{i}:0"] = Tensor(f"u{i}:0", (1, size), "float32", 4 * size)
        units.append(
            Unit(f"u{i}", "linear", (source,), (f"u{i}:0",), float(10 ** rng.uniform(7, 8)), f"u{i}")
        )
        made.append(Layer(f"u{i}", "linear", 64, 64, 4 * 64 * 64, (f"u{i}",)))
        source = f"u{i}:0"
    return Graph(("x",), (source,), tensors, tuple(units), tuple(made), {}, {})


def option(bits):
    return Option() if bits == 32 else Option(bits, 0.0, "int", 64, False, None, "nearest")


def both(seed, link):
    """The problem of the solver, and the papers' table with the same numbers."""
    rng = np.random.default_rng(seed)
    graph = chain(rng)
    curves = {
        layer.name: [(option(b), float(4.0**-b * rng.lognormal(0, 0.5))) for b in BITS[:-1]]
        for layer in graph.layers
    }
    flops = [unit.flops for unit in graph.units]
    splits, table = [], []
    for k in range(len(flops) + 1):  # the first k layers on the device
        sent = 0.0 if k == len(flops) else graph.tensors[graph.units[k].inputs[0]].nbytes
        name = "server" if k == 0 else "device" if k == len(flops) else f"u{k - 1}"
        header = 0.0 if k == len(flops) else 28.0  # one tensor of rank 2
        splits.append(Split(name, sum(flops[:k]), 8.0 * (sent + header), sum(flops[k:])))
        errors = [[dict(curves[f"u{i}"]).get(option(b), 0.0) for i in range(k)] for b in BITS]
        table.append([float(np.sum(own)) for own in errors])
    seconds = sum(flops) / 32 / 2e9 * rng.uniform(0.1, 1.5)
    joules = sum(flops) / 32 * 2e-29 * 4e18 * 10 ** rng.uniform(-2.5, 0)
    system = replace(Q_SYSTEM, radio=None if link is Q_NO_LINK else RADIO)
    paper = PaperProblem(tuple(splits), bit_levels(BITS), np.array(table), seconds, joules, system)
    problem = build_problem(
        graph,
        curves,
        {},
        Q_DEVICE_PROFILE,
        Q_SERVER_PROFILE,
        link,
        Budget(latency=seconds, total_energy=joules),
        Search(mode="analytic", cut_bits=(None,), gap=0.0),
    )
    return problem, paper


@pytest.mark.parametrize("link", [Q_NO_LINK, LINK], ids=["as [Q]", "with the link"])
@pytest.mark.parametrize("seed", range(5))
def test_the_solver_in_analytic_mode_solves_the_papers_problem(seed, link):
    problem, paper = both(seed, link)
    want = joint_design(paper)
    if want is None:
        with pytest.raises(InfeasibleBudget) as info:
            solve(problem)
        solve(replace(problem, budget=info.value.attainable))
        return
    plan = solve(problem)
    assert plan.predicted["distortion"] == pytest.approx(want.distortion, rel=1e-9, abs=1e-300)
    assert plan.predicted["latency_s"] <= paper.latency_s
    assert plan.predicted["total_energy_j"] <= paper.energy_j
    widths = {row.bits for row in plan.layers.values() if row.side == "device"}
    assert len(widths) <= 1
    assert all(row.format == "float" for row in plan.layers.values() if row.side == "server")
    assert plan.resources["device_hz"] <= 2e9
    assert plan.resources["server_hz"] <= 10e9


@pytest.mark.parametrize("seed", range(4))
def test_one_pruned_share_for_both_parts(seed):
    shares, (problem, paper) = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9), both(seed, LINK)
    pruned = [Option(32, share, "bitmap", algorithm="nearest") if share else Option() for share in shares]
    errors = np.array([[float(pruning_l1(share)) * (1 + i) for share in shares] for i in range(5)])
    paper = replace(
        paper, levels=pruning_levels(shares), distortion=np.tile(errors.sum(axis=0), (len(paper.splits), 1))
    )
    problem = build_problem(
        problem.graph,
        {f"u{i}": list(zip(pruned[1:], errors[i, 1:].tolist())) for i in range(5)},
        {},
        problem.device,
        problem.server,
        problem.link,
        problem.budget,
        problem.search,
    )
    want = joint_design(paper)
    if want is None:
        with pytest.raises(InfeasibleBudget):
            solve(problem)
        return
    plan = solve(problem)
    assert plan.predicted["distortion"] == pytest.approx(want.distortion, rel=1e-9)
    assert {row.sparsity for row in plan.layers.values()} == {shares[want.level]}
    assert plan.predicted["latency_s"] <= paper.latency_s
    assert plan.predicted["total_energy_j"] <= paper.energy_j


def test_a_plan_between_the_states_can_be_compared_with_its_alternatives():
    problem, _ = both(0, LINK)
    plan = solve(problem)
    assert plan.resources["device_hz"] not in problem.device.clocks_hz
    told = explored(problem, plan).alternatives
    assert told["cuts"][0]["name"] == plan.cut.name
    assert {row["name"] for row in told["cuts"]} >= {"device", "server"}


def test_continuous_clocks_reach_a_width_that_the_states_cannot():
    gained = 0
    for seed in range(3):
        problem, paper = both(seed, Q_NO_LINK)
        states = PaperProblem(paper.splits, paper.levels, paper.distortion, paper.latency_s, paper.energy_j)
        best = min(
            (
                states.distortion[s, k]
                for s in range(len(states.splits))
                for k in range(len(states.levels))
                for f in problem.device.clocks_hz
                for g in problem.server.clocks_hz
                if states.keeps(states.spent(s, k, Allocation(0.0, 0.0, f, g)))
            ),
            default=np.inf,
        )
        try:
            found = solve(problem).predicted["distortion"]
        except InfeasibleBudget:
            found = np.inf
        assert found <= best * (1 + 1e-9)
        gained += found < best * (1 - 1e-9)
    assert gained > 0


@pytest.mark.parametrize("seed", range(3))
def test_least_energy_within_a_latency_and_a_distortion(seed):
    problem, paper = both(seed, LINK)
    ceiling = float(np.median(paper.distortion))
    budget = Budget(latency=paper.latency_s, distortion=ceiling)
    search = replace(problem.search, minimize="energy")
    cells = [(s, k) for s in range(len(paper.splits)) for k in range(len(BITS))]
    server = paper.splits[0].server_flops  # the device's own energy: the server's costs nothing
    free = replace(Q_SYSTEM.server, coefficient=1e-60)
    own = PaperProblem(
        paper.splits, paper.levels, paper.distortion, paper.latency_s, 1.0, replace(paper.system, server=free)
    )
    least = [own.least_energy(*cell) for cell in cells if paper.distortion[cell] <= ceiling]
    want = min((found.energy_j for found in least if found is not None), default=np.inf)
    assert server > 0
    if want == np.inf:
        with pytest.raises(InfeasibleBudget):
            solve(replace(problem, budget=budget, search=search))
        return
    plan = solve(replace(problem, budget=budget, search=search))
    # not below the lowest clock and power: the closed form may ask for less
    assert plan.predicted["energy_j"] >= want * (1 - 1e-6)
    lowest = plan.resources["device_hz"] <= 2.0001e6 or plan.resources["transmit_w"] <= 0.001001
    assert lowest or plan.predicted["energy_j"] <= want * (1 + 1e-6)


@pytest.mark.parametrize("free", ["device", "server"])
@pytest.mark.parametrize("link", [Q_NO_LINK, LINK], ids=["as [Q]", "with the link"])
def test_a_stage_of_free_energy_is_solved_as_in_the_papers(free, link):
    """A profile may say 0 W/(cycle/s)^3."""
    problem, paper = both(0, link)
    paid = getattr(problem, free)
    problem = replace(problem, **{free: replace(paid, energy_coefficient=0.0)})
    stage = replace(getattr(paper.system, free), coefficient=0.0)
    want = joint_design(replace(paper, system=replace(paper.system, **{free: stage})))
    plan = solve(problem)
    assert plan.predicted["distortion"] == pytest.approx(want.distortion, rel=1e-9, abs=1e-300)
    assert plan.predicted["latency_s"] <= paper.latency_s
    assert plan.predicted["total_energy_j"] <= paper.energy_j
