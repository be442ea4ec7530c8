"""The ends of a WebSocket, and the state, deadline and waiting that they need.

It owns the state, the one deadline, and all that closes: the closing handshake, refusals, the keep-alive, a client that
does not read, the worker's retiring and the graceful timeout. What the application and the client say to each other is
in `websocket`, which derives from this; states and timing are in `websocket_lifecycle`.

How it ends, and what each side is told:

=============================================  ====================  ==================================================
what happens                                   the client gets       the application's `websocket.disconnect`
=============================================  ====================  ==================================================
application sends `websocket.close`            its code              the same code
application returns while the socket is open   1000                  -
application raises while the socket is open    1011                  - (logged with its traceback)
application closes before accepting            403                   1006
application returns or raises before it        500                   - (logged)
client closes                                  its code, echoed      the client's code (1005 if it gave none)
client is gone without a close frame           -                     1006
client breaks the protocol or a limit          1002, 1007, 1009      the same code
client answers no ping                         1011                  1006
client takes nothing for --write-timeout       cut                   1006
worker retires                                 1012 (1001 to stop)   the same code
=============================================  ====================  ==================================================

Messages that came before the client's end are still the application's to answer: the close frame follows when it has
taken them all and asks for more, at the latest after `FINISH_TIMEOUT`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Any, Final

from serve_asgi.http.client_socket import unacknowledged
from serve_asgi.http.request_head import Head
from serve_asgi.http.response import CLIENT_GONE
from serve_asgi.http.worker_context import Message, WorkerContext
from serve_asgi.ipc.address import Address
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.exceptions import exc_info, was_told
from serve_asgi.logs.request_ids import named, of_request, traceparent
from serve_asgi.logs.server_log import about
from serve_asgi.websocket.denial import Denial
from serve_asgi.websocket.framing import End, MessageFraming
from serve_asgi.websocket.handshake import HandshakeRefusal
from serve_asgi.websocket.lifecycle import (
    CLOSE_TIMEOUT,
    CLOSED,
    CLOSING,
    DENYING,
    FINISH_TIMEOUT,
    FINISHING,
    HANDSHAKE,
    LINGER_TIMEOUT,
    LINGERING,
    OPEN,
    TRANSITIONS,
    KeepAlive,
    PingVerdict,
    WebSocketState,
    closing_moment,
)

ERRORS: Final = logging.getLogger("serve.error")

REQUESTS: Final = int(Cell.REQUESTS)
STATUS_1XX: Final = int(Cell.STATUS_1XX)


class Endings(asyncio.Protocol):
    """WebSocketState and ends of one connection. The derived class reads, writes and runs the application."""

    __slots__ = (
        "_answered",
        "_client",
        "_denial",
        "_disconnect",
        "_end",
        "_eof",
        "_framing",
        "_head",
        "_keep_alive",
        "_reading_paused",
        "_receivers",
        "_retire_overdue",
        "_retire_timer",
        "_stalled",
        "_started",
        "_state",
        "_task",
        "_transport",
        "_unsent",
        "_worker",
        "_write_waiters",
        "_writing_paused",
        "deadline",
    )

    def __init__(self, worker: WorkerContext, head: Head, client: Address) -> None:
        self._worker = worker
        self._head = head
        self._client = client
        self.deadline = math.inf
        self._state = HANDSHAKE
        self._transport: asyncio.Transport
        self._framing: MessageFraming
        self._keep_alive: KeepAlive
        self._denial: Denial
        self._end: End
        """In FINISHING: how the client has ended, and the answer to it."""
        self._task: asyncio.Task[None] | None = None
        self._started = 0.0 if worker.access_log is None else time.perf_counter()
        self._receivers: list[asyncio.Future[None]] = []
        self._disconnect: Message | None = None
        """What `receive` returns once the messages before it are read; set when the connection stops being open."""
        self._write_waiters: list[asyncio.Future[None]] = []
        self._reading_paused = False
        self._writing_paused = False
        self._stalled = math.inf
        """While writing is paused: the loop time (s) at which the client must have taken something."""
        self._unsent = 0
        """What the client had not taken when that, the keep-alive or the lingering was last looked at."""
        self._retire_timer: asyncio.TimerHandle | None = None
        self._retire_overdue = False
        """The moment to retire came while the application had not answered: close as soon as it has accepted."""
        self._eof = False
        """The client has shut down its side."""
        self._answered = False
        """Whether the request has got its answer: the 101 or a whole HTTP response."""

    def _write(self, data: bytes) -> None:
        self._worker.sent += len(data)
        self._transport.write(data)

    def _enter(self, state: WebSocketState) -> None:
        assert state in TRANSITIONS[self._state], f"{self._state} -> {state}"
        self._state = state

    def _ended(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._state in (CLOSING, LINGERING, CLOSED) or self._transport.is_closing()

    # Deadlines

    def asked_at(self) -> float:
        """A WebSocket is no request that could be old."""
        return math.inf

    def expire(self) -> None:
        """The deadline has passed: a ping is due or unanswered, or the client did not end the connection in time."""
        now = self._worker.loop.time()
        state = self._state
        if state is OPEN:
            if not self._is_stalled(now):
                self._expire_open(now)
        elif state is DENYING:
            if not self._is_stalled(now):
                self.deadline = self._stalled
        elif state is FINISHING:
            self._finish()
        elif state is CLOSING:
            self._linger()
        elif state is LINGERING:
            unsent = unacknowledged(self._transport)
            if unsent and unsent != self._unsent:  # a slow client still reads the last of its answer
                self._unsent = unsent
                self.deadline = now + LINGER_TIMEOUT
            else:
                self._transport.abort()

    def _expire_open(self, now: float) -> None:
        keep_alive = self._keep_alive
        pulse = PingVerdict.REST
        if now >= keep_alive.deadline:
            unsent = unacknowledged(self._transport)
            behind = 0 < unsent < self._unsent  # a slow client still takes what was written before the ping
            pulse = keep_alive.expire(now, deaf=self._reading_paused or behind, mute=self._writing_paused)
            if not self._writing_paused:
                self._unsent = unsent
        self.deadline = min(self._stalled, keep_alive.deadline)
        if pulse is PingVerdict.PING:
            self._write(self._framing.ping())
        elif pulse is PingVerdict.DEAD:
            self._write(self._framing.fail(1011, "keep-alive ping timeout"))
            self._tell_disconnect(1006, "")
            self._linger()

    def _is_stalled(self, now: float) -> bool:
        """Whether the client has taken nothing of what is written to it for too long; then it is cut."""
        if now < self._stalled:
            return False
        unsent = unacknowledged(self._transport)
        if unsent < self._unsent:
            self._unsent = unsent
            self._stalled = now + self._worker.config.write_timeout
            return False
        self._transport.abort()
        self._tell_disconnect(1006, "")
        return True

    def pause_writing(self) -> None:
        """The transport has more to write than it likes."""
        self._writing_paused = True
        if self._state is OPEN or self._state is DENYING:
            worker = self._worker
            self._unsent = unacknowledged(self._transport)
            self._stalled = worker.loop.time() + worker.config.write_timeout
            self.deadline = min(self.deadline, self._stalled)

    def resume_writing(self) -> None:
        """The transport has caught up."""
        self._writing_paused = False
        self._stalled = math.inf
        if self._state is OPEN:
            self.deadline = self._keep_alive.deadline
        elif self._state is DENYING:
            self.deadline = math.inf
        self._wake(self._write_waiters)

    # Ending

    def _client_ends(self, end: End, unread: bool) -> None:
        """The client has closed or broken a rule. `unread`: messages before it wait for the application."""
        self._end = end
        if unread:
            self._enter(FINISHING)
            self._cancel_retirement()
            self.deadline = self._worker.loop.time() + FINISH_TIMEOUT
            self._pause_reading()
        else:
            self._finish()

    def _finish(self) -> None:
        """Answer the client's end."""
        end = self._end
        if end.answer and not self._transport.is_closing():
            self._write(end.answer)
        self._tell_disconnect(end.code, end.reason)
        self._linger()

    def _close(self, code: int, reason: str) -> None:
        """Begin the closing handshake (RFC 6455 7.1.2), or end it if the client has begun.

        Raises ValueError for a code or reason that cannot be sent.
        """
        frame = self._framing.close(code, reason)
        if self._state is FINISHING:
            self._finish()
            return
        self._write(frame)
        self._enter(CLOSING)
        self.deadline = self._worker.loop.time() + CLOSE_TIMEOUT
        self._cancel_retirement()
        self._tell_disconnect(code, reason)
        self._resume_reading()
        if self._framing.behind:
            self._worker.loop.call_soon(self._seek_end)

    def _seek_end(self) -> None:
        """Look for the client's close frame in what has come and was not read yet."""
        raise NotImplementedError

    def _refuse(self, refusal: HandshakeRefusal) -> None:
        """Answer the request with an HTTP error."""
        response, size = refusal.response(self._worker.default_headers)
        self._count(refusal.status, size)
        self._write(response)
        self._tell_disconnect(1006, "")
        self._linger()

    def _application_returned(self) -> None:
        """The application is done; one that leaves its socket open means it to end well."""
        if self._state is OPEN or self._state is FINISHING:
            self._close(1000, "")
        elif self._state is HANDSHAKE or self._state is DENYING:
            self._report("returned without answering", "request_unanswered")
            self._application_failed()

    def _application_failed(self) -> None:
        try:
            if self._state is OPEN or self._state is FINISHING:
                self._close(1011, "")
            elif self._state is HANDSHAKE:
                self._refuse(HandshakeRefusal(500, "Internal Server Error"))
            elif self._state is DENYING:
                self._transport.abort()
        except BaseException as error:
            self._transport.abort()
            text = "a WebSocket could not be ended, and its connection was closed; please report this"
            logging.getLogger("serve").error(text, exc_info=exc_info(error), extra=about("internal_error"))

    def _linger(self) -> None:
        """All is said: shut down our side and wait for the client's end (closing with unread bytes would reset)."""
        self._enter(LINGERING)
        self._cancel_retirement()
        self.deadline = self._worker.loop.time() + LINGER_TIMEOUT
        self._resume_reading()
        transport = self._transport
        if transport.is_closing():
            return
        if transport.can_write_eof() and not self._eof:
            self._unsent = unacknowledged(transport)
            transport.write_eof()
        else:
            transport.close()

    def _tell_disconnect(self, code: int, reason: str) -> None:
        """Let the application know, once, after the messages that came before."""
        if self._disconnect is None:
            self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._wake(self._receivers)

    def _count(self, status: int, size: int) -> None:
        """Count and log the answer to the request; status 0: nobody has had a whole one."""
        self._answered = True
        worker = self._worker
        worker.cells[REQUESTS] += 1
        if status:
            worker.cells[STATUS_1XX + status // 100 - 1] += 1
        if worker.access_log is not None:
            worker.access_log.record(self._client, self._head, status or CLIENT_GONE, size, self._started, self)

    def _report(self, what: str, event: str, error: BaseException | None = None) -> None:
        """Log what the application did wrong, and at which request."""
        path = self._head.path.decode("latin-1")
        request_id, trace = self.identity(), traceparent(self._head.headers)
        ERRORS.error(
            "The application %s the WebSocket %s%s",
            what,
            path,
            named(request_id, trace),
            exc_info=None if error is None or was_told(error) else exc_info(error),
            extra=about(event, **of_request(self._head.method, path, request_id, trace)),
        )

    # What some formats of the access log ask for (serve_asgi.logs.access_lines.LoggedResponse)

    def peer(self) -> Address:
        """Who is connected."""
        return self._client

    def client_scheme(self) -> str:
        """What the client speaks."""
        return "ws"

    def identity(self) -> str:
        """The request's id, or ""."""
        return self._worker.request_ids.carried(self._head.headers)

    def response_header(self, name: bytes) -> bytes:
        """Not kept for WebSockets."""
        return b""

    # The worker's side

    def retire(self) -> None:
        """The worker retires: close at a random moment of the window that the configuration names.

        The one timer of its own that a connection has: the tick of a second would let the clients come back in bursts.
        """
        if self._retire_timer is not None or self._state in (FINISHING, CLOSING, LINGERING, CLOSED):
            return
        worker = self._worker
        moment = closing_moment(worker.config, worker.loop.time(), worker.retire_deadline)
        if moment != math.inf:
            self._retire_timer = worker.loop.call_at(moment, self._retired)

    def _retired(self) -> None:
        self._retire_timer = None
        if self._state is OPEN:
            self._close(self._retire_code(), "")
        elif self._state is HANDSHAKE:
            self._retire_overdue = True

    def _retire_code(self) -> int:
        """RFC 6455 7.4.1 and the registry: going away for good, or a restart after which one may come back."""
        return 1001 if self._worker.retiring.reason == "stop" else 1012

    def _cancel_retirement(self) -> None:
        if self._retire_timer is not None:
            self._retire_timer.cancel()
            self._retire_timer = None

    def cut(self) -> bool:
        """At the graceful timeout: send a close frame if nothing waits, cancel the application, cut the connection."""
        state = self._state
        if state is CLOSED:
            return False
        transport = self._transport
        unfinished = state in (HANDSHAKE, DENYING, OPEN, FINISHING)
        flushed = transport.get_write_buffer_size() == 0
        code = 1006
        last_words = b""
        if state is OPEN:
            code = self._retire_code()
            last_words = self._framing.close(code)
        elif state is FINISHING:
            code, last_words = self._end.code, self._end.answer
        if flushed and last_words:
            self._write(last_words)
        if unfinished:
            self._tell_disconnect(code, "")
            self._enter(LINGERING)
        self.deadline = self._worker.loop.time()  # what cannot be flushed at once is aborted at the next tick
        if flushed:
            transport.close()
        else:
            transport.abort()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            unfinished = True
        return unfinished

    def let_go(self, instead: Any) -> asyncio.Transport:
        """In a forked child: see `serve_asgi.http.worker_context.ClientConnection`."""
        transport, self._transport = self._transport, instead
        return transport

    # Waiting

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    async def _wait(self, waiters: list[asyncio.Future[None]]) -> None:
        """Wait until `_wake` is called on the list; the wait ends with the connection at the latest."""
        waiter: asyncio.Future[None] = self._worker.loop.create_future()
        waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in waiters:
                waiters.remove(waiter)
            raise

    @staticmethod
    def _wake(waiters: list[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        waiters.clear()
