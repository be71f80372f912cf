"""The kernel benchmark: what is raced, when a timing counts, which goals a run meets."""

import json

import numpy as np
import pytest
import torch

from torchcoinfer.bench import ceilings, formats, goals, grid, peers, timing
from torchcoinfer.bench.cases import SHAPES, Case, shapes
from torchcoinfer.bench.goal_table import FLOOR, GOALS, Goal
from torchcoinfer.bench.timing import Burst, Contender
from torchcoinfer.cli import main
from torchcoinfer.errors import ArgumentError, KernelError, MissingExtra

SHARED, ALONE, WAITING = (1.0, 0.0), (0.5, 0.0), (0.5, 0.2)  # (CPU share of two threads, share spent waiting)


def finished(seconds, share=1.0, waited=0.0, bursts=10):
    one = Burst(tuple(seconds), sum(seconds), 2 * share * sum(seconds), waited * sum(seconds))
    return Contender("one", [lambda: None], 1 << 20, 2e6, threads=2, bursts=[one] * bursts)


@pytest.mark.parametrize(
    ("contender", "reason"),
    [
        (finished([1e-3]), None),
        (finished([1e-3], *ALONE), None),
        (finished([1e-3], *WAITING), "cores to itself in 0 of 10 bursts, CPU share 0.50"),
        (finished([1e-3], 0.9), "cores to itself in 0 of 10 bursts, CPU share 0.90"),
        (finished([1e-3], bursts=3), "cores to itself in 3 of 3 bursts, CPU share 1.00"),
        (finished([1e-3, 2e-3]), "p90/median 1.33 > 1.2"),
    ],
)
def test_not_judged(contender, reason, monkeypatch):
    monkeypatch.setattr(timing, "MOST_P90_OVER_MEDIAN", 1.2)
    assert contender.not_judged == reason
    judged = timing.row(contender, "linear", (1, 2, 3))["judged"]
    assert judged is True if reason is None else judged == f"not judged: {reason}"


def test_bursts_without_the_cores_are_left_out():
    contender = finished([1e-3])
    contender.bursts = contender.bursts[:5] + finished([9e-3], 0.3).bursts
    assert contender.median_s == contender.p90_s == 1e-3


def test_race_takes_turns_and_rotates(monkeypatch):
    monkeypatch.setattr(timing, "LONGEST_BURST", 2)
    order = []
    made = [Contender(n, [lambda n=n, c=c: order.append((n, c)) for c in range(3)], 1) for n in "ab"]
    timing.race(made, 1, budget_s=0.0)
    turns = ["aaa", "bbb"] * len(made[0].bursts)  # a call that wakes the threads, then two timed ones
    assert "".join(name for name, _ in order[4:]) == "".join(turns)
    assert {copy for name, copy in order[4:] if name == "a"} == {0, 1, 2}
    assert len(made[0].bursts) == len(made[1].bursts) >= timing.LEAST_BURSTS


def test_copies_exceed_the_cache(monkeypatch):
    monkeypatch.setattr(timing, "last_level_cache_bytes", lambda: 10 << 20)
    assert timing.copies_beyond_cache(3 << 20) == 14
    assert timing.copies_beyond_cache(100 << 20) == 2
    assert timing.copies_beyond_cache(1 << 20, most_bytes=5 << 20) == 5


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(timing, "last_level_cache_bytes", lambda: 1 << 16)
    monkeypatch.setattr(timing, "BURST_S", 0.0)
    monkeypatch.setattr(timing, "SETTLE_S", 0.0)
    monkeypatch.setattr(timing, "GRACE_S", 0.0)
    monkeypatch.setattr(ceilings, "MOST_READ_BYTES", 1 << 16)
    monkeypatch.setattr(ceilings, "COMPUTE_CASE", Case(16, 32, 2))


def test_rows_of_a_small_race(tiny, tmp_path, capsys):
    output, picture = tmp_path / "rows.jsonl", tmp_path / "roofline.png"
    shape = ["--shapes", "128x32", "--tokens", "3", "--threads", "1", "--seconds", "0"]
    assert main(["bench", "kernels", *shape, "--output", str(output), "--picture", str(picture)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    measured = {row["kernel"]: row for row in rows if "missing" not in row}
    missing = {row["kernel"] for row in rows if "missing" in row}
    own = {formats.label(name, x) for name in formats.RACED for x in ("fp32", "bf16")}
    assert set(measured) | missing == own | set(peers.PEERS)
    assert not own & missing
    for row in measured.values():
        assert row["shape"] == [3, 128, 32]
        assert row["flops"] == 2 * 3 * 128 * 32
        assert row["judged"] is True or row["judged"].startswith("not judged: ")
        assert 0 < row["fraction_of_memory_floor"] <= row["fraction_of_roofline"]
        assert set(row["ratio_to"]) == set(measured) & set(peers.PEERS) - {row["kernel"]}
    assert measured["torch fp32"]["bytes"] == 4 * 32 * 128
    assert measured["W4, bf16 x"]["bytes"] == 32 * 128 // 2 + 32 * 3
    told = capsys.readouterr().out
    assert all(name in told for name in (*own, *peers.PEERS))
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_shapes_by_name_and_by_size():
    assert shapes("llama") == SHAPES["llama"]
    assert shapes("4096x11008") == ((11008, 4096),)
    for wrong in ("lama", "4096x", "0x5", "axb"):
        with pytest.raises(ArgumentError, match=wrong):
            shapes(wrong)


def test_grid_resumes(tiny, tmp_path, capsys, monkeypatch):
    output = tmp_path / "grid.jsonl"
    what = ["--shapes", "64x32", "--formats", "W4", "W2A8", "--tokens", "1", "3", "--threads", "1"]
    command = ["bench", "kernels", "--grid", *what, "--seconds", "0", "--output", str(output)]
    assert main(command) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [tuple(row["shape"]) for row in rows] == 4 * [(1, 64, 32)] + 4 * [(3, 64, 32)]
    against = {row["kernel"]: set(row["ratio_to"]) for row in rows}
    bf16, fp32 = {"torch bf16"}, {"torch fp32"}
    assert against == {"W4, fp32 x": fp32, "W4, bf16 x": bf16, "W2A8, fp32 x": bf16, "W2A8, bf16 x": bf16}
    for number, row in enumerate(rows):
        row |= {"ratio_judged": number > 0 or "not judged: busy", "median_s": -1.0}
        row["ratio_to"] = dict.fromkeys(row["ratio_to"], 1.0 + 0.04 * number)
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = grid.summary(rows)
    assert "7 of 8 cells judged" in told
    assert "within 1.1 x dense: 28.6%; within 1.0 x: 0.0%" in told
    assert main(command) == 0
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["median_s"] > 0 for row in again] == [True] + 7 * [False]
    assert "cells judged" in capsys.readouterr().out


def test_copies_have_content_of_their_own():
    first = formats.FORMATS["W4"](32, 64)
    second = formats.fresh(first)
    assert not np.array_equal(first.packed.numpy(), second.packed.numpy())
    assert np.array_equal(first.scales.numpy(), second.scales.numpy())


@pytest.mark.parametrize("name", formats.FORMATS)
def test_formats_keep_what_their_name_says(name):
    module = formats.FORMATS[name](64, 256)
    dense = 64 * 256 * (int(name[1]) / 8 if name.startswith("W") else 2)
    kept = 0.5 if "2:4" in name else 1 - int(name.split("%")[0].split()[-1]) / 100 if "%" in name else 1
    index = 0 if kept == 1 else 64 * 256 / 8
    groups = 0 if module.scales is None else module.scales.numel() * 3
    assert module.packed_bytes == pytest.approx(kept * dense + index + groups, rel=0.2)
    assert module(torch.zeros(2, 256)).shape == (2, 64)


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_run_or_say_why_not(name, tiny):
    for case in (Case(64, 256, 3), Case(33, 35, 1)):
        (made,) = peers.make_peers([name], case, 1)
        if isinstance(made, peers.Missing):
            assert made.reason
            continue
        made.calls[0]()
        assert made.name == name
        assert made.moved_bytes > 0
        assert made.flops == case.flops


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_ggml_multiplies(kind):
    from torchcoinfer.bench.peers import ggml

    try:
        library = ggml.library()
    except MissingExtra as missing:
        pytest.skip(str(missing))
    case, generator = Case(64, 512, 5), np.random.default_rng(0)
    weight = generator.standard_normal((64, 512), dtype=np.float32)
    x = generator.standard_normal((5, 512), dtype=np.float32)
    blocks = ggml.quantized(library, kind, weight)
    found = []
    for buffer_type in library.buffer_types:
        product = ggml.Product(library, kind, case, blocks, x, buffer_type)
        product()
        found.append(product.result())
        assert np.abs(found[-1] - x @ weight.T).mean() < 0.15 * np.abs(x @ weight.T).mean()
    assert np.allclose(found[0], found[-1], rtol=1e-4, atol=1e-3)
    with pytest.raises(KernelError, match="K = 33"):
        ggml.quantized(library, kind, weight[:, :33].copy())


def row_of(kernel, tokens=1, floor=0.5, judged=True, unsteady=(), **ratios):
    named = {name.replace("_", " "): ratio for name, ratio in ratios.items()}
    return {
        "kernel": kernel,
        "shape": [tokens, 4096, 4096],
        "fraction_of_memory_floor": floor,
        "bandwidth_not_judged": None,
        "ratio_to": named,
        "ratio_not_judged": {name: "noisy" for name in unsteady},
        "judged": judged,
    }


RATIO, SHARE = (
    Goal("W4", (1,), "torch bf16", 0.5, 0.4, ("fp32",)),
    Goal("W4", (1,), FLOOR, 0.8, 0.9, ("fp32",)),
)
FASTEST = Goal("W4", (1,), "4-bit peers", 0.5, None, ("fp32",))
ROW = "W4, fp32 x"


@pytest.mark.parametrize(
    ("goal", "row", "verdict", "stretch"),
    [
        (RATIO, row_of(ROW, torch_bf16=0.45), "hit", False),
        (RATIO, row_of(ROW, torch_bf16=0.35), "hit", True),
        (RATIO, row_of(ROW, torch_bf16=0.51), "MISS", False),
        (RATIO, row_of(ROW), "not judged: the peer is missing", False),
        (RATIO, row_of(ROW, torch_bf16=0.3, judged="not judged: busy"), "not judged: busy", False),
        (RATIO, row_of(ROW, torch_bf16=0.3, unsteady=["torch bf16"]), "not judged: noisy", False),
        (SHARE, row_of(ROW, floor=0.85), "hit", False),
        (SHARE, row_of(ROW, floor=0.95), "hit", True),
        (SHARE, row_of(ROW, floor=0.79), "MISS", False),
        (FASTEST, row_of(ROW, ggml_Q4_0=0.4, openvino_u4=0.1), "hit", False),
        (FASTEST, row_of(ROW, ggml_Q4_0=0.4, openvino_u4=0.6), "MISS", False),
    ],
)
def test_goal_verdicts(goal, row, verdict, stretch, monkeypatch):
    monkeypatch.setattr(goals, "table", lambda: (goal,))
    (cell,) = goals.judge([row])
    assert (cell.verdict, cell.stretch) == (verdict, stretch)
    assert ROW in goals.summary([row])


@pytest.mark.parametrize("isa", GOALS)
def test_goal_tables_name_what_exists(isa, monkeypatch):
    monkeypatch.setattr(goals, "table", lambda: GOALS[isa])
    for goal in GOALS[isa]:
        assert goal.format in formats.FORMATS
        assert goal.against in (FLOOR, "4-bit peers", *peers.PEERS)
        assert goal.stretch is None or (goal.stretch > goal.goal) == (goal.against == FLOOR)
    wanted = [goals.contenders(case) for case in goals.cases()]
    assert all(one.formats for one in wanted)
