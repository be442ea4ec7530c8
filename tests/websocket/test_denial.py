"""The framing of a denial response, as a table: messages of the application, bytes on the wire."""

from __future__ import annotations

from typing import Any

import pytest

from serve_asgi.websocket.denial import Denial

DEFAULTS = b"date: now\r\nserver: s\r\n"


def written(start: dict[str, Any], *bodies: dict[str, Any]) -> bytes:
    denial = Denial(start, DEFAULTS)
    return b"".join(denial.body(body) for body in bodies)


@pytest.mark.parametrize(
    ("start", "bodies", "wire"),
    [
        ({"status": 403}, [{}], b"403 Forbidden\r\n" + DEFAULTS + b"content-length: 0\r\nconnection: close\r\n\r\n"),
        ({"status": 204}, [{"body": b"x"}], b"204 No Content\r\n" + DEFAULTS + b"connection: close\r\n\r\n"),
        ({"status": 599}, [{}], b"599 \r\n" + DEFAULTS + b"content-length: 0\r\nconnection: close\r\n\r\n"),
        (
            {
                "status": 200,
                "headers": [(b"Server", b"own"), (b"Connection", b"keep-alive"), (b"Content-Length", b"2")],
            },
            [{"body": b"a", "more_body": True}, {"body": bytearray(b"b")}],
            b"200 OK\r\nserver: own\r\ncontent-length: 2\r\ndate: now\r\nconnection: close\r\n\r\nab",
        ),
        (
            {"status": 500},
            [{"body": b"a" * 17, "more_body": True}, {"body": b"b"}],
            b"500 Internal Server Error\r\n" + DEFAULTS + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            b"11\r\naaaaaaaaaaaaaaaaa\r\n1\r\nb\r\n0\r\n\r\n",
        ),
    ],
)
def test_bytes_on_the_wire(start: dict[str, Any], bodies: list[dict[str, Any]], wire: bytes) -> None:
    assert written(start, *bodies) == b"HTTP/1.1 " + wire


def test_over_http2_the_end_of_the_stream_ends_it() -> None:
    denial = Denial({"status": 403}, DEFAULTS, chunks=False)
    head = b"HTTP/1.1 403 Forbidden\r\n" + DEFAULTS + b"connection: close\r\n\r\n"
    assert denial.body({"body": b"a", "more_body": True}) + denial.body({"body": b"b"}) == head + b"ab"


@pytest.mark.parametrize(
    ("start", "body", "error"),
    [
        ({}, {}, ValueError),
        ({"status": 101}, {}, ValueError),
        ({"status": "403"}, {}, ValueError),
        ({"status": 403, "headers": [(b"x", b"a\r\nb: c")]}, {}, ValueError),
        ({"status": 403, "headers": [(b"content-length", b"many")]}, {}, ValueError),
        ({"status": 403}, {"body": "text"}, TypeError),
        ({"status": 403, "headers": [(b"content-length", b"1")]}, {"body": b"ab"}, RuntimeError),
        ({"status": 403, "headers": [(b"content-length", b"1")]}, {}, RuntimeError),
    ],
)
def test_what_cannot_be_sent(start: dict[str, Any], body: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        written(start, body)
