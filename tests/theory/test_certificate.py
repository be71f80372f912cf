"""The certificate: every bound that a plan carries is true, and the Shapley-Folkman gap is what it says."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from brute_force import ROWS, best_value, enumerate_rows, random_problem
from scipy.optimize import linprog

from torchcoinfer.errors import InfeasibleBudget
from torchcoinfer.theory.budget import Search
from torchcoinfer.theory.solve import solve
from torchcoinfer.theory.solve_certificate import nonconvexity, shapley_folkman


def hull(costs, rows, point):
    """Least mixture of costs with a mixture of rows below ``point``; None if there is none."""
    ones = np.ones((1, len(costs)))
    found = linprog(costs, A_ub=rows, b_ub=point, A_eq=ones, b_eq=[1.0], bounds=(0, 1))
    return found.fun if found.status == 0 else None


@pytest.mark.parametrize("rows", (1, 2, 3))
def test_no_point_of_a_staircase_is_further_from_its_hull(rows):
    rng = np.random.default_rng(rows)
    closest = []
    for _ in range(12):
        costs = rng.lognormal(size=7) * np.arange(7)
        sizes = np.sort(rng.random((rows, 7)), axis=1)[:, ::-1] * (0.5 + rng.random((rows, 7)))
        sizes[:, 6] = 0.0  # the least in every row
        claimed, seen = nonconvexity(costs, sizes), 0.0
        points = list(itertools.product(*(np.append(np.unique(own)[1:], own.max() * 2) for own in sizes)))
        for point in np.array(points)[rng.permutation(len(points))[:60]]:
            below = np.nextafter(point, -np.inf)  # the end of a step, just before the next item fits
            fits = (sizes <= below[:, None]).all(axis=0)
            lowest = hull(costs, sizes, below)
            if fits.any() and lowest is not None:
                seen = max(seen, costs[fits].min() - lowest)
        assert seen <= claimed * (1 + 1e-9) + 1e-12
        closest.append(seen / claimed if claimed > 0 else 1.0)
    if rows == 1:  # all steps were tried: exact
        assert closest == pytest.approx([1.0] * len(closest))
    assert np.mean(closest) > 0.6


def test_a_mixture_below_every_item_is_not_claimed():
    assert nonconvexity(np.array([0.0, 1.0]), np.array([[1.0, 0.0], [0.0, 1.0]])) == np.inf
    assert nonconvexity(np.array([0.0, 1.0]), np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx(1.0)
    assert nonconvexity(np.array([0.0, 1.0, 2.0]), np.array([[2.0, 1.0, 0.0]])) == pytest.approx(1.0)
    assert nonconvexity(np.array([3.0]), np.zeros((4, 1))) == 0.0


def test_the_gap_of_random_knapsacks_is_within_the_theorem():
    rng = np.random.default_rng(0)
    for _ in range(40):
        groups, items, count = int(rng.integers(1, 7)), 4, int(rng.integers(1, 3))
        costs = np.sort(rng.lognormal(0, 2, (groups, items)), axis=1)
        rows = np.sort(rng.random((count, groups, items)), axis=2)[:, :, ::-1]  # the costlier, the smaller
        limit = rows[:, :, -1].sum(axis=1) + rng.random(count) * rows[:, :, 0].sum(axis=1) * 0.7
        best = np.inf
        for plan in itertools.product(range(items), repeat=groups):
            if (rows[:, np.arange(groups), plan].sum(axis=1) <= limit).all():
                best = min(best, costs[np.arange(groups), plan].sum())
        equal = np.kron(np.eye(groups), np.ones(items))
        below = linprog(costs.ravel(), rows.reshape(count, -1), limit, equal, np.ones(groups), (0, 1)).fun
        assert below <= best * (1 + 1e-9) <= below + shapley_folkman(costs, rows) + best * 2e-9


def best_here(problem, plan):
    """The optimum at the plan's cut, clocks and power, by trying everything."""
    graph = problem.graph
    made = {n: i for i, u in enumerate(graph.units) for n in u.outputs}
    device, stack = set(), [made[n] for n, _ in plan.cut.tensors if n in made]
    while stack:
        unit = graph.units[stack.pop()]
        if unit.name not in device:
            device.add(unit.name)
            stack += [made[n] for n in unit.inputs if n in made]
    if plan.cut.name == "device":
        device = {u.name for u in graph.units}
    watts = plan.resources["transmit_w"] or problem.link.transmit_w[0]
    table = enumerate_rows(problem, device, plan.resources["device_hz"], plan.resources["server_hz"], watts)
    limits = {name: limit * (1 + 1e-12) for name, limit in problem.budget.rows().items()}
    fits = np.all([table[:, ROWS.index(n)] <= v for n, v in limits.items()], axis=0)
    return table[fits, ROWS.index(problem.search.minimize)].min(initial=np.inf)


def test_everything_that_a_plan_claims_of_its_optimality_is_true():
    claimed, count = 0, 0
    for seed in range(90):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, int(rng.integers(2, 6)), 4, 10.0 ** rng.uniform(-6, 6), "distortion")
        problem = replace(problem, search=Search(gap=float(rng.choice([0.0, 0.01]))))
        try:
            plan = solve(problem)
        except InfeasibleBudget:
            continue
        told, best = plan.optimality, best_value(problem)
        for bound in (told["dual_bound"], told["lagrangian_bound"]):
            assert bound <= best * (1 + 1e-9)
        assert told["value"] * (1 - told["gap"]) <= best * (1 + 1e-9)
        here = told["here"]
        if plan.predicted["distortion"] == 0.0:
            continue  # settled by latency, perhaps at another cut than the one that the proof is of
        own = best_here(problem, plan)
        assert here["lagrangian_dual"] <= own * (1 + 1e-9)
        count += 1
        if isinstance(here["shapley_folkman_gap"], float):
            claimed += 1
            assert own <= here["lagrangian_dual"] + here["shapley_folkman_gap"] + 1e-6 * own
        else:
            assert "least in every row" in here["shapley_folkman_gap"]["unavailable"]
    assert count > 15
    assert claimed > 5
