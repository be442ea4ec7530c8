"""Putting header blocks together from HEADERS and CONTINUATION frames (RFC 9113 4.3, 6.2, 6.10). Pure.

It owns the block that is under way, of which a connection has at most one, and the bounds on it: its bytes, and the
number of its frames, so that an endless one ends the connection while it is small (the CONTINUATION flood). It must not
know what is in a block.
"""

from __future__ import annotations

from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode
from serve_asgi.http.h2.frames import CONTINUATION, END_STREAM, HEADERS, LEAST_MAX_FRAME_SIZE, frame
from serve_asgi.http.h2.limits import MAX_CONTINUATIONS


class HeaderBlockAssembly:
    """The block under way on one connection."""

    __slots__ = ("_frames", "_max_frames", "_max_size", "_pieces", "_size", "end_stream", "stream_id")

    def __init__(self, max_size: int) -> None:
        """`max_size`: bytes of the largest head; a block of up to twice that is put together, to be answered 431."""
        self._max_size = 2 * max(max_size, LEAST_MAX_FRAME_SIZE)
        self._max_frames = MAX_CONTINUATIONS + self._max_size // LEAST_MAX_FRAME_SIZE
        self._pieces: list[bytes] = []
        self._size = 0
        self._frames = 0
        self.stream_id = 0
        """Whose block it is; 0: there is none."""
        self.end_stream = False
        """The stream ends with it."""

    def begin(self, stream_id: int, fragment: bytes, end_stream: bool) -> None:
        """A HEADERS frame without END_HEADERS. Raises ConnectionFault."""
        self.stream_id = stream_id
        self.end_stream = end_stream
        self._pieces = []
        self._size = self._frames = 0
        self._add(fragment)

    def go_on(self, stream_id: int, fragment: bytes) -> None:
        """A CONTINUATION frame. Raises ConnectionFault."""
        if not self.stream_id or stream_id != self.stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block that it continues")
        self._frames += 1
        if self._frames > self._max_frames:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM, f"a header block in more than {self._max_frames} CONTINUATION frames"
            )
        self._add(fragment)

    def finish(self) -> tuple[int, bytes, bool]:
        """The last frame of it has come: the stream, the whole block, and whether the stream ends with it."""
        stream_id, self.stream_id = self.stream_id, 0
        block = b"".join(self._pieces)
        self._pieces = []
        return stream_id, block, self.end_stream

    def _add(self, fragment: bytes) -> None:
        self._size += len(fragment)
        if self._size > self._max_size:
            # It would have to be decoded for the table's sake, and answered 431: too much for what cannot be served.
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"a header block of more than {self._max_size} bytes")
        if fragment or not self._pieces:
            self._pieces.append(fragment)

    # ---- what travels with the connection

    def frames(self) -> bytes:
        """The block under way as frames, to be read again in another process; empty if there is none."""
        if not self.stream_id:
            return b""
        first, *others = self._pieces
        head = frame(HEADERS, END_STREAM if self.end_stream else 0, self.stream_id, first)
        return head + b"".join(frame(CONTINUATION, 0, self.stream_id, piece) for piece in others)
