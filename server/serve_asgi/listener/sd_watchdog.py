"""Keeps systemd informed: that the server is alive, and that a long start, reload or stop is still under way.

The watchdog (WatchdogSec= of systemd.service(5)) is fed while the listener's loop, which this task is part of, runs and
at least one worker is responsive. So one blocked worker does not restart the service, and a server that serves nobody
is restarted. A starting worker counts as well: its start has its own deadline (--startup-timeout), and a restart would
only start it over.

A start, a reload or a stop may take as long as the options of the server allow, whatever the unit's timeouts are: while
one is under way the manager is asked for more time (EXTEND_TIMEOUT_USEC of sd_notify(3)). If the loop hangs the
requests stop, and the unit's own timeouts take effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

import anyio

from serve_asgi.listener import sd_notify
from serve_asgi.listener.children import Children
from serve_asgi.supervisor.lifecycles import ServerState, Worker, WorkerState, counted
from serve_asgi.supervisor.supervisor import Supervisor

PERIOD: Final = sd_notify.PATIENCE / 3
"""Seconds between two requests for more time: two of them may get lost."""
SILENCE: Final = 2.5
"""Seconds without a heartbeat that are always tolerated, however short the watchdog: it comes once per second."""

COMING: Final = frozenset({WorkerState.PENDING, WorkerState.STARTING, WorkerState.READY, WorkerState.SWITCHING})


def well(state: ServerState, workers: Iterable[Worker], silent_for: Callable[[Worker], float], watchdog: float) -> bool:
    """Whether to feed the watchdog, which acts after `watchdog` seconds.

    `silent_for` returns how many seconds ago a worker's loop last ran.
    """
    if state is not ServerState.RUNNING:
        return True  # a start or a stop: each of its waits has a deadline of its own
    enough = max(watchdog / 2, SILENCE)
    return any(
        worker.state in COMING or (worker.state is WorkerState.SERVING and silent_for(worker) <= enough)
        for worker in workers
    )


def under_way(state: ServerState, reloading: bool, asking: str, in_progress: int) -> str | None:
    """What is under way that the manager has a timeout for, as shown to people; None if nothing is.

    `asking` names the hooks that an order waits for, "" for none: it may be the stop, or a reload behind a drain;
    `in_progress` counts requests and WebSockets.
    """
    match state:
        case ServerState.STARTING | ServerState.OPENING:
            return "starting"
        case ServerState.RUNNING:
            return f"waiting for the hooks {asking}" if asking else "reloading" if reloading else None
        case ServerState.DRAINING:
            return f"draining before the stop: {counted(in_progress, 'request')} in progress"
    return f"stopping: {counted(in_progress, 'request')} in progress"


async def keep_informed(supervisor: Supervisor, children: Children, asking: Callable[[], str]) -> None:
    """Notify the service manager until cancelled; return at once if there is none.

    `asking` names the hooks that an order waits for.
    """
    if not sd_notify.wanted():
        return
    watchdog = sd_notify.watchdog_period()

    def silent_for(worker: Worker) -> float:
        child = children.of(worker)
        return math.inf if child is None else children.silent_for(child)

    while True:
        steps = (supervisor.requests.wanted, supervisor.requests.preparation, supervisor.candidate)
        reloading = any(step is not None for step in steps)
        text = under_way(supervisor.state, reloading, asking(), _in_progress(children))
        if text is not None:
            sd_notify.extend(text)
        if watchdog and well(supervisor.state, supervisor.workers.values(), silent_for, watchdog):
            sd_notify.watchdog()
        await anyio.sleep(min(PERIOD, watchdog / 2 or PERIOD))


def _in_progress(children: Children) -> int:
    return sum(child.in_progress for child in children)
