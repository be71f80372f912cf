"""The rows of the kernel benchmark: what is raced, and when a ratio may not be judged."""

import argparse
import json

import numpy as np
import pytest

from torchcoinfer.bench import kernels, timing
from torchcoinfer.bench.timing import Contender


def finished(seconds, cpu_seconds, name="one"):
    return Contender(name, [lambda: None], 1 << 20, 2e6, list(seconds), list(cpu_seconds))


@pytest.mark.parametrize(
    ("seconds", "cpu_share", "reason"),
    [
        ([1e-3] * 20, 1.0, None),
        ([1e-3] * 20, 0.9, "CPU share 0.90 < 0.94"),
        ([1e-3] * 10 + [2e-3] * 10, 1.0, "p90/median 1.33 > 1.2"),
    ],
)
def test_not_judged(seconds, cpu_share, reason, monkeypatch):
    monkeypatch.setattr(timing, "MOST_P90_OVER_MEDIAN", 1.2)
    found = finished(seconds, [2 * cpu_share * s for s in seconds])
    assert found.not_judged(threads=2) == reason
    judged = timing.row(found, "linear", (1, 2, 3), 2)["judged"]
    assert judged is True if reason is None else judged == f"not judged: {reason}"


def test_race_interleaves_and_rotates():
    order = []
    made = [Contender(n, [lambda n=n, c=c: order.append((n, c)) for c in range(2)], 1) for n in "ab"]
    timing.race(made, budget_s=0.0, least_rounds=3)
    assert order[2:] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 0), ("b", 0)]
    assert [len(contender.seconds) for contender in made] == [3, 3]


def test_copies_exceed_the_cache(monkeypatch):
    monkeypatch.setattr(timing, "last_level_cache_bytes", lambda: 10 << 20)
    assert timing.copies_beyond_cache(3 << 20) == 7
    assert timing.copies_beyond_cache(100 << 20) == 2
    assert timing.copies_beyond_cache(1 << 20, most_bytes=5 << 20) == 5


def test_rows_of_a_small_race(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(timing, "last_level_cache_bytes", lambda: 1 << 16)
    monkeypatch.setattr(kernels, "SHAPES", {"tiny": ((32, 128),)})
    output = tmp_path / "rows.jsonl"
    arguments = argparse.Namespace(shapes=["tiny"], tokens=[3], threads=1, seconds=0.0, output=str(output))
    assert kernels.main(arguments) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    names = {row["kernel"] for row in rows}
    assert {"torch fp32", "torch bf16", "int4 g128", "2:4, int4 g128", "bitmap 50 %, fp16"} <= names
    for row in rows:
        assert row["shape"] == [3, 128, 32]
        assert row["flops"] == 2 * 3 * 128 * 32
        assert row["ratio_to"]["torch bf16"] > 0
        assert row["judged"] is True or row["judged"].startswith("not judged: ")
    sizes = {row["kernel"]: row["bytes"] for row in rows}
    assert sizes["torch fp32"] == 4 * 32 * 128
    assert sizes["int4 g128"] == 32 * 128 // 2 + 32 * 3
    assert "int4 g128" in capsys.readouterr().out


def test_copies_have_content_of_their_own():
    linear = kernels.nn.Linear(64, 32)
    first, second = (kernels._fresh(kernels._quantized(linear, 4)) for _ in range(2))
    assert not np.array_equal(first.packed.numpy(), second.packed.numpy())
    assert np.array_equal(first.scales.numpy(), second.scales.numpy())
