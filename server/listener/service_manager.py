"""What the service manager is told again and again: that the server is well, and that what takes long goes on.

The watchdog (WatchdogSec= of systemd.service(5)) is fed while the listener's loop turns, which this task is part of, and
while at least one worker answers. So one blocked worker never costs the service, and a server that answers nobody is
restarted. A worker that is on its way counts as well: its start has an end of its own (--startup-timeout), and a
restart would only begin it anew.

A start, a reload or a stop may take as long as the options of the server allow, whatever the unit's timeouts are: while
one is under way the manager is asked for more time (EXTEND_TIMEOUT_USEC of sd_notify(3)). It gets no more requests when
the loop hangs, so that its own timeouts still help there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import anyio

from server.listener import notify
from server.listener.lifecycle import ServerState, Worker, WorkerState

PERIOD: Final = notify.PATIENCE / 3
"""Seconds between two requests for more time: two of them may be lost."""
SILENCE: Final = 2.5
"""Seconds without a heartbeat that are no silence yet, however impatient the watchdog: a heart beats once per second."""

COMING: Final = frozenset({WorkerState.PENDING, WorkerState.STARTING, WorkerState.READY, WorkerState.SWITCHING})
BEFORE: Final = frozenset({ServerState.STARTING, ServerState.OPENING})


def well(state: ServerState, workers: Iterable[Worker], silent_for: Callable[[Worker], float], watchdog: float) -> bool:
    """Whether the watchdog, which acts after `watchdog` seconds, is to be fed.

    `silent_for` says how many seconds ago a worker's loop last turned.
    """
    if state is not ServerState.RUNNING:
        return True  # a start or a stop: each of its waits has a deadline of its own
    enough = max(watchdog / 2, SILENCE)
    return any(
        worker.state in COMING or (worker.state is WorkerState.SERVING and silent_for(worker) <= enough)
        for worker in workers
    )


def takes_time(state: ServerState, reloading: bool) -> bool:
    """Whether something is under way for which the manager has a timeout."""
    return reloading or state is not ServerState.RUNNING


async def keep_informed(is_well: Callable[[float], bool], under_way: Callable[[], str | None]) -> None:
    """Tell the service manager until cancelled; return at once if there is none.

    `is_well` gets the watchdog's seconds; `under_way` says what takes time at the moment, None if nothing does.
    """
    if not notify.wanted():
        return
    watchdog = notify.watchdog_period()
    while True:
        if (text := under_way()) is not None:
            notify.extend(text)
        if watchdog and is_well(watchdog):
            notify.watchdog()
        await anyio.sleep(min(PERIOD, watchdog / 2 or PERIOD))
