"""``torchcoinfer demo | plan | compress | export | bench | profile | report``.

The help of the program itself needs no torch: a command's own modules are imported when it is called.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torchcoinfer import __version__
from torchcoinfer.errors import ArgumentError, TorchCoinferError

EXIT_ERROR = 2  # as argparse's own
BENCH_SUITES = (
    "allocation",
    "kernels",
    "memory",
    "models",
    "paper",
    "planner",
    "predictor",
    "quality",
)  # modules of torchcoinfer.bench with add_arguments(parser) and main(options)
BUDGET_ROWS = {
    "latency": "of one run: device, link and server ('80 ms')",
    "energy": "of the device, radio included ('0.6 J')",
    "device-memory": "packed weights and peak activations on the device ('12 MiB')",
    "server-memory": "the same on the server",
    "uplink": "bytes sent to the server ('64 kB')",
    "device-bits-per-weight": "mean over the device's weights, scales counted (4.5)",
    "distortion": "predicted relative output error (0.05)",
}


@dataclass(frozen=True)
class Command:
    """One subcommand: what it does, its options, and the function that does it."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        exit code: 0, or 2 for an error of this package, whose message goes to stderr.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else "--help"
    command = COMMANDS.get(name)
    if command is None:
        _program().parse_args([name])  # help and version exit here, and so does an unknown command
        return EXIT_ERROR
    parser = argparse.ArgumentParser(prog=f"torchcoinfer {name}", description=command.summary)
    try:
        command.add_arguments(parser)
        return command.run(parser.parse_args(arguments[1:]))
    except TorchCoinferError as error:
        print(f"torchcoinfer {name}: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_ERROR


def _program() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="torchcoinfer",
        description="Compress a PyTorch model and split it between a device and a server, under a budget.",
        epilog=f"commands:\n{listed}\n\n'torchcoinfer <command> --help' shows the options of one command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"torchcoinfer {__version__}")
    parser.add_argument("command", choices=list(COMMANDS), metavar="command")
    return parser


# -- plan, compress -------------------------------------------------------------------------------------


def _planning_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="minilm", help="minilm, torchvision:<name>, a Hugging Face id or a folder"
    )
    for row, meaning in BUDGET_ROWS.items():
        parser.add_argument(f"--{row}", metavar="LIMIT", help=f"budget: {meaning}")
    parser.add_argument("--device", default="raspberry-pi-5", help="device profile: preset, file, or 'local'")
    parser.add_argument("--server", default="local", help="server profile: preset, file, or 'local'")
    parser.add_argument("--link", default="wifi-5ghz", help="link profile: preset or file")
    parser.add_argument("--cut", help="'device', 'server' or a cut's name; chosen if not given")
    parser.add_argument("--bits", help="bit widths to choose from, for instance 2,3,4,8")
    parser.add_argument("--costs", default="preset", choices=["measured", "preset", "analytic"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _planning_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("plan.json"), help="file of the plan")


def _plan(options: argparse.Namespace) -> int:
    result = _compressed(options)
    _write_text(options.output, result.plan.to_json())
    print(result.report())
    print(f"wrote {options.output}")
    return 0


def _compress_arguments(parser: argparse.ArgumentParser) -> None:
    _planning_arguments(parser)
    parser.add_argument(
        "--plan", type=Path, help="obey this plan.json instead of searching; the budget is its own"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for plan, weights and graphs")


def _compress(options: argparse.Namespace) -> int:
    result = _applied(options) if options.plan else _compressed(options)
    print(result.report())
    print(f"wrote {result.save(options.output)}")
    return 0


def _task(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model by name, and the data that the demo would calibrate it on."""
    loaded = import_module("torchcoinfer.models").load_model(options.model)
    for note in loaded.notes:
        print(f"note: {note}")
    return loaded, import_module("torchcoinfer.bench.tasks").task_for(loaded, progress=not options.quiet)


def _compressed(options: argparse.Namespace) -> Any:
    limits = import_module("torchcoinfer.theory.budget")
    budget = limits.Budget(**_budget(options))
    search = limits.Search(cut=options.cut, costs=options.costs, seed=options.seed, **_bits(options.bits))
    loaded, task = _task(options)
    return import_module("torchcoinfer.pipeline").compress_and_split(
        loaded.model,
        budget,
        example_inputs=task.example_inputs,
        calibration=task.calibration,
        validation=task.validation,
        device=options.device,
        server=options.server,
        link=options.link,
        search=search,
        progress=not options.quiet,
    )


def _applied(options: argparse.Namespace) -> Any:
    plan = import_module("torchcoinfer.theory.plan").Plan.from_json(_read_text(options.plan))
    loaded, task = _task(options)
    return import_module("torchcoinfer.pipeline").apply_plan(
        loaded.model, plan, calibration=task.calibration, example_inputs=task.example_inputs
    )


def _budget(options: argparse.Namespace) -> dict[str, Any]:
    """Budget rows given on the command line; a plain number is SI, anything else keeps its unit."""
    given = {row.replace("-", "_"): getattr(options, row.replace("-", "_")) for row in BUDGET_ROWS}
    return {row: _number_or_text(value) for row, value in given.items() if value is not None}


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


# -- export, report -------------------------------------------------------------------------------------


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="what 'torchcoinfer compress' or Result.save wrote")
    parser.add_argument("--format", default="torchscript", choices=["torchscript", "pt2", "aoti"])
    parser.add_argument("--output", type=Path, required=True, help="folder for both halves' files")


def _export(options: argparse.Namespace) -> int:
    result = import_module("torchcoinfer.result").load(options.folder)
    options.output.mkdir(parents=True, exist_ok=True)
    for file in result.export(options.output, format=options.format):
        print(f"wrote {file}")
    return 0


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="what 'torchcoinfer compress' or Result.save wrote")
    parser.add_argument("--html", type=Path, help="write the report as one HTML page, too")


def _report(options: argparse.Namespace) -> int:
    report = import_module("torchcoinfer.result").load(options.folder).report()
    print(report)
    if options.html:
        print(f"wrote {report.save_html(options.html)}")
    return 0


# -- bench ----------------------------------------------------------------------------------------------


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    suites = parser.add_subparsers(dest="suite", required=True, metavar="suite")
    for name in BENCH_SUITES:
        module = import_module(f"torchcoinfer.bench.{name}")
        summary = (module.__doc__ or "").partition("\n\n")[0]
        module.add_arguments(suites.add_parser(name, help=summary, description=summary))


def _bench(options: argparse.Namespace) -> int:
    return import_module(f"torchcoinfer.bench.{options.suite}").main(options)


# -- profile --------------------------------------------------------------------------------------------


def _profile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", help="a preset, a file, or 'local' (measured here); none: list the presets"
    )
    parser.add_argument("--save", type=Path, help="write the profile to this .toml or .json file")


def _profile(options: argparse.Namespace) -> int:
    profile = import_module("torchcoinfer.profile")
    if options.name is None:
        for role in ("device", "server", "link"):
            print(f"{role + ':':<8}{', '.join(profile.preset_names(role))}")
        return 0
    found = _found_profile(profile, options.name)
    print(profile.describe(found))
    if options.save:
        print(f"wrote {profile.save_profile(found, options.save)}")
    return 0


def _found_profile(profile: Any, name: str) -> Any:
    if Path(name).suffix in (".toml", ".json"):
        return profile.load_profile(name)
    if name in profile.preset_names("link"):
        return profile.link_profile(name)
    if name not in (*profile.preset_names(), "local"):
        raise ArgumentError(
            "unknown profile", got=repr(name), expected=", ".join([*profile.preset_names(), "local"])
        )
    return profile.device_profile(name)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"cannot read {path}", got=str(error), expected="a plan.json") from error


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "compress and split a real model, run both halves, show that it worked",
        lambda parser: import_module("torchcoinfer.bench.demo").add_arguments(parser),
        lambda options: import_module("torchcoinfer.bench.demo").main(options),
    ),
    "plan": Command("find a plan for a model and a budget; writes plan.json", _plan_arguments, _plan),
    "compress": Command(
        "find or obey a plan; writes a folder with both halves", _compress_arguments, _compress
    ),
    "export": Command(
        "write both halves as TorchScript, .pt2 or AOTInductor files", _export_arguments, _export
    ),
    "bench": Command("measure kernels or quality against their peers; JSON rows", _bench_arguments, _bench),
    "profile": Command(
        "list, show, measure or save a device, server or link profile", _profile_arguments, _profile
    ),
    "report": Command("print the report of a saved folder; --html for the page", _report_arguments, _report),
}


if __name__ == "__main__":
    sys.exit(main())
