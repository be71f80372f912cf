"""What callers get wrong, or torch's own machinery adds, must not end in a plausible number or a crash."""

import pytest
import torch
from torch import nn

from torchcoinfer.errors import TorchCoinferError
from torchcoinfer.nn import QuantConv2d, QuantLinear


def test_a_module_without_values_is_refused():
    layer = QuantLinear(64, 48, device="meta")
    with pytest.raises(TorchCoinferError, match="meta device"):
        layer(torch.randn(2, 64))
    assert layer(torch.randn(2, 64, device="meta")).shape == (2, 48)


@pytest.mark.parametrize("N", [48, 2048])  # the decoded weight in one part, and in several
def test_many_rows_keep_no_graph(N):
    layer = QuantLinear.from_float(nn.Linear(1024, N), 4, 128)
    x = torch.randn(384, 1024).bfloat16().requires_grad_()
    for rows in (4, 384):
        layer(x[:rows] * 1).sum().backward()
        assert x.grad is None or not x.grad.any()


def test_static_scales_are_a_copy():
    scales = torch.full((64,), 0.02)
    layer = QuantLinear.from_float(nn.Linear(64, 48), 4, 32, 8, x_scales=scales)
    scales.mul_(4)
    assert float(layer.x_scales[0]) == pytest.approx(0.02)


def test_a_stride_beyond_the_image():
    conv = nn.Conv2d(4, 8, 3, stride=300_000).requires_grad_(False)
    x = torch.randn(2, 4, 9, 9)
    y = QuantConv2d.from_float(conv, 8, 0)(x)
    assert float((y - conv(x)).norm() / conv(x).norm()) < 0.02


@pytest.mark.parametrize("argument", ["stride", "padding", "dilation"])
def test_sizes_that_overflow_are_refused(argument):
    layer = QuantConv2d.from_float(nn.Conv2d(4, 8, 3), 4, 32)
    setattr(layer, argument, (2**62, 1))
    with pytest.raises((TorchCoinferError, RuntimeError), match=argument):
        layer(torch.randn(2, 4, 9, 9))
