"""quant_conv2d on every instruction-set path, against torch's convolution in float64."""

import pytest
import torch
from conftest import DTYPES, UNIT_ROUNDOFF
from torch.nn.functional import conv2d

from torchcoinfer import ops
from torchcoinfer.ops.quant_conv2d import quant_conv2d_reference

# each: shape of x, out_channels, kernel, stride, padding, dilation, groups
CASES = {
    "3x3": ((2, 3, 9, 8), 20, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "uneven": ((1, 6, 7, 9), 12, (3, 2), (2, 1), (1, 0), (1, 2), 2),
    "depthwise": ((2, 8, 6, 6), 8, (3, 3), (1, 1), (1, 1), (1, 1), 8),
    "multiplier": ((1, 4, 6, 6), 12, (3, 3), (2, 2), (1, 1), (1, 1), 4),
    "pointwise": ((1, 16, 5, 5), 40, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "padding beyond the image": ((1, 2, 3, 3), 3, (3, 3), (1, 1), (3, 3), (2, 2), 1),
    "one pixel": ((1, 5, 3, 3), 17, (3, 3), (1, 1), (0, 0), (1, 1), 1),
    "many pixels": ((1, 1, 24, 24), 3, (5, 5), (1, 1), (2, 2), (1, 1), 1),
    "grouped, unaligned": ((1, 9, 4, 4), 21, (1, 3), (1, 2), (0, 1), (1, 1), 3),
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.nn.functional.pad(x, (1, 2, 1, 0))[:, :, 1:, 1:-2],
}


def arguments(case, bits, group_size, dtype, symmetric=False):
    shape, out_channels, kernel, stride, padding, dilation, groups = case
    columns = shape[1] // groups * kernel[0] * kernel[1]
    buffers = ops.quantize_pack(
        torch.randn(out_channels, columns), bits, group_size, symmetric, torch.float16
    )
    x, bias = torch.randn(shape).to(dtype), torch.randn(out_channels)
    geometry = [list(kernel), list(stride), list(padding), list(dilation), groups]
    return [x, *buffers, bias, bits, group_size, out_channels, *geometry]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_weight_only_against_float64(isa, case, dtype):
    for bits, group_size in ((2, 32), (4, 0), (5, 64), (8, 128)):
        call = arguments(case, bits, group_size, dtype)
        x, bias = call[0], call[4]
        columns = x.shape[1] // case[6] * case[2][0] * case[2][1]
        weight = ops.dequantize(*call[1:4], bits, group_size, case[1], columns, torch.float32).double()
        weight = weight.view(case[1], -1, *case[2])
        exact = conv2d(x.double(), weight, bias.double(), *case[3:])
        terms = conv2d(x.double().abs(), weight.abs(), bias.double().abs(), *case[3:])
        # codes and zero point apart can be 2^bits times the weight's own size in units of one scale
        noise = conv2d(x.double().abs(), weight.abs().amax() * torch.ones_like(weight), None, *case[3:])
        allowed = (
            noise * 4 * (columns + 16) * UNIT_ROUNDOFF[torch.float32] + terms * UNIT_ROUNDOFF[dtype] * 1.01
        )
        y = ops.quant_conv2d(*call)
        assert y.dtype == dtype and y.shape == exact.shape and y.is_contiguous()
        assert ((y.double() - exact).abs() <= allowed).all(), (bits, group_size)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_int8_activations_against_reference(isa, case):
    for symmetric in (True, False):
        call = arguments(case, 4, 32, torch.float32, symmetric)
        ours, reference = ops.quant_conv2d(*call, 8), quant_conv2d_reference(*call, 8)
        assert torch.allclose(ours, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_strides(isa, layout):
    for dtype in DTYPES:
        call = arguments(CASES["3x3"], 4, 32, dtype)
        dense = ops.quant_conv2d(*call)
        call[0] = layout(call[0])
        assert torch.equal(ops.quant_conv2d(*call), dense)


def test_empty_batch_and_thread_count(isa):
    call = arguments(CASES["3x3"], 4, 32, torch.float32)
    one = ops.quant_conv2d(*call)
    torch.set_num_threads(2)
    assert torch.equal(ops.quant_conv2d(*call), one)
    call[0] = call[0][:0]
    assert ops.quant_conv2d(*call).shape == (0, 20, 9, 8)


BAD = {
    "x": (0, torch.zeros(3, 9, 8)),
    "packed": (0, torch.zeros(1, 4, 9, 8)),
    "kernel_size": (8, [0, 3]),
    "stride": (9, [0, 1]),
    "padding": (10, [-1, 0]),
    "dilation": (11, [0, 1]),
    "groups": (12, 0),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments(argument):
    call = arguments(CASES["3x3"], 4, 32, torch.float32)
    position, value = BAD[argument]
    call[position] = value
    with pytest.raises(
        RuntimeError, match=rf"torchcoinfer::quant_conv2d: argument '{argument}'.*expected.*got"
    ):
        ops.quant_conv2d(*call)


def test_image_smaller_than_the_kernel():
    call = arguments(CASES["one pixel"], 4, 32, torch.float32)
    call[0] = torch.zeros(1, 5, 2, 2)
    with pytest.raises(RuntimeError, match="argument 'x'.*as large as the kernel"):
        ops.quant_conv2d(*call)


class Conv(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.packed, self.scales, self.zeros = ops.quantize_pack(
            torch.randn(20, 27), 4, 32, False, torch.float16
        )

    def forward(self, x):
        return torch.ops.torchcoinfer.quant_conv2d(
            x, self.packed, self.scales, self.zeros, None, 4, 32, 20, [3, 3], [1, 1], [1, 1], [1, 1], 1, 0, 0
        )


def test_opcheck_script_compile_export():
    for case in ("3x3", "depthwise"):
        torch.library.opcheck(
            torch.ops.torchcoinfer.quant_conv2d, arguments(CASES[case], 4, 32, torch.float32)
        )
    module, x = Conv(), torch.randn(2, 3, 6, 7)
    expected = module(x)
    assert torch.equal(torch.jit.script(module)(x), expected)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(x), expected)
    dims = {i: torch.export.Dim(name) for i, name in ((0, "batch"), (2, "height"), (3, "width"))}
    program = torch.export.export(module, (x,), dynamic_shapes=(dims,))
    larger = torch.randn(3, 3, 9, 8)
    assert torch.equal(program.module()(larger), module(larger))
