"""The opening handshake of a WebSocket (RFC 6455 4.2, RFC 8441 5), and the HTTP response that refuses one. Pure.

It owns the verdict on the request, the negotiation of permessage-deflate (RFC 7692) and the bytes of the response
heads. Rules: the library judges and negotiates; no header of the application reaches the wire unchecked. Over HTTP/2
the request is a CONNECT without a key, and what is made here is a head as over HTTP/1.1 with status 200, of which
HTTP/2 sends the fields. It must not know the transport or the application.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidHeader
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.headers import parse_subprotocol
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from serve_asgi.http.request_head import Head
from serve_asgi.http.response_head import CLOSE, STATUS_LINES, encode_headers, plain_response, without
from serve_asgi.http.worker_context import Message
from serve_asgi.websocket.compression import Deflate

# The library tells of each connection at INFO, which is the access log's business here.
LOGGER: Final = logging.getLogger("serve.websocket")
LOGGER.setLevel(logging.WARNING)

# A window of 4 KiB takes much less memory for each connection than zlib's default, at nearly the same ratio on messages
# of the usual size; it is the library's own choice too.
DEFLATE: Final = (ServerPerMessageDeflateFactory(server_max_window_bits=12, client_max_window_bits=12),)

SWITCHING_PROTOCOLS: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: "
)

NOT_THE_APPLICATIONS: Final = frozenset(
    (
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"upgrade",
    )
)
"""Headers of the 101 that the server alone answers for."""

WITHOUT_MEANING: Final = frozenset((b"connection", b"content-length", b"keep-alive", b"transfer-encoding"))
"""What a middleware adds to every response, and a 101 cannot have (RFC 9110 8.6, RFC 9112 6.1): dropped."""

VERSION: Final = "sec-websocket-version"
# RFC 6455 4.4; a 426 says what to upgrade to (RFC 9110 15.5.22), for which HTTP/2 has no field.
VERSION_LINES: Final = b"sec-websocket-version: 13\r\nupgrade: websocket\r\nconnection: close, upgrade\r\n"

_UNUSED_KEY: Final = "AAAAAAAAAAAAAAAAAAAAAA=="
"""Over HTTP/2 there is none (RFC 8441 5), and the library wishes to see one."""


class HandshakeRefusal(Exception):
    """There is no WebSocket: the status, and a sentence for the person at the other end."""

    def __init__(self, status: int, reason: str, lines: bytes = CLOSE) -> None:
        """`lines`: header lines of the response, beside those that all have."""
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self._lines = lines

    def response(self, default_headers: bytes) -> tuple[bytes, int]:
        """The whole HTTP response, and the size of its body."""
        text = self.reason + "\n"
        return plain_response(self.status, text, default_headers, self._lines), len(text.encode())


class Handshake:
    """What a valid request asked for."""

    __slots__ = ("accept_key", "deflate", "extensions_header", "subprotocols")

    def __init__(
        self, accept_key: str, extensions_header: str | None, deflate: Deflate | None, subprotocols: list[str]
    ) -> None:
        self.accept_key = accept_key
        """The value of Sec-WebSocket-Accept; empty over HTTP/2."""
        self.extensions_header = extensions_header
        self.deflate = deflate
        """The compression agreed on, if any."""
        self.subprotocols = subprotocols
        """Those that the client offers, in its order of preference."""

    def response(self, message: Message, default_headers: bytes) -> bytes:
        """The 101 response (RFC 6455 4.2.2) for the message `websocket.accept`; over HTTP/2 it is a 200.

        Raises TypeError or ValueError for headers that are not the application's to send or cannot be sent, and
        ValueError if the client has not offered the subprotocol: it would have to fail the connection.
        """
        headers = []
        for name, value in message.get("headers") or ():
            lower = bytes(name).lower() if isinstance(name, (bytes, bytearray, memoryview)) else b""
            if lower in NOT_THE_APPLICATIONS:
                hint = "; use the key subprotocol" if lower == b"sec-websocket-protocol" else ""
                raise ValueError(f"websocket.accept: the header {lower.decode()} is the server's to send{hint}.")
            if lower not in WITHOUT_MEANING:
                headers.append((name, value))
        fields, _, flags = encode_headers(headers, bodiless=True)
        lines = [SWITCHING_PROTOCOLS, self.accept_key.encode()] if self.accept_key else [STATUS_LINES[200]]
        subprotocol = message.get("subprotocol")
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise ValueError(
                    f"websocket.accept: the client offers the subprotocols {self.subprotocols}, not {subprotocol!r}; "
                    'choose one of scope["subprotocols"] or None.'
                )
            lines += (b"\r\nsec-websocket-protocol: ", subprotocol.encode())
        if self.extensions_header is not None:
            lines += (b"\r\nsec-websocket-extensions: ", self.extensions_header.encode())
        lines += (fields, b"\r\n", without(default_headers, flags) if flags else default_headers, b"\r\n")
        return b"".join(lines)


class _Negotiation(ServerProtocol):
    """The library's judgement of a request; the application chooses the subprotocol later."""

    offered: Sequence[Subprotocol] = ()

    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> None:
        self.offered = subprotocols


def open_handshake(head: Head, deflate: bool) -> Handshake:
    """Judge the request of a client that asks for a WebSocket; negotiate compression if `deflate`.

    Raises HandshakeRefusal: 426 for a version other than 13 (RFC 6455 4.4), 400 for anything else that is wrong.
    """
    # That it asks for a WebSocket, by the tokens of Upgrade and Connection, is what brought it here (`Head.websocket`).
    over_http2 = head.method == "CONNECT"
    headers = Headers(upgrade="websocket", connection="upgrade")
    if over_http2:
        headers["sec-websocket-key"] = _UNUSED_KEY
    for name, value in head.headers:
        if name.startswith(b"sec-websocket-") and not (over_http2 and name == b"sec-websocket-key"):
            headers[name.decode("latin-1")] = value.decode("latin-1")
    negotiation = _Negotiation(extensions=DEFLATE if deflate else None, logger=LOGGER)
    request = Request(head.target.decode("latin-1"), headers)
    try:
        accept_key, extensions_header, _ = negotiation.process_request(request)
    except InvalidHandshake as error:
        if isinstance(error, InvalidHeader) and error.name.lower() == VERSION and headers.get_all(VERSION):
            reason = "This server speaks version 13 of the WebSocket protocol."
            raise HandshakeRefusal(400 if over_http2 else 426, reason, VERSION_LINES) from None
        raise HandshakeRefusal(400, f"The WebSocket handshake is not valid: {error}.") from None
    offered = [str(name) for name in negotiation.offered]
    return Handshake("" if over_http2 else accept_key, extensions_header, _deflate(negotiation), offered)


def offered_again(head: Head) -> Handshake:
    """What the request asked for, once more: of a WebSocket that is open, which has been judged before."""
    fields = [value.decode("latin-1") for name, value in head.headers if name == b"sec-websocket-protocol"]
    return Handshake("", None, None, [str(name) for field in fields for name in parse_subprotocol(field)])


def _deflate(negotiation: ServerProtocol) -> Deflate | None:
    """What the library has agreed on; its own streams are let go."""
    for agreed in negotiation.extensions:
        assert isinstance(agreed, PerMessageDeflate)
        return Deflate(
            server_bits=agreed.local_max_window_bits,
            client_bits=agreed.remote_max_window_bits,
            server_takeover=not agreed.local_no_context_takeover,
            client_takeover=not agreed.remote_no_context_takeover,
        )
    return None
