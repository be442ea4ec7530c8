"""Frames that are left aside, undecoded, while a connection waits to leave for another worker. Pure.

It owns the choice of what waits: whatever begins a new request; every header block behind such a one, since that may
need what the first does to the table (RFC 9113 4.3); and what comes on a stream behind a block that waits. Everything
else is read as always, so that the streams in progress come to their ends. Rule: what waits is bounded, and is in its
order. It must not know what becomes of it.
"""

from __future__ import annotations

from serve_asgi.http.h2.frames import (
    CONTINUATION,
    HEADERS,
    MAX_STREAM_ID,
    PRIORITY_UPDATE,
    WINDOW_UPDATE,
    Frame,
    frame,
    number,
)
from serve_asgi.http.h2.limits import MAX_HELD


class HeldFrames:
    """Of one connection."""

    __slots__ = ("_blocks", "_ending", "_frames", "_size")

    def __init__(self, block_under_way: bytes) -> None:
        """`block_under_way`: the frames of a header block that is not whole yet and begins a new request."""
        self._frames = [block_under_way] if block_under_way else []
        self._size = len(block_under_way)
        self._blocks = bool(block_under_way)
        """A header block waits."""
        self._ending: set[int] = set()
        """Streams in progress whose trailers wait: a reset must not get ahead of them."""

    def takes(self, each: Frame, last: int) -> bool:
        """Leave the frame aside, if it has to wait; `last` is the highest stream that has begun."""
        kind, flags, stream_id, payload = each
        if kind == PRIORITY_UPDATE:
            waits = number(payload) & MAX_STREAM_ID > last
        elif kind in (HEADERS, CONTINUATION):
            waits = self._blocks = self._blocks or stream_id > last
            if waits and stream_id <= last:
                self._ending.add(stream_id)
        else:
            waits = stream_id > last or (stream_id in self._ending and kind != WINDOW_UPDATE)
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
