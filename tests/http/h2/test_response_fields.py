"""The fields of responses (RFC 9113 8.2, 8.3.2): what HTTP/1.1 would send, less what speaks of the connection."""

from __future__ import annotations

import pytest

from serve_asgi.http.h2.response_fields import STATUS_FIELDS, fields_of_lines, response_fields, trailer_fields
from serve_asgi.http.response_head import ResponseFlag, default_headers


def test_names_are_in_lower_case() -> None:
    fields, length, flags = response_fields([(b"Content-Type", b"text/plain"), (b"X-A", b"b: c"), (b"x-a", b"")], False)
    assert fields == [(b"content-type", b"text/plain"), (b"x-a", b"b: c"), (b"x-a", b"")]
    assert (length, flags) == (-1, 0)


@pytest.mark.parametrize(
    "name", [b"Connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"Upgrade"]
)
def test_what_speaks_of_the_connection_is_left_out(name: bytes) -> None:
    """RFC 9113 8.2.2."""
    value = b"chunked" if name == b"transfer-encoding" else b"close, upgrade"
    assert response_fields([(name, value), (b"x", b"1")], False)[0] == [(b"x", b"1")]


def test_lengths_and_flags() -> None:
    headers = [(b"content-length", b" 3 "), (b"date", b"now"), (b"server", b"mine")]
    fields, length, flags = response_fields(headers, False)
    assert fields == [(b"content-length", b"3"), (b"date", b"now"), (b"server", b"mine")]
    assert length == 3
    assert flags == ResponseFlag.DATE | ResponseFlag.SERVER
    assert response_fields(headers[:1], True) == ([], 3, 0)


@pytest.mark.parametrize("field", [(b"x y", b"1"), (b":status", b"1"), (b"x", b"1\r\ny: 2"), (b"x", b"\0")])
def test_what_cannot_be_sent(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="header"):
        response_fields([field], False)
    with pytest.raises(TypeError):
        response_fields([("x", "y")], False)  # type: ignore[list-item]


def test_trailers() -> None:
    assert trailer_fields([(b"X-Sum", b"1"), (b"x-b", b"2")]) == [(b"x-sum", b"1"), (b"x-b", b"2")]
    assert trailer_fields([]) == []
    with pytest.raises(ValueError, match="trailer"):
        trailer_fields([(b"content-length", b"1")])


def test_the_servers_own() -> None:
    assert fields_of_lines(default_headers(0, True, True)) == [
        (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
        (b"server", b"serve"),
    ]
    assert STATUS_FIELDS[404] == (b":status", b"404")
