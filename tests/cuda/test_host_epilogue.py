"""Activation functions and static scales of x on the host model of the CUDA kernels."""

import pytest
import torch

from torchcoinfer import ops
from torchcoinfer.ops.epilogue import ACTIVATIONS

N, K, BITS, GROUP_SIZE = 21, 70, 4, 32


def weight():
    codes = torch.randint(0, 2**BITS, (N, K), dtype=torch.uint8)
    scales, zeros = (
        (0.01 + 0.02 * torch.rand(2, 3, 16)).half(),
        torch.randint(0, 16, (2, 3, 16), dtype=torch.uint8),
    )
    return ops.pack_codes(codes, BITS), scales, zeros


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_static_scales_are_the_cpus(model, dtype, layout):
    packed, scales, zeros = weight()
    x, x_scales, bias = (60 * torch.randn(5, K)).to(dtype), 0.01 + torch.rand(K), torch.randn(N)
    expected = ops.quant_linear(x, packed, scales, zeros, bias, BITS, GROUP_SIZE, N, 8, 0, x_scales)
    moved = packed.clone()
    if layout:
        model.ops.reorder_(moved, "codes", BITS, True)
    y = model.ops.quant_linear(x, moved, scales, zeros, bias, BITS, GROUP_SIZE, N, 8, layout, x_scales)
    assert y.dtype == dtype
    near = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(y, expected, rtol=near, atol=near * float(expected.abs().max()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_functions(model, activation):
    packed, scales, zeros = weight()
    x = torch.randn(3, K)
    common = (packed, scales, zeros, None, BITS, GROUP_SIZE, N)
    plain = model.ops.quant_linear(x, *common, 0, 0)
    y = model.ops.quant_linear(x, *common, 0, 0, None, activation)
    torch.testing.assert_close(y, ACTIVATIONS[activation](plain), rtol=1e-6, atol=1e-6)
    geometry = ([1, 1], [1, 1], [0, 0], [1, 1], 1, 0, 0)
    image = x.T[None, :, :, None]
    plain = model.ops.quant_conv2d(image, *common, *geometry)
    y = model.ops.quant_conv2d(image, *common, *geometry, activation)
    torch.testing.assert_close(y, ACTIVATIONS[activation](plain), rtol=1e-6, atol=1e-6)
    mask = torch.rand(N, K) < 0.5
    stored = ops.bitmap_pack(torch.randn(N, K), mask, 0)
    rest = (None, None, None, 0, 0, N, 0, 0)
    plain = model.ops.bitmap_linear(x, *stored, *rest)
    y = model.ops.bitmap_linear(x, *stored, *rest, activation)
    torch.testing.assert_close(y, ACTIVATIONS[activation](plain), rtol=1e-6, atol=1e-6)


def test_refusals(model):
    packed, scales, zeros = weight()
    call = (torch.randn(2, K), packed, scales, zeros, None, BITS, GROUP_SIZE, N)
    for rest, wanted in (
        ((0, 0, torch.ones(K)), "activation_bits 8"),
        ((8, 0, torch.ones(K + 1)), "x_scales"),
        ((8, 0, None, "tanh"), "gelu"),
    ):
        with pytest.raises(RuntimeError, match=wanted):
            model.ops.quant_linear(*call, *rest)
