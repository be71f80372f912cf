"""``torchcoinfer demo``: compress and split a real model under a real budget, run both halves, show that it
worked.

The budget is made so that the comparison is fair: device and server memory together are what uniform 4-bit
weights take, and neither alone holds the model.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchcoinfer import ops, pipeline
from torchcoinfer.bench import tasks
from torchcoinfer.bench.uniform import uniform_bytes, uniform_plan, weight_shapes
from torchcoinfer.errors import ExportError, InfeasibleBudget
from torchcoinfer.models import LoadedModel, default_output, load_model
from torchcoinfer.report import write_text
from torchcoinfer.report.text import format_bytes
from torchcoinfer.result import Result
from torchcoinfer.theory.budget import Budget, Search

DEVICE, SERVER, LINK = "raspberry-pi-5", "laptop-4core", "wifi-5ghz"
DEVICE_SHARE = 0.55  # of the memory that uniform 4-bit weights take; the server gets the rest
UNIFORM_BITS = 4
LIBRARY = Path(ops.__file__).resolve().parent.parent / "_C.so"

# what a user of the exported files runs: torch and the op library, nothing else of this package
_FRESH_PROCESS = """
import sys, warnings, torch
warnings.simplefilter("ignore", FutureWarning)  # torch announces that TorchScript will go
library, device, server, inputs, outputs = sys.argv[1:]
torch.ops.load_library(library)
sent = torch.jit.load(device)(*torch.load(inputs))
torch.save(torch.jit.load(server)(*sent), outputs)
assert not any(name.startswith("torchcoinfer") for name in sys.modules)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer demo``."""
    parser.add_argument(
        "--model", default="minilm", help="minilm, torchvision:<name>, a Hugging Face id or a folder"
    )
    parser.add_argument(
        "--output", default="demo_output", help="folder for plan.json, both halves, report.html"
    )
    parser.add_argument(
        "--fast", action="store_true", help="a small search and little data, for a quick look"
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the demo; prints as it goes and writes plan.json, both TorchScript halves and report.html.

    Args:
        arguments: with ``model``, ``output`` and ``fast`` as ``add_arguments`` makes them.

    Returns:
        0; errors are raised.
    """
    started = time.perf_counter()
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_model(arguments.model)
    sizes = weight_shapes(loaded.model)
    numel = sum(rows * columns for rows, columns in sizes.values())
    _say(
        f"{loaded.name}: {numel / 1e6:.1f} M weights, {format_bytes(4 * numel)} as float32 ({loaded.source})"
    )
    for note in loaded.notes:
        _say(f"note: {note}")
    task = tasks.task_for(loaded, fast=arguments.fast)
    result = compress(loaded.model, task, demo_budget(sizes, task), arguments.fast)
    _say(f"for comparison: uniform {UNIFORM_BITS}-bit weights at the same cut")
    uniform = pipeline.apply_plan(
        loaded.model,
        uniform_plan(result.plan, sizes, UNIFORM_BITS),
        calibration=task.calibration,
        example_inputs=task.example_inputs,
    )
    _say(f"judging on {task.judged}")
    quality = judge(loaded, task, result, uniform)
    result.details = {
        **result.details,
        "title": f"{loaded.name}, compressed and split",
        "quality": quality,
        "weight_numel": {name: rows * columns for name, (rows, columns) in sizes.items()},
        "notes": [*result.details.get("notes", ()), *loaded.notes, f"judged on {task.judged}"],
    }
    report = result.report()
    print(f"\n{report}\n")
    files = result.export(folder, format="torchscript")
    _say(check_halves(result, files, task.example_inputs))
    plan_file = write_text(folder / "plan.json", result.plan.to_json())
    page = report.save_html(folder / "report.html")
    _say(f"wrote {', '.join(str(file) for file in (page, plan_file, *files))}")
    _say(f"done in {time.perf_counter() - started:.0f} s")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def demo_budget(sizes: dict[str, tuple[int, int]], task: tasks.Task) -> Budget:
    """The memory of uniform 4-bit weights, divided between both sides; the task's latency and energy."""
    total = uniform_bytes(sizes, UNIFORM_BITS)
    return Budget(
        latency=task.latency_s,
        energy=task.energy_j,
        device_memory=DEVICE_SHARE * total + task.activation_bytes,
        server_memory=(1.0 - DEVICE_SHARE) * total + task.activation_bytes,
    )


def compress(model: nn.Module, task: tasks.Task, budget: Budget, fast: bool) -> Result:
    """``compress_and_split``, once more with the nearest attainable budget if this one is impossible."""
    search = Search(bits=(2, 3, 4, 6), sparsities=(0.0,), algorithms=("nearest",)) if fast else Search()

    def run(chosen: Budget) -> Result:
        _say(f"budget: {describe(chosen)}; device {DEVICE}, server {SERVER}, link {LINK}")
        return pipeline.compress_and_split(
            model,
            chosen,
            example_inputs=task.example_inputs,
            calibration=task.calibration,
            validation=task.validation,
            device=DEVICE,
            server=SERVER,
            link=LINK,
            search=search,
            progress=True,
        )

    _say("calibrating, scoring every option of every layer, solving, compressing; minutes on a busy machine")
    try:
        return run(budget)
    except InfeasibleBudget as impossible:
        _say(f"no plan fits: {impossible}\ntaking the least common relaxation instead")
        return run(impossible.attainable)


def describe(budget: Budget) -> str:
    """A budget in words: "latency 150 ms, device memory 6.5 MiB"."""
    units = {"latency": lambda v: f"{1e3 * v:.0f} ms", "energy": lambda v: f"{v:.2g} J"}
    told = []
    for name, value in budget.as_dict().items():
        form: Callable[[float], str] = units.get(
            name, format_bytes if "memory" in name else lambda v: f"{v:g}"
        )
        told.append(f"{name.replace('_', ' ')} {form(value)}")
    return ", ".join(told)


def judge(loaded: LoadedModel, task: tasks.Task, result: Result, uniform: Result) -> list[dict[str, Any]]:
    """Original, plan and uniform 4-bit on the judging half: bytes and the task's columns."""
    original = task.score(loaded.model, "judging the original")
    rows = [
        {"model": "original, float32", "weights": _float_bytes(loaded.model), **task.row(original, original)}
    ]
    for name, candidate in (("this plan", result), ("uniform 4-bit, same cut", uniform)):
        size = sum(layer.packed_bytes for layer in candidate.plan.layers.values())
        score = task.score(candidate, f"judging {name}")
        rows.append({"model": name, "weights": format_bytes(size), **task.row(score, original)})
    return rows


def _float_bytes(model: nn.Module) -> str:
    return format_bytes(sum(4 * rows * columns for rows, columns in weight_shapes(model).values()))


def check_halves(result: Result, files: tuple[Path, Path], example_inputs: tasks.Batch) -> str:
    """Run both files in a fresh process that has torch and the op library only; say how far they are off.

    Raises:
        ExportError: the process failed.
    """
    inputs = list(example_inputs.values()) if isinstance(example_inputs, dict) else list(example_inputs)
    with torch.no_grad():
        named = isinstance(example_inputs, dict)
        sent = result.device(**example_inputs) if named else result.device(*example_inputs)
        expected = result.server(*sent)
    with tempfile.TemporaryDirectory() as scratch:
        given, got = Path(scratch) / "inputs.pt", Path(scratch) / "outputs.pt"
        torch.save(inputs, given)
        command = [sys.executable, "-c", _FRESH_PROCESS, *map(str, (LIBRARY, *files, given, got))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExportError("the exported halves do not run in a fresh process", got=done.stderr[-2000:])
        found = torch.load(got)
    reference, other = (default_output(value).float() for value in (expected, found))
    error = float((reference - other).abs().max() / reference.abs().max())
    return f"both TorchScript halves run in a fresh process; off by {error:.1e} of the largest output"
