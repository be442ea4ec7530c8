"""The transport of a TLS connection: what a protocol such as HTTP reads and writes in place of the socket's.

It owns the way of the bytes between the transport of the socket, whose protocol it is, and the protocol above it, to
which it looks like any other transport. What the bytes mean is the `TlsSession`'s. Rules: what the session has to say
is written before what follows from it; close() and write_eof() say close_notify before they end anything (RFC 8446
6.1), abort() says nothing; the end of the socket is passed on as an end, whether or not close_notify came before it: of
HTTP, a request that needs the rest is cut then, and one that is whole is served. Back-pressure is the socket's: what
is counted are records.

A connection that moves to another process neither reads nor writes from `move` on; bytes that its loop had read already
are kept for the case that it stays (`unmove`). This module must not know who uses it, nor anything of handshakes: it
begins when they are over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final, cast

from serve_asgi.ipc.peer_address import peer_of
from serve_asgi.logs.rare_line import RareLine
from serve_asgi.logs.server_log import about
from serve_asgi.tls.moved_session import MovedSession, TlsInfo
from serve_asgi.tls.session import TlsSession, TlsState

MOST_CERTIFICATES: Final = 65536
"""Characters of a client's certificates (PEM) that travel: a packet holds 212,960 bytes, and there is more in it."""
ALERT_TIME: Final = 2.0
"""Seconds that a client has to take the alert with which its connection ends."""

LINE_EVERY: Final = 10.0
"""Seconds between two lines of the log on connections that have failed; the others are counted."""

_line: Final = RareLine(LINE_EVERY)
_OPEN: Final = TlsState.OPEN
_MOVED: Final = TlsState.MOVED


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """Above the transport of a socket, below a protocol; see the module.

    Made when the handshake is over, or with a session that another process has moved here; then it is attached to the
    socket by the loop, and calls the protocol's `connection_made` itself.
    """

    __slots__ = ("_eof", "_held", "_protocol", "_stays", "session", "socket")

    socket: asyncio.Transport
    """The transport of the socket, once there is one."""

    def __init__(self, session: TlsSession, protocol: asyncio.Protocol) -> None:
        """`session` is open."""
        self.session = session
        self._protocol = protocol
        certificates = () if session.info is None else session.info.client_certificates
        self._stays = session.stays_with_openssl or sum(map(len, certificates)) > MOST_CERTIFICATES
        self._eof = False  # the protocol has been told of the client's end
        self._held = b""

    @property
    def info(self) -> TlsInfo:
        """What was negotiated."""
        assert self.session.info is not None
        return self.session.info

    # ---- below: what the transport of the socket says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attached to a socket: the protocol is attached too."""
        self.socket = cast(asyncio.Transport, transport)
        self._protocol.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """Records, or parts of them."""
        session = self.session
        content = session.receive(data)
        if session.has_outgoing:
            self.socket.write(session.take_outgoing())
        if content:
            self._protocol.data_received(content)
        if session.holds_half_a_record or not content:
            self._tell_of_record()
        if session.state is not _OPEN or session.peer_closed:
            self._not_open(data)

    def _tell_of_record(self) -> None:
        """Tell a protocol that waits for the client to begin something: see `Http1Connection.record_arriving`."""
        record_arriving = getattr(self._protocol, "record_arriving", None)
        if record_arriving is not None:
            record_arriving(self.session.holds_half_a_record)

    def begin(self, content: bytes) -> None:
        """What the client has sent behind its handshake, which the session has read already."""
        if content:
            self._protocol.data_received(content)
        if self.session.holds_half_a_record:
            self._tell_of_record()
        if self.session.state is not _OPEN or self.session.peer_closed:
            self._not_open(b"")

    def flush(self) -> None:
        """Write what the session has to say of its own, unless that went out with something else."""
        if self.session.has_outgoing and not self.socket.is_closing():
            self.socket.write(self.session.take_outgoing())

    def _not_open(self, data: bytes) -> None:
        session = self.session
        if session.state is _MOVED:
            self._held += data
        elif session.failure is not None:
            self._fail()
        elif session.peer_closed:
            self._end()

    def _fail(self) -> None:
        """The client, or somebody in between, has broken the protocol: after the alert nothing more is read."""
        if not self.socket.is_closing():
            self._report()
            self.socket.close()
            asyncio.get_running_loop().call_later(ALERT_TIME, self.socket.abort)

    def _report(self) -> None:
        """Log it, or count it if another one was logged just now."""
        assert self.session.failure is not None
        peer, why = peer_of(self.socket), self.session.failure.reason
        who = "a unix socket" if peer is None else peer[0]
        _line.info("ended a TLS connection from %s: %s", who, why, extra=about("tls_failed", peer=who, reason=why))

    def _end(self) -> None:
        if not self._eof:
            self._eof = True
            if not self._protocol.eof_received():
                self.close()

    def eof_received(self) -> bool:
        """The client has shut down its side of the socket. The socket stays for what is still to be written."""
        self._end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by whichever side."""
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take what is written."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """It has taken it."""
        self._protocol.resume_writing()

    # ---- above: what a transport is

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Write soon. On a connection that has ended nothing happens."""
        session = self.session
        if session.state is _OPEN:
            self.socket.write(session.send(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        """The same for several pieces, in as few records as possible."""
        session = self.session
        if session.state is _OPEN:
            self.socket.writelines(session.send_pieces(tuple(list_of_data)))

    def write_eof(self) -> None:
        """Nothing more is written: say so, and end the write side of the socket."""
        self._say_closed()
        self.socket.write_eof()

    def can_write_eof(self) -> bool:
        """TLS can: the client may go on sending (RFC 8446 6.1)."""
        return True

    def close(self) -> None:
        """Write what is to be written, say that it is all, and close."""
        if not self.socket.is_closing():
            self._say_closed()
            self.socket.close()

    def _say_closed(self) -> None:
        if self.session.state is _OPEN:
            self.socket.write(self.session.close_notify())

    def abort(self) -> None:
        """Close at once. No close_notify: what was sent is not whole."""
        self.socket.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self.socket.is_closing()

    def pause_reading(self) -> None:
        """`data_received` is not called for what has not been read yet."""
        self.socket.pause_reading()

    def resume_reading(self) -> None:
        """It is called again."""
        self.socket.resume_reading()

    def is_reading(self) -> bool:
        """Whether it is."""
        return self.socket.is_reading()

    def get_write_buffer_size(self) -> int:
        """Bytes of records that the kernel has not taken."""
        return self.socket.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """When the protocol is paused and resumed, in bytes of records: low, high."""
        return self.socket.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Have it paused and resumed at other sizes."""
        self.socket.set_write_buffer_limits(high, low)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Another protocol goes on from here."""
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who it is."""
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Of the socket; "tls" is this transport."""
        return self if name == "tls" else self.socket.get_extra_info(name, default)

    # ---- the move to another process

    def can_move(self) -> bool:
        """Whether another process could go on with it: a TLS 1.3 connection that is open at both sides."""
        return self.session.can_move and not self._stays

    def stays(self) -> bool:
        """Whether it can never move: OpenSSL's for all of its life, or with more certificates than a packet takes."""
        return self._stays

    def holds_half_a_record(self) -> bool:
        """Whether a record has begun to come, and is not whole."""
        return self.session.holds_half_a_record

    def move(self) -> MovedSession:
        """What another process needs. Only while `can_move()`; then `unmove`, or `abort` without another word."""
        return self.session.move()

    def unmove(self) -> None:
        """It stays here, after all."""
        self.session.unmove()
        held, self._held = self._held, b""
        if held:
            self.data_received(held)
