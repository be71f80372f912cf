"""The CUDA kernels on the host model, through their registration, against the CPU kernels and float64."""

import pytest
import torch

from torchcoinfer import ops
from torchcoinfer.ops.quant_linear import quantize_rows

BITS = (2, 3, 4, 5, 6, 8)
# N, K, group_size, symmetric, dtype of x and of the scales
CASES = (
    (16, 32, 32, False, torch.float32),
    (37, 75, 0, True, torch.float16),
    (1, 300, 64, True, torch.bfloat16),
    (130, 257, 128, False, torch.float16),
    (33, 40, 32, False, torch.bfloat16),
)
ROUNDING = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


def quantized(N: int, K: int, bits: int, group_size: int, symmetric: bool, scale_dtype: torch.dtype):
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(N * K + bits))
    packed, scales, zeros = ops.quantize_pack(weight, bits, group_size, symmetric, scale_dtype)
    return packed, scales, None if symmetric else zeros


def assert_near(got: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype and got.shape == exact.shape
    if got.numel():
        error = (got.double() - exact).abs().max()
        assert error <= ROUNDING[dtype] * exact.abs().max() + 1e-30, (float(error), float(exact.abs().max()))


@pytest.mark.parametrize("N, K, group_size, symmetric, dtype", CASES)
@pytest.mark.parametrize("bits", BITS)
def test_dequantize_gives_the_cpu_bits(model, bits, N, K, group_size, symmetric, dtype):
    arguments = (*quantized(N, K, bits, group_size, symmetric, dtype), bits, group_size, N, K, dtype)
    assert torch.equal(model.ops.dequantize(*arguments), ops.dequantize(*arguments))


@pytest.mark.parametrize("activation_bits", [0, 8])
@pytest.mark.parametrize("N, K, group_size, symmetric, dtype", CASES)
@pytest.mark.parametrize("bits", BITS)
def test_quant_linear_is_near_float64(model, bits, N, K, group_size, symmetric, dtype, activation_bits):
    weight = quantized(N, K, bits, group_size, symmetric, dtype)
    dense = ops.dequantize(*weight, bits, group_size, N, K, torch.float32).double()
    for rows in (0, 1, 9):
        x, bias = torch.randn(rows, K).to(dtype), torch.randn(N)
        exact_x = x.double()
        if activation_bits:
            codes, scale = quantize_rows(x.float())
            exact_x = codes.double() * scale.double()
        exact = exact_x @ dense.T + bias.double()
        y = model.ops.quant_linear(x, *weight, bias, bits, group_size, N, activation_bits, 0)
        assert_near(y, exact, dtype)
