"""A monitor on the halves of a compressed model: all FLOPs and bytes of the whole, and what crosses."""

import pytest
import torch
from torch import nn

from torchcoinfer import nn as packed_nn
from torchcoinfer.hooks import ResourceMonitor
from torchcoinfer.split import split
from torchcoinfer.theory.graph import candidate_cuts
from torchcoinfer.trace import trace


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    model = nn.Sequential(
        packed_nn.QuantConv2d.from_float(nn.Conv2d(3, 8, 3, padding=1), bits=4, group_size=32),
        nn.ReLU(),
        nn.Flatten(),
        packed_nn.QuantLinear.from_float(nn.Linear(512, 64), bits=4, group_size=32),
        packed_nn.SparseLinear.from_float(nn.Linear(64, 32), "2:4"),
        packed_nn.SparseQuantLinear.from_float(nn.Linear(32, 4), 0.5, 4, 32),
    ).eval()
    return trace(model, (torch.randn(2, 3, 8, 8),))


def test_halves_share_the_work_of_the_whole(traced):
    x = traced.sample[0]
    with torch.inference_mode(), ResourceMonitor(traced.model) as whole:
        expected = traced.model(x)
    dense = 2 * 2 * (8 * 64 * 27 + 512 * 64 + 64 * 32 + 32 * 4)
    assert sum(row.flops for row in whole.rows) == dense
    stored = sum(b.numel() * b.element_size() for b in traced.model.buffers())
    for cut in candidate_cuts(traced.graph):
        device, server = split(traced, cut)
        with (
            torch.inference_mode(),
            ResourceMonitor(device) as on_device,
            ResourceMonitor(server) as on_server,
        ):
            sent = device(x)
            assert torch.equal(server(*sent), expected)
        assert sum(row.flops for row in (*on_device.rows, *on_server.rows)) == dense
        assert sum(row.parameter_bytes for row in (*on_device.rows, *on_server.rows)) == stored
        assert on_device.cut_bytes == sum(t.numel() * t.element_size() for t in sent)
        assert on_server.cut_bytes is None
        assert f"crossing the cut: {on_device.cut_bytes} B" in on_device.report()
