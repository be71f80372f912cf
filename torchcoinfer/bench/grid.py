"""``bench kernels --grid``: is a packed layer ever slower than the dense one it replaces?

Every format in every bit width at many numbers of rows and shapes, against ``torch`` in the dtype of x (int8
activations: against bfloat16). A block is one shape, number of rows and number of threads: its dense layers
run once, in turn with all formats. Rows go to ``--output`` block by block, and what stands there judged is
not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from torchcoinfer.bench import formats, timing
from torchcoinfer.bench.cases import Case, shapes
from torchcoinfer.bench.formats import FORMATS, Copies
from torchcoinfer.bench.peers import builtin
from torchcoinfer.ops import cpu_isa
from torchcoinfer.report import format_table, write_text

SHAPES = ("384x384", "384x1536", "1536x384", "768x3072", "4096x4096", "4096x11008", "1000x2048", "97x1003")
TOKENS = (1, 2, 3, 4, 7, 8, 16, 33, 64, 128, 256, 512)
LIMIT, STRETCH = 1.1, 1.0
BLOCK_S = 0.2
WORST = 20

Key = tuple[str, tuple[int, ...], int]
Row = dict[str, Any]


def run(arguments: argparse.Namespace) -> int:
    """Measure what ``--output`` lacks, print the share of cells within the limit and the worst cells."""
    output = Path(arguments.output) if arguments.output else None
    found = {_key(row): row for row in _read(output)}
    names = arguments.formats or list(FORMATS)
    wanted = list(product(names, arguments.activations))
    for shape in (pair for name in arguments.shapes or SHAPES for pair in shapes(name)):
        copies = Copies(*shape)
        for tokens, threads in product(arguments.tokens or TOKENS, arguments.threads or _thread_counts()):
            case = Case(*shape, tokens)
            left = [(name, x) for name, x in wanted if not _done(found, name, x, case, threads)]
            if not left:
                continue
            for row in _block(left, case, threads, copies, arguments.seconds or BLOCK_S):
                found[_key(row)] = row
            if output:
                write_text(output, "".join(json.dumps(row) + "\n" for row in found.values()))
    print(summary(list(found.values())))
    return 0


def _thread_counts() -> list[int]:
    return sorted({1, len(os.sched_getaffinity(0))})


def _read(output: Path | None) -> list[Row]:
    if output is None or not output.exists():
        return []
    return [json.loads(line) for line in output.read_text().splitlines()]


def _key(row: Row) -> Key:
    return row["kernel"], tuple(row["shape"]), row["threads"]


def _done(found: dict[Key, Row], name: str, activation: str, case: Case, threads: int) -> bool:
    row = found.get((formats.label(name, activation), case.shape, threads))
    return row is not None and row["ratio_judged"] is True


def _block(
    wanted: Sequence[tuple[str, str]], case: Case, threads: int, copies: Copies, seconds: float
) -> Iterator[Row]:
    """One race of some formats and the dense layers they are held against; one row a format."""
    dense = {x: builtin.dense(x, case, threads) for x in dict.fromkeys(_against(*one) for one in wanted)}
    own = {one: formats.contender(one[0], copies[one[0]], one[1], case) for one in wanted}
    with timing.torch_threads(threads), torch.inference_mode():
        timing.race([*dense.values(), *own.values()], threads, seconds)
    for one, contender in own.items():
        baseline = dense[_against(*one)]
        reasons = [reason for side in (contender, baseline) if (reason := side.not_judged)]
        yield timing.row(
            contender,
            "never slower",
            case.shape,
            isa=cpu_isa(),
            cpu=timing.cpu_model(),
            ratio_to={baseline.name: contender.median_s / baseline.median_s},
            ratio_judged=f"not judged: {reasons[0]}" if reasons else True,
        )


def _against(name: str, activation: str) -> str:
    """The dtype of the dense layer that a format is held against."""
    return "bf16" if "A8" in name else activation


def summary(rows: Sequence[Row]) -> str:
    """The share of judged cells within the limit, in all and by format; the worst cells."""
    judged = [row for row in rows if row["ratio_judged"] is True]
    told = [f"{len(judged)} of {len(rows)} cells judged"]
    if judged:
        within, never = (_share(judged, limit) for limit in (LIMIT, STRETCH))
        told.append(f"within {LIMIT} x dense: {within:.1%}; within {STRETCH} x: {never:.1%}")
        worst = sorted(judged, key=_ratio, reverse=True)[:WORST]
        told.append(format_table([_shown(row) for row in worst]))
        told.append(format_table(list(_by_format(judged))))
    return "\n\n".join(told)


def _ratio(row: Row) -> float:
    return next(iter(row["ratio_to"].values()))


def _share(rows: Sequence[Row], limit: float) -> float:
    return sum(_ratio(row) <= limit for row in rows) / len(rows)


def _by_format(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for name in dict.fromkeys(row["kernel"] for row in rows):
        of_name = [row for row in rows if row["kernel"] == name]
        worst = max(of_name, key=_ratio)
        yield {
            "kernel": name,
            "cells": len(of_name),
            f"within {LIMIT}": f"{_share(of_name, LIMIT):.1%}",
            "worst": f"{_ratio(worst):.2f}x",
            "at": _place(worst),
        }


def _place(row: Row) -> str:
    tokens, columns, rows = row["shape"]
    return f"M {tokens}, {columns}x{rows}, {row['threads']} threads"


def _shown(row: Row) -> dict[str, Any]:
    (baseline,) = row["ratio_to"]
    return {
        "kernel": row["kernel"],
        "at": _place(row),
        "median": f"{1e6 * row['median_s']:.1f} us",
        "against": baseline,
        "ratio": f"{_ratio(row):.2f}x",
    }
