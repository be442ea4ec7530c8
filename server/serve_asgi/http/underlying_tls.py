"""The TLS under a connection, as far as HTTP has to do with it: whether it can move, and what applications are told.

The transport of a TLS connection shows itself by `get_extra_info("tls")` (`serve_asgi.tls.transport`); any other has
none. Apart from that it is a transport like every other. This module must not know records or handshakes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from serve_asgi.logs.access_log import LoggedTls


class TlsDetails(LoggedTls, Protocol):
    """What was negotiated."""

    @property
    def version(self) -> int:
        """As it stands in the protocol: 0x0304 is TLS 1.3."""

    @property
    def cipher_suite(self) -> int:
        """Its number in IANA's registry; 0 if it is not known."""

    @property
    def server_certificate(self) -> str | None:
        """What the client was shown, in PEM; None if that is not known."""

    @property
    def client_certificates(self) -> Sequence[str]:
        """The client's certificate and its chain, in PEM; empty if it has shown none."""

    @property
    def client_name(self) -> str | None:
        """The subject of the client's certificate, by RFC 4514."""

    @property
    def client_error(self) -> str | None:
        """Why the client's certificate is not to be believed."""


class MovedTlsState(Protocol):
    """What travels with a connection that moves to another process."""

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible values."""


class UnderlyingTls(Protocol):
    """The TLS of one connection."""

    @property
    def info(self) -> TlsDetails:
        """What was negotiated."""

    def flush(self) -> None:
        """Write what it has to say of its own, which waits to go out together with something else."""

    def can_move(self) -> bool:
        """Whether another process can go on with it."""

    def stays(self) -> bool:
        """Whether it could not move at any time of its life (TLS 1.2)."""

    def holds_half_a_record(self) -> bool:
        """Whether the client has begun to send something that cannot be read yet."""

    def move(self) -> MovedTlsState:
        """What that process needs; from now on nothing is read or written here."""

    def unmove(self) -> None:
        """It stays here."""


def tls_of(transport: asyncio.BaseTransport) -> UnderlyingTls | None:
    """The TLS between the socket and this transport's protocol; None if it is plain."""
    tls: UnderlyingTls | None = transport.get_extra_info("tls")
    return tls


def tls_extension(info: TlsDetails) -> dict[str, Any]:
    """`scope["extensions"]["tls"]` (ASGI TLS extension 0.2): plain data, a request's own."""
    return {
        "server_cert": info.server_certificate,
        "client_cert_chain": list(info.client_certificates),
        "client_cert_name": info.client_name,
        "client_cert_error": info.client_error,
        "tls_version": info.version,
        "cipher_suite": info.cipher_suite or None,
    }
