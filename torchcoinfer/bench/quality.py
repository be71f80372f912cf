"""``torchcoinfer bench quality``: what all-MiniLM-L6-v2 keeps at 4.5 and 3.5 device bits per weight, all on
the device.

Embeddings are compressed and counted too. Beside the plan stand uniform bit-widths in groups of 64, rounded
to nearest with clip search, with and without the embedding tables compressed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from torchcoinfer import pipeline
from torchcoinfer.bench import retrieval, tasks
from torchcoinfer.bench.arguments import output_file, positive_integer
from torchcoinfer.bench.uniform import uniform_plan, weight_shapes
from torchcoinfer.models import load_model
from torchcoinfer.report import format_table, write_text
from torchcoinfer.report.content import number_of
from torchcoinfer.result import Result
from torchcoinfer.theory.budget import Budget, Search

# device bits per weight -> (least mean cosine, uniform bit-width to compare with)
GOALS = {4.5: (0.988, 4), 3.5: (0.955, 3)}
MOST_RETRIEVAL_LOSS = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer bench quality``."""
    parser.add_argument("--bits", nargs="+", type=float, default=list(GOALS), help="device bits per weight")
    parser.add_argument(
        "--calibration", type=positive_integer, default=256, help="docstrings to calibrate on"
    )
    parser.add_argument("--queries", type=positive_integer, default=2000)
    parser.add_argument("--output", type=output_file, help="file for the JSON rows, one a line")


def main(arguments: argparse.Namespace) -> int:
    """Plan, apply, judge; print a table and write JSON rows where asked."""
    loaded = load_model("minilm")
    task = tasks.text_task(loaded, count=arguments.calibration, judged=arguments.queries, progress=True)
    original = task.score(loaded.model, "judging the original")
    shapes, rows = weight_shapes(loaded.model), []
    for bits in arguments.bits:
        goal, uniform_bits = GOALS.get(bits, (None, round(bits)))
        started = time.perf_counter()
        result = pipeline.compress_and_split(
            loaded.model,
            Budget(device_bits_per_weight=bits),
            example_inputs=task.example_inputs,
            calibration=task.calibration,
            validation=task.validation,
            search=Search(cut="device"),
            server="laptop-4core",
        )
        seconds = time.perf_counter() - started
        rows.append(_row(f"plan, at most {bits:g} bits", result, task, original, goal) | {"wall_s": seconds})
        for encoder_only in (False, True):
            plan = uniform_plan(result.plan, shapes, uniform_bits, ("embeddings",) if encoder_only else ())
            other = pipeline.apply_plan(
                loaded.model, plan, calibration=task.calibration, example_inputs=task.example_inputs
            )
            name = f"uniform {uniform_bits}-bit g64" + (", encoder only" if encoder_only else "")
            rows.append(_row(name, other, task, original, None))
    print(format_table([_shown(row) for row in rows]))
    if arguments.output:
        write_text(Path(arguments.output), "".join(json.dumps(row) + "\n" for row in rows))
    return 0


def _row(
    name: str, result: Result, task: tasks.Task, original: retrieval.Judged, goal: float | None
) -> dict[str, Any]:
    score = task.score(result, f"judging {name}")
    gap = retrieval.paired(original.hit, score.hit)
    weights = sum(layer.packed_bytes for layer in result.plan.layers.values())
    cosine = score.cosine_to(original)
    row = {
        "what": "minilm quality",
        "kernel": name,
        "device_bits_per_weight": result.plan.predicted["device_bits_per_weight"],
        "packed_bytes": weights,
        "cosine": cosine,
        "retrieval_at_1": score.retrieval_at_1,
        "original_retrieval_at_1": original.retrieval_at_1,
        "paired_difference": gap.difference,
        "paired_standard_error": gap.standard_error,
        "queries": len(score.hit),
        "output_error": number_of(result.plan.bounds["output"]["measured"]),
    }
    if goal is not None:
        kept = gap.difference >= -MOST_RETRIEVAL_LOSS or gap.within_two
        row |= {"goal_cosine": goal, "met": bool(cosine >= goal and kept)}
    return row


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    met = row.get("met")
    return {
        "model": row["kernel"],
        "packed weights": f"{row['packed_bytes']:,}",
        "cosine": f"{row['cosine']:.4f}",
        "goal": f"{row['goal_cosine']:.3f}" if "goal_cosine" in row else None,
        "retrieval@1": f"{100 * row['retrieval_at_1']:.1f} %",
        "paired": f"{100 * row['paired_difference']:+.2f} ± {100 * row['paired_standard_error']:.2f} %",
        "met": None if met is None else "yes" if met else "NO",
    }
