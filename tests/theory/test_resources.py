"""Clocks and power: closed forms against grids, bounded minimizers and SLSQP."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.resources import (
    Q_DEVICE,
    Q_SERVER,
    Radio,
    Stage,
    largest_load,
    least_energy,
    least_energy_with_link,
    pruned_split,
    quantized_split,
)


def random_case(rng):
    device = Stage(10 ** rng.uniform(-30, -26), rng.uniform(0.5e9, 3e9))
    server = Stage(10 ** rng.uniform(-30, -26), rng.uniform(1e9, 1e10))
    a1, a2 = 10 ** rng.uniform(6, 10, 2)
    if rng.random() < 0.1:
        a1 = 0.0
    if rng.random() < 0.1:
        a2 = 0.0
    radio = Radio(10 ** rng.uniform(5, 7.5), 10 ** rng.uniform(-1, 3), rng.uniform(0.1, 2.0))
    bits = 10 ** rng.uniform(3, 7)
    shortest = a1 / device.max_hz + a2 / server.max_hz
    return device, server, radio, a1, a2, bits, shortest


@pytest.mark.parametrize("seed", range(200))
def test_p1_equals_a_bounded_minimizer_and_no_grid_point_is_below(seed):
    rng = np.random.default_rng(seed)
    device, server, _, a1, a2, _, shortest = random_case(rng)
    limit = shortest * float(rng.choice([1.0001, 1.05, 1.5, 4.0, 30.0])) + (shortest == 0)
    found = least_energy(a1, a2, limit, device, server)
    assert found.latency_s <= limit * (1 + 1e-12)
    assert found.device_hz <= device.max_hz
    assert found.server_hz <= server.max_hz

    def energy(t1):  # the server takes the time that is left
        t2 = limit - t1
        first = device.coefficient * a1**3 / t1**2 if a1 else 0.0
        return first + (server.coefficient * a2**3 / t2**2 if a2 else 0.0)

    low, high = a1 / device.max_hz, limit - a2 / server.max_hz
    if a1 and a2:
        bounded = minimize_scalar(
            energy, bounds=(low, high), method="bounded", options={"xatol": 1e-13 * limit}
        )
        grid = min(energy(t) for t in np.linspace(low, high, 2000)[1:-1])
        assert found.energy_j <= grid * (1 + 1e-12)
        best = min(bounded.fun, energy(low), energy(high))
        assert found.energy_j == pytest.approx(best, rel=1e-6)
    else:
        only, stage = (a1, device) if a1 else (a2, server)
        assert found.energy_j == pytest.approx(stage.coefficient * only**3 / limit**2, rel=1e-9)
    assert least_energy(a1, a2, shortest * 0.999, device, server) is None


@pytest.mark.parametrize("seed", range(60))
def test_the_link_problem_equals_slsqp(seed):
    rng = np.random.default_rng(seed)
    device, server, radio, a1, a2, bits, shortest = random_case(rng)
    if seed % 8 == 0:
        bits = 0.0
    air = bits / radio.rate_bps(radio.max_w)
    limit = (shortest + air) * float(rng.choice([1.0005, 1.1, 2.0, 10.0])) + 1e-6
    found = least_energy_with_link(a1, bits, a2, limit, device, server, radio)
    assert found.latency_s <= limit * (1 + 1e-12)
    assert found.device_hz <= device.max_hz
    assert found.server_hz <= server.max_hz
    assert found.transmit_w <= radio.max_w
    lows = np.array([a1 / device.max_hz, air, a2 / server.max_hz])

    def energy(x):
        t = lows + np.maximum(x, 0) * limit
        link = t[1] * radio.power_w(bits / t[1]) if bits else 0.0
        first = device.coefficient * a1**3 / t[0] ** 2 if a1 else 0.0
        return first + link + (server.coefficient * a2**3 / t[2] ** 2 if a2 else 0.0)

    spare = (limit - lows.sum()) / limit
    scale = found.energy_j
    best = math.inf
    for start in ([0.34, 0.33, 0.33], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]):
        answer = minimize(
            lambda x: energy(x) / scale,
            np.array(start) * spare,
            bounds=[(0, spare)] * 3,
            constraints={"type": "ineq", "fun": lambda x: (spare - x.sum()) / spare},
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        x = np.maximum(answer.x, 0)
        x *= min(1.0, spare / max(x.sum(), 1e-300))
        best = min(best, energy(x))
    assert found.energy_j <= best * (1 + 1e-6)
    # and it is really reached: the energy of the clocks and the power that are returned
    reached = device.coefficient * a1 * found.device_hz**2 + server.coefficient * a2 * found.server_hz**2
    if bits:
        reached += found.transmit_w * bits / radio.rate_bps(found.transmit_w)
    assert found.energy_j == pytest.approx(reached, rel=1e-6)


def test_least_energy_increases_in_every_load_and_the_largest_load_is_at_the_limit():
    device, server, radio = Stage(1e-28, 2e9), Stage(3e-28, 8e9), Radio(1e6, 10.0, 1.0)
    base = (1e8, 1e6, 3e8)
    energy = least_energy_with_link(*base, 1.0, device, server, radio).energy_j
    for k in range(3):
        more = [v * (1.2 if i == k else 1.0) for i, v in enumerate(base)]
        assert least_energy_with_link(*more, 1.0, device, server, radio).energy_j > energy

    def energy_of(a1):
        return least_energy_with_link(a1, 1e6, 3e8, 1.0, device, server, radio)

    load = largest_load(energy_of, 1.5 * energy, 1e12)
    assert energy_of(load).energy_j == pytest.approx(1.5 * energy, rel=1e-6)
    assert energy_of(load).energy_j <= 1.5 * energy
    assert largest_load(energy_of, 1e-9, 1e12) == 0.0


def test_nothing_to_do_costs_nothing_and_nonsense_is_refused():
    radio = Radio(1e6, 10.0, 1.0)
    assert least_energy(0.0, 0.0, 1.0, Q_DEVICE, Q_SERVER).energy_j == 0.0
    assert least_energy_with_link(0.0, 0.0, 0.0, 1.0, Q_DEVICE, Q_SERVER, radio).energy_j == 0.0
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="a1 must be finite"):
            least_energy(bad, 1.0, 1.0, Q_DEVICE, Q_SERVER)
        with pytest.raises(ArgumentError, match="bits must be finite"):
            least_energy_with_link(1.0, bad, 1.0, 1.0, Q_DEVICE, Q_SERVER, radio)


@pytest.mark.parametrize(("flops", "latency_s"), [(533.66e9, 3.5), (212.27e9, 2.0)])
def test_the_papers_bit_width_is_the_largest_that_keeps_both_limits(flops, latency_s):
    for share in (0.05, 0.1, 0.3):
        for energy_j in (0.5, 2.0, 8.0):
            found = quantized_split(share * flops, (1 - share) * flops, latency_s, energy_j)
            feasible = []
            for bits in range(1, 33):  # a dense grid of the device's time
                a1, a2 = bits / 32 * share * flops / 32, (1 - share) * flops / 128
                t1 = np.linspace(1e-6, latency_s, 200_001)[:-1]
                f, g = a1 / t1, a2 / (latency_s - t1)
                energy = 2e-29 * a1 * f**2 + 2e-28 * a2 * g**2
                if (energy[(f <= 2e9) & (g <= 10e9)] <= energy_j).any():
                    feasible.append(bits)
            assert (found.bits if found else None) == (max(feasible) if feasible else None)
            if found:
                assert found.allocation.energy_j <= energy_j
                assert found.allocation.latency_s <= latency_s * (1 + 1e-12)


def test_the_pruned_split_is_the_least_pruned_of_all():
    radio = Radio(1e6, 50.0, 0.5)
    splits = [(0.0, 4e6, 4e11), (1e11, 5e5, 3e11), (2e11, 2e5, 2e11), (4e11, 0.0, 0.0)]
    found = pruned_split(splits, 2.0, 1.0, radio=radio)
    assert 0.0 < found.sparsity < 1.0
    assert found.allocation.energy_j <= 1.0
    for n1, bits, n2 in splits:  # no split is feasible with a smaller share
        kept = 1.0 - found.sparsity + 1e-6
        other = least_energy_with_link(kept * n1 / 32, bits, kept * n2 / 128, 2.0, Q_DEVICE, Q_SERVER, radio)
        assert other is None or other.energy_j > 1.0
    assert pruned_split(splits, 2.0, 1e6, radio=radio).sparsity == 0.0
    assert pruned_split([(1e9, 1e12, 1e9)], 0.1, 1.0, radio=radio) is None
