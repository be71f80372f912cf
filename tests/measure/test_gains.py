"""Gains and the weight of cross terms, fitted to measured configurations."""

import random

import numpy as np
import pytest
import torch

from torchcoinfer.errors import ArgumentError
from torchcoinfer.measure import Interactions, Measured, fit_gains
from torchcoinfer.theory.options import Option

LAYERS, OPTIONS = ("a", "b", "c", "d"), tuple(Option(bits, format="int", group_size=64) for bits in (2, 4, 8))


def interactions(cross=1.0, alike=0.5):
    """Vectors of one common direction and one of their own."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(64, generator=generator)
    vectors = {
        (name, option): (alike * common + torch.randn(64, generator=generator)) * 2.0**-option.bits
        for name in LAYERS
        for option in OPTIONS
    }
    return Interactions(vectors, cross)


def drawn(count, seed=0):
    generator = random.Random(seed)
    return [
        {name: generator.choice((Option(), *OPTIONS)) for name in LAYERS[1:]} | {"a": OPTIONS[0]}
        for _ in range(count)
    ]


@pytest.mark.parametrize("cross", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("gains", [(1.0, 1.0, 1.0, 1.0), (0.7, 1.3, 1.0, 0.5)])
def test_what_made_the_errors_is_found(gains, cross):
    found = interactions()
    by_layer = dict(zip(LAYERS, gains))
    truth = Interactions({k: v * by_layer[k[0]] for k, v in found.vectors.items()}, cross)
    seen, fresh = drawn(80), drawn(20, seed=1)
    fitted = fit_gains(found, seen, [truth.distortion(chosen) for chosen in seen])
    wanted = np.array([truth.distortion(chosen) for chosen in fresh])
    own, before = (np.array([m.distortion(chosen) for chosen in fresh]) for m in (fitted, found))
    assert np.abs(np.log(own / wanted)).max() < 0.03
    assert fitted.cross == pytest.approx(cross, abs=0.1)
    if (gains, cross) != ((1.0, 1.0, 1.0, 1.0), 1.0):
        assert np.abs(np.log(own / wanted)).mean() < np.abs(np.log(before / wanted)).mean() / 4


def test_one_configuration_moves_all_gains_alike():
    found, chosen = interactions(), dict.fromkeys(LAYERS, OPTIONS[0])
    fitted = fit_gains(found, [chosen], [4.0 * found.distortion(chosen)])
    ratios = [float((fitted.vectors[key] / found.vectors[key]).mean()) for key in found.vectors]
    assert ratios == pytest.approx([2.0] * len(ratios), rel=1e-2)


@pytest.mark.parametrize("cross", [1.0, 0.3, 0.0])
def test_tables_and_shares_know_the_weight_of_cross_terms(cross):
    model, chosen = interactions(cross), drawn(1)[0]
    total = model.distortion(chosen)
    assert sum(model.shares(chosen).values()) == pytest.approx(total, rel=1e-5)
    curves = {name: tuple(Measured(o, 1.0) for o in (Option(), *OPTIONS)) for name in LAYERS}
    for name, points in model.around(curves, chosen).items():
        table = {point.option: point.distortion for point in points}
        for option in OPTIONS:
            change = model.distortion(chosen | {name: option}) - model.distortion(chosen | {name: Option()})
            assert table[option] == pytest.approx(max(0.0, change), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    "configurations, measured, message",
    [
        ([], [], "one length"),
        (drawn(2), [0.1], "one length"),
        (drawn(1), [0.0], "finite"),
        (drawn(1), [float("nan")], "finite"),
        ([{"a": Option()}], [0.1], "changes nothing"),
        ([{"a": Option(3, format="int", group_size=64)}], [0.1], "not measured"),
    ],
)
def test_what_cannot_be_fitted_is_refused(configurations, measured, message):
    with pytest.raises(ArgumentError, match=message):
        fit_gains(interactions(), configurations, measured)
