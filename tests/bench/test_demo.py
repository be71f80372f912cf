"""The demo's pieces on small models: budget, baseline, tasks, tables. The whole is run by .ci/run."""

import argparse

import numpy as np
import pytest
import torch
from torch import nn

from torchcoinfer.bench import demo, tasks
from torchcoinfer.bench.uniform import uniform_bytes, uniform_plan, weight_shapes
from torchcoinfer.models import LoadedModel
from torchcoinfer.theory.options import Option, packed_bytes
from torchcoinfer.theory.plan import CutPlan, LayerPlan, Plan


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body, self.head = (
            nn.Embedding(40, 64),
            nn.Conv2d(3, 8, 3),
            nn.Linear(64, 40, bias=False),
        )
        self.head.weight = self.table.weight


def test_weight_shapes_see_tied_weights_once():
    assert weight_shapes(Tied()) == {"table": (40, 64), "body": (8, 27)}


def test_uniform_plan_keeps_the_cut_and_counts_real_bytes():
    shapes = weight_shapes(Tied())
    layer = LayerPlan(8, 0.5, "2:4", 128, True, None, "obs", "device", 1, 0.1)
    plan = Plan({name: layer for name in (*shapes, "unknown")}, CutPlan("x", ()), {}, {}, {}, {}, {}, {})
    found = uniform_plan(plan, shapes, 4, left=("body",))
    assert found.cut == plan.cut
    assert found.layers["unknown"] == layer
    assert (found.layers["body"].format, found.layers["body"].packed_bytes) == ("float", 4 * 8 * 27)
    table = found.layers["table"]
    assert (table.bits, table.sparsity, table.format, table.side) == (4, 0.0, "int", "device")
    assert table.packed_bytes == packed_bytes(Option(4, 0.0, "int", 64), 40, 64)
    assert uniform_bytes(shapes, 4) == table.packed_bytes + packed_bytes(Option(4, 0.0, "int", 64), 8, 27)


def test_budget_shares_what_uniform_four_bits_take():
    shapes = {"a": (640, 640), "b": (64, 640)}
    task = tasks.random_task(nn.Identity(), example=(torch.zeros(2, 3),))
    budget = demo.demo_budget(shapes, task)
    assert budget.device_memory + budget.server_memory == pytest.approx(uniform_bytes(shapes, 4))
    assert demo.describe(budget).startswith("latency 1000 ms, energy 5 J, device memory ")


def test_crops_are_fixed_and_normalized():
    pictures = [np.full((300, 400, 3), value, np.uint8) for value in (0, 255)]
    crops = tasks._crops(pictures, 4)
    assert crops.shape == (4, 3, 224, 224)
    assert torch.equal(crops, tasks._crops(pictures, 4))
    white = (1.0 - torch.tensor(tasks._IMAGE_MEAN)) / torch.tensor(tasks._IMAGE_STD)
    torch.testing.assert_close(crops[1].mean((1, 2)), white)


def test_picture_task_on_sample_pictures():
    pytest.importorskip("matplotlib")
    task = tasks.picture_task(fast=True, progress=False)
    model = nn.Sequential(nn.AvgPool2d(56), nn.Flatten(), nn.Linear(48, 5))
    original = task.score(model, "original")
    assert len(original) == 12
    assert task.row(original, original) == {
        "cosine": "1.0000",
        "output error": "0.0000",
        "same top-1": "100.0 %",
    }
    seen = {value.sum().item() for (batch,) in (*task.calibration, *task.validation) for value in batch}
    assert len(seen) == 12


def test_output_row_of_a_known_error():
    original = [np.array([3.0, 4.0]), np.array([0.0, 5.0])]
    scored = [np.array([3.0, 4.0]), np.array([5.0, 0.0])]
    assert tasks._output_row(scored, original) == {
        "cosine": "0.5000",
        "output error": "1.0000",
        "same top-1": "50.0 %",
    }


def test_task_for_a_model_of_unknown_kind():
    loaded = LoadedModel("folder", nn.Linear(4, 2), None, "made here")
    task = tasks.task_for(loaded, progress=False, example=(torch.ones(1, 4),))
    assert len(task.calibration) == len(task.validation) == 8
    assert not torch.equal(task.calibration[0][0], task.calibration[1][0])


def test_arguments_have_defaults():
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    assert vars(parser.parse_args([])) == {"model": "minilm", "output": "demo_output", "fast": False}
