"""``torchcoinfer plan`` and ``torchcoinfer compress``: their options, and what they do.

What needs torch is imported when it is used: a plan from a saved table needs none.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torchcoinfer.errors import ArgumentError

BUDGET_ROWS = {
    "latency": "of one run: device, link and server ('80 ms')",
    "energy": "of the device, radio included ('0.6 J')",
    "device-memory": "packed weights and peak activations on the device ('12 MiB')",
    "server-memory": "the same on the server",
    "uplink": "bytes sent to the server ('64 kB')",
    "device-bits-per-weight": "mean over the device's weights, scales counted (4.5)",
    "distortion": "predicted relative output error (0.05)",
}


DEFAULTS = {"device": "raspberry-pi-5", "server": "local", "link": "wifi-5ghz"}


def _planning_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="minilm (the default), torchvision:<name>, a Hugging Face id or a folder"
    )
    for row, meaning in BUDGET_ROWS.items():
        parser.add_argument(f"--{row}", metavar="LIMIT", help=f"budget: {meaning}")
    for role, default in DEFAULTS.items():
        measured = "" if role == "link" else ", or 'local'"
        parser.add_argument(f"--{role}", help=f"{role} profile: preset or file{measured}; default {default}")
    parser.add_argument("--cut", help="'device', 'server' or a cut's name; chosen if not given")
    parser.add_argument("--bits", help="bit widths to choose from, for instance 2,3,4,8")
    parser.add_argument("--costs", choices=["measured", "preset", "analytic"], help="default preset")
    parser.add_argument("--seed", type=int, help="default 0")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer plan``."""
    _planning_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("plan.json"), help="file of the plan")
    parser.add_argument("--pareto", metavar="ROW", help="a front along this row, too: a plan file a point")
    parser.add_argument("--points", type=int, default=9, help="limits that the front tries")
    parser.add_argument("--save-table", type=Path, metavar="FILE", help="keep the scored table for --table")
    parser.add_argument(
        "--table", type=Path, metavar="FILE",
        help="plan from a table saved before, without model and data: another budget, link, device, cut",
    )  # fmt: skip


def plan(options: argparse.Namespace) -> int:
    """Trace, calibrate, score and solve, or solve again from a saved table; nothing is compressed."""
    axis, budget = options.pareto and options.pareto.replace("-", "_"), _budget(options)
    if axis:
        fronts = import_module("torchcoinfer.theory.pareto")
        fronts.check_points(options.points)
        # a saved table may have another objective, and says itself that no front lies along that
        fronts.check_axis("" if options.table else "distortion", axis)
    for path in (options.output, options.save_table):
        _check_file(path)
    chosen, table, details, front = (_from_table if options.table else _from_model)(options, budget, axis)
    print(import_module("torchcoinfer.report").Report(chosen, details))
    _write_text(options.output, chosen.to_json())
    print(f"wrote {options.output}")
    if front is not None:
        print(front)
        for k, point in enumerate(front):
            file = options.output.with_name(f"{options.output.stem}-{axis}-{k}.json")
            _write_text(file, point.to_json())
            print(f"wrote {file}")
    if options.save_table:
        _write_text(options.save_table, table.to_json())
        print(f"wrote {options.save_table}")
    return 0


def _from_table(options: argparse.Namespace, budget: Any, axis: str | None) -> tuple[Any, ...]:
    table = import_module("torchcoinfer.theory.scored").Scored.from_json(_read_text(options.table))
    contradicting = [name for name in ("model", "costs", "seed") if getattr(options, name) is not None]
    if contradicting:
        raise ArgumentError(
            "a table holds its own model, costs and seed", got=f"--{contradicting[0]} beside --table",
            remedy="leave the option out, or score the model again without --table",
        )  # fmt: skip
    table = table.narrowed(options.cut, **_bits(options.bits))
    given = {role: getattr(options, role) for role in DEFAULTS if getattr(options, role) is not None}
    profile = import_module("torchcoinfer.profile") if given else None
    found = {role: getattr(profile, f"{role}_profile")(name) for role, name in given.items()}
    table = replace(table, **found)
    front = table.front(budget, axis, options.points) if axis else None
    return table.plan(budget), table, {}, front


def _from_model(options: argparse.Namespace, budget: Any, axis: str | None) -> tuple[Any, ...]:
    arguments, model = _arguments(options)
    study = import_module("torchcoinfer.pipeline.explore").study(model, budget, **arguments)
    chosen, table, details = study.plan(budget)
    front = study.front(budget, axis, options.points) if axis else None
    return chosen, table if front is None else study.scored(), details, front


def add_compress_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer compress``."""
    _planning_arguments(parser)
    parser.add_argument(
        "--plan", type=Path, help="obey this plan.json instead of searching; the budget is its own"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for plan, weights and graphs")


def compress(options: argparse.Namespace) -> int:
    """Search and compress, or compress as a plan says; write the folder."""
    result = _applied(options) if options.plan else _compressed(options)
    print(result.report())
    print(f"wrote {result.save(options.output)}")
    return 0


def _task(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model by name, and the data that the demo would calibrate it on."""
    loaded = import_module("torchcoinfer.models").load_model(options.model or "minilm")
    for note in loaded.notes:
        print(f"note: {note}")
    return loaded, import_module("torchcoinfer.bench.tasks").task_for(loaded, progress=not options.quiet)


def _arguments(options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """What ``compress_and_split`` takes beside model and budget, and the model."""
    limits = import_module("torchcoinfer.theory.budget")
    costs, seed = options.costs or "preset", options.seed or 0
    search = limits.Search(cut=options.cut, costs=costs, seed=seed, **_bits(options.bits))
    loaded, task = _task(options)
    profiles = {role: getattr(options, role) or default for role, default in DEFAULTS.items()}
    arguments = {
        "example_inputs": task.example_inputs, "calibration": task.calibration,
        "validation": task.validation, "search": search, "progress": not options.quiet, **profiles,
    }  # fmt: skip
    return arguments, loaded.model


def _compressed(options: argparse.Namespace) -> Any:
    budget = _budget(options)
    arguments, model = _arguments(options)
    return import_module("torchcoinfer.pipeline").compress_and_split(model, budget, **arguments)


def _applied(options: argparse.Namespace) -> Any:
    plan = import_module("torchcoinfer.theory.plan").Plan.from_json(_read_text(options.plan))
    loaded, task = _task(options)
    return import_module("torchcoinfer.pipeline").apply_plan(
        loaded.model, plan, calibration=task.calibration, example_inputs=task.example_inputs
    )


def _budget(options: argparse.Namespace) -> Any:
    """The Budget given on the command line; a plain number is SI, anything else keeps its unit."""
    given = {row.replace("-", "_"): getattr(options, row.replace("-", "_")) for row in BUDGET_ROWS}
    if all(value is None for value in given.values()):
        rows = ", ".join(f"--{row}" for row in BUDGET_ROWS)
        raise ArgumentError(
            "a plan needs a budget", got="no limit", expected=f"one of {rows}",
            remedy="for example --latency '80 ms'",
        )  # fmt: skip
    limits = import_module("torchcoinfer.theory.budget")
    return limits.Budget(**{row: _number_or_text(v) for row, v in given.items() if v is not None})


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _bits(text: str | None) -> dict[str, tuple[int, ...]]:
    if text is None:
        return {}
    try:
        return {"bits": tuple(int(part) for part in text.split(","))}
    except ValueError as error:
        raise ArgumentError(
            "--bits cannot be read", got=repr(text), expected="integers, as in 2,3,4,8"
        ) from error


def _check_file(path: Path | None) -> None:
    """Before anything costly runs: whether a file can be written there."""
    if path is not None and (
        path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)
    ):
        raise ArgumentError(
            "cannot write a file there", got=str(path), expected="a file in a folder that exists",
            remedy="make the folder, or name another file",
        )  # fmt: skip


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"cannot read {path}", got=str(error), expected="a plan.json") from error
