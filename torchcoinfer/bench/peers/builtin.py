"""What torch itself brings: dense, int8 through oneDNN, 4-bit weights, CSR."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchcoinfer.bench.cases import ACTIVATIONS, GROUP_SIZE, Case
from torchcoinfer.bench.timing import Contender, copies_beyond_cache
from torchcoinfer.errors import KernelError


def dense(activation: str, case: Case, threads: int) -> Contender:
    """``functional.linear`` in float32 or bfloat16."""
    dtype = ACTIVATIONS[activation]
    x, moved = torch.randn(case.tokens, case.columns).to(dtype), case.rows * case.columns * dtype.itemsize
    calls = [_linear(x, _weight(case).to(dtype)) for _ in range(copies_beyond_cache(moved))]
    return Contender(f"torch {activation}", calls, moved, case.flops)


def _linear(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    return lambda: functional.linear(x, weight)


def _weight(case: Case) -> Tensor:
    return torch.randn(case.rows, case.columns) * 0.02


def dynamic_int8(case: Case, threads: int) -> Contender:
    """The dynamically quantized linear on oneDNN: int8 weights, float32 x quantized in the call."""
    if "onednn" not in torch.backends.quantized.supported_engines or not hasattr(torch.ao.nn, "quantized"):
        raise KernelError("torch's dynamic int8 linear", got="not in this torch", remedy="torch below 2.15")
    x, moved = torch.randn(case.tokens, case.columns), case.rows * case.columns + 4 * case.rows
    engine, calls = torch.backends.quantized.engine, []
    torch.backends.quantized.engine = "onednn"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the removal of torch.ao.quantization
            for _ in range(copies_beyond_cache(moved)):
                linear = nn.Linear(case.columns, case.rows, bias=False)
                linear.qconfig = torch.ao.quantization.default_dynamic_qconfig
                module = torch.ao.nn.quantized.dynamic.Linear.from_float(linear)
                calls.append(lambda module=module: module(x))
    finally:
        torch.backends.quantized.engine = engine
    return Contender("torch dynamic qint8", calls, moved, case.flops)


def qlinear(case: Case, threads: int) -> Contender:
    """oneDNN's int8 linear on x that is uint8 already: nothing is quantized in the call. float32 out."""
    ops = torch.ops.onednn
    if not hasattr(ops, "qlinear_pointwise"):
        raise KernelError("onednn::qlinear_pointwise", got="not in this torch")
    x = torch.randint(0, 256, (case.tokens, case.columns), dtype=torch.uint8)
    moved = case.rows * case.columns + 8 * case.rows
    scales, zeros = torch.full((case.rows,), 0.01), torch.zeros(case.rows, dtype=torch.int32)
    calls = []
    for _ in range(copies_beyond_cache(moved)):
        weight = torch.randint(-127, 128, (case.rows, case.columns), dtype=torch.int8)
        packed = ops.qlinear_prepack(weight, [case.tokens, case.columns])
        calls.append(
            lambda packed=packed: ops.qlinear_pointwise(
                x, 0.02, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
        )
    return Contender("onednn qlinear", calls, moved, case.flops)


def int4pack(case: Case, threads: int) -> Contender:
    """aten's weight-only 4-bit kernel, groups of 128, bfloat16 x."""
    aten = torch.ops.aten
    if not hasattr(aten, "_weight_int4pack_mm_for_cpu"):
        raise KernelError("aten::_weight_int4pack_mm_for_cpu", got="not in this torch")
    if case.columns % GROUP_SIZE or case.rows % 16:
        shape = f"W [{case.rows}, {case.columns}]"
        raise KernelError("aten int4pack", got=shape, expected="N divisible by 16, K by 128")
    groups = case.columns // GROUP_SIZE
    moved = case.rows * case.columns // 2 + 4 * groups * case.rows
    x = torch.randn(case.tokens, case.columns).bfloat16()
    calls = []
    for _ in range(copies_beyond_cache(moved)):
        codes = torch.randint(0, 16, (case.rows, case.columns), dtype=torch.int32)
        packed = aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        scales = torch.rand(groups, case.rows, 2).bfloat16()
        calls.append(
            lambda packed=packed, scales=scales: aten._weight_int4pack_mm_for_cpu(
                x, packed, GROUP_SIZE, scales
            )
        )
    return Contender("aten int4pack", calls, moved, case.flops)


def csr(sparsity: float, case: Case, threads: int) -> Contender:
    """torch's CSR product in float32 with 32-bit indices."""
    moved = 8 * round((1.0 - sparsity) * case.rows * case.columns) + 4 * (case.rows + 1)
    x = torch.randn(case.tokens, case.columns).t().contiguous()
    calls = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR support a beta
        for _ in range(copies_beyond_cache(moved)):
            kept = torch.rand(case.rows, case.columns) >= sparsity
            starts = functional.pad(kept.sum(1).cumsum(0), (1, 0)).int()
            columns = kept.nonzero()[:, 1].int()
            weight = torch.sparse_csr_tensor(starts, columns, torch.randn(len(columns)), kept.shape)
            calls.append(lambda weight=weight: weight @ x)
    return Contender(f"torch CSR {100 * sparsity:.0f} %", calls, moved, case.flops)
