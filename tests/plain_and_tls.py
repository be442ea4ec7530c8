"""A server that speaks plain HTTP at one address and TLS at another, and clients of both kinds that are used alike.

A client here is a `socket.socket`, an `ssl.SSLSocket`, or a `CutRecords`; what sends and reads requests takes them all.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.certificates import Authority
from tests.running import PATIENCE, RunningServer, running

AUTHORITY = Authority()
TRUSTING = AUTHORITY.client_context()
TRUSTING.minimum_version = ssl.TLSVersion.TLSv1_3


@contextlib.contextmanager
def serving_both(directory: Path, *arguments: str, **more: Any) -> Iterator[RunningServer]:
    """A server of `directory`'s app:app with a plain and a TLS address."""
    cert, key = AUTHORITY.server("localhost").write(directory)
    binds = ("--bind", "http://127.0.0.1:0", "--bind", "https://127.0.0.1:0")
    files = ("--tls-cert", str(cert), "--tls-key", str(key))
    with running("app:app", *binds, *files, *arguments, directory=directory, bind="", **more) as server:
        yield server


def addresses(server: RunningServer) -> dict[str, tuple[str, int]]:
    """The server's addresses by what they speak: http, https."""
    found = {}
    for each in server.status()["listening"]:
        scheme, _, where = each.partition("://")
        if where:  # a unix socket has no such address
            host, _, port = where.rpartition(":")
            found[scheme] = (host, int(port))
    return found


def plain(server: RunningServer) -> socket.socket:
    """A connection to the plain address."""
    return socket.create_connection(addresses(server)["http"], timeout=PATIENCE)


def secure(server: RunningServer, context: ssl.SSLContext = TRUSTING, first: bytes = b"", **more: Any) -> ssl.SSLSocket:
    """A TLS connection after its handshake, of TLS 1.3 unless `context` says otherwise; `first` is sent before it."""
    raw = socket.create_connection(addresses(server)["https"], timeout=PATIENCE)
    raw.sendall(first)
    return context.wrap_socket(raw, server_hostname="localhost", **more)


class CutRecords(socket.socket):
    """A TLS client on memory BIOs. What it sends may be cut anywhere: within a record, or within its hello.

    Not more of a socket than tests need: `sendall`, `recv`, `settimeout`, `close`.
    """

    def __init__(self, address: tuple[str, int], first: bytes = b"") -> None:
        """Connected, and not a byte sent but `first`."""
        raw = socket.create_connection(address, timeout=PATIENCE)
        super().__init__(fileno=raw.detach())
        self.settimeout(PATIENCE)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = TRUSTING.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        if first:
            super().sendall(first)

    def hello(self) -> bytes:
        """The first flight, for the caller to send."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    def shake_hands(self) -> CutRecords:
        """The rest of the handshake, or all of it; itself."""
        self._converse(self._tls.do_handshake)
        return self

    def sealed(self, content: bytes) -> bytes:
        """The records of `content`, for the caller to send."""
        self._tls.write(content)
        return self._outgoing.read()

    def send_raw(self, data: bytes) -> None:
        """Bytes as they are."""
        super().sendall(data)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """One record, or as many as it takes, whose first byte goes out alone and whose last ones are awaited."""
        records = self.sealed(data)
        cut = 1 + len(records) % 21
        super().sendall(records[:cut], flags)
        super().sendall(records[cut:], flags)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Content; b"" after close_notify. Raises ssl.SSLError for records that are wrong, and for a truncation."""
        found = self._converse(lambda: self._tls.read(size))
        assert isinstance(found, bytes)
        return found

    def _converse(self, step: Any) -> Any:
        while True:
            try:
                found = step()
            except ssl.SSLWantReadError:
                pass
            else:
                if self._outgoing.pending:
                    super().sendall(self._outgoing.read())
                return found
            if self._outgoing.pending:
                super().sendall(self._outgoing.read())
            if data := super().recv(65536):
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
