"""The HTTP response by which an application denies a WebSocket (ASGI extension `websocket.http.response`). Pure.

It owns the framing of that response's body. Rules: the head waits for the first piece of body, so that a short response
is one write with its length; more or less body than was announced is an error and never passed off as whole. The
connection always ends after it.
"""

from __future__ import annotations

from typing import Any

from serve_asgi.http.response_head import CLOSE, NO_CONTENT, RESET_CONTENT, STATUS_LINES, encode_headers, without
from serve_asgi.http.worker_context import Message

START = "websocket.http.response.start"
BODY = "websocket.http.response.body"


class Denial:
    """One response on its way."""

    __slots__ = (
        "_chunked",
        "_chunks",
        "_default_headers",
        "_fields",
        "_left",
        "_started",
        "done",
        "dropped",
        "sent",
        "status",
    )

    def __init__(self, message: Message, default_headers: bytes, chunks: bool = True) -> None:
        """From the message `websocket.http.response.start`. Without `chunks` the end of a stream ends it (HTTP/2).

        Raises RuntimeError, TypeError or ValueError, with a sentence, if the message is not as ASGI has it.
        """
        status: Any = message.get("status")
        if status not in STATUS_LINES:
            raise ValueError(f"{START}: the status is a number from 200 to 599, not {status!r}.")
        self.status: int = status
        bodiless = status in NO_CONTENT
        # RFC 9110 8.6: a 304 may say how long the content of a 200 would be.
        self._fields, length, flags = encode_headers(message.get("headers") or (), bodiless and status != 304)
        self._default_headers = without(default_headers, flags) if flags else default_headers
        self._left = None if length < 0 or bodiless else length
        self._chunks = chunks
        self._chunked = False
        self._started = False
        self.done = False
        self.dropped = False
        """Whether there was a body where the status has none."""
        self.sent = 0
        """Bytes of body given to the client."""

    def body(self, message: Message) -> bytes:
        """The bytes that a message `websocket.http.response.body` puts on the wire; sets `done` at the last.

        Raises RuntimeError if the body is longer or shorter than announced: the connection is to be cut then.
        """
        piece = message.get("body") or b""
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            raise TypeError(f"{BODY}: body is bytes, not {type(piece).__name__}.")
        piece = bytes(piece)
        more = bool(message.get("more_body", False))
        if self.status in NO_CONTENT:
            self.dropped |= bool(piece)
            piece, more = b"", False  # the response is complete with its head, whatever else is sent
        elif self._left is not None:
            self._count(len(piece), more)
        head = b""
        if not self._started:
            self._started = True
            head = self._head(len(piece), more)
        self.sent += len(piece)
        self.done = not more
        if self._chunked:  # RFC 9112 7.1
            chunk = b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
            return head + chunk + (b"" if more else b"0\r\n\r\n")
        return head + piece

    def _count(self, size: int, more: bool) -> None:
        assert self._left is not None
        self._left -= size
        if self._left < 0 or (self._left and not more):
            word = "longer" if self._left < 0 else "shorter"
            raise RuntimeError(f"{BODY}: the body is {word} than its content-length.")

    def _head(self, size: int, more: bool) -> bytes:
        """The response head, framed by the length where it is known, else in chunks."""
        framing = b"content-length: 0\r\n" if self.status == RESET_CONTENT else b""
        if self.status not in NO_CONTENT and self._left is None:
            self._chunked = more and self._chunks
            if not more:
                framing = b"content-length: %d\r\n" % size
            elif self._chunks:
                framing = b"transfer-encoding: chunked\r\n"
        parts = (STATUS_LINES[self.status], self._fields, b"\r\n", self._default_headers, framing, CLOSE, b"\r\n")
        return b"".join(parts)
