"""What nobody catches in a process that runs the application's code: an event in the log, not bare lines on stderr.

The interpreter and the event loop have a hook each for what comes out of a thread, a callback, a task that nobody
awaits, or a `__del__`. An application that sets its own has the say. Some are called by the garbage collector, in the
middle of anything: nothing here may raise or wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import threading
from types import TracebackType
from typing import Any, Final

from serve_asgi.logs.exceptions import exc_info, is_a, mark_told, name_of, shortened, was_told
from serve_asgi.logs.server_log import about

OBJECT_LIMIT: Final = 500
"""Characters that an object may say of itself."""

log = logging.getLogger("serve.error")


def install() -> None:
    """Have the interpreter tell the log."""
    sys.excepthook = _main_thread
    threading.excepthook = _thread
    sys.unraisablehook = _unraisable


def watch(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop tell the log."""
    loop.set_exception_handler(_loop)


def told_of_exit(error: BaseException) -> None:
    """A task or callback of the application's has raised what ends a loop; it does not end this one."""
    if not was_told(error):
        _tell(f"{name_of(type(error))} was raised in a task or callback of the application; the process goes on", error)
        mark_told(error)


def told_of_stop() -> None:
    """The application has called `loop.stop()`."""
    _tell("the application stopped the event loop, which goes on", None)


def _main_thread(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _tell("the process ends by an exception", error)


def _thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not is_a(args.exc_value, SystemExit):  # which ends a thread, and is no error
        name = "" if args.thread is None else args.thread.name
        _tell(f"the thread {shortened(str(name), OBJECT_LIMIT)} ended by an exception", args.exc_value)


def _unraisable(args: Any) -> None:
    what = args.err_msg or "an exception that could be raised nowhere"
    of = "" if args.object is None else f": {_said(args.object)}"
    _tell(f"{what}{of}", args.exc_value)


def _loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if error is not None and was_told(error, math.inf):
        return
    text = shortened(str(context.get("message") or "an exception in the event loop"), OBJECT_LIMIT)
    for key in ("task", "future", "handle", "protocol", "transport", "asyncgen"):
        if (thing := context.get(key)) is not None:
            text += f" ({_task(thing) if issubclass(type(thing), asyncio.Future) else _said(thing)})"
            break
    _tell(text, error)
    if error is not None and not is_a(error, Exception):
        mark_told(error)  # uvloop throws a task away before it tells of what has ended the loop


def _task(future: asyncio.Future[Any]) -> str:
    """Which one: what it says of itself holds the whole exception."""
    if not isinstance(future, asyncio.Task):
        return "a future"
    coroutine = future.get_coro()
    name = getattr(coroutine, "__qualname__", "")
    return shortened(f"{future.get_name()}, {name}", OBJECT_LIMIT)


def _said(thing: Any) -> str:
    """What an object says of itself, if it does."""
    try:
        return shortened(str.__getitem__(repr(thing), slice(None)), OBJECT_LIMIT)
    except BaseException:
        return f"an object of type {type.__dict__['__name__'].__get__(type(thing))}"


def _tell(text: str, error: BaseException | None) -> None:
    with contextlib.suppress(BaseException):
        info = None if error is None else exc_info(error)
        log.error("%s", text, exc_info=info, extra=about("background_failed"))
