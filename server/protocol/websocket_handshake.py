"""The opening handshake of a WebSocket (RFC 6455 4.2), and the HTTP response that refuses one. Pure.

It owns the verdict on the request, the negotiation of permessage-deflate (RFC 7692) and the bytes of the response
heads. Rules: the library judges and negotiates; no header of the application reaches the wire unchecked. It must not
know the transport or the application.
"""

from __future__ import annotations

import http
import re
from collections.abc import Iterable, Sequence
from typing import Final

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidHeader
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from server.protocol.head import Head
from server.protocol.websocket_framing import LOGGER

HeaderList = list[tuple[bytes, bytes]]

# A window of 4 KiB and a memory level of 5 take much less memory for each connection than zlib's defaults, at nearly
# the same ratio on messages of the usual size; they are the library's own choice too.
DEFLATE: Final = (
    ServerPerMessageDeflateFactory(
        server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
    ),
)

# RFC 9110 5.1 and 5.5: a token, and a value without control characters.
NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*").fullmatch

NOT_THE_APPLICATIONS: Final = frozenset(
    (
        b"connection",
        b"content-length",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers of the 101 that the server alone answers for."""

REASONS: Final = {status.value: status.phrase for status in http.HTTPStatus}


class Refusal(Exception):
    """There is no WebSocket: the status, further headers, and a sentence for the person at the other end."""

    def __init__(self, status: int, reason: str, headers: HeaderList | None = None) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.headers = headers or []


class Handshake:
    """What a valid request asked for."""

    __slots__ = ("accept_key", "extensions", "extensions_header", "subprotocols")

    def __init__(
        self, accept_key: str, extensions_header: str | None, extensions: list[Extension], subprotocols: list[str]
    ) -> None:
        self.accept_key = accept_key
        """The value of Sec-WebSocket-Accept."""
        self.extensions_header = extensions_header
        self.extensions = extensions
        self.subprotocols = subprotocols
        """Those that the client offers, in its order of preference."""

    def response(self, subprotocol: str | None, headers: HeaderList, default_headers: bytes) -> bytes:
        """The 101 response (RFC 6455 4.2.2). `headers` are checked ones.

        Raises ValueError if the client has not offered the subprotocol: it would have to fail the connection.
        """
        lines = [
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: ",
            self.accept_key.encode(),
            b"\r\n",
        ]
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise ValueError(
                    f"websocket.accept: the client offers the subprotocols {self.subprotocols}, not {subprotocol!r}; "
                    'choose one of scope["subprotocols"] or None'
                )
            lines += (b"sec-websocket-protocol: ", subprotocol.encode(), b"\r\n")
        if self.extensions_header is not None:
            lines += (b"sec-websocket-extensions: ", self.extensions_header.encode(), b"\r\n")
        lines.append(_fields(headers, default_headers))
        return b"".join(lines)


class _Negotiation(ServerProtocol):
    """The library's judgement of a request; the application chooses the subprotocol later."""

    offered: Sequence[Subprotocol] = ()

    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> None:
        self.offered = subprotocols


def open_handshake(head: Head, deflate: bool) -> Handshake:
    """Judge the request of a client that asks for a WebSocket; negotiate compression if `deflate`.

    Raises Refusal: 426 for a version other than 13 (RFC 6455 4.4), 400 for anything else that is wrong.
    """
    headers = Headers()
    for name, value in head.headers:
        headers[name.decode("latin-1")] = value.decode("latin-1")
    negotiation = _Negotiation(extensions=DEFLATE if deflate else None, logger=LOGGER)
    request = Request(head.target.decode("latin-1"), headers)
    try:
        accept_key, extensions_header, _ = negotiation.process_request(request)
    except InvalidHeader as error:
        if error.name.lower() == "sec-websocket-version" and headers.get_all(error.name):
            upgrade = [(b"sec-websocket-version", b"13"), (b"upgrade", b"websocket")]
            raise Refusal(426, "This server speaks version 13 of the WebSocket protocol.", upgrade) from None
        raise Refusal(400, f"The WebSocket handshake is not valid: {error}.") from None
    except (InvalidHandshake, ValueError) as error:
        raise Refusal(400, f"The WebSocket handshake is not valid: {error}.") from None
    offered = [str(name) for name in negotiation.offered]
    return Handshake(accept_key, extensions_header, negotiation.extensions, offered)


def checked_headers(message_type: str, headers: Iterable[Iterable[bytes]]) -> HeaderList:
    """The application's headers, names in lower case.

    Raises TypeError if they are not pairs of bytes, ValueError if a name or value could break out of its line.
    """
    checked: HeaderList = []
    for pair in headers:
        name, value = pair
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise TypeError(f"{message_type}: headers are pairs of bytes, not ({name!r}, {value!r})")
        if not NAME(name) or not VALUE(value):
            raise ValueError(f"{message_type}: the header ({name!r}, {value!r}) has characters that no header may have")
        checked.append((name.lower(), value))
    return checked


def checked_accept_headers(headers: Iterable[Iterable[bytes]]) -> HeaderList:
    """The application's headers for the 101. Raises as `checked_headers`, and ValueError for what is the server's."""
    checked = checked_headers("websocket.accept", headers)
    for name, _ in checked:
        if name in NOT_THE_APPLICATIONS:
            hint = "; use the key subprotocol" if name == b"sec-websocket-protocol" else ""
            raise ValueError(f"websocket.accept: the header {name.decode()} is the server's to send{hint}")
    return checked


def response_head(status: int, headers: HeaderList, default_headers: bytes) -> bytes:
    """A response head. `headers` are checked ones; what the server sends of its own yields to the application's."""
    reason = REASONS.get(status, "")
    return f"HTTP/1.1 {status} {reason}\r\n".encode() + _fields(headers, default_headers)


def refusal_response(refusal: Refusal, default_headers: bytes) -> tuple[bytes, int]:
    """A whole response that says why there is no WebSocket, and the size of its body."""
    body = f"{refusal.reason}\n".encode()
    options = b"close, upgrade" if refusal.status == 426 else b"close"  # RFC 9110 15.5.22, 7.8
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", options),
        *refusal.headers,
    ]
    return response_head(refusal.status, headers, default_headers) + body, len(body)


def _fields(headers: HeaderList, default_headers: bytes) -> bytes:
    """Header lines and the empty line; a default (date, server) that the application set itself is left out."""
    names = {name for name, _ in headers}
    if default_headers and not names.isdisjoint((b"date", b"server")):
        kept = (
            line for line in default_headers.split(b"\r\n") if line and line.partition(b":")[0].lower() not in names
        )
        default_headers = b"".join(line + b"\r\n" for line in kept)
    return default_headers + b"".join([b"%b: %b\r\n" % pair for pair in headers]) + b"\r\n"
