"""What a process tells of its threads and tasks."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from serve_asgi.worker import stack_dump as stacks

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def asked_elsewhere(ask: Callable[[], Any]) -> Any:
    """What `ask` returns in another thread, this one standing where it calls this."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(ask()))
    thread.start()
    thread.join()
    return found[0]


def run(loop_name: str, main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        return runner.run(main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_that_waits_is_idle_and_one_that_runs_code_is_not(loop: str) -> None:
    """Its innermost frame tells, also uvloop's."""
    here = threading.get_ident()
    seen: list[bool] = []

    def look() -> None:
        seen.append(stacks.idle(sys._current_frames()[here]))

    async def main() -> None:
        asked_elsewhere(look)
        waited = asyncio.Event()
        running = asyncio.get_running_loop()

        def look_until_idle() -> None:
            while True:
                look()
                if seen[-1]:
                    break
            running.call_soon_threadsafe(waited.set)

        thread = threading.Thread(target=look_until_idle)
        thread.start()
        await waited.wait()
        thread.join()

    run(loop, main())
    assert seen[0] is False
    assert seen[-1] is True


@pytest.mark.parametrize("loop", LOOPS)
def test_tasks_are_told_with_all_that_they_wait_for(loop: str) -> None:
    async def numbers() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    class Wrapped:
        def __init__(self, inner: Awaitable[None]) -> None:
            self.inner = inner

        def __await__(self) -> Any:
            return self.inner.__await__()

    async def streams() -> None:
        async for _ in numbers():
            pass

    async def handles() -> None:
        await Wrapped(streams())

    async def main() -> dict[str, Any]:
        task = asyncio.create_task(handles(), name="the one")
        waiting = asyncio.create_task(asyncio.wait({task}), name="the other")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running = asyncio.get_running_loop()
        found: dict[str, Any] = asked_elsewhere(lambda: stacks.snapshot(running, None, 100_000))
        task.cancel()
        await waiting
        return found

    found = run(loop, main())
    told = {task["name"]: task for task in found["tasks"]}
    functions = [line.rpartition(" in ")[2] for line in told["the one"]["stack"] if line.startswith("File ")]
    assert functions == ["handles", "streams", "numbers", "wait"]
    assert told["the one"]["awaits"] == "Future"
    assert "the other" not in told  # the machinery's alone
    assert any(task.get("running") for task in told.values())


def test_the_answer_is_bounded_and_says_how_much_there_was() -> None:
    async def waits(number: int) -> None:
        await asyncio.Event().wait()

    async def main() -> dict[str, Any]:
        tasks = [asyncio.create_task(waits(number)) for number in range(500)]
        await asyncio.sleep(0)
        running = asyncio.get_running_loop()
        found: dict[str, Any] = asked_elsewhere(lambda: stacks.snapshot(running, None, 10_000))
        for task in tasks:
            task.cancel()
        return found

    found = run("asyncio", main())
    assert len(json.dumps(found)) <= 10_000
    assert found["tasks_total"] == 501
    assert 0 < len(found["tasks"]) < 100


def test_a_deep_stack_keeps_its_two_ends() -> None:
    def deeper(depth: int) -> list[str]:
        return deeper(depth - 1) if depth else stacks.lines_of(stacks.frames_of(sys._getframe()))

    lines = deeper(500)
    assert len(lines) < 100
    assert any("more frames" in line for line in lines)
    assert "deeper" in lines[-2]


def test_own_threads_are_not_told_of_and_others_are() -> None:
    done = threading.Event()
    for name in ("serve-something", "the application's"):
        threading.Thread(target=done.wait, name=name).start()
    told, _ = stacks.threads(None)
    done.set()
    names = [thread["name"] for thread in told]
    assert "the application's" in names
    assert "serve-something" not in names
