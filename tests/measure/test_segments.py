"""Segment by segment as in one piece: every Jacobian product, every table, and what is held meanwhile."""

from __future__ import annotations

import functools
from functools import partial

import pytest
import torch
import zoo
from exact import OPTIONS, Tokens, changes, dense, make
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from torchcoinfer.calibrate import calibrate
from torchcoinfer.calibrate.judge import Judge
from torchcoinfer.measure import score_cuts, score_options
from torchcoinfer.measure.segments import Meter
from torchcoinfer.measure.sweep import measure_costs, sweep
from torchcoinfer.measure.tape import Rademacher, Tape
from torchcoinfer.trace import trace

# of the zoo without vit, whose head starts at zero so that nothing is judged, and mobilenet, which is slow
NAMES = ["two_branches", "everything", "flattens", "resnet", "bert", "distilbert", "llama", "gpt2"]
PROBES = 3
# of float32 sums with cancelling terms, recomputed on however many threads (2.1e-5 was seen)
ROUNDING = 2e-4


@functools.cache
def prepared(name: str):
    """A float64 model of the zoo, traced, and flat inputs of three samples."""
    model = zoo.make(name).double()
    torch.manual_seed(1)
    inputs = zoo.CASES[name].inputs(3, 6)
    inputs = torch.utils._pytree.tree_map(lambda x: x.double() if x.is_floating_point() else x, inputs)
    traced = trace(model, inputs, dynamic_shapes=zoo.DYNAMIC.get(name))
    flat = traced.flatten_inputs(**inputs) if isinstance(inputs, dict) else traced.flatten_inputs(*inputs)
    return traced, tuple(flat)


def swept(tape, inputs, nodes, bounds, differentiable):
    """Every site's g, each site in one segment only."""
    noise, found = partial(Rademacher(0), samples=range(len(inputs[0]))), {}
    for sites, g in sweep(tape, inputs, nodes, bounds, differentiable, PROBES, noise):
        assert sites.keys() == g.keys() and not found.keys() & g.keys()
        assert not any(site.value.requires_grad for site in sites.values())
        found |= g
    return found


def everywhere(costs, stride):
    return tuple(p for p in range(1, len(costs.kept), stride) if not costs.barred[p])


@pytest.mark.parametrize(
    "name, metric", [(name, "output_mse") for name in NAMES] + [("two_branches", "kl"), ("llama", "kl")]
)
def test_products_are_those_of_one_piece(name, metric):
    """Sites at all layers and at all floating tensors; a segment a node, and segments of seven nodes."""
    traced, inputs = prepared(name)
    tape = Tape(traced, Judge(metric=metric), inputs)
    calls = {call.node for call in tape.interpreter.calls}
    for nodes, strides in ((calls, (1, 7)), (calls | set(traced.tensor_nodes.values()), (9,))):
        costs = measure_costs(tape, inputs, nodes, PROBES)
        whole = swept(tape, inputs, nodes, (), costs.differentiable)
        assert any(g.abs().max() > 0 for g in whole.values())
        judged, sites = tape.record(inputs, nodes)
        noise = partial(Rademacher(0), samples=range(len(inputs[0])))
        plain = tape.responses(judged, sites, PROBES, noise)
        assert all(torch.equal(plain[node], whole[node]) for node in plain)
        largest = max(float(g.abs().max()) for g in whole.values())
        for stride in strides:
            parts = swept(tape, inputs, nodes, everywhere(costs, stride), costs.differentiable)
            assert parts.keys() == whole.keys()
            for node, g in whole.items():
                assert (parts[node] - g).abs().max() <= 1e-12 * largest, node


@pytest.mark.parametrize("metric", ["output_mse", "kl"])
@pytest.mark.parametrize("name", ["tokens", "convolutions", "bert", "time first"])
def test_tables_are_those_of_one_piece(name, metric):
    """Calls of a layer in several segments are added before squaring; a row shared by samples as well."""
    model, inputs = make(name, batch=1)
    traced = trace(model, inputs)
    # one sample a batch, so that chunks are the same for every working set
    statistics = calibrate(traced, [inputs, make(name, batch=1, seed=1)[1]], metric=metric, probes=40)
    found = changes(traced)
    options = {layer.name: OPTIONS for layer in traced.graph.layers}
    weights_bytes = sum(16 * layer.rows * layer.columns for layer in traced.graph.layers)
    whole, parts = (
        score_options(
            traced, statistics, options, weights=lambda layer, o: dense(model, layer) + found[layer, o],
            working_set_bytes=size,
        )
        for size in (1 << 30, 2 * weights_bytes)
    )  # fmt: skip
    tape = Tape(traced, statistics.judge, statistics.batches[0])
    costs = measure_costs(tape, statistics.batches[0], {call.node for call in tape.interpreter.calls}, 40)
    assert (costs.divide(weights_bytes) != ()) == (name in ("tokens", "convolutions", "bert"))
    assert costs.divide(1 << 30) == ()
    largest = max(point.distortion for points in whole.values() for point in points)
    for layer, points in whole.items():
        for one, other in zip(points, parts[layer]):
            assert other.distortion == pytest.approx(one.distortion, rel=1e-12, abs=1e-15 * largest)
            assert other.distortion_se == pytest.approx(one.distortion_se, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["two_branches", "llama"])
def test_cuts_and_single_precision(name):
    model = zoo.make(name)
    traced = zoo.traced(name, model)
    statistics = calibrate(traced, [zoo.CASES[name].inputs(2, 6)])
    layers, cuts = [], []
    cut_nodes = [n for n, node in traced.tensor_nodes.items() if node.meta["val"].is_floating_point()]
    weights = {layer.name: torch.zeros(layer.rows, layer.columns) for layer in traced.graph.layers}
    budget = 2 * sum(4 * weight.numel() for weight in weights.values())
    for size in (1 << 30, budget):
        options = {layer: OPTIONS[:1] for layer in weights}
        layers.append(
            score_options(traced, statistics, options, weights=lambda layer, _: weights[layer],
                          working_set_bytes=size, probes=20)
        )  # fmt: skip
        cuts.append(
            score_cuts(traced, statistics, dict.fromkeys(cut_nodes, (None, 4)), probes=2,
                       code=lambda name, value, bits: value.round(), working_set_bytes=size // 100)
        )  # fmt: skip
    for layer, points in layers[0].items():
        assert layers[1][layer][0].distortion == pytest.approx(points[0].distortion, rel=ROUNDING)
    for tensor, table in cuts[0].items():
        assert cuts[1][tensor] == pytest.approx(table, rel=ROUNDING)


@pytest.mark.parametrize("name", ["everything", "resnet", "bert", "llama"])
def test_the_meter_counts_what_a_tape_keeps(name):
    """Bytes of all storages that a real pass saves, each once, the parameters' left out."""
    traced, inputs = prepared(name)
    tape = Tape(traced, Judge(), inputs)
    nodes = {call.node for call in tape.interpreter.calls}
    meter, kept = Meter(tape.interpreter), []
    everything = (0, len(tape.interpreter.nodes))

    def see(node, args, value):
        value = tape.observer(nodes, 3, {})(node, args, value)
        meter.see(node, value)
        return value

    with torch.enable_grad(), meter.hooks():
        tape.run(everything, {}, inputs, see)
    with torch.enable_grad(), saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        outputs = tape.run(everything, {}, inputs, tape.observer(nodes, 3, {}))
    own = {x.untyped_storage().data_ptr() for x in traced.program.state_dict.values()}
    own |= {x.untyped_storage().data_ptr() for x in traced.program.constants.values() if torch.is_tensor(x)}
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    assert outputs and sum(meter.kept.values()) == sum(n for at, n in storages.items() if at not in own) > 0


class Held:
    """A saved tensor, counted as long as autograd holds it."""

    live = most = 0

    def __init__(self, tensor):
        self.tensor, self.size = tensor, tensor.untyped_storage().nbytes()
        Held.live += self.size
        Held.most = max(Held.most, Held.live)

    def __del__(self):
        Held.live -= self.size


def test_a_deep_model_holds_one_segment_at_a_time():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Tanh()) for _ in range(64)))
    x = torch.randn(16, 8)
    traced = trace(model, (x,))
    tape = Tape(traced, Judge(), (x,))
    nodes = {call.node for call in tape.interpreter.calls}
    costs = measure_costs(tape, (x,), nodes, PROBES)
    most, found = [], []
    for budget in (1 << 30, 0):
        bounds = costs.divide(budget)
        Held.live = Held.most = 0
        with saved_tensors_hooks(Held, lambda held: held.tensor):
            found.append(swept(tape, (x,), nodes, bounds, costs.differentiable))
        most.append((costs.peak(bounds), Held.most, len(bounds) + 1))
    (whole, whole_held, pieces), (least, least_held, segments) = most
    assert pieces == 1 and 4 <= segments <= 32
    assert least < whole / 4 and least_held < whole_held / 4
    assert all(torch.allclose(found[1][node], g, rtol=1e-5) for node, g in found[0].items())
    # between both, the fewest segments that fit
    fits = [costs.divide(share * whole) for share in (0.9, 0.6, 0.4)]
    assert 2 <= len(fits[0]) + 1 <= len(fits[1]) + 1 <= len(fits[2]) + 1 <= segments
    assert all(costs.peak(bounds) <= share * whole for bounds, share in zip(fits, (0.9, 0.6, 0.4)))


class Recurrent(nn.Module):
    """A value that is no single tensor, between two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(4, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        states, (hidden, _) = self.cell(self.first(x))
        one, two = states.chunk(2, 1)
        return self.last(torch.cat([one[:, 0] * two[:, 0], hidden[-1]], -1))


def test_no_boundary_inside_a_tuple():
    torch.manual_seed(0)
    model, x = Recurrent().double(), torch.randn(2, 4, 4, dtype=torch.float64)
    traced = trace(model, (x,))
    tape = Tape(traced, Judge(), (x,))
    nodes = {call.node for call in tape.interpreter.calls}
    costs = measure_costs(tape, (x,), nodes, PROBES)
    assert any(costs.barred)
    assert not any(costs.barred[p] for pieces in (2, 8, 64) for p in costs.bounds(pieces))
    whole = swept(tape, (x,), nodes, (), costs.differentiable)
    parts = swept(tape, (x,), nodes, everywhere(costs, 1), costs.differentiable)
    assert whole.keys() == parts.keys() and len(whole) >= 2
    for node, g in whole.items():
        torch.testing.assert_close(parts[node], g, rtol=1e-12, atol=1e-13)


def test_tokens_call_one_layer_in_several_segments():
    """The premise of the sum over segments: the shared module's calls do fall into different ones."""
    model, inputs = make("tokens")
    assert isinstance(model, Tokens)
    traced = trace(model, inputs)
    statistics = calibrate(traced, [inputs])
    tape = Tape(traced, statistics.judge, statistics.batches[0])
    calls = [call.node for call in tape.interpreter.calls if call.layer == "mix"]
    bounds = measure_costs(tape, statistics.batches[0], set(calls), 8).bounds(8)
    places = [tape.interpreter.nodes.index(node) for node in calls]
    assert len({sum(bound <= place for bound in bounds) for place in places}) == len(calls) == 2
