"""How a worker retires: it stops accepting, hands connections over, finishes its requests, and cuts what is left.

One mechanism for reload, recycling, scaling down and stopping. Every wait has an end: the graceful timeout, or an order
to quit.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import os
from typing import TYPE_CHECKING, Final

import anyio

from serve_asgi.app.background_work import work
from serve_asgi.app.retiring import retiring
from serve_asgi.http.worker_context import WorkerPhase
from serve_asgi.ipc import open_files_limit as descriptors
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.ipc.shut_out_clients import SocketKind, shut_out
from serve_asgi.logs.server_log import about
from serve_asgi.worker.event_loop import hidden

if TYPE_CHECKING:
    from serve_asgi.worker.worker import WorkerProcess

CLOSING_SHARE: Final = 0.2
"""The last part of the graceful timeout, in which connections that could not be handed over are closed politely."""
CLOSE_TIME: Final = 2.0
"""Seconds that connections have to flush and close after the graceful timeout, and held offers to be settled."""
PARENT_TIME: Final = 1.0
"""Seconds to wait for the death of a listener whose end of the channel has closed; after that it is alive."""
TOGETHER_TIME: Final = 1.0
"""Seconds to wait for the rest of the generation to stop accepting before the application is told to retire."""
TOGETHER_LOOK: Final = 0.002
"""Seconds between two checks of that."""

log = logging.getLogger("serve")


class LeaveOrder(enum.Enum):
    """How the worker was told to leave."""

    STAND_BY = "stand by"  # as RETIRE, but it stays and may serve again (`serve_asgi.worker.standby`)
    RETIRE = "retire"  # finish what is in progress, within the graceful timeout
    QUIT = "quit"  # at once
    LISTENER_DIED = "listener died"  # as RETIRE, but nobody else accepts the clients in the queue


class Retirement:
    """The retirement of one worker."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self._parent = os.getppid()
        self.order: LeaveOrder | None = None
        self.ordered = anyio.Event()
        """Set by the first order, and by one that follows an order to stand by."""
        self.quit = anyio.Event()
        """Set by an order to quit."""
        self.reason = ""
        self.accept_queued = False
        """Whether to accept the clients in the kernel's queue first, since nobody else will."""
        self.cut = 0
        """Requests that were cut."""
        self.awaited = 0
        """Receivers whose pair got lost and is being replaced."""

    def leave(self, order: LeaveOrder, reason: str) -> None:
        """Begin to leave; a later order to stop ends hand-overs, and the death of the listener changes nothing more."""
        before = self.order
        if before is None or before is LeaveOrder.STAND_BY:
            self.order, self.reason = order, reason
            self.ordered.set()
            if before is not None and reason == "stop":
                self.give_up()
        elif reason != self.reason and self.order is LeaveOrder.RETIRE and order is not LeaveOrder.QUIT:
            self.reason = reason
            self.give_up()

    async def retire(self) -> None:
        """Leave without losing anything: stop accepting, hand connections over, finish requests, cut what is left."""
        context = self._worker.context
        self._worker.accepting_share.forget()
        if self._worker.lending.lends:
            self._worker.lending.end()
        if context.retire_deadline == math.inf:  # not one that was to stand by: its time does not begin anew
            context.retire_deadline = context.loop.time() + self._worker.config.graceful_timeout
        self._worker.receiver.refuse()
        self.set_phase()
        await self._stop_accepting()
        if self.reason in ("reload", "rollback"):
            await self._generation_stopped()
        retiring.begin(self.reason)
        self.retire_connections()
        with anyio.move_on_after(max(0.0, context.retire_deadline - context.loop.time())):
            if self._worker.hub is not None and self.order is not LeaveOrder.LISTENER_DIED:
                await work.wait_retired()  # the hub knew that before this process was told to leave
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hidden, self._leave_at_once, tasks.cancel_scope)
                tasks.start_soon(hidden, self._close_remaining)
                await self._empty()
                tasks.cancel_scope.cancel()
        self.cut_the_rest()
        with anyio.move_on_after(CLOSE_TIME):
            await self._empty()

    async def _generation_stopped(self) -> None:
        """Wait until no worker of this generation accepts any more, at most `TOGETHER_TIME`.

        Clients that are made to reconnect from here on (WebSockets, streams) then reach the new generation: an old
        worker would make them reconnect again.
        """
        with anyio.move_on_after(TOGETHER_TIME):
            while self._worker.others.accepting(self._worker.welcome["generation"]):
                await anyio.sleep(TOGETHER_LOOK)  # shared memory has no events

    async def _empty(self) -> None:
        """Wait until no connection, no hand-over and no application task is left; the caller sets the deadline."""
        context = self._worker.context
        while True:
            await self._worker.receiver.idle.wait()
            await self._worker.acceptor.settled()
            if context.connections:
                emptied = asyncio.Event()
                context.emptied = emptied.set
                await emptied.wait()
            elif context.tasks or work.tasks:
                await asyncio.wait(context.tasks | work.tasks)
            elif self._worker.receiver.idle.is_set():
                return

    async def _close_remaining(self) -> None:
        """Close connections that nobody can take, or that cannot move, before the graceful timeout would cut them."""
        context, share = self._worker.context, self._worker.config.graceful_timeout * CLOSING_SHARE
        await anyio.sleep(max(0.0, context.retire_deadline - share - context.loop.time()))
        context.last_call = True
        if self._worker.sender.can_go():
            self.retire_connections()
        else:
            self.give_up()

    def give_up(self) -> None:
        """Nobody takes the remaining connections: close them as soon as possible."""
        self.awaited = 0
        self._worker.sender.give_up()
        self.set_phase()
        self.retire_connections()

    async def _leave_at_once(self, waiting: anyio.CancelScope) -> None:
        """End the wait for requests in progress at an order to quit."""
        await self.quit.wait()
        waiting.cancel()

    def set_phase(self) -> None:
        """Connections are handed over if there are receivers, and closed otherwise."""
        travels = self._worker.sender.has_receivers() or self.awaited
        phase = WorkerPhase.HANDING_OVER if travels else WorkerPhase.CLOSING
        self._worker.context.phase = phase
        self._worker.context.announce_close = phase is WorkerPhase.CLOSING

    def retire_connections(self) -> None:
        """Have every connection leave as the current phase says, as soon as that loses nothing."""
        for connection in list(self._worker.context.connections):
            connection.retire()

    async def _stop_accepting(self) -> None:
        if self.order is LeaveOrder.STAND_BY:
            self._worker.acceptor.stand_by()
            await self._worker.acceptor.settled()
            return
        if not self._worker.acceptor.accepting:  # it has stood by: the clients in the queue are for others
            self._worker.acceptor.stop()
            return
        alone = self.order is LeaveOrder.LISTENER_DIED and await self._listener_has_ended()
        if alone:
            for listening, described in zip(self._worker.sockets, self._worker.welcome["sockets"], strict=True):
                if described["owned"]:
                    shut_out(listening, SocketKind(described["kind"]))
        if alone or self.accept_queued:
            with anyio.move_on_after(self._worker.config.graceful_timeout * (1 - CLOSING_SHARE)):
                while not self._worker.acceptor.accept_queued() and not self.quit.is_set():
                    retiring.begin(self.reason)
                    self.retire_connections()  # each that ends makes room for a waiting one
                    await anyio.sleep(descriptors.PAUSE)
        self._worker.acceptor.stop()
        await self._worker.acceptor.settled()

    async def _listener_has_ended(self) -> bool:
        """Return False if the application has closed our channel: then others accept the clients in the queue."""
        with anyio.move_on_after(PARENT_TIME):
            while os.getppid() == self._parent:  # a dying process closes its files a moment before it is gone
                await anyio.sleep(descriptors.PAUSE)
            return True
        return False

    def cut_the_rest(self) -> None:
        """Cut what has not ended, and count it."""
        for connection in list(self._worker.context.connections):
            if connection.cut():
                self.cut += 1
                self._worker.cells[Cell.CUT] += 1
        behind = [task for task in self._worker.context.tasks if not task.cancelling()]
        for task in behind:
            task.cancel()
        if behind:
            text = "cut %d application calls that continued after their responses"
            log.warning(text, len(behind), extra=about("calls_cut", calls=len(behind)))
        if left := work.cancel():
            text = "cut %d message handlers and schedule runs that had not ended"
            log.warning(text, left, extra=about("work_cut", tasks=left))
        if self.cut:
            log.warning("cut %d requests that had not ended", self.cut, extra=about("requests_cut", requests=self.cut))

    async def settle_handovers(self) -> None:
        """Refuse further offers; wait for those that have been taken, and for replies to ours."""
        self._worker.receiver.refuse()
        with anyio.move_on_after(CLOSE_TIME):
            await self._worker.sender.idle.wait()
            await self._worker.receiver.idle.wait()
        self._worker.sender.close()
        self._worker.receiver.close()
