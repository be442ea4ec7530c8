"""The timeouts of a connection: when something must have happened, and what follows if it has not.

It owns the periods and the verdicts: a request head, a request body that arrives too slowly, keep-alive, a client that
does not read. The worker compares deadlines once a second for all connections (`Connection.deadline`), so that none
needs a timer. Rule: nobody is cut who reads or sends, be it slowly but above `--min-body-rate`, nor for what
is the application's or this server's fault. It must not know how a connection ends.
"""

from __future__ import annotations

import enum
import math
from typing import Final

from serve_asgi.http.client_socket import is_readable
from serve_asgi.http.request_body import RequestBody
from serve_asgi.http.worker_context import WorkerContext
from serve_asgi.http.write_buffer import WriteBuffer

PEEK_TIME: Final = 5.0
"""Bytes were waiting at the deadline of an idle connection: there is this long (s) to read them."""

BODY_WINDOW: Final = 15.0
"""The rate at which a request's body arrives is the average over this long (s)."""


class Expiry(enum.Enum):
    """What follows when a deadline has passed."""

    WAIT = "wait"  # nothing: there is another deadline
    FINISH = "finish"  # end politely
    REFUSE = "refuse"  # 408
    CUT = "cut"  # the client takes nothing: end at once


class Timeouts:
    """Of one HTTP/1.1 connection. `deadline` is the one that applies after each verdict."""

    __slots__ = ("_output", "_unread_after", "_worker", "deadline")

    def __init__(self, worker: WorkerContext, output: WriteBuffer) -> None:
        self._worker = worker
        self._output = output
        self._unread_after = -1  # so many requests, of which the last one's response was not read at the deadline
        self.deadline = math.inf

    def head(self) -> float:
        """When a head that has begun to arrive must be whole."""
        return self._worker.loop.time() + self._worker.config.head_timeout

    def write(self) -> float:
        """When a client that reads slowly must have taken something; from now on it is watched."""
        self._output.watch_client()
        return self._worker.loop.time() + self._worker.config.write_timeout

    def body(self, body: RequestBody | None) -> float:
        """When more of the body must have arrived; never, if all of it has."""
        if body is None or body.whole or not self._worker.config.min_body_rate:
            return math.inf
        return self._worker.loop.time() + BODY_WINDOW

    def idle_expired(self, half_head: bool, requests: int) -> Expiry:
        """The client has sent nothing for a long time, or half a head and no more, or has not read its response yet.

        `requests`: how many have been answered.
        """
        output, worker = self._output, self._worker
        if output.unwritten() or self._unread_after == requests:
            return self._unread_expired(requests)
        if half_head:
            return Expiry.REFUSE
        if not is_readable(output.transport):
            return Expiry.FINISH
        self.deadline = worker.loop.time() + PEEK_TIME
        return Expiry.WAIT

    def _unread_expired(self, requests: int) -> Expiry:
        """The keep-alive time begins when the response has been read; while the client reads, there is no limit."""
        output, worker = self._output, self._worker
        before, unread = self._unread_after == requests, output.unwritten() > 0
        self._unread_after = requests if unread else -1
        if unread and before and output.stalled():
            return Expiry.CUT
        if unread and not before:
            output.watch_client()
        self.deadline = worker.loop.time() + (worker.config.write_timeout if unread else worker.keep_alive)
        return Expiry.WAIT

    def request_expired(self, body: RequestBody | None, read_paused: bool) -> Expiry:
        """The client takes none of the response, or sends the body too slowly, or is not at fault."""
        output, config = self._output, self._worker.config
        if output.paused:
            if output.stalled():
                return Expiry.CUT
            self.deadline = self._worker.loop.time() + config.write_timeout
            return Expiry.WAIT
        waited_for = body is not None and not (read_paused or body.whole or body.awaits_continue)
        if waited_for and body is not None and body.arrived < config.min_body_rate * BODY_WINDOW:
            return Expiry.REFUSE
        if body is not None:
            body.arrived = 0
        self.deadline = self.body(body)
        return Expiry.WAIT
