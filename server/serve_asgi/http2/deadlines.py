"""When something must have happened on an HTTP/2 connection, and what follows if it has not.

It owns the deadlines of the connection itself, each by its name: an idle one, a frame that has begun to come, a client
that does not read, one that does not answer the first GOAWAY. Those of streams are their handlers'. The worker compares
`deadline`, the earliest of all, once a second. Rules: as for HTTP/1.1 (`serve_asgi.http.timeouts`). It must not know
what the client asks for.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, Protocol

from serve_asgi.http.client_socket import is_readable
from serve_asgi.http.connection_states import IDLE, REQUEST, ConnectionState
from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.receiving import Leaving
from serve_asgi.http.timeouts import PEEK_TIME
from serve_asgi.http.worker_context import WorkerContext
from serve_asgi.http.write_buffer import WriteBuffer
from serve_asgi.http2.stream_dispatch import StreamDispatch

FAREWELL_TIME: Final = 5.0
"""How long (s) a client may take to answer the PING behind the first GOAWAY; then the last stream is said anyway."""

INFINITY: Final = math.inf


class DueConnection(Protocol):
    """The connection, as far as it is told when something is due."""

    deadline: float
    """When `expire()` is due: the earliest of all, those of the streams included; perhaps one that is void."""


class TimedConnection(DueConnection, Protocol):
    """The connection, as far as its deadlines need it."""

    worker: WorkerContext
    core: ConnectionCore
    output: WriteBuffer
    streams: StreamDispatch
    transport: asyncio.Transport
    state: ConnectionState

    def flush(self) -> None:
        """Write what the core has to say."""

    def end_if_over(self) -> bool:
        """End the connection if the last stream has been said, and has ended."""

    def announce_end(self) -> None:
        """Tell the client to begin nothing more here."""

    def finish(self) -> None:
        """Everything is said: end politely."""

    def reset(self) -> None:
        """End at once: the client takes nothing."""


class Deadlines:
    """Of one connection, which has the earliest of them as its `deadline`. All are loop time (CLOCK_MONOTONIC, s), or
    infinity.
    """

    __slots__ = ("_farewell", "_frame", "_unread", "_worker", "_write", "idle")

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self.idle = INFINITY
        """Of a connection on which nothing is in progress."""
        self._frame = INFINITY
        """When a frame that has begun to come must be whole, while nothing is in progress."""
        self._write = INFINITY
        """When the client must have taken something, while the transport takes nothing."""
        self._farewell = INFINITY
        """When the last stream is said, though the client has not answered the first GOAWAY."""
        self._unread = False
        """The connection is idle, and the client had not read everything when that was looked at."""

    def begin(self, connection: TimedConnection, until: float) -> None:
        """The connection begins to be served, and is idle until then at most."""
        connection.deadline = self.idle = until

    def work(self, connection: TimedConnection) -> None:
        """A request is in progress."""
        connection.deadline = self._farewell if self._farewell < self._write else self._write

    def rest(self, connection: TimedConnection) -> None:
        """None is any more, or the client has read the response to the last only now."""
        worker = self._worker
        self.idle = worker.loop.time() + worker.keep_alive
        connection.deadline = min(self.idle, self._farewell, self._write)
        self._frame = INFINITY
        self._unread = False

    def rest_shorter(self, connection: DueConnection, seconds: float) -> None:
        """As long as nothing is asked for, do not wait longer."""
        self.idle = min(self.idle, self._worker.loop.time() + seconds)
        _expect(connection, self.idle)

    def writing_paused(self, connection: TimedConnection) -> None:
        """The client is to take something of what is written in time."""
        connection.output.watch_client()
        self._write = self._worker.loop.time() + self._worker.config.write_timeout
        _expect(connection, self._write)

    def writing_resumed(self) -> None:
        """It has taken enough."""
        self._write = INFINITY

    def frame_arriving(self, connection: TimedConnection, half: bool) -> None:
        """While nothing is in progress: a frame, or a TLS record, has begun to come (`half`), or is whole."""
        if not half:
            self._frame = INFINITY
        elif self._frame == INFINITY:
            self._frame = self._worker.loop.time() + self._worker.config.head_timeout
            _expect(connection, self._frame)

    def farewell(self, connection: TimedConnection) -> None:
        """The first GOAWAY has been said: the second follows, at the latest when its time has passed."""
        self._farewell = self._worker.loop.time() + FAREWELL_TIME
        _expect(connection, self._farewell)

    # ---- what follows

    def expire(self, connection: TimedConnection) -> None:
        """The earliest has passed, in state IDLE or REQUEST."""
        now = self._worker.loop.time()
        if self._write <= now:
            if connection.output.stalled():
                connection.reset()
                return
            self._write = now + self._worker.config.write_timeout
        if self._farewell <= now:  # the second step, though the client has not answered the first one
            self._farewell = INFINITY
            connection.core.finish_shutdown()
            connection.flush()
            connection.end_if_over()
            if connection.state is not IDLE and connection.state is not REQUEST:
                return
        connection.deadline = min(self._farewell, self._write)
        if connection.state is REQUEST:
            _expect(connection, connection.streams.expire(now))
        elif connection.state is IDLE:
            self._idle_expired(connection, now)

    def _idle_expired(self, connection: TimedConnection, now: float) -> None:
        """The client asks for nothing, or has not begun as it must, or has not read what it has asked for."""
        output = connection.output
        due = min(self.idle, self._frame)
        if now < due:  # the deadline was that of something else, which has ended
            _expect(connection, due)
        elif output.paused:
            pass  # it has its own time
        elif output.unwritten():
            self._unread_expired(connection, now)
        elif not connection.core.settled:
            connection.finish()
        elif is_readable(connection.transport):
            _expect(connection, now + PEEK_TIME)
        elif self._unread:  # its time begins when everything has been read
            self.rest(connection)
        elif connection.core.shutting_down is Leaving.NO:
            self._frame = INFINITY
            connection.announce_end()

    def _unread_expired(self, connection: TimedConnection, now: float) -> None:
        """Little of the last response waits to be written, and the client takes none of it."""
        if self._unread and connection.output.stalled():
            connection.reset()
            return
        if not self._unread:
            connection.output.watch_client()
            self._unread = True
        self.idle = now + self._worker.config.write_timeout
        _expect(connection, self.idle)


def _expect(connection: DueConnection, deadline: float) -> None:
    if deadline < connection.deadline:
        connection.deadline = deadline
