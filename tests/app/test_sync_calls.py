"""The `sync` objects: what waits, called by threads, in local mode."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, assert_type

import pytest

from serve_asgi import agent, messenger, schedule, shared
from serve_asgi.app import sync_calls as blocking
from serve_asgi.app import thread_loop as stand_in
from serve_asgi.app.messenger import Message, Receipt
from serve_asgi.app.schedule import ScheduleRefused
from tests.running import PATIENCE, ROOT

T = TypeVar("T")


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    messenger.off("t")
    schedule._registered.clear()
    stand_in.stop()


def in_a_thread(do: Callable[[], T]) -> T:
    """Have a thread call `do` while an event loop runs, which has been used."""

    async def main() -> T:
        await schedule.start()
        async with asyncio.timeout(PATIENCE):
            return await asyncio.to_thread(do)

    return asyncio.run(main())


def without_a_loop(do: Callable[[], T]) -> T:
    return do()


@pytest.mark.parametrize("where", [in_a_thread, without_a_loop])
def test_what_a_thread_asks(where: Callable[[Callable[[], None]], None]) -> None:
    got: list[Any] = []

    @messenger.on("t")
    def handler(message: Message) -> Any:
        got.append(message.payload)
        return [message.payload]

    @schedule(every="1h")
    def job() -> None:
        got.append("job")

    def do() -> None:
        assert assert_type(shared.sync.set("k", {"a": 1}), int) == 1
        assert shared["k"] == {"a": 1}
        assert assert_type(shared.sync.incr("n", 5, timeout=3), int) == 5
        assert shared.sync.get_authoritative("n") == 5
        assert assert_type(shared.sync.delete("k"), bool)
        assert not shared.sync.delete("k")
        assert assert_type(messenger.sync.broadcast("t", 1), int) == 1
        assert messenger.sync.send_to_workers("t", 2) == 1
        messenger.sync.send_to(0, "t", 3)
        messenger.sync.send_to_agent("t", 4)
        messenger.sync.send_to_any("t", 5)
        assert assert_type(messenger.sync.send_to_any("t", 6, ack=True), Receipt).attempts == 1
        assert messenger.sync.call("t", 7) == [7]
        messenger.sync.ready(timeout=1)
        agent.sync.wait(timeout=1)
        agent.sync.send("t", 8)
        assert agent.sync.call("t", 9) == [9]
        assert [each["name"] for each in schedule.sync.list()] == ["job"]
        schedule.sync.pause("job")
        assert schedule.sync.list()[0]["paused"]
        schedule.sync.resume("job")
        (ran,) = schedule.sync.run("job")
        assert (ran.outcome, schedule.sync.history("job")[0].outcome) == ("ok", "ok")
        assert sorted(map(str, got)) == ["1", "2", "3", "4", "5", "6", "7", "8", "9", "job"]

    where(do)


@pytest.mark.parametrize("where", [in_a_thread, without_a_loop])
def test_errors_are_those_of_the_asynchronous_call(where: Callable[[Callable[[], None]], None]) -> None:
    @messenger.on("t")
    async def handler(message: Message) -> None:
        if message.payload:
            raise ValueError("as it must be")
        await asyncio.sleep(PATIENCE)

    def do() -> None:
        with pytest.raises(messenger.NoReceiver):
            messenger.sync.send_to(1, "t")
        with pytest.raises(messenger.NotSendable):
            messenger.sync.broadcast("t", object())
        with pytest.raises(messenger.CallFailed, match="as it must be"):
            messenger.sync.call("t", 1)
        with pytest.raises(messenger.NotHandled):
            messenger.sync.call("t", 0, timeout=0.01)
        with pytest.raises(ValueError, match="above 0"):
            messenger.sync.call("t", 0, timeout=-1)
        with pytest.raises(shared.Conflict):
            shared.sync.set("k", 1, version=9)
        with pytest.raises(shared.BadKey):
            shared.sync.incr("")
        with pytest.raises(TypeError):
            shared.sync.incr()  # type: ignore[call-arg]
        with pytest.raises(ScheduleRefused):
            schedule.sync.run("nothing")

    where(do)


def test_on_the_loops_thread_it_says_what_to_write() -> None:
    async def main() -> None:
        for call, name in (
            (lambda: shared.sync.set("k", 1), "shared.set"),
            (lambda: shared.sync.update("k", lambda _: 1), "shared.update"),
            (lambda: messenger.sync.broadcast("t"), "messenger.broadcast"),
            (schedule.sync.list, "schedule.list"),
            (agent.sync.wait, "agent.wait"),
            (lambda: next(shared.sync.watch()), "shared.watch"),
        ):
            with pytest.raises(RuntimeError, match=rf"event loop, which would stand still: write `await {name}\("):
                call()
        assert "k" not in shared

    asyncio.run(main())


@pytest.mark.parametrize("where", [in_a_thread, without_a_loop])
def test_update_calls_its_function_in_the_thread_that_waits(where: Callable[[Callable[[], None]], None]) -> None:
    def do() -> None:
        here = threading.current_thread()

        def more(value: int) -> int:
            assert threading.current_thread() is here
            return value + shared.sync.incr("calls")

        async def doubled(value: int) -> int:
            return 2 * value

        with ThreadPoolExecutor(3) as threads:
            list(threads.map(lambda _: shared.sync.update("n", lambda value: value + 1, 0), range(30)))
        assert shared["n"] == 30
        assert shared.sync.update("n", more) == 31
        assert shared.sync.update("n", doubled) == 62
        with pytest.raises(ZeroDivisionError):
            shared.sync.update("n", lambda value: value / 0)
        with pytest.raises(SystemExit):  # which ends no loop
            shared.sync.update("n", lambda _: sys.exit(1))
        assert shared.sync.update("n", lambda value: value) == 62

    where(do)


def test_loops_over_what_comes() -> None:
    def do() -> None:
        changes = shared.sync.watch("k")
        shared.sync.set("k", 1)
        shared.sync.set("other", 1)
        assert next(changes).value == 1
        shared.sync.delete("k")
        assert next(changes).deleted
        changes.close()
        assert messenger.me.slot in {peer.slot for peer in next(messenger.sync.presence())}
        messages = messenger.sync.messages("t")
        with ThreadPoolExecutor(1) as threads:
            receipt = threads.submit(messenger.sync.send_to_any, "t", 1, ack=True)
            assert next(messages).payload == 1
            assert not receipt.done()
            messages.close()
            assert receipt.result(PATIENCE).attempts == 1
        with pytest.raises(messenger.NoReceiver):
            messenger.sync.send_to(0, "t", timeout=2)

    in_a_thread(do)


def test_what_a_blocked_loop_has_not_begun_is_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "TURN", 0.05)
    found: list[BaseException] = []

    async def main() -> None:
        await shared.set("k", 0)
        messenger.on("t", lambda _: None)

        def ask() -> None:
            for call in (lambda: shared.sync.set("k", 1, timeout=0.05), lambda: messenger.sync.call("t", timeout=0.05)):
                try:
                    call()
                except TimeoutError as error:
                    found.append(error)
                except shared.NotWritten as error:
                    found.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()  # the loop stands still for as long as that takes
        assert (await shared.incr("k"), shared["k"]) == (1, 1)

    asyncio.run(main())
    assert [type(error) for error in found] == [shared.NotWritten, messenger.NotDelivered]
    assert "has not been begun: the event loop of this process is blocked" in str(found[0])


def test_a_loop_that_is_blocked_while_it_is_asked_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "GRACE", 0.05)
    found: list[BaseException] = []
    told = threading.Event()

    async def main() -> None:
        messenger.on("t", lambda _: told.wait(PATIENCE))  # which blocks the loop

        def ask() -> None:
            try:
                messenger.sync.call("t", timeout=0.05)
            except messenger.NotDelivered as error:
                found.append(error)
            finally:
                told.set()

        await messenger.ready()
        await asyncio.to_thread(ask)

    asyncio.run(main())
    assert "it is not known what became of messenger.call" in str(found[0])


def test_a_thread_that_waits_is_told_that_the_loop_has_ended() -> None:
    found: list[BaseException] = []
    begun = threading.Event()
    threads: list[threading.Thread] = []

    async def handler(message: Message) -> None:
        begun.set()
        await asyncio.sleep(PATIENCE)

    def ask() -> None:
        for _ in range(2):  # the second one finds it closed
            try:
                messenger.sync.call("t", timeout=60)
            except messenger.LinkClosed as error:
                found.append(error)
                return

    async def main() -> None:
        messenger.on("t", handler)
        await messenger.ready()
        threads.append(threading.Thread(target=ask))
        threads[0].start()
        await asyncio.to_thread(begun.wait)

    asyncio.run(main())
    threads[0].join(PATIENCE)
    assert "the event loop of this process has ended" in str(found[0])


def test_without_a_loop_a_process_has_one_state_and_one_call_by_asyncio_run_is_among_it() -> None:
    assert shared.sync.incr("n") == 1
    assert asyncio.run(shared.incr("n")) == 2
    assert in_another_thread(lambda: shared.sync.incr("n")) == 3
    assert in_another_thread(lambda: asyncio.run(shared.incr("n"))) == 4
    assert shared["n"] == 4


def in_another_thread(do: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(do).result(PATIENCE)


def test_a_loop_of_the_applications_takes_over_with_what_is_known() -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    begun = threading.Event()
    found: list[BaseException] = []

    @messenger.on("t")
    async def handler(message: Message) -> None:
        loops.append(asyncio.get_running_loop())
        begun.set()
        if message.payload == "wait":
            await asyncio.sleep(PATIENCE)

    def wait() -> None:
        try:
            messenger.sync.call("t", "wait", timeout=60)
        except messenger.LinkClosed as error:
            found.append(error)

    version = shared.sync.set("k", "before")
    shared.sync.set("paused", True)
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert begun.wait(PATIENCE)

    async def main() -> None:
        assert (shared["k"], shared.version("k")) == ("before", version)  # at once
        waiting.join(PATIENCE)
        assert len(found) == 1
        assert await messenger.broadcast("t") == 1
        assert await asyncio.to_thread(messenger.sync.broadcast, "t") == 1
        assert await shared.set("k", 1) > version
        assert await asyncio.to_thread(shared.sync.incr, "k") == 2
        await messenger.call("t")
        assert set(loops[1:]) == {asyncio.get_running_loop()}

    asyncio.run(main())
    assert shared.sync.get_authoritative("k") is None  # as any loop after another: it begins with nothing

    async def empty() -> None:
        assert not shared.keys()

    stand_in.stop()
    asyncio.run(empty())


def test_several_threads_may_be_the_first() -> None:
    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(lambda _: shared.sync.incr("n"), range(64))) == list(range(1, 65))


def test_a_process_that_is_forked_goes_on_by_itself(tmp_path: Path) -> None:
    program = """
import os, sys
from serve_asgi import shared
assert shared.sync.incr("n") == 1
child = os.fork()
assert shared.sync.incr("n") == 2
assert shared["n"] == 2
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    run(program, tmp_path, "-W", "ignore::DeprecationWarning")  # which 3.12 and later have for it


def test_a_script_ends_at_once_and_leaves_nothing_open(tmp_path: Path) -> None:
    program = """
from serve_asgi import messenger, schedule, shared
schedule(every="1h", name="job")(lambda: None)
messenger.on("t", lambda message: message.payload)
assert messenger.sync.call("t", 1) == 1
"""
    began = time.monotonic()
    run(program, tmp_path, "-X", "dev", "-W", "error")
    assert time.monotonic() - began < PATIENCE


def run(program: str, directory: Path, *options: str) -> None:
    told = subprocess.run(
        [sys.executable, *options, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=directory,
        capture_output=True,
        timeout=2 * PATIENCE,
    )
    assert (told.returncode, told.stderr.decode()) == (0, "")


def test_a_handler_that_is_not_async_may_have_a_thread() -> None:
    async def main() -> None:
        got: list[Any] = []

        @messenger.on("t", thread=True)
        def handler(message: Message) -> Any:
            got.append((message.payload, threading.current_thread() is threading.main_thread()))
            return shared.sync.incr("n")

        assert [await messenger.call("t", number) for number in range(3)] == [1, 2, 3]
        assert await messenger.broadcast("t", 3) == 1
        assert await messenger.call("t", 4) == 5
        assert got == [(number, False) for number in range(5)]  # in order

        async def asynchronous(message: Message) -> None: ...

        with pytest.raises(TypeError, match="is async"):
            messenger.on("t", asynchronous, thread=True)

    asyncio.run(main())


def test_handlers_are_registered_by_threads_too() -> None:
    def do() -> None:
        messenger.on("t", lambda _: 1)
        assert messenger.sync.call("t") == 1
        messenger.off("t")
        with pytest.raises(messenger.NoReceiver):
            messenger.sync.call("t", timeout=2)

    in_a_thread(do)
    without_a_loop(do)


def test_the_loop_that_imported_it_is_that_of_a_thread_nobody_knows(tmp_path: Path) -> None:
    program = """
import asyncio, threading
async def main():
    from serve_asgi import shared
    found = []
    thread = threading.Thread(target=lambda: found.append(shared.sync.incr("n")))
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.001)
    from serve_asgi.app import hub_link as link
    assert link.current_or_none().loop is asyncio.get_running_loop()
    assert (found, shared["n"]) == ([1], 1)
asyncio.run(main())
"""
    run(program, tmp_path)
