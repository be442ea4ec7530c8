"""The event loop of a process that runs the application's code: it runs to its end, whatever is raised in it.

asyncio and uvloop let SystemExit and KeyboardInterrupt through: raised in a task or a callback they end `run_forever`,
and with it everything that the process serves, because of a `sys.exit()` somewhere in a library. Here the loop is
resumed where it stopped: what was ready to run still is. The same goes for `loop.stop()`. Only its main coroutine ends
it.

The application is imported while the loop is stopped (`outside_loop`), as other servers import it before theirs runs:
code that is not async may refuse to work where one runs (Django's database layer), or start one of its own
(`asyncio.run`). The loop is there nevertheless, for `asyncio.get_event_loop`, and is the one that will run.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from serve_asgi.ipc import forked_children as forks
from serve_asgi.logs.exceptions import exc_info, is_a
from serve_asgi.logs.server_log import about
from serve_asgi.worker import uncaught_exceptions as uncaught

T = TypeVar("T")

log = logging.getLogger("serve")

_outside: Final[list[tuple[Callable[[], None], asyncio.Future[None]]]] = []
"""What is to be called as soon as the loop has stopped, and the futures that wait for it."""


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
                if not _outside:
                    uncaught.told_of_stop()
            else:
                raise
        if _outside:
            _call_outside(loop)
    return task.result()


async def outside_loop(function: Callable[[], T]) -> T:
    """Call the application's `function` in this thread while the loop does not run, and return what it returns.

    Nothing else of the process happens meanwhile, as in any function that does not await. Context variables that it
    sets are set in the current task. It is not called if this is cancelled in the same turn of the loop. Only in what
    `run` or `complete` runs. Raises what `function` raises.
    """
    loop = asyncio.get_running_loop()
    called: asyncio.Future[None] = loop.create_future()
    context = contextvars.copy_context()
    results: list[T] = []
    raised: list[BaseException] = []

    def call() -> None:
        try:
            results.append(context.run(function))
        except BaseException as error:  # raised where it is awaited
            raised.append(error)

    _outside.append((call, called))
    loop.stop()
    await called
    adopt_variables(context)
    if raised:
        raise raised.pop()
    return results.pop()


def adopt_variables(context: contextvars.Context) -> None:
    """Set in the present context what is set in another one."""
    for variable, value in context.items():
        if variable.get(_UNSET) is not value:
            variable.set(value)


_UNSET: Final = object()


def _call_outside(loop: asyncio.AbstractEventLoop) -> None:
    """Call what is to be called while the loop does not run; the loop remains the thread's, and open."""
    waiting = _outside.copy()
    _outside.clear()
    # `loop = get_event_loop(); loop.run_until_complete(…); loop.close()`: the loop is not the application's to close.
    setattr(loop, "close", _leave_open)  # noqa: B010 - a method may not be assigned to
    try:
        for call, called in waiting:
            if not called.done():  # cancelled
                call()
    finally:
        with contextlib.suppress(AttributeError):
            delattr(loop, "close")
        asyncio.set_event_loop(loop)  # asyncio.run leaves none
    # uvloop closes its pair of sockets for signals when it stops, and opens another one when it goes on.
    loop.call_soon(forks.claim_opened_since, forks.open_descriptors())
    for _, called in waiting:
        if not called.done():
            called.set_result(None)


def _leave_open() -> None:
    """Do nothing."""


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
