"""The CUDA kernels on a GPU. Without one these report "skipped: no CUDA device".

The other tests of this folder run the same sources on the host model.
"""

import copy

import pytest
import torch
from torch import nn

from torchcoinfer import ops
from torchcoinfer.bench.formats import FORMATS
from torchcoinfer.bench.gpu import check
from torchcoinfer.nn import QuantConv2d, QuantLinear, SparseLinear
from torchcoinfer.ops.schemas import SCHEMAS

needs_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="skipped: no CUDA device")
needs_library = pytest.mark.skipif(
    not ops.has_kernels("cuda"), reason="skipped: the CUDA library is not built or this torch has no CUDA"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ON_THE_CPU = {"cpu_isa", "cpu_isas"}  # what tells of the CPU
OPS = sorted({schema.partition("(")[0] for schema in SCHEMAS} - ON_THE_CPU)


@needs_library
@pytest.mark.parametrize("op", OPS)
def test_kernels_are_registered(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torchcoinfer::{op}", "CUDA")


@needs_device
@needs_library
@pytest.mark.parametrize("name", FORMATS)
def test_format_near_float64_there_and_back(name):
    cells = check.run("cuda", (name,), ((37, 75), (130, 257), (256, 512)))
    assert all(cell.right for cell in cells), check.summary(cells)


@needs_device
@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size, symmetric", [(0, True), (32, False), (64, True), (128, False)])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_packing_and_dequantize_give_the_cpu_bytes(bits, group_size, symmetric, dtype):
    for N, K in ((16, 32), (37, 75), (1, 300), (130, 257)):
        weight = torch.randn(N, K).to(dtype)
        packed, scales, zeros = ops.quantize_pack(weight, bits, group_size, symmetric, dtype)
        on_device = ops.quantize_pack(weight.cuda(), bits, group_size, symmetric, dtype)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(on_device, (packed, scales, zeros)))
        shape = (bits, group_size, N, K, dtype)
        expected = ops.dequantize(packed, scales, zeros, *shape)
        assert torch.equal(ops.dequantize(*on_device, *shape).cpu(), expected)
        moved = on_device[0].clone()
        ops.reorder_(moved, "codes", bits, True)
        ops.reorder_(packed, "codes", bits, True)
        assert torch.equal(moved.cpu(), packed)


@needs_device
@needs_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sparsity", ["2:4", 0.5])
def test_sparse_layers_are_near_float64_on_every_path(sparsity, dtype):
    linear = nn.Linear(1032, 200).to(dtype)
    module = SparseLinear.from_float(linear, sparsity)
    weight, bias = module.dequantize_weight().double(), linear.bias.double()
    module.cuda()
    for rows in (1, 16, 17, 64, 65, 300, 2050):
        x = torch.randn(rows, 1032).to(dtype)
        expected = x.double() @ weight.T + bias
        error = (module(x.cuda()).cpu().double() - expected).abs()
        assert (error <= 2.0 ** (-9 if dtype == torch.float16 else -6) * (1 + expected.abs())).all()


def layers() -> nn.Sequential:
    """A small compressed model: convolution, quantized, 2:4 and bitmap layers."""
    return nn.Sequential(
        QuantConv2d.from_float(nn.Conv2d(3, 8, 3), 4, 32).set_activation("gelu"),
        nn.Flatten(),
        QuantLinear.from_float(nn.Linear(8 * 36, 96), 4, 32, 8, x_scales=torch.full((8 * 36,), 0.02)),
        SparseLinear.from_float(nn.Linear(96, 64), "2:4"),
        nn.ReLU(),
        SparseLinear.from_float(nn.Linear(64, 16), 0.5),
    ).eval()


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert (got.cpu() - expected).abs().max() <= 1e-4 * expected.abs().max()


@needs_device
@needs_library
def test_model_moves_and_runs_on_the_current_stream():
    module, x = layers(), torch.randn(5, 3, 8, 8)
    expected, state = module(x), copy.deepcopy(module.state_dict())
    module.cuda()
    assert [m.layout for m in module if hasattr(m, "layout")] == [1, 1, 1, 0]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        y = module(x.cuda())
    stream.synchronize()
    assert_same(y, expected)
    assert all(torch.equal(t.cpu(), state[n]) for n, t in module.state_dict().items())
    assert torch.equal(module.cpu()(x), expected)


@needs_device
@needs_library
def test_model_in_a_cuda_graph_and_compiled():
    module, x = layers(), torch.randn(5, 3, 8, 8)
    expected = module(x)
    module, on_device = module.cuda(), torch.zeros_like(x, device="cuda")
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            module(on_device)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(on_device)
        on_device.copy_(x)
        graph.replay()
        assert_same(y, expected)
        assert_same(torch.compile(module, fullgraph=True)(x.cuda()), expected)


@needs_device
@needs_library
def test_mixed_devices_are_refused():
    module = QuantLinear.from_float(nn.Linear(75, 37), 4, 32).cuda()
    module.scales = module.scales.cpu()
    with pytest.raises(RuntimeError, match="argument 'scales'"):
        module(torch.randn(3, 75).cuda())
