"""Conformal quantiles: the rank rule on integers, coverage over many splits, and refusals in words."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from torchcoinfer.errors import ArgumentError
from torchcoinfer.measure import Unavailable, certify, kappa


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.3, 0.5, 0.7])
def test_rank_rule(alpha):
    """Errors 1..n: the certificate is the rank itself, or unavailable exactly below n = 1/α − 1."""
    level = Fraction(repr(alpha))
    for n in range(0, 130):
        found = certify(range(1, n + 1), alpha)
        rank = math.ceil((n + 1) * (1 - level))
        if n < 1 / level - 1:
            assert isinstance(found, Unavailable)
            assert (found.n, found.needs) == (n, math.ceil(1 / level - 1))
            assert f"n={n}" in str(found) and f"needs {found.needs}" in str(found)
        else:
            assert found == rank


def test_decimal_levels_are_exact():
    """(9 + 1)(1 − .1) is 9 although binary .1 is not a tenth: nine samples suffice, the largest is taken."""
    assert certify([float(i) for i in range(9)], 0.1) == 8.0
    assert certify([float(i) for i in range(19)], 0.1) == 17.0
    assert isinstance(certify([1.0] * 8, 0.1), Unavailable)


@pytest.mark.parametrize("alpha, n", [(0.1, 19), (0.1, 60), (0.25, 11)])
def test_coverage_over_random_splits(alpha, n):
    """Mean coverage of fresh samples over 400 random splits of one pool ≥ 1 − α − 2 standard errors."""
    generator = np.random.default_rng(7)
    pool = generator.lognormal(sigma=1.5, size=900)
    covered = []
    for _ in range(400):
        order = generator.permutation(len(pool))
        limit = certify(pool[order[:n]], alpha)
        covered.append(float((pool[order[n:]] <= limit).mean()))
    error = np.std(covered) / len(covered) ** 0.5
    assert np.mean(covered) >= 1 - alpha - 2 * error
    assert np.mean(covered) <= 1 - alpha + 1 / (n + 1) + 3 * error  # and it is no looser than it must be


def test_rounds_divide_the_level():
    errors = list(range(1, 30))
    assert certify(errors, 0.3, rounds=3) == certify(errors, 0.1)
    assert isinstance(certify(errors, 0.1, rounds=4), Unavailable)


def test_kappa_covers_fresh_configurations():
    generator = np.random.default_rng(3)
    covered = []
    for _ in range(300):
        predicted = generator.lognormal(size=40)
        measured = predicted * generator.lognormal(sigma=0.3, size=40)
        factor = kappa(predicted[:30], measured[:30], 0.1)
        covered.append(float((measured[30:] <= factor * predicted[30:]).mean()))
    assert np.mean(covered) >= 0.9 - 2 * np.std(covered) / len(covered) ** 0.5


def test_infinite_errors_stay_infinite():
    """A model that diverges on more than a share α of the samples is certified at nothing finite."""
    assert certify([0.1] * 8 + [math.inf] * 2, 0.1) == math.inf
    assert certify([0.1] * 18 + [math.inf], 0.1) == 0.1


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: certify([1.0], 0.0), "alpha"),
        (lambda: certify([1.0], 1.0), "alpha"),
        (lambda: certify([1.0], 0.1, rounds=0), "rounds"),
        (lambda: certify([math.nan], 0.5), "NaN"),
        (lambda: kappa([1.0], [1.0, 2.0], 0.5), "one length"),
        (lambda: kappa([0.0], [1.0], 0.5), "positive"),
        (lambda: kappa([math.inf] * 20, [1.0] * 20, 0.1), "finite"),
        (lambda: kappa([1.0, math.nan], [1.0] * 2, 0.5), "finite"),
        (lambda: kappa([1.0], [math.nan], 0.5), "NaN"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()
