"""How the body of one response is delimited on the wire (RFC 9112 6.3, RFC 9113 8.1). Pure.

It owns the choice between a length, chunks and the end of the connection, the count of what was announced, and the
bytes of chunks and trailer fields. Rule: a body that is longer or shorter than was announced raises, and changes
nothing. It must not know the connection, nor when anything is written.

A response that is whole in its first message needs none of this (`serve_asgi.http.http1_response`).
"""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import Any, Final

from serve_asgi.http.request_head import Head
from serve_asgi.http.response_head import RESET_CONTENT, ResponseFlag, encode_trailers
from serve_asgi.http.worker_context import Message

KNOWN_SIZES: Final = 1024
"""Sizes of chunks whose first lines are kept."""

_CHUNKED_FLAG: Final = int(ResponseFlag.CHUNKED)
_TRAILERS: Final = int(ResponseFlag.TRAILERS)
_BODILESS: Final = int(ResponseFlag.BODILESS)


class BodyFraming(enum.Enum):
    """What ends the body."""

    NONE = "none"  # there is none on the wire: HEAD, 204, 205, 304
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"  # the end of the connection: HTTP/1.0
    STREAM = "stream"  # the end of the stream: HTTP/2


NONE: Final = BodyFraming.NONE
LENGTH: Final = BodyFraming.LENGTH
CHUNKED: Final = BodyFraming.CHUNKED
CLOSE: Final = BodyFraming.CLOSE
STREAM: Final = BodyFraming.STREAM


class ResponseFraming:
    """Of one response whose head is about to be written."""

    __slots__ = ("_length", "_remaining", "_sent", "_trailer_lines", "field", "kind", "trailers_follow")

    def __init__(self, head: Head, status: int, flags: int, length: int, size: int, more: bool) -> None:
        """The response to `head`, of whose body `size` bytes come first.

        `length` is the application's Content-Length, or -1. Raises RuntimeError if the body is not as long.
        """
        self.field = b""
        """The field of the head that says so, if one is due."""
        self._length = length
        self._remaining = 0
        self._sent = size
        self._trailer_lines = b""
        self.trailers_follow = False
        """Trailer fields that the client did not ask for are not waited for, and ignored when they come."""
        if head.method == "HEAD" or flags & _BODILESS:
            self.kind = NONE
            if status == RESET_CONTENT:  # one without a length would have a body up to the end of the connection
                self.field = b"content-length: 0\r\n"
            elif length < 0 and size and not more and not flags & _BODILESS:
                self.field = b"content-length: %d\r\n" % size  # HEAD: what GET would have said (RFC 9110 9.3.2)
        elif length >= 0:
            if size > length or (size != length and not more):
                raise RuntimeError(wrong_length(size, length))
            self.kind = LENGTH
            self._remaining = length - size
            self.trailers_follow = flags & _TRAILERS != 0 and head.te_trailers and head.version == "2"
        elif head.version == "1.1" and (more or flags & (_TRAILERS | _CHUNKED_FLAG)):
            self.kind = CHUNKED
            self.field = b"transfer-encoding: chunked\r\n"
            self.trailers_follow = flags & _TRAILERS != 0 and head.te_trailers
        elif head.version == "2" and (more or flags & _TRAILERS):
            self.kind = STREAM
            self.trailers_follow = flags & _TRAILERS != 0 and head.te_trailers
        elif more:
            self.kind = CLOSE
        else:
            self.kind = LENGTH
            self.field = b"content-length: %d\r\n" % size

    def travels(self) -> dict[str, Any]:
        """What the next life of the response needs, while more of the body is to come. JSON."""
        return {
            "kind": self.kind.value,
            "length": self._length,
            "remaining": self._remaining,
            "framed": self._sent,
            "trailers_follow": self.trailers_follow,
        }

    @classmethod
    def resumed(cls, values: dict[str, Any]) -> ResponseFraming:
        """From what `travels` has given. Raises LookupError or ValueError for anything else."""
        framing = cls.__new__(cls)
        framing.field = b""
        framing.kind = BodyFraming(values["kind"])
        framing._length, framing._remaining = values["length"], values["remaining"]
        framing._sent, framing.trailers_follow = values["framed"], values["trailers_follow"]
        framing._trailer_lines = b""
        return framing

    def is_full(self) -> bool:
        """Whether as much body has been sent as was announced."""
        return self.kind is LENGTH and not self._remaining

    def advance(self, size: int, more: bool) -> None:
        """`size` further bytes of body. Raises RuntimeError if that is not what was announced."""
        if self.kind is LENGTH:
            if size > self._remaining or (size != self._remaining and not more):
                raise RuntimeError(wrong_length(self._sent + size, self._length))
            self._remaining -= size
            self._sent += size

    def payload(self, body: bytes, more: bool) -> bytes:
        """`body` as it goes over the wire."""
        if self.kind is CHUNKED:  # RFC 9112 7.1
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk if more or self.trailers_follow else chunk + b"0\r\n\r\n"
        return body

    def around(self, size: int, more: bool) -> tuple[bytes, bytes]:
        """What goes before and after `size` bytes of body that come from elsewhere."""
        if self.kind is not CHUNKED:
            return b"", b""
        last = not more and not self.trailers_follow
        return b"%x\r\n" % size if size else b"", (b"\r\n" if size else b"") + (b"0\r\n\r\n" if last else b"")

    def take_trailers(self, message: Message) -> bytes | None:
        """All trailer fields, each followed by CRLF, if this message http.response.trailers is the last; else None.

        Raises TypeError or ValueError.
        """
        self._trailer_lines += encode_trailers(message.get("headers") or ())
        return None if message.get("more_trailers", False) else self._trailer_lines


@lru_cache(KNOWN_SIZES)
def chunk_start(size: int) -> bytes:
    """What stands before a chunk of so many bytes (RFC 9112 7.1); after it comes CRLF."""
    return b"%x\r\n" % size


def wrong_length(size: int, length: int) -> str:
    """What is wrong with a body of `size` bytes."""
    than = "longer" if size > length else "shorter"
    return f"The response body is {than} than its Content-Length: {size} bytes, announced {length}."
