"""The body of one request: what has arrived of it, and what the application has not taken yet. Pure.

It owns the bytes between the connection and the application's `receive`, the count of what is still to come, and the
limits of RFC 9112 6.3 and `--max-body-size` on the way. Rules: no byte after the body is kept (`feed` gives it back);
what is held is the body's bytes and no more, however small the pieces. It must not know sockets, tasks or ASGI.
"""

from __future__ import annotations

from typing import Final

from serve_asgi.http.chunked_body import ChunkReader
from serve_asgi.http.request_head import CHUNKED, Head

DISCARD_LIMIT: Final = 65536
"""An unread body up to this size (bytes) is read and dropped after the response; more ends the connection."""

SMALL_PIECE: Final = 2048
"""Pieces that wait for the application are joined up to this size (bytes): what is held is their content."""


class RequestBody:
    """Of a request that has one."""

    __slots__ = (
        "_chunks",
        "_pieces",
        "arrived",
        "awaits_continue",
        "left",
        "may_continue",
        "unread",
        "whole",
    )

    def __init__(self, head: Head, max_size: int, max_around_chunks: int) -> None:
        """`max_size`: of a body in chunks, 0 for any (a Content-Length has been checked with the head).

        `max_around_chunks`: as for `ChunkReader`.
        """
        self.left = head.body
        """Bytes still to arrive, 0 for none, CHUNKED where only its end will tell."""
        self.whole = False
        """All of it has arrived."""
        self.unread = 0
        """Bytes that have arrived and that the application has not taken."""
        self.arrived = 0
        """Bytes as they came over the wire, since whoever watches the rate has set this to 0."""
        self.awaits_continue = head.expect_continue
        """The client holds the body back until it is told 100, which it has not been."""
        self.may_continue = True
        """It can still be told so: nothing is written of the response."""
        self._pieces: list[bytes] | None = []  # None: nobody takes them
        self._chunks = ChunkReader(max_around_chunks, max_size) if head.body == CHUNKED else None

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes that have arrived; once the body is whole, those after it (perhaps none), else None.

        Raises BadRequest.
        """
        self.arrived += len(data)
        left = self.left
        if left > 0:
            size = len(data)
            if size < left:
                self.left = left - size
                self._push(data)
                return None
            rest = b""
            if size > left:
                rest = data[left:]
                data = data[:left]
            self._push(data)
            self.left = 0
            self.whole = True
            return rest
        return self._feed_chunks(data)

    def _feed_chunks(self, data: bytes) -> bytes | None:
        assert self._chunks is not None
        pieces, rest = self._chunks.feed(data)
        if pieces:
            self._push(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if rest is not None:
            self._chunks = None
            self.left = 0
            self.whole = True
        return rest

    def _push(self, data: bytes) -> None:
        self.awaits_continue = False
        pieces = self._pieces
        if pieces is None:
            return
        if pieces and len(pieces[-1]) + len(data) <= SMALL_PIECE:
            pieces[-1] += data  # an object for each would cost many times its content
        else:
            pieces.append(data)
        self.unread += len(data)

    def take(self) -> bytes:
        """All that has arrived and was not taken before."""
        pieces = self._pieces or ()
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        self.unread = 0
        return data

    def resume(self, unread: bytes) -> None:
        """It has arrived in an earlier life of the request, which has not taken `unread` of it."""
        self._chunks, self.left, self.whole = None, 0, True
        self.awaits_continue = self.may_continue = False
        self._pieces = [unread] if unread else []
        self.unread = len(unread)

    def drop(self) -> None:
        """Nobody takes it any more: what still comes is counted and thrown away."""
        self._pieces = None

    def discardable(self) -> bool:
        """Whether the rest of it is announced, small, and surely on its way.

        A client that expected 100 and got a final status may or may not send its body (RFC 9110 10.1.1), so that nobody
        knows where the next request begins.
        """
        return self.left != CHUNKED and self.left <= DISCARD_LIMIT and not self.awaits_continue
