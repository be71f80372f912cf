"""The dense format: golden bytes, round trips, quantization, and the errors of bad arguments."""

import pytest
import torch
from conftest import BITS, DTYPES, GROUP_SIZES, formats
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcoinfer import ops
from torchcoinfer.ops.pack import pack_codes_reference, unpack_codes_reference
from torchcoinfer.ops.quantize import dequantize_reference, quantize_pack_reference
from torchcoinfer.theory import options

SHAPES = ((16, 32), (37, 75), (1, 1), (0, 5), (5, 0), (33, 129))


def counting(bits: int) -> torch.Tensor:
    """code(n, k) = (n + k) mod 2^bits over one tile: the worked example of csrc/layout.h."""
    n, k = torch.meshgrid(torch.arange(16), torch.arange(32), indexing="ij")
    return ((n + k) % 2**bits).to(torch.uint8)


# tile byte -> value, worked out by hand from the paragraph in csrc/layout.h
GOLDEN = {
    2: {0: 0x00, 1: 0x55, 2: 0xAA, 4: 0x55, 64: 0x00},
    3: {0: 0x00, 2: 0xAA, 128: 0xAA, 129: 0xAA, 132: 0xAA, 131: 0xAA, 144: 0x55},
    4: {0: 0x40, 1: 0x51, 2: 0x62, 3: 0x73, 4: 0x51, 7: 0x84, 64: 0xC8},
    5: {0: 0x40, 64: 0xC8, 128: 0x40, 256: 0xF0, 316: 0x1E},
    6: {0: 0x40, 128: 0x40, 256: 0x00, 320: 0x55},
    8: {0: 0, 1: 1, 5: 2, 64: 4, 511: 46},
}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("pack", [ops.pack_codes, pack_codes_reference], ids=["kernel", "reference"])
def test_golden_bytes(pack, bits):
    tile = pack(counting(bits), bits).flatten()
    assert len(tile) == 64 * bits
    assert {i: int(tile[i]) for i in GOLDEN[bits]} == GOLDEN[bits]


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(BITS), rows=st.integers(0, 40), columns=st.integers(0, 80), seed=st.integers(0, 99)
)
def test_codes_round_trip(bits, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)
    packed = ops.pack_codes(codes, bits)
    assert torch.equal(packed, pack_codes_reference(codes, bits))
    assert torch.equal(ops.unpack_codes(packed, bits, rows, columns), codes)
    assert torch.equal(unpack_codes_reference(packed, bits, rows, columns), codes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantize_agrees_with_reference_and_half_a_step(shape, dtype):
    for bits, group_size, symmetric in formats():
        weight = torch.randn(shape).to(dtype)
        buffers = ops.quantize_pack(weight, bits, group_size, symmetric, torch.float32)
        for ours, reference in zip(
            buffers, quantize_pack_reference(weight, bits, group_size, symmetric, torch.float32)
        ):
            assert torch.equal(ours, reference)
        back = ops.dequantize(*buffers, bits, group_size, *shape, torch.float32)
        assert torch.equal(back, dequantize_reference(*buffers, bits, group_size, *shape, torch.float32))
        if weight.numel() == 0:
            continue
        step = ops.dequantize(  # codes one above zero point everywhere: the scale of each weight
            ops.pack_codes(torch.full(shape, 2, dtype=torch.uint8), bits),
            buffers[1],
            torch.ones_like(buffers[1], dtype=torch.uint8),
            bits,
            group_size,
            *shape,
            torch.float32,
        )
        # both ends are attained, so that no weight is clipped and the error is half a step; the rounded zero
        # point of the asymmetric format can cut half a step more off one end
        bound = step * (0.5 if symmetric else 1.0) * (1 + 1e-5)
        assert ((back - weight.float()).abs() <= bound).all()


def test_packed_bytes_are_the_planner_s():
    for bits, group_size, symmetric in formats():
        for rows, columns in ((37, 75), (16, 32), (100, 300)):
            buffers = ops.quantize_pack(
                torch.randn(rows, columns), bits, group_size, symmetric, torch.float16
            )
            option = options.Option(bits=bits, format="int", group_size=group_size, symmetric=symmetric)
            expected = options.packed_bytes(option, rows, columns)
            assert sum(b.numel() * b.element_size() for b in buffers) == expected


def test_scale_dtypes_and_constant_rows():
    weight = torch.randn(20, 64)
    weight[3], weight[4] = 0, 1.5
    for dtype in DTYPES:
        for symmetric in (True, False):
            buffers = ops.quantize_pack(weight, 4, 32, symmetric, dtype)
            assert buffers[1].dtype == dtype
            back = ops.dequantize(*buffers, 4, 32, 20, 64, torch.float32)
            assert (back[3] == 0).all()
            assert torch.allclose(back[4], weight[4], rtol=2.0**-8)


BAD_CALLS = [
    ("bits", lambda: ops.pack_codes(torch.zeros(2, 2, dtype=torch.uint8), 7), "bits"),
    ("dtype", lambda: ops.pack_codes(torch.zeros(2, 2), 4), "codes"),
    ("dimensions", lambda: ops.pack_codes(torch.zeros(2, dtype=torch.uint8), 4), "codes"),
    ("too large", lambda: ops.pack_codes(torch.full((2, 2), 16, dtype=torch.uint8), 4), "codes"),
    ("packed shape", lambda: ops.unpack_codes(torch.zeros(1, 1, 64, dtype=torch.uint8), 4, 16, 32), "packed"),
    ("group size", lambda: ops.quantize_pack(torch.zeros(2, 2), 4, 48, True, torch.float16), "group_size"),
    ("nan", lambda: ops.quantize_pack(torch.full((2, 2), torch.nan), 4, 32, True, torch.float16), "weight"),
    ("inf", lambda: ops.quantize_pack(torch.full((2, 2), torch.inf), 4, 32, False, torch.float16), "weight"),
    ("overflow", lambda: ops.quantize_pack(torch.full((2, 2), 1e9), 4, 32, False, torch.float16), "weight"),
    ("scale dtype", lambda: ops.quantize_pack(torch.zeros(2, 2), 4, 32, True, torch.int8), "scale_dtype"),
]


@pytest.mark.parametrize("call, argument", [c[1:] for c in BAD_CALLS], ids=[c[0] for c in BAD_CALLS])
def test_bad_arguments_name_op_and_argument(call, argument):
    with pytest.raises(RuntimeError, match=rf"torchcoinfer::\w+: argument '{argument}'.*expected.*got"):
        call()


def test_opcheck():
    weight = torch.randn(20, 40)
    buffers = ops.quantize_pack(weight, 4, 32, False, torch.float16)
    codes = torch.randint(0, 16, (20, 40), dtype=torch.uint8)
    namespace = torch.ops.torchcoinfer
    torch.library.opcheck(namespace.pack_codes, (codes, 4))
    torch.library.opcheck(namespace.unpack_codes, (buffers[0], 4, 20, 40))
    torch.library.opcheck(namespace.quantize_pack, (weight, 4, 32, False, torch.float16))
    torch.library.opcheck(namespace.quantize_pack, (weight, 4, 0, True, torch.float16))
    torch.library.opcheck(namespace.dequantize, (*buffers, 4, 32, 20, 40, torch.bfloat16))


def test_group_sizes_are_the_planner_s():
    assert set(GROUP_SIZES) == set(options.GROUP_SIZES)
