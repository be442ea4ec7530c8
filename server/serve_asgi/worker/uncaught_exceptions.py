"""Logs uncaught exceptions in a process that runs the application's code as events, not as bare lines on stderr.

The interpreter and the event loop have hooks for exceptions from a thread, a callback, a task that nobody awaits, or a
`__del__`. Hooks that an application sets take precedence. Some are called by the garbage collector, in the middle of
anything: nothing here may raise or wait.
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
"""Most characters of an object's repr."""

log = logging.getLogger("serve.error")


def install() -> None:
    """Set the interpreter's hooks."""
    sys.excepthook = _main_thread
    threading.excepthook = _thread
    sys.unraisablehook = _unraisable


def watch(loop: asyncio.AbstractEventLoop) -> None:
    """Set the loop's exception handler."""
    loop.set_exception_handler(_loop)


def told_of_exit(error: BaseException) -> None:
    """Log that a task or callback raised an exception that would have ended the loop."""
    if not was_told(error):
        _tell(
            f"{name_of(type(error))} was raised in a task or callback of the application; the process continues", error
        )
        mark_told(error)


def told_of_stop() -> None:
    """Log that the application has called `loop.stop()`."""
    _tell("the application stopped the event loop, which continues", None)


def _main_thread(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _tell("the process ends with an exception", error)


def _thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not is_a(
        args.exc_value, SystemExit
    ):  # SystemExit ends a thread, and is not an error
        name = "" if args.thread is None else args.thread.name
        _tell(f"the thread {shortened(str(name), OBJECT_LIMIT)} ended with an exception", args.exc_value)


def _unraisable(args: Any) -> None:
    what = args.err_msg or "an exception that could not be raised"
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
        mark_told(error)  # uvloop drops a task before it reports what has ended the loop


def _task(future: asyncio.Future[Any]) -> str:
    """Which task it is: its repr would contain the whole exception."""
    if not isinstance(future, asyncio.Task):
        return "a future"
    coroutine = future.get_coro()
    name = getattr(coroutine, "__qualname__", "")
    return shortened(f"{future.get_name()}, {name}", OBJECT_LIMIT)


def _said(thing: Any) -> str:
    """An object's repr, if it has one."""
    try:
        return shortened(str.__getitem__(repr(thing), slice(None)), OBJECT_LIMIT)
    except BaseException:
        return f"an object of type {type.__dict__['__name__'].__get__(type(thing))}"


def _tell(text: str, error: BaseException | None) -> None:
    with contextlib.suppress(BaseException):
        info = None if error is None else exc_info(error)
        log.error("%s", text, exc_info=info, extra=about("background_failed"))
