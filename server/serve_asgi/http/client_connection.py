"""What a connection of HTTP/1.1 and one of HTTP/2 have alike: the transport's end of it, and its end.

It owns how a connection is counted with its worker and forgotten, where its client's side is, when its transport is
read, and the steps of its end and of its hand-over that depend on no protocol. Rules: each is counted once, however it
ends; what its transport says is passed on in the state in which it means something. It must not know requests: what
hears of the end (`lose`) is the protocol's own (`serve_asgi.http.connection`, `serve_asgi.http2.connection`).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from serve_asgi.http.client_end import ClientEnd
from serve_asgi.http.client_socket import hang_up
from serve_asgi.http.closing import PoliteClose
from serve_asgi.http.connection_states import CLOSED, CLOSING, NEW, ConnectionState, check_transition
from serve_asgi.http.hand_over import HandOver
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.underlying_tls import UnderlyingTls, tls_of
from serve_asgi.http.worker_context import ClientConnection, WorkerContext, WorkerPhase
from serve_asgi.http.write_buffer import WriteBuffer
from serve_asgi.ipc.peer_address import Address, own_end_of, peer_of
from serve_asgi.ipc.scoreboard import Cell

_CONNECTIONS: Final = int(Cell.CONNECTIONS)
_TLS_NOT_MOVED: Final = int(Cell.TLS_NOT_MOVED)
_RETIRING: Final = frozenset({WorkerPhase.HANDING_OVER, WorkerPhase.CLOSING})


class HttpConnection(ClientEnd, asyncio.Protocol):
    """One client connection; see `serve_asgi.http.worker_context.ClientConnection` for what the worker asks of it."""

    __slots__ = (
        "_closing",
        "deadline",
        "eof",
        "hand_over",
        "output",
        "state",
        "transport",
        "worker",
    )

    transport: asyncio.Transport
    deadline: float
    """Loop time (s), or infinity: the protocol's own."""

    def __init__(self, worker: WorkerContext, hand_over: HandOver) -> None:
        self.worker = worker
        self.output = WriteBuffer(worker)
        self.hand_over = hand_over
        self._closing: PoliteClose | None = None
        self.client: Address = None
        self.server: Address = None
        """Both are asked of the transport in `connection_made` unless whoever makes the connection knows them."""
        self.scheme = "http"
        """Of the client's side, as far as the connection itself shows."""
        self.trusted = False
        """Whether the forwarding fields of its requests are believed."""
        self.tls: UnderlyingTls | None = None
        """What stands between the socket and this connection; None if that is nothing."""
        self.state = NEW
        self.number = 0
        """By which the applications' calls find it: `serve_asgi.http.worker_context.WorkerContext.numbered`."""
        self.eof = False
        """The client has shut down its write side. It may still read: what it has sent whole is answered."""
        self.read_paused = False
        self.life = None

    def become(self, state: ConnectionState) -> None:
        """Change the state, by a way that the table has."""
        check_transition(self.state, state)
        self.state = state

    def has_ended(self) -> bool:
        """Whether the client has shut down its side."""
        return self.eof

    # ---- its beginning

    def attach(self, transport: asyncio.BaseTransport, counted: bool = False) -> None:
        """The worker has one connection more, unless it has `counted` this one already."""
        self.transport = self.output.transport = cast(asyncio.Transport, transport)
        self.tls = tls_of(transport)
        worker = self.worker
        worker.connections.add(cast(ClientConnection, self))
        if not counted:
            worker.cells[_CONNECTIONS] += 1
        self.number = worker.number(self)

    def take_ends_from(self, record: HandOverRecord) -> None:
        """The two ends are those of a connection that another worker had, or that a balancer has named."""
        self.client, self.server, self.scheme = record.client, record.server, record.scheme
        trusts = self.worker.forwarding.trusts
        self.trusted = trusts(record.client) if record.trusted is None else record.trusted

    def ask_for_ends(self) -> None:
        """The two ends are the transport's, unless whoever made the connection knew them."""
        self.client = self.client or peer_of(self.transport)
        self.server = self.server or own_end_of(self.transport)
        self.trusted = self.worker.forwarding.trusts(self.client)

    # ---- reading

    def switch_reading(self, pause: bool) -> bool:
        """Pause reading, or read on. Whether that changed anything: it does not once the client has ended its side."""
        if pause is self.read_paused or self.transport.is_closing() or self.eof:
            return False
        self.read_paused = pause
        if pause:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
        return True

    def adjust_reading(self) -> None:
        """Pause reading while too much has arrived that nobody has taken, or while leaving; read on otherwise."""
        raise NotImplementedError

    # ---- its end

    def lose(self) -> None:
        """Nothing is heard of the client any more: whoever works for it is told, and nobody waits."""
        raise NotImplementedError

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by either side."""
        if self.state is CLOSING and self._tls_stays() and self.worker.phase in _RETIRING:
            self.worker.cells[_TLS_NOT_MOVED] += 1
        if self.state is not CLOSED:
            hang_up(self.transport)  # unless that is done, or not ours to do
            self.state = CLOSED
        self.lose()
        output = self.output
        output.paused = False
        output.drop_held()
        output.wake_writers()
        self.forget()

    def forget(self) -> None:
        """The worker has one connection less."""
        worker, this = self.worker, cast(ClientConnection, self)
        if this in worker.connections:
            worker.cells[_CONNECTIONS] -= 1
            worker.numbered.pop(self.number, None)
            worker.forget(this)

    def finish_politely(self) -> None:
        """Everything is said, in state CLOSING: end so that the client gets it all."""
        closing = self.begin_closing()
        if self.transport.is_closing():
            closing.close()
        else:
            if self.read_paused:
                self.adjust_reading()
            closing.shut_down()
        self.deadline = closing.deadline

    def begin_closing(self) -> PoliteClose:
        """Write what is held, in state CLOSING; the steps that follow."""
        self.output.flush()
        self._closing = closing = PoliteClose(self.worker, self.output, self.eof)
        return closing

    def drop_received(self, size: int) -> None:
        """In state CLOSING: the client still sends."""
        if self._closing is not None:
            self._closing.received(size)

    def go_on_closing(self) -> None:
        """In state CLOSING: the transport has written everything."""
        if self._closing is not None and self.state is CLOSING:
            self._closing.flushed()
            self.deadline = self._closing.deadline

    def expire_closing(self) -> None:
        """In state CLOSING: the deadline has passed."""
        if self._closing is not None:
            self._closing.expire()
            self.deadline = self._closing.deadline

    def awaits_end_of_writing(self) -> bool:
        """In state CLOSING, as the client ends its side: whether the transport still has something to write."""
        return self._closing is not None and not self._closing.lingering

    def let_go(self, instead: Any) -> asyncio.Transport:
        """In a forked child: see `serve_asgi.http.worker_context.ClientConnection`."""
        transport, self.transport, self.output.transport = self.transport, instead, instead
        return transport

    # ---- its hand-over

    def _tls_stays(self) -> bool:
        return self.tls is not None and self.tls.stays()

    def is_stationary(self) -> bool:
        """Whether no other process could go on with it (TLS 1.2, or refused): it ends when this worker does."""
        return self.hand_over.refused or (self.tls is not None and self.tls.stays())

    def refused_for_good(self) -> None:
        """Nobody can go on with it: while the worker retires, the client is told to leave. `remain()` follows."""
        self.hand_over.refused = self.worker.phase in _RETIRING

    def is_written(self) -> bool:
        """Whether the kernel has every byte, and the transport is open: with that it could leave."""
        return (
            not self.transport.is_closing()
            and self.output.unwritten() == 0
            and (self.tls is None or self.tls.can_move())
        )
