"""Modules and graphs in the device order: moved, back, saved, loaded. A CPU stands in for the GPU."""

import copy
import io

import pytest
import torch
from torch import nn

from torchcoinfer.nn import QuantConv2d, QuantEmbedding, QuantLinear, SparseLinear, SparseQuantLinear, layouts

MODULES = {
    "linear": lambda: QuantLinear.from_float(nn.Linear(200, 20), 4, 32),
    "linear 3 bit": lambda: QuantLinear.from_float(nn.Linear(140, 17), 3, 0, symmetric=True),
    "convolution": lambda: QuantConv2d.from_float(nn.Conv2d(16, 20, 3), 5, 64),
    "2:4": lambda: SparseLinear.from_float(nn.Linear(200, 20), "2:4"),
    "2:4, half": lambda: SparseLinear.from_float(nn.Linear(140, 20), "2:4", torch.float16),
    "2:4, codes": lambda: SparseQuantLinear.from_float(nn.Linear(200, 20), "2:4", 6, 64),
}
UNORDERED = {
    "embedding": lambda: QuantEmbedding.from_float(nn.Embedding(40, 200), 4, 32),
    "bitmap": lambda: SparseLinear.from_float(nn.Linear(200, 20), 0.5),
}


def move(module: nn.Module) -> nn.Module:
    """As ``.to`` does: every tensor anew."""
    return module._apply(lambda tensor: tensor.clone())


@pytest.fixture
def gpu(monkeypatch):
    """Between ``gpu(True)`` and ``gpu(False)`` the CPU counts as a GPU."""
    return lambda there: monkeypatch.setattr(layouts, "wanted_layout", lambda device: int(there))


def same_state(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", MODULES)
def test_module_moves_there_and_back(gpu, name):
    module = MODULES[name]()
    state, weight = copy.deepcopy(module.state_dict()), module.dequantize_weight()
    buffers = dict(module.named_buffers())
    gpu(True)
    move(module)
    assert module.layout == 1
    assert any(not torch.equal(b, buffers[n]) for n, b in module.named_buffers())
    assert same_state(module.state_dict(), state)
    assert torch.equal(module.dequantize_weight(), weight)
    move(module)
    assert module.layout == 1 and same_state(module.state_dict(), state)
    gpu(False)
    assert same_state(dict(move(module).named_buffers()), buffers) and module.layout == 0


@pytest.mark.parametrize("name", MODULES)
def test_module_is_copied_saved_and_loaded_in_canonical_bytes(gpu, name):
    module = MODULES[name]()
    state = copy.deepcopy(module.state_dict())
    gpu(True)
    move(module)
    twin = copy.deepcopy(module)
    assert twin.layout == 1 and same_state(dict(twin.named_buffers()), dict(module.named_buffers()))
    file = io.BytesIO()
    torch.save(module, file)
    gpu(False)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.layout == 0 and same_state(dict(loaded.named_buffers()), state)
    for assign in (False, True):
        gpu(True)
        other = move(MODULES[name]())
        other.load_state_dict(state, assign=assign)
        assert other.layout == 1 and same_state(other.state_dict(), state)
        assert same_state(dict(other.named_buffers()), dict(module.named_buffers()))


@pytest.mark.parametrize("name", UNORDERED)
def test_other_formats_keep_the_canonical_order(gpu, name):
    module = UNORDERED[name]()
    state = copy.deepcopy(module.state_dict())
    gpu(True)
    assert move(module).layout == 0
    assert same_state(dict(module.named_buffers()), state)


class Tied(nn.Module):
    """A graph's shape: one linear of its own, one whose weight is read canonically too."""

    def __init__(self):
        super().__init__()
        self.free, self.read = MODULES["linear"](), MODULES["linear"]()
        self.pairs = MODULES["2:4"]()

    def forward(self, x):
        read = torch.ops.torchcoinfer.unpack_codes(self.read.packed, 4, 20, 200).float().sum()
        return self.free(x) + self.read(x) + self.pairs(x) + read


def test_graph_is_ordered_where_ops_know_it(gpu):
    module = torch.fx.GraphModule(*_traced(Tied()))
    x = torch.randn(2, 200)
    expected, before = module(x), {n: b.clone() for n, b in module.named_buffers()}
    layouts.order_graph(module, 1)
    changed = {n for n, b in module.named_buffers() if not torch.equal(b, before[n])}
    assert changed == {"free.packed", "pairs.index", "pairs.values"}
    assert sorted(arguments["layout"] for _, arguments in layouts._ordered_calls(module.graph)) == [0, 1, 1]
    layouts.order_graph(module, 0)
    assert not any("layout" in node.kwargs for node, _ in layouts._ordered_calls(module.graph))
    assert same_state(dict(module.named_buffers()), before) and torch.equal(module(x)[0], expected[0])


def _traced(module):
    program = torch.export.export(module, (torch.randn(2, 200),), strict=False).module(check_guards=False)
    graph = copy.deepcopy(program.graph)
    for node in list(graph.nodes):
        if node.op == "call_module":
            graph.erase_node(node)
    graph.set_codegen(torch.fx.graph.CodeGen())
    return program, graph
