"""What an HTTP/2 client writes: whole frames at once, or cut anywhere into pieces with pauses between them.

Knows as much of frames (RFC 9113 4.1) as it needs to find where each begins; what they say is the business of the `h2`
library.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable
from random import Random
from typing import Final

from h2.errors import ErrorCodes

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (RFC 9113 3.4)."""
FRAME_HEAD: Final = 9
LARGEST_FRAME: Final = 16_384
"""Bytes without the head, of those that nobody has allowed to be larger (SETTINGS_MAX_FRAME_SIZE, RFC 9113 6.5.2)."""
HEADERS: Final = 1
CONTINUATION: Final = 9
END_HEADERS: Final = 4
PAUSES: Final = (0.0, 0.002, 0.02, 0.1, 0.3, 1.0)
"""Seconds between the pieces."""


class FrameWriter:
    """What a connection writes, in order."""

    def __init__(self, random: Random, *, cut: bool) -> None:
        """With `cut` it goes out in pieces, and many a head in several frames."""
        self._random = random
        self._cut = cut
        self._transport: asyncio.WriteTransport | None = None
        self._waiting: deque[bytes] = deque()
        self._sending: asyncio.Task[None] | None = None

    def begin(self, transport: asyncio.WriteTransport) -> None:
        """The connection stands."""
        self._transport = transport

    def write(self, data: bytes) -> None:
        """Write whole frames, behind what waits."""
        if not self._cut:
            self._write(data)
            return
        self._waiting.append(in_several_frames(data, self._random) if self._random.random() < 0.5 else data)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.ensure_future(self._write_in_pieces())

    def stop(self) -> None:
        """The connection has ended: nothing more can be written."""
        if self._sending is not None:
            self._sending.cancel()
        self._waiting.clear()

    def close(self) -> None:
        """Write all that waits, and end the connection."""
        waiting = b"".join(self._waiting)
        self.stop()
        self._write(waiting)
        if self._transport is not None:
            self._transport.close()

    async def _write_in_pieces(self) -> None:
        while self._waiting:
            data = self._waiting.popleft()
            at = self._random.randrange(1, len(data) + 1) if self._random.random() < 0.6 else len(data)
            self._write(data[:at])
            if at < len(data):
                self._waiting.appendleft(data[at:])
                await asyncio.sleep(self._random.choice(PAUSES))

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def whole_frames(buffer: bytearray) -> Iterable[bytes]:
    """The frames that are whole at the beginning of `buffer`, which loses them (RFC 9113 4.1).

    Raises ValueError if the next one is larger than was allowed.
    """
    while len(buffer) >= FRAME_HEAD:
        size = FRAME_HEAD + int.from_bytes(buffer[:3])
        if size > FRAME_HEAD + LARGEST_FRAME:
            raise ValueError(f"a frame of more than {LARGEST_FRAME} bytes: {bytes(buffer[:40])!r}")
        if len(buffer) < size:
            return
        frame = bytes(buffer[:size])
        del buffer[:size]
        yield frame


def in_several_frames(data: bytes, random: Random) -> bytes:
    """The same frames, but each head in HEADERS and CONTINUATION frames (RFC 9113 6.10)."""
    begin = len(PREFACE) if data.startswith(PREFACE) else 0
    buffer, out = bytearray(data[begin:]), data[:begin]
    for frame in whole_frames(buffer):
        if frame[3] != HEADERS or not frame[4] & END_HEADERS:
            out += frame
            continue
        block, stream = frame[FRAME_HEAD:], frame[5:9]
        edges = sorted({0, *(random.randrange(len(block)) for _ in range(random.randint(1, 3))), len(block)})
        for first, (start, end) in enumerate(itertools.pairwise(edges)):
            kind, flags = (CONTINUATION, 0) if first else (HEADERS, frame[4] & ~END_HEADERS)
            if end == len(block):
                flags |= END_HEADERS
            out += (end - start).to_bytes(3) + bytes((kind, flags)) + stream + block[start:end]
    return out + bytes(buffer)


def code_name(code: int) -> str:
    """The name of an error code (RFC 9113 7)."""
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"error code {code:#x}"
