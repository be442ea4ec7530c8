"""From what an application sends to the fields of a response over HTTP/2 (RFC 9113 8.2, 8.3.2). Pure.

What an application may send, and what the server makes of it, is `serve_asgi.http.response_head`'s: the fields go
through it, so that both protocols send the same and refuse the same with the same words. It owns what is left out over
HTTP/2 (8.2.2): what speaks of the connection, of which there is only one for all responses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.response_head import encode_headers, encode_trailers

_OF_THE_CONNECTION: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)

STATUS_FIELDS: Final[dict[int, Field]] = {status: (b":status", b"%d" % status) for status in range(100, 600)}
"""RFC 9113 8.3.2; 101 is not used (8.6)."""


def response_fields(headers: Iterable[Iterable[bytes]], bodiless: bool) -> tuple[list[Field], int, int]:
    """An application's fields as they are sent, its Content-Length (-1: none given), and its flags (`ResponseFlag`).

    `bodiless` is for statuses that must not have a Content-Length. Raises TypeError or ValueError.
    """
    block, length, flags = encode_headers(headers, bodiless)
    return fields_of_lines(block[2:]), length, flags


def trailer_fields(headers: Iterable[Iterable[bytes]]) -> list[Field]:
    """An application's trailer fields. Raises TypeError or ValueError."""
    return fields_of_lines(encode_trailers(headers)[:-2])


def fields_of_lines(lines: bytes) -> list[Field]:
    """Lines that have been checked, as of HTTP/1.1 and separated by CRLF, as fields; such as Date and Server."""
    fields = []
    for line in lines.split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.lower()
        if name and name not in _OF_THE_CONNECTION:
            fields.append((name, value.strip(b" \t")))
    return fields
