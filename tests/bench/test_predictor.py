"""The benches of predictor and allocation on a small network: what their rows say."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from torchcoinfer.bench.allocation import JOINT, PLANNED, UNIFORM, Race, verdicts
from torchcoinfer.bench.coverage import certified_coverage, kappa_coverage
from torchcoinfer.bench.predictor import FITTED, KINDS, MODELS, QUADRATIC, Trial
from torchcoinfer.bench.subjects import Subject, load_subject
from torchcoinfer.bench.surrogates import FISHER, PAPERS, SQUARES, TRACE
from torchcoinfer.errors import ArgumentError


@pytest.fixture(scope="module")
def trial():
    torch.manual_seed(0)
    model = nn.Sequential()
    for _ in range(4):
        linear = nn.Linear(64, 64)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        model.extend([linear, nn.ReLU()])
    model.append(nn.Linear(64, 32))
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(16, 64, generator=generator),) for _ in range(6)]
    subject = Subject("small", model.eval(), data[0], tuple(data[:2]), tuple(data[2:4]), tuple(data[4:]))
    return Trial.of(subject, 0)


@pytest.mark.parametrize("kind", list(KINDS))
def test_predictor_rows(trial, kind):
    rows = list(trial.rows(kind, 24, 16))
    by_score = {(row["score"], row["bits"][0]): row for row in rows}
    assert {score for score, _ in by_score} == {*MODELS, PAPERS, SQUARES, FISHER, TRACE}
    for lowest in (4, 2):
        for score in (QUADRATIC, FITTED):
            own = by_score[score, lowest]
            assert own["spearman"] >= 0.9 and own["spearman"] >= by_score[PAPERS, lowest]["spearman"]
            low, middle, high = own["ratio_quantiles"]
            assert 0.6 < low <= middle <= high < 1.6
            assert abs(math.log(middle)) < 0.3
        for row in (by_score[score, lowest] for score in MODELS):
            assert row["kappa_coverage"] >= 0.9 - 3 * row["kappa_coverage_se"]
            assert row["goal"] and isinstance(row["met"], bool)
        certified = row["certified_coverage"]
        assert certified["coverage"] >= 0.9 - 3 * certified["coverage_se"]


@pytest.fixture(scope="module")
def race(trial):
    return Race(trial)


@pytest.mark.parametrize("width", [2, 4])
def test_the_exact_choice_is_never_predicted_worse(race, width):
    rows = {row["method"]: row for row in race.rows(width)}
    own = rows[JOINT]
    for name, row in rows.items():
        if row["predicted"] is None:
            assert row["note"] == "nothing fits"
            continue
        assert row["bytes"] <= row["most_bytes"]
        if name != PLANNED:  # that one is predicted by another table
            assert own["predicted"] <= row["predicted"] * (1 + 1e-9)
    assert own["measured"] <= rows[UNIFORM]["measured"]
    assert rows[PLANNED]["measured"] <= 1.1 * own["measured"]
    told = verdicts(list(rows.values()))
    assert any(line.startswith("joint against uniform, ") for line in told)


def test_a_joint_cut_is_never_predicted_worse(race):
    rows = {row["method"]: row for row in race.split_rows(3)}
    after, joint = rows["cut after compression"], rows["cut jointly"]
    assert joint["predicted"] is not None and joint["cut"] not in ("device", "server")
    assert after["predicted"] is None or joint["predicted"] <= after["predicted"] * (1 + 1e-9)


def test_heuristics_spend_what_they_may(race):
    allocator = race.allocator
    most = allocator.bytes_of(allocator.uniform(4)) + 5000
    ends = allocator.first_last_high(most)
    assert ends[allocator.layers[0]].bits == 8 == ends[allocator.layers[-1]].bits
    for chosen in (ends, allocator.sort_and_cut(most), allocator.fisher_lp(most)):
        assert allocator.bytes_of(chosen) <= most
    widths = {option.bits for option in allocator.sort_and_cut(most).values()}
    assert len(widths) <= 2
    assert allocator.first_last_high(1) is None is allocator.exact(1, lambda option: True)


def test_coverage_of_exchangeable_errors():
    rng = np.random.default_rng(0)
    errors = rng.exponential(size=(5, 200))
    found = certified_coverage(errors, 0.1)
    assert abs(found["coverage"] - 0.9) < 3 * found["coverage_se"] + 0.01
    assert certified_coverage(errors[:, :10], 0.1) == {}  # five samples carry no certificate at this level
    factor = kappa_coverage([1.0] * 100, rng.exponential(size=100).tolist(), 0.1)
    assert factor["kappa_coverage"] > 0.88


def test_a_model_without_text_is_refused():
    with pytest.raises(ArgumentError, match="tokenizer"):
        load_subject("torchvision:resnet18")
