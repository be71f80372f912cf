"""The CUDA kernels on the host model, through their registration, against the CPU kernels and float64."""

import pytest
import torch
from bounds import ROUNDED_WEIGHT, ROUNDING, assert_near

from torchcoinfer import ops
from torchcoinfer.ops.quant_conv2d import quant_conv2d_reference
from torchcoinfer.ops.quant_linear import quantize_rows
from torchcoinfer.ops.reorder import reorder_reference

BITS = (2, 3, 4, 5, 6, 8)
# N, K, group_size, symmetric, dtype of x and of the scales
CASES = (
    (16, 32, 32, False, torch.float32),
    (37, 75, 0, True, torch.float16),
    (1, 300, 64, True, torch.bfloat16),
    (130, 257, 128, False, torch.float16),
    (33, 40, 32, False, torch.bfloat16),
)


def quantized(N: int, K: int, bits: int, group_size: int, symmetric: bool, scale_dtype: torch.dtype):
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(N * K + bits))
    packed, scales, zeros = ops.quantize_pack(weight, bits, group_size, symmetric, scale_dtype)
    return packed, scales, None if symmetric else zeros


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
        y = model.ops.quant_linear(x, *weight, bias, bits, group_size, N, activation_bits, 0)
        assert y.dtype == dtype
        assert_near(y, exact_x, dense, bias.double())


@pytest.mark.parametrize("N, K, group_size, symmetric, dtype", CASES)
@pytest.mark.parametrize("bits", BITS)
def test_packing_gives_the_cpu_bytes(model, bits, N, K, group_size, symmetric, dtype):
    weight = torch.randn(N, K).to(dtype)
    arguments = (bits, group_size, symmetric, dtype)
    expected = ops.quantize_pack(weight, *arguments)
    for got, bytes_ in zip(model.ops.quantize_pack(weight, *arguments), expected):
        assert torch.equal(got, bytes_)
    codes = ops.unpack_codes(expected[0], bits, N, K)
    assert torch.equal(model.ops.pack_codes(codes, bits), expected[0])
    assert torch.equal(model.ops.unpack_codes(expected[0], bits, N, K), codes)


def test_refused_weights_and_codes(host_model):
    with pytest.raises(RuntimeError, match="argument 'weight'"):
        host_model.ops.quantize_pack(torch.tensor([[1.0, float("nan")]]), 4, 32, True, torch.float32)
    with pytest.raises(RuntimeError, match="argument 'weight'"):
        host_model.ops.quantize_pack(torch.full((1, 40), 1e9), 2, 32, True, torch.float16)
    with pytest.raises(RuntimeError, match="argument 'codes'"):
        host_model.ops.pack_codes(torch.full((3, 5), 16, dtype=torch.uint8), 4)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("bits, tiles", [(b, t) for b in BITS for t in (1, 4, 7)])
def test_linear_in_device_order(model, bits, tiles, layout):
    N, K = 33, 32 * tiles - 5
    packed, scales, zeros = quantized(N, K, bits, 32, False, torch.float16)
    x = torch.randn(3, K)
    expected = model.ops.quant_linear(x, packed, scales, zeros, None, bits, 32, N, 0, 0)
    moved = packed.clone()
    if layout:
        model.ops.reorder_(moved, "codes", bits, True)
        assert tiles == 1 or not torch.equal(moved, packed)
        by_reference = packed.clone()
        reorder_reference(by_reference, "codes", bits, True)
        assert torch.equal(moved, by_reference)
    got = model.ops.quant_linear(x, moved, scales, zeros, None, bits, 32, N, 0, layout)
    assert torch.equal(got, expected)
    if layout:
        model.ops.reorder_(moved, "codes", bits, False)
        assert torch.equal(moved, packed)


@pytest.mark.parametrize("N, K, group_size, symmetric, dtype", CASES)
@pytest.mark.parametrize("bits", BITS)
def test_embedding_gives_the_cpu_bits(model, bits, N, K, group_size, symmetric, dtype):
    table = quantized(N, K, bits, group_size, symmetric, dtype)
    for kind in (torch.int64, torch.int32):
        indices = torch.randint(0, N, (2, 5), dtype=kind)
        arguments = (indices, *table, bits, group_size, N, K, dtype)
        assert torch.equal(model.ops.quant_embedding(*arguments), ops.quant_embedding(*arguments))
    outside = torch.tensor([N, -1, 0])
    rows = model.ops.quant_embedding(outside, *table, bits, group_size, N, K, dtype)
    assert rows.isnan().all(1).tolist() == [True, True, False]


# channels, outputs, kernel, stride, padding, dilation, groups, image
CONVOLUTIONS = (
    (3, 20, (3, 3), (1, 1), (1, 1), (1, 1), 1, (7, 6)),
    (8, 24, (3, 2), (2, 1), (0, 1), (1, 2), 4, (6, 7)),
    (16, 16, (5, 5), (2, 2), (2, 2), (1, 1), 16, (5, 5)),
    (40, 5, (1, 1), (1, 1), (0, 0), (1, 1), 1, (3, 2)),
)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("activation_bits", [0, 8])
@pytest.mark.parametrize("channels, outputs, kernel, stride, padding, dilation, groups, image", CONVOLUTIONS)
@pytest.mark.parametrize("bits, dtype", [(4, torch.float32), (3, torch.bfloat16), (8, torch.float16)])
def test_convolution_is_near_float64(
    model,
    bits,
    dtype,
    channels,
    outputs,
    kernel,
    stride,
    padding,
    dilation,
    groups,
    image,
    activation_bits,
    layout,
):
    K = channels // groups * kernel[0] * kernel[1]
    weight = quantized(outputs, K, bits, 32, False, torch.float32)
    x, bias = torch.randn(2, channels, *image).to(dtype), torch.randn(outputs)
    x = x.to(memory_format=torch.channels_last)
    geometry = (kernel, stride, padding, dilation, groups)
    moved = weight[0].clone()
    if layout:
        model.ops.reorder_(moved, "codes", bits, True)
    y = model.ops.quant_conv2d(
        x, moved, *weight[1:], bias, bits, 32, outputs, *geometry, activation_bits, layout
    )
    assert y.is_contiguous()
    expected = quant_conv2d_reference(
        x.float(), *weight, bias, bits, 32, outputs, *geometry, activation_bits, 0
    ).double()
    of_products = 2.0**-20 * expected.abs().max()
    if activation_bits == 0:
        dense = ops.dequantize(*weight, bits, 32, outputs, K, torch.float32).double()
        dense = dense.view(outputs, channels // groups, *kernel)
        rest = (stride, padding, dilation, groups)
        expected = torch.nn.functional.conv2d(x.double(), dense, bias.double(), *rest)
        products = torch.nn.functional.conv2d(x.double().abs(), dense.abs(), bias.double().abs(), *rest)
        of_products = products * ROUNDED_WEIGHT.get(dtype, 2.0**-20)
    assert y.dtype == dtype and y.shape == expected.shape
    assert ((y.double() - expected).abs() <= of_products + ROUNDING[dtype] * expected.abs()).all()


@pytest.mark.parametrize("granularity", ["token", "channel"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_codec_gives_the_cpu_bits(model, bits, dtype, granularity):
    for shape, leading in (((3, 5, 17), 1), ((2, 300), 1), ((4, 0), 1), ((0, 9), 1), ((2, 3, 8), 0)):
        x = torch.randn(shape).to(dtype)
        if x.numel() > 40:
            x.view(-1)[3] = float("nan")
        expected = ops.encode_activation(x, bits, granularity, leading)
        got = model.ops.encode_activation(x, bits, granularity, leading)
        for one, other in zip(got, expected):
            assert torch.equal(one.nan_to_num(7), other.nan_to_num(7)) if one.is_floating_point() else True
        assert torch.equal(got[0], expected[0])
        rest = (bits, granularity, shape[leading:], dtype)
        decoded = model.ops.decode_activation(*expected, *rest)
        assert torch.equal(decoded.nan_to_num(7), ops.decode_activation(*expected, *rest).nan_to_num(7))
