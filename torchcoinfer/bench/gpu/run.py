"""The command: check, race, table, goals, JSON rows, picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchcoinfer.bench import roofline
from torchcoinfer.bench.cases import Case, shapes
from torchcoinfer.bench.formats import FORMATS, RACED, fresh
from torchcoinfer.bench.gpu import candidates, check, goals, peers
from torchcoinfer.bench.gpu.graphs import Timed, copies_for, race
from torchcoinfer.errors import KernelError
from torchcoinfer.ops import has_kernels
from torchcoinfer.report import format_table, write_text

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TOKENS = (1, 4, 16, 64, 256)
READ_BYTES = 1 << 30
PEAK_SIZE = 8192


def run(arguments: argparse.Namespace) -> int:
    """Correctness first; times only where it holds and ``--check`` did not ask for it alone.

    Raises:
        KernelError: no CUDA device, or the CUDA library is not loaded.
    """
    if arguments.device == "cuda" and not (torch.cuda.is_available() and has_kernels("cuda")):
        raise KernelError(
            "the kernel benchmark on a GPU",
            got=f"CUDA device: {torch.cuda.is_available()}, CUDA library: {has_kernels('cuda')}",
            expected="both",
            remedy="run it with an NVIDIA GPU, a torch with CUDA, and torchcoinfer built where nvcc is",
        )
    if not arguments.goals:  # which are judged after a check of their own
        cells = check.run(arguments.device, arguments.formats or ())
        print(check.summary(cells))
        if arguments.check or not all(cell.right for cell in cells):
            return 0 if all(cell.right for cell in cells) else 1
    print(f"\n{_device_name()}; weights rotated over 256 MiB in CUDA graphs")
    limits = _limits()
    found: list[dict[str, Any]] = []
    made: dict[str, list[nn.Module]] = {}
    matrix: tuple[int, int] | None = None
    cut_off = False
    try:
        for case, kind, formats, others in goals.cases() if arguments.goals else _cases(arguments):
            if matrix != (case.rows, case.columns):
                made.clear()
                matrix = case.rows, case.columns
            for name in formats:
                if name not in made:
                    made[name] = _copies(name, *matrix)
            found += _case(case, kind, {name: made[name] for name in formats}, others, limits)
            if arguments.output:  # case by case: what a time limit kills has left its rows
                write_text(Path(arguments.output), "".join(json.dumps(row) + "\n" for row in found))
    except KeyboardInterrupt:  # a time limit: what was found by then is judged and drawn
        cut_off = True
        print("\ncut off: the cases after these have not run")
    if arguments.goals:
        print(goals.summary(found))
    print(candidates.summary(found))
    if arguments.picture:
        print(f"wrote {roofline.save(found, Path(arguments.picture), frozenset(peers.PEERS))}")
    return int(cut_off)


def _cases(arguments: argparse.Namespace) -> Iterator[tuple[Case, str, Sequence[str], Sequence[str]]]:
    """Case, dtype of x, formats and peers of a plain race."""
    for name in arguments.shapes or ("llama",):
        for rows, columns in shapes(name):
            for tokens, kind in product(arguments.tokens or TOKENS, DTYPES):
                yield Case(rows, columns, tokens), kind, arguments.formats or RACED, tuple(peers.PEERS)


def _device_name() -> str:
    major, minor = torch.cuda.get_device_capability()
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}, {versions}"


def _copies(name: str, rows: int, columns: int) -> list[nn.Module]:
    """Distinct layers of one format, made on the GPU."""
    with torch.device("cuda"):
        first = FORMATS[name](rows, columns)
    return [first, *(fresh(first) for _ in range(copies_for(_bytes(first)) - 1))]


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.buffers())


def _limits() -> dict[str, float]:
    """Ceilings of this GPU in this run: memory traffic of a large copy, dense products of a large square."""
    source = torch.empty(READ_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copying = Timed("copy", [partial(target.copy_, source)], 2 * READ_BYTES, 0.0)
    flops, square = 2.0 * PEAK_SIZE**3, (PEAK_SIZE, PEAK_SIZE)
    a = torch.randn(square, device="cuda", dtype=torch.bfloat16)
    codes = torch.randint(-127, 128, square, device="cuda", dtype=torch.int8)
    products = Timed("bf16", [partial(torch.matmul, a, a)], 1, flops)
    integers = Timed("int8", [partial(torch._int_mm, codes, codes.t())], 1, flops)
    race([copying, products, integers])
    return {
        "bytes_per_s": copying.moved_bytes / copying.median_s,
        "bf16": flops / products.median_s,
        "int8": flops / integers.median_s,
    }


def _case(
    case: Case,
    kind: str,
    modules: dict[str, list[nn.Module]],
    others: Sequence[str],
    limits: dict[str, float],
) -> list[dict[str, Any]]:
    """One race, printed; a JSON row for every contender, missing ones included."""
    x = torch.randn(case.tokens, case.columns, device="cuda", dtype=DTYPES[kind])
    own = [
        Timed(name, [partial(module, x) for module in copies], _bytes(copies[0]), case.flops)
        for name, copies in modules.items()
    ]
    own += [
        Timed(f"{one.name}, {asked.name}", list(map(asked.called, one.calls)), one.moved_bytes, one.flops)
        for one in own
        for asked in candidates.CANDIDATES
        if asked.serves(one.name, case.tokens)
    ]
    made = list(peers.make(others, case, DTYPES[kind]))
    contenders = [*own, *(peer for peer in made if isinstance(peer, Timed))]
    with torch.inference_mode():
        race(contenders)
    rows = [_row(one, contenders, case, kind, limits) for one in contenders]
    missing = [peer for peer in made if not isinstance(peer, Timed)]
    rows += [{"what": "linear", "kernel": name, "missing": reason} for name, reason in missing]
    print(f"\nx [{case.tokens}, {case.columns}] {kind}, W [{case.rows}, {case.columns}]")
    print(format_table([_shown(row) for row in rows if "missing" not in row]))
    for name, reason in missing:
        print(f"missing: {name}: {reason}")
    return rows


def _row(
    one: Timed, others: Sequence[Timed], case: Case, kind: str, limits: dict[str, float]
) -> dict[str, Any]:
    floor_s = one.moved_bytes / limits["bytes_per_s"]
    peak = limits["int8" if "A8" in one.name or "int8" in one.name else "bf16"]
    reason = one.not_judged
    return {
        "what": "linear",
        "kernel": one.name,
        "shape": list(case.shape),
        "dtype": kind,
        "device": _device_name(),
        "cpu": torch.cuda.get_device_name(),
        "isa": f"CUDA {torch.version.cuda}",
        "threads": 1,
        "median_s": one.median_s,
        "p90_s": one.p90_s,
        "bytes": one.moved_bytes,
        "rotated_bytes": one.moved_bytes * len(one.calls),
        "flops": one.flops,
        "bandwidth_bytes_per_s": limits["bytes_per_s"],
        "peak_flops": {"bf16": limits["bf16"], "int8": limits["int8"]},
        "fraction_of_memory_floor": floor_s / one.median_s,
        "fraction_of_roofline": max(floor_s, one.flops / peak) / one.median_s,
        "ratio_to": {o.name: one.median_s / o.median_s for o in others if o.peer and o is not one},
        "judged": True if reason is None else f"not judged: {reason}",
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
    }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    ratio = row["ratio_to"].get(peers.BASELINE)
    return {
        "kernel": row["kernel"],
        "median": f"{1e6 * row['median_s']:.1f} us",
        "p90": f"{1e6 * row['p90_s']:.1f} us",
        f"times faster than {peers.BASELINE}": None if ratio is None else f"{1 / ratio:.2f}",
        "memory floor": f"{100 * row['fraction_of_memory_floor']:.0f} %",
        "roofline": f"{100 * row['fraction_of_roofline']:.0f} %",
        "judged": "yes" if row["judged"] is True else row["judged"],
    }
