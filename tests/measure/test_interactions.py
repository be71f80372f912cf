"""The quadratic model of what layers do to the output together."""

from __future__ import annotations

import pytest
import torch
from exact import COARSE, FINE, changes, dense, make
from torch import nn

from torchcoinfer.calibrate import calibrate
from torchcoinfer.calibrate.interpret import Shifted
from torchcoinfer.errors import ArgumentError
from torchcoinfer.measure import Measured, halfway, measure_interactions, measure_replacements, reference
from torchcoinfer.theory.options import Option
from torchcoinfer.trace import trace

NAMES = ("perceptron", "convolutions", "tokens", "time first")


class Parallel(nn.Module):
    """Two layers whose outputs are added: changes of the weights add up exactly."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, outputs), nn.Linear(6, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.two(x)


def measured(name: str, metric: str = "output_mse"):
    model, inputs = make(name, 3)
    traced = trace(model, inputs)
    statistics = calibrate(traced, [inputs], metric=metric)
    found = changes(traced)
    weights = {key: dense(model, key[0]) + change for key, change in found.items()}
    original = reference(traced, statistics, [inputs])
    layers = [layer.name for layer in traced.graph.layers]
    options = dict.fromkeys(layers, (FINE, COARSE))
    made = measure_interactions(original, options, lambda layer, option: weights[layer, option])
    return original, layers, weights, made


def parallel(outputs: int):
    torch.manual_seed(0)
    model, x = Parallel(outputs).eval(), torch.randn(4, 6)
    traced = trace(model, (x,))
    original = reference(traced, calibrate(traced, [x]), [x])
    weights = {(n, COARSE): model.get_submodule(n).weight.detach() * 0.9 for n in ("one", "two")}
    return original, weights, dict.fromkeys(("one", "two"), (COARSE,))


@pytest.mark.parametrize("name", NAMES)
def test_one_layer_alone_is_exact(name):
    original, layers, weights, made = measured(name)
    for layer in layers:
        alone = float(measure_replacements(original, {layer: weights[layer, COARSE]}).mean())
        assert made.single(layer, COARSE) == pytest.approx(alone, rel=1e-5)
        assert made.distortion({layer: COARSE}) == pytest.approx(alone, rel=1e-5)
    assert made.distortion({}) == 0.0 == made.distortion(dict.fromkeys(layers, Option()))


@pytest.mark.parametrize("metric", ["output_mse", "kl"])
def test_small_changes_add_up_as_vectors(metric):
    original, layers, weights, _ = measured("perceptron", metric)
    small = {key: original.traced.model.get_submodule(key[0]).weight for key in weights}
    small = {key: old.detach() + 0.01 * (weights[key] - old.detach()) for key, old in small.items()}
    options = dict.fromkeys(layers, (FINE, COARSE))
    made = measure_interactions(original, options, lambda layer, option: small[layer, option])
    for option in (FINE, COARSE):
        joint = float(measure_replacements(original, {n: small[n, option] for n in layers}).mean())
        assert made.distortion(dict.fromkeys(layers, option)) == pytest.approx(joint, rel=0.03)


@pytest.mark.parametrize("outputs", [5, 2000])
def test_changes_that_pull_one_way_are_seen(outputs):
    """Shrunken weights: the error of both is far above the sum of the two, and the sketch keeps it."""
    original, weights, options = parallel(outputs)
    made = measure_interactions(original, options, lambda layer, option: weights[layer, option])
    joint = float(measure_replacements(original, {n: weights[n, COARSE] for n in options}).mean())
    rel = 1e-5 if outputs < 256 else 0.05
    assert made.distortion(dict.fromkeys(options, COARSE)) == pytest.approx(joint, rel=rel)


def test_changed_biases_count():
    original, weights, options = parallel(5)
    shifts = {"one": torch.full((5,), 0.3), "two": torch.full((5,), -0.3)}
    made = measure_interactions(
        original, options, lambda layer, option: Shifted(weights[layer, option], shifts[layer])
    )
    plain = measure_interactions(original, options, lambda layer, option: weights[layer, option])
    both = dict.fromkeys(options, COARSE)
    assert made.distortion(both) == pytest.approx(plain.distortion(both), rel=1e-4)  # the shifts cancel
    assert made.single("one", COARSE) != pytest.approx(plain.single("one", COARSE), rel=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_table_around_a_configuration(name):
    """Shares sum to Q; the table around tells Q's change with one layer's option."""
    _, layers, _, made = measured(name)
    curves = {n: tuple(Measured(o, 1.0) for o in (Option(), FINE, COARSE)) for n in layers}
    curves["not compressed"] = (Measured(Option(), 0.0), Measured(FINE, 7.0))
    chosen = dict.fromkeys(layers, COARSE)
    total = made.distortion(chosen)
    assert sum(made.shares(chosen).values()) == pytest.approx(total, rel=1e-5)
    around = made.around(curves, chosen)
    assert around["not compressed"] == curves["not compressed"]
    compared = 0
    for layer in layers:
        entry = {point.option: point.distortion for point in around[layer]}
        if min(entry[FINE], entry[COARSE]) > 0.0:  # below 0 an entry is cut off
            moved = made.distortion(chosen | {layer: FINE}) - total
            assert entry[FINE] - entry[COARSE] == pytest.approx(moved, rel=1e-3, abs=1e-5 * total)
            compared += 1
    assert compared


def test_halfway_sums_to_the_whole_change():
    """Among layers half-way changed the layers' changes sum to the joint one up to third order."""
    original, layers, weights, alone = measured("perceptron")
    chosen = dict.fromkeys(layers, COARSE)
    own = {n: original.traced.model.get_submodule(n).weight.detach() for n in layers}
    around = {n: halfway(own[n], weights[n, COARSE]) for n in layers}
    options = dict.fromkeys(layers, (COARSE,))
    among = measure_interactions(original, options, lambda *key: weights[key], around=around)
    joint = float(measure_replacements(original, {n: weights[n, COARSE] for n in layers}).mean())
    assert abs(among.distortion(chosen) - joint) < 0.5 * abs(alone.distortion(chosen) - joint)
    with pytest.raises(ArgumentError, match="tensor or Shifted"):
        halfway(own[layers[0]], lambda x: x)


def test_unmeasured_options_are_left_out_and_refused():
    _, layers, _, made = measured("perceptron")
    low = Option(bits=2, format="int", group_size=64, algorithm="nearest")
    table = made.around({layers[0]: (Measured(FINE, 1.0), Measured(low, 2.0))}, {})
    assert [point.option for point in table[layers[0]]] == [FINE]
    with pytest.raises(ArgumentError, match="not measured"):
        made.distortion({layers[0]: low})


BAD_MEASUREMENTS = {
    "unknown layer": ("three", lambda own: own, {}),
    "unknown layer around": ("one", lambda own: own, {"three": torch.zeros(5, 6)}),
    "nothing": ("one", lambda own: None, {}),
    "number": ("one", lambda own: 1.0, {}),
    "another shape": ("one", lambda own: own[:, :3], {}),
    "one row": ("one", lambda own: own[:1], {}),
    "vector": ("one", lambda own: own[0], {}),
    "shifted": ("one", lambda own: Shifted(own[:1], torch.zeros(5)), {}),
    "around": ("one", lambda own: own, {"two": torch.zeros(5, 5)}),
    "not finite": ("one", lambda own: own * float("nan"), {}),
    "infinite output": ("one", lambda own: lambda x: torch.full((4, 5), float("inf")), {}),
}


@pytest.mark.parametrize("name", BAD_MEASUREMENTS)
def test_what_cannot_be_measured_is_refused(name):
    layer, made, around = BAD_MEASUREMENTS[name]
    original, weights, _ = parallel(5)
    with pytest.raises(ArgumentError) as refused:
        measure_interactions(
            original, {layer: (COARSE,)}, lambda _, option: made(weights["one", option]), around=around
        )
    assert refused.value.got and refused.value.expected and refused.value.remedy
