"""Re-plans from stored fronts and sweeps of a budget axis, against solving anew."""

from dataclasses import replace

import numpy as np
import pytest
from brute_force import random_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcoinfer.errors import ArgumentError, InfeasibleBudget
from torchcoinfer.theory.budget import Budget, Search
from torchcoinfer.theory.pareto import pareto
from torchcoinfer.theory.plan import PREDICTED_OF_ROW
from torchcoinfer.theory.solve import solve
from torchcoinfer.theory.solve_front import Fronts


def a_problem(seed: int):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, int(rng.integers(3, 8)), 4, 1.0, "distortion")
    weights = sum(layer.weight_bytes for layer in problem.graph.layers)
    budget = Budget(
        latency=float(rng.uniform(0.05, 0.4)), device_memory=weights * float(rng.uniform(0.3, 1.5)) + 1e4
    )
    return replace(problem, budget=budget, search=Search(gap=0.0))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 500), bandwidth=st.floats(0.1, 10.0), looser=st.floats(0.8, 2.0))
def test_a_replan_keeps_the_budget_and_its_bound_is_true(seed, bandwidth, looser):
    problem = a_problem(seed)
    link = replace(problem.link, bandwidth_hz=problem.link.bandwidth_hz * bandwidth)
    budget = replace(problem.budget, latency=problem.budget.latency * looser)
    fronts = Fronts(problem)
    try:
        best = solve(replace(problem, link=link, budget=budget))
    except InfeasibleBudget:
        with pytest.raises(InfeasibleBudget):
            fronts.replan(budget, link=link)
        return
    plan = fronts.replan(budget, link=link)
    for name, limit in budget.rows().items():
        assert plan.predicted[PREDICTED_OF_ROW[name]] <= limit
    optimum, got = best.predicted["distortion"], plan.predicted["distortion"]
    assert got >= optimum * (1 - 1e-9)
    assert plan.optimality["dual_bound"] <= optimum * (1 + 1e-9)
    assert got * (1 - plan.optimality["gap"]) <= optimum * (1 + 1e-9)


def test_most_replans_reach_the_optimum():
    reached, count = 0, 0
    for seed in range(28):
        problem = a_problem(seed)
        device = replace(problem.device, clocks_hz=tuple(0.7 * hz for hz in problem.device.clocks_hz))
        try:
            best = solve(replace(problem, device=device))
        except InfeasibleBudget:
            continue
        count += 1
        got = Fronts(problem).replan(device=device).predicted["distortion"]
        reached += got <= best.predicted["distortion"] * 1.02
    assert count > 14
    assert reached >= 0.8 * count


def test_other_rows_need_other_fronts():
    with pytest.raises(ArgumentError, match="rows of the stored fronts.*energy.*latency.*new Fronts"):
        Fronts(a_problem(0)).replan(Budget(energy=1.0))


def test_a_sweep_is_a_front_between_both_ends():
    for seed in range(6):
        problem = replace(a_problem(seed), search=Search(gap=0.0, cut="device"))
        plans = pareto(replace(problem, budget=Budget(latency=1e6)), "device_memory", 6)
        sizes = [plan.predicted["device_bytes"] for plan in plans]
        errors = [plan.predicted["distortion"] for plan in plans]
        assert sizes == sorted(sizes)
        assert errors == sorted(errors, reverse=True)
        assert len(set(errors)) == len(errors) > 1
        assert errors[-1] == 0.0
        least = replace(problem, search=Search(gap=0.0, cut="device", minimize="device_memory"))
        least = solve(replace(least, budget=Budget(latency=1e6)))
        assert sizes[0] == pytest.approx(least.predicted["device_bytes"], rel=1e-6)
        for plan, size in zip(plans, sizes, strict=True):  # each is the best at its size
            own = solve(replace(problem, budget=Budget(latency=1e6, device_memory=size)))
            assert own.predicted["distortion"] == pytest.approx(plan.predicted["distortion"], rel=1e-9)


def test_a_sweep_along_no_row_is_refused():
    for axis in ("speed", "distortion", "certified_distortion"):
        with pytest.raises(ArgumentError, match="no front along this row"):
            pareto(a_problem(0), axis)
