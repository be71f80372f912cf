"""Measured errors, the telescope, coded cut tensors, and the test of additivity."""

from __future__ import annotations

import math

import pytest
import torch
from exact import COARSE, FINE, Basis, changes, dense, judged, make

from torchcoinfer.calibrate import calibrate
from torchcoinfer.calibrate.interpret import Interpreter
from torchcoinfer.errors import ArgumentError, CalibrationError
from torchcoinfer.measure import (
    Measured,
    Unavailable,
    additivity,
    measure_distortion,
    measure_replacements,
    random_trials,
    reference,
    score_cuts,
    score_options,
    telescope,
)
from torchcoinfer.theory.options import Option
from torchcoinfer.trace import trace


def prepared(name: str, metric: str = "output_mse"):
    model, inputs = make(name, 3)
    traced = trace(model, inputs)
    statistics = calibrate(traced, [inputs], metric=metric)
    other = make(name, 4, seed=5)[1]
    return model, traced, statistics, [inputs, other]


def changed_model(name: str, traced, found, option):
    """A second model with every weight changed, and the same as replacements."""
    model, _ = make(name, 3)
    weights = {
        layer.name: dense(model, layer.name) + found[layer.name, option] for layer in traced.graph.layers
    }
    with torch.no_grad():
        for layer, weight in weights.items():
            parameter = model.get_submodule(layer).weight
            parameter.copy_(weight.reshape(parameter.shape))
    return model, weights


@pytest.mark.parametrize("name", ["perceptron", "convolutions", "tokens", "time first"])
def test_measured_per_sample(name):
    model, traced, statistics, batches = prepared(name)
    found = changes(traced)
    changed, weights = changed_model(name, traced, found, COARSE)
    original = reference(traced, statistics, batches)
    errors = measure_distortion(original, changed)
    assert errors.shape == (7,) == (original.samples,)
    expected = []
    for inputs in batches:
        difference = judged(changed, {}, inputs) - judged(model, {}, inputs)
        expected.append(difference.detach().square().flatten(1).sum(1) / statistics.signal)
    torch.testing.assert_close(errors, torch.cat(expected), rtol=1e-9, atol=0)
    torch.testing.assert_close(measure_replacements(original, weights), errors, rtol=1e-9, atol=0)
    assert float(measure_distortion(original, model).max()) == 0.0
    # a callable (a packed module) may stand for a layer too
    layer = traced.graph.layers[-1].name
    module = changed.get_submodule(layer)
    torch.testing.assert_close(
        measure_replacements(original, {**weights, layer: module}), errors, rtol=1e-9, atol=1e-15
    )


def test_measured_kl():
    model, traced, statistics, batches = prepared("tokens", "kl")
    changed, _ = changed_model("tokens", traced, changes(traced), COARSE)
    errors = measure_distortion(reference(traced, statistics, batches[:1]), changed)
    p, q = (judged(net, {}, batches[0]).detach().log_softmax(-1) for net in (model, changed))
    expected = (p.exp() * (p - q)).flatten(1).sum(1) / statistics.signal
    torch.testing.assert_close(errors, expected, rtol=1e-9, atol=0)


def test_a_model_that_diverges_has_infinite_error():
    model, traced, statistics, batches = prepared("perceptron")
    errors = measure_distortion(reference(traced, statistics, batches), lambda x: model(x) * math.nan)
    assert bool(torch.isinf(errors).all())


@pytest.mark.parametrize("name", ["perceptron", "convolutions", "tokens"])
def test_telescope_bounds_every_sample(name):
    _, traced, statistics, batches = prepared(name)
    _, weights = changed_model(name, traced, changes(traced), COARSE)
    original = reference(traced, statistics, batches)
    found = telescope(original, weights)
    assert list(found.steps) == [layer for layer in found.steps if layer in weights]
    assert set(found.steps) == set(weights)
    assert bool((found.actual <= found.bound + 1e-12).all())
    torch.testing.assert_close(
        found.actual.square(), measure_replacements(original, weights), rtol=1e-9, atol=0
    )
    one = next(iter(weights))
    alone = telescope(original, {one: weights[one]})
    torch.testing.assert_close(alone.bound, alone.actual, rtol=1e-12, atol=0)


def code(name, value, bits):
    """Rounds to a grid of the whole tensor: any codec will do."""
    step = value.abs().max() / 2**bits
    return (value / step).round() * step


@pytest.mark.parametrize("name", ["perceptron", "convolutions", "tokens", "time first"])
def test_cut_tensors_equal_brute_force(name):
    """E‖J_x (x̂ − x)‖² with J_x from a directional derivative of the rest of the graph."""
    model, traced, statistics, (inputs, _) = prepared(name)
    floating = [n for n, t in traced.graph.tensors.items() if t.dtype == "float64"]
    probes = judged(model, {}, inputs).numel()
    table = score_cuts(
        traced, statistics, {n: (None, 3, 6) for n in floating}, code=code, noise=Basis(), probes=probes
    )
    assert set(table) == set(floating)
    flat = traced.flatten_inputs(**inputs) if isinstance(inputs, dict) else traced.flatten_inputs(*inputs)
    for tensor in floating:
        assert table[tensor][None] == 0.0
        for bits in (3, 6):
            response = _directional(traced, statistics, flat, traced.tensor_nodes[tensor], bits)
            expected = float(response.square().sum()) / (statistics.samples * statistics.signal)
            assert table[tensor][bits] == pytest.approx(expected, rel=1e-9, abs=1e-30), (tensor, bits)


def _directional(traced, statistics, flat, node, bits):
    """d/dε of the judged output when ``node``'s value moves by ε (x̂ − x)."""

    def run(epsilon):
        def move(seen, args, value):
            if seen is not node:
                return value
            delta = (code("", value, bits) - value).detach()
            return value + epsilon * delta

        outputs = Interpreter(traced).run(flat, tap=move)
        return statistics.judge.tensor(traced.unflatten_outputs(outputs), flat)

    one = torch.zeros((), dtype=torch.float64)
    return torch.func.jvp(run, (one,), (torch.ones_like(one),))[1]


def test_random_configurations_are_predicted_and_measured():
    """Small changes: every random configuration within some percent of the additive prediction."""
    model, traced, statistics, batches = prepared("perceptron")
    found = changes(traced, size=1e-4)
    options = {layer.name: (Option(), FINE, COARSE) for layer in traced.graph.layers}

    def weights(layer, option):
        return dense(model, layer) + found[layer, option] * (10 if option == COARSE else 1)

    curves = score_options(traced, statistics, options, weights=weights, noise=Basis(), probes=6)
    trials = random_trials(
        reference(traced, statistics, batches[:1]), curves, weights, configurations=12, seed=1
    )
    assert len(trials.predicted) == len(trials.measured) == 12 and len(set(trials.predicted)) > 4
    ratios = sorted(m / p for p, m in zip(trials.predicted, trials.measured))
    assert 0.2 < ratios[0] <= ratios[-1] < 3  # three layers: cross terms between them do not average out
    assert trials.kappa(0.1) == pytest.approx(ratios[-1])
    assert isinstance(trials.kappa(0.01), Unavailable)
    only_fine = random_trials(
        reference(traced, statistics, batches[:1]), curves, weights, configurations=2,
        allowed=lambda point: point.option == FINE,
    )  # fmt: skip
    assert len(set(only_fine.measured)) == 1
    for bad in (-1, 0, 2.5):
        with pytest.raises(ArgumentError, match=r"configurations.*at least 1"):
            random_trials(reference(traced, statistics, batches), curves, weights, configurations=bad)
    with pytest.raises(ArgumentError, match="no option may be drawn"):
        random_trials(
            reference(traced, statistics, batches), {"0": curves["0"][:1]}, weights, configurations=1
        )


def table(*distortions):
    return {f"layer {i}": (Measured(FINE, d / 10), Measured(LOW, d)) for i, d in enumerate(distortions)}


LOW = COARSE.__class__(bits=2, format="int", group_size=64, algorithm="nearest")


def test_additivity_is_judged_by_measuring():
    curves = table(0.2, 0.3)
    chosen = {"layer 0": LOW, "layer 1": FINE}
    found = additivity(curves, chosen, measured=0.24)
    assert found.predicted == pytest.approx(0.23) and found.holds
    assert not additivity(curves, chosen, measured=0.5).holds
    assert not additivity(curves, chosen, measured=0.1).holds
    assert additivity(curves, {}, measured=0.0).holds


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda t, s, r: additivity(table(0.1), {"layer 0": COARSE}, 0.1), ArgumentError, "not in the table"),
        (lambda t, s, r: reference(t, s, []), CalibrationError, "empty"),
        (lambda t, s, r: reference(t, s, [torch.zeros(2, 4).double()]), CalibrationError, "batch 0"),
        (lambda t, s, r: measure_distortion(r, lambda x: x[:, :1]), ArgumentError, "another shape"),
        (lambda t, s, r: score_cuts(t, s, {"no": (4,)}, code=code), ArgumentError, "unknown tensors"),
    ],
)
def test_bad_input(call, error, words):
    _, traced, statistics, batches = prepared("perceptron")
    with pytest.raises(error, match=words):
        call(traced, statistics, reference(traced, statistics, batches))


def test_bits_for_integers_are_refused():
    _, traced, statistics, _ = prepared("tokens")
    with pytest.raises(CalibrationError, match="cannot be coded"):
        score_cuts(traced, statistics, {"input_ids": (4,)}, code=code)


def test_telescope_needs_a_norm():
    _, traced, statistics, batches = prepared("tokens", "kl")
    with pytest.raises(ArgumentError, match="output_mse"):
        telescope(reference(traced, statistics, batches), {})
