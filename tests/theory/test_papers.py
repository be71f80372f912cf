"""[Q] and [P*] as published: against brute force over levels and a dense grid of clocks; the baselines; the
papers' rounding."""

from dataclasses import replace

import numpy as np
import pytest

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.papers import (
    PaperProblem,
    feasible_random,
    fixed_frequency,
    joint_design,
    nearest_rounding,
    on_device,
    on_server,
)
from torchcoinfer.theory.papers_tables import (
    Q_MODELS,
    Q_SYSTEM,
    Split,
    bit_levels,
    bound_gap,
    gap_table,
    pruning_levels,
    pruning_table,
)
from torchcoinfer.theory.resources import Allocation, Radio, quantized_split

BITS = tuple(range(2, 17))
RADIO = Radio(bandwidth_hz=20e6, snr_per_w=495.0, max_w=0.2)


def splits_of(flops, shares, link_bits=0.0):
    return tuple(
        Split(f"{s:g}", s * flops, link_bits * (0 < s < 1) + 1e3 * (s == 0), (1 - s) * flops) for s in shares
    )


def quantizing(seed, system=Q_SYSTEM):
    rng = np.random.default_rng(seed)
    splits = splits_of(10 ** rng.uniform(9, 12), (0.0, 0.3, 0.7, 1.0), 10 ** rng.uniform(4, 7))
    scale = splits[0].server_flops / 533e9  # of BLIP-2's budget
    latency, energy = 3.5 * scale * rng.uniform(0.2, 2), 2.0 * scale * 10 ** rng.uniform(-1.5, 0.5)
    return PaperProblem(splits, bit_levels(BITS), gap_table(splits, BITS), latency, energy, system)


def grid_of_cell(problem, split, level):
    """Least energy of a cell over a dense grid of times; with a radio, over a second grid of powers."""
    a1, bits, a2 = problem.loads(split, level)
    system, best = problem.system, np.inf
    points = 8000 if system.radio is None else 800
    powers = [0.0] if system.radio is None or not bits else system.radio.max_w * np.geomspace(1e-4, 1, 60)
    for power in powers:
        air = bits / system.radio.rate_bps(power) if power else 0.0
        left = problem.latency_s - air
        if left <= 0:
            continue
        if a1 and a2:
            t1 = left * np.linspace(0, 1, points)[1:-1]
            f, g = a1 / t1, a2 / (left - t1)
        else:
            f, g = np.array([a1 / left]), np.array([a2 / left])
        energy = system.device.coefficient * a1 * f**2 + system.server.coefficient * a2 * g**2 + power * air
        fits = (f <= system.device.max_hz) & (g <= system.server.max_hz)
        best = min(best, energy[fits].min(initial=np.inf))
    return best


@pytest.mark.parametrize("radio", [None, RADIO], ids=["as [Q]", "with the link"])
@pytest.mark.parametrize("seed", range(12))
def test_the_joint_design_equals_brute_force_over_bits_splits_and_a_grid_of_clocks(seed, radio):
    problem = quantizing(seed, replace(Q_SYSTEM, radio=radio))
    cells = [(s, k) for s in range(len(problem.splits)) for k in range(len(problem.levels))]
    least = {cell: grid_of_cell(problem, *cell) for cell in cells}
    for cell, energy in least.items():  # the closed form is never above the grid, and the grid comes close
        found = problem.least_energy(*cell)
        if np.isfinite(energy):
            assert found.energy_j <= energy * (1 + 1e-9)
            assert energy <= found.energy_j * (1.02 if radio is None else 1.2)
    best = min((problem.distortion[c] for c in cells if least[c] <= problem.energy_j), default=None)
    found = joint_design(problem)
    if best is None:
        assert found is None or found.allocation.energy_j > 0.8 * problem.energy_j  # the grid just missed it
        return
    assert found.distortion <= best
    assert problem.keeps(replace(found.allocation, latency_s=found.allocation.latency_s * (1 - 1e-12)))
    # clocks and power, put back into the laws, give the energy and the latency that are claimed
    again = problem.spent(found.split, found.level, found.allocation)
    assert again.energy_j == pytest.approx(found.allocation.energy_j, rel=1e-6)
    assert again.latency_s == pytest.approx(found.allocation.latency_s, rel=1e-6)
    assert found.allocation.device_hz <= problem.system.device.max_hz
    assert found.allocation.server_hz <= problem.system.server.max_hz


@pytest.mark.parametrize("seed", range(20))
def test_the_joint_design_is_never_worse_than_a_baseline(seed):
    problem = quantizing(seed, replace(Q_SYSTEM, radio=RADIO if seed % 2 else None))
    clocks = Allocation(0.0, 0.0, 1e9, 1.5e9, 0.1)
    joint = joint_design(problem)
    others = [on_device(problem), on_server(problem), fixed_frequency(problem, clocks)]
    drawn = feasible_random(problem, 20, seed)
    for other in [*others, *drawn]:
        if other is not None:
            assert joint is not None
            assert joint.distortion <= other.distortion
            assert other.allocation.energy_j <= problem.energy_j
            assert other.allocation.latency_s <= problem.latency_s * (1 + 1e-12)
    assert others[0] is None or problem.splits[others[0].split].server_flops == 0
    assert others[1] is None or problem.splits[others[1].split].device_flops == 0
    assert feasible_random(problem, 5, seed) == drawn[:5]
    given = joint_design(problem, [1])
    for other in [fixed_frequency(problem, clocks, [1]), *feasible_random(problem, 10, seed, [1])]:
        assert other is None or (other.split == 1 and given.distortion <= other.distortion)


def test_one_split_gives_the_width_of_the_closed_form():
    for model in Q_MODELS.values():
        for share in (0.2, 0.5, 0.9):
            for latency in (0.3, 0.6, 1.0):
                split = splits_of(model.flops, (share,))
                limits = latency * model.latency_s, model.energy_j
                found = joint_design(PaperProblem(split, bit_levels(BITS), gap_table(split, BITS), *limits))
                want = quantized_split(split[0].device_flops, split[0].server_flops, *limits, bits=BITS)
                assert (found and BITS[found.level]) == (want and want.bits)
                assert found is None or found.allocation == want.allocation


def test_the_papers_rounding_breaks_a_limit_where_ours_does_not():
    model, broken = Q_MODELS["BLIP-2 2.7B"], 0
    split = splits_of(model.flops, (0.5,))[0]
    for latency in np.linspace(1.2, 3.5, 40):
        found = nearest_rounding(split, float(latency), model.energy_j)
        if found is None:
            continue
        assert found.best_bits == min(16, int(found.relaxed_bits + 1e-9))
        problem = PaperProblem(
            (split,), bit_levels(range(2, 17)), gap_table((split,), BITS), float(latency), model.energy_j
        )
        assert BITS[joint_design(problem).level] == found.best_bits
        if found.rounded_bits > found.relaxed_bits + 1e-9:
            assert not found.rounded_is_feasible
            assert found.rounded_bits == found.best_bits + 1
            broken += 1
        else:
            assert found.rounded_is_feasible
    assert broken >= 5
    assert nearest_rounding(split, 0.1, model.energy_j) is None


def test_the_bound_and_the_energy_are_monotone():
    gaps = bound_gap(np.arange(2, 33))
    assert np.all(np.diff(gaps) < 0)
    assert bound_gap(4, lam=10.0) == pytest.approx(bound_gap(4) / 10)
    with pytest.raises(ArgumentError, match="magnitude bit"):
        bound_gap(1)
    found = [joint_design(replace(quantizing(3), energy_j=e)) for e in np.geomspace(1e-4, 1e2, 30)]
    distortions = [np.inf if design is None else design.distortion for design in found]
    assert np.all(np.diff(distortions)[np.isfinite(distortions[:-1])] <= 0)
    assert distortions[-1] < 1e-3 * min(1.0, distortions[0])
    assert len(set(distortions)) > 5


def test_the_pruned_problem_takes_the_smallest_feasible_share():
    shares = tuple(np.round(np.linspace(0, 0.95, 20), 2))
    splits = splits_of(1e9, (0.0, 0.4, 1.0), 2e5)
    system = replace(Q_SYSTEM, radio=RADIO)
    for energy in np.geomspace(1e-5, 1e-1, 12):
        problem = PaperProblem(
            splits, pruning_levels(shares), pruning_table(splits, shares), 0.01, float(energy), system
        )
        found = joint_design(problem)
        feasible = [
            k
            for k in range(len(shares))
            for s in range(len(splits))
            if (own := problem.least_energy(s, k)) is not None and own.energy_j <= energy
        ]
        assert (found and found.level) == (min(feasible) if feasible else None)


def test_a_table_of_another_shape_is_refused():
    splits = splits_of(1e9, (0.5,))
    with pytest.raises(ArgumentError, match="do not belong"):
        PaperProblem(splits, bit_levels(BITS), np.zeros((2, 3)), 1.0, 1.0)
