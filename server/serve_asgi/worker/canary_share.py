"""A worker's part in a trial: one on trial takes its share of the clients, one that is not lends it connections.

Behind a proxy's pool few connections are new, so a canary that only accepted would get next to nothing: once a second
each worker of the current generation compares how many connections the canary has with its share, and hands over as
many idle ones as are missing, in proportion to those that it has itself. What is handed over stays there.

A share of the new clients that is smaller than that of one worker is kept by waiting for clients only while the canary
has had less than its share.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.worker.acceptor import Acceptor
from serve_asgi.worker.hand_over_sender import HandOverSender
from serve_asgi.worker.scoreboard_rows import OtherWorkers

LOOK: Final = 0.05
"""Seconds between two checks whether a canary has accepted its share of the clients."""
MOST_OWED: Final = 8.0
"""Clients that a canary makes up for at most, when nobody came while it accepted."""


class ConnectionLending:
    """Hands idle connections over to the canary, until it has its share."""

    def __init__(self, context: WorkerContext, sender: HandOverSender, others: OtherWorkers) -> None:
        self._context = context
        self._sender = sender
        self._others = others
        self._share = 0.0
        self._before = (0, 0)

    def lend(self, share: float) -> None:
        """From now on the canary is to have this share of the connections; 0: lend no more."""
        self._share = share
        self._before = self._requests()
        if share:
            self.tick()
        else:
            self.end()

    def end(self) -> None:
        """Withdraw what the canary has not taken; if this worker retires, its connections are for other receivers."""
        if self._context.phase is WorkerPhase.LENDING:
            self._context.phase = WorkerPhase.SERVING
        self._share = 0.0
        self._context.to_lend = 0
        self._sender.give_up()

    @property
    def lends(self) -> bool:
        """Whether a trial is under way."""
        return self._share > 0

    def tick(self) -> None:
        """Once a second: hand over what the canary lacks."""
        context = self._context
        if not self._share or context.phase not in (WorkerPhase.SERVING, WorkerPhase.LENDING):
            return
        idle = [each for each in context.connections if isinstance(each, Http1Connection) and each.can_leave()]
        context.to_lend = self._missing(len(idle)) if self._sender.has_receivers() else 0
        context.phase = WorkerPhase.LENDING if context.to_lend else WorkerPhase.SERVING
        for connection in idle:
            if not context.to_lend:
                break
            connection.settle()

    def _missing(self, idle: int) -> int:
        """This worker's part of the connections that the canary lacks; a fraction of one decides by chance.

        None if the canary has had its share of the requests without them. Else about its share of those that are `idle`
        here: with more, to make up for others that stay busy and cannot move, or with those that become idle next,
        which are the busiest, it would get more than its share of the requests.
        """
        before, (theirs, ours) = self._before, self._requests()
        if theirs - before[0] > self._share * (theirs - before[0] + max(0, ours - before[1])):
            return 0
        own = self._context.cells[Cell.CONNECTIONS]
        all_current = own + sum(self._others.accepting(self._context.generation))
        canary = self._sender.received()
        missing = self._share * (all_current + canary) - canary
        if missing <= 0 or not own:
            return 0
        return int(min(missing * own / all_current, max(1.0, self._share * idle)) + random.random())

    def _requests(self) -> tuple[int, int]:
        """How many requests the canary has had, and the current generation."""
        own = self._context.cells[Cell.REQUESTS]
        return self._sender.served(), own + sum(self._others.served(self._context.generation))


class AcceptingShare:
    """Has a worker accept a share of the new clients that is smaller than what comes to it by itself.

    It steps out of the queue of workers that wait for clients (`serve_asgi.worker.accept_balance`) whenever it has had
    its share of what all of them have accepted, and steps in again when it has not.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, acceptor: Acceptor, others: OtherWorkers) -> None:
        self._loop = loop
        self._acceptor = acceptor
        self._others = others
        self._timer: asyncio.TimerHandle | None = None
        self._share = 1.0
        self._owed = 0.0
        """How many more clients it should have accepted; less than 0 if it has accepted more than its share."""
        self._seen: dict[int, int] = {}
        self._own = 0

    def limit(self, share: float) -> None:
        """From now on accept this share of the clients."""
        self._share, self._owed = share, 0.0
        self._seen, self._own = self._others.accepted(), self._others.own[Cell.ACCEPTED]
        self._look()

    def end(self) -> None:
        """Accept like the other workers."""
        if self._timer is not None:
            self.forget()
            self._acceptor.step_in()

    def forget(self) -> None:
        """Change nothing any more: this worker stops accepting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        own, theirs = self._others.own[Cell.ACCEPTED], self._others.accepted()
        by_others = sum(max(0, count - self._seen.get(serial, count)) for serial, count in theirs.items())
        by_own, self._own, self._seen = own - self._own, own, theirs
        self._owed = min(MOST_OWED, self._owed + self._share * (by_own + by_others) - by_own)
        if self._owed < 0:
            self._acceptor.step_out()
        else:
            self._acceptor.step_in()
        self._timer = self._loop.call_later(LOOK, self._look)
