"""What ``trace`` promises: the same function, names that compression keeps, exact sizes, clear refusals."""

import copy

import pytest
import torch
import zoo
from torch import nn
from torch.utils import _pytree as pytree

from torchcoinfer.errors import ArgumentError, TraceError
from torchcoinfer.theory.budget import Workload
from torchcoinfer.theory.graph import GraphIndex, candidate_cuts
from torchcoinfer.trace import coded_leading_dims, trace

FAST = ["two_branches", "everything", "flattens", "resnet", "vit", "bert", "llama"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in zoo.CASES if name not in FAST]


def traced_case(name):
    return zoo.traced_once(name, is_packed=False)


def assert_equal(got, expected):
    leaves, structure = pytree.tree_flatten(expected)
    assert type(got) is type(expected) and pytree.tree_flatten(got)[1] == structure
    for a, b in zip(pytree.tree_leaves(got), leaves):
        assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b


@pytest.mark.parametrize("name", FAST + SLOW)
def test_same_function_at_every_size(name):
    traced = traced_case(name)
    assert traced.static_dims == {}
    model = copy.deepcopy(traced.model).eval()
    with torch.no_grad():
        for batch, length in ((1, 6), (2, 9), (5, 4)):
            inputs = zoo.CASES[name].inputs(batch, length)
            assert_equal(zoo.call(traced, inputs), zoo.call(model, inputs))


@pytest.mark.parametrize("name", ["everything", "bert"])
def test_the_model_stays_as_it_is(name):
    model = zoo.make(name)
    before = {key: (id(value), value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    model.get_submodule("block.1" if name == "everything" else "pooler").eval()
    modules = [(key, module.training) for key, module in model.named_modules()]
    traced = zoo.traced(name, model)
    assert traced.model is model
    assert modules == [(key, module.training) for key, module in model.named_modules()]
    for key, value in model.state_dict(keep_vars=True).items():
        assert id(value) == before[key][0] and torch.equal(value, before[key][1])
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    stored = {id(p) for p in model.parameters()}
    assert {id(p) for p in traced.module.parameters()} <= stored, "parameters are shared, not copied"


@pytest.mark.parametrize("name", FAST + SLOW)
def test_the_graph_is_whole(name):
    traced = traced_case(name)
    graph = traced.graph
    GraphIndex(graph)  # raises unless the units are in topological order
    nodes = [node for members in traced.unit_nodes.values() for node in members]
    calls = [node for node in traced.module.graph.nodes if node.op == "call_function"]
    assert len(nodes) == len(set(nodes))
    assert set(nodes) | set(traced.free_nodes) >= set(calls) and not set(nodes) & set(traced.free_nodes)
    assert set(traced.unit_nodes) == {unit.name for unit in graph.units}
    assert set(traced.tensor_nodes) == set(graph.tensors)
    used = {name for unit in graph.units for name in (*unit.inputs, *unit.outputs)} | set(graph.outputs)
    assert used <= set(graph.tensors)
    values = run(traced, traced.sample)
    for tensor in graph.tensors.values():
        value = values[traced.tensor_nodes[tensor.name]]
        assert tuple(value.shape) == tensor.shape and str(value.dtype) == f"torch.{tensor.dtype}"
        assert value.nbytes == tensor.nbytes
    stored = dict(traced.module.named_parameters()) | dict(traced.module.named_buffers())
    for parameter, nbytes in graph.parameters.items():
        assert nbytes == stored[parameter].nbytes
        assert graph.parameter_numel[parameter] == stored[parameter].numel()
    weights = sum(layer.weight_bytes for layer in graph.layers)
    assert weights + sum(graph.parameters.values()) == sum(
        {
            id(stored[n.target]): stored[n.target].nbytes
            for n in traced.module.graph.nodes
            if n.op == "get_attr"
        }.values()
    ), "every stored tensor is counted once"


def run(traced, sample):
    interpreter = torch.fx.Interpreter(traced.module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*sample)
    return interpreter.env


@pytest.mark.parametrize("name", ["two_branches", "everything", "resnet", "bert", "llama"])
def test_names_are_the_same_after_compression(name):
    before = traced_case(name).graph
    compressed = zoo.traced_once(name, is_packed=True)
    after = compressed.graph
    assert before.inputs == after.inputs and before.outputs == after.outputs
    assert before.tensors == after.tensors and before.parameters == after.parameters
    assert before.units == after.units
    key = [(layer.name, layer.kind, layer.rows, layer.columns, layer.modules) for layer in before.layers]
    assert key == [
        (layer.name, layer.kind, layer.rows, layer.columns, layer.modules) for layer in after.layers
    ]
    for layer in after.layers:
        assert layer.weight_bytes == compressed.model.get_submodule(layer.name).packed_bytes
    assert candidate_cuts(before) == candidate_cuts(after)


def test_flops_by_hand():
    units = {unit.name: unit for unit in traced_case("two_branches").graph.units}
    assert units["stem#0"].flops == 2 * 6 * 8 * 16
    assert units["deep.2#0"].flops == 2 * 6 * 32 * 16
    assert units["/cat.0#0"].flops == 0
    assert units["norm#0"].flops == 5 * 6 * 16
    conv = {unit.name: unit for unit in traced_case("resnet").graph.units}["conv1#0"]
    assert (conv.kind, conv.flops) == ("conv2d", 2 * 64 * 16 * 16 * 3 * 49)
    attention = [u for u in traced_case("bert").graph.units if "attention" in u.name and "scaled" in u.name][
        0
    ]
    assert attention.flops == 2 * (2 * 6 * 6 * 16) * 2 + 5 * 2 * 6 * 6  # two heads of 16, 6 x 6 scores


def test_masks_and_positions_are_free():
    for name in ("bert", "llama"):
        traced = traced_case(name)
        attention = [unit for unit in traced.graph.units if "scaled_dot_product_attention" in unit.name]
        assert attention and all("attention_mask" in unit.inputs for unit in attention)
        for cut in candidate_cuts(traced.graph):
            sent = {name for name in cut.tensors if traced.graph.tensors[name].dtype != "float32"}
            assert sent <= {"input_ids", "attention_mask"}, cut.name
    rotary = [unit.name for unit in traced_case("llama").graph.units if "rotary" in unit.name]
    assert rotary == [], "tables of cos and sin are made on either side"


def test_layers_share_tied_weights_and_leave_raw_ones_alone():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.plain = nn.Embedding(12, 8), nn.Linear(8, 8)
            self.unused = nn.Linear(8, 8)
            self.scaled = Scaled(8, 8)

        def forward(self, ids):
            return nn.functional.linear(self.scaled(self.plain(self.embedding(ids))), self.embedding.weight)

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    graph = trace(Raw(), (torch.zeros(2, 3, dtype=torch.long),)).graph
    assert [layer.name for layer in graph.layers] == ["plain"]
    assert {"embedding.weight", "scaled.weight"} <= set(graph.parameters)
    tied = {layer.name: layer for layer in traced_case("llama").graph.layers}["model.embed_tokens"]
    assert tied.modules == ("model.embed_tokens", "lm_head") and tied.weight_bytes == 64 * 32 * 4
    calls = [unit.name for unit in traced_case("everything").graph.units if unit.layer == "fc"]
    assert calls == ["fc#0", "fc#1", "head#0"]


def test_dims_that_cannot_vary_are_listed():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(3, -1) * 2 if x.shape[0] == 3 else x

    traced = trace(Fixed(), (torch.randn(3, 4),))
    assert traced.static_dims == {"x": (0,)} and traced.dynamic_dims == {"x": ()}
    with pytest.raises(ArgumentError, match=r"(?s)'x'.*\(5, 4\).*\(3, 4\)"):
        traced(torch.randn(5, 4))
    named = trace(Fixed(), (torch.randn(3, 4),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert named.static_dims == {"x": (0,)}


def test_workload_sets_the_sizes():
    traced = zoo.traced("bert", zoo.make("bert"), Workload(batch=4, prompt=10))
    assert [tuple(t.shape) for t in traced.sample] == [(4, 10), (4, 10)]
    assert traced.graph.tensors["embeddings.LayerNorm#0:0"].shape == (4, 10, 32)
    with pytest.raises(ArgumentError, match="batch"):
        trace(zoo.TwoBranches(), (torch.randn(2, 3, 8),), dynamic_shapes=(None,), workload=Workload(batch=7))


@pytest.mark.parametrize(
    "shape, leading",
    [((2, 3, 8), 2), ((2, 8), 1), ((8,), None), ((2, 4, 8, 8), 2), ((2, 4, 7, 7), 1), ((2, 3, 4, 4, 4), 2)],
)
def test_coded_leading_dims_of_static_shapes(shape, leading):
    assert coded_leading_dims(torch.zeros(shape)) == leading
    assert coded_leading_dims(torch.zeros(shape, dtype=torch.long)) is None


class Filled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.first(x)
        z = torch.ones_like(x) + x.new_full((x.shape[0], 1), 2) + torch.full_like(x, 3, dtype=torch.float64)
        return self.second(y) + z


def test_constants_of_a_size_are_free():
    traced = trace(Filled(), (torch.randn(2, 4),))
    units = {unit.name: unit.inputs for unit in traced.graph.units}
    assert units == {"first#0": ("x",), "second#0": ("first#0:0",), "/add.0#0": ("second#0:0",)}
    x = torch.randn(5, 4)
    assert torch.equal(traced(x), traced.model(x)) and traced(x).dtype == torch.float64


def test_dynamic_shapes_by_name_in_any_order():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + 1, y * 2

    free, fixed = {0: torch.export.Dim("n")}, None
    for shapes in ({"y": free, "x": fixed}, {"x": fixed, "y": free}):
        traced = trace(Two(), (torch.randn(1, 3), torch.randn(1, 3)), dynamic_shapes=shapes)
        assert traced.dynamic_dims == {"x": (), "y": (0,)} and traced.static_dims == {}


def test_a_cache_is_left_out_and_the_configuration_left_alone():
    model = zoo.make("llama")
    model.config.use_cache = True
    traced = trace(model, zoo.tokens(1, 6))
    assert model.config.use_cache and list(traced(**zoo.tokens(2, 4))) == ["logits"]


class InPlace(nn.Module):
    def forward(self, x, kind):
        y = x * 2
        view = y[:, 0]
        if kind == "view":
            view.add_(1)  # seen through y
            return y, x
        if kind == "chain":
            z = y.relu_().mul_(3)
            return y + z, x  # y is z
        x.add_(1)
        return x * 2, x


@pytest.mark.parametrize("kind", ["view", "chain", "input"])
def test_in_place_ops_become_functional(kind):
    x = torch.randn(3, 4)
    kept = x.clone()
    traced = trace(InPlace(), (x, kind))
    assert torch.equal(x, kept), "example inputs are left alone"
    assert_equal(traced(x, kind), InPlace()(x.clone(), kind))
    assert torch.equal(x, kept), "and so are inputs"
    for node in traced.module.graph.nodes:
        assert not (hasattr(node.target, "_schema") and node.target._schema.is_mutable)


def test_arguments_by_position_or_keyword_and_refusals():
    traced = traced_case("bert")
    inputs = zoo.tokens(2, 5)
    expected = traced(**inputs).last_hidden_state
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert torch.equal(traced(ids, mask).last_hidden_state, expected)
    assert torch.equal(traced(ids, attention_mask=mask, token_type_ids=None).last_hidden_state, expected)
    assert torch.equal(traced(attention_mask=mask, input_ids=ids).last_hidden_state, expected)
    refused = [
        ((ids,), {}, "attention_mask"),
        ((ids, mask), {"token_type_ids": ids}, "token_type_ids"),
        ((ids.int(), mask), {}, "int32.*int64"),
        ((ids, mask[:, :3]), {}, r"\(2, 3\).*'input_ids'"),
        ((ids[0], mask), {}, r"\(5,\)"),
        ((ids, 3), {}, "not a tensor"),
        ((ids, mask, ids, ids, ids, ids, ids, ids, ids, ids, ids, ids), {}, "other arguments"),
    ]
    for args, kwargs, text in refused:
        with pytest.raises(ArgumentError, match=f"(?s){text}"):
            traced(*args, **kwargs)
    nested = traced_case("everything")
    x, extra = zoo.CASES["everything"].inputs(2, 0)
    assert torch.equal(nested(extra=extra, x=x)["states"], nested(x, extra)["states"])
    fixed = trace(zoo.Everything(), {"x": x, "extra": extra, "scale": 2.0})
    with pytest.raises(ArgumentError, match=r"(?s)3\.0.*2\.0"):
        fixed(x, extra, 3.0)


class Refused(nn.Module):
    """Does, by name, what cannot be traced."""

    def __init__(self, what):
        super().__init__()
        self.what, self.fc = what, nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        if self.what == "branch" and x.sum() > 0:
            return self.fc(x)
        if self.what == "state":
            self.count.add_(1)
        if self.what == "python":
            return torch.from_numpy(x.numpy())
        if self.what == "size":
            return self.fc(x[x[:, 0] > 0])
        return self.fc(x)


@pytest.mark.parametrize(
    "model, inputs, error, text",
    [
        (Refused("branch"), (torch.randn(2, 4),), TraceError, r"test_trace.py:\d+ in forward.*torch.where"),
        (Refused("state"), (torch.randn(2, 4),), TraceError, "writes to its own buffers.*count"),
        (Refused("python"), (torch.randn(2, 4),), TraceError, "test_trace.py:"),
        (Refused("size"), (torch.randn(2, 4),), TraceError, "size depends on data.*nonzero"),
        (Refused(""), (torch.randn(2, 5),), TraceError, "example_inputs have shapes"),
        (Refused(""), {"y": torch.randn(2, 4)}, TraceError, "example_inputs do not fit"),
        (Refused(""), (3, None), ArgumentError, "no tensor"),
        (Refused(""), "text", ArgumentError, "got: str.*tuple"),
    ],
)
def test_refusals_name_the_place_and_the_cure(model, inputs, error, text):
    with pytest.raises(error, match=f"(?s){text}"):
        trace(model, inputs)
    assert model.training and all(p.grad is None for p in model.parameters())
