"""What the table of distortions costs: what is timed, and when a limit is judged."""

import argparse
import json

import pytest
import torch
from torch import nn

from torchcoinfer.bench import process, scoring
from torchcoinfer.bench.subjects import Subject
from torchcoinfer.errors import KernelError


def subject(*_):
    torch.manual_seed(0)
    data = [(torch.randn(8, 32),) for _ in range(6)]
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    return Subject("minilm", model, data[0], tuple(data[:2]), tuple(data[2:4]), tuple(data[4:]))


@pytest.mark.skipif(not process._STATUS.exists(), reason="the system tells no memory figures")
def test_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(scoring, "load_subject", subject)
    monkeypatch.setattr(scoring, "_load", lambda: 0.1)
    parser = argparse.ArgumentParser()
    scoring.add_arguments(parser)
    output = tmp_path / "rows.jsonl"
    assert scoring.main(parser.parse_args(["--threads", "1", "--repeats", "3", "--output", str(output)])) == 0
    rounding, compensated, memory = [json.loads(line) for line in output.read_text().splitlines()]
    # two layers: six widths dense, six in 2:4, six in a bitmap of .5
    assert rounding["case"] == "36 rounding options" and compensated["case"] == "6 error-compensated options"
    assert sorted(rounding["seconds"])[1] == rounding["value"] > 0 and rounding["verdict"] == "hit"
    assert memory["limit"] is None and memory["verdict"] is None  # smaller than the floor of the working set


@pytest.mark.parametrize("load, value, verdict", [(0.1, 19.0, "hit"), (0.1, 21.0, "MISS"), (0.6, 1.0, "not")])
def test_an_absolute_limit_is_judged_on_a_calm_machine(load, value, verdict):
    assert scoring._row("m", "case", value, "s", 20.0, load)["verdict"].startswith(verdict)


def test_memory_needs_a_system_that_tells(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "_STATUS", tmp_path / "none")
    with pytest.raises(KernelError, match="Linux"):
        process.status_bytes("VmRSS")
