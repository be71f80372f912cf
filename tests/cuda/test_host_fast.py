"""The fast dense CUDA kernels on the host model, against float64 and the plain kernels."""

import pytest
import torch
from bounds import ROUNDING, assert_near

from torchcoinfer import ops
from torchcoinfer.ops.quant_linear import quantize_rows

BITS = (2, 3, 4, 5, 6, 8)
HALVES = (torch.float16, torch.bfloat16)
# N, K, group_size, symmetric, rows: whole quads, tiles after them, K that is no multiple of 8, one column
CASES = (
    (16, 128, 128, False, (1, 8, 64)),
    (37, 200, 32, False, (2, 9, 33)),
    (1, 300, 64, True, (7, 16, 65)),
    (50, 357, 0, False, (0, 3, 17)),
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


# warps side by side; blocks that split K, where processors would be idle; blocks that share tiles
SLOW_WAYS = [pytest.param(*way, marks=pytest.mark.slow) for way in ((300, 700, 130), (140, 1100, 200))]
WAYS = [(200, 130, 5), (210, 70, 12), (18, 16500, 3), (5, 12544, 10), (150, 650, 20), (140, 600, 65)]


@pytest.mark.parametrize("N, K, rows", WAYS + SLOW_WAYS)
def test_ways_to_share_the_work(model, N, K, rows):
    moved, (_, scales, zeros), exact = device_weight(model, N, K, 4, 64, False, torch.float16)
    x, bias = torch.randn(rows, K).to(torch.bfloat16), torch.randn(N)
    y = model.ops.quant_linear(x, moved, scales, zeros, bias, 4, 64, N, 0, 1)
    assert_near(y, x.double(), exact, bias.double())
    assert torch.equal(y, model.ops.quant_linear(x, moved, scales, zeros, bias, 4, 64, N, 0, 1))


# many rows: the weight decoded, rounded to x's dtype, and torch's product
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("N, K, group_size, symmetric", [case[:4] for case in CASES])
def test_decoded_weight(model, N, K, group_size, symmetric, bits, dtype):
    moved, (_, scales, zeros), exact = device_weight(model, N, K, bits, group_size, symmetric, torch.float32)
    x, bias = torch.randn(2, 17 if dtype == torch.float32 else 384, K).to(dtype), torch.randn(N)
    y = model.ops.quant_linear(x, moved, scales, zeros, bias, bits, group_size, N, 0, 1)
    assert y.shape == (*x.shape[:-1], N)
    assert_near(y.flatten(0, 1), x.flatten(0, 1).double(), exact, bias.double(), 2 * ROUNDING[dtype])
    weight = model.ops.quant_linear(
        torch.eye(768)[:, :K].to(dtype), moved, scales, zeros, None, bits, group_size, N, 0, 1
    )
    assert torch.equal(weight[:K].T, exact.to(dtype))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("N, K, group_size, symmetric, rows", CASES)
def test_int8_codes_of_x(model, N, K, group_size, symmetric, rows, bits):
    moved, (packed, scales, zeros), exact = device_weight(
        model, N, K, bits, group_size, symmetric, torch.float32
    )
    bias = torch.randn(N)
    for count, dtype in zip(rows, ROUNDING):
        x = torch.randn(count, K).to(dtype)
        rest = (scales, zeros, bias, bits, group_size, N, 8)
        y = model.ops.quant_linear(x, moved, *rest, 1)
        codes, scale = quantize_rows(x.float())
        assert_near(y, codes.double() * scale.double(), exact, bias.double())


def test_int8_equals_the_plain_kernel_where_sums_are_exact(model):
    moved, (packed, _, zeros), _ = device_weight(model, 37, 200, 5, 32, False, torch.float32)
    scales = torch.full((3, 7, 16), 0.25)
    x = torch.randint(-127, 128, (9, 200)).float()
    x[:, 5] = 127  # the scale of a row's codes is then 1
    rest = (scales, zeros, None, 5, 32, 37, 8)
    assert torch.equal(
        model.ops.quant_linear(x, moved, *rest, 1), model.ops.quant_linear(x, packed, *rest, 0)
    )


def test_int8_rows_with_values_that_are_none(model):
    """A NaN or an infinity makes its row NaN, no other."""
    moved, (_, scales, zeros), _ = device_weight(model, 20, 96, 4, 32, False, torch.float32)
    x = torch.randn(4, 96)
    x[1, 3], x[2, 40] = float("nan"), float("inf")
    y = model.ops.quant_linear(x, moved, scales, zeros, None, 4, 32, 20, 8, 1)
    assert y.isnan().all(1).tolist() == [False, True, True, False]
    assert torch.equal(
        model.ops.quant_linear(x[:1] * 0, moved, scales, zeros, None, 4, 32, 20, 8, 1), torch.zeros(1, 20)
    )


@pytest.mark.parametrize("rows, activation_bits", [(5, 0), (17, 0), (3, 8)])
@pytest.mark.parametrize(
    "scale_dtype, scale",
    [(torch.float16, 6e-8), (torch.float16, 65504.0), (torch.float32, 1e-41), (torch.float32, 1e30),
     (torch.bfloat16, 1e-39), (torch.bfloat16, 1e30)],
)  # fmt: skip
def test_huge_and_denormal_scales(model, scale_dtype, scale, rows, activation_bits):
    """Sums are taken before the scale: nothing overflows or vanishes on the way."""
    codes = torch.randint(0, 16, (20, 70), dtype=torch.uint8)
    packed, zeros = ops.pack_codes(codes, 4), torch.full((2, 3, 16), 7, dtype=torch.uint8)
    model.ops.reorder_(packed, "codes", 4, True)
    scales = torch.full((2, 3, 16), scale).to(scale_dtype)
    x = torch.randint(-127, 128, (rows, 70)).bfloat16()
    x[:, 0] = 127  # the scale of a row's int8 codes is then 1
    y = model.ops.quant_linear(x, packed, scales, zeros, None, 4, 32, 20, activation_bits, 1)
    exact = x.double() @ (float(scales[0, 0, 0]) * (codes.double() - 7)).T
    smallest = float(torch.finfo(torch.float32).smallest_normal)
    off = (y.double() - exact).abs()
    assert bool((off <= exact.abs() * 2.0**-8 + exact.abs().max() * 1e-5 + smallest).all())


@pytest.mark.parametrize("bits, dtype", [(4, torch.bfloat16), (6, torch.float16), (8, torch.bfloat16)])
def test_zero_points_beyond_the_codes(model, bits, dtype):
    """Any byte is a zero point, in bf16 too, which has 8 bits for a number."""
    packed = ops.pack_codes(torch.randint(0, 2**bits, (1, 96), dtype=torch.uint8), bits)
    scales, zeros = torch.rand(1, 3, 16), torch.tensor([255, 254, 129], dtype=torch.uint8)
    zeros = zeros[None, :, None].expand(1, 3, 16).contiguous()
    exact = ops.dequantize(packed, scales, zeros, bits, 32, 1, 96, torch.float32).double()
    model.ops.reorder_(packed, "codes", bits, True)
    x = torch.randn(2, 96).to(dtype)
    y = model.ops.quant_linear(x, packed, scales, zeros, None, bits, 32, 1, 0, 1)
    assert_near(y, x.double(), exact, torch.zeros(1).double())
