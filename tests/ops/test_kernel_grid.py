"""Linear kernels over the grid of shapes, rows, widths, formats, dtypes and paths, against float64.

Rows of x do not influence each other, so that one float64 product of 512 rows judges every number of rows.
The dtype, the group size and the symmetry turn from case to case; not every combination of them runs.
"""

import itertools
import random

import pytest
import torch
from conftest import BITS, DTYPES, GROUP_SIZES, UNIT_ROUNDOFF
from sparse_cases import Sparse, sparse

from torchcoinfer import ops
from torchcoinfer.ops.quant_linear import quantize_rows

ROWS = (1, 2, 3, 4, 7, 8, 16, 33, 64, 128, 256, 512)
SMALL = ((97, 1003), (384, 384), (384, 1536), (1536, 384), (768, 3072), (1000, 2048))  # K, N
LARGE = ((4096, 4096), (4096, 11008))
FORMS = ("dense", "2:4", "bitmap")
DECODED_ROWS = 128  # at least (csrc/cpu/decoded.h)
MOST_SCALAR = 4e8  # multiply-adds of one call that the scalar path is asked for


class Weight:
    """One packed weight with what float64 makes of it."""

    def __init__(self, form, bits, group_size, symmetric, N, K):
        self.form, self.bits, self.group_size, self.N = form, bits, group_size, N
        if form == "dense":
            codes = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)
            shape = (-(-N // 16), -(-K // group_size) if group_size else 1, 16)
            scales = (0.5 + torch.rand(shape)).half()
            zeros = None if symmetric else torch.randint(0, 2**bits, shape, dtype=torch.uint8)
            self._buffers = (ops.pack_codes(codes, bits), scales, zeros)
            self.exact = ops.dequantize(*self._buffers, bits, group_size, N, K, torch.float32).double()
        else:
            self._buffers = sparse(N, K, 0.5 if form == "bitmap" else form, bits, group_size, symmetric)
            self.exact = self._buffers.dense

    def __call__(self, x, bias, activation_bits):
        if isinstance(self._buffers, Sparse):
            return self._buffers.linear(x, bias, activation_bits)
        return ops.quant_linear(x, *self._buffers, bias, self.bits, self.group_size, self.N, activation_bits)

    def references(self, x, bias, activation_bits):
        """y in float64; how far a float32 sum of terms that contain codes and zero points may be off; how far
        more where weights and bias are rounded to the dtype of x."""
        given = x
        if activation_bits:
            codes, scale = quantize_rows(x.float())
            given = codes.double() * scale.double()
        exact = given.double() @ self.exact.T + bias.double()
        # a code, or a zero point, times its scale: at most 1.5 (dense) or 1.5 + scale dtype's own 2^bits
        top = 1.5 * 2 ** (self.bits + 1) if self.bits else float(self.exact.abs().max())
        terms = given.double().abs().sum(1, keepdim=True) * top + bias.double().abs()
        allowed = terms * (2 * x.shape[1] ** 0.5 + 16) * UNIT_ROUNDOFF[torch.float32]
        magnitudes = x.double().abs() @ self.exact.abs().T + bias.double().abs()
        return exact, allowed + exact.abs() * UNIT_ROUNDOFF[x.dtype], magnitudes * UNIT_ROUNDOFF[x.dtype] / 2

    def is_rounded(self, dtype, activation_bits, M):
        """Whether weights may be rounded to bfloat16: float survivors, and any where x has many rows."""
        return dtype == torch.bfloat16 and not activation_bits and (self.bits == 0 or M >= DECODED_ROWS)


def check(weight, dtype, activation_bits, rows, isas, monkeypatch):
    K = weight.exact.shape[1]
    x = (torch.randn(max(rows), K) / 4).to(dtype)  # no y is too large for float16
    bias = torch.randn(weight.N)
    exact, allowed, rounding = weight.references(x, bias, activation_bits)
    for isa, M in itertools.product(isas, rows):
        if isa == "scalar" and M * weight.exact.numel() > MOST_SCALAR:
            continue
        monkeypatch.setenv("TORCHCOINFER_ISA", isa)
        y = weight(x[:M], bias, activation_bits)
        assert y.dtype == dtype
        off = (y.double() - exact[:M]).abs() - allowed[:M]
        if weight.is_rounded(dtype, activation_bits, M):
            off -= rounding[:M]
        case = (weight.form, weight.bits, weight.group_size, K, weight.N, M, dtype, activation_bits, isa)
        assert float(off.max()) <= 0, case


def cases(shapes, widths):
    """(form, bits, shape, activation_bits) with turning dtype, group size and symmetry."""
    turning = itertools.cycle(itertools.product(GROUP_SIZES, (True, False), DTYPES))
    for form, bits, shape, activation_bits in itertools.product(FORMS, widths, shapes, (0, 8)):
        if bits == 0 and (form == "dense" or activation_bits):
            continue
        group_size, symmetric, dtype = next(turning)
        yield form, bits, shape, activation_bits, group_size, symmetric, dtype


def run(chosen, rows, monkeypatch):
    for form, bits, (K, N), activation_bits, group_size, symmetric, dtype in chosen:
        weight = Weight(form, bits, group_size if bits else 0, symmetric, N, K)
        check(weight, dtype, activation_bits, rows, ops.cpu_isas(), monkeypatch)


def test_a_sample(monkeypatch):
    spread = random.Random(0).sample(list(cases(SMALL[:3], (0, *BITS))), 24)
    run(spread, (1, 3, 4, 7, 33), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_small_shapes(shape, monkeypatch):
    run(cases([shape], (0, *BITS)), ROWS, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_shapes(shape, monkeypatch):
    torch.set_num_threads(2)
    run(cases([shape], (0, 3, 4, 8)), ROWS, monkeypatch)


@pytest.mark.parametrize("activation_bits", [0, 8])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float16, 6e-8), (torch.float16, 65504.0), (torch.float32, 1e-41), (torch.float32, 1e30),
     (torch.bfloat16, 1e-39), (torch.bfloat16, 1e30)],
)  # fmt: skip
def test_huge_and_denormal_scales(isa, dtype, scale, activation_bits):
    codes, zeros = (
        torch.randint(0, 16, (20, 70), dtype=torch.uint8),
        torch.full((2, 3, 16), 7, dtype=torch.uint8),
    )
    scales = torch.full((2, 3, 16), scale).to(dtype)
    x = torch.randint(-127, 128, (5, 70)).float()
    x[:, 0] = 127  # the scale of a row's int8 codes is then 1
    y = ops.quant_linear(x, ops.pack_codes(codes, 4), scales, zeros, None, 4, 32, 20, activation_bits)
    exact = x.double() @ (float(scales[0, 0, 0]) * (codes.double() - 7)).T
    smallest = float(torch.finfo(torch.float32).smallest_normal)
    off = (y.double() - exact).abs()
    assert bool((off <= exact.abs().max() * 1e-5 + smallest).all())
