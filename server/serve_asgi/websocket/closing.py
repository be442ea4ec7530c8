"""How a WebSocket closes: what each side is told, how long each may take, and when and why a retiring worker closes it.

It owns the deadlines, the codes and the moment; the steps are the connection's (`serve_asgi.websocket.connection`).

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
import math
import random
from collections.abc import Callable
from typing import Final

from serve_asgi.config.options import Config
from serve_asgi.http.worker_context import WorkerContext

CLOSE_TIMEOUT: Final = 5.0
"""How long the client may take to answer our close frame, in seconds; then the connection is shut down without it."""
FINISH_TIMEOUT: Final = 5.0
"""How long the application may take over the messages that came before the client's end, in seconds."""
LINGER_TIMEOUT: Final = 2.0
"""How long the client may take to close its side after we have shut down ours, in seconds; then it is cut."""
LINGER_BYTES: Final = 256 * 1024
"""What is read and thrown away meanwhile; at more the connection is cut."""
RETIRE_MARGIN: Final = 1.0
"""With `--ws-retire late` the last close comes this long (s) before the graceful timeout: time for its answer."""


def closing_moment(config: Config, now: float, deadline: float, share: float | None = None) -> float:
    """When a retiring worker closes this WebSocket (loop time, s), so that the clients do not come back all at once.

    `deadline` is when the graceful timeout ends; `share` (0 to 1, at random if None) is this connection's place in the
        window. Infinity if there is no deadline to precede.
    """
    window = config.ws_retire_window
    if config.ws_retire == "early":
        first, last = now, now + window
    elif math.isinf(deadline):
        return math.inf
    else:
        first = max(now, deadline - window)
        last = max(first, deadline - RETIRE_MARGIN)
    return first + (last - first) * (random.random() if share is None else share)


def retire_code(reason: str | None) -> int:
    """RFC 6455 7.4.1 and the registry: going away for good, or a restart after which one may come back."""
    return 1001 if reason == "stop" else 1012


class PlannedClose:
    """The close of a WebSocket at a random moment, while its worker retires.

    The one timer of its own that a connection has: the tick of a second would let the clients come back in bursts.
    """

    __slots__ = ("_timer", "overdue")

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self.overdue = False
        """The moment has passed: one that was not open by then closes as soon as it is."""

    def plan(self, worker: WorkerContext, close: Callable[[], None]) -> None:
        """Let `close` be called at the moment, if there is one; once, however often this is called before."""
        if self._timer is not None:
            return
        moment = closing_moment(worker.config, worker.loop.time(), worker.retire_deadline)
        if moment != math.inf:
            self._timer = worker.loop.call_at(moment, self._due, close)

    def _due(self, close: Callable[[], None]) -> None:
        self._timer = None
        self.overdue = True
        close()

    def call_off(self) -> None:
        """The worker serves again; it may be planned anew."""
        self.cancel()
        self.overdue = False

    def cancel(self) -> None:
        """It closes already."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
