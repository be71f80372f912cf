"""``torchcoinfer bench kernels``: the packed linear layers against every other kernel at hand, on this
CPU, or with ``--device cuda`` on a GPU (``bench/gpu``).

All contenders run in one process, interleaved, with the same number of threads, on weights beyond the cache.
``--goals`` judges the project's goals instead, ``--grid`` whether a format is ever slower than a dense layer.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch

from torchcoinfer.bench import ceilings, formats, goals, grid, roofline, timing
from torchcoinfer.bench.arguments import output_file, positive_integer
from torchcoinfer.bench.cases import ACTIVATIONS, SHAPES, TOKENS, Case, shapes
from torchcoinfer.bench.ceilings import Ceilings
from torchcoinfer.bench.formats import FORMATS, RACED, Copies
from torchcoinfer.bench.gpu import run as gpu
from torchcoinfer.bench.peers import PEERS, Missing, make_peers
from torchcoinfer.bench.timing import Contender
from torchcoinfer.ops import cpu_isa, has_kernels
from torchcoinfer.report import format_table, write_text

BASELINE = "torch bf16"
RACE_S = 3.0
READ_EVERY = 4  # contenders between two turns of the memory reader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer bench kernels``."""
    cores, names = len(os.sched_getaffinity(0)), ", ".join(SHAPES)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shapes", nargs="+", help=f"{names} or KxN; default llama bert")
    parser.add_argument("--tokens", nargs="+", type=positive_integer, help="rows of x; default 1 4 16 64")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--formats", nargs="*", choices=list(FORMATS))
    parser.add_argument("--activations", nargs="+", choices=list(ACTIVATIONS), default=list(ACTIVATIONS))
    parser.add_argument(
        "--threads", nargs="+", type=positive_integer, help=f"default {cores}; of the grid 1 and {cores}"
    )
    parser.add_argument("--seconds", type=float, help="per race; default 3, of the grid .2")
    parser.add_argument("--output", type=output_file, help="file for the JSON rows, one a line")
    parser.add_argument("--picture", type=output_file, help="PNG file for the roofline (extra 'report')")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--check", action="store_true", help="compare every layer on the device with float64, time nothing"
    )
    modes.add_argument(
        "--goals", action="store_true", help="judge the goals for this machine's ISA, or for the GPU"
    )
    modes.add_argument(
        "--grid", action="store_true", help="is any format slower than dense; resumes --output"
    )


def main(arguments: argparse.Namespace) -> int:
    """Race, print a table per case, write JSON rows and the picture where asked."""
    if arguments.device == "cuda" or arguments.check:
        return gpu.run(arguments)
    if arguments.grid:
        return grid.run(arguments)
    arguments.threads = arguments.threads or [len(os.sched_getaffinity(0))]
    cases = [
        Case(rows, columns, tokens)
        for name in arguments.shapes or ("llama", "bert")
        for rows, columns in shapes(name)
        for tokens in arguments.tokens or TOKENS
    ]
    if arguments.goals:
        cases = goals.cases()
    found: list[dict[str, Any]] = []
    for (rows, columns), of_shape in groupby(sorted(set(cases), key=_order), key=_matrix):
        copies = Copies(rows, columns)
        for case, threads in product(list(of_shape), arguments.threads):
            with timing.torch_threads(threads):
                found += run_case(case, threads, arguments, copies)
    if arguments.goals:
        print(goals.summary(found))
    if arguments.output:
        write_text(Path(arguments.output), "".join(json.dumps(row) + "\n" for row in found))
    if arguments.picture:
        print(f"wrote {roofline.save(found, Path(arguments.picture))}")
    return 0


def _order(case: Case) -> tuple[int, ...]:
    return case.rows * case.columns, case.rows, case.tokens


def _matrix(case: Case) -> tuple[int, int]:
    return case.rows, case.columns


def run_case(case: Case, threads: int, arguments: argparse.Namespace, copies: Copies) -> list[dict[str, Any]]:
    """One race, printed; a JSON row for every contender, missing ones included."""
    peers = arguments.peers
    own = [(name, activation) for name in arguments.formats or RACED for activation in arguments.activations]
    if arguments.goals:
        wanted = goals.contenders(case)
        peers, own = wanted.peers, wanted.formats
    made = list(make_peers(dict.fromkeys((BASELINE, *peers)), case, threads))
    missing = [peer for peer in made if isinstance(peer, Missing)]
    reader = ceilings.memory_reader()
    contenders = [formats.contender(name, copies[name], x, case) for name, x in own]
    contenders += [peer for peer in made if isinstance(peer, Contender)]
    contenders.sort(key=lambda contender: contender.pool != "torch")  # stable: one change of pool each
    with torch.inference_mode():
        timing.race(_with_readers(contenders, reader), threads, arguments.seconds or RACE_S)
        limits = Ceilings(reader.moved_bytes / reader.median_s, *ceilings.compute_ceilings(threads))
    rows = [_row(contender, contenders, case, limits, reader) for contender in contenders]
    rows += [{"what": "linear", "kernel": peer.name, "missing": peer.reason} for peer in missing]
    _print(rows, case, threads, limits)
    return rows


def _with_readers(contenders: Sequence[Contender], reader: Contender) -> list[Contender]:
    """The memory reader before every few contenders: the floor drifts within a race."""
    torch_count = sum(contender.pool == reader.pool for contender in contenders)
    order = list(contenders)
    for place in reversed(range(0, max(1, torch_count), READ_EVERY)):
        order.insert(place, reader)
    return order


def _row(
    contender: Contender, others: Sequence[Contender], case: Case, limits: Ceilings, reader: Contender
) -> dict[str, Any]:
    """The measurement with its ratio to every peer, and why a ratio does not count."""
    peers = [other for other in others if other.name in PEERS and other is not contender]
    int8 = "A8" in contender.name or contender.name in ("onednn qlinear", "torch dynamic qint8")
    return timing.row(
        contender,
        "linear",
        case.shape,
        isa=cpu_isa(),
        compiled=has_kernels(),
        cpu=timing.cpu_model(),
        bandwidth_bytes_per_s=limits.memory_bytes_per_s,
        bandwidth_not_judged=reader.not_judged,
        peak_flops={"bf16": limits.bf16_flops, "int8": limits.int8_flops},
        fraction_of_memory_floor=contender.moved_bytes / limits.memory_bytes_per_s / contender.median_s,
        fraction_of_roofline=limits.of(contender, int8),
        ratio_to={peer.name: contender.median_s / peer.median_s for peer in peers},
        ratio_not_judged={peer.name: reason for peer in peers if (reason := peer.not_judged) is not None},
        rotated_bytes=len(contender.calls) * contender.moved_bytes,
    )


def _print(rows: Sequence[dict[str, Any]], case: Case, threads: int, limits: Ceilings) -> None:
    told = f"{threads} thread{'s' * (threads > 1)}, {timing.cpu_model()}, {cpu_isa()}"
    print(f"\nx [{case.tokens}, {case.columns}], W [{case.rows}, {case.columns}], {told}")
    peak = ", ".join(
        f"{name} {flops / 1e12:.2f} TFLOP/s"
        for name, flops in (("bf16", limits.bf16_flops), ("int8", limits.int8_flops))
        if flops
    )
    load = os.getloadavg()[0]
    print(f"memory read {limits.memory_bytes_per_s / 1e9:.1f} GB/s; {peak} (oneDNN, cached); load {load:.2f}")
    print(format_table([_shown(row) for row in rows if "missing" not in row]))
    for row in rows:
        if "missing" in row:
            print(f"missing: {row['kernel']}: {row['missing']}")


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    ratio = row["ratio_to"].get(BASELINE, 1.0 if row["kernel"] == BASELINE else None)
    return {
        "kernel": row["kernel"],
        "median": f"{1e6 * row['median_s']:.1f} us",
        "p90": f"{1e6 * row['p90_s']:.1f} us",
        f"x {BASELINE}": None if ratio is None else f"{ratio:.2f}",
        "memory floor": f"{100 * row['fraction_of_memory_floor']:.0f} %",
        "roofline": f"{100 * row['fraction_of_roofline']:.0f} %",
        "judged": "yes" if row["judged"] is True else str(row["judged"]),
    }
