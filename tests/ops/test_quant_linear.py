"""quant_linear on every instruction-set path, against float64 and against exact integers."""

import pytest
import torch
from conftest import BITS, DTYPES, GROUP_SIZES, UNIT_ROUNDOFF

from torchcoinfer import ops
from torchcoinfer.ops.quant_linear import quant_linear_reference, quantize_rows

SHAPES = ((1, 37, 300), (2, 16, 128), (3, 33, 75), (4, 64, 33), (5, 20, 31), (29, 50, 290))  # M, N, K


def quantized(rows, columns, bits, group_size, symmetric):
    return ops.quantize_pack(torch.randn(rows, columns), bits, group_size, symmetric, torch.float16)


def tolerance(x, buffers, bias, bits, group_size, rows, dtype):
    """Bound on |y - exact|: K + 16 float32 roundings of terms of at most |x| scale (|code - c| + |zero - c|),
    c = 2^(bits - 1), then one rounding to the output's dtype."""
    center = 2 ** (bits - 1)
    middle = None if buffers[2].numel() == 0 else torch.full_like(buffers[2], center)
    columns = x.shape[-1]
    shape = (bits, group_size, rows, columns, torch.float32)
    codes = ops.dequantize(buffers[0], buffers[1], middle, *shape).double().abs()
    weight = ops.dequantize(*buffers, *shape).double()
    terms = x.double().abs() @ (2 * codes + weight.abs()).T + bias.double().abs()
    largest = x.double().abs() @ weight.abs().T + bias.double().abs()
    return terms * (columns + 16) * UNIT_ROUNDOFF[torch.float32] + largest * UNIT_ROUNDOFF[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_weight_only_against_float64(isa, bits, dtype):
    for group_size in GROUP_SIZES:
        for symmetric in (True, False):
            for M, N, K in SHAPES:
                buffers = quantized(N, K, bits, group_size, symmetric)
                x, bias = torch.randn(M, K).to(dtype), torch.randn(N)
                y = ops.quant_linear(x, *buffers, bias, bits, group_size, N)
                weight = ops.dequantize(*buffers, bits, group_size, N, K, torch.float32)
                exact = x.double() @ weight.double().T + bias.double()
                allowed = tolerance(x, buffers, bias, bits, group_size, N, dtype)
                assert y.dtype == dtype
                assert ((y.double() - exact).abs() <= allowed).all(), (group_size, symmetric, M, N, K)


@pytest.mark.parametrize("bits", BITS)
def test_int8_activations_exactly(isa, bits):
    """Scales that are powers of two and sums below 2^24: every step is exact, and so is the result."""
    for group_size in GROUP_SIZES:
        for M, N, K in SHAPES:
            codes = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)
            packed = ops.pack_codes(codes, bits)
            groups = -(-K // group_size) if group_size else 1
            shape = (packed.shape[0], groups, 16)
            scales = torch.full(shape, 0.5, dtype=torch.float16)
            for zeros in (None, torch.randint(0, 2**bits, shape, dtype=torch.uint8)):
                x = torch.randn(M, K)
                y = ops.quant_linear(x, packed, scales, zeros, None, bits, group_size, N, 8)
                weight = ops.dequantize(packed, scales, zeros, bits, group_size, N, K, torch.float32)
                x_codes, x_scale = quantize_rows(x)
                exact = ((2 * weight).long() @ x_codes.long().T).T.float() / 2 * x_scale
                assert torch.equal(y, exact), (group_size, zeros is None, M, N, K)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int8_activations_against_reference(isa, dtype):
    for bits in BITS:
        for M, N, K in SHAPES:
            buffers = quantized(N, K, bits, 64, False)
            x, bias = torch.randn(M, K).to(dtype), torch.randn(N).to(dtype)
            ours = ops.quant_linear(x, *buffers, bias, bits, 64, N, 8)
            reference = quant_linear_reference(x, *buffers, bias, bits, 64, N, 8)
            allowed = tolerance(x, buffers, bias, bits, 64, N, dtype) * 2
            assert ((ours.double() - reference.double()).abs() <= allowed).all(), (bits, M, N, K)


def misaligned(x):
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)


VIEWS = {
    "transposed": lambda x: x.T.contiguous().T,
    "strided": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "misaligned": misaligned,
    "expanded": lambda x: x[:1].expand(x.shape),
    "3-d": lambda x: x.view(2, -1, x.shape[1]),
    "1-d": lambda x: x[0],
}


@pytest.mark.parametrize("activation_bits", [0, 8])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_strides(isa, view, activation_bits):
    buffers = quantized(20, 70, 4, 32, False)
    for dtype in DTYPES:
        x = view(torch.randn(6, 70).to(dtype))
        y = ops.quant_linear(x, *buffers, None, 4, 32, 20, activation_bits)
        dense = ops.quant_linear(x.contiguous(), *buffers, None, 4, 32, 20, activation_bits)
        assert y.shape == (*x.shape[:-1], 20)
        assert torch.equal(y, dense)


@pytest.mark.parametrize("activation_bits", [0, 8])
def test_empty(isa, activation_bits):
    for M, N, K in ((0, 20, 40), (3, 0, 40), (3, 20, 0)):
        buffers = quantized(N, K, 4, 32, False)
        bias = torch.randn(N)
        y = ops.quant_linear(torch.randn(M, K), *buffers, bias, 4, 32, N, activation_bits)
        assert torch.equal(y, bias.expand(M, N))


def test_nothing_depends_on_threads_or_neighbors(isa):
    buffers = quantized(600, 256, 4, 64, False)
    x = torch.randn(64, 256)
    for rows in (3, 64):
        one = ops.quant_linear(x[:rows], *buffers, None, 4, 64, 600)
        torch.set_num_threads(2)
        two = ops.quant_linear(x[:rows], *buffers, None, 4, 64, 600)
        torch.set_num_threads(1)
        assert torch.equal(one, two)
    some = ops.quant_linear(x[7:29], *buffers, None, 4, 64, 600)
    assert torch.equal(some, one[7:29])


def test_all_scale_and_bias_dtypes(isa):
    x = torch.randn(7, 64)
    for scale_dtype in DTYPES:
        for bias_dtype in DTYPES:
            buffers = ops.quantize_pack(torch.randn(20, 64), 4, 32, False, scale_dtype)
            bias = torch.randn(20).to(bias_dtype)
            ours = ops.quant_linear(x, *buffers, bias, 4, 32, 20)
            reference = quant_linear_reference(x, *buffers, bias, 4, 32, 20)
            assert torch.allclose(ours, reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_beyond_the_caches(isa, dtype):
    """Large outputs may be stored another way: the same bits as rows asked for a few at a time."""
    K = 32
    # rows of y that are whole lines of memory, and not
    for M, N in ((1024, 1600), (1024, 1608), (1024, 1599)):
        buffers = quantized(N, K, 4, 32, False)
        x, bias = torch.randn(M, K).to(dtype), torch.randn(N)
        y = ops.quant_linear(x, *buffers, bias, 4, 32, N, 8)
        parts = [ops.quant_linear(part, *buffers, bias, 4, 32, N, 8) for part in x.split(128)]
        assert torch.equal(y, torch.cat(parts)), (M, N)


@pytest.mark.parametrize("activation_bits", [0, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows_and_blocks(isa, dtype, activation_bits):
    """Enough to be cut into parts of rows, row tiles and groups of block pairs."""
    M, N, K = 500, 530, 600
    buffers = quantized(N, K, 4, 128, False)
    x, bias = torch.randn(M, K).to(dtype), torch.randn(N)
    y = ops.quant_linear(x, *buffers, bias, 4, 128, N, activation_bits).double()
    weight = ops.dequantize(*buffers, 4, 128, N, K, torch.float32).double()
    rows = x.float()
    if activation_bits == 8:
        codes, scale = quantize_rows(rows)
        rows = codes * scale
    allowed = tolerance(rows, buffers, bias, 4, 128, N, dtype) * 1.01
    assert ((y - rows.double() @ weight.T - bias.double()).abs() <= allowed).all()


@pytest.mark.parametrize("activation_bits", [0, 8])
@pytest.mark.parametrize("rows", [3, 6])
def test_non_finite_activations_stay_in_their_row(isa, rows, activation_bits):
    buffers = quantized(20, 64, 4, 32, False)
    x = torch.randn(rows, 64)
    clean = ops.quant_linear(x, *buffers, None, 4, 32, 20, activation_bits)
    for value in (torch.nan, torch.inf):
        x[1, 5] = value
        y = ops.quant_linear(x, *buffers, None, 4, 32, 20, activation_bits)
        assert not y[1].isfinite().any()
        keep = [m for m in range(rows) if m != 1]
        assert torch.equal(y[keep], clean[keep])


def call(**changes):
    arguments = dict(zip(("packed", "scales", "zeros"), quantized(20, 64, 4, 32, False)))
    arguments |= dict(x=torch.randn(2, 64), bias=None, bits=4, group_size=32, out_features=20)
    return ops.quant_linear(**(arguments | changes))


BAD = {
    "x": dict(x=torch.zeros(2, 64, dtype=torch.int32)),
    "packed": dict(x=torch.zeros(2, 65)),
    "scales": dict(scales=torch.zeros(2, 1, 16)),
    "zeros": dict(zeros=torch.zeros(2, 2, 16)),
    "bias": dict(bias=torch.zeros(19)),
    "bits": dict(bits=7),
    "group_size": dict(group_size=16),
    "activation_bits": dict(activation_bits=4),
    "layout": dict(layout=3),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments(argument):
    with pytest.raises(
        RuntimeError, match=rf"torchcoinfer::quant_linear: argument '{argument}'.*expected.*got"
    ):
        call(**BAD[argument])


def test_unknown_isa_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHCOINFER_ISA", "mmx")
    with pytest.raises(RuntimeError, match="TORCHCOINFER_ISA.*scalar.*mmx"):
        call()


class Linear(torch.nn.Module):
    def __init__(self, activation_bits: int):
        super().__init__()
        self.packed, self.scales, self.zeros = quantized(20, 64, 4, 32, False)
        self.activation_bits = activation_bits

    def forward(self, x):
        return torch.ops.torchcoinfer.quant_linear(
            x, self.packed, self.scales, self.zeros, None, 4, 32, 20, self.activation_bits, 0
        )


@pytest.mark.parametrize("activation_bits", [0, 8])
def test_opcheck_script_compile_export(activation_bits):
    module = Linear(activation_bits)
    x = torch.randn(3, 64)
    expected = module(x)
    arguments = (x, module.packed, module.scales, module.zeros, None, 4, 32, 20, activation_bits)
    torch.library.opcheck(torch.ops.torchcoinfer.quant_linear, arguments)
    assert torch.equal(torch.jit.script(module)(x), expected)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(x), expected)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    longer = torch.randn(7, 64)
    assert torch.equal(program.module()(longer), module(longer))
