"""Schedules as an application writes them: in local mode, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from serve_asgi import schedule
from serve_asgi.app import application_functions as schedule_call
from serve_asgi.app.background_work import work
from serve_asgi.app.hub_link import Identity, Link, LinkClosed, current
from serve_asgi.app.schedule import PATIENCE as PATIENCE_OF_ASKING
from serve_asgi.app.schedule import Schedule, ScheduleRefused
from serve_asgi.app.schedule_runs import Run, RunRecord
from serve_asgi.errors import ScheduleError
from serve_asgi.ipc.frames import encode
from serve_asgi.ipc.membership_frames import Role
from tests.running import PATIENCE


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has the schedules that it makes."""
    monkeypatch.setattr(schedule, "_registered", {})


def in_a_loop(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine in a loop of its own, which is a local mode of its own."""

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await test()

    asyncio.run(main())


async def ended(name: str, *outcomes: str) -> list[RunRecord]:
    """The history once it holds runs with these outcomes."""
    while True:
        found = await schedule.history(name)
        if [each.outcome for each in found if each.outcome in outcomes][: len(outcomes)]:
            return found
        await asyncio.sleep(0.01)


# ---- what is refused, with file and line


async def nothing() -> None: ...


def with_parameter(what: str) -> None: ...


async def generator() -> AsyncIterator[int]:
    yield 1


def iterator() -> Iterator[int]:
    yield 1


class Yields:
    def __call__(self) -> Iterator[int]:
        yield 1


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("arguments", "function", "part"),
    [
        ({}, nothing, "one of the two"),
        ({"cron": "* * * * *", "every": "1m"}, nothing, "one of the two"),
        ({"cron": "99 * * * *"}, nothing, "bad minute"),
        ({"cron": "* * * * *", "tz": "Mars/Olympus"}, nothing, "no such time zone"),
        ({"cron": "* * * * *", "tz": datetime.timezone(datetime.timedelta(hours=1))}, nothing, "the name of a time"),
        ({"every": "10 parsecs"}, nothing, "write a number and its unit"),
        ({"every": 0.01}, nothing, "from 0.1s"),
        ({"every": "1m", "on": "everybody"}, nothing, 'write "one" or "all" or "agent"'),
        ({"every": "1m", "overlap": "maybe"}, nothing, 'write "skip" or "queue" or "allow"'),
        ({"every": "1m", "jitter": "2m"}, nothing, "less than the time between"),
        ({"every": "1m", "timeout": 0}, nothing, "more than nothing"),
        ({"every": "1m", "retry": -1}, nothing, "number of further attempts"),
        ({"every": "1m", "name": ""}, nothing, "printable"),
        ({"every": "1m"}, lambda: None, "a lambda has no name"),
        ({"every": "1m"}, with_parameter, "without parameters"),
        ({"every": "1m"}, generator, "a generator"),
        ({"every": "1m"}, iterator, "a generator"),
        ({"every": "1m"}, Yields(), "a generator"),
        ({"every": "1m", "name": "\udcff"}, nothing, "printable"),
        ({"every": "1m"}, 5, "is not a function"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(arguments: dict[str, Any], function: Any, part: str) -> None:
    with pytest.raises(ScheduleError, match=part) as refused:
        schedule(**arguments)(function)
    if function != 5:
        assert f"{__file__}:" in str(refused.value)


def test_two_functions_with_one_name_are_refused() -> None:
    schedule(every="1m", name="report")(nothing)
    with pytest.raises(ScheduleError, match=r"'report'.*test_schedule\.py:.*test_schedule\.py:"):

        @schedule(every="1m")
        async def report() -> None: ...


def test_one_function_that_is_imported_twice_is_one() -> None:
    assert schedule(every="1m")(nothing) is nothing
    schedule(every="2m")(nothing)


def test_functions_that_one_line_makes_need_names_of_their_own_in_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(site: str, **arguments: Any) -> None:
        @schedule(every="1m", **arguments)
        async def check() -> str:
            return site

    monkeypatch.setattr(schedule, "_link", None)
    made("a")
    made("b")  # a test may make the application again and again
    link = Link(Identity(Role.WORKER, 0, 1, 1), asyncio.new_event_loop(), lambda data: None)
    link.loop.close()
    monkeypatch.setattr(schedule, "_link", link)
    made("c", name="check c")
    with pytest.raises(ScheduleError, match=r"two schedules have the name 'check', both of .*test_schedule\.py:\d+"):
        made("d")
    schedule(every="1m")(functools.partial(with_parameter, "a"))
    with pytest.raises(ScheduleError, match="'with_parameter'"):
        schedule(every="1m")(functools.partial(with_parameter, "b"))


@pytest.mark.parametrize(
    ("here", "env", "runs"),
    [
        ("production", "production", True),
        ("production", ["staging", "production"], True),
        ("staging", "production", False),
        ("", "production", False),
        ("", None, True),
    ],
)
def test_env(monkeypatch: pytest.MonkeyPatch, here: str, env: str | list[str] | None, runs: bool) -> None:
    monkeypatch.setenv("SERVE_ENVIRONMENT", here)
    schedule(every="1m", env=env)(nothing)
    assert (schedule._registered["nothing"].definition.disabled == "") is runs


def test_spans_and_zones_may_be_objects() -> None:
    schedule(cron="* * * * *", tz=ZoneInfo("Europe/Berlin"), timeout=datetime.timedelta(minutes=1))(nothing)
    definition = schedule._registered["nothing"].definition
    assert (definition.tz, definition.timeout) == ("Europe/Berlin", 60_000)


# ---- runs


class Callable_:
    async def __call__(self) -> None:
        seen.append((schedule.current_run().name, threading.current_thread() is threading.main_thread()))


async def asynchronous() -> None:
    seen.append((schedule.current_run().name, threading.current_thread() is threading.main_thread()))


def synchronous() -> None:
    seen.append((schedule.current_run().name, threading.current_thread() is threading.main_thread()))


@functools.wraps(asynchronous)
def wrapped() -> Awaitable[None]:
    return asynchronous()


seen: list[tuple[str, bool]] = []


@pytest.mark.parametrize(
    ("function", "in_loop"),
    [
        (asynchronous, True),
        (synchronous, False),
        (functools.partial(synchronous), False),
        (functools.partial(asynchronous), True),
        (Callable_(), True),
        (wrapped, True),  # it is called in a thread, and what it returns awaited in the loop
    ],
)
def test_any_function_runs(function: Any, in_loop: bool) -> None:
    seen.clear()

    async def test() -> None:
        schedule(every="100ms", name="job")(function)
        await ended("job", "ok")
        assert seen[0] == ("job", in_loop)

    in_a_loop(test)


def test_a_run_knows_what_it_is() -> None:
    runs: list[Run] = []

    async def test() -> None:
        @schedule(every="100ms")
        async def job() -> None:
            runs.append(schedule.current_run())

        (first, *_) = await ended("job", "ok")
        assert runs[0].instant.utcoffset() == datetime.timedelta()
        assert runs[0].instant.microsecond % 100_000 == 0
        assert (runs[0].attempt, runs[0].kind, runs[0].token, runs[0].lease_lost) == (1, "tick", None, False)
        assert first.worker == "worker 0 of generation 0"
        with pytest.raises(LookupError):
            schedule.current_run()

    in_a_loop(test)


def test_a_thread_asks_by_an_event_loop_of_its_own() -> None:
    async def test() -> None:
        @schedule(every="1h")
        async def job() -> None: ...

        await schedule.start()  # in this loop: who asks first would have one in a loop that ends at once
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.to_thread(lambda: asyncio.run(schedule.pause("job")))
        (told,) = await asyncio.to_thread(lambda: asyncio.run(schedule.list()))
        assert told["state"] == "paused"
        assert loop.time() - began < PATIENCE_OF_ASKING, "the answer is not noticed by chance, at the time-out"

    in_a_loop(test)


def test_a_run_is_told_that_its_lease_is_lost() -> None:
    async def test() -> None:
        @schedule(every="1h", immediate=True)
        async def job() -> None:
            assert not schedule.current_run().lease_lost
            current().receive(encode("schedule.lost", {"run": 1}))  # as the hub would tell
            assert schedule.current_run().lease_lost

        await ended("job", "ok")

    in_a_loop(test)


def test_immediate_and_the_agents_run_in_local_mode_too() -> None:
    async def test() -> None:
        schedule(every="1h", immediate=True, on="agent")(nothing)
        (found,) = await ended("nothing", "ok")
        assert found.kind == "immediate"

    in_a_loop(test)


def test_what_a_function_raises_is_told_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        @schedule(every="1h")
        async def fails() -> None:
            raise RuntimeError("no luck")

        @schedule(every="1h")
        def leaves() -> None:
            raise SystemExit(3)

        @schedule(every="1h")
        async def cancels() -> None:
            raise asyncio.CancelledError

        @schedule(every="1h")
        def stops() -> None:
            raise StopIteration

        @schedule(every="1h")
        async def no_character() -> None:
            raise ValueError("not a name: \udcff")  # as os.fsdecode makes of a file's name

        @schedule(every="1h")
        async def no_text() -> None:
            raise BadText

        for name, text in {
            "no_character": "ValueError: not a name: \\udcff",
            "no_text": "BadText: <exception str() failed>",
            "fails": "RuntimeError: no luck",
            "leaves": "SystemExit: 3",
            "cancels": "CancelledError",
            "stops": "RuntimeError: the function raised StopIteration",
        }.items():
            (ran,) = await schedule.run(name)
            assert (ran.outcome, ran.text) == ("failed", text)

    in_a_loop(test)
    assert "the schedule 'fails' has failed in worker 0 of generation 0: RuntimeError: no luck" in caplog.text


def test_a_coroutine_that_does_not_let_itself_be_cancelled_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(schedule_call, "TIDYING", 0.01)

    async def test() -> None:
        released = asyncio.Event()

        @schedule(every="1h", timeout="10ms")
        async def stubborn() -> None:
            while not released.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await released.wait()

        asked = asyncio.ensure_future(schedule.run("stubborn"))
        while "it cannot be ended, and goes on" not in caplog.text:
            await asyncio.sleep(0.01)
        assert (await schedule.history("stubborn"))[0].outcome == "running"
        released.set()
        (ran,) = await asked
        assert ran.outcome == "timeout"

    in_a_loop(test)
    assert caplog.text.count("has taken too long") == 1


def test_a_run_has_its_time() -> None:
    released = threading.Event()

    async def test() -> None:
        @schedule(every="1h", timeout="50ms")
        async def slow() -> None:
            await asyncio.sleep(3600)

        @schedule(every="1h", timeout="50ms")
        def threaded() -> None:
            released.wait(PATIENCE)

        @schedule(every="1h", timeout="1m")
        async def own() -> None:
            raise TimeoutError("mine")

        (ran,) = await schedule.run("slow")
        assert ran.outcome == "timeout"
        (ran,) = await schedule.run("own")
        assert ran.outcome == "failed"
        asked = asyncio.ensure_future(schedule.run("threaded"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asked), 0.3)
        assert (await schedule.history("threaded"))[0].outcome == "running"  # since its thread is
        released.set()
        assert (await asked)[0].outcome == "timeout"

    in_a_loop(test)


def test_pause_resume_and_run() -> None:
    async def test() -> None:
        schedule(every="100ms")(nothing)
        await ended("nothing", "ok")
        await schedule.pause("nothing")
        found = await ended("nothing", "paused")
        assert (await schedule.list())[0]["paused"]["by"] == "worker 0 of generation 0"
        (ran,) = await schedule.run("nothing")
        assert (ran.outcome, ran.kind) == ("ok", "asked")
        assert next(each.began for each in found if each.outcome == "paused") is None
        await schedule.resume("nothing")
        while (await schedule.history("nothing"))[0].outcome != "ok" or len(found) < 2:
            found = await schedule.history("nothing")
            await asyncio.sleep(0.01)
        for do in (schedule.pause, schedule.run, schedule.history):
            with pytest.raises(ScheduleRefused, match="did you mean 'nothing'"):
                await do("nohting")

    in_a_loop(test)


def test_a_pause_withdraws_what_was_given_and_has_not_begun() -> None:
    async def test() -> None:
        began = []

        @schedule(every="1h")
        async def job() -> None:
            began.append(1)

        await schedule.list()
        link, told = current(), asyncio.get_running_loop().create_future()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(link, "send", lambda kind, head, body=b"": told.set_result((kind, head["outcome"])))
            head = {"run": 77, "name": "job", "instant": 0, "attempt": 1, "kind": "tick", "token": None}
            link.receive(encode("schedule.run", head))
            link.receive(encode("schedule.withdraw", {"run": 77}))  # both lay there when the process woke up
            assert await told == ("schedule.ended", "paused")
        assert began == []
        assert not schedule._runs._not_started

    in_a_loop(test)


def test_without_the_listener_runs_end_and_questions_fail(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        begun = asyncio.Event()

        @schedule(every="1h", immediate=True)
        async def job() -> None:
            begun.set()
            await asyncio.sleep(0.05)
            raise RuntimeError("no luck")

        await begun.wait()
        asked = asyncio.ensure_future(schedule.run("job"))
        await asyncio.sleep(0)
        current().close()
        with pytest.raises(LinkClosed, match="not known what it did"):
            await asked
        with pytest.raises(LinkClosed):
            await schedule.pause("job")
        schedule(every="1h")(nothing)
        await asyncio.gather(*work.tasks)

    in_a_loop(test)
    assert "the schedule 'job' has ended, outcome failed: RuntimeError: no luck" in caplog.text


def test_the_graceful_timeout_cuts_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "cut", False)  # of this process, which goes on with other tests

    async def test() -> None:
        begun = asyncio.Event()

        @schedule(every="1h")
        async def job() -> None:
            begun.set()
            await asyncio.sleep(3600)

        asked = asyncio.ensure_future(schedule.run("job"))
        await begun.wait()
        assert work.cancel() == 1
        assert (await asked)[0].outcome == "cut"

    in_a_loop(test)


def test_a_thread_may_import_what_has_schedules() -> None:
    async def test() -> None:
        await schedule.start()
        await asyncio.to_thread(schedule(every="1h", immediate=True), nothing)
        while not await schedule.list():
            await asyncio.sleep(0.01)
        await ended("nothing", "ok")

    in_a_loop(test)


def test_each_loop_has_a_local_mode_of_its_own() -> None:
    schedule(every="100ms")(nothing)

    async def test() -> None:
        await schedule.start()
        found = await ended("nothing", "ok")
        assert len([each for each in found if each.outcome == "ok"]) < 5

    in_a_loop(test)
    in_a_loop(test)


def test_many_schedules_are_listed_whole() -> None:
    async def test() -> None:
        for number in range(75):
            schedule(every="1h", name=f"job {number:02}")(nothing)
        await schedule.start()
        found = await schedule.list()
        assert [each["name"] for each in found] == [f"job {number:02}" for number in range(75)]

    in_a_loop(test)


def test_there_is_one() -> None:
    assert isinstance(schedule, Schedule)
