"""Weights in the sparse formats, for the tests beside this file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchcoinfer import ops
from torchcoinfer.nn.magnitude import magnitude_mask

BITS = (0, 2, 3, 4, 5, 6, 8)


@dataclass
class Sparse:
    """A packed weight, the float64 matrix it stands for, and the integers that its linear op takes."""

    form: str
    buffers: tuple[Tensor, ...]
    scales: Tensor | None
    zeros: Tensor | None
    dense: Tensor  # float64 [N, K]
    bits: int
    group_size: int

    @property
    def name(self) -> str:
        return "sparse24_linear" if self.form == "2:4" else "bitmap_linear"

    def arguments(self, x: Tensor, bias: Tensor | None, activation_bits: int = 0) -> tuple:
        rest = (bias, self.bits, self.group_size, self.dense.shape[0], activation_bits)
        return (x, *self.buffers, self.scales, self.zeros, *rest)

    def linear(self, x: Tensor, bias: Tensor | None = None, activation_bits: int = 0) -> Tensor:
        return getattr(ops, self.name)(*self.arguments(x, bias, activation_bits))


def pack(form: str, values: Tensor, mask: Tensor, bits: int) -> tuple[Tensor, ...]:
    return (ops.sparse24_pack if form == "2:4" else ops.bitmap_pack)(values, mask, bits)


def unpack(form: str, buffers: tuple[Tensor, ...], bits: int, N: int, K: int) -> tuple[Tensor, Tensor]:
    return (ops.sparse24_unpack if form == "2:4" else ops.bitmap_unpack)(*buffers, bits, N, K)


def sparse(
    N: int,
    K: int,
    sparsity: float | str,
    bits: int = 0,
    group_size: int = 0,
    symmetric: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Sparse:
    generator = torch.Generator().manual_seed(1000 * N + 10 * K + bits + seed)
    mask = magnitude_mask(torch.rand(N, K, generator=generator), sparsity)
    form = "2:4" if sparsity == "2:4" else "bitmap"
    if bits == 0:
        values = torch.randn(N, K, generator=generator).to(dtype)
        return Sparse(form, pack(form, values, mask, 0), None, None, values.double() * mask, 0, 0)
    groups = -(-K // group_size) if group_size else 1
    blocked = (-(-N // 16), groups, 16)
    scales = torch.rand(blocked, generator=generator).to(dtype) + 0.5
    zeros = torch.randint(0, 2**bits, blocked, generator=generator).to(torch.uint8)
    zero, scale = (t.transpose(1, 2).flatten(0, 1)[:N] for t in (zeros, scales))
    zero = torch.full_like(zero, 2 ** (bits - 1)) if symmetric else zero
    zero, scale = (t.repeat_interleave(group_size or K, 1)[:, :K] for t in (zero, scale))
    codes = torch.randint(0, 2**bits, (N, K), generator=generator).to(torch.uint8)
    codes = torch.where(mask, codes, zero)
    dense = scale.double() * (codes.double() - zero.double())
    return Sparse(
        form, pack(form, codes, mask, bits), scales, None if symmetric else zeros, dense, bits, group_size
    )
