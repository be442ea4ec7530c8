"""The loop that applications run in: what is called while it is stopped, and that it goes on afterwards."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable
from typing import Any

import pytest

from serve_asgi.worker.event_loop import loop_factory, outside_loop, run

NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("NUMBER", default=0)


@pytest.fixture(params=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return loop_factory(request.param)


NewLoop = Callable[[], asyncio.AbstractEventLoop]


def test_no_loop_runs_and_the_one_that_will_is_there(new_loop: NewLoop) -> None:
    def imported() -> asyncio.AbstractEventLoop:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return asyncio.get_event_loop()

    async def main() -> None:
        beside = asyncio.create_task(asyncio.sleep(0.01, "beside"))
        for _ in range(3):
            assert await outside_loop(imported) is asyncio.get_running_loop()
        assert await beside == "beside"

    run(main, new_loop)


def test_what_is_called_may_run_loops_and_close_them(new_loop: NewLoop) -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 6

    def imported() -> list[int]:
        own = asyncio.get_event_loop()
        later = own.create_task(answer())
        found = [own.run_until_complete(answer())]
        own.close()  # as if it were the application's own
        found.append(asyncio.run(answer()))
        assert later.done()
        return found

    async def main() -> None:
        assert await outside_loop(imported) == [6, 6]
        assert await outside_loop(asyncio.get_event_loop) is asyncio.get_running_loop()
        assert await answer() == 6

    run(main, new_loop)


def test_what_it_raises_is_raised_where_it_is_awaited(new_loop: NewLoop) -> None:
    async def main() -> None:
        for error in (ValueError("own"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()):

            def imported(error: BaseException = error) -> None:
                raise error

            with pytest.raises(type(error)) as raised:
                await outside_loop(imported)
            assert raised.value is error

    run(main, new_loop)


def test_context_variables_that_it_sets_stay_set(new_loop: NewLoop) -> None:
    async def main() -> None:
        await outside_loop(lambda: NUMBER.set(7))
        assert NUMBER.get() == 7
        assert await asyncio.create_task(number()) == 7

    async def number() -> int:
        return NUMBER.get()

    run(main, new_loop)
    assert NUMBER.get() == 0


def test_it_is_not_called_if_its_caller_is_cancelled_first(new_loop: NewLoop) -> None:
    called: list[Any] = []

    async def main() -> None:
        asking = asyncio.create_task(outside_loop(lambda: called.append("in vain")))
        asyncio.get_running_loop().call_soon(asking.cancel)
        await asyncio.wait({asking})
        assert asking.cancelled()

    run(main, new_loop)
    assert not called


def test_an_exit_in_the_same_turn_of_the_loop_does_not_prevent_it(
    new_loop: NewLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> str:
        asyncio.get_running_loop().call_soon(sys.exit, 3)
        return await outside_loop(lambda: "called")

    assert run(main, new_loop) == "called"
    assert [record.getMessage() for record in caplog.records] == [
        "SystemExit was raised in a task or callback of the application; the process continues"
    ]
