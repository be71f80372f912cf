"""Exported halves in a fresh process that knows torch and the op library only, at sizes other than traced."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from torch import fx

import torchcoinfer
from torchcoinfer.errors import ArgumentError, ExportError
from torchcoinfer.export import export, export_halves
from torchcoinfer.nn.halves import DeviceHalf
from torchcoinfer.split import split
from torchcoinfer.theory.graph import candidate_cuts
from torchcoinfer.theory.plan import CutPlan

LIBRARY = Path(torchcoinfer.__file__).parent / "_C.so"
needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="the op library is not built")

# prints the largest error over max|y| of every folder, and what it had to import
CHILD = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
LOAD = {
    "torchscript": lambda path: torch.jit.load(path + ".pt"),
    "pt2": lambda path: torch.export.load(path + ".pt2").module(),
    "aoti": lambda path: torch._inductor.aoti_load_package(path + ".pt2"),
}
errors = {}
for folder in sys.argv[2:]:
    load = LOAD[folder.rsplit("-", 1)[1]]
    device, server = load(folder + "/device"), load(folder + "/server")
    with torch.no_grad():
        for inputs, expected in torch.load(folder + "/expected.pt"):
            got = server(*device(*inputs))
            got = got if isinstance(got, (tuple, list)) else (got,)
            assert len(got) == len(expected)
            error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected))
            errors[folder] = max(errors.get(folder, 0.0), error)
ours = [name for name in sys.modules if name.startswith("torchcoinfer")]
print(json.dumps({"errors": errors, "imported": ours}))
"""


def halves(name, bits=None, position=0.5):
    """A divided model of packed weights, and its graph."""
    traced = zoo.traced_once(name, is_packed=True)
    cuts = candidate_cuts(traced.graph)
    cut = cuts[2 + int(position * (len(cuts) - 3))]
    codable = {n for n in cut.tensors if traced.graph.tensors[n].leading_dims is not None}
    plan = CutPlan(cut.name, tuple((n, bits if n in codable else None) for n in cut.tensors))
    return traced, split(traced, plan)


def write(folder, traced, divided, name, format):
    """The files of one case, and what they must answer at four sizes."""
    folder = folder.with_name(f"{folder.name}-{format}")
    device, server = divided
    paths = export_halves(device, server, folder, format)
    assert [path.parent for path in paths] == [folder, folder]
    expected = []
    for batch, length in ((1, 6), (5, 9), (2, 3), (1, 4)):
        inputs = zoo.CASES[name].inputs(batch, length)
        flat = traced.flatten_inputs(**inputs) if isinstance(inputs, dict) else traced.flatten_inputs(*inputs)
        with torch.no_grad():
            expected.append((flat, tuple(server.graph_module(*device.graph_module(*flat)))))
    torch.save(expected, folder / "expected.pt")
    return str(folder)


def run_fresh(folders):
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(LIBRARY), *folders]
    result = subprocess.run(
        command, env={**clean, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, cwd="/", check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@needs_library
def test_files_answer_alike_in_a_fresh_process(tmp_path):
    folders = []
    for name, bits in (("two_branches", 5), ("bert", None), ("resnet", 8), ("flattens", None)):
        traced, divided = halves(name, bits)
        formats = ("torchscript",) if name == "resnet" else ("torchscript", "pt2")
        folders += [write(tmp_path / name, traced, divided, name, format) for format in formats]
    report = run_fresh(folders)
    assert report["imported"] == []
    assert set(report["errors"]) == set(folders)
    assert max(report["errors"].values()) <= 1e-5, report["errors"]


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("position", [0, 0.3, 0.6, 1])
@pytest.mark.parametrize("format", ["torchscript", "pt2"])
def test_more_models_and_cuts(tmp_path, position, format):
    names = [name for name in zoo.CASES if name != "everything"]  # integers among its outputs
    folders = []
    for name in names:
        traced, divided = halves(name, 6, position)
        folders.append(write(tmp_path / name, traced, divided, name, format))
    report = run_fresh(folders)
    assert max(report["errors"].values()) <= 1e-5, report["errors"]


@needs_library
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_aoti_package(tmp_path):
    traced, divided = halves("two_branches", 5)
    report = run_fresh([write(tmp_path / "aoti", traced, divided, "two_branches", "aoti")])
    assert max(report["errors"].values()) <= 1e-5


def test_scripts_are_exact_and_keep_both_ends_of_the_call():
    from torchcoinfer.export import script

    traced, (device, server) = halves("everything")
    inputs = zoo.CASES["everything"].inputs(4, 0)
    flat = traced.flatten_inputs(*inputs)
    with torch.no_grad():
        got = script(server)(*script(device)(*flat))
        for a, b in zip(got, traced.module(*flat), strict=True):
            assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b


def refusing_half():
    """A half whose graph calls what neither TorchScript nor torch.export can take."""
    _, (device, _) = halves("two_branches")
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(sys.gettrace, (x,)),))
    return DeviceHalf(
        fx.GraphModule({}, graph), device.call, device.crossing, device.sample_sizes, device.trace_sizes
    )


@pytest.mark.parametrize("format", ["torchscript", "pt2"])
def test_refusals_leave_nothing_behind(tmp_path, format):
    with pytest.raises(ExportError, match=f"(?s)DeviceHalf cannot be exported as '{format}'.*another format"):
        export(refusing_half(), tmp_path / "half.pt", format)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "half.pt").write_text("kept")
    with pytest.raises(ExportError):
        export(refusing_half(), tmp_path / "half.pt", format)
    assert (tmp_path / "half.pt").read_text() == "kept"


def test_bad_arguments(tmp_path):
    _, divided = halves("two_branches")
    with pytest.raises(ArgumentError, match=r"'onnx'.*torchscript \| pt2 \| aoti"):
        export_halves(*divided, tmp_path / "x", "onnx")
    with pytest.raises(ArgumentError, match="Linear.*DeviceHalf"):
        export(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []
