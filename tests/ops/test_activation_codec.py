"""The codec at the cut: golden bytes, half a step, exact constants, the same bits on every path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim, export

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops import cpu_isas, decode_activation, encode_activation
from torchcoinfer.ops.activation import decode_activation_reference, encode_activation_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=cpu_isas())
def isa(request, monkeypatch):
    if request.param != "reference":
        monkeypatch.setenv("TORCHCOINFER_ISA", request.param)
    return request.param


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 3 + 1


def round_trip(x: torch.Tensor, bits: int, granularity: str, leading_dims: int) -> torch.Tensor:
    coded = encode_activation(x, bits, granularity, leading_dims)
    return decode_activation(*coded, bits, granularity, list(x.shape[leading_dims:]), x.dtype)


GOLDEN = {
    2: ([0, 1, 2, 3, 3], [0b11100100, 0b11]),
    3: ([0, 1, 2, 3, 7], [0x88, 0x76]),
    4: ([0, 1, 2, 3, 15], [0x10, 0x32, 0x0F]),
    5: ([0, 1, 2, 3, 31], [0x20, 0x88, 0xF1, 0x01]),
    6: ([0, 1, 2, 63, 3], [0x40, 0x20, 0xFC, 0x03]),
    7: ([0, 127, 2, 3, 4], [0x80, 0xBF, 0x60, 0x40, 0x00]),
    8: ([0, 1, 2, 3, 255], [0, 1, 2, 3, 255]),
}


@pytest.mark.parametrize("bits", GOLDEN)
def test_golden_bytes(bits, isa):
    codes, stream = GOLDEN[bits]
    packed, scale, zero_point = encode_activation(torch.tensor([codes, codes]).float(), bits, "token", 1)
    assert packed.tolist() == [stream, stream]
    assert scale.tolist() == [1, 1] and zero_point.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("granularity", ["token", "channel"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_path_gives_the_bits_of_the_reference(bits, granularity, dtype, isa):
    for shape, leading in (((3, 5, 37), 2), ((2, 1100, 3), 1), ((7,), 0), ((2, 3, 4, 5), 1)):
        x = values(*shape).to(dtype)
        got = encode_activation(x, bits, granularity, leading)
        expected = encode_activation_reference(x, bits, granularity, leading)
        assert all(torch.equal(a, b) for a, b in zip(got, expected))
        trailing = list(shape[leading:])
        again = decode_activation(*got, bits, granularity, trailing, dtype)
        assert torch.equal(again, decode_activation_reference(*expected, bits, granularity, trailing, dtype))
        assert again.shape == x.shape and again.dtype == dtype


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(
        st.lists(st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False), min_size=11, max_size=11),
        min_size=1,
        max_size=4,
    ),
    bits=st.integers(2, 8),
    granularity=st.sampled_from(["token", "channel"]),
)
def test_within_half_a_step(data, bits, granularity):
    x = torch.tensor(data)
    scale, zero_point = encode_activation(x, bits, granularity, 1)[1:]
    error = (round_trip(x, bits, granularity, 1).double() - x.double()).abs()
    step, low = (
        t.unsqueeze(-1) if granularity == "token" else t for t in (scale.double(), zero_point.double())
    )
    # three float32 roundings: x - zero_point, scale * code, the sum
    slack = 2.0**-22 * (x.double().abs() + low.abs() + 2**bits * step)
    assert bool((error <= step / 2 + slack).all())


@settings(max_examples=40, deadline=None)
@given(codes=st.lists(st.integers(0, 255), min_size=1, max_size=40), bits=st.integers(2, 8))
def test_the_stream_is_little_endian_bit_by_bit(codes, bits):
    codes = [c % 2**bits for c in codes] + [0, 2**bits - 1]  # both ends present: the step is 1
    packed = encode_activation(torch.tensor(codes).float(), bits, "token", 0)[0]
    whole = sum(code << bits * i for i, code in enumerate(codes))
    assert bytes(packed.tolist()) == whole.to_bytes((len(codes) * bits + 7) // 8, "little")


@pytest.mark.parametrize("granularity", ["token", "channel"])
@pytest.mark.parametrize("constant", [0.0, -0.1, 3.3e38, 1e-40])
def test_constants_are_exact(constant, granularity, isa):
    x = torch.full((3, 9), constant)
    assert torch.equal(round_trip(x, 4, granularity, 1), x)
    assert torch.equal(round_trip(x[:1, :1], 2, granularity, 1), x[:1, :1])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_never_looks_plausible(poison, isa):
    x = values(3, 20)
    x[1, 4] = poison
    decoded = round_trip(x, 4, "token", 1)
    assert decoded[1].isnan().all() and decoded[[0, 2]].isfinite().all()
    decoded = round_trip(x, 4, "channel", 1)
    assert decoded[:, 4].isnan().all() and decoded[:, :4].isfinite().all()


@pytest.mark.parametrize("granularity", ["token", "channel"])
@pytest.mark.parametrize("shape, leading", [((0, 7), 1), ((3, 0), 1), ((2, 0, 5), 1), ((2, 4, 0), 1)])
def test_zero_elements(shape, leading, granularity, isa):
    x = torch.zeros(shape)
    assert round_trip(x, 3, granularity, leading).shape == shape
    for a, b in zip(
        encode_activation(x, 3, granularity, leading), encode_activation_reference(x, 3, granularity, leading)
    ):
        assert torch.equal(a, b)


def test_strided_input():
    x = values(6, 5, 8)
    for view in (x.transpose(0, 2), x[::2, :, 1::3], x.expand(6, 5, 8)[:, :1].expand(6, 4, 8)):
        for a, b in zip(
            encode_activation(view, 5, "token", 1), encode_activation(view.contiguous(), 5, "token", 1)
        ):
            assert torch.equal(a, b)


class Codec(torch.nn.Module):
    def __init__(self, granularity: str):
        super().__init__()
        self.granularity = granularity

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes, scale, low = torch.ops.torchcoinfer.encode_activation(x, 5, self.granularity, 2)
        return torch.ops.torchcoinfer.decode_activation(
            codes, scale, low, 5, self.granularity, [4, 9], torch.float32
        )


@pytest.mark.parametrize("granularity", ["token", "channel"])
def test_exported_scripted_compiled(granularity):
    x = values(3, 5, 4, 9)
    module = Codec(granularity)
    program = export(module, (x,), dynamic_shapes=({0: Dim("batch"), 1: Dim("length")},))
    larger = values(7, 11, 4, 9)
    assert torch.equal(program.module()(larger), module(larger))
    assert torch.equal(torch.jit.script(module)(larger), module(larger))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(larger), module(larger))
    symbols = next(n for n in program.graph.nodes if "encode_activation" in str(n.target)).meta["val"]
    assert not symbols[0].shape[0].node.expr.is_number and symbols[0].shape[2] == 23


@pytest.mark.parametrize("granularity", ["token", "channel"])
def test_opcheck(granularity):
    x = values(3, 4, 9)
    coded = encode_activation(x, 5, granularity, 1)
    torch.library.opcheck(torch.ops.torchcoinfer.encode_activation.default, (x, 5, granularity, 1))
    torch.library.opcheck(
        torch.ops.torchcoinfer.decode_activation.default, (*coded, 5, granularity, [4, 9], torch.float16)
    )


CODED = encode_activation(values(3, 9), 5, "token", 1)
BAD = {
    "bits": (lambda: encode_activation(values(3, 9), 9, "token", 1), "bits", "2 to 8"),
    "granularity": (lambda: encode_activation(values(3, 9), 5, "row", 1), "granularity", "'channel'"),
    "no trailing dim": (lambda: encode_activation(values(3, 9), 5, "token", 2), "leading_dims", "0 to 1"),
    "integers": (lambda: encode_activation(torch.ones(3, 9).int(), 5, "token", 1), "x", "float"),
    "trailing shape": (
        lambda: decode_activation(*CODED, 5, "token", [13], torch.float32),
        "codes",
        "9",
    ),
    "scale shape": (
        lambda: decode_activation(CODED[0], CODED[1][:2], CODED[2], 5, "token", [9], torch.float32),
        "scale",
        "2",
    ),
    "integer output": (lambda: decode_activation(*CODED, 5, "token", [9], torch.int32), "dtype", "float"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals_name_argument_and_expectation(name):
    call, argument, expected = BAD[name]
    with pytest.raises((RuntimeError, ArgumentError)) as caught:
        call()
    assert f"argument '{argument}'" in str(caught.value) and expected in str(caught.value)
    assert "torchcoinfer::" in str(caught.value)
