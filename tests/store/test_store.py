"""A saved model comes back whole, without its code; a changed file does not come back at all."""

import collections
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from safetensors.torch import load_file
from torch import fx
from torch.utils import _pytree as pytree

import torchcoinfer
from torchcoinfer import store
from torchcoinfer.errors import FormatError
from torchcoinfer.export import export
from torchcoinfer.nn.graphcode import decode_graph, encode_graph
from torchcoinfer.nn.structure import decode_structure, encode_structure
from torchcoinfer.split import split
from torchcoinfer.theory.graph import candidate_cuts
from torchcoinfer.theory.plan import CutPlan, Plan

EMPTY = dict.fromkeys(("resources", "bounds", "optimality", "provenance", "budget"), {})


def divided(name, bits=None):
    traced = zoo.traced_once(name, is_packed=True)
    cuts = candidate_cuts(traced.graph)
    cut = cuts[len(cuts) // 2]
    codable = {n for n in cut.tensors if traced.graph.tensors[n].leading_dims is not None}
    plan = CutPlan(cut.name, tuple((n, bits if n in codable else None) for n in cut.tensors))
    return traced, Plan(layers={}, cut=plan, predicted={"distortion": 0.0}, **EMPTY), *split(traced, plan)


def save(folder, name="bert", **options):
    traced, plan, device, server = divided(name, **options)
    store.save(folder, plan=plan, device=device, server=server, details={"notes": ["kept"]})
    return traced, plan, device, server


@pytest.mark.parametrize(
    "name, bits", [("bert", 4), ("everything", None), ("resnet", None), ("flattens", None)]
)
def test_what_is_loaded_is_what_was_saved(tmp_path, name, bits):
    traced, plan, device, server = save(tmp_path / "model", name, bits=bits)
    loaded = store.load(tmp_path / "model")
    assert loaded.plan == plan and loaded.details == {"notes": ["kept"]}
    inputs = zoo.CASES[name].inputs(3, 5)
    expected = server(*zoo.call(device, inputs))
    got = loaded.server(*zoo.call(loaded.device, inputs))
    leaves, structure = pytree.tree_flatten(expected)
    assert type(got) is type(expected) and pytree.tree_flatten(got)[1] == structure
    for a, b in zip(pytree.tree_leaves(got), leaves):
        assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b
    for mine, theirs in ((device, loaded.device), (server, loaded.server)):
        assert mine.crossing == theirs.crossing and mine.cut_bytes == theirs.cut_bytes
        assert mine.call == theirs.call and mine.output_names == theirs.output_names
        state, other = mine.state_dict(), theirs.state_dict()
        assert set(state) == set(other) and all(torch.equal(state[k], other[k]) for k in state)
    export(loaded.server, tmp_path / "server.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "server.pt"]


def test_every_weight_is_stored_once(tmp_path):
    traced, _, device, server = save(tmp_path / "model", "llama")
    stored = load_file(tmp_path / "model" / "weights.safetensors")
    assert {"lm_head.packed", "model.embed_tokens.packed"} & set(stored)
    unique = {t.data_ptr(): t.nbytes for half in (device, server) for t in half.buffers() if t.nbytes}
    assert sum(t.nbytes for t in stored.values()) == sum(unique.values())
    both = set(device.state_dict()) & set(server.state_dict())
    assert "graph_module.model.rotary_emb.inv_freq" in both, "this cut needs the table on both sides"
    assert not list((tmp_path / "model").glob("*.pt*"))


def test_a_half_changed_after_the_split_keeps_its_own_weights(tmp_path):
    _, plan, device, server = divided("llama")
    path = "model.rotary_emb.inv_freq"
    holder, leaf = server.graph_module.get_submodule(path.rpartition(".")[0]), "inv_freq"
    holder._buffers[leaf] = holder._buffers[leaf] * 2
    store.save(tmp_path / "model", plan=plan, device=device, server=server)
    loaded = store.load(tmp_path / "model")
    for mine, theirs in ((device, loaded.device), (server, loaded.server)):
        key = f"graph_module.{path}"
        assert torch.equal(mine.state_dict()[key], theirs.state_dict()[key])


def test_saving_again_replaces_and_never_destroys(tmp_path):
    _, plan, device, server = save(tmp_path / "model", "two_branches")
    store.save(tmp_path / "model", plan=plan, device=device, server=server, details={"second": 1})
    assert store.load(tmp_path / "model").details == {"second": 1}
    with pytest.raises(FormatError, match="details cannot be saved"):
        store.save(tmp_path / "model", plan=plan, device=device, server=server, details={"bad": object()})
    assert store.load(tmp_path / "model").details == {"second": 1}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for target in ("mine", "mine/thesis.txt"):
        with pytest.raises(FormatError, match="holds something else"):
            store.save(tmp_path / target, plan=plan, device=device, server=server)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model"]


def test_loads_without_transformers_tracer_or_solver(tmp_path):
    _, _, device, server = save(tmp_path / "model", "bert")
    inputs = zoo.tokens(3, 5)
    expected = server(*device(**inputs))
    torch.save((inputs, expected.pooler_output), tmp_path / "expected.pt")
    child = """
import json, sys, torch
torch.set_num_threads(1)
sys.modules["transformers"] = None
from torchcoinfer import store
loaded = store.load(sys.argv[1] + "/model")
inputs, pooled = torch.load(sys.argv[1] + "/expected.pt")
output = loaded.server(*loaded.device(**inputs))
print(json.dumps([type(output).__name__, list(output), float((output["pooler_output"] - pooled).abs().max()),
                  [name for name in sys.modules if name.startswith("torchcoinfer")]]))
"""
    root = str(Path(torchcoinfer.__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", child, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    kind, keys, error, modules = json.loads(result.stdout.splitlines()[-1])
    assert (kind, keys) == ("dict", ["last_hidden_state", "pooler_output"]) and error <= 1e-6
    for absent in ("trace", "split", "export", "calibrate", "compress", "measure", "theory.solve"):
        assert not [name for name in modules if name.startswith(f"torchcoinfer.{absent}")]


def change(path, edit):
    """Edits halves.json and makes the manifest agree, as someone who means harm would."""
    halves = json.loads((path / "halves.json").read_text())
    edit(halves)
    text = json.dumps(halves)
    (path / "halves.json").write_text(text)
    manifest = json.loads((path / "manifest.json").read_text())
    digest = hashlib.sha256(text.encode()).hexdigest()
    manifest["files"]["halves.json"] = {"bytes": len(text.encode()), "sha256": digest}
    (path / "manifest.json").write_text(json.dumps(manifest))


def set_target(target):
    def edit(halves):
        call = next(node for node in halves["device"]["graph"]["nodes"] if node[1] == "call")
        call[2] = target

    return edit


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


TAMPERED = {
    "no folder": (lambda p: [f.unlink() for f in p.iterdir()], "cannot be read.*manifest.json"),
    "no plan": (lambda p: (p / "plan.json").unlink(), "plan.json.*no such file"),
    "no weights": (lambda p: (p / "weights.safetensors").unlink(), "weights.safetensors.*no such file"),
    "truncated": (lambda p: os.truncate(p / "weights.safetensors", 1000), "not the one that was saved"),
    "one bit": (lambda p: flip(p / "weights.safetensors", -5), "'weights.safetensors'.*not the one"),
    "changed graph": (lambda p: flip(p / "halves.json", 300), "'halves.json'.*sha256"),
    "manifest": (lambda p: (p / "manifest.json").write_text("{"), "JSONDecodeError"),
    "version": (lambda p: (p / "manifest.json").write_text('{"version": 99}'), "got: 99; expected: 1"),
    "no list": (lambda p: (p / "manifest.json").write_text('{"version": 1}'), "not the one"),
    "call of Python": (lambda p: change(p, set_target("os.system")), "calls what it may not.*os.system"),
    "call of files": (lambda p: change(p, set_target("aten::from_file.default")), "from_file"),
    "unknown op": (lambda p: change(p, set_target("aten::no_such_op.default")), "cannot be read.*no_such_op"),
    "graph version": (
        lambda p: change(p, lambda h: h["device"]["graph"].update(version=2)),
        "another version",
    ),
    "lost tensor": (lambda p: change(p, lambda h: h["device"]["tensors"].popitem()), "disagree"),
    "other tensor": (
        lambda p: change(
            p, lambda h: h["device"]["tensors"].update({next(iter(h["device"]["tensors"])): "x"})
        ),
        "KeyError",
    ),
    "no crossing": (lambda p: change(p, lambda h: h.pop("crossing")), "KeyError.*crossing"),
    "structure": (lambda p: change(p, lambda h: h["call"].update(out_structure={"set": []})), "structure"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save(folder, "two_branches")
    return folder


@pytest.mark.parametrize("case", TAMPERED)
def test_changed_files_are_refused(saved, tmp_path, case):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    store.load(folder)
    edit, text = TAMPERED[case]
    edit(folder)
    with pytest.raises(FormatError, match=f"(?s){text}"):
        store.load(folder)


def test_graph_code_is_what_its_docstring_says():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(torch.ops.aten.add.Tensor, (x, 1)),))
    data = encode_graph(graph)
    assert data == {
        "version": 1,
        "nodes": [
            ["x", "input", "x", [], {}],
            ["add_tensor", "call", "aten::add.Tensor", [{"node": "x"}, 1], {}],
            ["output", "output", "output", [{"tuple": [{"node": "add_tensor"}]}], {}],
        ],
    }
    assert torch.equal(decode_graph(data, {}, "Sum")(torch.ones(2))[0], torch.full((2,), 2.0))


@pytest.mark.parametrize(
    "argument",
    [
        *(None, True, 3, 2.5, float("inf"), float("-inf"), "sum", [1, [2]], (1, 2), slice(1, None, 2)),
        *(torch.float16, torch.device("cpu"), torch.strided, torch.channels_last),
    ],
    ids=str,
)
def test_arguments_of_every_kind_come_back(argument):
    graph = fx.Graph()
    node = graph.placeholder("x")
    graph.output((graph.call_function(torch.ops.aten.add.Tensor, (node, argument), {"alpha": argument}),))
    data = json.loads(json.dumps(encode_graph(graph), allow_nan=False))
    back = [n for n in decode_graph(data, {}, "Back").graph.nodes if n.op == "call_function"][0]
    assert back.args[1] == argument and type(back.args[1]) is type(
        fx.node.map_aggregate(argument, lambda a: a)
    )
    assert back.kwargs == {"alpha": argument}


def test_what_has_no_name_is_refused():
    for target, argument, text in (
        (sorted, 1, "built-in function sorted"),
        (torch.ops.aten.add.Tensor, 1j, "1j"),
    ):
        graph = fx.Graph()
        graph.output((graph.call_function(target, (graph.placeholder("x"), argument)),))
        with pytest.raises(FormatError, match=text):
            encode_graph(graph)


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [1, (1, [2, {"a": 3, 0: (4,)}]), [], {}, Point(1, (2,)), collections.OrderedDict(b=1, a=2)],
    ids=str,
)
def test_structures_come_back(value):
    data = json.loads(json.dumps(encode_structure(pytree.tree_flatten(value)[1])))
    back = pytree.tree_unflatten(pytree.tree_leaves(value), decode_structure(data))
    assert back == value and getattr(back, "_fields", None) == getattr(value, "_fields", None)
