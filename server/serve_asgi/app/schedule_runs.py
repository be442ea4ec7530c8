"""Runs of schedules in this process: it calls the functions that the hub tells it to run, and reports how each ended.

It decides nothing: what is due, and who runs it, the hub decides (`serve_asgi.hub.schedules.scheduler`).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import datetime
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from serve_asgi.app.application_functions import call_within, is_cancelled
from serve_asgi.app.background_work import work
from serve_asgi.app.hub_link import Link, LinkClosed
from serve_asgi.hub.schedules.definitions import ScheduleDefinition
from serve_asgi.ipc import forked_children as forks
from serve_asgi.ipc.frames import Frame
from serve_asgi.ipc.schedule_frames import RunOutcome
from serve_asgi.logs.exceptions import is_from_outside
from serve_asgi.logs.server_log import about
from serve_asgi.logs.tracebacks import application_traceback, error_text

log = logging.getLogger("serve")

MAX_ERROR: Final = 500
"""Characters of the error of a run that failed, in the history."""
MAX_TRACEBACK: Final = 16_000
"""Bytes of its traceback, from the end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A run, as the function that runs can see it (`schedule.current_run`)."""

    name: str
    instant: datetime.datetime  # of the tick, in UTC; not when the run began
    kind: str  # tick, immediate or asked
    attempt: int
    token: int | None  # fencing token: larger than that of every earlier run; None without --state, and for on="all"
    _lost: threading.Event = dataclasses.field(default_factory=threading.Event, repr=False, compare=False)

    @property
    def lease_lost(self) -> bool:
        """Whether another server may run this schedule as well, because the store could not be reached for too long."""
        return self._lost.is_set()


@dataclasses.dataclass(frozen=True, slots=True)
class RunRecord:
    """An entry of the history: a run, or several ticks in a row without one."""

    name: str
    instant: datetime.datetime  # of the tick, in UTC
    outcome: str  # of `serve_asgi.ipc.schedule_frames.RunOutcome`
    text: str
    worker: str  # for people to read; "" for ticks without a run
    began: datetime.datetime | None
    seconds: float | None
    attempt: int
    kind: str
    count: int  # of ticks

    @classmethod
    def of(cls, name: str, told: dict[str, Any]) -> RunRecord:
        """From an entry as the hub sends it."""
        began = told["began"]
        return cls(
            name,
            _time(told["instant"]),
            told["outcome"],
            told["text"],
            told["worker"],
            None if began is None else _time(began),
            told["seconds"],
            told["attempt"],
            told["kind"],
            told["count"],
        )


@dataclasses.dataclass(frozen=True, slots=True)
class RegisteredFunction:
    """A function of the application, and its definition."""

    definition: ScheduleDefinition
    function: Callable[[], Any]


current_run: Final[contextvars.ContextVar[Run]] = contextvars.ContextVar("current_run")
"""The run of which the present code is part."""


class ScheduleRuns:
    """The runs of this process."""

    def __init__(self, registered: Callable[[str], RegisteredFunction | None]) -> None:
        """`registered` finds a function by the name of its schedule."""
        self._registered = registered
        self._runs: dict[int, Run] = {}
        self._not_started: set[int] = set()  # runs that were received in this turn of the loop

    def bind(self, link: Link) -> None:
        """Run what the hub sends over this link."""
        link.on_frame("schedule.run", lambda frame: self._start(link, frame))
        link.on_frame("schedule.withdraw", lambda frame: self._not_started.discard(frame.head["run"]))
        link.on_frame("schedule.lost", self._take_lost)

    def _take_lost(self, frame: Frame) -> None:
        if (run := self._runs.get(frame.head["run"])) is not None:
            run._lost.set()

    def _start(self, link: Link, frame: Frame) -> None:
        head = frame.head
        registered = self._registered(head["name"])
        if registered is None:  # a test has removed it meanwhile
            told = {
                "run": head["run"],
                "outcome": RunOutcome.FAILED.value,
                "seconds": 0.0,
                "text": "the function is gone",
            }
            link.send("schedule.ended", told)
            return
        instant = _time(head["instant"] / 1000)
        run = self._runs[head["run"]] = Run(head["name"], instant, head["kind"], head["attempt"], head["token"])
        self._not_started.add(head["run"])
        work.start(self._perform(link, head["run"], run, registered), f"schedule {run.name}")

    async def _perform(self, link: Link, id: int, run: Run, registered: RegisteredFunction) -> None:
        """Run the function, and report how it ended."""
        current_run.set(run)
        task = asyncio.current_task()
        began, limit = time.monotonic(), registered.definition.timeout / 1000 or None

        def tell(outcome: RunOutcome, text: str = "", detail: str = "") -> None:
            seconds = round(time.monotonic() - began, 6)
            self._report_end(link, id, run, outcome, seconds, text, detail)

        if id not in self._not_started:
            tell(RunOutcome.PAUSED)
            del self._runs[id]
            return
        self._not_started.remove(id)
        try:
            late = await call_within(
                registered.function, f"schedule {run.name}", limit, lambda: self._overdue(link, id)
            )
        except asyncio.CancelledError as error:
            if not is_cancelled():
                tell(RunOutcome.FAILED, "CancelledError", application_traceback(error))
                return
            tell(RunOutcome.CUT, "it had not ended when its process had to")
            raise
        except BaseException as error:  # also SystemExit: a schedule must not end a worker
            forks.leave(error)
            if is_from_outside(error, task):  # the loop is closed, and this coroutine with it
                raise
            tell(RunOutcome.FAILED, error_text(error)[:MAX_ERROR], application_traceback(error))
        else:
            tell(RunOutcome.TIMEOUT if late else RunOutcome.OK, f"it may take {limit:g} s" if late else "")
        finally:
            self._runs.pop(id, None)

    def _overdue(self, link: Link, id: int) -> None:
        with contextlib.suppress(LinkClosed):
            link.send("schedule.overdue", {"run": id})

    def _report_end(
        self, link: Link, id: int, run: Run, outcome: RunOutcome, seconds: float, text: str, detail: str
    ) -> None:
        body = detail[-MAX_TRACEBACK:].encode(errors="replace")
        try:
            link.send("schedule.ended", {"run": id, "outcome": outcome.value, "seconds": seconds, "text": text}, body)
        except LinkClosed:
            if outcome is not RunOutcome.OK:
                said = f"the schedule {run.name!r} has ended, outcome {outcome.value}: {text}"
                log.error("%s", said, extra=about("schedule_failed", detail=detail))


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
