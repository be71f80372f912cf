"""The GPU benchmark, as far as a machine without a GPU can see it."""

import math
import os

import pytest
import torch

from torchcoinfer.bench.cases import Case
from torchcoinfer.bench.formats import FORMATS
from torchcoinfer.bench.gpu import candidates, check, goals, graphs, peers, run
from torchcoinfer.bench.gpu.graphs import Timed
from torchcoinfer.cli import main

needs_no_device = pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")


def test_check_passes_on_the_cpu():
    cells = check.run("cpu", ("W4", "W8A8", "2:4 fp16", "bitmap 50 % bf16", "W3 + 2:4"), ((37, 75),))
    assert len(cells) > 100 and all(cell.right for cell in cells)
    assert check.summary(cells) == f"{len(cells)} of {len(cells)} comparisons within their bounds"


@pytest.mark.parametrize("excess", [1.5, math.nan, math.inf])
def test_wrong_cells_are_told(excess):
    cells = [check.Cell("W4", (1, 32, 16), "float32", 0.5), check.Cell("W2", (2, 32, 16), "float16", excess)]
    told = check.summary(cells)
    assert told.startswith("1 of 2") and "WRONG: W2 (2, 32, 16) float16" in told


def test_an_error_of_the_result_exceeds_its_bound():
    x, weight = torch.randn(3, 64).double(), torch.randn(8, 64).double()
    y = (x @ weight.T).float()
    assert check._excess(y, x, weight) <= 1
    y[1, 2] *= 1.001
    assert check._excess(y, x, weight) > 1


def timed(name, seconds, **more):
    return Timed(name, [lambda: None] * 4, 1 << 20, 2e9, seconds=list(seconds), **more)


def test_rows_tell_ratios_and_what_is_not_judged(monkeypatch):
    monkeypatch.setattr(run, "_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    own, peer = timed("W4", [1e-5] * 20), timed(peers.BASELINE, [2e-5] * 15 + [4e-5] * 5, peer=True)
    limits = {"bytes_per_s": 1e12, "bf16": 1e15, "int8": 2e15}
    row, other = (run._row(one, [own, peer], Case(8, 16, 4), "bf16", limits) for one in (own, peer))
    assert row["ratio_to"] == {peers.BASELINE: 0.5} and other["ratio_to"] == {}
    assert row["judged"] is True and other["judged"] == "not judged: p90/median 2.00 > 1.2"
    assert row["fraction_of_memory_floor"] == pytest.approx((1 << 20) / 1e12 / 1e-5)
    assert row["rotated_bytes"] == 4 << 20
    assert run._shown(row)["times faster than cuBLAS"] == "2.00"


def test_weights_exceed_the_l2_cache():
    for weight_bytes in (1 << 20, 8 << 20, 200 << 20):
        assert graphs.copies_for(weight_bytes) * weight_bytes >= graphs.LEAST_ROTATED
    assert graphs.copies_for(10) == graphs.MOST_COPIES and graphs.copies_for(1 << 40) == 2


@needs_no_device
def test_without_a_device_it_says_so(capsys):
    assert main(["bench", "kernels", "--device", "cuda"]) == 2
    assert "CUDA device: False" in capsys.readouterr().err


@needs_no_device
def test_peers_that_cannot_run_are_missing():
    made = list(peers.make(peers.PEERS, Case(256, 256, 4), torch.float16))
    assert [name for name, _ in made] == list(peers.PEERS)


def goal_rows(times_faster: float, beside_peer: float, judged=True):
    """Rows of a run in which every kernel of the goals is so much faster than cuBLAS and than its peers."""
    rows = []
    for case, kind, formats, others in goals.cases():
        ratios = {name: 1 / (times_faster if name == peers.BASELINE else beside_peer) for name in others}
        for name in (*formats, *others):
            own = {other: ratio for other, ratio in ratios.items() if name in formats}
            rows.append({"kernel": name, "shape": list(case.shape), "dtype": kind, "ratio_to": own})
            rows[-1]["judged"] = judged if name in formats else True
    return rows


def test_goals_name_formats_and_peers_that_exist():
    assert {goal.format for goal in goals.GOALS} <= set(FORMATS)
    assert {peer for goal in goals.GOALS for peer in goal.peers} <= set(peers.PEERS)
    shapes = [(case.rows, case.columns) for case, *_ in goals.cases()]
    assert shapes == sorted(shapes, key=shapes.index), "cases of one shape stand together: weights are shared"
    assert len({(case, kind) for case, kind, *_ in goals.cases()}) == len(goals.cases())


@pytest.mark.parametrize("times_faster, beside_peer", [(4.0, 1.1), (0.95, 0.9), (0.1, 2.0)])
def test_goals_are_judged_by_ratios_of_one_run(times_faster, beside_peer):
    cells = list(goals.judge(goal_rows(times_faster, beside_peer)))
    assert len(cells) == sum(len(g.tokens) * len(g.shapes) * len(g.kinds) for g in goals.GOALS)
    for cell in cells:
        assert cell.reached == pytest.approx(times_faster)
        assert (cell.verdict == goals.MET) == (times_faster >= cell.goal.least)
        assert (cell.beside_peer is None) == (not cell.goal.peers)
    told = goals.summary(goal_rows(times_faster, beside_peer)).splitlines()[-2:]
    met = sum(times_faster >= cell.goal.least for cell in cells)
    assert told[0].startswith(f"goals met in {met} of {len(cells)} (")
    assert (" (100%)" in told[1]) == (beside_peer >= 1)


def test_goals_that_cannot_be_judged_are_told():
    unsure = list(goals.judge(goal_rows(4.0, 2.0, judged="not judged: p90/median 2.00 > 1.2")))
    assert {cell.verdict for cell in unsure} == {"not judged: p90/median 2.00 > 1.2"}
    assert {cell.verdict for cell in goals.judge([])} == {"not judged: did not run"}
    assert goals.summary([]).splitlines()[-2].startswith("goals met in 0 of 0 cells")


def test_candidates_are_asked_for_during_the_call_only(monkeypatch):
    (one,) = candidates.CANDIDATES
    for before in (None, "0"):
        monkeypatch.delenv(one.variable, raising=False)
        if before is not None:
            monkeypatch.setenv(one.variable, before)
        assert one.called(lambda: os.environ[one.variable])() == "1"
        with pytest.raises(ZeroDivisionError):
            one.called(lambda: 1 / 0)()
        assert os.environ.get(one.variable) == before


def test_candidates_stand_beside_their_default(monkeypatch):
    (one,) = candidates.CANDIDATES
    assert set(one.formats) <= set(FORMATS)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert one.serves("W4", 64) and one.serves("W8", 4095)
    assert not any([one.serves("W4", 63), one.serves("W4A8", 64), one.serves("W4", 64, "cpu")])
    cell = {"shape": [64, 16, 8], "dtype": "bf16", "judged": True}
    rows = [{**cell, "kernel": "W4", "median_s": 3e-6}, {**cell, "kernel": "W4, wgmma", "median_s": 2e-6}]
    told = candidates.summary(rows)
    assert "W4, wgmma" in told and "1.50" in told and "faster" in told
    assert candidates.summary(rows[:1]) == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    assert not one.serves("W4", 64)
