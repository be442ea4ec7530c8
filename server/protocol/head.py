"""The head of a request, and what makes one refusable.

It owns `Head`, the verdict `BadRequest`, and the rules of RFC 9110 and RFC 9112 that hold whichever parser read the bytes.
It is pure: no sockets, no clock, no parser library.
"""

from __future__ import annotations

from typing import Final

CHUNKED: Final = -1
"""`Head.body` of a message in chunked transfer coding."""


class BadRequest(Exception):
    """The client's bytes are refused. `status` is the answer; `reason` is a sentence for the person at the other end."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


class Head:
    """A valid request head."""

    __slots__ = (
        "body",
        "expect_continue",
        "headers",
        "keep_alive",
        "method",
        "path",
        "query",
        "target",
        "te_trailers",
        "version",
        "websocket",
    )

    def __init__(
        self, method: str, target: bytes, version: str, headers: list[tuple[bytes, bytes]], path: bytes, query: bytes
    ) -> None:
        self.method = method
        """As sent; methods are case-sensitive (RFC 9110 9.1)."""
        self.target = target
        """The request-target as sent (RFC 9112 3.2)."""
        self.version = version
        """"1.0" or "1.1"."""
        self.headers = headers
        """Names in lower case, in the order received; repeated names stay repeated."""
        self.path = path
        """The target's path, still percent-encoded; `b"*"` for the asterisk-form."""
        self.query = query
        """The target's query without the question mark, still percent-encoded."""
        self.body = 0
        """Bytes of content announced (Content-Length), 0 for none, or `CHUNKED`."""
        self.keep_alive = version == "1.1"
        """Whether the client lets the connection persist (RFC 9112 9.3)."""
        self.expect_continue = False
        """Whether the client waits for 100 (RFC 9110 10.1.1)."""
        self.te_trailers = False
        """Whether the client takes trailer fields (`TE: trailers`, RFC 9110 10.1.4)."""
        self.websocket = False
        """Whether this is a GET that asks to become a WebSocket (`Upgrade: websocket`)."""
