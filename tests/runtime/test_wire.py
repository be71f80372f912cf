"""The wire format: exact bytes, whole / byte by byte / trailing data, and every kind of damage."""

import doctest
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torchcoinfer.errors import ArgumentError, FormatError
from torchcoinfer.runtime import wire
from torchcoinfer.runtime.decoder import Decoder, State
from torchcoinfer.runtime.wire import DTYPES, Header, coded_frame, encode, header_bytes, plain_frame

STORED = {"bfloat16": "uint16"}


def random_array(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    stored = np.dtype(STORED.get(dtype, dtype))
    if stored.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if stored.kind == "f":
        return rng.standard_normal(shape).astype(stored)
    return rng.integers(0, 100, shape).astype(stored)


def coded(bits=4, granularity="token", shape=(2, 3, 5), leading=2, dtype="float32"):
    rng = np.random.default_rng(1)
    row_bytes = -(-int(np.prod(shape[leading:])) * bits // 8)
    factors = shape[:leading] if granularity == "token" else shape[-1:]
    return coded_frame(
        rng.integers(0, 256, (*shape[:leading], row_bytes)).astype(np.uint8),
        rng.standard_normal(factors).astype(np.float32),
        rng.standard_normal(factors).astype(np.float32),
        dtype=dtype,
        shape=shape,
        bits=bits,
        granularity=granularity,
        leading_dims=leading,
    )


FRAMES = {
    **{f"plain-{name}": plain_frame(random_array(name, (2, 3)), name) for name in DTYPES},
    "scalar": plain_frame(np.array(3.5, dtype=np.float32)),
    "empty": plain_frame(np.zeros((0, 7), dtype=np.float32)),
    "rank-6": plain_frame(random_array("float32", (1, 2, 1, 2, 1, 2))),
    "big-endian": plain_frame(np.arange(4, dtype=">f4")),
    "strided": plain_frame(random_array("float32", (6, 4))[::2, ::-1]),
    **{f"coded-{b}-token": coded(b) for b in range(2, 9)},
    "coded-channel": coded(5, "channel"),
    "coded-bfloat16": coded(3, "token", (4, 2, 2), 1, "bfloat16"),
    "coded-no-leading": coded(4, "token", (7,), 0),
    "coded-empty": coded(4, "token", (0, 7), 1),
}


def same(a, b):
    assert (a.header.dtype, a.header.shape, a.header.bits) == (b.header.dtype, b.header.shape, b.header.bits)
    assert (a.header.granularity, a.header.leading_dims) == (b.header.granularity, b.header.leading_dims)
    assert len(a.arrays) == len(b.arrays)
    for x, y in zip(a.arrays, b.arrays):
        assert x.shape == y.shape
        # by bytes, so that NaN payloads and negative zeros count
        assert x.astype(x.dtype.newbyteorder("<")).tobytes() == y.astype(y.dtype.newbyteorder("<")).tobytes()


def decode_all(data, step=None):
    decoder, frames = Decoder(), []
    for start in range(0, len(data), step or max(1, len(data))):
        decoder.receive_data(data[start : start + (step or len(data))])
        while (frame := decoder.next_frame()) is not None:
            frames.append(frame)
    decoder.close()
    assert decoder.state is State.CLOSED
    return frames


def test_worked_example_in_the_docs():
    result = doctest.testmod(wire)
    assert result.attempted > 0 and result.failed == 0


def test_golden_bytes_of_a_coded_tensor():
    """float32 [1, 1, 5], 3-bit codes 1 2 3 4 5 as a little-endian stream: 0b101_100_011_010_001 = 0x58d1."""
    frame = coded_frame(
        np.array([[[0xD1, 0x58]]], dtype=np.uint8),
        np.array([[0.5]], dtype=np.float32),
        np.array([[-1.0]], dtype=np.float32),
        dtype="float32",
        shape=(1, 1, 5),
        bits=3,
        granularity="token",
        leading_dims=2,
    )
    payload = bytes.fromhex("d158 0000003f 000080bf")
    body = (
        bytes.fromhex("54434946 01 00 03 01 03 02 0000")
        + struct.pack("<I", zlib.crc32(payload))
        + bytes.fromhex("01000000 01000000 05000000")
    )
    assert encode(frame) == body + struct.pack("<I", zlib.crc32(body)) + payload
    assert frame.nbytes == 32 + 10


@pytest.mark.parametrize("name", FRAMES)
def test_round_trip_whole_and_byte_by_byte(name):
    frame = FRAMES[name]
    data = encode(frame)
    assert len(data) == frame.nbytes == header_bytes(len(frame.header.shape)) + frame.header.payload_bytes
    for step in (None, 1, 7):
        (back,) = decode_all(data, step)
        same(frame, back)
        assert all(array.flags.writeable for array in back.arrays)


@pytest.mark.parametrize("step", [None, 1, 13])
def test_many_frames_in_one_stream(step):
    back = decode_all(b"".join(encode(f) for f in FRAMES.values()), step)
    assert len(back) == len(FRAMES)
    for sent, received in zip(FRAMES.values(), back):
        same(sent, received)


def test_trailing_data_waits_for_the_next_frame():
    data = encode(FRAMES["coded-4-token"])
    decoder = Decoder()
    decoder.receive_data(data + data[:9])
    assert decoder.next_frame() is not None
    assert decoder.next_frame() is None and decoder.pending_bytes == 9
    decoder.receive_data(data[9:])
    same(FRAMES["coded-4-token"], decoder.next_frame())
    decoder.close()
    with pytest.raises(ArgumentError, match="close"):
        decoder.receive_data(b"x")


def reseal(data, edit):
    """Applies ``edit`` to the header of one frame and makes the header checksum fit again."""
    rank = data[8]
    body = bytearray(data[: 16 + 4 * rank])
    edit(body)
    return bytes(body) + struct.pack("<I", zlib.crc32(bytes(body))) + data[header_bytes(rank) :]


def put(offset, *values):
    def edit(body):
        body[offset : offset + len(values)] = bytes(values)

    return edit


PLAIN, CODED = encode(FRAMES["plain-float32"]), encode(FRAMES["coded-4-token"])
DAMAGE = {
    "magic": (b"HTTP" + PLAIN[4:], "magic"),
    "first byte": (b"G", "magic"),
    "version": (reseal(PLAIN, put(4, 2)), "version is unknown; got: 2"),
    "dtype": (reseal(PLAIN, put(5, 99)), "dtype 99"),
    "granularity": (reseal(CODED, put(7, 3)), "granularity 3"),
    "pad": (reseal(PLAIN, put(10, 1)), "pad 1"),
    "bits 1": (reseal(CODED, put(6, 1)), "bits 1"),
    "bits 9": (reseal(CODED, put(6, 9)), "bits 9"),
    "coded int": (reseal(CODED, put(5, 4)), "int64"),
    "plain with granularity": (reseal(PLAIN, put(7, 1)), "without bits"),
    "no trailing dim": (reseal(CODED, put(9, 3)), "3 leading"),
    "rank": (PLAIN[:8] + b"\xff" + PLAIN[9:], "rank"),
    "header checksum": (PLAIN[:16] + b"\x07" + PLAIN[17:], "header's checksum"),
    "payload checksum": (PLAIN[:-1] + bytes([PLAIN[-1] ^ 1]), "payload's checksum"),
    "absurd length": (reseal(PLAIN, put(16, 255, 255, 255, 255, 255, 255, 255, 255)), "shape"),
    "long payload": (reseal(PLAIN, put(16, 255, 255, 255, 255)), "longer than allowed"),
    "overflow beside a zero": (
        reseal(encode(plain_frame(np.zeros((0, 1, 1), np.float32))), put(20, *[255] * 8)),
        "shape",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_for_good(name):
    data, words = DAMAGE[name]
    decoder = Decoder()
    decoder.receive_data(data)
    for _ in range(2):  # the second call raises as well: nothing is decoded after damage
        with pytest.raises(FormatError, match=words) as caught:
            decoder.next_frame()
        assert caught.value.expected is not None
    assert decoder.state is State.ERROR and decoder.pending_bytes == 0
    with pytest.raises(FormatError):
        decoder.receive_data(PLAIN)


def test_bool_bytes_are_checked():
    data = bytearray(encode(plain_frame(np.array([True, False]))))
    data[-1] = 2
    payload = bytes(data[-2:])
    data = reseal(
        bytes(data), lambda body: body.__setitem__(slice(12, 16), struct.pack("<I", zlib.crc32(payload)))
    )
    with pytest.raises(FormatError, match="bool"):
        decode_all(data)


@pytest.mark.parametrize("name", ["plain-int64", "coded-3-token", "rank-6"])
def test_every_truncation_is_an_error_at_close_and_never_a_frame(name):
    data = encode(FRAMES[name])
    for size in range(1, len(data)):
        decoder = Decoder()
        decoder.receive_data(data[:size])
        assert decoder.next_frame() is None
        with pytest.raises(FormatError, match="ends inside a frame"):
            decoder.close()


@pytest.mark.parametrize("name", ["plain-int64", "coded-3-token"])
def test_every_flipped_bit_is_noticed(name):
    data = encode(FRAMES[name])
    for position in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(FormatError):
            decode_all(bytes(damaged))


def test_payload_limit():
    decoder = Decoder(max_payload_bytes=23)
    decoder.receive_data(PLAIN[: header_bytes(2)])  # refused before the 24 payload bytes come
    with pytest.raises(FormatError, match="24 bytes"):
        decoder.next_frame()
    with pytest.raises(ArgumentError):
        Decoder(max_payload_bytes=-1)


def test_a_header_alone_makes_nobody_allocate():
    data = encode(plain_frame(np.zeros((1, 1), np.uint8)))
    claim = reseal(data, put(16, 0, 0, 0, 4, 15, 0, 0, 0))[: header_bytes(2)]  # 2**26 x 15 bytes: allowed
    tracemalloc.start()
    try:
        decoder = Decoder()
        decoder.receive_data(claim + bytes(100))
        assert decoder.next_frame() is None and decoder.state is State.PAYLOAD
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(FormatError, match="ends inside"):
        decoder.close()


BAD_FRAMES = {
    "dtype": (lambda: plain_frame(np.zeros(2, np.complex64)), "complex64"),
    "rank": (lambda: plain_frame(np.zeros((1,) * 17, np.float32)), "shape"),
    "bfloat16 as float32": (lambda: plain_frame(np.zeros(2, np.float32), "bfloat16"), "uint16"),
    "bits": (lambda: Header("float32", (2, 2), 9, "token", 1), "bits 9"),
    "granularity": (lambda: Header("float32", (2, 2), 4, "tensor", 1), "tensor"),
    "codes too short": (
        lambda: coded_frame(
            np.zeros((2, 1), np.uint8),
            np.zeros(2, np.float32),
            np.zeros(2, np.float32),
            dtype="float32",
            shape=(2, 3),
            bits=4,
            granularity="token",
            leading_dims=1,
        ),
        r"uint8\[2, 2\]",
    ),
    "scale float64": (
        lambda: coded_frame(
            np.zeros((2, 2), np.uint8),
            np.zeros(2),
            np.zeros(2, np.float32),
            dtype="float32",
            shape=(2, 3),
            bits=4,
            granularity="token",
            leading_dims=1,
        ),
        "float64",
    ),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_arrays_that_do_not_fit_are_not_framed(name):
    make, words = BAD_FRAMES[name]
    with pytest.raises(FormatError, match=words):
        make()


arrays = st.sampled_from([d for d in DTYPES if d != "bfloat16"]).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
)


@settings(max_examples=100, deadline=None)
@given(st.lists(arrays, max_size=4), st.data())
def test_any_arrays_in_any_pieces(sent, data):
    stream = b"".join(encode(plain_frame(array)) for array in sent)
    decoder, received = Decoder(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        decoder.receive_data(stream[:size])
        stream = stream[size:]
        while (frame := decoder.next_frame()) is not None:
            received.append(frame)
    decoder.close()
    assert len(received) == len(sent)
    for array, frame in zip(sent, received):
        same(plain_frame(array), frame)


def test_random_bytes_never_do_anything_but_raise_or_wait():
    """A fuzz loop: noise, noise after a good magic, and a good frame with a stretch overwritten."""
    rng = np.random.default_rng(0)
    whole = encode(FRAMES["coded-4-token"])
    for _ in range(3000):
        noise = rng.bytes(int(rng.integers(1, 60)))
        at = int(rng.integers(0, len(whole)))
        for data in (noise, b"TCIF\x01" + noise, whole[:at] + noise + whole[at + len(noise) :]):
            decoder = Decoder(max_payload_bytes=1 << 16)
            decoder.receive_data(data)
            try:
                while (frame := decoder.next_frame()) is not None:
                    assert encode(frame) == whole  # the overwritten stretch happened to be equal
            except FormatError:
                assert decoder.state is State.ERROR
            assert decoder.pending_bytes <= len(data)
