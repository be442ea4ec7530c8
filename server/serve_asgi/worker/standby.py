"""How a worker stands by for a roll-back (`--keep-previous`), and serves again.

Its connections and requests leave as those of a retiring worker do (`serve_asgi.worker.retirement`), within the same
graceful timeout. Then it waits: without connections, with its listening sockets, its lifespan up, its replica of the
shared state kept up to date, and its housekeeping ticking. An order to serve ends that at any moment, also while the
last requests are being finished: what has not left by then stays. An order to retire or to quit, or the death of the
listener, is the worker's to follow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio

from serve_asgi.app.retiring import retiring
from serve_asgi.http.worker_context import WorkerPhase
from serve_asgi.worker.event_loop import hidden
from serve_asgi.worker.retirement import LeaveOrder

if TYPE_CHECKING:
    from serve_asgi.worker.worker import WorkerProcess


class Standby:
    """The standby of one worker, which may come more than once."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker

    async def wait_for_leave(self) -> None:
        """Follow orders to stand by and to serve again, until the first one to leave."""
        retirement = self._worker.retirement
        while True:
            await retirement.ordered.wait()
            if retirement.order is LeaveOrder.STAND_BY:
                await self._stand_by()
            elif retirement.order is None:
                self._serve_again()
            else:
                return

    async def _stand_by(self) -> None:
        """Stop serving, and wait for the next order."""
        retirement = self._worker.retirement
        retirement.ordered = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hidden, self._stand_down)
            await retirement.ordered.wait()
            tasks.cancel_scope.cancel()

    def recall(self) -> None:
        """The order to serve again."""
        retirement = self._worker.retirement
        retirement.order = None
        retirement.ordered.set()

    async def _stand_down(self) -> None:
        """Stop accepting, hand connections over, finish requests, cut what is left; then say so, and wait."""
        await self._worker.retirement.retire()
        await self._worker.retirement.settle_handovers()
        self._worker.context.retire_deadline, self._worker.context.last_call = math.inf, False
        self._worker.send_queue.put({"type": "stands by"})
        await anyio.sleep_forever()

    def _serve_again(self) -> None:
        """Be as before the order to stand by, with the connections that have not left."""
        worker, context = self._worker, self._worker.context
        retirement = worker.retirement
        retirement.ordered = anyio.Event()
        retirement.reason, retirement.awaited = "", 0
        context.retire_deadline, context.last_call, context.emptied = math.inf, False, None
        context.phase, context.announce_close = WorkerPhase.SERVING, False
        retiring.end()
        worker.receiver.accept()
        worker.sender.give_up()  # no more is handed over; what was offered comes back
        for connection in list(context.connections):
            connection.resume()
        worker.acceptor.start()
        worker.send_queue.put({"type": "accepts"})
