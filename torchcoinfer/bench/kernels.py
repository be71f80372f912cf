"""``torchcoinfer bench kernels``: the packed linear layers against torch's own, on this CPU, in one run."""

from __future__ import annotations

import argparse
import copy
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchcoinfer.bench import timing
from torchcoinfer.bench.timing import Contender
from torchcoinfer.nn import QuantLinear, SparseLinear, SparseQuantLinear
from torchcoinfer.ops import cpu_isa, has_kernels
from torchcoinfer.report import format_table, write_text

# (N, K): a large language model's square projection; MiniLM's attention, feed-forward up and down
SHAPES = {"4096": ((4096, 4096),), "bert": ((384, 384), (1536, 384), (384, 1536))}
TOKENS = (1, 4, 16, 64)
GROUP_SIZE = 128
BASELINE = "torch bf16"


@dataclass(frozen=True)
class Case:
    """One race: y = x W^T with x [tokens, K], W [N, K]."""

    rows: int
    columns: int
    tokens: int

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.columns * self.tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``torchcoinfer bench kernels``."""
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=2.0, help="per race")
    parser.add_argument("--output", default=None, help="file for the JSON rows, one a line")


def main(arguments: argparse.Namespace) -> int:
    """Race, print a table per shape, write JSON rows where asked."""
    cases = [
        Case(rows, columns, tokens)
        for name in arguments.shapes
        for rows, columns in SHAPES[name]
        for tokens in arguments.tokens
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        rows = [row for case in cases for row in run_case(case, arguments.threads, arguments.seconds)]
    finally:
        torch.set_num_threads(before)
    if arguments.output:
        write_text(Path(arguments.output), "".join(json.dumps(row) + "\n" for row in rows))
    return 0


def run_case(case: Case, threads: int, seconds: float) -> list[dict[str, Any]]:
    """One race, printed; JSON rows with ratios to the baseline and the share of the memory floor reached."""
    linear = nn.Linear(case.columns, case.rows, bias=False).requires_grad_(False)
    contenders = [contender for contender in _contenders(linear, case) if contender is not None]
    reader = timing.memory_reader(max(256 << 20, 4 * timing.last_level_cache_bytes()))
    with torch.inference_mode():
        timing.race([reader, *contenders], seconds)
    bandwidth = reader.moved_bytes / reader.median_s
    baseline = next(contender for contender in contenders if contender.name == BASELINE)
    rows = []
    for contender in contenders:
        reasons = [reason for side in (contender, baseline) if (reason := side.not_judged(threads))]
        ratio = contender.median_s / baseline.median_s
        rows.append(
            timing.row(
                contender,
                "linear",
                (case.tokens, case.columns, case.rows),
                threads,
                isa=cpu_isa(),
                compiled=has_kernels(),
                bandwidth_bytes_per_s=bandwidth,
                fraction_of_roofline=contender.moved_bytes / bandwidth / contender.median_s,
                ratio_to={BASELINE: ratio},
                rotated_bytes=len(contender.calls) * contender.moved_bytes,
                ratio_judged=True if not reasons else f"not judged: {reasons[0]}",
            )
        )
    threads_told = f"{threads} thread{'s' * (threads > 1)}"
    print(
        f"\nx [{case.tokens}, {case.columns}], W [{case.rows}, {case.columns}], {threads_told}, {cpu_isa()}"
    )
    print(f"memory read {bandwidth / 1e9:.1f} GB/s, load {rows[0]['load_1min']:.2f}")
    print(format_table([_shown(row) for row in rows]))
    return rows


def _shown(row: dict[str, Any]) -> dict[str, str]:
    return {
        "kernel": row["kernel"],
        "median": f"{1e6 * row['median_s']:.1f} us",
        "p90": f"{1e6 * row['p90_s']:.1f} us",
        f"x {BASELINE}": f"{row['ratio_to'][BASELINE]:.2f}",
        "of memory floor": f"{100 * row['fraction_of_roofline']:.0f} %",
        "judged": "yes" if row["ratio_judged"] is True else str(row["ratio_judged"]),
    }


def _contenders(linear: nn.Linear, case: Case) -> Iterator[Contender | None]:
    yield _modules("torch fp32", linear, case, torch.float32)
    yield _modules(BASELINE, copy.deepcopy(linear).bfloat16(), case, torch.bfloat16)
    yield _dynamic_int8(linear, case)
    yield _int4_builtin(linear, case)
    for bits in (2, 3, 4, 5, 6, 8):
        yield _modules(f"int{bits} g{GROUP_SIZE}", _quantized(linear, bits), case)
    yield _modules(f"int4 g{GROUP_SIZE}, int8 activations", _quantized(linear, 4, activation_bits=8), case)
    yield _modules(f"int8 g{GROUP_SIZE}, int8 activations", _quantized(linear, 8, activation_bits=8), case)
    sparse = SparseLinear.from_float(linear, sparsity=0.5, values_dtype=torch.float16)
    yield _modules("bitmap 50 %, fp16", sparse, case)
    for pattern in ("2:4", 0.5):
        name = "2:4" if pattern == "2:4" else "bitmap 50 %"
        module = SparseQuantLinear.from_float(linear, sparsity=pattern, bits=4, group_size=GROUP_SIZE)
        yield _modules(f"{name}, int4 g{GROUP_SIZE}", module, case)


def _quantized(linear: nn.Linear, bits: int, activation_bits: int | None = None) -> nn.Module:
    return QuantLinear.from_float(linear, bits=bits, group_size=GROUP_SIZE, activation_bits=activation_bits)


def _modules(name: str, module: nn.Module, case: Case, dtype: torch.dtype = torch.float32) -> Contender:
    """Copies of ``module`` beyond the cache, on one input."""
    moved = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    x = torch.randn(case.tokens, case.columns).to(dtype)
    calls = [_bound(_fresh(module), x) for _ in range(timing.copies_beyond_cache(moved))]
    return Contender(name, calls, moved, case.flops)


def _bound(module: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: module(x)


def _fresh(module: nn.Module) -> nn.Module:
    """A copy whose codes or weights have content of their own; scales, masks, indices stay valid."""
    made = copy.deepcopy(module)
    for name, tensor in (*made.named_parameters(), *made.named_buffers()):
        if name in ("weight", "values") and tensor.is_floating_point():
            tensor.normal_(std=0.02)
        elif name in ("packed", "values"):
            tensor.random_(0, 256)
    return made


def _dynamic_int8(linear: nn.Linear, case: Case) -> Contender | None:
    """torch's dynamically quantized linear on oneDNN; None where this torch has it no longer."""
    engine = torch.backends.quantized.engine
    if "onednn" not in torch.backends.quantized.supported_engines or not hasattr(torch.ao.nn, "quantized"):
        return None
    x = torch.randn(case.tokens, case.columns)
    torch.backends.quantized.engine = "onednn"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the removal of torch.ao.quantization
            made = []
            for _ in range(timing.copies_beyond_cache(linear.weight.numel())):
                own = _fresh(linear)
                own.qconfig = torch.ao.quantization.default_dynamic_qconfig
                made.append(_bound(torch.ao.nn.quantized.dynamic.Linear.from_float(own), x))
    finally:
        torch.backends.quantized.engine = engine
    return Contender("torch int8 dynamic", made, linear.weight.numel() + 4 * case.rows, case.flops)


def _int4_builtin(linear: nn.Linear, case: Case) -> Contender | None:
    """aten's weight-only 4-bit kernel on bf16 activations; None where torch lacks it or K does not fit."""
    aten = torch.ops.aten
    if not hasattr(aten, "_weight_int4pack_mm_for_cpu") or case.columns % GROUP_SIZE or case.rows % 16:
        return None
    groups = case.columns // GROUP_SIZE
    moved = linear.weight.numel() // 2 + 4 * groups * case.rows
    x = torch.randn(case.tokens, case.columns).bfloat16()
    calls = []
    for _ in range(timing.copies_beyond_cache(moved)):
        codes = torch.randint(0, 16, linear.weight.shape, dtype=torch.int32)
        packed = aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        scales = torch.rand(groups, case.rows, 2).bfloat16()
        calls.append(_int4_call(x, packed, scales))
    return Contender(f"torch int4 g{GROUP_SIZE}, bf16", calls, moved, case.flops)


def _int4_call(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP_SIZE, scales)
