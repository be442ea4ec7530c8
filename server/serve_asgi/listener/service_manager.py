"""What the world outside is told of the server: the service manager, by the pid file, and where it can be reached.

The watchdog (WatchdogSec= of systemd.service(5)) is fed while the listener's loop turns, which this task is part of,
and while at least one worker answers. So one blocked worker never costs the service, and a server that answers nobody
is restarted. A worker that is on its way counts as well: its start has an end of its own (--startup-timeout), and a
restart would only begin it anew.

A start, a reload or a stop may take as long as the options of the server allow, whatever the unit's timeouts are: while
one is under way the manager is asked for more time (EXTEND_TIMEOUT_USEC of sd_notify(3)). It gets no more requests when
the loop hangs, so that its own timeouts still help there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import anyio

from serve_asgi.errors import UsageError
from serve_asgi.listener import sd_notify as notify
from serve_asgi.listener.children import Children
from serve_asgi.listener.pid_file import PidFile
from serve_asgi.logs import server_log as logs
from serve_asgi.supervisor.lifecycles import ServerState, Worker, WorkerState, counted
from serve_asgi.supervisor.supervisor import Supervisor

log = logging.getLogger("serve")

PERIOD: Final = notify.PATIENCE / 3
"""Seconds between two requests for more time: two of them may be lost."""
SILENCE: Final = 2.5
"""Seconds without a heartbeat that are no silence yet, however impatient the watchdog: it comes once per second."""

COMING: Final = frozenset({WorkerState.PENDING, WorkerState.STARTING, WorkerState.READY, WorkerState.SWITCHING})


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


def under_way(state: ServerState, reloading: bool, asking: str, in_progress: int) -> str | None:
    """What goes on at the moment that the manager has a timeout for, as a person reads it; None if nothing does.

    `asking` says what hooks an order waits for, "" for none: it may be the stop, or a reload behind a drain;
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
    """Tell the service manager until cancelled; return at once if there is none.

    `asking` says what hooks an order waits for.
    """
    if not notify.wanted():
        return
    watchdog = notify.watchdog_period()

    def silent_for(worker: Worker) -> float:
        child = children.of(worker)
        return math.inf if child is None else children.silent_for(child)

    while True:
        steps = (supervisor.requests.wanted, supervisor.requests.preparation, supervisor.candidate)
        reloading = any(step is not None for step in steps)
        text = under_way(supervisor.state, reloading, asking(), _in_progress(children))
        if text is not None:
            notify.extend(text)
        if watchdog and well(supervisor.state, supervisor.workers.values(), silent_for, watchdog):
            notify.watchdog()
        await anyio.sleep(min(PERIOD, watchdog / 2 or PERIOD))


def _in_progress(children: Children) -> int:
    return sum(child.in_progress for child in children)


class Announcements:
    """Announces what the supervisor wants announced: to the service manager, in the pid file and in the log."""

    def __init__(self, pid_file: PidFile | None, addresses: Sequence[str], admin: Sequence[str], *, told: bool) -> None:
        """`addresses` of the application and of the admin process; `told`: an earlier program has said them already."""
        self._pid_file = pid_file
        self._addresses = addresses
        self._admin = admin
        self._told = told

    def announce(self, what: str, text: str) -> None:
        """See `events.Announce`."""
        match what:
            case "ready":
                self._write_pid_file()
                if not self._told:
                    self._told = True
                    self._tell_addresses()
                notify.ready(text)
            case "reloading":
                notify.reloading(text)
            case "stopping":
                notify.stopping(text)
            case _:
                notify.status(text)

    def _tell_addresses(self) -> None:
        where = ", ".join(self._addresses)
        log.info("serving on %s", where, extra=logs.about("sockets_opened", addresses=where))
        if self._admin:
            log.info("metrics and dashboard: %s", ", ".join(self._admin))

    def _write_pid_file(self) -> None:
        try:
            if self._pid_file is not None:
                self._pid_file.write()
        except UsageError as error:  # such as a full disk: the next reload tries again
            log.error("the pid file cannot be written: %s", error, extra=logs.about("pid_file_failed"))
