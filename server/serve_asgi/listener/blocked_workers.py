"""Finds blocked workers, whose heartbeats show that their event loops do not run (`--worker-timeout`).

A worker writes the time into its row of the scoreboard once a second. One that has not done so for too long is asked
for its stacks, in a way that does not need its loop; they are logged, and the supervisor has a replacement ready before
it retires the worker. If its loop runs again by then, it retires as usual and loses nothing; if not, it is killed after
the graceful timeout. An agent is asked to finish, and is replaced when it has.

Time in which the listener itself did not run (a suspended machine, a frozen control group, no processor time) does not
count. A worker that a debugger has stopped is left alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from serve_asgi.listener import stack_dumps as stacks
from serve_asgi.listener.child import Child
from serve_asgi.listener.children import Children
from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import AT_WORK, Agent, WorkerState

BEAT: Final = 1.0
"""Seconds between two heartbeats (`serve_asgi.worker.housekeeping.PERIOD`)."""
ROUNDS: Final = 10
"""Checks in one `--worker-timeout`."""
LONGEST_PERIOD: Final = 5.0
"""Most seconds between two checks; also how soon a changed `--worker-timeout` takes effect."""
STACKS_TIME: Final = 3.0
"""Seconds that a blocked worker has to send its stacks before its replacement is requested."""
WATCHED: Final = AT_WORK | {WorkerState.SERVING}
"""States in which a loop has to run."""

log = logging.getLogger("serve")


class SilenceDetector:
    """Decides which processes have been silent for too long. All times are CLOCK_MONOTONIC, s."""

    def __init__(self) -> None:
        self._looked = -math.inf
        self._awake = -math.inf  # since when the listener has checked as often as intended
        self._told: set[int] = set()

    def look(self, now: float, period: float, timeout: float, heard: dict[int, float]) -> list[int]:
        """Those in `heard` (PID to the time of its last heartbeat) that have been blocked for `timeout`; each once.

        `period` is the time that should have passed since the previous check.
        """
        if now > self._looked + 2 * period + BEAT:
            self._awake = now
        self._looked = now
        self._told &= heard.keys()
        found = [
            pid
            for pid, at in heard.items()
            if pid not in self._told and now - max(at, self._awake) - BEAT >= timeout  # the previous beat was on time
        ]
        self._told.update(found)
        return found

    def forget(self, pid: int) -> None:
        """It is no longer blocked, and may be reported again."""
        self._told.discard(pid)


class BlockedWorkers:
    """Watches the children of one listener."""

    def __init__(
        self,
        children: Children,
        timeout: Callable[[], float],
        post: Callable[[e.Event], None],
        say: Callable[[actions.LogEvent], None],
    ) -> None:
        """`timeout()` is the current --worker-timeout; `post` takes events, `say` takes records for the log."""
        self._children = children
        self._timeout = timeout
        self._post = post
        self._say = say
        self._silence = SilenceDetector()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                timeout = self._timeout()
                period = min(LONGEST_PERIOD, max(BEAT / 4, timeout / ROUNDS)) if timeout else LONGEST_PERIOD
                await anyio.sleep(period)
                if timeout:
                    self._look(period, timeout, tasks)

    def _look(self, period: float, timeout: float, tasks: TaskGroup) -> None:
        now = time.monotonic()
        heard = {child.pid: now - self._children.silent_for(child) for child in self._serving()}
        for pid in self._silence.look(now, period, timeout, heard):
            child = self._children.by_pid[pid]
            if stacks.traced(pid):
                self._silence.forget(pid)
            else:
                tasks.start_soon(self._report, child, timeout)

    def _serving(self) -> Iterable[Child]:
        return [child for child in self._children if child.worker.state in WATCHED]

    async def _report(self, child: Child, timeout: float) -> None:
        """Log its stacks and request its replacement, unless its loop runs again meanwhile."""
        try:
            told = await stacks.look(child, STACKS_TIME)
        except Exception:  # a bug there must neither take the server down nor keep a blocked worker
            log.exception("%s could not be asked for its stacks; please report this", child.worker)
            told = stacks.nothing("it could not be asked")
        silent = self._children.silent_for(child)
        worker = child.worker
        if child.closed or worker.state not in WATCHED or silent < timeout:
            self._silence.forget(child.pid)
            return
        reason = f"its event loop has been blocked for {silent:.0f} s (--worker-timeout {timeout:g})"
        if told["how"] != "asked":
            reason += f"; {told['reason']}"
        about: dict[str, Any] = {"worker": worker.id, "generation": worker.generation.number}
        about |= {"reason": reason, "seconds": round(silent, 3)}
        text, stack = f"{worker}: {reason}", stacks.as_text(told)
        if isinstance(worker, Agent):
            self._say(actions.LogEvent(logging.WARNING, "agent_blocked", text, stack, about))
            self._post(e.AgentBlocked(worker, reason))
        else:
            self._say(actions.LogEvent(logging.WARNING, "worker_blocked", text, stack, {**about, "slot": worker.slot}))
            self._post(e.WorkerWantsReplacement(worker, reason, blocked=silent))
