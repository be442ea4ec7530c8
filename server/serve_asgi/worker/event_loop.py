"""The event loop of a process that runs the application's code: it runs to its end, whatever is raised in it.

asyncio and uvloop let SystemExit and KeyboardInterrupt through: raised in a task or a callback they end `run_forever`,
and with it everything that the process serves, because of a `sys.exit()` somewhere in a library. Here the loop is
resumed where it stopped: what was ready to run still is. The same goes for `loop.stop()`. Only its main coroutine ends
it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from serve_asgi.logs.exceptions import exc_info, is_a
from serve_asgi.logs.server_log import about
from serve_asgi.worker import uncaught_exceptions as uncaught

T = TypeVar("T")

log = logging.getLogger("serve")


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The event loop's factory. `auto` is uvloop where it is installed."""
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        if name == "uvloop":
            raise
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def run(main: Callable[[], Coroutine[Any, Any, T]], new_loop: Callable[[], asyncio.AbstractEventLoop]) -> T:
    """As `asyncio.run`, in a loop created by `new_loop`. Raises only what `main` raises."""
    loop = new_loop()
    try:
        asyncio.set_event_loop(loop)
        uncaught.watch(loop)
        return complete(loop, hidden(main))
    finally:
        for wind_up in (_cancel_the_rest, loop.shutdown_asyncgens, loop.shutdown_default_executor):
            try:
                complete(loop, wind_up())
            except BaseException as error:
                log.error(
                    "the event loop did not close cleanly", exc_info=exc_info(error), extra=about("internal_error")
                )
                break  # the loop itself cannot run
        asyncio.set_event_loop(None)
        loop.close()


def complete(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run the loop until the coroutine has ended."""
    task = loop.create_task(coroutine)
    while not task.done():
        try:
            loop.run_until_complete(task)
        except BaseException as error:
            if task.done() and (task.cancelled() or task.exception() is error):
                break  # its own
            if not is_a(error, Exception):
                uncaught.told_of_exit(error)
            elif is_a(error, RuntimeError) and not task.done() and not loop.is_closed():
                uncaught.told_of_stop()
            else:
                raise
    return task.result()


async def hidden(function: Callable[..., Coroutine[Any, Any, T]], *given: Any) -> T:
    """Run a coroutine function of the server's in the current task, hidden from `asyncio.all_tasks()`.

    Many applications cancel all tasks but the current one at shutdown, and mean their own.
    """
    task = asyncio.current_task()
    if task is not None:
        asyncio.tasks._unregister_task(task)  # see "Extending" in the documentation of asyncio
    return await function(*given)


def hidden_task(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task of the server's, hidden from `asyncio.all_tasks()`."""
    task = asyncio.ensure_future(coroutine)
    asyncio.tasks._unregister_task(task)
    return task


async def _cancel_the_rest() -> None:
    """Cancel the tasks that the application has left behind, and wait for them."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest)
    loop = asyncio.get_running_loop()
    for task in rest:
        if not task.cancelled() and (error := task.exception()) is not None:
            loop.call_exception_handler({"message": "a task failed at the end", "exception": error, "task": task})
