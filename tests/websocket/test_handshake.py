"""The opening handshake as tables, without a connection: requests, and the bytes of the responses to them."""

from __future__ import annotations

from typing import Any

import pytest

from serve_asgi.http.head_parsers import HttptoolsParser
from serve_asgi.http.request_head import Head
from serve_asgi.websocket.handshake import Handshake, HandshakeRefusal, offered_again, open_handshake

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"
ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 1.3
)
DEFAULTS = b"date: now\r\nserver: s\r\n"


def opened(fields: bytes = b"", deflate: bool = True, key: bytes = KEY, version: bytes = VERSION) -> Handshake:
    upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\n"
    head = HttptoolsParser().parse_head(
        b"GET / HTTP/1.1\r\nHost: a\r\n" + upgrade + key + version + fields + b"\r\n",
    )
    return open_handshake(head, deflate)


def test_the_response_of_the_rfc() -> None:
    assert opened().response({}, DEFAULTS) == ANSWER + b"\r\n" + DEFAULTS + b"\r\n"


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ([(b"A", b"b")], b"\r\na: b\r\n" + DEFAULTS),
        ([(b"Connection", b"close"), (b"content-length", b"0")], b"\r\n" + DEFAULTS),
        ([(b"server", b"mine")], b"\r\nserver: mine\r\ndate: now\r\n"),
    ],
)
def test_headers_of_the_application(headers: Any, sent: bytes) -> None:
    assert opened().response({"headers": headers}, DEFAULTS) == ANSWER + sent + b"\r\n"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"headers": [(b"Upgrade", b"x")]}, ValueError),
        ({"headers": [(bytearray(b"Sec-WebSocket-Protocol"), b"x")]}, ValueError),
        ({"headers": [("a", b"b")]}, TypeError),
        ({"subprotocol": "other"}, ValueError),
    ],
)
def test_what_the_application_may_not_accept_with(message: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        opened(b"Sec-WebSocket-Protocol: one, two\r\n").response(message, DEFAULTS)


def test_subprotocols() -> None:
    handshake = opened(b"Sec-WebSocket-Protocol: one, two\r\nSec-WebSocket-Protocol: three\r\n")
    assert handshake.subprotocols == ["one", "two", "three"]
    response = handshake.response({"subprotocol": "two"}, DEFAULTS)
    assert response == ANSWER + b"\r\nsec-websocket-protocol: two\r\n" + DEFAULTS + b"\r\n"


def test_what_was_offered_is_known_again_in_another_life() -> None:
    fields = b"Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Protocol: c\r\n"
    head = HttptoolsParser().parse_head(b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
    assert offered_again(head).subprotocols == ["a", "b", "c"]


def test_compression_is_agreed_on_where_both_want_it() -> None:
    offer = b"Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n"
    agreed = opened(offer)
    assert agreed.deflate is not None
    assert b"\r\nsec-websocket-extensions: permessage-deflate; " in agreed.response({}, DEFAULTS)
    assert opened(offer, deflate=False).deflate is None
    assert opened(b"Sec-WebSocket-Extensions: other\r\n").deflate is None


@pytest.mark.parametrize(
    ("more", "status", "line"),
    [
        ({"key": b""}, 400, b"connection: close\r\n"),
        ({"key": b"Sec-WebSocket-Key: short\r\n"}, 400, b"connection: close\r\n"),
        ({"version": b""}, 400, b"connection: close\r\n"),
        ({"version": b"Sec-WebSocket-Version: 8\r\n"}, 426, b"sec-websocket-version: 13\r\n"),
        ({"fields": b"Sec-WebSocket-Extensions: ;\r\n"}, 400, b"connection: close\r\n"),
    ],
)
def test_a_request_that_is_not_valid_is_refused(more: dict[str, bytes], status: int, line: bytes) -> None:
    with pytest.raises(HandshakeRefusal) as refused:
        opened(**more)  # type: ignore[arg-type]
    response, size = refused.value.response(DEFAULTS)
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert line in response
    assert len(response.partition(b"\r\n\r\n")[2]) == size


@pytest.mark.parametrize("key", [[], [(b"sec-websocket-key", b"nonsense")]])
def test_over_http2_there_is_no_key(key: list[tuple[bytes, bytes]]) -> None:
    fields = [(b"host", b"a"), *key, (b"sec-websocket-version", b"13"), (b"sec-websocket-protocol", b"chat")]
    handshake = open_handshake(Head("CONNECT", b"/", "2", fields, b"/", b""), True)
    assert list(handshake.subprotocols) == ["chat"]
    with pytest.raises(HandshakeRefusal, match="missing Sec-WebSocket-Version"):
        open_handshake(Head("CONNECT", b"/", "2", fields[:-2], b"/", b""), True)
