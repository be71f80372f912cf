"""The quality bench's verdict: what a row says of a result, and when a goal counts as met."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from torchcoinfer.bench import quality
from torchcoinfer.bench.retrieval import Judged
from torchcoinfer.theory.plan import CutPlan, LayerPlan, Plan

LAYER = LayerPlan(4, 0.0, "int", 64, False, None, "obs", "device", 1000, 0.01)
PLAN = Plan(
    {"a": LAYER, "b": LAYER},
    CutPlan("device", ()),
    {},
    {"device_bits_per_weight": 4.4},
    {"output": {"measured": {"value": 0.02, "n": 40}}},
    {},
    {},
    {},
)


def judged(angle, correct, total=1000):
    """Embeddings turned by ``angle`` against the original's, of which ``correct`` queries hit."""
    rows = np.tile([np.cos(angle), np.sin(angle)], (total, 1)).astype(np.float32)
    return Judged(rows, rows, np.arange(total) < correct)


@pytest.mark.parametrize(
    ("angle", "correct", "met"),
    [
        (0.1, 500, True),  # cosine .995
        (0.1, 495, True),  # half a point less
        (0.1, 400, False),  # ten points less
        (0.3, 500, False),  # cosine .955
    ],
)
def test_goal(angle, correct, met):
    original = judged(0.0, 500)
    task = SimpleNamespace(score=lambda model, label: judged(angle, correct))
    row = quality._row("plan", SimpleNamespace(plan=PLAN), task, original, goal=0.988)
    assert row["met"] is met
    assert row["packed_bytes"] == 2000
    assert row["output_error"] == 0.02
    assert json.loads(json.dumps(row)) == row
    assert row["cosine"] == pytest.approx(np.cos(angle), abs=1e-6)
    assert row["paired_difference"] == pytest.approx((correct - 500) / 1000)
    assert quality._shown(row)["met"] == ("yes" if met else "NO")


def test_a_baseline_has_no_goal():
    original = judged(0.0, 500)
    task = SimpleNamespace(score=lambda model, label: original)
    row = quality._row("uniform", SimpleNamespace(plan=PLAN), task, original, goal=None)
    assert "met" not in row and quality._shown(row)["met"] is None
