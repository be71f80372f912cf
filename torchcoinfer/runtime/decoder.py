"""The receiving side of ``wire``: bytes in, frames out. No I/O, no torch, bounded memory."""

from __future__ import annotations

import enum
import math
import zlib

import numpy as np

from torchcoinfer.errors import ArgumentError, FormatError
from torchcoinfer.runtime.wire import (
    MAGIC,
    MAX_RANK,
    PREFIX,
    VERSION,
    Frame,
    Header,
    damaged,
    decode_header,
    header_bytes,
)

MAX_PAYLOAD_BYTES = 1 << 30


class State(enum.Enum):
    """States of a Decoder."""

    HEADER = "the next byte belongs to a header"
    PAYLOAD = "a header is known, its payload is not complete"
    CLOSED = "the stream ended between two frames"
    ERROR = "the stream is damaged; nothing more comes out of it"


class Decoder:
    """Bytes in, frames out; no I/O. Feed it in pieces of any size.

    ::

        state    event            next
        HEADER   header complete  PAYLOAD
        PAYLOAD  payload complete HEADER   (a frame comes out)
        HEADER   close            CLOSED
        PAYLOAD  close            ERROR    (truncated)
        any      damage           ERROR    (every later call raises again)

    It keeps the bytes handed in and not yet consumed, and allocates nothing on the word of a header: a header
    that claims more than ``max_payload_bytes`` is refused before its payload arrives.
    """

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES):
        if max_payload_bytes < 0:
            raise ArgumentError("max_payload_bytes must not be negative", got=max_payload_bytes)
        self.state = State.HEADER
        self._max_payload_bytes = max_payload_bytes
        self._buffer = bytearray()
        self._header: Header | None = None
        self._error: FormatError | None = None

    @property
    def pending_bytes(self) -> int:
        """Bytes received that have not come out in a frame."""
        return len(self._buffer)

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Takes bytes from the link."""
        if self.state is State.CLOSED:
            raise ArgumentError("data after close", got=f"{len(data)} bytes", remedy="make a new Decoder")
        self._reraise()
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None: more data is needed.

        Raises:
            FormatError: the bytes are no frame (magic, version, field, checksum, length).
        """
        self._reraise()
        try:
            if self.state is State.HEADER:
                self._take_header()
            return self._take_payload() if self.state is State.PAYLOAD else None
        except FormatError as error:
            self._fail(error)
            raise

    def close(self) -> None:
        """The link has ended.

        Raises:
            FormatError: inside a frame, or whole frames were not collected.
        """
        self._reraise()
        if self._buffer or self.state is State.PAYLOAD:
            error = damaged(
                "the stream ends inside a frame", f"{len(self._buffer)} bytes left over", "a whole frame"
            )
            self._fail(error)
            raise error
        self.state = State.CLOSED

    def _take_header(self) -> None:
        self._check_prefix()
        if len(self._buffer) < PREFIX.size:
            return
        size = header_bytes(self._buffer[8])
        if len(self._buffer) < size:
            return
        header = decode_header(bytes(self._buffer[:size]))
        if header.payload_bytes > self._max_payload_bytes:
            raise damaged(
                "the payload is longer than allowed",
                f"{header.payload_bytes} bytes",
                f"<= {self._max_payload_bytes}",
            )
        del self._buffer[:size]
        self._header, self.state = header, State.PAYLOAD

    def _check_prefix(self) -> None:
        """Refuses a wrong magic, version or rank from the first byte that shows it."""
        seen = bytes(self._buffer[:9])
        if seen[:4] != MAGIC[: len(seen)]:
            raise damaged("the magic is wrong", repr(seen[:4]), repr(MAGIC))
        if len(seen) > 4 and seen[4] != VERSION:
            raise damaged("the version is unknown", str(seen[4]), str(VERSION))
        if len(seen) > 8 and seen[8] > MAX_RANK:
            raise damaged("the rank is too large", str(seen[8]), f"<= {MAX_RANK}")

    def _take_payload(self) -> Frame | None:
        header = self._header
        if header is None or len(self._buffer) < header.payload_bytes:
            return None
        payload = self._buffer[: header.payload_bytes]  # a copy, and writable: arrays may become tensors
        del self._buffer[: header.payload_bytes]
        if zlib.crc32(payload) != header.payload_crc:
            raise damaged(
                "the payload's checksum is wrong",
                f"crc32 {zlib.crc32(payload):08x}",
                f"{header.payload_crc:08x}",
            )
        if header.dtype == "bool" and payload and (largest := np.frombuffer(payload, np.uint8).max()) > 1:
            raise damaged("a bool is neither 0 nor 1", str(largest), "0 or 1")
        arrays, offset = [], 0
        for dtype, shape in header.sections:
            count = math.prod(shape)
            arrays.append(np.frombuffer(payload, dtype, count, offset).reshape(shape))
            offset += count * dtype.itemsize
        self._header, self.state = None, State.HEADER
        return Frame(header, tuple(arrays))

    def _fail(self, error: FormatError) -> None:
        self.state, self._error = State.ERROR, error
        self._buffer.clear()

    def _reraise(self) -> None:
        if self._error is not None:
            raise self._error
