"""The bytes of a response head, whichever parser read the request.

It owns the status lines and the rules for fields that an application may send. It is pure. Rules: nothing that could
end a line gets into the head (RFC 9110 5.5: CR, LF and NUL are refused); the fields that frame the message or rule the
connection are the server's own, made from what the application asked for.
"""

from __future__ import annotations

import enum
import http
import re
import sys
from collections.abc import Iterable
from email.utils import formatdate
from typing import Final


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""


STATUS_LINES: Final = {status: f"HTTP/1.1 {status} {_phrase(status)}".encode() for status in range(200, 600)}
"""Status lines of final responses, without the CRLF (RFC 9112 4). Interim ones are never an application's."""

RESET_CONTENT: Final = 205
NO_CONTENT: Final = frozenset((204, RESET_CONTENT, 304))
"""Statuses of responses without a body (RFC 9110 6.4.1, 15.3.6)."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE: Final = b"connection: close\r\n"

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_MAX_KNOWN: Final = 1024
_prefixes: dict[bytes, bytes] = {}
"""What is written before the value, by the name that the application gave. Names are checked once."""


class ResponseFlag(enum.IntFlag):
    """What the application's fields ask of the connection."""

    NONE = 0
    CLOSE = 1  # connection: close
    CHUNKED = 2  # transfer-encoding: chunked
    DATE = 4  # it gives its own date
    SERVER = 8  # it gives its own server
    TRAILERS = 16  # trailer fields will follow
    BODILESS = 32  # a response of this status has no body (204, 205, 304)


_NONE: Final = int(ResponseFlag.NONE)
_CHUNKED: Final = int(ResponseFlag.CHUNKED)
_SPECIAL: Final = frozenset((b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"date", b"server"))
_LENGTH_PREFIX: Final = b"\r\ncontent-length: "
_FORBIDDEN_TRAILERS: Final = _SPECIAL | {
    b"host",
    b"content-type",
    b"content-encoding",
    b"content-range",
    b"trailer",
    b"te",
}


def encode_headers(headers: Iterable[Iterable[bytes]], bodiless: bool) -> tuple[bytes, int, int]:
    """The application's fields as bytes, each one preceded by CRLF; its Content-Length (-1: none given); its flags.

    `bodiless` is for statuses that must not have a Content-Length (RFC 9110 8.6). Raises TypeError or ValueError.
    """
    pieces: list[bytes] = []
    length, flags = -1, _NONE
    known = _prefixes.get
    for name, value in headers:
        try:
            prefix = known(name)
        except TypeError:  # a bytearray
            name = _bytes(name)
            prefix = known(name)
        if prefix is None:
            lower = name if name == b"content-length" else _checked(name)
            if lower == b"content-length":
                value = _bytes(value).strip(b" \t")
                known_length, length = length, _length(value, length)
                if bodiless or known_length >= 0:  # said twice, sent once (RFC 9110 8.6)
                    continue
                prefix = _LENGTH_PREFIX
            elif lower in _SPECIAL:
                flags |= _special(lower, _bytes(value), pieces)
                continue
            else:
                prefix = b"\r\n" + lower + b": "
                if len(_prefixes) < _MAX_KNOWN:
                    _prefixes[name] = prefix
        pieces += (prefix, value)
    if flags & _CHUNKED and length >= 0:  # as a proxy's application copies the one and its framework adds the other
        length = -1  # RFC 9112 6.1: never both; the chunks are as long as the body is
        if _LENGTH_PREFIX in pieces:
            at = pieces.index(_LENGTH_PREFIX)
            del pieces[at : at + 2]
    try:
        block = b"".join(pieces)
    except TypeError:
        raise TypeError("Response header names and values must be bytes.") from None
    lines = len(pieces) >> 1
    if block.count(b"\n") != lines or block.count(b"\r") != lines or b"\0" in block:
        raise ValueError("A response header value contains CR, LF or NUL.")
    return block, length, flags


def is_immutable(headers: tuple[Iterable[bytes], ...]) -> bool:
    """Whether what equals these headers will always mean the same: pairs of bytes, and no objects of other kinds."""
    return all(type(field) is tuple and type(field[0]) is bytes and type(field[1]) is bytes for field in headers)


def with_field(block: bytes, name: bytes, value: str) -> bytes:
    """The encoded fields `block` with one more, unless the application has given it itself."""
    start = b"\r\n" + name + b": "
    return block if start in block else block + start + value.encode()


def encode_trailers(headers: Iterable[Iterable[bytes]]) -> bytes:
    """Trailer fields, each followed by CRLF (RFC 9110 6.5.1 rules some out). Raises TypeError or ValueError."""
    fields = [(name, value) for name, value in headers]
    for name, _ in fields:
        if isinstance(name, bytes) and name.lower() in _FORBIDDEN_TRAILERS:
            raise ValueError(f"The header {name.decode('latin-1')} cannot be sent as a trailer.")
    block, _, _ = encode_headers(fields, bodiless=False)
    return block[2:] + b"\r\n" if block else b""


def encode_hints(links: Iterable[bytes]) -> bytes:
    """A 103 response with the values of its Link fields (RFC 8297). Raises TypeError or ValueError."""
    block, _, _ = encode_headers([(b"link", link) for link in links], bodiless=False)
    return b"HTTP/1.1 103 Early Hints%b\r\n\r\n" % block if block else b""


def _checked(name: bytes) -> bytes:
    """The name in lower case. Raises TypeError or ValueError."""
    name = _bytes(name)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a response header name.")
    return name.lower()


def _bytes(text: object) -> bytes:
    """A name or value that ASGI has as a byte string; other servers take the kinds that are nearly one too."""
    if isinstance(text, bytes):
        return text
    if isinstance(text, (bytearray, memoryview)):
        return bytes(text)
    raise TypeError(f"Response header names and values must be bytes, not {type(text).__name__}.")


def _length(value: bytes, known: int) -> int:
    if not value.isdigit():
        raise ValueError(f"{value!r} is not a Content-Length.")
    length = int(value)
    if length > sys.maxsize:  # as of a request; more than the compiled core counts to
        raise ValueError(f"{value!r} is too large for a Content-Length.")
    if known not in (-1, length):
        raise ValueError("The response has two different Content-Length headers.")
    return length


def _special(name: bytes, value: bytes, pieces: list[bytes]) -> int:
    """Treat a field that rules the connection; what the client shall see of it is added to `pieces`."""
    if name in (b"date", b"server"):
        pieces += (b"\r\n" + name + b": ", value)
        return ResponseFlag.DATE if name == b"date" else ResponseFlag.SERVER
    if name == b"transfer-encoding":
        coding = value.strip().lower()
        if coding == b"identity":  # of RFC 2616: none
            return ResponseFlag.NONE
        if coding != b"chunked":
            raise ValueError("The only Transfer-Encoding that an application may name is chunked.")
        return ResponseFlag.CHUNKED
    if name == b"connection":
        tokens = [token.strip() for token in value.lower().split(b",")]
        others = [token for token in tokens if token not in (b"close", b"keep-alive", b"")]
        if others:  # such as upgrade, beside a 426
            pieces += (b"\r\nconnection: ", b", ".join(others))
        return ResponseFlag.CLOSE if b"close" in tokens else ResponseFlag.NONE
    return ResponseFlag.NONE  # keep-alive: the server's own


def default_headers(now: float, date: bool, server: bool) -> bytes:
    """The server's own Date and Server lines (RFC 9110 6.6.1, 10.2.4), of which the date is `now` (unix time, s)."""
    lines = []
    if date:
        lines.append(f"date: {formatdate(now, usegmt=True)}\r\n")
    if server:
        lines.append("server: serve\r\n")
    return "".join(lines).encode()


def without(default_headers: bytes, flags: int) -> bytes:
    """The server's own date and server lines, less those that the application gives itself."""
    names = [b"date:"] * bool(flags & ResponseFlag.DATE) + [b"server:"] * bool(flags & ResponseFlag.SERVER)
    lines = default_headers.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.lower().startswith(tuple(names)))


def plain_response(status: int, text: str, default_headers: bytes, connection: bytes, with_body: bool = True) -> bytes:
    """A whole response of the server's own, as text; `connection` is the line that says whether it persists."""
    body = text.encode()
    head = b"%b\r\n%bcontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n%b\r\n" % (
        STATUS_LINES[status],
        default_headers,
        len(body),
        connection,
    )
    return head + body if with_body else head
