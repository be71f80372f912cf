"""``torchcoinfer bench scoring``: what the table of distortions costs, in seconds and in memory.

Timed are all rounding options that a default search allows, and error-compensated options beside a uniform
choice. The memory is set against one forward and backward pass of the model over the largest scored batch,
gradients of all parameters included, as a training step has them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torchcoinfer.bench import process, timing
from torchcoinfer.bench.arguments import natural, output_file, positive_integer
from torchcoinfer.bench.subjects import load_subject
from torchcoinfer.calibrate import Statistics, calibrate
from torchcoinfer.measure.compensated import score_compensated
from torchcoinfer.measure.curves import Data, nearest_curves, survivors
from torchcoinfer.measure.score import WORKING_SET_BYTES
from torchcoinfer.report import format_table, write_text
from torchcoinfer.theory.budget import Search
from torchcoinfer.theory.options import Option
from torchcoinfer.trace import Traced, trace

UNIFORM = Option(4, format="int", group_size=64, algorithm="nearest")
MEMORY_LIMIT = 2.0  # times one forward and backward pass
ROUNDING_LIMIT_S = {"minilm": 20.0}
MOST_LOAD_PER_CORE = 0.5  # above it an absolute time is not judged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer bench scoring``."""
    parser.add_argument(
        "--models",
        nargs="+",
        default=["minilm"],
        help="fcdnn, minilm, or a text model: Hugging Face id or folder",
    )
    parser.add_argument("--samples", type=positive_integer, default=128, help="to calibrate on, in all")
    parser.add_argument(
        "--repeats", type=positive_integer, default=5, help="of the rounding options; the median counts"
    )
    parser.add_argument("--threads", type=positive_integer, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--output", type=output_file, help="file for the JSON rows, one a line")


def main(arguments: argparse.Namespace) -> int:
    """Time, print a table, write JSON rows where asked."""
    rows: list[dict[str, Any]] = []
    with timing.torch_threads(arguments.threads):
        for spec in arguments.models:
            subject = load_subject(spec, -(-arguments.samples // 2), arguments.seed)
            traced = trace(subject.model, subject.example_inputs)
            found = calibrate(traced, (*subject.fit, *subject.score), seed=arguments.seed)
            rows += [
                _timed(subject.name, traced, found, arguments.repeats, arguments.seed),
                _compensated(subject.name, traced, found, arguments.seed),
                _memory(subject.name, traced, found, arguments.seed),
            ]
    common = {"cpu": timing.cpu_model(), "threads": arguments.threads}
    print(format_table([_shown(row) for row in rows]))
    if arguments.output:
        write_text(Path(arguments.output), "".join(json.dumps(row | common) + "\n" for row in rows))
    return 0


def _timed(model: str, traced: Traced, found: Statistics, repeats: int, seed: int) -> dict[str, Any]:
    load, seconds = _load(), []
    for _ in range(repeats):
        took, curves = _clock(lambda: nearest_curves(traced, found, Search(seed=seed)))
        seconds.append(took)
    options = sum(point.option.format != "float" for points in curves.values() for point in points)
    median, limit = statistics.median(seconds), ROUNDING_LIMIT_S.get(model)
    return _row(model, f"{options} rounding options", median, "s", limit, load, seconds=seconds)


def _compensated(model: str, traced: Traced, found: Statistics, seed: int) -> dict[str, Any]:
    search = Search(seed=seed)
    curves = nearest_curves(traced, found, Search(formats=("int",), seed=seed))
    options = survivors(traced, curves, {layer.name: UNIFORM for layer in traced.graph.layers})
    load = _load()
    seconds, _ = _clock(lambda: score_compensated(traced, found, options, search))
    count = sum(map(len, options.values()))
    return _row(model, f"{count} error-compensated options", seconds, "s", None, load)


def _memory(model: str, traced: Traced, found: Statistics, seed: int) -> dict[str, Any]:
    batch = max(Data.of(found).score, key=lambda inputs: sum(x.numel() for x in inputs))
    of_step = _step_bytes(traced, found, batch)
    alone = calibrate(traced, [batch], seed=seed)
    _, of_scoring = process.peak_added(lambda: nearest_curves(traced, alone, Search(seed=seed)))
    told = {"step_bytes": of_step, "scoring_bytes": of_scoring}
    # the working set does not shrink below a floor, which a small model's training does not reach
    limit = MEMORY_LIMIT if of_step >= WORKING_SET_BYTES else None
    return _row(model, "memory / forward + backward", of_scoring / of_step, "x", limit, None, **told)


def _step_bytes(traced: Traced, found: Statistics, batch: tuple[torch.Tensor, ...]) -> int:
    """Peak of one forward and backward pass: activations and gradients, not the weights."""
    trained = copy.deepcopy(traced.module).requires_grad_(True)

    def step() -> None:
        with torch.enable_grad():
            outputs = list(trained(*batch))
            found.judge.tensor(traced.unflatten_outputs(outputs), batch).float().square().sum().backward()

    step()  # what torch allocates once
    trained.zero_grad(set_to_none=True)
    return process.peak_added(step)[1]


def _clock(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _load() -> float:
    """Of the last minute, a core."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _row(
    model: str, what: str, value: float, unit: str, limit: float | None, load: float | None, **told: Any
) -> dict[str, Any]:
    verdict = None
    if limit is not None:
        calm = load is None or load < MOST_LOAD_PER_CORE
        verdict = ("hit" if value <= limit else "MISS") if calm else f"not judged: load {load:.2f} a core"
    return {
        "what": "scoring", "model": model, "case": what, "value": value, "unit": unit, "limit": limit,
        "load_1min_per_core": load, "verdict": verdict, **told,
    }  # fmt: skip


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    unit, limit = row["unit"], row["limit"]
    return {
        "model": row["model"], "case": row["case"], "measured": f"{row['value']:.3g} {unit}",
        "limit": None if limit is None else f"{limit:.3g} {unit}", "verdict": row["verdict"],
    }  # fmt: skip
