"""Decisions that must agree in an attribute: the exact minimum, the solver against brute force, refusals."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from brute_force import best_value, least_relaxation, random_problem, with_couplings

from torchcoinfer.errors import ArgumentError, InfeasibleBudget
from torchcoinfer.theory.alternatives import explored
from torchcoinfer.theory.budget import Budget, Search
from torchcoinfer.theory.couplings import Coupled, Coupling
from torchcoinfer.theory.options import Option, packed_bytes
from torchcoinfer.theory.pareto import pareto
from torchcoinfer.theory.plan import PREDICTED_OF_ROW
from torchcoinfer.theory.solve import solve
from torchcoinfer.theory.solve_front import Fronts


def coupled_problem(seed: int, units: int = 5):
    rng = np.random.default_rng(seed)
    minimize = str(rng.choice(("distortion", "distortion", "latency", "device_memory")))
    total = 10.0 ** rng.uniform(-6, 6)
    return with_couplings(rng, random_problem(rng, int(rng.integers(2, units)), 3, total, minimize))


def assert_keeps_couplings(problem, plan) -> None:
    for coupling in problem.couplings:
        layers = [(name, a) for name, a in coupling.members if name in plan.layers]
        assert len({getattr(plan.layers[name].option, a) for name, a in layers}) <= 1


def assert_equals_brute_force(problem) -> None:
    want = best_value(problem)
    try:
        plan = solve(problem)
    except InfeasibleBudget as error:
        assert want == np.inf
        relaxation = least_relaxation(problem)
        for name, limit in problem.budget.rows().items():
            assert getattr(error.attainable, name) == pytest.approx(limit * (1 + relaxation), rel=2e-3)
        return
    for name, limit in problem.budget.rows().items():
        assert plan.predicted[PREDICTED_OF_ROW[name]] <= limit
    got = plan.predicted[PREDICTED_OF_ROW[problem.search.minimize]]
    assert got == pytest.approx(want, rel=1e-9, abs=0.0)
    assert plan.optimality["gap"] <= 1e-9
    assert plan.optimality["dual_bound"] <= want * (1 + 1e-9)
    assert_keeps_couplings(problem, plan)


@pytest.mark.parametrize("seed", range(30))
def test_equals_brute_force(seed):
    assert_equals_brute_force(coupled_problem(seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(30, 230, 50))
def test_equals_brute_force_in_bulk(first):
    for seed in range(first, first + 50):
        assert_equals_brute_force(coupled_problem(seed, 6))


@pytest.mark.parametrize("seed", range(30, 40))
def test_placement_in_the_integer_program_equals_brute_force(seed):
    assert_equals_brute_force(replace(coupled_problem(seed, 4), frontier_limit=0))


def test_the_cases_hold_what_they_should():
    """Tied layers, fused groups, layers in two couplings or in one twice, tensors; pruned and whole plans."""
    seen = set()
    for seed in range(60):
        problem = coupled_problem(seed)
        members = [m for coupling in problem.couplings for m in coupling.members]
        names = [name for name, _ in members]
        seen |= {"tensor"} if any(a == "kept" for _, a in members) else set()
        seen |= {"both"} if any(names.count(name) > 1 for name in names) else set()
        seen |= {"twice" for c in problem.couplings for n in names if [m for m, _ in c.members].count(n) > 1}
        tied = [u.layer for u in problem.graph.units if u.layer]
        seen |= {"tied"} if any(tied.count(name) > 1 for name in names) else set()
        groups = [layer.group for layer in problem.graph.layers if layer.name in names]
        seen |= {"fused"} if groups.count("fused") > 1 else set()
        try:
            kept = {row.kept_rows for row in solve(problem).layers.values()}
        except InfeasibleBudget:
            continue
        seen |= {"pruned"} if 0.5 in kept else {"whole"}
    assert seen == {"tensor", "both", "twice", "tied", "fused", "pruned", "whole"}


def test_the_coupled_minimum_is_the_least_over_all_plans_that_agree():
    rng = np.random.default_rng(0)
    for _ in range(60):
        count, groups, items = int(rng.integers(1, 4)), int(rng.integers(2, 6)), 4
        labels = rng.integers(0, 3, (count, groups, items))
        labels[rng.random((count, groups)) < 0.4] = -1
        labels[:, :, 0][labels[:, :, 0] >= 0] = 0  # something that everybody has
        labels = labels[(labels >= 0).any(axis=(1, 2))]
        scores = rng.normal(size=(groups, items, 3))
        coupled = Coupled(labels)
        best = np.full(3, np.inf)
        for plan in itertools.product(range(items), repeat=groups):
            own = labels[:, np.arange(groups), plan]
            if all(len(set(row[row >= 0].tolist())) <= 1 for row in own):
                best = np.minimum(best, scores[np.arange(groups), plan].sum(axis=0))
        found = coupled.minimum(scores)
        assert scores[np.arange(groups)[:, None], found, np.arange(3)].sum(axis=0) == pytest.approx(best)
        for plan in found.T:
            assert coupled.like(plan)[np.arange(groups), plan].all()


def test_fronts_and_alternatives_keep_couplings():
    checked = 0
    for seed in range(12):
        problem = replace(coupled_problem(seed, 4), search=Search(gap=0.0))
        problem = replace(problem, budget=Budget(latency=1.0, device_memory=2e5))
        try:
            plan = solve(problem)
        except InfeasibleBudget:
            continue
        again = Fronts(problem).replan()
        assert_keeps_couplings(problem, again)
        assert again.predicted["distortion"] >= plan.predicted["distortion"] * (1 - 1e-9)
        assert explored(problem, plan).alternatives["cuts"]
        for point in pareto(problem, "device_memory", 4):
            assert_keeps_couplings(problem, point)
            limits = {name: limit * (1 + 1e-12) for name, limit in point.budget.items()}
            best = best_value(replace(problem, budget=Budget(**limits)))
            assert point.predicted["distortion"] == pytest.approx(best, rel=1e-9, abs=0.0)
            checked += 1
    assert checked > 10


def test_pruned_options_count_what_is_left():
    for bits, sparsity, form, group in ((4, 0.0, "int", 64), (32, 0.0, "float", 0), (4, 0.5, "2:4", 64)):
        option = Option(bits, sparsity, form, group)
        pruned = replace(option, kept_rows=0.5, kept_columns=0.25)
        assert packed_bytes(pruned, 64, 256) == packed_bytes(option, 32, 64)


BAD = [
    ((Coupling("c", (("nobody", "kept_rows"),)),), "has a member that the graph does not have"),
    ((Coupling("c", (("u0", "kept_everything"),)),), "has a member that the graph does not have"),
]


@pytest.mark.parametrize(("couplings", "words"), BAD)
def test_bad_couplings_are_named(couplings, words):
    problem = random_problem(np.random.default_rng(1), 5, 3, 1.0, "distortion")
    problem = replace(problem, budget=Budget(latency=1e3), couplings=couplings)
    with pytest.raises(ArgumentError, match=words):
        solve(problem)


def test_members_without_a_common_value_and_the_papers_mode_are_refused():
    problem = coupled_problem(1)
    names = list(problem.choices)[:2]
    apart = {
        name: tuple(replace(c, option=replace(c.option, kept_rows=share)) for c in problem.choices[name])
        for name, share in zip(names, (0.5, 1.0), strict=True)
    }
    together = (Coupling("c", tuple((name, "kept_rows") for name in names)),)
    with pytest.raises(ArgumentError, match="no value in common"):
        solve(replace(problem, choices={**problem.choices, **apart}, couplings=together))
    with pytest.raises(ArgumentError, match="nothing to couple"):
        solve(replace(problem, search=Search(mode="analytic")))
