"""The PROXY protocol in front of HTTP: a balancer says first whose connection it is.

It owns a connection from accept to the end of that header, then gives its transport to an `Http1Connection` which has
the client's address. Rules: with --proxy-protocol every connection begins with the header, and only balancers that are
allowed may send one (proxy-protocol.txt, section 2); what is no header is closed without an answer, since nobody knows
what speaks at the other end; half a header travels with a hand-over like half a head. It must not know the grammar,
which is `serve_asgi.http.proxy_protocol`'s, nor what follows.

Forwarding fields are believed, or not, by the client that the header names: a client that comes through a balancer of
connections cannot say who it is, and a proxy behind one can.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from serve_asgi.config.trusted_proxies import TrustedNetworks
from serve_asgi.http.client_socket import hang_up, is_readable
from serve_asgi.http.connection_states import (
    CLOSED,
    CLOSING,
    IDLE,
    LEAVING,
    NEW,
    UPGRADED,
    ConnectionState,
    check_transition,
)
from serve_asgi.http.hand_over import HandOver
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.proxy_protocol import MalformedProxyHeader, ProxyHeader, ProxySource, parse
from serve_asgi.http.timeouts import PEEK_TIME
from serve_asgi.http.underlying_tls import UnderlyingTls
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.ipc.peer_address import Address, own_end_of, peer_of
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.rare_line import RareLine
from serve_asgi.logs.server_log import about

if TYPE_CHECKING:
    from serve_asgi.http.request_timeouts import RequestTimeouts

LINE_EVERY: Final = 10.0
"""Seconds between two lines of the log on connections that were closed; the others are counted."""

_CONNECTIONS: Final = int(Cell.CONNECTIONS)


Follow = Callable[[HandOverRecord, bool], Any]
"""Makes the protocol that takes the transport over, from a record with the client that the header names; whether that
speaks TLS. It is told by `eof` if the client has ended its side already."""


class Balancers:
    """Who may send the header, and the log of those who were closed."""

    __slots__ = ("_line", "may_connect")

    def __init__(self, worker: WorkerContext) -> None:
        self.may_connect = TrustedNetworks(worker.config.proxy_protocol_allow_ips).trusts
        self._line = RareLine(LINE_EVERY)

    def report(self, peer: Address, why: str) -> None:
        """Log that a connection was closed, or count it if another one was logged just now."""
        who = "a unix socket" if peer is None else peer[0]
        self._line.info("closed a connection from %s: %s", who, why, extra=about("proxy_refused", peer=who, reason=why))


class ProxyConnection(asyncio.Protocol):
    """A connection whose header has not arrived yet; `serve_asgi.http.worker_context.ClientConnection` to the worker.

    With a `record` it goes on where another worker left: the leftover is the beginning of the header.
    """

    __slots__ = (
        "_balancers",
        "_buffer",
        "_follow",
        "_hand_over",
        "_secure",
        "_worker",
        "client",
        "deadline",
        "eof",
        "read_paused",
        "server",
        "state",
        "transport",
    )

    transport: asyncio.Transport

    tls: UnderlyingTls | None = None

    def __init__(
        self, worker: WorkerContext, balancers: Balancers, record: HandOverRecord | None, follow: Follow, secure: bool
    ) -> None:
        """`follow` makes the protocol that takes the transport over after the header; `secure`: it speaks TLS."""
        self._worker = worker
        self._balancers = balancers
        self._hand_over = HandOver(record)
        self._follow = follow
        self._secure = secure
        self._buffer = bytearray()
        self.client: Address = None
        self.server: Address = None
        """The real ends: asked of the transport unless whoever makes the connection knows them."""
        self.deadline = math.inf
        self.eof = False
        self.read_paused = False
        self.state = NEW

    def become(self, state: ConnectionState) -> None:
        """Change the state, by a way that the table has."""
        check_transition(self.state, state)
        self.state = state

    # ---- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attached: wait for the header, or keep waiting."""
        self.transport = cast(asyncio.Transport, transport)
        worker = self._worker
        worker.connections.add(self)
        worker.cells[_CONNECTIONS] += 1
        self.become(IDLE)
        self.client = self.client or peer_of(transport)
        self.server = self.server or own_end_of(transport)
        record = self._hand_over.arrived()
        if record is not None:
            self._buffer += record.leftover
            self.deadline = record.deadline
        else:
            self.deadline = worker.loop.time() + worker.config.proxy_protocol_timeout
            if not self._balancers.may_connect(self.client):
                self._turn_away("its address is not in --proxy-protocol-allow-ips")
                return
        if worker.phase is not WorkerPhase.SERVING:
            worker.loop.call_soon(self.retire)

    def data_received(self, data: bytes) -> None:
        """Bytes from the balancer, and perhaps from the client after them."""
        self._worker.received += len(data)
        if self.state is IDLE or self.state is LEAVING:  # LEAVING: nothing is lost if it stays after all
            self._buffer += data
            self._look()

    def eof_received(self) -> bool:
        """The other side has ended: there will be no whole header. A hand-over that is under way decides first."""
        self.eof = True
        return self.state is LEAVING

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by either side."""
        if self.state is not CLOSED:
            hang_up(self.transport)  # unless that is done, or not ours to do
            self.state = CLOSED
        self.deadline = math.inf
        self._buffer.clear()
        self.forget()

    def forget(self) -> None:
        """The worker has one connection less."""
        worker = self._worker
        if self in worker.connections:
            worker.cells[_CONNECTIONS] -= 1
            worker.forget(self)

    # ---- the header

    def _look(self) -> None:
        """Proceed as soon as the header is complete."""
        if self.state is not IDLE:
            return
        try:
            header = parse(bytes(self._buffer))
        except MalformedProxyHeader as why:
            self._turn_away(str(why))
            return
        if header is not None:
            self._serve(header)
        elif self.eof:
            self.become(CLOSING)
            self.deadline = math.inf
            self.transport.close()

    def _serve(self, header: ProxyHeader) -> None:
        """Give the transport to what follows, as if it were a connection of the client that the header names."""
        worker, transport = self._worker, self.transport
        client, server, trusted = self.client, self.server, False
        if header.kind is ProxySource.CLIENT:
            client, server = header.client, header.server
        if header.kind is not ProxySource.UNNAMED:  # nobody is trusted whom nobody names
            trusted = worker.forwarding.trusts(client)
        leftover = bytes(self._buffer[header.size :])
        self._buffer.clear()
        deadline = worker.loop.time() + worker.config.first_byte_timeout
        scheme = "https" if header.secure else "http"
        following = self._follow(HandOverRecord(leftover, client, server, deadline, 0, scheme, trusted), self._secure)
        following.eof = self.eof
        self.become(UPGRADED)
        self.deadline = math.inf
        transport.set_protocol(following)
        following.connection_made(transport)
        worker.connections.discard(self)
        worker.cells[_CONNECTIONS] -= 1

    def _turn_away(self, why: str) -> None:
        self._balancers.report(self.client, why)
        self.become(CLOSING)
        self.deadline = math.inf
        self.transport.abort()

    # ---- what the worker asks of it

    def end_overdue(self, timeouts: RequestTimeouts) -> None:
        """There is none."""

    def asked_at(self) -> float:
        """No request is in progress."""
        return math.inf

    def expire(self) -> None:
        """The header has not arrived in time."""
        self.deadline = math.inf
        if self.state is not IDLE:
            return
        if is_readable(self.transport):
            self.deadline = self._worker.loop.time() + PEEK_TIME
        else:
            self._turn_away("its PROXY protocol header did not arrive in time (--proxy-protocol-timeout)")

    def retire(self) -> None:
        """The worker's phase has left SERVING: leave if there is a worker to go to; otherwise wait for the header."""
        worker = self._worker
        if self.state is IDLE and worker.phase is WorkerPhase.HANDING_OVER and worker.hand_over is not None:
            worker.hand_over(self)

    def resume(self) -> None:
        """The worker serves again: the header is still awaited here."""

    def refused_for_good(self) -> None:
        """Nobody can go on with it: what follows the header is served here."""

    def remain(self) -> None:
        """Nobody can take this connection now: the header is awaited here until `retire()` is called again."""

    def cut(self) -> bool:
        """At the graceful timeout: end at once. True if half a header had arrived."""
        state = self.state
        if state is not IDLE and state is not CLOSING:
            return False
        unfinished = bool(self._buffer)
        self.state = CLOSING
        self.deadline = math.inf
        self._buffer.clear()
        self.transport.abort()
        return unfinished

    def let_go(self, instead: Any) -> asyncio.Transport:
        """In a forked child: see `serve_asgi.http.worker_context.ClientConnection`."""
        transport, self.transport = self.transport, instead
        return transport

    # ---- hand-over; see `Http1Connection`

    def can_leave(self) -> bool:
        """Whether `leave()` is possible now."""
        return self.state is IDLE and not self.eof and not self.transport.is_closing()

    def leave(self) -> tuple[int, HandOverRecord]:
        """As any connection leaves; the receiver waits for the rest of the header."""
        assert self.can_leave(), "leave() needs can_leave()"
        leftover = bytes(self._buffer)
        record = HandOverRecord(leftover, self.client, self.server, self.deadline, 0, trusted=False)
        record = dataclasses.replace(record, awaits_proxy=True, awaits_tls=self._secure)
        return self._hand_over.leave(self, record)

    def stay(self) -> None:
        """The hand-over failed: go on exactly as before."""
        if self._hand_over.stay(self):
            self._worker.loop.call_soon(self._look)

    def gone(self) -> None:
        """The hand-over is committed: drop this end."""
        self._hand_over.commit(self)

    def adjust_reading(self) -> None:
        """Pause reading while leaving, and read on otherwise."""
        pause = self.state is LEAVING
        if pause is not self.read_paused and not self.transport.is_closing() and not self.eof:
            self.read_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
