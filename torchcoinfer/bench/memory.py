"""``torchcoinfer bench memory``: what packing a large model costs, and what a packed model and a call occupy.

Three limits: a model of 10^9 parameters, its codes given, packs in at most 5 s; after calls with 1 and 256
rows the process holds at most 1.02 times the packed bytes; a call of a 64 x 64 layer takes at most 6
microseconds. The memory of a call beyond its result is reported beside them. Residence is measured in a fresh
process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchcoinfer.bench import process, timing
from torchcoinfer.bench.arguments import output_file, positive_integer
from torchcoinfer.bench.cases import GROUP_SIZE
from torchcoinfer.errors import KernelError
from torchcoinfer.nn import QuantLinear
from torchcoinfer.ops.pack import group_count
from torchcoinfer.report import format_table, write_text

BITS = 4
# (N, K, count): a decoder of 10^9 weights without embedding: shared keys and values, gated feed-forward
LAYERS = ((2048, 2048, 34), (512, 2048, 34), (8192, 2048, 34), (2048, 8192, 17))
PACKING_LIMIT_S, RESIDENT_LIMIT, CALL_LIMIT_S = 5.0, 1.02, 6e-6
SMALL = 64
CALLS, ROWS = 10, (1, 256)
_MOST_LOAD = 0.5  # one-minute load per core above which an absolute limit is not judged
_FRESH_PROCESS = """
import json, sys, torch
from torchcoinfer.bench import memory
layers, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
with torch.inference_mode():
    print(json.dumps(memory.resident(layers)))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer bench memory``."""
    parser.add_argument("--threads", type=positive_integer, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--layers", type=positive_integer, help="at most so many layers of each shape; default all"
    )
    parser.add_argument("--output", type=output_file, help="file for the JSON rows, one a line")


def main(arguments: argparse.Namespace) -> int:
    """Measure, print a table, write JSON rows where asked."""
    layers = [(rows, columns, min(count, arguments.layers or count)) for rows, columns, count in LAYERS]
    with timing.torch_threads(arguments.threads), torch.inference_mode():
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        rows = [
            packing(layers),
            *_residence_rows(layers, arguments.threads),
            *call_overhead(arguments.threads),
        ]
    calm = load < _MOST_LOAD
    for row in rows:
        row |= {"threads": arguments.threads, "load_1min_per_core": load}
        if row.get("limit") is not None:
            timed = row["unit"] == "s"
            row["verdict"] = "hit" if row["value"] <= row["limit"] else "MISS"
            row["judged"] = calm or not timed or f"not judged: load {load:.2f} a core at the start"
    print(format_table([_shown(row) for row in rows]))
    if arguments.output:
        write_text(Path(arguments.output), "".join(json.dumps(row) + "\n" for row in rows))
    return 0


def packing(layers: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """Seconds of ``QuantLinear.from_quantized`` over a whole model; making the codes does not count."""
    seconds, numel, packed_bytes = 0.0, 0, 0
    kept = []  # packed layers stay, as in a model that is being loaded
    for rows, columns, count in layers:
        groups = (rows, group_count(columns, GROUP_SIZE))
        scales = torch.rand(groups).half()
        zeros = torch.randint(0, 2**BITS, groups, dtype=torch.uint8)
        for _ in range(count):
            codes = torch.randint(0, 2**BITS, (rows, columns), dtype=torch.uint8)
            started = time.perf_counter()
            kept.append(QuantLinear.from_quantized(codes, scales, zeros, bits=BITS, group_size=GROUP_SIZE))
            seconds += time.perf_counter() - started
            numel += codes.numel()
            packed_bytes += kept[-1].packed_bytes
    what = f"packing {numel / 1e9:.2f} G weights, {BITS} bits"
    return _row(what, seconds, "s", PACKING_LIMIT_S, parameters=numel, packed_bytes=packed_bytes)


def _residence_rows(layers: Sequence[tuple[int, int, int]], threads: int) -> list[dict[str, Any]]:
    """``resident`` in a fresh process, as rows."""
    command = [sys.executable, "-c", _FRESH_PROCESS, json.dumps([layers, threads])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError("the process that measures residence failed", got=done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    ratio = found["resident_bytes"] / found["packed_bytes"]
    name = f"resident / packed bytes after {CALLS} calls at M = {' and '.join(map(str, ROWS))} each"
    rows = [_row(name, ratio, "x", RESIDENT_LIMIT, **found)]
    untrimmed = found["resident_untrimmed_bytes"] / found["packed_bytes"]
    rows.append(_row("the same with the free memory that the allocator keeps", untrimmed, "x", None))
    for call in found["calls"]:
        shape = f"M = {call['tokens']}, K = {call['columns']}, N = {call['rows']}"
        rows.append(
            _row(f"memory of one call beside y, {shape}", call["beside_bytes"] / 1e6, "MB", None, **call)
        )
    return rows


def resident(layers: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """Bytes that this process gained by a packed model after calls, and the peak that one call adds.

    The process has made calls with x and y of the same sizes before, through tiny layers, and the allocator
    gives its free memory back: what it keeps of x and y is no part of the model, and is told separately.
    """
    for rows, columns, _ in layers:
        for tiny in (_random_layer(SMALL, columns), _random_layer(rows, SMALL)):
            for tokens in ROWS:
                tiny(torch.randn(tokens, tiny.in_features))
    process.trim()
    before = process.status_bytes("VmRSS")
    model = [_random_layer(rows, columns) for rows, columns, count in layers for _ in range(count)]
    for tokens in ROWS:
        for layer in model:
            x = torch.randn(tokens, layer.in_features)
            for _ in range(CALLS):
                layer(x)
    del x
    found = {"packed_bytes": sum(layer.packed_bytes for layer in model)}
    found["resident_untrimmed_bytes"] = process.status_bytes("VmRSS") - before
    process.trim()
    found["resident_bytes"] = process.status_bytes("VmRSS") - before
    shapes = {(one.in_features, one.out_features): one for one in model}
    found["calls"] = [_peak_of_call(one, tokens) for tokens in ROWS for one in shapes.values()]
    return found


def _random_layer(rows: int, columns: int) -> QuantLinear:
    """A packed layer whose memory was written in place: nothing else was ever allocated for it."""
    layer = QuantLinear(columns, rows, False, bits=BITS, group_size=GROUP_SIZE)
    layer.packed.random_(0, 256)
    layer.scales.fill_(0.01)
    layer.zeros.fill_(2 ** (BITS - 1))
    return layer


def _peak_of_call(layer: QuantLinear, tokens: int) -> dict[str, int]:
    """Bytes by which one call raises the process's peak, the result's own not counted."""
    x = torch.randn(tokens, layer.in_features)
    y, added = process.peak_added(lambda: layer(x))
    beside = added - y.nbytes
    told = {"tokens": tokens, "columns": layer.in_features, "rows": layer.out_features}
    return {**told, "beside_bytes": max(0, beside), "x_bytes": x.nbytes, "y_bytes": y.nbytes}


def call_overhead(threads: int) -> list[dict[str, Any]]:
    """Time of one call of a 64 x 64 layer: the op, and the module around it. Median of five medians."""
    layer, x = _random_layer(SMALL, SMALL), torch.randn(1, SMALL)
    op, scales = torch.ops.torchcoinfer.quant_linear.default, layer.scales
    packed, zeros = layer.packed, layer.zeros

    def call_op() -> None:
        op(x, packed, scales, zeros, None, BITS, GROUP_SIZE, SMALL, 0, 0)

    dense = torch.nn.functional.linear
    weight = layer.dequantize_weight()
    found = []
    for name, call in (
        ("op", call_op),
        ("module", lambda: layer(x)),
        ("torch's linear, float32", lambda: dense(x, weight)),
    ):
        medians = []
        for _ in range(5):
            contender = timing.Contender(name, [call], 0)
            timing.race([contender], threads, 0.05)
            medians.append(contender.median_s)
        limit = CALL_LIMIT_S if name in ("op", "module") else None
        found.append(
            _row(f"one call at {SMALL} x {SMALL}, M = 1: {name}", float(np.median(medians)), "s", limit)
        )
    return found


def _row(what: str, value: float, unit: str, limit: float | None, **told: Any) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "limit": limit, "cpu": timing.cpu_model(), **told}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    small = row["unit"] == "s" and row["value"] < 1e-3
    scale, unit = (1e6, "us") if small else (1.0, row["unit"])
    limit = row["limit"]
    return {
        "what": row["what"],
        "measured": f"{scale * row['value']:.3g} {unit}",
        "limit": None if limit is None else f"{scale * limit:.3g} {unit}",
        "verdict": row.get("verdict"),
        "judged": {True: "yes", None: None}.get(row.get("judged"), row.get("judged")),
    }
