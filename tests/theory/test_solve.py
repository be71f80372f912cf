"""The solver against trying everything, its promises on budgets, and its behavior in plain cases."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from brute_force import ROWS, best_value, enumerate_rows, frontiers, least_relaxation, random_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcoinfer.errors import ArgumentError, InfeasibleBudget
from torchcoinfer.theory import solve_pair
from torchcoinfer.theory.budget import Budget, Search
from torchcoinfer.theory.costs import Load
from torchcoinfer.theory.plan import PREDICTED_OF_ROW, Plan
from torchcoinfer.theory.solve import solve

MINIMIZE = ("distortion", "latency", "energy", "device_memory")


def problem_of_seed(seed: int, units: int = 9):
    rng = np.random.default_rng(seed)
    minimize = str(rng.choice(MINIMIZE, p=(0.7, 0.1, 0.1, 0.1)))
    total = 10.0 ** rng.uniform(-9, 9)
    return random_problem(rng, int(rng.integers(2, units)), int(rng.integers(2, 5)), total, minimize)


def assert_within(plan: Plan, budget: Budget) -> None:
    for name, limit in budget.rows().items():
        assert plan.predicted[PREDICTED_OF_ROW[name]] <= limit


def assert_equals_brute_force(seed: int, units: int = 9) -> None:
    problem = problem_of_seed(seed, units)
    want = best_value(problem)
    try:
        plan = solve(problem)
    except InfeasibleBudget as error:
        assert want == np.inf
        relaxation = least_relaxation(problem)
        for name, limit in problem.budget.rows().items():
            assert getattr(error.attainable, name) == pytest.approx(limit * (1 + relaxation), rel=2e-3)
            assert error.least[name] <= getattr(error.attainable, name)
        assert_within(solve(replace(problem, budget=error.attainable)), error.attainable)
        return
    assert_within(plan, problem.budget)
    got = plan.predicted[PREDICTED_OF_ROW[problem.search.minimize]]
    assert got == pytest.approx(want, rel=1e-9, abs=0.0)
    assert plan.optimality["over"] == "all frontiers"
    assert plan.optimality["gap"] <= 1e-9
    assert plan.optimality["dual_bound"] <= want * (1 + 1e-9)
    assert plan.optimality["lagrangian_bound"] <= want * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(100))
def test_equals_brute_force_over_all_frontiers(seed):
    assert_equals_brute_force(seed, units=7)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 1100, 100))
def test_equals_brute_force_over_all_frontiers_in_bulk(first):
    for seed in range(first, first + 100):
        assert_equals_brute_force(seed)


@pytest.mark.parametrize("seed", range(12))
def test_branch_and_bound_alone_equals_brute_force(seed, monkeypatch):
    """HiGHS has to find what the enumeration of the core finds otherwise."""
    monkeypatch.setattr(solve_pair, "PARTIAL_LIMIT", 0)
    monkeypatch.setattr(solve_pair, "CORE_LIMIT", 1)
    assert_equals_brute_force(seed, units=6)


@pytest.mark.parametrize("seed", range(10))
def test_distortions_over_twenty_decades_in_one_table(seed):
    rng = np.random.default_rng(1000 + seed)
    problem = problem_of_seed(seed, 7)
    choices = {
        name: (own[0], *(replace(c, distortion=float(10.0 ** rng.uniform(-12, 8))) for c in own[1:]))
        for name, own in problem.choices.items()
    }
    problem = replace(problem, choices=choices, search=Search(gap=0.0))
    want = best_value(problem)
    if np.isfinite(want):
        assert solve(problem).predicted["distortion"] == pytest.approx(want, rel=1e-9, abs=0.0)
        assert solve(replace(problem, frontier_limit=0)).optimality["dual_bound"] <= want * (1 + 1e-9)
    else:
        with pytest.raises(InfeasibleBudget):
            solve(problem)


@pytest.mark.parametrize("exponent", (-9, -4, 4, 9))
def test_the_scale_of_the_distortions_changes_nothing(exponent):
    problem = problem_of_seed(3, 7)
    factor = 10.0**exponent
    scaled = replace(
        problem,
        choices={
            name: tuple(replace(c, distortion=c.distortion * factor) for c in choices)
            for name, choices in problem.choices.items()
        },
        cut_options={
            name: tuple(replace(o, distortion=o.distortion * factor) for o in options)
            for name, options in problem.cut_options.items()
        },
    )
    budget = Budget(device_memory=problem.budget.as_dict().get("device_memory", 1e6))
    one, other = solve(replace(problem, budget=budget)), solve(replace(scaled, budget=budget))
    assert other.predicted["distortion"] == pytest.approx(one.predicted["distortion"] * factor, rel=1e-9)


@pytest.mark.parametrize("seconds", (-6, 6))
@pytest.mark.parametrize("size", (3, 9))
def test_rows_over_many_decades_change_nothing(seconds, size):
    """The same problem in other units of time and of bytes has the same plan."""
    time, bytes_ = 10.0**seconds, 10.0**size
    for seed in range(6):
        problem = replace(problem_of_seed(seed, 6), search=Search(gap=0.0))
        limits = {"latency": 0.3, "device_memory": 5e4}
        scale = {"latency": time, "device_memory": bytes_}

        def loads(own, time=time):
            return tuple(Load(load.cycles * time, load.seconds * time) for load in own)

        def tensor(own, bytes_=bytes_):
            return replace(own, nbytes=own.nbytes * bytes_)

        graph = replace(
            problem.graph,
            tensors={name: tensor(t) for name, t in problem.graph.tensors.items()},
            parameters={name: b * bytes_ for name, b in problem.graph.parameters.items()},
        )
        faster = bytes_ / time
        scaled = replace(
            problem,
            graph=graph,
            choices={
                name: tuple(
                    replace(
                        c,
                        packed_bytes=c.packed_bytes * bytes_,
                        device=loads(c.device),
                        server=loads(c.server),
                    )
                    for c in own
                )
                for name, own in problem.choices.items()
            },
            cut_options={
                name: tuple(replace(o, wire_bytes=o.wire_bytes * bytes_) for o in own)
                for name, own in problem.cut_options.items()
            },
            fixed_device={name: loads([load])[0] for name, load in problem.fixed_device.items()},
            fixed_server={name: loads([load])[0] for name, load in problem.fixed_server.items()},
            link=replace(
                problem.link,
                bandwidth_hz=problem.link.bandwidth_hz * faster,
                downlink_bps=problem.link.downlink_bps * faster,
                rtt_s=problem.link.rtt_s * time,
            ),
            answer_bytes=problem.answer_bytes * bytes_,
            device=replace(problem.device, memory_bytes=1e30),
            server=replace(problem.server, memory_bytes=1e30),
        )
        one = outcome(replace(problem, budget=Budget(**limits)))
        other = outcome(replace(scaled, budget=Budget(**{n: v * scale[n] for n, v in limits.items()})))
        assert one[0] == other[0]
        assert one[1] == pytest.approx(other[1], rel=1e-3 if one[0] == "relaxed" else 1e-9)


def outcome(problem):
    try:
        return "plan", solve(problem).predicted["distortion"]
    except InfeasibleBudget as error:
        return "relaxed", error.attainable.latency / problem.budget.latency


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(1.0, 3.0))
def test_a_larger_budget_is_never_worse(seed, factor):
    problem = problem_of_seed(seed, 6)
    larger = Budget(**{name: value * factor for name, value in problem.budget.as_dict().items()})
    name = PREDICTED_OF_ROW[problem.search.minimize]
    try:
        plan = solve(problem)
    except InfeasibleBudget as error:
        assert_within(solve(replace(problem, budget=error.attainable)), error.attainable)
        return
    better = solve(replace(problem, budget=larger))
    assert_within(better, larger)
    assert better.predicted[name] <= plan.predicted[name] * (1 + 1e-9)


def test_equal_inputs_give_equal_bytes():
    for seed in range(6):
        problem = replace(problem_of_seed(seed, 7), budget=Budget(latency=10.0, device_memory=1e6))
        assert solve(problem).to_json() == solve(problem).to_json()
        assert Plan.from_json(solve(problem).to_json()) == solve(problem)


def test_what_fits_stays_uncompressed_and_is_as_fast_as_can_be():
    for seed in range(8):
        problem = problem_of_seed(seed, 6)
        problem = replace(problem, budget=Budget(latency=1e6), search=Search(gap=0.0))
        plan = solve(problem)
        assert plan.predicted["distortion"] == 0.0
        assert all(layer.format == "float" for layer in plan.layers.values())
        uncompressed = replace(
            problem,
            choices={name: choices[:1] for name, choices in problem.choices.items()},
            cut_options={name: options[:1] for name, options in problem.cut_options.items()},
            search=Search(gap=0.0, minimize="latency"),
        )
        assert plan.predicted["latency_s"] == pytest.approx(best_value(uncompressed), rel=1e-12)


def test_a_fixed_cut_is_obeyed_and_an_unknown_one_is_named():
    problem = replace(problem_of_seed(1, 8), budget=Budget(latency=1e6))
    for name in ("device", "server", problem.graph.units[0].name):
        plan = solve(replace(problem, search=Search(cut=name)))
        assert plan.cut.name == name
        assert plan.optimality["over"] == "the fixed cut"
    assert {layer.side for layer in solve(replace(problem, search=Search(cut="device"))).layers.values()} == {
        "device"
    }
    with pytest.raises(ArgumentError, match="no cut of this name.*'nowhere'.*'device'"):
        solve(replace(problem, search=Search(cut="nowhere")))


def test_a_group_of_layers_takes_one_option():
    seen = 0
    for seed in range(40):
        problem = problem_of_seed(seed, 8)
        members = [layer.name for layer in problem.graph.layers if layer.group]
        if len(members) > 1:
            budget = Budget(device_bits_per_weight=12.0)
            plan = solve(replace(problem, budget=budget, search=Search(cut="device")))
            assert len({plan.layers[name].bits for name in members}) == 1
            seen += 1
    assert seen > 3


def test_device_bits_per_weight_counts_all_parameters_on_the_device():
    problem = problem_of_seed(2, 8)
    budget = Budget(device_bits_per_weight=14.0)
    plan = solve(replace(problem, budget=budget, search=Search(cut="device", gap=0.0)))
    graph = problem.graph
    total = sum(layer.packed_bytes for layer in plan.layers.values()) + sum(graph.parameters.values())
    numel = sum(layer.numel for layer in graph.layers) + sum(graph.parameter_numel.values())
    assert plan.predicted["device_bits_per_weight"] == pytest.approx(8 * total / numel)
    assert 0 < plan.predicted["device_bits_per_weight"] <= 14.0


def test_a_machines_own_memory_is_a_ceiling_that_no_relaxation_lifts():
    problem = problem_of_seed(4, 7)
    roomy = solve(replace(problem, budget=Budget(latency=1e6), search=Search(cut="device", gap=0.0)))
    ceiling = roomy.predicted["device_bytes"] * 0.8
    small = replace(problem, device=replace(problem.device, memory_bytes=ceiling))
    plan = solve(replace(small, budget=Budget(latency=1e6), search=Search(cut="device", gap=0.0)))
    assert plan.predicted["device_bytes"] <= ceiling
    with pytest.raises(InfeasibleBudget) as info:
        solve(replace(small, budget=Budget(latency=1e-6), search=Search(cut="device", gap=0.0)))
    again = solve(replace(small, budget=info.value.attainable, search=Search(cut="device", gap=0.0)))
    assert again.predicted["device_bytes"] <= ceiling
    tiny = replace(problem, device=replace(problem.device, memory_bytes=10.0))
    with pytest.raises(InfeasibleBudget) as info:
        solve(replace(tiny, budget=Budget(latency=1.0), search=Search(cut="device")))
    assert info.value.attainable is None


def test_an_impossible_budget_says_what_would_do():
    problem = replace(problem_of_seed(5, 7), budget=Budget(latency=1e-6, device_memory=2e3))
    with pytest.raises(InfeasibleBudget) as info:
        solve(problem)
    error = info.value
    assert isinstance(error, ValueError)
    assert set(error.least) == {"latency", "device_memory"}
    ratios = [getattr(error.attainable, n) / v for n, v in problem.budget.as_dict().items()]
    assert ratios[0] == pytest.approx(ratios[1], rel=2e-3)
    assert_within(solve(replace(problem, budget=error.attainable)), error.attainable)
    for name, value in error.least.items():
        alone = replace(problem, budget=Budget(**{name: value * (1 + 1e-12)}))
        assert_within(solve(alone), alone.budget)


@pytest.mark.parametrize("seed", range(100, 116))
def test_placement_in_the_integer_program_equals_brute_force_over_all_frontiers(seed):
    problem = replace(problem_of_seed(seed, 7), frontier_limit=0)
    want = best_value(problem)
    if want == np.inf:
        with pytest.raises(InfeasibleBudget):
            solve(problem)
        return
    plan = solve(problem)
    assert_within(plan, problem.budget)
    got = plan.predicted[PREDICTED_OF_ROW[problem.search.minimize]]
    assert got == pytest.approx(want, rel=1e-9, abs=0.0)
    assert plan.optimality["over"] == "all frontiers"
    assert plan.optimality["gap"] <= 1e-9


def one_option_everywhere(problem, option_index):
    """The papers' problem for one option: everything on the device takes it; brute force over the rest."""
    limits, best = problem.budget.rows(), np.inf
    for device in frontiers(problem.graph):
        choices = {}
        for layer in problem.graph.layers:
            here = any(u.layer == layer.name and u.name in device for u in problem.graph.units)
            choices[layer.name] = (problem.choices[layer.name][option_index if here else 0],)
        own = replace(problem, choices=choices)
        for f, g, p in itertools.product(own.device.clocks_hz, own.server.clocks_hz, own.link.transmit_w):
            table = enumerate_rows(own, device, f, g, p)
            fits = np.all([table[:, ROWS.index(n)] <= v for n, v in limits.items()], axis=0)
            best = min(best, table[fits, -1].min(initial=np.inf))
    return best


@pytest.mark.parametrize("seed", range(10))
def test_the_papers_mode_takes_one_option_for_the_device(seed):
    problem = problem_of_seed(seed, 6)
    for layer in problem.graph.layers:
        object.__setattr__(layer, "group", None)
    problem = replace(
        problem,
        search=Search(mode="analytic", gap=0.0),
        device=replace(problem.device, static_w=0.0),
        link=replace(problem.link, receive_w=0.0),
    )
    options = min(len(choices) for choices in problem.choices.values()) if problem.choices else 0
    want = min(one_option_everywhere(problem, k) for k in range(max(options, 1)))
    if want == np.inf:
        with pytest.raises(InfeasibleBudget) as info:
            solve(problem)
        assert_within(solve(replace(problem, budget=info.value.attainable)), info.value.attainable)
        return
    plan = solve(problem)
    assert_within(plan, problem.budget)
    assert plan.predicted["distortion"] == pytest.approx(want, rel=1e-9, abs=0.0)
    taken = {(p.bits, p.format) for p in plan.layers.values() if p.side != "server"}
    assert len(taken) <= 1


@pytest.mark.parametrize(
    "budget",
    [
        Budget(latency=1e-30),
        Budget(latency=1e-300, device_memory=1e-300),
        Budget(uplink=0, device_memory=1e-3),
        Budget(uplink=0, server_memory=0, latency=1e-9),
        Budget(distortion=0, device_bits_per_weight=1e-6, uplink=0),
        Budget(latency=1e-3, energy=1e-12, server_energy=0, total_energy=1e-12, device_memory=1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("seed", range(4))
def test_absurd_budgets_are_refused_with_one_that_works(seed, budget):
    problem = replace(problem_of_seed(seed, 7), search=Search(), budget=budget)
    try:
        assert_within(solve(problem), budget)
    except InfeasibleBudget as error:
        assert_within(solve(replace(problem, budget=error.attainable)), error.attainable)
        assert all(np.isfinite(value) for value in error.least.values())
