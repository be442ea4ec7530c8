"""The body of one request over HTTP/2: what has arrived of it, and what the application has not taken yet.

It owns the way from DATA to the application's `receive`, and `--max-body-size` for a body of unknown length. Rule: the
client is granted as much again as the application has taken, and no more, so that what waits is bounded by the stream's
window (RFC 9113 5.2). It must not know frames: that a body is as long as announced is the core's to judge.
"""

from __future__ import annotations

from collections.abc import Callable

from serve_asgi.http.request_body import RequestBody
from serve_asgi.http.request_head import CHUNKED, BadRequest, Head


class StreamBody(RequestBody):
    """Of a request that has one."""

    __slots__ = ("_limit", "_size", "_taken")

    def __init__(self, head: Head, max_size: int, taken: Callable[[int], None]) -> None:
        """`max_size`: bytes of a body of unknown length, 0 for any. `taken` is told what the application has taken."""
        super().__init__(head, 0, 0)
        self._chunks = None
        self._limit = max_size if head.body == CHUNKED else 0
        self._size = 0
        self._taken = taken

    def feed(self, data: bytes) -> bytes | None:
        """Take what has arrived. Raises BadRequest if the body is larger than allowed."""
        size = len(data)
        self.arrived += size
        self._size += size
        if self._limit and self._size > self._limit:
            raise BadRequest(413, f"The request body is larger than {self._limit} bytes.")
        if self.left > 0:
            self.left -= size
        self._push(data)
        return None

    def resume(self, unread: bytes) -> None:
        """See `RequestBody.resume`; the client has been granted as much again when the earlier life ended."""
        super().resume(unread)
        self._taken = _ignore

    def end(self) -> None:
        """It is whole."""
        self.left = 0
        self.whole = True
        self.awaits_continue = False

    def take(self) -> bytes:
        """All that has arrived and was not taken before; the client may send as much again."""
        size, data = self.unread, RequestBody.take(self)  # `super()` does not work in a method of C
        if size:
            self._taken(size)
        return data


def _ignore(size: int) -> None:
    """Nobody is to be told."""
