"""The predictor against brute force, and what it promises about bias, memory, the model and bad input."""

from __future__ import annotations

import pytest
import torch
from exact import CASES, COARSE, FINE, OPTIONS, Basis, changes, dense, exact_response, judged, make
from torch import nn

from torchcoinfer.calibrate import calibrate
from torchcoinfer.errors import ArgumentError
from torchcoinfer.measure import score_options
from torchcoinfer.theory.options import Option
from torchcoinfer.trace import trace


def prepared(name: str, batch: int = 3):
    model, inputs = make(name, batch)
    traced = trace(model, inputs)
    return model, inputs, traced, calibrate(traced, [inputs])


def table_of(traced, options=OPTIONS):
    return {layer.name: options for layer in traced.graph.layers}


def weights_of(model, found):
    return lambda layer, option: dense(model, layer) + found[layer, option]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("working_set_bytes", [64 << 20, 1], ids=["one pass", "a pass a pair"])
def test_equals_brute_force(name, working_set_bytes):
    """With a basis for probes the result is the formula itself."""
    model, inputs, traced, statistics = prepared(name, batch=1 if working_set_bytes == 1 else 3)
    output = judged(model, dict(model.named_parameters()), inputs)
    signal = float(output.detach().square().flatten(1).sum(1).mean())
    assert statistics.signal == pytest.approx(signal, rel=1e-12)
    found = changes(traced)
    curves = score_options(
        traced, statistics, table_of(traced), weights=weights_of(model, found), noise=Basis(),
        probes=output.numel(), working_set_bytes=working_set_bytes,
    )  # fmt: skip
    # a working set too small for exact changes keeps them in eight bits
    tolerance = 1e-9 if working_set_bytes > 1 else 0.02
    assert set(curves) == {layer.name for layer in traced.graph.layers}
    for layer, points in curves.items():
        assert tuple(point.option for point in points) == OPTIONS
        for point in points:
            change = found[layer, point.option]
            response = exact_response(model, inputs, layer, change)
            expected = float(response.square().flatten(1).sum(1).mean()) / signal
            assert point.distortion == pytest.approx(expected, rel=tolerance)
            if isinstance(model.get_submodule(layer), nn.Linear):  # of embeddings only rows that were read
                assert point.weight_mse == pytest.approx(float(change.square().mean()), rel=1e-6)
                assert point.weight_l1 == pytest.approx(float(change.abs().mean()), rel=1e-6)


@pytest.mark.parametrize("name", ["perceptron", "tokens", "time first"])
def test_unbiased(name):
    """The mean over independent probe seeds agrees with the exact value within four standard errors."""
    model, inputs, traced, statistics = prepared(name)
    found = changes(traced)
    options = {layer: (COARSE,) for layer in table_of(traced)}
    exact = score_options(
        traced, statistics, options, weights=weights_of(model, found), noise=Basis(),
        probes=judged(model, dict(model.named_parameters()), inputs).numel(),
    )  # fmt: skip
    runs = {layer: [] for layer in options}
    for seed in range(60):
        curves = score_options(
            traced, statistics, options, weights=weights_of(model, found), probes=4, seed=seed
        )
        for layer in options:
            runs[layer].append(curves[layer][0].distortion)
    for layer, values in runs.items():
        values = torch.tensor(values, dtype=torch.float64)
        error = float(values.std() / len(values) ** 0.5)
        assert abs(float(values.mean()) - exact[layer][0].distortion) <= 4 * error + 1e-12, layer


@pytest.mark.parametrize("name", ["convolutions", "bert", "tokens"])
def test_the_same_however_the_data_are_chunked(name):
    model, inputs, traced, statistics = prepared(name, batch=5)
    found = changes(traced)
    runs = [
        score_options(
            traced, statistics, table_of(traced), weights=weights_of(model, found), working_set_bytes=size
        )
        for size in (64 << 20, 1 << 12)
    ]
    for layer in set(runs[0]) - {"positions"}:  # what samples share is summed over those of a chunk
        for one, other in zip(runs[0][layer], runs[1][layer]):
            assert one.distortion == pytest.approx(other.distortion, rel=3e-2)


class Contrast(nn.Module):
    """Each sample's output depends on the whole batch."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.tanh(self.inner(x))
        return self.outer(x - x.mean(0))


@pytest.mark.parametrize("shapes", [None, (None,)], ids=["dynamic batch", "fixed batch"])
@pytest.mark.parametrize("working_set_bytes", [64 << 20, 1])
def test_samples_that_depend_on_one_another_are_run_together(shapes, working_set_bytes):
    torch.manual_seed(0)
    model, inputs = Contrast().double(), (torch.randn(3, 3, dtype=torch.float64),)
    traced = trace(model, inputs, dynamic_shapes=shapes)
    statistics, found = calibrate(traced, [inputs]), changes(traced)
    curves = score_options(
        traced, statistics, table_of(traced), weights=weights_of(model, found), noise=Basis(), probes=6,
        working_set_bytes=working_set_bytes,
    )  # fmt: skip
    for layer, points in curves.items():
        for point in points:
            response = exact_response(model, inputs, layer, found[layer, point.option])
            expected = float(response.square().sum()) / 3 / statistics.signal
            assert point.distortion == pytest.approx(expected, rel=1e-9 if working_set_bytes > 1 else 0.02)


def test_a_batch_of_fixed_size_is_run_whole():
    """Without a dynamic batch nothing can be cut into chunks; the result is the same."""
    model, inputs = make("convolutions")
    traced = trace(model, inputs, dynamic_shapes=(None,))
    assert not any(traced.dynamic_dims.values())
    found = changes(traced)
    fixed, free = (
        score_options(
            one,
            calibrate(one, [inputs]),
            table_of(one),
            weights=weights_of(model, found),
            working_set_bytes=size,
        )
        for one, size in ((traced, 1 << 14), (trace(model, inputs), 64 << 20))
    )
    for layer in free:
        for one, other in zip(fixed[layer], free[layer]):
            assert one.distortion == pytest.approx(other.distortion, rel=3e-2)


def test_scored_around_a_compressed_model():
    """With replacements, Jacobians and inputs are those of the model that has those weights."""
    model, inputs, traced, statistics = prepared("perceptron")
    found = changes(traced)
    replacements = {name: dense(model, name) + found[name, COARSE] for name in ("0", "2")}
    around = score_options(
        traced, statistics, {"4": (FINE,)}, weights=weights_of(model, found), replacements=replacements
    )
    other, _ = make("perceptron")
    with torch.no_grad():
        for name, weight in replacements.items():
            other.get_submodule(name).weight.copy_(weight)
    again = trace(other, inputs)
    direct = score_options(
        again, calibrate(again, [inputs]), {"4": (FINE,)}, weights=weights_of(other, found)
    )
    ratio = calibrate(again, [inputs]).signal / statistics.signal
    assert around["4"][0].distortion == pytest.approx(direct["4"][0].distortion * ratio, rel=1e-9)


def test_a_linear_network_is_predicted_exactly():
    """No curvature and one layer changed: prediction = measurement."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    traced = trace(model, (x,))
    statistics = calibrate(traced, [x])
    found = changes(traced)
    curves = score_options(
        traced, statistics, table_of(traced), weights=weights_of(model, found), noise=Basis(), probes=12
    )
    for layer in ("0", "1"):
        parameters = dict(model.named_parameters())
        parameters[f"{layer}.weight"] = parameters[f"{layer}.weight"] + found[layer, FINE]
        error = judged(model, parameters, (x,)) - model(x)
        measured = float(error.detach().square().sum(1).mean()) / statistics.signal
        assert curves[layer][0].distortion == pytest.approx(measured, rel=1e-9)


def test_the_model_is_left_alone():
    """Frozen parameters, train mode, existing gradients: all as before; and frozen ones score the same."""
    model, inputs, traced, statistics = prepared("convolutions")
    found = changes(traced)
    free = score_options(traced, statistics, table_of(traced), weights=weights_of(model, found))
    frozen, _ = make("convolutions")
    frozen.requires_grad_(False).train()
    frozen.head.weight.grad = torch.ones_like(frozen.head.weight)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    again = trace(frozen, inputs)
    scored = score_options(
        again, calibrate(again, [inputs]), table_of(again), weights=weights_of(frozen, found)
    )
    assert scored == free
    assert frozen.training and all(not parameter.requires_grad for parameter in frozen.parameters())
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    grads = [name for name, parameter in frozen.named_parameters() if parameter.grad is not None]
    assert grads == ["head.weight"] and bool((frozen.head.weight.grad == 1).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    """Scored in the model's own precision, summed in float32."""
    model, inputs, traced, statistics = prepared("perceptron")
    found = changes(traced)
    options = {layer: (FINE,) for layer in table_of(traced)}
    exact = score_options(traced, statistics, options, weights=weights_of(model, found))
    half, inputs = model.to(dtype), (inputs[0].to(dtype),)
    traced = trace(half, inputs)
    scored = score_options(
        traced, calibrate(traced, [inputs]), options, weights=lambda *pair: dense(half, pair[0]) + found[pair]
    )
    for layer, points in scored.items():
        assert points[0].distortion == pytest.approx(exact[layer][0].distortion, rel=0.1)


def test_kl_is_the_second_order_divergence():
    """metric="kl": the Fisher form, exact with a basis, and the limit of the real divergence."""
    model, inputs = make("tokens")
    traced = trace(model, inputs)
    statistics = calibrate(traced, [inputs], metric="kl")
    parameters = dict(model.named_parameters())
    logits = judged(model, parameters, inputs).detach()
    found = changes(traced, size=1e-3)
    curves = score_options(
        traced, statistics, table_of(traced), weights=weights_of(model, found), noise=Basis(),
        probes=logits.numel(),
    )  # fmt: skip
    log_p = logits.log_softmax(-1)
    uniform = (log_p.exp() * (log_p + torch.tensor(11.0).log())).flatten(1).sum(1).mean()
    assert statistics.signal == pytest.approx(float(uniform), rel=1e-6)
    for layer in ("words", "mix", "positions"):
        changed = {
            **parameters, f"{layer}.weight": parameters[f"{layer}.weight"] + found[layer, FINE]
        }  # fmt: skip
        log_q = judged(model, changed, inputs).detach().log_softmax(-1)
        divergence = (log_p.exp() * (log_p - log_q)).flatten(1).sum(1).mean() / statistics.signal
        assert curves[layer][0].distortion == pytest.approx(float(divergence), rel=0.02)


@pytest.mark.parametrize("name", ["perceptron", "convolutions"])
def test_coded_activations_are_scored_as_the_packed_layer_computes(name):
    """activation_bits: to first order, the response to (x̂ ŵᵀ − x wᵀ) instead of x (ŵ − w)ᵀ."""
    model, inputs, traced, statistics = prepared(name)
    coded = Option(bits=8, format="int", group_size=64, activation_bits=8, algorithm="nearest")
    last = {"perceptron": "4", "convolutions": "head"}[name]
    options = {layer: (coded,) for layer in table_of(traced)}
    curves = score_options(
        traced, statistics, options, weights=lambda layer, option: dense(model, layer), noise=Basis(),
        probes=judged(model, dict(model.named_parameters()), inputs).numel(),
    )  # fmt: skip
    assert all(0.0 < points[0].distortion < 0.01 for points in curves.values())
    seen = []
    handle = model.get_submodule(last).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    output = model(*inputs).detach()
    handle.remove()
    x = seen[0].detach()
    scale = x.abs().amax(-1, keepdim=True) / 127
    changed = torch.nn.functional.linear((x / scale).round() * scale, dense(model, last))
    error = changed + model.get_submodule(last).bias.detach() - output
    measured = float(error.square().sum(1).mean()) / statistics.signal
    assert curves[last][0].distortion == pytest.approx(measured, rel=1e-6)


def test_each_weight_is_asked_for_once_and_identity_never():
    model, inputs, traced, statistics = prepared("tokens")
    found, asked = changes(traced), []

    def weights(layer, option):
        asked.append((layer, option))
        return dense(model, layer) + found[layer, option]

    curves = score_options(
        traced, statistics, table_of(traced, (Option(), *OPTIONS)), weights=weights, working_set_bytes=1
    )
    assert sorted(asked) == sorted(found)
    assert all(points[0].distortion == 0.0 for points in curves.values())


def test_a_layer_that_nothing_judges_costs_nothing():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.aside = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x), self.aside(x)

    model, x = Aside(), torch.randn(3, 2)
    traced = trace(model, (x,))
    curves = score_options(
        traced, calibrate(traced, [x]), table_of(traced, (FINE,)), weights=lambda *_: torch.zeros(2, 2)
    )
    assert curves["aside"][0].distortion == 0.0 < curves["used"][0].distortion


@pytest.mark.parametrize(
    "options, weights, words",
    [
        ({"9": (FINE,)}, None, "unknown layers"),
        ({"0": (FINE,)}, lambda *_: torch.zeros(2, 2), r"\(5, 3\)"),
        ({"0": (FINE,)}, lambda *_: torch.full((5, 3), float("nan")), "NaN or Inf"),
    ],
)
def test_bad_input(options, weights, words):
    _, _, traced, statistics = prepared("perceptron")
    with pytest.raises(ArgumentError, match=words):
        score_options(traced, statistics, options, weights=weights)
