"""A bias that takes up the mean of a weight's error counts in the score."""

from __future__ import annotations

import pytest
import torch
from exact import Basis
from torch import nn

from torchcoinfer.calibrate import calibrate
from torchcoinfer.measure import score_options
from torchcoinfer.theory.options import Option
from torchcoinfer.trace import trace


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_shift_is_added_to_the_response(kind):
    torch.manual_seed(0)
    layer, x = (
        (nn.Linear(6, 4), torch.randn(5, 6) + 1)
        if kind == "linear"
        else (nn.Conv2d(2, 4, 3), torch.randn(5, 2, 4, 4))
    )
    model = nn.Sequential(layer, nn.Flatten()).eval().double()
    x = x.double()
    traced = trace(model, (x,))
    statistics = calibrate(traced, [x])
    option, change, shift = (
        Option(4, 0.0, "int", 32),
        0.1 * torch.randn_like(layer.weight),
        torch.randn(4).double(),
    )
    with torch.no_grad():
        before = model(x)
        scored = score_options(
            traced, statistics, {"0": (option,)}, weights=lambda *_: (layer.weight + change).flatten(1),
            shifts=lambda *_: shift, probes=before.numel(), noise=Basis(),
        )  # fmt: skip
        layer.weight += change
        layer.bias += shift
        expected = float((model(x) - before).square().sum() / before.square().sum())
    assert scored["0"][0].distortion == pytest.approx(expected, rel=1e-9)
