"""Frames that are left aside, undecoded, while a connection waits to leave for another worker. Pure.

It owns the choice of what waits: whatever begins a new request, and what comes on its stream. Everything else is read
as always, so that the streams in progress come to their ends. The trailers of one of those cannot be read before the
header blocks that wait, since they may need what those do to the table (RFC 9113 4.3): with them everything goes on,
and waiting begins anew. Rule: what waits is bounded, and is in its order. It must not know what becomes of it.
"""

from __future__ import annotations

from serve_asgi.http.h2.frames import (
    CONTINUATION,
    HEADERS,
    MAX_STREAM_ID,
    PRIORITY_UPDATE,
    Frame,
    frame,
    number,
)
from serve_asgi.http.h2.limits import MAX_HELD


class HeldFrames:
    """Of one connection."""

    __slots__ = ("_blocks", "_frames", "_size", "needed")

    def __init__(self, block_under_way: bytes) -> None:
        """`block_under_way`: the frames of a header block that is not whole yet and begins a new request."""
        self._frames = [block_under_way] if block_under_way else []
        self._size = len(block_under_way)
        self._blocks = bool(block_under_way)
        """A header block waits."""
        self.needed = False
        """A stream in progress cannot come to its end before what waits has been read."""

    def takes(self, each: Frame, last: int) -> bool:
        """Leave the frame aside, if it has to wait; `last` is the highest stream that has begun."""
        kind, flags, stream_id, payload = each
        if kind == PRIORITY_UPDATE:
            waits = number(payload) & MAX_STREAM_ID > last
        elif kind in (HEADERS, CONTINUATION):
            waits = self._blocks = self._blocks or stream_id > last
            self.needed = waits and stream_id <= last
        else:
            waits = stream_id > last
        if waits:
            self._frames.append(frame(kind, flags, stream_id, payload))
            self._size += len(payload) + 9
        return waits

    @property
    def full(self) -> bool:
        """Whether more waits than may."""
        return self._size > MAX_HELD

    @property
    def data(self) -> bytes:
        """What waits, as the client has sent it."""
        return b"".join(self._frames)
