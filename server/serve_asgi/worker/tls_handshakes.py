"""Client connections whose TLS handshake is under way, and how many of them a worker has.

It owns a connection from accept (or from its PROXY protocol header) to the end of the handshake, then gives it to a
`TlsTransport` with HTTP/1.1 or HTTP/2 above, as ALPN has it. Rules: a connection that says nothing, or not all, ends at
--tls-handshake-timeout, and the oldest one ends earlier where there are too many; signing is what a flood of clients
can cost, so a turn of the loop has few such steps and the requests of the others in between; a handshake cannot move to
another worker: a retiring one finishes it first. Plain HTTP gets a readable answer; everything else that is no TLS gets
an alert, and the log a line now and then. It must not know how a handshake works.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import enum
import math
from typing import TYPE_CHECKING, Any, Final, cast

from serve_asgi.http.client_socket import hang_up
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.ipc.peer_address import Address, own_end_of, peer_of
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.rare_line import RareLine
from serve_asgi.logs.server_log import about
from serve_asgi.tls.alerts import TlsFailure
from serve_asgi.tls.alpn import HTTP_2
from serve_asgi.tls.moved_session import TLS_1_3, TlsInfo
from serve_asgi.tls.server_contexts import ServerContexts
from serve_asgi.tls.session import TlsSession, TlsState
from serve_asgi.tls.transport import TlsTransport

if TYPE_CHECKING:
    from serve_asgi.http.request_timeouts import RequestTimeouts
    from serve_asgi.http2.connection import Http2Connection

STEPS_AT_ONCE: Final = 2
"""Steps of handshakes in one turn of the loop: one takes 0.1 to 1 ms."""
MOST_AT_ONCE: Final = 1024
"""Handshakes under way in one worker; beyond it the oldest one makes room."""
MOST_UNREAD: Final = 65536
"""Bytes of a client that wait for the next step; then reading pauses."""
LAST_WORDS_TIME: Final = 2.0
"""Seconds that a client has to take an alert, or the answer to plain HTTP."""
LINE_EVERY: Final = 10.0
"""Seconds between two lines of the log on handshakes that failed; the others are counted."""
PLAIN_HTTP: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%b"
)
PLAIN_HTTP_TEXT: Final = b"This port speaks HTTPS, and the request was sent without TLS. Use https:// in the address.\n"

CIPHERS: Final = {
    **dict.fromkeys(("AES_128_GCM", "AES128-GCM"), Cell.TLS_AES_128),
    **dict.fromkeys(("AES_256_GCM", "AES256-GCM"), Cell.TLS_AES_256),
    "CHACHA20": Cell.TLS_CHACHA20,
}
"""What is counted, by what OpenSSL's names of cipher suites have in them: those of TLS 1.3 are written another way."""

_CONNECTIONS: Final = int(Cell.CONNECTIONS)


class HandshakeState(enum.Enum):
    """Of a connection, as far as this module has it."""

    HANDSHAKING = "handshaking"
    ENDING = "ending"  # the last words are written; waiting for the client to take them
    OVER = "over"  # the connection belongs to somebody else, or to nobody


HANDSHAKING: Final = HandshakeState.HANDSHAKING
ENDING: Final = HandshakeState.ENDING
OVER: Final = HandshakeState.OVER


class TlsHandshakes:
    """Those of one worker."""

    def __init__(self, worker: WorkerContext, contexts: ServerContexts) -> None:
        self.worker = worker
        self.contexts = contexts
        self._under_way: dict[HandshakingConnection, None] = {}  # the oldest first
        self._steps_left = STEPS_AT_ONCE
        self._turn_ends = False  # is scheduled
        self._waiting: collections.deque[HandshakingConnection] = collections.deque()
        self._line = RareLine(LINE_EVERY)

    def connection(self, record: HandOverRecord | None = None) -> HandshakingConnection:
        """A new one; `record` has what a PROXY protocol header has said."""
        return HandshakingConnection(self, record)

    def begin(self, connection: HandshakingConnection) -> None:
        """One more; the oldest one ends if there are too many."""
        if len(self._under_way) >= MOST_AT_ONCE:
            oldest = next(iter(self._under_way))
            self.count_failure()
            self.report(oldest.client, f"more than {MOST_AT_ONCE} handshakes are under way, and it was the oldest")
            oldest.end_at_once()
        self._under_way[connection] = None

    def end(self, connection: HandshakingConnection) -> None:
        """It is over."""
        self._under_way.pop(connection, None)

    def step(self, connection: HandshakingConnection) -> None:
        """Have it `advance`, now or when it is its turn."""
        if not self._turn_ends:
            self._turn_ends = True
            self.worker.loop.call_soon(self._next_turn)
        if self._steps_left:
            self._steps_left -= 1
            connection.advance()
        else:
            self._waiting.append(connection)

    def _next_turn(self) -> None:
        self._steps_left = STEPS_AT_ONCE
        self._turn_ends = False
        if self._waiting:
            self._turn_ends = True
            self.worker.loop.call_soon(self._next_turn)
        while self._waiting and self._steps_left:
            self._steps_left -= 1
            self._waiting.popleft().advance()

    def count_success(self, info: TlsInfo) -> None:
        """A handshake has succeeded."""
        cells = self.worker.cells
        cells[Cell.TLS_1_3 if info.version == TLS_1_3 else Cell.TLS_1_2] += 1
        for part, cell in CIPHERS.items():
            if part in info.cipher_name:
                cells[cell] += 1
        if info.resumed:
            cells[Cell.TLS_RESUMED] += 1

    def count_failure(self) -> None:
        """A handshake has failed, or was ended."""
        self.worker.cells[Cell.TLS_FAILED] += 1

    def report(self, client: Address, why: str) -> None:
        """Log that a handshake came to nothing, or count it if another one was logged just now."""
        who = "a unix socket" if client is None else client[0]
        self._line.info("closed a connection from %s: %s", who, why, extra=about("tls_failed", peer=who, reason=why))


class HandshakingConnection(asyncio.Protocol):
    """One of them; `serve_asgi.http.worker_context.ClientConnection` to the worker."""

    __slots__ = (
        "_handshakes",
        "_pending",
        "_queued",
        "_reading_paused",
        "_record",
        "_session",
        "_worker",
        "client",
        "deadline",
        "eof",
        "server",
        "state",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, handshakes: TlsHandshakes, record: HandOverRecord | None = None) -> None:
        """`record` has what a PROXY protocol header has said, and as its leftover what the client has sent since."""
        self._handshakes = handshakes
        self._worker = handshakes.worker
        self._record = record
        self._session: TlsSession | None = None  # made when the client has sent something
        self._pending = b"" if record is None else record.leftover
        self._queued = False
        self._reading_paused = False
        self.client: Address = None if record is None else record.client
        self.server: Address = None if record is None else record.server
        """Both are asked of the transport unless whoever makes the connection knows them."""
        self.deadline = math.inf
        self.eof = False
        self.state = HANDSHAKING

    # ---- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attached: wait for the client's hello."""
        self.transport = cast(asyncio.Transport, transport)
        worker = self._worker
        worker.connections.add(self)
        worker.cells[_CONNECTIONS] += 1
        if self._record is None:
            self.client = self.client or peer_of(transport)
            self.server = self.server or own_end_of(transport)
        self.deadline = worker.loop.time() + worker.config.tls_handshake_timeout
        self._handshakes.begin(self)
        if worker.phase is not WorkerPhase.SERVING:
            self.retire()
        if self._pending:
            self._queued = True
            worker.loop.call_soon(self._handshakes.step, self)

    def data_received(self, data: bytes) -> None:
        """The client's part of the handshake."""
        if self.state is not HANDSHAKING:
            return  # the last words are said
        self._pending += data
        if not self._queued:
            self._queued = True
            self._handshakes.step(self)
        if len(self._pending) > MOST_UNREAD and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """The client has ended its side. Who has sent all of the handshake may still be waiting for its turn."""
        self.eof = True
        return self.state is HANDSHAKING and self._queued

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by whichever side."""
        hang_up(self.transport)
        if self.state is HANDSHAKING and self._session is not None:
            self._handshakes.count_failure()
        self._leave()

    # ---- the handshake

    def advance(self) -> None:
        """Take the next step, with what has come."""
        self._queued = False
        if self.state is not HANDSHAKING:
            return
        if self._session is None:
            self._session = TlsSession(self._handshakes.contexts)
        session = self._session
        data, self._pending = self._pending, b""
        content = session.receive(data)
        if session.has_outgoing and not content:
            self.transport.write(session.take_outgoing())
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
        if session.failure is not None:
            self._fail(session.failure)
        elif session.state is TlsState.HANDSHAKING:
            if self.eof:
                self.transport.close()
        else:
            self._open(session, content)

    def _open(self, session: TlsSession, content: bytes) -> None:
        """The handshake is over: the requests can come."""
        worker, transport = self._worker, self.transport
        assert session.info is not None
        self._handshakes.count_success(session.info)
        deadline = worker.loop.time() + worker.config.first_byte_timeout
        trusted = None if self._record is None else self._record.trusted
        record = HandOverRecord(b"", self.client, self.server, deadline, 0, "https", trusted)
        tls = TlsTransport(session, self._above(session.info, record))
        transport.set_protocol(tls)
        tls.connection_made(transport)
        self._leave()
        if content or session.peer_closed or session.holds_half_a_record:
            tls.begin(content)
            worker.loop.call_soon(tls.flush)  # the session tickets go out together with the response, or without it
        if self.eof:
            tls.eof_received()

    def _above(self, info: TlsInfo, record: HandOverRecord) -> Http1Connection | Http2Connection:
        """What speaks the protocol that was agreed on."""
        if info.alpn != HTTP_2:
            return Http1Connection(self._worker, record)
        from serve_asgi.http2.connection import Http2Connection  # who does not speak it does not pay for it

        return Http2Connection(self._worker, record)

    def _fail(self, failure: TlsFailure) -> None:
        self._handshakes.count_failure()
        self._handshakes.report(self.client, failure.reason)
        if failure.plain_http:
            self.transport.write(PLAIN_HTTP % (len(PLAIN_HTTP_TEXT), PLAIN_HTTP_TEXT))
        self.state = ENDING
        self._handshakes.end(self)
        self.deadline = self._worker.loop.time() + LAST_WORDS_TIME
        if self.eof:
            self.transport.close()
        else:
            with contextlib.suppress(OSError):  # asyncio's: the client has reset the connection
                self.transport.write_eof()  # what the client still sends is read: a reset would destroy the last words

    def end_at_once(self) -> None:
        """There is no time, or no room, for it."""
        self.state = ENDING
        self._handshakes.end(self)
        self.deadline = math.inf
        self.transport.abort()

    def _leave(self) -> None:
        """The connection belongs to somebody else from here on, or to nobody."""
        self.state = OVER
        self.deadline = math.inf
        self._handshakes.end(self)
        worker = self._worker
        if self in worker.connections:
            worker.cells[_CONNECTIONS] -= 1
            worker.forget(self)

    # ---- what the worker asks of it

    def end_overdue(self, timeouts: RequestTimeouts) -> None:
        """There is none."""

    def asked_at(self) -> float:
        """No request is in progress."""
        return math.inf

    def expire(self) -> None:
        """The handshake is not over in time, or the last words were not taken."""
        if self.state is HANDSHAKING:
            self._handshakes.count_failure()
            self._handshakes.report(self.client, "its TLS handshake took too long (--tls-handshake-timeout)")
        self.end_at_once()

    def retire(self) -> None:
        """The worker's phase has left SERVING. A handshake cannot move: it is finished here, and moves then.

        Who has not sent a byte is only waited for as long as anybody would notice.
        """
        worker = self._worker
        if self.state is HANDSHAKING and worker.phase is WorkerPhase.CLOSING:
            self.deadline = min(self.deadline, worker.loop.time() + LAST_WORDS_TIME)

    def resume(self) -> None:
        """The worker serves again: the handshake is finished here."""

    def cut(self) -> bool:
        """At the graceful timeout: end at once. Nothing that the client has asked for is lost."""
        if self.state is not OVER:
            self.end_at_once()
        return False

    def let_go(self, instead: Any) -> asyncio.Transport:
        """In a forked child: see `serve_asgi.http.worker_context.ClientConnection`."""
        transport, self.transport = self.transport, instead
        return transport
