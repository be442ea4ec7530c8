"""Calls of the application's functions: within a time limit, and in a thread if they are not async."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable
from typing import Any, Final

from serve_asgi.ipc import forked_children as forks

TIDYING: Final = 1.0
"""Seconds that a cancelled coroutine has for its `finally`; then it is reported as one that goes on."""


async def call_within(function: Callable[[], Any], name: str, limit: float | None, overdue: Callable[[], None]) -> bool:
    """Call the function; return whether it took longer than `limit` (s; None: no limit). Raises what it raises.

    A thread cannot be cancelled: if it takes too long, `overdue` is called, and it is still waited for. The same goes
    for a coroutine that does not end soon after it has been cancelled.
    """
    if not is_asynchronous(function):
        thread = call_in_thread(function, name)
        try:
            async with asyncio.timeout(limit) as timeout:
                found = await asyncio.shield(thread)
                if inspect.isawaitable(found):
                    await found
        except TimeoutError:
            if not timeout.expired():
                raise
            overdue()
            await thread
        return timeout.expired()
    stubborn = None if limit is None else asyncio.get_running_loop().call_later(limit + TIDYING, overdue)
    try:
        async with asyncio.timeout(limit) as timeout:
            await function()
    except TimeoutError:
        if not timeout.expired():
            raise
    finally:
        if stubborn is not None:
            stubborn.cancel()
    return timeout.expired()


def call_in_thread(function: Callable[[], Any], name: str) -> asyncio.Future[Any]:
    """Call a function in a daemon thread of its own."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if found.done():
            return
        if error is None:
            found.set_result(result)
        elif issubclass(type(error), StopIteration):  # a future does not accept it
            found.set_exception(RuntimeError("the function raised StopIteration"))
        else:
            found.set_exception(error)

    def run() -> None:
        result, raised = None, None
        try:
            result = context.run(function)
        except BaseException as error:  # handled in the loop's thread
            forks.leave(error)
            raised = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, raised)

    threading.Thread(target=run, name=name, daemon=True).start()
    return found


def is_cancelled() -> bool:
    """Whether this task has been cancelled, as opposed to its own code raising CancelledError."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine, as far as can be known beforehand."""
    call_within = getattr(type(function), "__call__", None)  # noqa: B004 - it is inspected, not called
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call_within)
