"""The fast dense CUDA kernels on the host model, against float64 and the plain kernels."""

import pytest
import torch
from bounds import ROUNDING, assert_near

from torchcoinfer import ops

BITS = (2, 3, 4, 5, 6, 8)
HALVES = (torch.float16, torch.bfloat16)
# N, K, group_size, symmetric, rows: whole quads, tiles after them, K that is no multiple of 8, one column, one row
CASES = (
    (16, 128, 128, False, (1, 8)),
    (37, 200, 32, False, (2, 9)),
    (1, 300, 64, True, (7, 16)),
    (50, 357, 0, False, (0, 3, 16)),
)


def device_weight(
    model, N: int, K: int, bits: int, group_size: int, symmetric: bool, scale_dtype: torch.dtype
):
    """Random codes in both orders, scales, zero points, and the weight in float64."""
    generator = torch.Generator().manual_seed(N * K + bits)
    codes = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8, generator=generator)
    blocks, groups = -(-N // 16), -(-K // group_size) if group_size else 1
    scales = (torch.rand(blocks, groups, 16, generator=generator) + 0.5).to(scale_dtype)
    zeros = torch.randint(0, 2**bits, scales.shape, dtype=torch.uint8, generator=generator)
    packed = ops.pack_codes(codes, bits)
    moved = packed.clone()
    model.ops.reorder_(moved, "codes", bits, True)
    weight = (packed, scales, None if symmetric else zeros)
    exact = ops.dequantize(*weight, bits, group_size, N, K, torch.float32).double()
    return moved, weight, exact


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("N, K, group_size, symmetric, rows", CASES)
def test_linear_is_near_float64(model, N, K, group_size, symmetric, rows, bits, dtype):
    moved, (_, scales, zeros), exact = device_weight(model, N, K, bits, group_size, symmetric, torch.float32)
    bias = torch.randn(N)
    for count in rows:
        x = torch.randn(count, K).to(dtype)
        y = model.ops.quant_linear(x, moved, scales, zeros, bias, bits, group_size, N, 0, 1)
        assert y.dtype == dtype
        assert_near(y, x.double(), exact, bias.double())


@pytest.mark.parametrize("scale_dtype", ROUNDING, ids=str)
def test_dtypes_of_scales(model, scale_dtype):
    moved, (_, scales, zeros), exact = device_weight(model, 20, 96, 4, 32, False, scale_dtype)
    x = torch.randn(3, 96).half()
    assert_near(
        model.ops.quant_linear(x, moved, scales, zeros, None, 4, 32, 20, 0, 1),
        x.double(),
        exact,
        torch.zeros(20).double(),
    )
