"""Allocation over layers, the worst case of Prop. III.1 and the floor block of a report."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.bounds import LaplaceFit, fit_laplace
from torchcoinfer.theory.bounds_network import SpentLayer, reverse_water_filling, weights_block, worst_case

LAYERS = st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(1, 10_000)), min_size=1, max_size=8)


@given(LAYERS, st.floats(0, 12), st.sampled_from([1.0, 2.0]))
def test_water_filling_meets_the_optimality_conditions(layers, mean_bits, exponent):
    scales, counts = np.array(layers).T
    total = mean_bits * counts.sum()
    found = reverse_water_filling(scales, counts, total, exponent)
    assert np.all(found.bits >= 0)
    assert np.dot(found.bits, counts) == pytest.approx(total, rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(found.distortion, np.minimum(found.level, scales), rtol=1e-9)


def test_water_filling_beats_random_allocations():
    rng = np.random.default_rng(0)
    scales, counts = rng.exponential(size=6), rng.integers(1, 100, size=6)
    best = np.dot(reverse_water_filling(scales, counts, 200.0).distortion, counts)
    for _ in range(200):
        bits = rng.dirichlet(np.ones(6)) * 200.0 / counts
        assert np.dot(scales * np.exp2(-bits), counts) >= best * (1 - 1e-12)


def test_water_filling_of_dead_layers():
    found = reverse_water_filling([0.0, 1.0], [10, 10], 20.0)
    np.testing.assert_allclose(found.bits, [0.0, 2.0])
    assert reverse_water_filling([0.0], [3], 8.0).distortion[0] == 0.0


@pytest.mark.parametrize(
    "arguments", [([1.0], [1, 2], 1.0), ([-1.0], [1], 1.0), ([1.0], [0], 1.0), ([1.0], [1], -1.0)]
)
def test_water_filling_refuses(arguments):
    with pytest.raises(ArgumentError, match="expected"):
        reverse_water_filling(*arguments)


def induced_l1(matrix):
    return np.abs(matrix).sum(axis=0).max()


@pytest.mark.parametrize("seed", range(20))
def test_worst_case_holds_on_random_relu_nets(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 9, size=5)
    weights = [rng.laplace(size=(b, a)) for a, b in zip(sizes, sizes[1:])]
    deltas = [0.1 * rng.normal(size=w.shape) for w in weights]
    x = rng.normal(size=sizes[0])
    x /= np.abs(x).sum()
    clean, coded = x, x
    for w, delta in zip(weights, deltas):
        clean, coded = np.maximum(w @ clean, 0), np.maximum((w + delta) @ coded, 0)
    error = np.abs(clean - coded).sum()
    bound = worst_case(
        [induced_l1(w) for w in weights], [induced_l1(d) for d in deltas], signal=np.abs(clean).sum()
    )
    assert error <= bound.bound
    assert 10.0**bound.log10_bound == pytest.approx(bound.bound)


def test_worst_case_equals_the_formula_and_survives_overflow():
    norms, deltas = np.array([2.0, 3.0, 5.0]), np.array([0.1, 0.0, 0.3])
    expected = 0.1 * 3.0 * 5.3 + 0.3 * 2.0 * 3.0
    found = worst_case(norms, deltas, signal=10.0)
    assert found.bound == pytest.approx(expected)
    assert not found.vacuous
    deep = worst_case(np.full(400, 1e3), np.full(400, 1.0), signal=1.0)
    assert deep.bound == float("inf") and deep.vacuous
    assert deep.log10_bound == pytest.approx(1199.8, abs=0.2)
    assert worst_case(norms, np.zeros(3)).bound == 0.0


def test_worst_case_refuses_lists_of_different_length():
    with pytest.raises(ArgumentError, match="equally long"):
        worst_case([1.0], [0.1, 0.2])


def test_floor_block_lies_below_a_real_code_and_names_misfits():
    rng = np.random.default_rng(3)
    layers = {}
    for name, weights in (("laplacian", rng.laplace(size=50_000)), ("gaussian", rng.normal(size=50_000))):
        step = np.abs(weights).max() / 8
        error = np.abs(weights - np.clip(np.round(weights / step), -8, 7) * step).mean()
        layers[name] = SpentLayer(fit_laplace(weights), 4.0, float(error))
    block = weights_block(layers)
    assert block["misfits"] == ["gaussian"]
    assert 0 < block["floor_own_law"] < block["floor"] < block["measured"]
    for row in block["layers"].values():
        assert row["floor_l1"] < row["measured_l1"]
    assert json.loads(json.dumps(block)) == block


def test_floor_block_without_measurement_says_so():
    fit = LaplaceFit(2.0, 10, 0.01, 0.0, True)
    block = weights_block({"a": SpentLayer(fit, 1.0), "b": SpentLayer(fit, 1.0, 0.4)})
    assert block["floor"] == pytest.approx(2 * 10 * 0.25)
    assert block["measured"] == {"unavailable": "some layers were not measured"}
    assert weights_block({})["measured"] == {"unavailable": "no layer is compressed"}
    assert weights_block({"dead": SpentLayer(fit_laplace(np.zeros(4)), 2.0, 0.0)})["floor"] == 0.0
