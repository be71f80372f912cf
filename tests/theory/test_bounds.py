"""Laws of the Laplacian source against brute force, Monte Carlo and the figures of the papers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory import bounds
from torchcoinfer.theory.bounds_codes import (
    best_joint_l1,
    best_uniform_grid,
    blahut_arimoto,
    exponential_rate_point,
    lloyd_max,
    lloyd_max_l1,
    lloyd_max_mse,
    uniform_grid_l1,
)

RATES = st.floats(0.0, 16.0)
SPARSITY = st.floats(0.0, 1.0)
LAM = st.floats(1e-3, 1e3)

LLOYD_OVER_UPPER = {2: 0.656, 3: 0.846, 4: 0.929, 5: 0.966, 6: 0.984, 7: 0.992, 8: 0.996}
INTEGER_GRID = {3: (0.270, 0.264), 4: (0.150, 0.127), 6: (0.0466, 0.0313), 8: (0.0142, 0.00781)}
JOINT = {
    1: (0.594, 0.693, 0.500),
    2: (0.356, 0.405, 0.250),
    3: (0.205, 0.223, 0.125),
    4: (0.112, 0.118, 0.0625),
}
BLAHUT_OVER_LOWER = {0.81: 1.18, 1.32: 1.12, 1.81: 1.08, 2.91: 1.04, 3.64: 1.02}


def three_digits(value, expected):
    return abs(value - expected) <= 0.5 * 10.0 ** (np.floor(np.log10(expected)) - 2) * 1.0001


@pytest.mark.parametrize("bits", LLOYD_OVER_UPPER)
def test_lloyd_max_reaches_the_upper_bound(bits):
    ratio = lloyd_max_l1(bits - 1) / bounds.upper_distortion(bits - 1)
    assert three_digits(ratio, LLOYD_OVER_UPPER[bits])


@pytest.mark.parametrize("bits", INTEGER_GRID)
def test_integer_grids_miss_the_upper_bound(bits):
    grid, upper = INTEGER_GRID[bits]
    assert three_digits(best_uniform_grid(bits)[1], grid)
    assert three_digits(float(bounds.upper_distortion(bits - 1)), upper)


def test_absmax_int4_figure():
    """.457 lies within the quartiles of the absmax grid of a 768 x 768 layer: P(max < x) = exp(-N e^-x)."""
    largest = np.log(768 * 768) - np.log(-np.log([0.25, 0.75]))
    low, high = uniform_grid_l1(largest / 7, 4)
    assert low < 0.457 < high < 0.48


@pytest.mark.parametrize("bits", JOINT)
def test_joint_pruning_and_quantization(bits):
    joint, lloyd, limit = JOINT[bits]
    found, sparsity, survivors = best_joint_l1(bits)
    assert three_digits(found, joint)
    assert three_digits(lloyd_max_l1(bits - 1), lloyd)
    assert float(bounds.laplacian_distortion(bits)) == limit
    assert bounds.joint_rate(sparsity, survivors) <= bits
    assert limit < found < lloyd_max_l1(bits - 1)


@pytest.fixture(scope="module")
def curve():
    return [exponential_rate_point(slope) for slope in np.geomspace(1.3, 24.0, 20)]


def test_blahut_arimoto_lies_between_the_bounds(curve):
    for point in curve:
        assert point.gap <= 2e-3
        assert bounds.lower_distortion(point.rate) <= point.distortion <= bounds.upper_distortion(point.rate)


def test_blahut_arimoto_figures(curve):
    rates = [point.rate for point in curve]
    ratios = [point.distortion / bounds.lower_distortion(point.rate) for point in curve]
    for rate, ratio in BLAHUT_OVER_LOWER.items():
        assert np.interp(rate, rates, ratios) == pytest.approx(ratio, abs=0.006)


def test_blahut_arimoto_on_a_binary_source():
    """Exact: R(D) = 1 - h2(D) for a fair bit under Hamming distortion."""
    point = blahut_arimoto([0.5, 0.5], 1.0 - np.eye(2), slope=2.0)
    d = point.distortion
    assert point.rate == pytest.approx(1 + d * np.log2(d) + (1 - d) * np.log2(1 - d), abs=1e-6)
    assert d == pytest.approx(1 / (1 + np.exp(2.0)), abs=1e-6)


def test_recursive_kernel_equals_the_dense_one():
    step, length = 0.05, 6.0
    grid = (np.arange(round(length / step)) + 0.5) * step
    source = np.exp(-grid) / np.exp(-grid).sum()
    dense = blahut_arimoto(source, np.abs(grid[:, None] - grid), 3.0, tolerance=1e-2)
    fast = exponential_rate_point(3.0, step=step, length=length, tolerance=1e-2)
    assert abs(dense.rate - fast.rate) <= 2e-2
    assert abs(dense.distortion - fast.distortion) <= 2e-3


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("levels", [1, 2, 3, 8])
def test_lloyd_max_is_a_local_optimum_with_the_stated_distortion(levels, power):
    code = lloyd_max(levels, power)
    x = np.linspace(0, 45, 900_001)
    law = np.exp(-x) * (x[1] - x[0])

    def cost(points):
        return float(np.sum(law * np.min(np.abs(x[:, None] - points) ** power, axis=1)))

    stated = cost(code.levels)
    assert stated == pytest.approx(code.distortion, rel=1e-3)
    assert np.all(np.diff(code.levels) > 0) and np.all(np.diff(code.thresholds) > 0)
    for k in range(levels):
        for nudge in (-0.02, 0.02):
            moved = code.levels.copy()
            moved[k] += nudge
            assert cost(moved) >= stated - 1e-6


@pytest.mark.parametrize("bits", [2, 3, 5])
@pytest.mark.parametrize("step", [0.05, 0.4, 1.7])
def test_uniform_grid_closed_form_against_integration(bits, step):
    x = np.linspace(0, 45, 900_001)
    top = (1 << (bits - 1)) - 1
    error = np.abs(x - step * np.clip(np.round(x / step), 0, top))
    assert float(uniform_grid_l1(step, bits)) == pytest.approx(np.sum(np.exp(-x) * error) * 5e-5, rel=1e-3)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_pruning_curves_against_samples(sparsity):
    x = np.sort(np.random.default_rng(0).exponential(size=400_000))
    pruned = x[: round(sparsity * x.size)]
    assert float(bounds.pruning_l1(sparsity)) == pytest.approx(pruned.sum() / x.size, abs=5e-3)
    assert float(bounds.pruning_mse(sparsity)) == pytest.approx((pruned**2).sum() / x.size, abs=3e-2)


def test_high_rate_laws():
    """Fixed rate against Lloyd-Max at 10 bits; entropy-coded against a fine uniform quantizer's entropy."""
    assert lloyd_max_l1(9) == pytest.approx(float(bounds.fixed_rate_l1(10)), rel=2e-3)
    assert lloyd_max_mse(9) == pytest.approx(float(bounds.fixed_rate_mse(10)), rel=5e-3)
    step = 0.02
    edges = np.arange(-3000, 3001) * step
    mass = 0.5 * np.abs(np.diff(np.sign(edges) * -np.expm1(-np.abs(edges))))
    rate = -np.sum(mass[mass > 0] * np.log2(mass[mass > 0]))
    assert step / 4 == pytest.approx(float(bounds.entropy_coded_l1(rate)), rel=1e-3)
    assert step**2 / 12 == pytest.approx(float(bounds.entropy_coded_mse(rate)), rel=1e-3)


@given(RATES, LAM)
def test_order_of_the_laws(rate, lam):
    lower, upper = bounds.lower_distortion(rate, lam), bounds.upper_distortion(rate, lam)
    assert lower <= upper <= np.log(2) / lam
    assert (
        bounds.shannon_mse(rate, lam)
        <= bounds.entropy_coded_mse(rate, lam)
        <= bounds.fixed_rate_mse(rate, lam)
    )
    assert bounds.laplacian_distortion(rate, lam) <= bounds.entropy_coded_l1(rate, lam)
    assert lower == pytest.approx(float(bounds.laplacian_distortion(rate + 1, lam)))


def test_the_bounds_stay_one_bit_apart():
    assert bounds.upper_distortion(16) / bounds.lower_distortion(16) == pytest.approx(2.0, abs=1e-4)


@given(RATES, LAM)
def test_rate_inverts_distortion(rate, lam):
    assert bounds.laplacian_rate(bounds.laplacian_distortion(rate, lam), lam) == pytest.approx(rate, abs=1e-9)


@given(RATES, RATES)
def test_distortions_fall_with_the_rate(first, second):
    low, high = min(first, second), max(first, second)
    for law in (bounds.lower_distortion, bounds.upper_distortion, bounds.shannon_mse):
        assert law(high) <= law(low)


@given(SPARSITY, SPARSITY, LAM)
def test_pruning_is_monotone_and_bounded(first, second, lam):
    low, high = min(first, second), max(first, second)
    for curve_of, most in ((bounds.pruning_l1, 1 / lam), (bounds.pruning_mse, 2 / lam**2)):
        assert -1e-12 * most <= curve_of(low, lam) <= curve_of(high, lam) + 1e-12 * most
        assert curve_of(high, lam) <= most * (1 + 1e-12)


@given(SPARSITY, st.integers(0, 8))
def test_joint_code_respects_the_converse(sparsity, survivors):
    distortion = bounds.joint_l1(sparsity, lloyd_max_l1(survivors))
    assert distortion >= bounds.laplacian_distortion(bounds.joint_rate(sparsity, survivors)) * (1 - 1e-9)


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0])
def test_exact_zeros_of_the_optimal_code(rate):
    """Zero with share 4^-R, else Laplacian, plus Laplacian noise of mean D(R), is the Laplacian source again:
    the backward channel that meets the Shannon lower bound."""
    generator, n = np.random.default_rng(5), 400_000
    zero = generator.random(n) < bounds.optimal_zero_fraction(rate)
    output = np.where(zero, 0.0, generator.laplace(size=n))
    source = output + generator.laplace(scale=float(bounds.laplacian_distortion(rate)), size=n)
    fit = bounds.fit_laplace(source)
    assert fit.lam == pytest.approx(1.0, abs=0.01)
    assert fit.ks < 0.004


@pytest.mark.parametrize(
    ("draw", "fits", "ks", "excess"),
    [
        (lambda g: g.laplace(scale=0.02, size=200_000), True, 0.0, 0.0),
        (lambda g: g.normal(size=200_000), False, 0.083, 0.0687),
        (lambda g: g.uniform(-1, 1, size=200_000), False, 0.153, np.log2(np.e / 2)),
    ],
    ids=["laplacian", "gaussian", "uniform"],
)
def test_goodness_of_fit(draw, fits, ks, excess):
    """References: excess = log2(2e E|w|) - h(w), exact for each law."""
    fit = bounds.fit_laplace(draw(np.random.default_rng(1)))
    assert fit.fits is fits
    assert fit.ks == pytest.approx(ks, abs=5e-3)
    assert fit.excess_bits == pytest.approx(excess, abs=5e-3)
    assert ("does not fit" in fit.verdict) is not fits


@given(st.floats(1e-6, 1e6))
def test_fit_is_scale_free(scale):
    weights = np.random.default_rng(2).laplace(size=500)
    one, other = bounds.fit_laplace(weights), bounds.fit_laplace(weights * scale)
    assert other.lam * scale == pytest.approx(one.lam)
    assert other.ks == pytest.approx(one.ks, abs=1e-9)


def test_fit_of_degenerate_layers():
    assert bounds.fit_laplace(np.zeros((3, 4))).fits is False
    assert bounds.fit_laplace([0.5]).lam == 2.0


@pytest.mark.parametrize("weights", [[], [1.0, np.nan], [np.inf]], ids=["empty", "nan", "inf"])
def test_fit_refuses(weights):
    with pytest.raises(ArgumentError, match="not finite"):
        bounds.fit_laplace(weights)


@pytest.mark.parametrize(
    "call",
    [
        lambda: lloyd_max(0),
        lambda: lloyd_max(4, 3),
        lambda: bounds.pruning_l1(1.2),
        lambda: bounds.joint_rate(-0.1, 2),
    ],
)
def test_arguments_out_of_range(call):
    with pytest.raises(ArgumentError, match="expected"):
        call()
