"""A worker's part in a trial: one on trial takes its share of the clients, one that is not lends it connections.

Behind a proxy's pool few connections are new, so a canary that only accepted would get next to nothing: once a second
each worker of the current generation compares how many connections the canary has with its share, and hands over as
many idle ones as are missing, in proportion to those that it has itself. What is handed over stays there.

A share that is smaller than that of one worker is kept by taking part in accepting for a part of the time only.
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

PERIOD: Final = 0.25
"""Seconds in each of which a canary accepts during its part of them."""


class ConnectionLending:
    """Hands idle connections over to the canary, until it has its share."""

    def __init__(self, context: WorkerContext, sender: HandOverSender, others: OtherWorkers) -> None:
        self._context = context
        self._sender = sender
        self._others = others
        self._share = 0.0

    def lend(self, share: float) -> None:
        """From now on the canary is to have this share of the connections; 0: lend no more."""
        self._share = share
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
        context.to_lend = self._missing()
        context.phase = WorkerPhase.LENDING if context.to_lend else WorkerPhase.SERVING
        for connection in list(context.connections):
            if not context.to_lend:
                break
            if isinstance(connection, Http1Connection):
                connection.settle()

    def _missing(self) -> int:
        """This worker's part of the connections that the canary lacks; a fraction of one decides by chance."""
        own = self._context.cells[Cell.CONNECTIONS]
        all_current = own + sum(self._others.accepting(self._context.generation))
        canary = self._sender.received()
        missing = self._share * (all_current + canary) - canary
        if missing <= 0 or not own:
            return 0
        return int(missing * own / all_current + random.random())


class PartTimeAcceptor:
    """Has a worker accept clients during a part of the time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, acceptor: Acceptor) -> None:
        self._loop = loop
        self._acceptor = acceptor
        self._timer: asyncio.TimerHandle | None = None
        self._part = 1.0

    def limit(self, part: float) -> None:
        """Accept during this part of the time; 1: always."""
        self.end()
        self._part = part
        if part < 1:
            self._out()
        else:
            self._acceptor.step_in()

    def end(self) -> None:
        """Change nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _out(self) -> None:
        self._acceptor.step_out()
        self._timer = self._loop.call_later(PERIOD * (1 - self._part), self._in)

    def _in(self) -> None:
        self._acceptor.step_in()
        self._timer = self._loop.call_later(PERIOD * self._part, self._out)
