"""Moments against the definition, the judged tensor, and the stream against plain forward passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from torchcoinfer.calibrate import Judge, Stream, calibrate
from torchcoinfer.calibrate.interpret import Interpreter
from torchcoinfer.errors import ArgumentError
from torchcoinfer.trace import trace


class Block(nn.Module):
    """Query, key and value of one input, then an output layer; padding is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.query, self.key, self.value, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids)
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        scores = scores.masked_fill(attention_mask[:, None] == 0, -1e9)
        return x + self.out(scores.softmax(-1) @ self.value(x))


class Shared(nn.Module):
    """One module called twice, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(torch.tanh(self.mix(self.words(ids))))))


def tokens(batch: int, length: int) -> dict[str, Tensor]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, 2:] = 0
    return {"input_ids": torch.randint(0, 9, (batch, length)), "attention_mask": mask}


CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 4, 3),
    "strided, padded": nn.Conv2d(3, 4, (3, 2), stride=(2, 3), padding=(1, 2)),
    "dilated": nn.Conv2d(2, 4, 3, dilation=2, padding=2, bias=False),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "depthwise": nn.Conv2d(3, 3, 3, groups=3, stride=2),
    "same": nn.Conv2d(2, 2, (4, 3), padding="same", dilation=(1, 2)),
    "point": nn.Conv2d(5, 2, 1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_moments(name):
    """Against a loop: the inputs are those vectors whose product with the weight is the output."""
    conv = CONVOLUTIONS[name]
    x = torch.randn(3, conv.in_channels, 9, 10)
    traced = trace(nn.Sequential(conv), (x,))
    statistics = calibrate(traced, [x, x[:2] * 2])
    (layer,) = traced.graph.layers
    (gram,) = [segment.inputs_second_moment()[layer.name] for segment in Stream(traced, statistics.batches)]
    groups, columns = conv.groups, layer.columns
    vectors = [_patches(conv, batch) for batch in (x, x[:2] * 2)]
    expected = torch.stack([sum(v[g].T @ v[g] for v in vectors) for g in range(groups)])
    torch.testing.assert_close(gram, expected[0] if groups == 1 else expected, rtol=1e-4, atol=1e-4)
    count = sum(v.shape[1] for v in vectors)
    assert statistics.positions[layer.name] == count
    diagonal = expected.diagonal(dim1=1, dim2=2).mean(0) / count
    torch.testing.assert_close(statistics.second_moments[layer.name], diagonal, rtol=1e-4, atol=1e-5)
    assert statistics.importance(layer.name).shape == (columns,)


def _patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Input vectors [groups, positions, K] read off by convolving with every unit kernel."""
    kernel = conv.weight.shape[1:]
    columns = conv.weight[0].numel()
    units = torch.eye(columns).reshape(columns, *kernel)
    found = []
    for part in x.chunk(conv.groups, 1):
        out = functional.conv2d(part, units, None, conv.stride, conv.padding, conv.dilation)
        found.append(out.permute(0, 2, 3, 1).reshape(-1, columns))
    return torch.stack(found)


def test_linear_moments_leave_padding_out():
    torch.manual_seed(0)
    model, batch = Block().eval(), tokens(3, 5)
    traced = trace(model, batch)
    statistics = calibrate(traced, [batch])
    x = model.words(batch["input_ids"])[batch["attention_mask"] != 0].detach()
    torch.testing.assert_close(statistics.second_moments["query"], x.square().mean(0))
    assert statistics.positions["query"] == len(x) == 12
    assert statistics.importance("words") is None
    counts = torch.bincount(batch["input_ids"].flatten(), minlength=9)
    assert torch.equal(statistics.row_counts["words"], counts)
    output = model(**batch).detach() * batch["attention_mask"][..., None]
    assert statistics.signal == pytest.approx(float(output.square().sum() / 3), rel=1e-6)
    assert statistics.samples == 3 and len(statistics.batches) == 1


def test_segments_see_compressed_inputs():
    """Each layer's moments are those of the model with all earlier layers replaced, in one pass."""
    torch.manual_seed(0)
    model = Block().eval()
    batches = [tokens(3, 5), tokens(2, 4)]
    traced = trace(model, batches[0])
    statistics = calibrate(traced, batches)
    weights = {
        layer.name: 0.5 * model.get_submodule(layer.name).weight.detach() for layer in traced.graph.layers
    }
    seen, done = [], {}
    for segment in Stream(traced, statistics.batches):
        seen.append(segment.layers)
        found = segment.inputs_second_moment()
        for layer in segment.layers:
            assert (layer in found) == (layer != "words")
            if layer in found:
                expected = _gram(traced, statistics.batches, layer, done, batches)
                torch.testing.assert_close(found[layer], expected, rtol=1e-4, atol=1e-5)
        if "query" in segment.layers:
            assert found["query"] is found["key"] is found["value"]
        new = {layer: weights[layer] for layer in segment.layers}
        if "out" in segment.layers:  # a callable may stand for a layer
            new["out"] = model.out
        segment.advance(new)
        done.update(new)
    assert seen == [("words",), ("query", "key", "value"), ("out",)]


def _gram(traced, flat, layer, replacements, batches) -> Tensor:
    interpreter, total = Interpreter(traced), torch.zeros(4, 4)
    for inputs, batch in zip(flat, batches):
        read = []

        def tap(node, args, value, read=read):
            call = interpreter.call_of.get(node)
            if call is not None and call.layer == layer:
                read.append(args[call.input_position])
            return value

        interpreter.run(inputs, replacements=replacements, tap=tap)
        for h in read:
            x = h[batch["attention_mask"] != 0] if batch is not None else h.reshape(-1, 4)
            total = total + (x.T @ x).detach()
    return total


def test_a_layer_called_twice_is_due_once():
    """Its moments sum over the calls of the uncompressed model; tied weights are one layer."""
    torch.manual_seed(0)
    model, ids = Shared().eval(), torch.randint(0, 7, (3, 2))
    traced = trace(model, (ids,))
    statistics = calibrate(traced, [ids])
    order = []
    for segment in Stream(traced, statistics.batches):
        order += segment.layers
        found = segment.inputs_second_moment()
        for layer in segment.layers:
            if layer == "mix":
                expected = _gram(traced, statistics.batches, layer, {}, [None])
                torch.testing.assert_close(found[layer], expected, rtol=1e-4, atol=1e-5)
        segment.advance(
            {layer: torch.zeros_like(model.get_submodule(layer).weight) for layer in segment.layers}
        )
    assert sorted(order) == ["mix", "words"]


@pytest.mark.parametrize("limit, segments", [(1, 5), (2, 4), (None, 3)])
def test_segments_can_be_bounded(limit, segments):
    traced = trace(Block(), tokens(2, 3))
    statistics = calibrate(traced, [tokens(2, 3)])
    stream = Stream(traced, statistics.batches, max_layers_per_segment=limit)
    found = [segment.layers for segment in stream]
    assert len(found) == segments
    assert sorted(sum(found, ())) == ["key", "out", "query", "value", "words"]


def test_only_live_values_are_kept():
    traced = trace(nn.Sequential(*(nn.Linear(3, 3) for _ in range(6))), (torch.randn(2, 3),))
    stream = Stream(traced, [(torch.randn(2, 3),)])
    kept = []
    for _ in stream:
        kept.append(sum(1 for node in stream._values[0] if node.op == "call_function"))
    assert kept == [0, 1, 1, 1, 1, 1]


def test_misuse_of_a_segment():
    traced = trace(Block(), tokens(2, 3))
    statistics = calibrate(traced, [tokens(2, 3)])
    for segment in Stream(traced, statistics.batches):
        with pytest.raises(ArgumentError, match="another segment"):
            segment.advance({"nothing": torch.zeros(1)})
        segment.advance()
        with pytest.raises(ArgumentError, match="left already"):
            segment.advance()
    with pytest.raises(ArgumentError, match="at least 1"):
        Stream(traced, statistics.batches, max_layers_per_segment=0)


class Output(dict):
    pass


@pytest.mark.parametrize(
    "structure, expected",
    [
        (torch.ones(2, 3), 1.0),
        ((torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), 2.0)), 2.0),
        ({"hidden": torch.zeros(2, 3), "logits": torch.full((2, 3), 3.0)}, 3.0),
        (Output(ids=torch.zeros(2, dtype=torch.long), nested=[torch.full((2, 3), 4.0)]), 4.0),
    ],
)
def test_the_judged_tensor(structure, expected):
    inputs = (torch.zeros(2, 3, dtype=torch.long), torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert bool((Judge().tensor(structure, inputs) == expected).all())
    masked = Judge(mask_position=1).tensor(structure, inputs)
    assert masked[0, 2] == 0.0 and masked[1, 2] == expected
    pooled = Judge(lambda found: torch.ones(2, 4), mask_position=1).tensor(structure, inputs)
    assert bool((pooled == 1.0).all())


def test_probes_of_the_divergence_have_the_fisher_covariance():
    judge, logits = Judge(metric="kl"), torch.randn(1, 4, dtype=torch.float64)
    signs = torch.tensor([[(i >> b & 1) * 2.0 - 1.0 for b in range(4)] for i in range(16)]).double()
    u = torch.cat([judge.probe(logits, sign[None]) for sign in signs])
    p = logits.softmax(-1)[0]
    torch.testing.assert_close(u.T @ u / 16, p.diag() - p[:, None] * p[None])
