"""The PROXY protocol in front of HTTP: a balancer says first whose connection it is.

It owns a connection from accept to the end of that header, then gives its transport to an `Http1Connection` which has
the client's address. Rules: with --proxy-protocol every connection begins with the header, and only balancers that are
allowed may send one (proxy-protocol.txt, section 2); what is no header is closed without an answer, since nobody knows
what speaks at the other end; half a header travels with a hand-over like half a head. It must not know the grammar,
which is `serve_asgi.http.proxy_protocol_header`'s, nor what follows.

Forwarding fields are believed, or not, by the client that the header names: a client that comes through a balancer of
connections cannot say who it is, and a proxy behind one can.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Final, cast

from serve_asgi.config.trusted_proxies import TrustedNetworks
from serve_asgi.http.client_socket import is_readable
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.connection_lifecycle import FLUSHING, IDLE, INFINITY, LEAVING, PEEK_TIME, Lifecycle, State
from serve_asgi.http.hand_over_record import TravelRecord
from serve_asgi.http.proxy_protocol_header import Kind, Malformed, ProxyHeader, parse
from serve_asgi.http.worker_context import Phase, Service
from serve_asgi.ipc.address import Address, own_end_of, peer_of
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.server_log import about

LINE_EVERY: Final = 10.0
"""Seconds between two lines of the log on connections that were closed; the others are counted."""

_CONNECTIONS: Final = int(Cell.CONNECTIONS)

log: Final = logging.getLogger("serve")

Opening = Callable[[TravelRecord | None], "Http1Connection | ProxyConnection"]


def opening(service: Service) -> Opening:
    """What makes the first protocol of each connection: of a new one (None), or of one that another worker left."""
    if not service.config.proxy_protocol:
        return functools.partial(Http1Connection, service)
    balancers = Balancers(service)

    def make(record: TravelRecord | None) -> Http1Connection | ProxyConnection:
        if record is None or record.awaits_proxy:
            return ProxyConnection(service, balancers, record)
        return Http1Connection(service, record)

    return make


class Balancers:
    """Who may send the header, and the log of those who were closed."""

    __slots__ = ("_loop", "_next_line", "_unsaid", "may_connect")

    def __init__(self, service: Service) -> None:
        self.may_connect = TrustedNetworks(service.config.proxy_protocol_allow_ips).trusts
        self._loop = service.loop
        self._next_line = -INFINITY
        self._unsaid = 0

    def report(self, peer: Address, why: str) -> None:
        """Log that a connection was closed, or count it if another one was logged just now."""
        now = self._loop.time()
        if now < self._next_line:
            self._unsaid += 1
            return
        who = "a unix socket" if peer is None else peer[0]
        more = f"; and {self._unsaid} others since the last such line" if self._unsaid else ""
        log.info(
            "closed a connection from %s: %s%s", who, why, more, extra=about("proxy_refused", peer=who, reason=why)
        )
        self._next_line, self._unsaid = now + LINE_EVERY, 0


class ProxyConnection(Lifecycle):
    """A connection whose header has not come yet; `serve_asgi.http.worker_context.Connection` to the worker.

    With a `record` it goes on where another worker left: the leftover is the beginning of the header.
    """

    __slots__ = ("_balancers", "read_paused")

    def __init__(self, service: Service, balancers: Balancers, record: TravelRecord | None) -> None:
        super().__init__(service, record)
        self._balancers = balancers
        self.read_paused = False

    # ---- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attached: wait for the header, or go on waiting."""
        self.transport = self.output.transport = cast(asyncio.Transport, transport)
        service = self.service
        service.connections.add(self)
        service.cells[_CONNECTIONS] += 1
        self._become(IDLE)
        self.client = self.client or peer_of(transport)
        self.server = self.server or own_end_of(transport)
        record, self._record = self._record, None
        if record is not None:
            self._buffer += record.leftover
            self.deadline = record.deadline
        else:
            self.deadline = service.loop.time() + service.config.proxy_protocol_timeout
            if not self._balancers.may_connect(self.client):
                self._turn_away("its address is not in --proxy-protocol-allow-ips")
                return
        if service.phase is not Phase.SERVING:
            service.loop.call_soon(self._settle)

    def data_received(self, data: bytes) -> None:
        """Bytes from the balancer, and perhaps from the client behind them."""
        self.service.received += len(data)
        if self.state is IDLE or self.state is LEAVING:  # LEAVING: nothing is lost if it stays after all
            self._buffer += data
            self._look()

    def eof_received(self) -> bool:
        """The other side has ended: there will be no whole header. A hand-over that is under way decides first."""
        self.eof = True
        return self.state is LEAVING

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by whichever side."""
        self._lost()
        self.deadline = INFINITY
        self._buffer.clear()
        self._close_books()

    # ---- the header

    def _look(self) -> None:
        """Go on as soon as the header is whole."""
        if self.state is not IDLE:
            return
        try:
            header = parse(bytes(self._buffer))
        except Malformed as why:
            self._turn_away(str(why))
            return
        if header is not None:
            self._serve(header)
        elif self.eof:
            self._close()

    def _serve(self, header: ProxyHeader) -> None:
        """Give the transport to HTTP, as if it were a connection of the client that the header names."""
        service, transport = self.service, self.transport
        client, server, trusted = self.client, self.server, False
        if header.kind is Kind.CLIENT:
            client, server = header.client, header.server
        if header.kind is not Kind.UNNAMED:  # nobody is trusted whom nobody names
            trusted = service.forwarding.trusts(client)
        leftover = bytes(self._buffer[header.size :])
        self._buffer.clear()
        deadline = service.loop.time() + service.config.first_byte_timeout
        scheme = "https" if header.secure else "http"
        http = Http1Connection(service, TravelRecord(leftover, client, server, deadline, 0, scheme, trusted))
        http.eof = self.eof
        self._become(State.UPGRADED)
        self.deadline = INFINITY
        transport.set_protocol(http)
        http.connection_made(transport)
        service.connections.discard(self)
        service.cells[_CONNECTIONS] -= 1

    def _turn_away(self, why: str) -> None:
        self._balancers.report(self.client, why)
        self._become(FLUSHING)
        self.deadline = INFINITY
        self.transport.abort()

    def _expire_idle(self) -> None:
        """The header has not come in time."""
        if is_readable(self.transport):
            self.deadline = self.service.loop.time() + PEEK_TIME
        else:
            self._turn_away("its PROXY protocol header did not arrive in time (--proxy-protocol-timeout)")

    # ---- hand-over

    def adjust_reading(self) -> None:
        """Read unless the connection is leaving."""
        pause = self.state is LEAVING
        if pause is not self.read_paused and not self.transport.is_closing() and not self.eof:
            self.read_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def retire(self) -> None:
        """The worker's phase has left SERVING: leave if there is anybody to go to; otherwise the header is awaited."""
        self._settle()

    def _settle(self) -> None:
        service = self.service
        if self.state is IDLE and service.phase is Phase.TRAVELLING and service.departure is not None:
            service.departure(self)

    def leave(self) -> tuple[int, TravelRecord]:
        """As any connection leaves, and the receiver waits for the rest of the header."""
        descriptor, record = super().leave()
        self._record = record = dataclasses.replace(record, awaits_proxy=True)
        return descriptor, record

    def remain(self) -> None:
        """Nobody can take this connection now: the header is awaited here until `retire()` is called again."""

    def _resume(self) -> None:
        self._look()
