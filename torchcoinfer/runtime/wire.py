r"""The wire format of tensors that cross the cut: one frame a tensor. NumPy only, no I/O.

A frame is a header of ``20 + 4 * rank`` bytes, then the payload; all integers are little-endian. ::

    offset  size  field
    0       4     magic b"TCIF"
    4       1     version, 1
    5       1     dtype of the tensor before coding: index in DTYPES
    6       1     bits of a code, 2..8; 0: the payload is the tensor's own elements
    7       1     granularity of scale and zero point: 0 none (bits 0), 1 "token", 2 "channel"
    8       1     rank, at most 16
    9       1     leading dims: how many of the dims keep their place in the codes (bits 0: 0)
    10      2     zero
    12      4     crc32 of the payload (zlib's)
    16      4*r   shape of the tensor before coding, 4 bytes a dim
    16+4*r  4     crc32 of all header bytes before this one

The payload length is not stated; it follows from the header, so that the two cannot disagree. Plain tensors
(bits 0): the elements, C order; bool as one byte 0 or 1, bfloat16 as its two bytes. Coded tensors: codes,
then scales, then zero points. Codes: for each index of the leading dims, the codes of the flattened trailing
dims as one little-endian bit stream (value i in bits [i*b, (i+1)*b)), padded with zero bits to a whole byte.
Scales and zero points: float32, one of each per leading index ("token") or per index of the last dim
("channel").

Worked example: the float32 tensor [1.0, -2.0], 32 bytes on the wire.

>>> encode(plain_frame(np.array([1.0, -2.0], dtype="<f4"))).hex(" ", 4)
'54434946 01000000 01000000 562687c3 02000000 eefe44cf 0000803f 000000c0'

The magic, version 1, dtype 0 (float32), bits 0, granularity 0, rank 1, payload crc, the dim 2, header crc,
and the two elements.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, replace

import numpy as np

from torchcoinfer.errors import FormatError

MAGIC = b"TCIF"
VERSION = 1
MAX_RANK = 16
# the position in this table is the code on the wire: append only
DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
GRANULARITIES = (None, "token", "channel")
_FLOATING = ("float32", "float16", "bfloat16", "float64")
PREFIX = struct.Struct("<4sBBBBBBHI")
_CRC = struct.Struct("<I")


def _array_dtype(name: str) -> np.dtype:
    """NumPy has no bfloat16: its bytes travel as uint16."""
    return np.dtype("uint16" if name == "bfloat16" else name).newbyteorder("<")


@dataclass(frozen=True)
class Header:
    """What a frame says of its tensor: ``dtype`` and ``shape`` before coding; ``bits`` None: not coded."""

    dtype: str
    shape: tuple[int, ...]
    bits: int | None = None
    granularity: str | None = None
    leading_dims: int = 0
    payload_crc: int = 0

    def __post_init__(self) -> None:
        problem = _header_problem(self)
        if problem:
            raise FormatError("a tensor cannot be framed", got=f"{problem} in {self}", expected=_EXPECTED)

    @property
    def header_bytes(self) -> int:
        return header_bytes(len(self.shape))

    @property
    def sections(self) -> tuple[tuple[np.dtype, tuple[int, ...]], ...]:
        """NumPy dtype and shape of each part of the payload, in order."""
        if self.bits is None:
            return ((_array_dtype(self.dtype), self.shape),)
        leading, trailing = self.shape[: self.leading_dims], self.shape[self.leading_dims :]
        row_bytes = -(-math.prod(trailing) * self.bits // 8)
        factor_shape = leading if self.granularity == "token" else self.shape[-1:]
        factors = (np.dtype("<f4"), factor_shape)
        return ((np.dtype(np.uint8), (*leading, row_bytes)), factors, factors)

    @property
    def payload_bytes(self) -> int:
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.sections)


@dataclass(frozen=True, eq=False)
class Frame:
    """A header and its arrays: the tensor itself, or (codes uint8, scale float32, zero_point float32)."""

    header: Header
    arrays: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, header included."""
        return self.header.header_bytes + self.header.payload_bytes


_EXPECTED = (
    f"version {VERSION}, a dtype of {DTYPES}, rank <= {MAX_RANK}, dims below 2**32; plain: no granularity; "
    "coded: a floating dtype, 2 <= bits <= 8, granularity 'token' or 'channel' and at least one trailing dim"
)


def _header_problem(header: Header) -> str | None:
    """Why the header is not one that this version frames, or None."""
    if header.dtype not in DTYPES:
        return f"dtype {header.dtype!r}"
    if len(header.shape) > MAX_RANK or any(not 0 <= dim < 1 << 32 for dim in header.shape):
        return f"shape {header.shape}"
    if (
        math.prod(max(dim, 1) for dim in header.shape) >= 1 << 59
    ):  # NumPy counts bytes in 64 bits, zero dims too
        return f"shape {header.shape}"
    if header.bits is None:
        return (
            "granularity or leading dims without bits" if header.granularity or header.leading_dims else None
        )
    if not 2 <= header.bits <= 8 or header.dtype not in _FLOATING:
        return f"bits {header.bits} of dtype {header.dtype}"
    if header.granularity not in ("token", "channel") or not 0 <= header.leading_dims < len(header.shape):
        return (
            f"granularity {header.granularity!r}, {header.leading_dims} leading of {len(header.shape)} dims"
        )
    return None


def header_bytes(rank: int) -> int:
    """Bytes of the header of a tensor with ``rank`` dims."""
    return PREFIX.size + 4 * rank + _CRC.size


def plain_frame(array: np.ndarray, dtype: str | None = None) -> Frame:
    """Frame of an uncoded tensor.

    Args:
        array: any strides; bfloat16 as uint16 with ``dtype="bfloat16"``.
        dtype: the tensor's dtype; None: the array's own.

    Raises:
        FormatError: the dtype is not in DTYPES or the rank exceeds MAX_RANK.
    """
    name = array.dtype.name if dtype is None else dtype
    return _checked(Header(name, tuple(array.shape)), (array,))


def coded_frame(
    codes: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    *,
    dtype: str,
    shape: tuple[int, ...],
    bits: int,
    granularity: str,
    leading_dims: int,
) -> Frame:
    """Frame of a tensor coded by ``ops.encode_activation``; ``dtype`` and ``shape`` are those before coding.

    Raises:
        FormatError: an array's dtype or shape is not what the header demands.
    """
    header = Header(dtype, tuple(shape), bits, granularity, leading_dims)
    return _checked(header, (codes, scale, zero_point))


def _checked(header: Header, arrays: tuple[np.ndarray, ...]) -> Frame:
    for array, (dtype, shape) in zip(arrays, header.sections, strict=True):
        if array.dtype.newbyteorder("<") != dtype or tuple(array.shape) != shape:
            raise FormatError(
                "an array does not fit the header of its frame",
                got=f"{array.dtype.name}{list(array.shape)}",
                expected=f"{dtype.name}{list(shape)} for {header}",
                remedy="pass the arrays as the encoder returned them, with its bits, shape and granularity",
            )
    return Frame(header, arrays)


def encode(frame: Frame) -> bytes:
    """The bytes of one frame."""
    sections = frame.header.sections
    parts = [
        np.ascontiguousarray(a, dtype=d).tobytes() for a, (d, _) in zip(frame.arrays, sections, strict=True)
    ]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return b"".join([_encode_header(replace(frame.header, payload_crc=crc)), *parts])


def _encode_header(header: Header) -> bytes:
    prefix = PREFIX.pack(
        MAGIC,
        VERSION,
        DTYPES.index(header.dtype),
        header.bits or 0,
        GRANULARITIES.index(header.granularity),
        len(header.shape),
        header.leading_dims,
        0,
        header.payload_crc,
    )
    body = prefix + struct.pack(f"<{len(header.shape)}I", *header.shape)
    return body + _CRC.pack(zlib.crc32(body))


def decode_header(data: bytes) -> Header:
    """Header from exactly its bytes, whose magic, version and rank the caller has checked.

    Raises:
        FormatError: wrong checksum, or a field without meaning.
    """
    body, (stated_crc,) = data[: -_CRC.size], _CRC.unpack(data[-_CRC.size :])
    if zlib.crc32(body) != stated_crc:
        raise damaged("the header's checksum is wrong", f"crc32 {zlib.crc32(body):08x}", f"{stated_crc:08x}")
    _, _, dtype, bits, granularity, rank, leading, zero, payload_crc = PREFIX.unpack_from(body)
    if dtype >= len(DTYPES) or granularity >= len(GRANULARITIES) or zero:
        raise damaged(
            "a header field has no meaning",
            f"dtype {dtype}, granularity {granularity}, pad {zero}",
            _EXPECTED,
        )
    shape = struct.unpack_from(f"<{rank}I", body, PREFIX.size)
    return Header(DTYPES[dtype], shape, bits or None, GRANULARITIES[granularity], leading, payload_crc)


def damaged(fact: str, got: str, expected: str) -> FormatError:
    """The error of a stream that is damaged or out of step."""
    return FormatError(
        f"bytes that are no frame: {fact}",
        got=got,
        expected=expected,
        remedy="the stream is damaged or out of step: drop the connection and send the tensors again",
    )
