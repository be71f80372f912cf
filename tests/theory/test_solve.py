"""The solver against trying everything, its promises on budgets, and its behavior in plain cases."""

from dataclasses import replace

import numpy as np
import pytest
from brute_force import best_value, least_relaxation, random_problem

from torchcoinfer.errors import InfeasibleBudget
from torchcoinfer.theory.budget import Budget
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


@pytest.mark.parametrize("seed", range(40))
def test_equals_brute_force_over_all_frontiers(seed):
    assert_equals_brute_force(seed, units=7)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(40, 1040, 100))
def test_equals_brute_force_over_all_frontiers_in_bulk(first):
    for seed in range(first, first + 100):
        assert_equals_brute_force(seed)
