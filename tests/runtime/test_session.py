"""Both halves through the wire: the answer unchanged, and exactly the bytes that the planner counts."""

import pytest
import torch
from torch import nn

from torchcoinfer.errors import ArgumentError, FormatError
from torchcoinfer.hooks import ResourceMonitor
from torchcoinfer.nn.halves import Crossing
from torchcoinfer.runtime import session, wire
from torchcoinfer.runtime.session import Session
from torchcoinfer.split import split
from torchcoinfer.theory import costs
from torchcoinfer.theory.graph import candidate_cuts
from torchcoinfer.theory.plan import CutPlan
from torchcoinfer.trace import trace


class Tokens(nn.Module):
    """Two branches, an integer input that crosses, and a mapping out, one of whose values is no tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x, n):
        h = torch.relu(self.a(x))
        return {"y": self.c(h + self.b(h)), "n": n + 1, "none": None}


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.tail = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 8)

    def forward(self, x):
        return self.tail(torch.relu(self.conv(x))).flatten(1)


MODELS = {
    "tokens": (Tokens, (torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), torch.arange(2))),
    "pictures": (Pictures, (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)),
}


@pytest.fixture(scope="module", params=MODELS)
def traced(request):
    make, inputs = MODELS[request.param]
    torch.manual_seed(0)
    return trace(make().eval(), inputs), inputs


def planned_bytes(graph, tensors):
    """What theory/solve_problem.py counts."""
    total = 0
    for name, bits in tensors:
        tensor = graph.tensors[name]
        if bits is None:
            total += costs.float_bytes(tensor.nbytes, len(tensor.shape))
        else:
            total += costs.coded_bytes(tensor.shape, bits, tensor.leading_dims)
    return total


@pytest.mark.parametrize("bits", [None, 3, 8])
def test_every_cut_answers_alike_and_frames_what_is_planned(traced, bits):
    traced, inputs = traced
    graph = traced.graph
    answer_bytes = planned_bytes(graph, [(name, None) for name in graph.outputs])
    for cut in candidate_cuts(graph):
        codable = {name for name in cut.tensors if graph.tensors[name].leading_dims is not None}
        tensors = tuple((name, bits if name in codable else None) for name in cut.tensors)
        device, server = split(traced, CutPlan(cut.name, tensors))
        transfer = Session(device, server).run(*inputs)
        expected = server(*device(*inputs))
        assert_same(transfer.output, expected)
        assert_same(Session(device, server)(*inputs), expected)
        if cut.name == "device":
            assert (transfer.uplink_bytes, transfer.downlink_bytes) == (0, 0)
        else:
            assert (transfer.uplink_bytes, transfer.downlink_bytes) == (
                planned_bytes(graph, tensors),
                answer_bytes,
            )
        with ResourceMonitor(device) as monitor:
            sent = device(*inputs)
        assert monitor.cut_bytes == sum(t.numel() * t.element_size() for t in sent)


def assert_same(got, expected):
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype and torch.equal(got, expected)
    else:
        assert got == expected


def test_planner_and_wire_agree_on_headers():
    assert [costs.header_bytes(rank) for rank in range(17)] == [wire.header_bytes(rank) for rank in range(17)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_tensors_of_every_dtype_come_back(dtype):
    for value in (
        torch.tensor([[1.0, 0.0, 1.0]]).to(dtype),
        torch.zeros((), dtype=dtype),
        torch.zeros(2, 0, dtype=dtype),
    ):
        (back,) = session.tensors(session.tensor_frame(value.T if value.dim() == 2 else value))
        assert back.dtype == dtype and torch.equal(back, value.T if value.dim() == 2 else value)


class Given(nn.Module):
    def __init__(self, crossing, *sent):
        super().__init__()
        self.crossing, self.given = crossing, sent

    def forward(self):
        return self.given


def test_a_device_half_that_returns_other_tensors():
    plain, coded = Crossing("x", (2, 4), "float32"), Crossing("y", (2, 4), "float32", bits=4, leading_dims=1)
    x = torch.zeros(2, 4)
    with pytest.raises(ArgumentError, match=r"1 tensors.*4: x, y.codes"):
        Session(Given((plain, coded), x), nn.Identity())()
    codes, scale = torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(2)
    with pytest.raises(FormatError, match="does not fit"):
        Session(Given((coded,), codes[:, :1], scale, scale), nn.Identity())()
    with pytest.raises(FormatError, match="complex64"):
        Session(Given((plain,), x.to(torch.complex64)), nn.Identity())()
