"""The memory and model benchmarks: what they count, and when a goal is met."""

import argparse
import json
from functools import partial

import pytest
import torch
from torch import nn

from torchcoinfer.bench import memory, models, process, timing
from torchcoinfer.nn import QuantConv2d, QuantLinear


def options(module, *given):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(list(given))


@pytest.mark.skipif(not process._STATUS.exists(), reason="the system tells no memory figures")
def test_memory_rows(monkeypatch, tmp_path, capsys):
    layers = ((64, 96, 3), (32, 64, 2))
    monkeypatch.setattr(memory, "LAYERS", layers)
    output = tmp_path / "rows.jsonl"
    assert memory.main(options(memory, "--threads", "1", "--output", str(output))) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    packing, residence = rows[:2]
    numel = sum(count * columns * n for n, columns, count in layers)
    expected = numel / 2 + sum(
        count * n * 3 for n, _, count in layers
    )  # one group: 2 bytes of scale, 1 of zero
    assert packing["parameters"] == numel
    assert packing["packed_bytes"] == residence["packed_bytes"] == expected
    assert {row["limit"] for row in rows} == {5.0, 1.02, 6e-6, None}
    for row in rows:
        assert row["value"] >= 0
        if row["limit"] is not None:
            assert row["verdict"] == ("hit" if row["value"] <= row["limit"] else "MISS")
    calls = residence["calls"]
    assert [(c["tokens"], c["rows"]) for c in calls] == [(1, 64), (1, 32), (256, 64), (256, 32)]
    assert calls[2]["x_bytes"] == 256 * 96 * 4
    assert "packing" in capsys.readouterr().out


@pytest.mark.skipif(not process._STATUS.exists(), reason="the system tells no memory figures")
def test_a_call_that_keeps_memory_is_seen():
    class Hoarder(nn.Module):
        in_features, out_features, kept = 64, 64, ()

        def forward(self, x):
            self.kept = (*self.kept, torch.ones(1 << 22))
            return x.clone()

    found = memory._peak_of_call(Hoarder(), 4)
    assert found["beside_bytes"] == pytest.approx(4 << 22, rel=0.1)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(nn.ReLU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.body(self.stem(x).mean((-2, -1))))


def test_packed_replaces_every_layer():
    original = Small()
    made = models.packed(original, 8, 8)
    kinds = [type(made.stem), type(made.body[1]), type(made.head)]
    assert kinds == [QuantConv2d, QuantLinear, QuantLinear]
    assert made.head.activation_bits == 8
    assert type(original.head) is nn.Linear
    x = torch.randn(2, 3, 9, 9)
    assert torch.allclose(made(x), original(x), atol=0.1)


def test_model_race(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(timing, "GRACE_S", 0.0)
    monkeypatch.setattr(models, "load_original", lambda name: Small().eval())
    monkeypatch.setattr(models, "inputs", lambda name, batch: {"x": torch.randn(batch, 3, 9, 9)})
    output = tmp_path / "rows.jsonl"
    assert models.main(options(models, "--threads", "1", "--seconds", "0", "--output", str(output))) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["model"], row["batch"]) for row in rows] == (
        6 * [("minilm", 1)] + 6 * [("minilm", 32)] + 6 * [("resnet50", 1)]
    )
    for row in rows:
        assert row["speed_up"][row["kernel"]] == 1.0 if "eager" in row["kernel"] else row["speed_up"]
    assert capsys.readouterr().out.count("goal ") == 5


def test_model_verdicts(monkeypatch):
    monkeypatch.setattr(models, "GOALS", {("m", 1): {models.FLOAT32: 1.5}})

    def row(kernel, seconds, judged=True):
        return {
            "kernel": kernel,
            "median_s": seconds,
            "judged": judged,
            "speed_up": {models.FLOAT32: 1 / seconds},
        }

    told = partial(models.verdicts, "m", 1)
    base = row(models.FLOAT32, 1.0)
    assert next(told([base, row("W4", 0.5), row("W4A8", 0.6)])).endswith("goal 1.5: hit")
    assert next(told([base, row("W4", 0.8)])).startswith("W4 is 1.25 times as fast")
    assert next(told([base, row("W4", 0.8)])).endswith("MISS")
    assert next(told([base, row("W4", 0.1, "not judged: busy")])).endswith("not judged: busy")
