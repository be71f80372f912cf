"""``torchcoinfer demo | plan | compress | export | bench | profile | report``.

The help of the program itself needs no torch: a command's own modules are imported when it is called.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torchcoinfer import __version__
from torchcoinfer.errors import ArgumentError, TorchCoinferError

EXIT_ERROR = 2  # as argparse's own
BENCH_SUITES = (
    "allocation",
    "decode",
    "kernels",
    "memory",
    "models",
    "paper",
    "planner",
    "predictor",
    "quality",
    "scoring",
)  # modules of torchcoinfer.bench with add_arguments(parser) and main(options)


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


class _SuiteParser(argparse.ArgumentParser):
    """Imports its suite when it is called: one needs the solver, another a GPU, none all of them."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        import_module(f"torchcoinfer.bench.{self.prog.rpartition(' ')[2]}").add_arguments(self)
        return super().parse_known_args(args, namespace)


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    suites = parser.add_subparsers(
        dest="suite", required=True, metavar="suite", parser_class=_SuiteParser, prog=parser.prog
    )
    for name in BENCH_SUITES:
        source = Path(find_spec(f"torchcoinfer.bench.{name}").origin).read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].replace("``", "'")
        suites.add_parser(name, help=summary, description=summary)


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


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "compress and split a real model, run both halves, show that it worked",
        lambda parser: import_module("torchcoinfer.bench.demo").add_arguments(parser),
        lambda options: import_module("torchcoinfer.bench.demo").main(options),
    ),
    "plan": Command(
        "find a plan for a model and a budget; writes plan.json",
        lambda parser: import_module("torchcoinfer.planning").add_plan_arguments(parser),
        lambda options: import_module("torchcoinfer.planning").plan(options),
    ),
    "compress": Command(
        "find or obey a plan; writes a folder with both halves",
        lambda parser: import_module("torchcoinfer.planning").add_compress_arguments(parser),
        lambda options: import_module("torchcoinfer.planning").compress(options),
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
