"""The life of an HTTP/1.1 connection: its states, and the ways in which it ends.

It owns the table of transitions, the write side's back-pressure and every end: the polite one (law 9: flush, shut down
the write side, read to the end, close), the visibly broken one, the deadline, the cut, and leaving for another
worker. Rules: an answer is not destroyed by the way in which the connection closes, and one that is not whole never
looks whole; a connection that leaves is neither read nor written. It must not know how requests are read or answered;
that is `serve_asgi.http.connection`, which derives from it.
"""

from __future__ import annotations

import asyncio
import enum
import math
import os
from typing import Any, Final

from serve_asgi.http.client_socket import hang_up, reset
from serve_asgi.http.hand_over_record import TravelRecord
from serve_asgi.http.response import Response
from serve_asgi.http.worker_context import Service
from serve_asgi.http.write_buffer import WriteBuffer
from serve_asgi.ipc.address import Address
from serve_asgi.ipc.scoreboard import Cell

LINGER_TIME: Final = 2.0
"""How long (s) a client may take to end its side after the last answer."""

LINGER_LIMIT: Final = 1 << 20
"""Bytes that are read from it meanwhile."""

PEEK_TIME: Final = 5.0
"""Bytes were seen at the deadline of an idle connection: they are given this long (s) to be read."""

INFINITY: Final = math.inf
_CONNECTIONS: Final = int(Cell.CONNECTIONS)


class State(enum.Enum):
    """Of a connection."""

    NEW = "new"  # not attached yet
    IDLE = "idle"  # no request in progress; half a head may be in the buffer
    REQUEST = "request"  # an exchange is in progress
    DISCARDING = "discarding"  # answered; the rest of that request's content is read and dropped
    FLUSHING = "flushing"  # the last answer is being written
    LINGERING = "lingering"  # it is written and the write side shut down; reading until the client ends too
    LEAVING = "leaving"  # being handed over: neither reads nor writes
    UPGRADED = "upgraded"  # another protocol has the transport
    CLOSED = "closed"


TRANSITIONS: Final = {
    State.NEW: {State.IDLE},
    State.IDLE: {State.REQUEST, State.FLUSHING, State.LEAVING, State.UPGRADED, State.CLOSED},
    State.REQUEST: {State.IDLE, State.DISCARDING, State.FLUSHING, State.CLOSED},
    State.DISCARDING: {State.IDLE, State.FLUSHING, State.CLOSED},
    State.FLUSHING: {State.LINGERING, State.CLOSED},
    State.LINGERING: {State.CLOSED},
    State.LEAVING: {State.IDLE, State.CLOSED},
    State.UPGRADED: set[State](),
    State.CLOSED: set[State](),
}
"""The only ways from state to state."""

IDLE: Final = State.IDLE
REQUEST: Final = State.REQUEST
DISCARDING: Final = State.DISCARDING
FLUSHING: Final = State.FLUSHING
LINGERING: Final = State.LINGERING
LEAVING: Final = State.LEAVING
CLOSED: Final = State.CLOSED


class Lifecycle(asyncio.Protocol):
    """What a connection is apart from its requests."""

    __slots__ = (
        "_allowance",
        "_buffer",
        "_record",
        "client",
        "deadline",
        "eof",
        "output",
        "requests",
        "response",
        "scheme",
        "server",
        "service",
        "state",
        "still_sending",
        "transport",
        "trusted",
    )

    transport: asyncio.Transport

    def __init__(self, service: Service, record: TravelRecord | None) -> None:
        self.service = service
        self.output = WriteBuffer(service)
        self.client: Address = None
        self.server: Address = None
        """Both are asked of the transport in `connection_made` unless whoever makes the connection knows them."""
        self.scheme = "http"
        """Of the client's side, as far as the connection itself tells."""
        self.trusted = False
        """Whether the forwarding fields of its requests are believed."""
        self.requests = 0
        """Requests answered on this connection, also by other workers before."""
        self._record = record  # what came with the connection, then (LEAVING) what goes with it
        self.state = State.NEW
        self.deadline = INFINITY
        self.response: Response | None = None
        """Of the request in progress."""
        self.still_sending: set[Response] | None = None
        """Those whose response is over and whose application goes on sending; they are told when the client goes."""
        self.eof = False
        """The client has shut down its write side. It may still read: what it has sent whole is answered."""
        self._buffer = bytearray()  # what has arrived and belongs to no request yet
        self._allowance = 0  # LINGERING: bytes that may still be read

    def _become(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state

    # ---- what the connection adds

    def adjust_reading(self) -> None:
        """Pause reading while too much has arrived that nobody has taken, and read on otherwise."""
        raise NotImplementedError

    def retire(self) -> None:
        """The worker's phase has left SERVING: leave as soon as that loses nothing. May be called again."""
        raise NotImplementedError

    def _settle(self) -> None:
        """An idle connection goes on, leaves, or ends, as the worker's phase has it."""
        raise NotImplementedError

    def _resume(self) -> None:
        """Go on after a hand-over that failed."""
        raise NotImplementedError

    def _expire_idle(self) -> None:
        """The deadline has passed while no request was in progress."""
        raise NotImplementedError

    def _expire_request(self) -> None:
        """The deadline has passed while a request is in progress."""
        raise NotImplementedError

    def expect_body(self) -> None:
        """Say until when the next of the request's body must have arrived."""
        raise NotImplementedError

    # ---- the write side

    def pause_writing(self) -> None:
        """The client reads more slowly than the application writes: `send` waits, for as long as it reads at all."""
        self.output.paused = True
        if self.state is REQUEST:
            self.output.watch_client()
            self.deadline = self.service.loop.time() + self.service.config.write_timeout

    def resume_writing(self) -> None:
        """What was to be written is (nearly) written.

        What follows from it comes soon, not now: a transport of asyncio's that is closed in here closes twice.
        """
        self.output.paused = False
        self.output.wake_writers()
        if self.state is REQUEST:
            self.expect_body()
        elif self.state is FLUSHING:
            self.service.loop.call_soon(self._flushed)
        elif self.state is IDLE:
            self.service.loop.call_soon(self._settle)

    def _close_books(self) -> None:
        service = self.service
        if self in service.connections:
            service.cells[_CONNECTIONS] -= 1
            service.forget(self)

    # ---- ends

    def _finish(self) -> None:
        """The last answer is written: flush it, shut down the write side, read to the end, close (law 9)."""
        self._become(FLUSHING)
        self._buffer.clear()
        self.output.flush()
        transport = self.transport
        if transport.is_closing():
            self._close()
            return
        self.adjust_reading()
        if self.eof:
            transport.close()
        else:
            try:
                transport.write_eof()  # once everything is written
            except OSError:  # asyncio's: the client has reset the connection, and the loop has not seen it yet
                transport.abort()
        if not transport.get_write_buffer_size():
            self._flushed()
        else:
            self.output.watch_client()
            self.deadline = self.service.loop.time() + self.service.config.write_timeout
            transport.set_write_buffer_limits(0)

    def _flushed(self) -> None:
        if self.state is not FLUSHING or self.transport.is_closing():
            return
        if self.eof:
            self.transport.close()
            return
        self._become(LINGERING)
        self._allowance = LINGER_LIMIT
        self.deadline = self.service.loop.time() + LINGER_TIME

    def _allowance_spent(self, size: int) -> None:
        """The client still sends: read and drop, up to a limit, so that it can read its last answer."""
        if self.state is LINGERING:
            self._allowance -= size
            if self._allowance < 0:
                self.transport.close()

    def _close(self) -> None:
        """Nothing is to be said any more; what is written is flushed."""
        if self.state is not FLUSHING:
            self._become(FLUSHING)
        self._buffer.clear()
        self.output.flush()
        self.output.watch_client()
        self.deadline = self.service.loop.time() + self.service.config.write_timeout
        self.transport.close()

    def response_cut(self, reset: bool) -> None:
        """End the connection so that the client sees that the response is not whole.

        What was written is still sent, unless the end of the connection itself would end the body (`reset`).
        """
        self.response = None
        if self.state is not REQUEST:
            return
        if reset:
            self._become(FLUSHING)
            self._reset()
        else:
            self._close()

    def _reset(self) -> None:
        """End at once, and so that the client cannot take it for the end of the body."""
        self.output.drop_held()
        if reset(self.transport):
            self._become(CLOSED)
        self.transport.abort()

    def _lost(self) -> None:
        """The transport is about to close the descriptor: end the connection unless that is done, or not ours to do."""
        if self.state is not CLOSED:
            hang_up(self.transport)
            self.state = CLOSED

    def asked_at(self) -> float:
        """When the request in progress began (time.perf_counter, s), or infinity."""
        return math.inf if self.response is None else self.response.request.begun

    def expire(self) -> None:
        """The deadline has passed."""
        now = self.service.loop.time()
        self.deadline = INFINITY
        state = self.state
        if state is IDLE:
            self._expire_idle()
        elif state is REQUEST:
            self._expire_request()
        elif state is DISCARDING:
            self.response = None
            self._finish()
        elif state is FLUSHING:
            if self.output.stalled():
                self.transport.abort()
            else:
                self.deadline = now + self.service.config.write_timeout
        elif state is LINGERING:
            self.transport.close()

    def cut(self) -> bool:
        """At the graceful timeout: end at once, cancelling the application's task. True if anything was cut."""
        state, response = self.state, self.response
        if state is LEAVING or state is CLOSED or state is State.NEW or state is State.UPGRADED:
            return False
        if state is REQUEST and response is not None:
            until_close, task = response.until_close, response.request.task
            self.response = None
            response.lose()
            if task is not None:
                task.cancel()
            self.state = FLUSHING
            if until_close:
                self._reset()
            else:
                self.output.drop_held()
                self.transport.abort()
            return True
        self.output.flush()
        unfinished = bool(self._buffer) or self.output.unwritten() > 0
        self.response = None
        if state is not FLUSHING and state is not LINGERING:
            self._become(FLUSHING)
        self.deadline = INFINITY
        self._buffer.clear()
        self.output.drop_held()
        self.transport.abort()
        return unfinished

    def let_go(self, instead: Any) -> asyncio.Transport:
        """In a forked child: see `serve_asgi.http.worker_context.Connection`."""
        transport, self.transport, self.output.transport = self.transport, instead, instead
        return transport

    # ---- hand-over

    def can_leave(self) -> bool:
        """Whether `leave()` is possible now: no request in progress, every answer written, the client still there."""
        return self.state is IDLE and not self.eof and not self.transport.is_closing() and self.output.unwritten() == 0

    def leave(self) -> tuple[int, TravelRecord]:
        """Stop reading and writing; a duplicate of the descriptor (the caller owns it) and the record.

        Only while `can_leave()`; afterwards the worker calls `stay()` or `gone()`. Raises OSError, with nothing
        changed, if there is no descriptor to be had.
        """
        assert self.can_leave(), "leave() needs can_leave()"
        fd = os.dup(self.transport.get_extra_info("socket").fileno())
        record = TravelRecord(
            bytes(self._buffer), self.client, self.server, self.deadline, self.requests, self.scheme, self.trusted
        )
        self._become(LEAVING)
        self._record = record
        self.deadline = INFINITY
        self.adjust_reading()
        return fd, record

    def stay(self) -> None:
        """The hand-over failed: go on exactly as before."""
        record, self._record = self._record, None
        if self.state is not LEAVING or record is None:
            return  # the client has gone meanwhile
        self._become(IDLE)
        self.deadline = record.deadline
        self.transport.set_write_buffer_limits()
        self.adjust_reading()
        self.service.loop.call_soon(self._resume)

    def gone(self) -> None:
        """The hand-over is committed: drop this end. The client sees nothing: a duplicate lives elsewhere."""
        if self.state is not LEAVING:
            return
        self._become(CLOSED)
        self._close_books()
        self.still_sending = None  # the client has not gone
        self.transport.abort()  # closes the descriptor; no shutdown, which would reach the duplicate too
