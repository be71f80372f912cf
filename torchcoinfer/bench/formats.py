"""This package's packed layers as contenders: by the format's name and the dtype of x.

Weights are random codes, not rounded ones: what is timed does not depend on them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from torchcoinfer.bench.cases import ACTIVATIONS, GROUP_SIZE, Case
from torchcoinfer.bench.timing import Contender, copies_beyond_cache
from torchcoinfer.nn import QuantLinear, SparseLinear, SparseQuantLinear
from torchcoinfer.ops.pack import group_count

BITS = (2, 3, 4, 5, 6, 8)
TWO_OF_FOUR = torch.tensor(
    [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]]
).bool()


def _codes(bits: int, group_size: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes, scales and zero points."""
    groups = (rows, group_count(columns, group_size))
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    return codes, (0.02 * torch.rand(groups)).half(), torch.randint(0, 2**bits, groups, dtype=torch.uint8)


def _mask(sparsity: float | str, rows: int, columns: int) -> Tensor:
    if sparsity == "2:4":
        picked = torch.randint(0, len(TWO_OF_FOUR), (rows, -(-columns // 4)))
        return TWO_OF_FOUR.to(picked.device)[picked].flatten(1)[:, :columns].contiguous()
    return torch.rand(rows, columns) >= sparsity


def _quantized(bits: int, activation_bits: int | None, group_size: int, rows: int, columns: int) -> nn.Module:
    codes = _codes(bits, group_size, rows, columns)
    return QuantLinear.from_quantized(
        *codes, bits=bits, group_size=group_size, activation_bits=activation_bits
    )


def _sparse(sparsity: float | str, dtype: torch.dtype, rows: int, columns: int) -> nn.Module:
    form = "2:4" if sparsity == "2:4" else "bitmap"
    weight = (0.02 * torch.randn(rows, columns)).to(dtype)
    return SparseLinear.from_dense(weight, format=form, mask=_mask(sparsity, rows, columns))


def _sparse_quantized(sparsity: float | str, bits: int, rows: int, columns: int) -> nn.Module:
    form = "2:4" if sparsity == "2:4" else "bitmap"
    codes, scales, zeros = _codes(bits, GROUP_SIZE, rows, columns)
    mask = _mask(sparsity, rows, columns)
    options = {"format": form, "bits": bits, "group_size": GROUP_SIZE}
    return SparseQuantLinear.from_quantized(codes, mask, scales, zeros, **options)


_FLOATS = (("fp16", torch.float16), ("bf16", torch.bfloat16))
# name -> maker of a layer [rows, columns]; W8A8 has one scale a row, as the int8 peers have
FORMATS: dict[str, Callable[[int, int], nn.Module]] = {
    **{f"W{bits}": partial(_quantized, bits, None, GROUP_SIZE) for bits in BITS},
    **{f"W{bits}A8": partial(_quantized, bits, 8, GROUP_SIZE if bits < 8 else 0) for bits in BITS},
    **{f"2:4 {name}": partial(_sparse, "2:4", dtype) for name, dtype in _FLOATS},
    **{
        f"bitmap {100 * sparsity:.0f} % {name}": partial(_sparse, sparsity, dtype)
        for sparsity in (0.5, 0.7, 0.8, 0.9)
        for name, dtype in _FLOATS
    },
    **{f"W{bits} + 2:4": partial(_sparse_quantized, "2:4", bits) for bits in BITS},
    **{f"W{bits} + bitmap 50 %": partial(_sparse_quantized, 0.5, bits) for bits in BITS},
}
# what a plain race runs: one width, three densities of the formats that exist in many
RACED = tuple(
    name
    for name in FORMATS
    if not any(part in name for part in ("A8", "+", "70 %"))
    or name in ("W4A8", "W8A8", "W4 + 2:4", "W4 + bitmap 50 %")
)


class Copies(dict[str, list[nn.Module]]):
    """Packed layers of one shape by format, made when first asked for: all races of the shape share them."""

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self._shape = rows, columns

    def __missing__(self, name: str) -> list[nn.Module]:
        self[name] = copies(name, *self._shape)
        return self[name]


def copies(name: str, rows: int, columns: int) -> list[nn.Module]:
    """Layers [rows, columns] of one format beyond the cache, each with content of its own."""
    first = FORMATS[name](rows, columns)
    return [first, *(fresh(first) for _ in range(copies_beyond_cache(_bytes(first)) - 1))]


def contender(name: str, modules: Sequence[nn.Module], activation: str, case: Case) -> Contender:
    """Copies of a packed layer in turn, on one input.

    Args:
        name: of the format.
        activation: "fp32" or "bf16", the dtype of x and y.
    """
    x = torch.randn(case.tokens, case.columns).to(ACTIVATIONS[activation])
    calls = [partial(module, x) for module in modules]
    return Contender(label(name, activation), calls, _bytes(modules[0]), case.flops)


def label(name: str, activation: str) -> str:
    """As it appears in tables: "W4, bf16 x"."""
    return f"{name}, {activation} x"


def fresh(module: nn.Module) -> nn.Module:
    """A copy whose codes or weights stand in another order; scales, masks, indices stay valid."""
    made = copy.deepcopy(module)
    for name, tensor in (*made.named_parameters(), *made.named_buffers()):
        if name in ("weight", "packed", "values"):
            shift = int(torch.randint(1, max(2, tensor.numel()), ()))
            tensor.data = tensor.flatten().roll(shift).view_as(tensor)
    return made


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.buffers())
