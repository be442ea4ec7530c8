"""Schedules: functions that run at given times, once for all processes of the server.

    @schedule(cron="*/10 * * * *", tz="Europe/Berlin")
    async def report() -> None: ...

This is the part in the process that has the functions: it sends their definitions to the hub, which decides what is due
and who runs it (`serve_asgi.hub.schedules.scheduler`). `serve_asgi.app.schedule_runs` runs the functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from serve_asgi.app.hub_link import Link, LinkClosed, current, register, run_on_link_loop
from serve_asgi.app.schedule_arguments import Span, code_of, definition_of
from serve_asgi.app.schedule_runs import RegisteredFunction, Run, RunRecord, ScheduleRuns, current_run
from serve_asgi.app.sync_calls import SyncCalls
from serve_asgi.errors import ScheduleError, ServeError
from serve_asgi.hub.schedules.definitions import RunsOn, ScheduleDefinition
from serve_asgi.ipc.frames import Frame, unpack_value

Function = TypeVar("Function", bound=Callable[[], Any])
PATIENCE: Final = 10.0
"""Seconds that the hub has to reply to a request that takes no time."""


class ScheduleRefused(ServeError):
    """A request about a schedule was not carried out; the message says why."""


class Schedule:
    """The decorator, and control of the schedules; one object per process, `schedule`."""

    def __init__(self) -> None:
        self._registered: dict[str, RegisteredFunction] = {}
        self._link: Link | None = None
        self._number = 0
        self._requests: dict[int, asyncio.Future[Frame]] = {}
        self._runs = ScheduleRuns(lambda name: self._registered.get(name))
        self.sync = ScheduleSync(self)
        """Blocking versions of the calls that wait, for threads."""

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
        """Run the decorated function, which takes no arguments, at the times given by `cron` or `every`.

        A function that is not async runs in a thread. docs/guides/schedules.md describes each argument in detail.

        Args:
            cron: Minute, hour, day of month, month and day of week, optionally with seconds before them; or `@daily`.
            every: Seconds, a timedelta, or a text such as "30s" or "1h30m".
            tz: Time zone of `cron`, such as "Europe/Berlin".
            name: Its name in logs and commands; by default the function's, with its module.
            on: "one" worker per tick, "all" workers, or the "agent".
            immediate: Also run once when the server has started.
            overlap: What a tick does while an earlier run has not ended: "skip", "queue" or "allow".
            timeout: Time after which a run is cancelled, in the forms of `every`.
            jitter: Delay each tick at random by up to this time, in the forms of `every`.
            retry: How often a run is repeated that was cut or whose process died.
            enabled: Whether it runs at these times at all.
            env: Run only where `--environment` is one of these.

        Returns:
            The function, unchanged.

        Raises:
            ScheduleError: An argument is wrong. It names file and line, and the start or the reload fails.

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

    def registered(self) -> dict[str, RegisteredFunction]:
        """The functions that are schedules, by name."""
        return dict(self._registered)

    def register_only(self, wanted: Mapping[str, RegisteredFunction]) -> None:
        """Have these schedules, and no others, in the next hub; for tests, each of which has one of its own."""
        self._registered = dict(wanted)

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
        self._registered[definition.name] = RegisteredFunction(definition, function)
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
            pass  # of an earlier local mode: the next one gets the definition
        elif not link.closed:
            link.loop.call_soon_threadsafe(self._send_definition, link, definition)  # it is imported in a thread

    def _serving(self) -> bool:
        """Whether a server runs this process, which makes the application once; tests may do so repeatedly."""
        return self._link is not None and not self._link.identity.local

    # ---- requests

    def current_run(self) -> Run:
        """The run that this code is part of.

        Returns:
            Its name, tick, kind, attempt and fencing token.

        Raises:
            LookupError: This code is not part of a run.

        Example:
            ```python
            table.write(rows, token=schedule.current_run().token)
            ```
        """
        try:
            return current_run.get()
        except LookupError:
            raise LookupError("this code does not run as part of a schedule") from None

    async def pause(self, name: str) -> None:
        """Do not run it, in any process, until `resume`. A run in progress continues.

        Args:
            name: The schedule.

        Raises:
            ScheduleRefused: There is no such schedule, or the store cannot be written to.
            TimeoutError: The listener has not replied.
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
            name: The schedule.

        Raises:
            ScheduleRefused: Also the other errors of `pause`.

        Example:
            ```python
            await schedule.resume("app.report")
            ```
        """
        await self._request("resume", name)

    async def run(self, name: str, *, timeout: float | None = None) -> list[RunRecord]:
        """Run it now, even if it is paused or disabled, and return when it has ended.

        Args:
            name: The schedule.
            timeout: Seconds; None waits as long as it takes.

        Returns:
            One record for each worker that ran it.

        Raises:
            TimeoutError: It has not ended by then, and continues.
            ScheduleRefused: There is no such schedule, or it cannot run.
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
        """Its last runs, and ticks without a run.

        Args:
            name: The schedule.

        Returns:
            Records, the newest first.

        Raises:
            ScheduleRefused: Also the other errors of `pause`.

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
            A dict for each, as `serve schedules --json` shows them.

        Raises:
            TimeoutError: The listener has not replied.
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
        """For an application under another server: start the local mode in this event loop, if it has not started.

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
        if link.loop is not asyncio.get_running_loop():  # called in another thread
            return await run_on_link_loop(link, self._request(do, name, timeout))
        self._number += 1
        number, reply = self._number, asyncio.get_running_loop().create_future()
        self._requests[number] = reply
        try:
            link.send("schedule.request", {"id": number, "do": do, "name": name})
            async with asyncio.timeout(timeout):
                answer: Frame = await reply
        except TimeoutError:
            raise TimeoutError(f"the listener has not replied for {timeout:g} s: {do} {name}") from None
        finally:
            del self._requests[number]
        if not answer.head["ok"] and not (do == "run" and unpack_value(answer.body)):
            raise ScheduleRefused(answer.head["text"])
        return answer

    # ---- the link

    def bind(self, link: Link) -> None:
        """For `serve_asgi.app.hub_link`: use this link, and send the definitions over it."""
        self._close()
        self._link = link
        self._runs.bind(link)
        link.on_frame("schedule.reply", self._take_reply)
        link.on_close(lambda: self._close() if link is self._link else None)
        for each in self._registered.values():
            self._send_definition(link, each.definition)

    def _send_definition(self, link: Link, definition: ScheduleDefinition) -> None:
        if link.identity.local and definition.on is RunsOn.AGENT:
            definition = dataclasses.replace(definition, on=RunsOn.ONE)  # in local mode there is one process
        with contextlib.suppress(LinkClosed):
            link.send("schedule.define", definition.to_head(), definition.rules)

    def _take_reply(self, frame: Frame) -> None:
        reply = self._requests.get(frame.head["id"])
        if reply is not None and not reply.done():
            reply.set_result(frame)

    def _close(self) -> None:
        for reply in self._requests.values():
            if not reply.done() and not reply.get_loop().is_closed():
                reply.set_exception(LinkClosed("the listener of this server is gone: it is not known what it did"))


class ScheduleSync:
    """`schedule.sync`: the calls of `schedule` for threads that may block, with the same results."""

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


schedule: Final = Schedule()
register(schedule)
