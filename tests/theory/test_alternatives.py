"""What a plan carries beside itself: other cuts, a front, and the band of link rates, against the slow
truth."""

import json
from dataclasses import replace

import numpy as np
import pytest
from brute_force import ROWS, best_value, random_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcoinfer.errors import InfeasibleBudget, PlanError
from torchcoinfer.theory.alternatives import explored, solution_of, tightest_row
from torchcoinfer.theory.budget import Budget, Search
from torchcoinfer.theory.pareto import pareto
from torchcoinfer.theory.plan import PREDICTED_OF_ROW, Plan
from torchcoinfer.theory.solve import solve
from torchcoinfer.theory.solve_band import bandwidth_band, scaled_link
from torchcoinfer.theory.solve_front import Fronts
from torchcoinfer.theory.solve_table import make_table


def solved(seed: int, units: int = 7, **search):
    """A feasible random problem and its plan, or None."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, int(rng.integers(2, units)), 4, 1.0, search.get("minimize", "distortion"))
    problem = replace(problem, search=Search(gap=0.0, **search))
    try:
        return problem, solve(problem)
    except InfeasibleBudget:
        return None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 5000), minimize=st.sampled_from(("distortion", "distortion", "latency", "energy")))
def test_the_band_is_where_the_plan_keeps_its_rows_and_no_stored_one_beats_it(seed, minimize):
    found = solved(seed, minimize=minimize)
    if found is None:
        return
    problem, plan = found
    fronts = Fronts(problem)
    own = solution_of(fronts.table, plan)
    fronts.add(fronts.table.pair_cut[[own.pair]], own.items[None])
    band = bandwidth_band(fronts, own)
    low, high = band["least_bps"], band["most_bps"]
    assert low <= band["uplink_bps"] * (1 + 1e-12)
    assert high is None or band["uplink_bps"] <= high * (1 + 1e-12)
    assert (low == 0.0) == (band["least_because"] is None)
    assert (high is None) == (band["most_because"] is None)
    inside = np.geomspace(max(low, 1e-3 * band["uplink_bps"]), high or 1e3 * band["uplink_bps"], 7)[1:-1]
    outside = [edge for edge in (low * 0.999, (high or 0.0) * 1.001) if edge > 0]
    limits = problem.budget.rows()
    harmless = minimize == "distortion" and plan.predicted["distortion"] == 0.0
    goal = "latency" if harmless else minimize
    for rate, within in [*((r, True) for r in inside), *((r, False) for r in outside)]:
        link = scaled_link(problem.link, rate / band["uplink_bps"])
        table = fronts.table.reweighed(replace(problem, link=link))
        rows = table.evaluate(own.pair, own.items)
        keeps = all(rows[name] <= limit * (1 + 1e-9) for name, limit in limits.items())
        best = np.inf
        for pair, cut in enumerate(table.pair_cut):
            totals = fronts.totals[cut]
            values = totals @ table.rows[pair].T + table.constant[pair]
            fits = np.all([values[:, ROWS.index(n)] <= v for n, v in limits.items()], axis=0)
            if harmless:
                fits &= values[:, -1] == 0.0
            best = min(best, values[fits, ROWS.index(goal)].min(initial=np.inf))
        optimal = rows[goal] <= best * (1 + 1e-6)
        assert (keeps and optimal) == within


def test_inside_the_band_solving_anew_mostly_gives_the_same_objective():
    """The band is of the stored fronts: what it misses is counted."""
    right, count = 0, 0
    for seed in range(24):
        found = solved(seed, 6)
        if found is None:
            continue
        problem, plan = found
        band = explored(problem, plan).alternatives["bandwidth"]
        for end in (band["least_bps"] * 1.01, (band["most_bps"] or np.inf) * 0.99):
            if 0 < end < np.inf:
                count += 1
                again = replace(problem, link=scaled_link(problem.link, end / band["uplink_bps"]))
                right += plan.predicted["distortion"] <= best_value(again) * (1 + 1e-9)
    assert count > 8
    assert right >= 0.8 * count


def test_what_is_told_of_other_cuts_and_the_front():
    for seed in range(16):
        found = solved(seed)
        if found is None:
            continue
        problem, plan = found
        told = explored(problem, plan)
        assert replace(told, alternatives={}) == plan
        assert Plan.from_json(told.to_json()) == told
        assert explored(problem, plan).to_json() == told.to_json()
        cuts = told.alternatives["cuts"]
        assert cuts[0]["name"] == plan.cut.name
        assert cuts[0]["note"] == "chosen"
        assert {row["name"] for row in cuts} >= {"device", "server"}
        for row in cuts:  # nothing that was considered beats the plan
            assert row.get("distortion", np.inf) >= plan.predicted["distortion"] * (1 - 1e-9)
        front = told.alternatives["front"]
        if front is None:
            assert set(problem.budget.rows()) <= {"distortion"}
            continue
        axis = front["axis"]
        assert axis == tightest_row(plan)
        assert plan.predicted["distortion"] in [row["distortion"] for row in front["rows"]]
        for row in front["rows"]:
            assert row[PREDICTED_OF_ROW[axis]] <= row["limit"]
            limits = {**problem.budget.rows(), axis: row["limit"]}
            best = best_value(replace(problem, budget=Budget(**limits)))
            assert row["gap"] <= 0.01 * (1 + 1e-9)
            assert row["distortion"] * (1 - row["gap"]) <= best * (1 + 1e-9) <= row["distortion"] * (1 + 1e-8)


def test_a_front_is_what_solving_every_limit_anew_gives():
    axes = ("latency", "energy", "device_memory", "uplink", "device_bits_per_weight", "server_memory")
    for seed, axis in enumerate(axes * 2):
        problem, _ = solved(seed) or (None, None)
        if problem is None:
            continue
        problem = replace(problem, budget=Budget(latency=1.0, device_memory=1e6))
        front = pareto(problem, axis, 5)
        assert front.axis == axis
        values = [plan.predicted[PREDICTED_OF_ROW[axis]] for plan in front]
        errors = [plan.predicted["distortion"] for plan in front]
        assert values == sorted(values)
        assert errors == sorted(set(errors), reverse=True)
        for plan in front:
            limits = {name: limit * (1 + 1e-12) for name, limit in plan.budget.items()}  # sums differ
            best = best_value(replace(problem, budget=Budget(**limits)))
            assert plan.predicted["distortion"] == pytest.approx(best, rel=1e-9, abs=0.0)
            assert all(plan.predicted[PREDICTED_OF_ROW[n]] <= limit for n, limit in plan.budget.items())
        least = best_value(replace(problem, search=Search(minimize="latency"))) if axis == "latency" else None
        assert least is None or values[0] == pytest.approx(least, rel=1e-6)
        assert [p.to_json() for p in pareto(problem, axis, 5)] == [p.to_json() for p in front]
        assert len(str(front).splitlines()) == len(front) + 1
        json.dumps(front.rows(), allow_nan=False)


def test_the_papers_mode_has_a_front_and_alternatives_of_its_own():
    problem, _ = solved(3)
    for layer in problem.graph.layers:
        object.__setattr__(layer, "group", None)
    problem = replace(problem, search=Search(mode="analytic", gap=0.0), budget=Budget(latency=1e3))
    front = pareto(problem, "device_memory", 4)
    for plan in front:
        assert len({layer.option for layer in plan.layers.values() if layer.side == "device"}) <= 1
    told = explored(problem, solve(problem)).alternatives
    assert told["cuts"][0]["note"] == "chosen"
    axis = told["front"]["axis"]
    for row in told["front"]["rows"]:
        anew = solve(replace(problem, budget=Budget(**{axis: row["limit"]})))
        assert row["distortion"] == pytest.approx(anew.predicted["distortion"], rel=1e-9)


def test_a_plan_of_another_problem_is_refused():
    (problem, plan), (other, _) = solved(3), solved(5)
    with pytest.raises(PlanError, match="not made from this problem"):
        solution_of(make_table(other, {"distortion"}), plan)
    assert solution_of(make_table(problem, {*ROWS}), plan).value == plan.predicted["distortion"]
