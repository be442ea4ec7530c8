"""How much DATA may be on its way, for a stream and for the connection (RFC 9113 5.2, 6.9). Pure.

It owns the arithmetic of windows in both directions and the verdict on a side that breaks it. Rules: what we grant is
bounded by what the application takes: a window grows by what has been consumed and by nothing else; grants are saved up
to half a window, so that small reads cost no frame each. A window in which we may send is a plain number, which
SETTINGS may make negative (RFC 9113 6.9.2). It must not know frames, nor who waits for a window.
"""

from __future__ import annotations

from serve_asgi.http.h2.settings import MAX_WINDOW


def widened(window: int, increment: int) -> int:
    """A window in which we may send, after a WINDOW_UPDATE or a change of its initial size (RFC 9113 6.9.1, 6.9.2).

    Raises OverflowError if it exceeds 2^31-1.
    """
    window += increment
    if window > MAX_WINDOW:
        raise OverflowError("a flow-control window of more than 2^31-1 bytes")
    return window


class ReceiveWindow:
    """What the client may still send, on one stream or on the connection."""

    __slots__ = ("_consumed", "_half", "left", "waiting")

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self._consumed = 0
        """Bytes that were taken, and that the client has not been granted again."""
        self.left = size
        """What it may still send."""
        self.waiting = 0
        """Bytes that have come and that nobody has taken yet."""

    def receive(self, size: int) -> bool:
        """Bytes of a DATA frame have come, padding included; False if they are more than the window had."""
        self.left -= size
        self.waiting += size
        return self.left >= 0

    def consume(self, size: int) -> int:
        """So many of those that wait were taken; returns by how much to open the window now, or 0."""
        self.waiting -= size
        self._consumed += size
        if self._consumed < self._half:
            return 0
        increment, self._consumed = self._consumed, 0
        self.left += increment
        return increment

    def to_json(self) -> list[int]:
        """What travels with the connection."""
        return [self.left, self.waiting, self._consumed]

    def restore(self, values: list[int]) -> None:
        """The reverse. Its size is the sum of the three, whatever the other process was configured with."""
        self.left, self.waiting, self._consumed = values
        self._half = sum(values) // 2
