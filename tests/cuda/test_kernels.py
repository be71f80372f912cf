"""CUDA kernels against float64. Without a GPU these report "skipped: no CUDA device"."""

import pytest
import torch

from torchcoinfer import ops
from torchcoinfer.nn import QuantLinear
from torchcoinfer.ops.quant_linear import quant_linear_reference

needs_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="skipped: no CUDA device")
needs_library = pytest.mark.skipif(
    not ops.has_kernels("cuda"), reason="skipped: the CUDA library is not built or this torch has no CUDA"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def quantized(N: int, K: int, bits: int, group_size: int, symmetric: bool, scale_dtype: torch.dtype):
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(bits))
    packed, scales, zeros = ops.quantize_pack(weight, bits, group_size, symmetric, scale_dtype)
    return packed, scales, None if symmetric else zeros


@needs_library
@pytest.mark.parametrize("op", ["dequantize", "quant_linear"])
def test_kernels_are_registered(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torchcoinfer::{op}", "CUDA")


@needs_device
@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size, symmetric", [(0, True), (32, False), (64, True), (128, False)])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_dequantize_gives_the_cpu_bits(bits, group_size, symmetric, dtype):
    for N, K in ((16, 32), (37, 75), (1, 300), (130, 257)):
        packed, scales, zeros = quantized(N, K, bits, group_size, symmetric, dtype)
        shape = (bits, group_size, N, K, dtype)
        expected = ops.dequantize(packed, scales, zeros, *shape)
        got = ops.dequantize(packed.cuda(), scales.cuda(), None if symmetric else zeros.cuda(), *shape)
        assert torch.equal(got.cpu(), expected)


@needs_device
@needs_library
@pytest.mark.parametrize("activation_bits", [0, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_linear_near_float64(bits, dtype, activation_bits):
    for rows, N, K, group_size in ((1, 37, 75, 32), (5, 130, 257, 64), (17, 16, 32, 0), (0, 16, 32, 0)):
        packed, scales, zeros = quantized(N, K, bits, group_size, False, torch.float16)
        x = torch.randn(rows, K, generator=torch.Generator().manual_seed(rows)).to(dtype)
        bias = torch.randn(N)
        rest = (bits, group_size, N, activation_bits)
        expected = quant_linear_reference(x.float(), packed, scales, zeros, bias, *rest).double()
        arguments = (t.cuda() for t in (x, packed, scales, zeros, bias))
        got = ops.quant_linear(*arguments, *rest)
        assert got.dtype == dtype and got.shape == (rows, N)
        if rows:
            error = (got.cpu().double() - expected).abs().max()
            assert error <= 2 * ROUNDING[dtype] * expected.abs().max()


@needs_device
@needs_library
def test_module_moves_and_runs_on_the_current_stream():
    module = QuantLinear.from_float(torch.nn.Linear(75, 37), 4, 32)
    x = torch.randn(3, 75)
    expected = module(x)
    module.cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        y = module(x.cuda())
    stream.synchronize()
    assert (y.cpu() - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(module.cpu()(x), expected)


@needs_device
@needs_library
def test_mixed_devices_are_refused():
    module = QuantLinear.from_float(torch.nn.Linear(75, 37), 4, 32).cuda()
    module.scales = module.scales.cpu()
    with pytest.raises(RuntimeError, match="argument 'scales'"):
        module(torch.randn(3, 75).cuda())
