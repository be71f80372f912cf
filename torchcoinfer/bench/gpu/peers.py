"""Other people's GPU kernels for y = x W^T, each on weights of its own.

A peer is a function ``(case, dtype) -> (calls, bytes of one weight)``. What is not installed, not in this
torch, or does not serve the shape raises, and is listed as missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from torchcoinfer.bench.cases import GROUP_SIZE, Case
from torchcoinfer.bench.gpu.graphs import Timed, copies_for
from torchcoinfer.errors import KernelError

Calls = tuple[list[Callable[[], Any]], int]
DEVICE = "cuda"
REFUSALS = (ImportError, RuntimeError, AttributeError, TypeError, ValueError, KernelError)


def _x(case: Case, dtype: torch.dtype) -> Tensor:
    return torch.randn(case.tokens, case.columns, device=DEVICE, dtype=dtype)


def _weight(case: Case, dtype: torch.dtype) -> Tensor:
    return 0.02 * torch.randn(case.rows, case.columns, device=DEVICE, dtype=dtype)


def dense(case: Case, dtype: torch.dtype) -> Calls:
    """cuBLAS through ``functional.linear``."""
    x, moved = _x(case, dtype), case.rows * case.columns * dtype.itemsize
    return [partial(functional.linear, x, _weight(case, dtype)) for _ in range(copies_for(moved))], moved


def int4pack(case: Case, dtype: torch.dtype) -> Calls:
    """torch's own 4-bit kernel (tinygemm), groups of 128, bfloat16."""
    aten, groups = torch.ops.aten, case.columns // GROUP_SIZE
    if case.columns % GROUP_SIZE or case.rows % 8:
        raise KernelError("_weight_int4pack_mm", got=case.shape, expected="N divisible by 8, K by 128")
    x, moved, calls = _x(case, torch.bfloat16), case.rows * case.columns // 2 + 4 * groups * case.rows, []
    for _ in range(copies_for(moved)):
        codes = torch.randint(0, 256, (case.rows, case.columns // 2), device=DEVICE, dtype=torch.uint8)
        packed = aten._convert_weight_to_int4pack(codes, 8)
        grid = torch.rand(groups, case.rows, 2, device=DEVICE, dtype=torch.bfloat16)
        calls.append(partial(aten._weight_int4pack_mm, x, packed, GROUP_SIZE, grid))
    return calls, moved


def int_mm(case: Case, dtype: torch.dtype) -> Calls:
    """int8 by int8 through cuBLAS, int32 out: x is quantized already."""
    if case.tokens <= 16:
        raise KernelError("_int_mm", got=case.tokens, expected="more than 16 rows of x")
    x = torch.randint(-127, 128, (case.tokens, case.columns), device=DEVICE, dtype=torch.int8)
    moved, calls = case.rows * case.columns, []
    for _ in range(copies_for(moved)):
        weight = torch.randint(-127, 128, (case.rows, case.columns), device=DEVICE, dtype=torch.int8)
        calls.append(partial(torch._int_mm, x, weight.t()))
    return calls, moved


def semi_structured(case: Case, dtype: torch.dtype) -> Calls:
    """torch's 2:4 (cuSPARSELt or CUTLASS)."""
    x, moved, calls = _x(case, dtype), case.rows * case.columns * 9 // 8, []
    for _ in range(copies_for(moved)):
        weight = _weight(case, dtype)
        weight.view(-1, 4)[:, 2:] = 0
        calls.append(partial(functional.linear, x, torch.sparse.to_sparse_semi_structured(weight)))
    return calls, moved


def csr(sparsity: float, case: Case, dtype: torch.dtype) -> Calls:
    """torch's CSR (cuSPARSE)."""
    kept = round((1.0 - sparsity) * case.rows * case.columns)
    moved, x, calls = kept * (dtype.itemsize + 4) + 4 * (case.rows + 1), _x(case, dtype).t().contiguous(), []
    for _ in range(copies_for(moved)):
        mask = torch.rand(case.rows, case.columns, device=DEVICE) >= sparsity
        weight = (_weight(case, dtype) * mask).to_sparse_csr()
        calls.append(partial(torch.matmul, weight, x))
    return calls, moved


def torchao_int4(case: Case, dtype: torch.dtype) -> Calls:
    """torchao's weight-only int4 linear."""
    quantization = importlib.import_module("torchao.quantization")
    moved, x, calls = case.rows * case.columns // 2, _x(case, torch.bfloat16), []
    for _ in range(copies_for(moved)):
        layer = torch.nn.Linear(case.columns, case.rows, False, DEVICE, torch.bfloat16)
        quantization.quantize_(layer, quantization.Int4WeightOnlyConfig(group_size=GROUP_SIZE))
        calls.append(partial(layer, x))
    return calls, moved


def bitsandbytes_nf4(case: Case, dtype: torch.dtype) -> Calls:
    """bitsandbytes' 4-bit linear (nf4, blocks of 64)."""
    functions = importlib.import_module("bitsandbytes.functional")
    multiply = importlib.import_module("bitsandbytes").matmul_4bit
    moved, x, calls = case.rows * case.columns // 2, _x(case, dtype), []
    for _ in range(copies_for(moved)):
        weight, state = functions.quantize_4bit(_weight(case, dtype), quant_type="nf4")
        calls.append(partial(multiply, x, weight.t(), quant_state=state))
    return calls, moved


def gemlite_int4(case: Case, dtype: torch.dtype) -> Calls:
    """gemlite's Triton kernels, A16W4, groups of 128."""
    gemlite = importlib.import_module("gemlite.core")
    kinds = importlib.import_module("gemlite.dtypes")
    kind = kinds.DType.FP16 if dtype == torch.float16 else kinds.DType.BF16
    moved, x, calls = case.rows * case.columns // 2, _x(case, dtype), []
    for _ in range(copies_for(moved)):
        codes = torch.randint(0, 16, (case.rows, case.columns), device=DEVICE, dtype=torch.uint8)
        grid = torch.rand(case.rows, case.columns // GROUP_SIZE, device=DEVICE, dtype=dtype)
        layer = gemlite.GemLiteLinear(
            4, GROUP_SIZE, case.columns, case.rows, input_dtype=kind, output_dtype=kind
        )
        layer.pack(codes, grid, torch.full_like(grid, 8.0), None)
        calls.append(partial(layer.forward, x))
    return calls, moved


BASELINE = "cuBLAS"
PEERS: dict[str, Callable[[Case, torch.dtype], Calls]] = {
    BASELINE: dense,
    "aten int4pack": int4pack,
    "cuBLAS int8": int_mm,
    "torch 2:4": semi_structured,
    "torch CSR 50 %": partial(csr, 0.5),
    "torch CSR 80 %": partial(csr, 0.8),
    "torchao int4": torchao_int4,
    "bitsandbytes nf4": bitsandbytes_nf4,
    "gemlite int4": gemlite_int4,
}


def make(names: Iterable[str], case: Case, dtype: torch.dtype) -> Iterator[Timed | tuple[str, str]]:
    """The peers named; one that cannot take part as its name and the reason."""
    for name in names:
        try:
            calls, moved = PEERS[name](case, dtype)
            calls[0]()
            torch.cuda.synchronize()
        except REFUSALS as error:
            yield (
                name,
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}",
            )
        else:
            yield Timed(name, calls, moved, case.flops, peer=True)
