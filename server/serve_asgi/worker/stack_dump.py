"""What this process is doing: the Python stacks of its threads, and what its tasks wait for, as plain data.

Called from the watchdog's thread while the others run, even while the event loop is blocked: it calls no code of the
application (no `__repr__`, no property), waits for nothing but the interpreter lock, and its result is bounded. It must
not know who asks. A stack is a list of lines as in a traceback, the innermost call last; leading frames of this server
and of the machinery below it are omitted, unless nothing would be left.
"""

from __future__ import annotations

import asyncio
import asyncio.runners
import gc
import importlib
import json
import os
import selectors
import sys
import threading
import traceback
from collections.abc import Sequence
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

import anyio

from serve_asgi.http.request_cycle import run_cycle
from serve_asgi.http.request_head import Head
from serve_asgi.ipc.untrusted_input import sayable
from serve_asgi.logs.tracebacks import FILES, PACKAGE
from serve_asgi.websocket.application_call import call_application
from serve_asgi.worker.event_loop import complete
from serve_asgi.worker.lifespan import Lifespan

APPLICATIONS: Final = (os.path.join(PACKAGE, "demo") + os.sep, os.path.join(PACKAGE, "admin") + os.sep)
"""Applications that are part of this package: they are not machinery."""
MACHINERY: Final = (
    *(os.path.dirname(module.__file__) + os.sep for module in (asyncio, anyio, importlib) if module.__file__),
    *(*FILES, "<frozen ", threading.__file__, selectors.__file__),
)
"""Paths of frames that call an application and are not its own."""

STANDARD_LIBRARY: Final = os.path.dirname(os.__file__) + os.sep
OWN_THREADS: Final = "serve-"
"""Prefix of the names of this server's threads, which are not reported."""
OUTER_FRAMES: Final = 5
INNER_FRAMES: Final = 35
"""Frames that are kept at each end of a stack."""
LINE_LIMIT: Final = 300
"""Characters of one line."""
MOST_THREADS: Final = 64
MOST_TASKS: Final = 200
TRIES: Final = 20
"""Attempts to read the set of tasks, which may change meanwhile."""
DEPTH: Final = 200
"""Most coroutines that are followed in a chain of awaits."""

_RUNS_THE_LOOP: Final = (complete.__code__, asyncio.runners.Runner.run.__code__)
_LIFESPAN_WAITS: Final = Lifespan._receive.__code__
"""Where every application with a lifespan waits for its end."""

Frames = list[tuple[FrameType, int]]
"""Frames with their current lines, the innermost last."""


def idle(frame: FrameType | None) -> bool:
    """Whether a loop's thread with this innermost frame waits for events, or runs no Python code at all.

    uvloop has no frames of its own: its caller is the innermost one then.
    """
    if frame is None:
        return True
    code = frame.f_code
    if code in _RUNS_THE_LOOP:
        return True
    return code.co_name == "select" and code.co_filename == selectors.__file__


def frames_of(frame: FrameType | None) -> Frames:
    """The stack that ends in `frame`."""
    found: Frames = []
    while frame is not None:
        found.append((frame, frame.f_lineno or 0))
        frame = frame.f_back
    found.reverse()
    return found


def lines_of(frames: Frames) -> list[str]:
    """The stack as lines: from the application's first frame on; if there is none, from the loop's callback on."""
    callback = next((index + 1 for index, (frame, _) in enumerate(frames) if frame.f_code in _RUNS_THE_LOOP), 0)
    first = next((index for index, (frame, _) in enumerate(frames) if not _is_machinery(frame)), callback)
    frames = frames[first:]
    left_out = len(frames) - OUTER_FRAMES - INNER_FRAMES
    if left_out <= 0:
        return _formatted(frames)
    between = [f"[{left_out} more frames]"]
    return _formatted(frames[:OUTER_FRAMES]) + between + _formatted(frames[-INNER_FRAMES:])


def place_of(frames: Frames) -> str:
    """The innermost line of the application's own code (not a library's), as `file:line`; else the innermost of all."""
    if not frames:
        return ""
    frame, line = next((each for each in reversed(frames) if not _is_library(each[0])), frames[-1])
    return f"{frame.f_code.co_filename}:{line}"


def request_of(frames: Frames) -> str:
    """The request that the application handles in this stack, as `GET /path`, or ""."""
    for frame, _ in reversed(frames):
        code = frame.f_code
        if code is run_cycle.__code__:
            head = frame.f_locals["request"].head
        elif code is call_application.__code__:
            head = frame.f_locals["session"].request.head
        else:
            continue
        if isinstance(head, Head):  # the path as sent, which cannot forge a log line
            return f"{head.method} {head.path.decode('latin-1')}"[:LINE_LIMIT]
    return ""


def running_task(loop: asyncio.AbstractEventLoop) -> str:
    """The name of the task that `loop` is running, or "". May be called from any thread."""
    try:
        task = asyncio.current_task(loop)
    except RuntimeError:
        return ""
    return "" if task is None else task.get_name()


def threads(loop_thread: int | None) -> tuple[list[dict[str, Any]], int]:
    """The threads that are not this server's own, the loop's first, and their total number."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    current = sys._current_frames()
    idents = [i for i in current if not names.get(i, "").startswith(OWN_THREADS)]
    idents.sort(key=lambda ident: (ident != loop_thread, ident))
    return [_thread(i, names.get(i), current[i], i == loop_thread) for i in idents[:MOST_THREADS]], len(idents)


def tasks(loop: asyncio.AbstractEventLoop | None) -> tuple[list[dict[str, Any]], int]:
    """The application's tasks, and their total number; those that wait at the same place as others come last."""
    found = [_task(task, loop) for task in _all_tasks(loop)[: MOST_TASKS * 5]]
    told = [task for task in found if task is not None]
    return told[:MOST_TASKS], len(told)


def snapshot(
    loop: asyncio.AbstractEventLoop | None, loop_thread: int | None, limit: int, blocked: float = 0.0
) -> dict[str, Any]:
    """All of it, in at most `limit` bytes of JSON; `blocked` is how long (s) the loop has been blocked."""
    told_threads, threads_total = threads(loop_thread)
    told_tasks, tasks_total = tasks(loop)
    while True:
        answer = {
            "threads": told_threads,
            "threads_total": threads_total,
            "tasks": told_tasks,
            "tasks_total": tasks_total,
            "blocked": round(blocked, 3),
        }
        if len(json.dumps(answer)) <= limit:
            return answer
        if told_tasks:
            told_tasks = told_tasks[: len(told_tasks) // 2]
        else:
            told_threads = told_threads[: len(told_threads) // 2]


def _thread(ident: int, name: str | None, frame: FrameType, is_loop: bool) -> dict[str, Any]:
    frames = frames_of(frame)
    if is_loop and idle(frame):
        return {"name": "event loop", "note": "waits for events", "stack": []}
    told = {
        "name": "event loop" if is_loop else _short(name) or f"thread {ident:#x}",
        "note": "",
        "stack": lines_of(frames),
    }
    if is_loop and (request := request_of(frames)):
        told["request"] = request
    return told


def _all_tasks(loop: asyncio.AbstractEventLoop | None) -> list[asyncio.Task[Any]]:
    for _ in range(TRIES if loop is not None else 0):
        try:
            return sorted(asyncio.all_tasks(loop), key=_task_order)
        except RuntimeError:  # the set changed meanwhile
            continue
    return []


def _task_order(task: asyncio.Task[Any]) -> tuple[int, str]:
    """The order of creation, as far as names tell."""
    name = task.get_name()
    return (len(name), name)


def _task(task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop | None) -> dict[str, Any] | None:
    """What one task is doing; None if it is the server's own."""
    coroutine = task.get_coro()
    frames = _suspended(coroutine)
    request = request_of(frames)
    if not request and all(_is_machinery(frame) for frame, _ in frames):
        return None
    if any(frame.f_code is _LIFESPAN_WAITS for frame, _ in frames):
        return None
    told: dict[str, Any] = {
        "name": _short(task.get_name()),
        "coro": _short(str(getattr(coroutine, "__qualname__", type(coroutine).__name__))),
        "stack": lines_of(_without_inside(frames)),
    }
    if request:
        told["request"] = request
    if getattr(coroutine, "cr_running", False):
        told["running"], told["stack"] = True, []  # its frames are in the loop's thread
    elif (awaited := getattr(task, "_fut_waiter", None)) is not None:
        what = f"task {awaited.get_name()}" if isinstance(awaited, asyncio.Task) else type(awaited).__name__
        told["awaits"] = _short(what)
    return told


def _short(text: str | None) -> str:
    return sayable((text or "")[:LINE_LIMIT])


def _suspended(waiting: object) -> Frames:
    """The frames of a coroutine and of everything that it awaits, as far as they are Python code."""
    found: Frames = []
    for _ in range(DEPTH):
        frame: FrameType | None
        match waiting:
            case CoroutineType():
                frame, waiting = waiting.cr_frame, waiting.cr_await
            case AsyncGeneratorType():
                frame, waiting = waiting.ag_frame, waiting.ag_await
            case GeneratorType():
                frame, waiting = waiting.gi_frame, waiting.gi_yieldfrom
            case _:
                waiting = _behind(waiting)
                if waiting is None:
                    break
                continue
        if frame is not None:
            found.append((frame, frame.f_lineno or 0))
    return found


def _behind(waiting: object) -> object | None:
    """What an interpreter-level wrapper (`async for`, `__await__`) really awaits; only the garbage collector knows."""
    if type(waiting).__module__ != "builtins" or waiting is None:
        return None
    kinds = (CoroutineType, AsyncGeneratorType, GeneratorType)
    return next((each for each in gc.get_referents(waiting) if isinstance(each, kinds)), None)


def _without_inside(frames: Frames) -> Frames:
    """A waiting stack, with only one frame of the machinery that it waits in."""
    innermost = max((index for index, (frame, _) in enumerate(frames) if not _is_machinery(frame)), default=len(frames))
    return frames[: innermost + 2]


def _is_library(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return _is_machinery(frame) or name.startswith(STANDARD_LIBRARY) or f"{os.sep}site-packages{os.sep}" in name


def _is_machinery(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith(MACHINERY) and not name.startswith(APPLICATIONS)


def _formatted(frames: Sequence[tuple[FrameType, int]]) -> list[str]:
    """Formatted as in a traceback; the source is read from the disk now."""
    entries = traceback.StackSummary.extract(iter(frames)).format()
    return [_short(line.removeprefix("  ")) for entry in entries for line in entry.rstrip("\n").split("\n")]
