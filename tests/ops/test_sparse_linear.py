"""The sparse linears against float64 on every path, and in every way PyTorch captures them."""

import pytest
import torch
from sparse_cases import BITS, Sparse, sparse
from torch.export import Dim, export

from torchcoinfer import ops
from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.quant_linear import quantize_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}
SHAPES = ((1, 37, 75), (3, 16, 32), (9, 5, 3), (4, 100, 700), (2, 48, 1056))


@pytest.fixture(params=ops.cpu_isas())
def isa(request, monkeypatch):
    if request.param != "reference":
        monkeypatch.setenv("TORCHCOINFER_ISA", request.param)
    return request.param


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def near(y: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    if y.dtype != dtype or y.shape != expected.shape:
        return False
    return bool((y.double() - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max())


@pytest.mark.parametrize("sparsity", ["2:4", 0.0, 0.5, 0.95], ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_near_float64(bits, sparsity, isa):
    for rows, N, K in SHAPES:
        for case, dtype in enumerate(DTYPES):
            group_size = 0 if bits == 0 else (0, 32, 128)[case]
            weight = sparse(N, K, sparsity, bits, group_size, case == 0, DTYPES[(case + rows) % 3])
            x, bias = inputs(rows, K, dtype=dtype), inputs(N)
            assert near(weight.linear(x, bias), x.double() @ weight.dense.T + bias.double(), dtype)


@pytest.mark.parametrize("sparsity", ["2:4", 0.5], ids=str)
@pytest.mark.parametrize("bits", BITS[1:])
def test_int8_activations_near_float64(bits, sparsity, isa):
    for rows, N, K in SHAPES:
        weight = sparse(N, K, sparsity, bits, 32)
        x = inputs(rows, K)
        codes, scale = quantize_rows(x)
        assert near(
            weight.linear(x, None, 8), codes.double() @ weight.dense.T * scale.double(), torch.float32
        )


@pytest.mark.parametrize("sparsity", ["2:4", 0.5], ids=str)
@pytest.mark.parametrize("bits", [0, 3])
def test_a_row_does_not_depend_on_its_neighbors(bits, sparsity, isa):
    weight = sparse(37, 300, sparsity, bits, 32 if bits else 0)
    x = inputs(13, 300)
    whole = weight.linear(x[:9])
    assert torch.equal(weight.linear(x)[:9], whole)
    assert torch.equal(weight.linear(x.flip(0)).flip(0)[:9], whole)


@pytest.mark.parametrize("sparsity", ["2:4", 0.5], ids=str)
@pytest.mark.parametrize("bits", [0, 4])
def test_empty_strided_and_shaped_inputs(bits, sparsity, isa):
    weight = sparse(37, 75, sparsity, bits, 32 if bits else 0)
    assert weight.linear(torch.zeros(0, 75)).shape == (0, 37)
    assert weight.linear(torch.zeros(2, 0, 3, 75)).shape == (2, 0, 3, 37)
    assert weight.linear(inputs(75)).shape == (37,)
    x = inputs(75, 6).T
    assert near(weight.linear(x), weight.linear(x.contiguous()).double(), torch.float32)
    wide = inputs(4, 3, 150)[:, ::2, ::2]
    assert near(weight.linear(wide), weight.linear(wide.contiguous()).double(), torch.float32)
    empty = sparse(5, 0, sparsity, bits, 32 if bits else 0) if sparsity != "2:4" else sparse(0, 75, sparsity)
    rows = torch.zeros(3, empty.dense.shape[1])
    assert torch.equal(empty.linear(rows), torch.zeros(3, empty.dense.shape[0]))


def test_last_survivors_of_a_tensor_are_read_within_bounds(isa):
    page = torch.empty(1 << 20)  # survivors at the very end of an allocation
    weight = sparse(16, 64, 0.5)
    values = weight.buffers[2]
    tail = page[-values.numel() :].copy_(values)
    whole = Sparse("bitmap", (*weight.buffers[:2], tail), None, None, weight.dense, 0, 0)
    x = inputs(2, 64)
    assert torch.equal(whole.linear(x), weight.linear(x))


class Layer(torch.nn.Module):
    def __init__(self, form: str, bits: int):
        super().__init__()
        weight = sparse(37, 75, "2:4" if form == "2:4" else 0.5, bits, 32 if bits else 0)
        self.bits, self.group_size, self.two_four = bits, weight.group_size, form == "2:4"
        for i, buffer in enumerate(weight.buffers):
            self.register_buffer(f"buffer{i}", buffer)
        self.register_buffer("scales", weight.scales if bits else torch.zeros(0))
        self.register_buffer("zeros", weight.zeros if bits else torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scales = self.scales if self.bits > 0 else None
        zeros = self.zeros if self.bits > 0 else None
        shape = (self.bits, self.group_size, 37)
        if self.two_four:
            return torch.ops.torchcoinfer.sparse24_linear(
                x, self.buffer0, self.buffer1, scales, zeros, None, shape[0], shape[1], shape[2]
            )
        return torch.ops.torchcoinfer.bitmap_linear(
            x, self.buffer0, self.buffer1, self.buffer2, scales, zeros, None, shape[0], shape[1], shape[2]
        )


@pytest.mark.parametrize("form", ["2:4", "bitmap"])
@pytest.mark.parametrize("bits", [0, 4])
def test_exported_and_compiled(bits, form):
    layer, x = Layer(form, bits), inputs(3, 4, 75)
    program = export(layer, (x,), dynamic_shapes=({0: Dim("batch"), 1: Dim("length")},))
    larger = inputs(7, 11, 75)
    assert torch.equal(program.module()(larger), layer(larger))
    node = next(n for n in program.graph.nodes if "linear" in str(n.target))
    assert not node.meta["val"].shape[0].node.expr.is_number and node.meta["val"].shape[2] == 37
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(larger), layer(larger))


@pytest.mark.parametrize("sparsity", ["2:4", 0.5], ids=str)
@pytest.mark.parametrize("bits, activation_bits", [(0, 0), (4, 0), (4, 8)])
def test_opcheck(bits, activation_bits, sparsity):
    weight = sparse(37, 75, sparsity, bits, 32 if bits else 0)
    op = getattr(torch.ops.torchcoinfer, weight.name).default
    torch.library.opcheck(op, weight.arguments(inputs(3, 75), inputs(37), activation_bits))


FLOATS, CODES, PAIRS = sparse(37, 75, 0.5), sparse(37, 75, 0.5, 4, 32), sparse(37, 75, "2:4")
X = inputs(2, 75)


def bitmap(x=X, mask=None, offsets=None, values=None, weight=CODES, **changes) -> torch.Tensor:
    given = dict(
        x=x,
        mask=weight.buffers[0] if mask is None else mask,
        offsets=weight.buffers[1] if offsets is None else offsets,
        values=weight.buffers[2] if values is None else values,
        scales=weight.scales,
        zeros=weight.zeros,
        bias=None,
        bits=weight.bits,
        group_size=weight.group_size,
        out_features=37,
    )
    return ops.bitmap_linear(**given | changes)


BAD = {
    "x columns": (lambda: bitmap(inputs(2, 99)), "mask", "4, 8"),
    "x dtype": (lambda: bitmap(X.double()), "x", "float32"),
    "bias shape": (lambda: bitmap(bias=torch.zeros(36)), "bias", "37"),
    "no scales": (lambda: bitmap(scales=None), "scales", "None"),
    "group size": (lambda: bitmap(group_size=48), "group_size", "128"),
    "scales for floats": (lambda: bitmap(weight=FLOATS, scales=CODES.scales), "scales", "float survivors"),
    "int8 for floats": (lambda: bitmap(weight=FLOATS, activation_bits=8), "activation_bits", "8"),
    "activation bits": (lambda: bitmap(activation_bits=4), "activation_bits", "4"),
    "layout": (lambda: bitmap(layout=1), "layout", "canonical"),
    "offsets order": (lambda: bitmap(offsets=CODES.buffers[1].flip(0)), "offsets", "ascending"),
    "more kept than stored": (lambda: bitmap(mask=CODES.buffers[0] | -1), "mask", "survivors"),
    "fewer kept than stored": (lambda: bitmap(mask=CODES.buffers[0] * 0), "mask", "survivors"),
    "floats, fewer kept": (
        lambda: bitmap(weight=FLOATS, mask=FLOATS.buffers[0] * 0),
        "mask",
        "survivors",
    ),
    "one index twice": (
        lambda: ops.sparse24_linear(X, PAIRS.buffers[0] * 0, PAIRS.buffers[1], None, None, None, 0, 0, 37),
        "index",
        "survivors",
    ),
}


@pytest.mark.skipif(not ops.has_kernels(), reason="skipped: messages of the compiled kernels")
@pytest.mark.parametrize("name", BAD)
def test_refusals_name_argument_and_expectation(name):
    call, argument, expected = BAD[name]
    with pytest.raises((RuntimeError, ArgumentError)) as caught:
        call()
    assert f"argument '{argument}'" in str(caught.value) and expected in str(caught.value)
