"""The sparse formats byte by byte: golden bytes, kernels against references, round trips, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_cases import BITS, pack, unpack

from torchcoinfer import ops
from torchcoinfer.errors import ArgumentError
from torchcoinfer.nn.magnitude import magnitude_mask
from torchcoinfer.ops.bitmap import bitmap_pack_reference, bitmap_unpack_reference
from torchcoinfer.ops.sparse24 import sparse24_pack_reference, sparse24_unpack_reference
from torchcoinfer.ops.survivors import pack_chunks, unpack_chunks

SHAPES = ((16, 32), (37, 75), (1, 1), (5, 3), (33, 129), (0, 32), (16, 0))
REFERENCES = {
    "2:4": (sparse24_pack_reference, sparse24_unpack_reference),
    "bitmap": (bitmap_pack_reference, bitmap_unpack_reference),
}


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """The worked example of csrc/layout_sparse.h."""
    codes = torch.zeros(16, 32, dtype=torch.uint8)
    codes[0, 1], codes[2, 0] = 5, 7
    return codes, codes > 0


def test_golden_bytes_of_a_bitmap():
    codes, kept = example()
    mask, offsets, values = ops.bitmap_pack(codes, kept, 4)
    assert mask.tolist() == [[[0x102, 0, 0, 0, 0, 0, 0, 0]]] and offsets.tolist() == [0, 1]
    assert values.tolist() == [0x05, 0x07] + [0] * 30
    floats = ops.bitmap_pack(codes.float(), kept, 0)[2]
    assert floats.tolist() == [5.0, 7.0] + [0.0] * 62


def test_golden_bytes_of_2_4():
    codes, kept = example()
    index, values = ops.sparse24_pack(codes, kept, 4)
    assert index.flatten().tolist() == [0x44] * 64
    # survivors 0 and 1 are k = 0 (filled up) and k = 1 of row 0, survivor 4 is k = 0 of row 2
    assert values.flatten().tolist() == [0x00, 0x05, 0x00, 0x00, 0x07] + [0] * 123
    kept = torch.zeros(16, 32, dtype=torch.bool)
    kept[0, 1] = kept[0, 3] = True
    index, values = ops.sparse24_pack(kept.float(), kept, 0)
    assert index.flatten().tolist() == [0x4D] + [0x44] * 63
    assert values.flatten().tolist() == [1.0, 1.0] + [0.0] * 254


@pytest.mark.parametrize("bits", BITS[1:])
def test_chunks_follow_the_stated_formula(bits):
    codes = (torch.arange(64) * 37 % 2**bits).to(torch.uint8)
    packed = pack_chunks(codes, bits).tolist()
    low = {3: 2, 5: 4, 6: 4}.get(bits, bits)
    for i, code in enumerate(codes.tolist()):
        for plane, shift in ((low, 0), (bits - low, low)):
            if plane:
                byte = packed[8 * shift + i % (8 * plane)]
                assert byte >> plane * (i // (8 * plane)) & 2**plane - 1 == code >> shift & 2**plane - 1
    assert torch.equal(unpack_chunks(pack_chunks(codes, bits), bits), codes)


@pytest.mark.parametrize("form", REFERENCES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_give_the_bytes_of_the_references(shape, bits, form):
    torch.manual_seed(bits)
    for share in (0.0, 0.3, 0.5, 1.0):
        mask = torch.rand(shape) < share
        if form == "2:4":
            mask &= magnitude_mask(torch.rand(shape), "2:4")
        for dtype in (torch.float32, torch.float16, torch.bfloat16) if bits == 0 else (torch.uint8,):
            values = (torch.randn(shape) if bits == 0 else torch.randint(0, 2**bits, shape)).to(dtype)
            packed = pack(form, values, mask, bits)
            expected = REFERENCES[form][0](values, mask, bits)
            assert all(torch.equal(a, b) for a, b in zip(packed, expected))
            got = unpack(form, packed, bits, *shape)
            assert all(torch.equal(a, b) for a, b in zip(got, REFERENCES[form][1](*packed, bits, *shape)))
            dense, stored = got
            assert torch.equal(dense[mask], values[mask])
            assert bool((stored | ~mask).all()) and (form == "2:4" or torch.equal(stored, mask))
            assert not dense[~stored].any()


@settings(max_examples=50, deadline=None)
@given(
    N=st.integers(1, 40),
    K=st.integers(1, 80),
    bits=st.sampled_from(BITS),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_bitmap_round_trip(N, K, bits, share, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(N, K, generator=generator) < share
    values = torch.randint(0, 2 ** (bits or 4), (N, K), generator=generator).to(torch.uint8)
    values = values if bits else values.half()
    dense, kept = unpack("bitmap", pack("bitmap", values, mask, bits), bits, N, K)
    assert torch.equal(kept, mask) and torch.equal(dense, torch.where(mask, values, 0))


@pytest.mark.parametrize(
    "pack_op, unpack_op", [("sparse24_pack", "sparse24_unpack"), ("bitmap_pack", "bitmap_unpack")]
)
@pytest.mark.parametrize("bits", [0, 5])
def test_opcheck(pack_op, unpack_op, bits):
    mask = magnitude_mask(torch.rand(37, 75), "2:4")
    values = torch.randint(0, 32, (37, 75)).to(torch.uint8 if bits else torch.float16)
    torch.library.opcheck(getattr(torch.ops.torchcoinfer, pack_op).default, (values, mask, bits))
    packed = getattr(ops, pack_op)(values, mask, bits)
    torch.library.opcheck(getattr(torch.ops.torchcoinfer, unpack_op).default, (*packed, bits, 37, 75))


WEIGHT, ALL = torch.randn(37, 75), torch.ones(37, 75, dtype=torch.bool)
PACKED24 = ops.sparse24_pack(WEIGHT, magnitude_mask(WEIGHT, "2:4"), 0)
BITMAP = ops.bitmap_pack(WEIGHT, ALL, 0)
BAD = {
    "three of four": (lambda: ops.sparse24_pack(WEIGHT, ALL, 0), "mask", "at most 2 of 4"),
    "bits": (lambda: ops.bitmap_pack(WEIGHT.byte(), ALL, 7), "bits", "2, 3, 4, 5, 6 or 8"),
    "code too large": (lambda: ops.bitmap_pack(ALL.byte() * 9, ALL, 3), "values", "below 2^3"),
    "codes for floats": (lambda: ops.bitmap_pack(ALL.byte(), ALL, 0), "values", "float"),
    "float64": (lambda: ops.bitmap_pack(WEIGHT.double(), ALL, 0), "values", "float"),
    "mask dtype": (lambda: ops.bitmap_pack(WEIGHT, ALL.byte(), 0), "mask", "ool"),
    "mask shape": (lambda: ops.bitmap_pack(WEIGHT, ALL[:5], 0), "mask", "37, 75"),
    "index shape": (lambda: ops.sparse24_unpack(*PACKED24, 0, 37, 99), "index", "4, 64"),
    "values shape": (lambda: ops.sparse24_unpack(*PACKED24, 4, 37, 75), "values", ""),
    "truncated values": (lambda: ops.bitmap_unpack(*BITMAP[:2], BITMAP[2][:-64], 0, 37, 75), "values", ""),
    "tampered mask": (lambda: ops.bitmap_unpack(BITMAP[0] ^ -1, *BITMAP[1:], 0, 37, 75), "", "survivors"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals_name_argument_and_expectation(name):
    call, argument, expected = BAD[name]
    with pytest.raises((RuntimeError, ArgumentError)) as caught:
        call()
    assert "torchcoinfer::" in str(caught.value) and expected in str(caught.value)
    assert f"argument '{argument}" in str(caught.value)
