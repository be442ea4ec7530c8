"""Schedules: functions that run when the time has come, once for all processes of the server.

    @schedule(cron="*/10 * * * *", tz="Europe/Berlin")
    async def report() -> None: ...

This is the side of the process that has the functions: what they are is told to the hub, which decides who runs what
(`serve_asgi.hub.schedules.scheduler`), and what becomes of a run is reported. It must not decide itself whether
something is due.
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
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from serve_asgi.app.application_functions import call_within, is_cancelled
from serve_asgi.app.background_work import work
from serve_asgi.app.hub_link import Link, LinkClosed, current, register, run_on_link_loop
from serve_asgi.app.schedule_arguments import Span, code_of, definition_of
from serve_asgi.app.sync_calls import SyncCalls
from serve_asgi.errors import ScheduleError, ServeError
from serve_asgi.hub.schedules.definitions import RunsOn, ScheduleDefinition
from serve_asgi.ipc import forked_children as forks
from serve_asgi.ipc.frames import Frame, unpack_value
from serve_asgi.ipc.schedule_frames import RunOutcome
from serve_asgi.logs.exceptions import is_from_outside
from serve_asgi.logs.server_log import about
from serve_asgi.logs.tracebacks import application_traceback, error_text

log = logging.getLogger("serve")

Function = TypeVar("Function", bound=Callable[[], Any])
PATIENCE: Final = 10.0
"""Seconds that the hub has to answer what it can answer at once."""


class ScheduleRefused(ServeError):
    """What was asked of a schedule was not done; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A run, as the function itself may see it (`schedule.current_run`)."""

    name: str
    instant: datetime.datetime  # the tick, in UTC; not when it began
    kind: str  # tick, immediate or asked
    attempt: int
    token: int | None  # fencing token: larger than that of every earlier run; None without --state, and for on="all"
    _lost: threading.Event = dataclasses.field(default_factory=threading.Event, repr=False, compare=False)

    @property
    def lease_lost(self) -> bool:
        """Whether another server may run this schedule as well, since the store could not be reached for too long."""
        return self._lost.is_set()


@dataclasses.dataclass(frozen=True, slots=True)
class RunRecord:
    """A line of the history: a run, or ticks in a row that had none."""

    name: str
    instant: datetime.datetime  # the tick, in UTC
    outcome: str  # of `serve_asgi.ipc.schedule_frames.RunOutcome`
    text: str
    worker: str  # in words; "" for ticks that had no run
    began: datetime.datetime | None
    seconds: float | None
    attempt: int
    kind: str
    count: int  # of ticks

    @classmethod
    def of(cls, name: str, told: dict[str, Any]) -> RunRecord:
        """From what the hub tells."""
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
class _Registered:
    definition: ScheduleDefinition
    function: Callable[[], Any]


_current_run: Final[contextvars.ContextVar[Run]] = contextvars.ContextVar("current_run")


class Schedule:
    """The decorator, and what can be done with the schedules there are; `schedule` is the only one."""

    def __init__(self) -> None:
        self._registered: dict[str, _Registered] = {}
        self._link: Link | None = None
        self._number = 0
        self._requests: dict[int, asyncio.Future[Frame]] = {}
        self._runs: dict[int, Run] = {}
        self._not_started: set[int] = set()  # runs that were received, in this turn of the loop
        self.sync = ScheduleSync(self)
        """The calls that wait, for code that is not asynchronous."""

    def __call__(
        self,
        *,
        cron: str | None = None,
        every: Span | None = None,
        tz: str | datetime.tzinfo = "UTC",
        name: str | None = None,
        on: str = "one",
        immediate: bool = False,
        overlap: str = "skip",
        timeout: Span | None = None,
        jitter: Span = 0,
        retry: int = 0,
        enabled: bool = True,
        env: str | Iterable[str] | None = None,
    ) -> Callable[[Function], Function]:
        """Have the decorated function, which takes no arguments, run at the instants of `cron` or `every`.

        A function that is not async runs in a thread. docs/guides/schedules.md has each argument at length.

        Args:
            cron: Minute, hour, day of month, month and day of week, or these with the seconds before them; `@daily`.
            every: Seconds, a timedelta, or a text such as "30s" or "1h30m".
            tz: Time zone of `cron`, such as "Europe/Berlin".
            name: What it is called in logs and commands; that of the function, with its module.
            on: "one" worker per tick, "all" workers, or the "agent".
            immediate: Run once when the server has started, too.
            overlap: What a tick does while the run before it goes on: "skip", "queue" or "allow".
            timeout: After which a run is cancelled, as `every`.
            jitter: Up to so much later, at random, as `every`.
            retry: How often a run that was cut, or whose process died, is run again.
            enabled: Whether it has ticks.
            env: It has ticks only where `--environment` is one of these.

        Returns:
            The function as it is.

        Raises:
            ScheduleError: An argument is wrong; it names file and line, and the start or the reload fails.

        Example:
            ```python
            @schedule(cron="0 3 * * *", tz="Europe/Berlin", timeout="10m")
            async def report() -> None: ...
            ```
        """
        given = dict(locals())
        del given["self"]

        def decorate(function: Function) -> Function:
            self._add(definition_of(function, **given), function)
            return function

        return decorate

    def _add(self, definition: ScheduleDefinition, function: Callable[[], Any]) -> None:
        known = self._registered.get(definition.name)
        if known is not None and known.definition.where != definition.where:
            raise ScheduleError(
                f"two schedules have the name {definition.name!r}: {known.definition.where} and {definition.where}; "
                "give one of them another with name="
            )
        if known is not None and self._serving() and code_of(known.function) is code_of(function):
            raise ScheduleError(
                f"two schedules have the name {definition.name!r}, both of {definition.where}: give each of them one "
                "of its own with name="
            )
        self._registered[definition.name] = _Registered(definition, function)
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        link = self._link
        if link is None or (link.identity.local and running not in (None, link.loop)):
            if running is not None:
                running.call_soon(current)  # local mode begins as soon as there is a loop to run in
        elif link.loop is running:
            self._send_definition(link, definition)
        elif link.loop.is_closed():
            pass  # of an earlier local mode: the next one is told
        elif not link.closed:
            link.loop.call_soon_threadsafe(self._send_definition, link, definition)  # a thread imports it

    def _serving(self) -> bool:
        """Whether a server runs this process, which makes the application once; a test may do so again and again."""
        return self._link is not None and not self._link.identity.local

    # ---- what can be asked

    def current_run(self) -> Run:
        """The run that this code is part of.

        Returns:
            Its name, tick, kind, attempt and fencing token.

        Raises:
            LookupError: This code is not part of one.

        Example:
            ```python
            table.write(rows, token=schedule.current_run().token)
            ```
        """
        try:
            return _current_run.get()
        except LookupError:
            raise LookupError("this code does not run as part of a schedule") from None

    async def pause(self, name: str) -> None:
        """Let its ticks pass without a run, in all processes, from now on until `resume`. A run in progress goes on.

        Args:
            name: Which schedule.

        Raises:
            ScheduleRefused: There is none of this name, or the store cannot be written to.
            TimeoutError: The listener has not answered.
            LinkClosed: The listener is gone.

        Example:
            ```python
            await schedule.pause("app.report")
            ```
        """
        await self._request("pause", name)

    async def resume(self, name: str) -> None:
        """End a pause.

        Args:
            name: Which schedule.

        Raises:
            ScheduleRefused: And the others of `pause`.

        Example:
            ```python
            await schedule.resume("app.report")
            ```
        """
        await self._request("resume", name)

    async def run(self, name: str, *, timeout: float | None = None) -> list[RunRecord]:
        """Run it now, also if it is paused or disabled, and return when it has ended.

        Args:
            name: Which schedule.
            timeout: Seconds; None waits as long as it takes.

        Returns:
            What became of it, one record for each worker that ran it.

        Raises:
            TimeoutError: It has not ended by then, and goes on.
            ScheduleRefused: There is none of this name, or it cannot run.
            LinkClosed: The listener is gone.

        Example:
            ```python
            [record] = await schedule.run("app.report")
            print(record.outcome, record.seconds)
            ```
        """
        answer = await self._request("run", name, timeout=timeout)
        return [RunRecord.of(name, told) for told in unpack_value(answer.body) or ()]

    async def history(self, name: str) -> list[RunRecord]:
        """Its last runs, and ticks without one.

        Args:
            name: Which schedule.

        Returns:
            Records, the newest first.

        Raises:
            ScheduleRefused: And the others of `pause`.

        Example:
            ```python
            failed = [record for record in await schedule.history("app.report") if record.outcome == "failed"]
            ```
        """
        found = unpack_value((await self._request("list", name)).body)
        return [RunRecord.of(name, told) for told in found[0]["history"]]

    async def list(self) -> list[dict[str, Any]]:
        """All schedules.

        Returns:
            A dict of each, as `serve schedules --json` shows them.

        Raises:
            TimeoutError: The listener has not answered.
            LinkClosed: The listener is gone.

        Example:
            ```python
            names = [each["name"] for each in await schedule.list()]
            ```
        """
        found: list[dict[str, Any]] = []
        while True:
            piece = unpack_value((await self._request("next", found[-1]["name"] if found else "")).body)
            if not piece:
                return found
            found += piece

    async def start(self) -> None:
        """For an application under another server: begin the local mode in this event loop, if it has not begun.

        Example:
            ```python
            @asynccontextmanager
            async def lifespan(app):
                await schedule.start()
                yield
            ```
        """
        current()

    async def _request(self, do: str, name: str, timeout: float | None = PATIENCE) -> Frame:
        link = current()
        if link.loop is not asyncio.get_running_loop():  # a thread asks
            return await run_on_link_loop(link, self._request(do, name, timeout))
        self._number += 1
        number, reply = self._number, asyncio.get_running_loop().create_future()
        self._requests[number] = reply
        try:
            link.send("schedule.request", {"id": number, "do": do, "name": name})
            async with asyncio.timeout(timeout):
                answer: Frame = await reply
        except TimeoutError:
            raise TimeoutError(f"the listener has not answered for {timeout:g} s: {do} {name}") from None
        finally:
            del self._requests[number]
        if not answer.head["ok"] and not (do == "run" and unpack_value(answer.body)):
            raise ScheduleRefused(answer.head["text"])
        return answer

    # ---- the link

    def bind(self, link: Link) -> None:
        """For `serve_asgi.app.hub_link`: the hub that these schedules are told to."""
        self._close()
        self._link = link
        link.on_frame("schedule.run", lambda frame: self._start_run(link, frame))
        link.on_frame("schedule.withdraw", lambda frame: self._not_started.discard(frame.head["run"]))
        link.on_frame("schedule.reply", self._take_reply)
        link.on_frame("schedule.lost", self._take_lost)
        link.on_close(lambda: self._close() if link is self._link else None)
        for each in self._registered.values():
            self._send_definition(link, each.definition)

    def _send_definition(self, link: Link, definition: ScheduleDefinition) -> None:
        if link.identity.local and definition.on is RunsOn.AGENT:
            definition = dataclasses.replace(definition, on=RunsOn.ONE)  # the one process is the agent as well
        with contextlib.suppress(LinkClosed):
            link.send("schedule.define", definition.to_head(), definition.rules)

    def _take_reply(self, frame: Frame) -> None:
        reply = self._requests.get(frame.head["id"])
        if reply is not None and not reply.done():
            reply.set_result(frame)

    def _take_lost(self, frame: Frame) -> None:
        if (run := self._runs.get(frame.head["run"])) is not None:
            run._lost.set()

    def _close(self) -> None:
        for reply in self._requests.values():
            if not reply.done() and not reply.get_loop().is_closed():
                reply.set_exception(LinkClosed("the listener of this server is gone: it is not known what it did"))

    # ---- runs

    def _start_run(self, link: Link, frame: Frame) -> None:
        head = frame.head
        registered = self._registered.get(head["name"])
        if registered is None:  # a test has forgotten it meanwhile
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

    async def _perform(self, link: Link, id: int, run: Run, registered: _Registered) -> None:
        """Run the function and tell what became of it."""
        _current_run.set(run)
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
        except BaseException as error:  # also SystemExit: a schedule ends no worker
            forks.leave(error)
            if is_from_outside(error, task):  # the loop is closed, and this coroutine with it
                raise
            tell(RunOutcome.FAILED, error_text(error)[:500], application_traceback(error))
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
        body = detail[-16_000:].encode(errors="replace")
        try:
            link.send("schedule.ended", {"run": id, "outcome": outcome.value, "seconds": seconds, "text": text}, body)
        except LinkClosed:
            if outcome is not RunOutcome.OK:
                said = f"the schedule {run.name!r} has ended, outcome {outcome.value}: {text}"
                log.error("%s", said, extra=about("schedule_failed", detail=detail))


class ScheduleSync:
    """`schedule.sync`: what `schedule` is asked with `await`, for threads that may wait, with the same results."""

    def __init__(self, schedule: Schedule) -> None:
        blocking = SyncCalls("schedule", _late)
        self.pause = blocking(schedule.pause)
        self.resume = blocking(schedule.resume)
        self.run = blocking(schedule.run)
        self.history = blocking(schedule.history)
        self.list = blocking(schedule.list)
        self.start = blocking(schedule.start)


def _late(text: str, begun: bool) -> Exception:
    return TimeoutError(text)


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


schedule: Final = Schedule()
register(schedule)
