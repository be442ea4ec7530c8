"""An event loop for threads if none runs: under a WSGI server, in a script, in a test that is not asynchronous.

It is one loop in a thread of its own, started by the first call of a `sync` object, and only for local mode. It stands
in for a loop of the application: the first one that uses `shared`, `messenger` or `schedule` replaces it and takes over
its shared state (`serve_asgi.app.hub_link.current`). Until then handlers and schedules run in it.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import sys
import threading
from typing import Final

import anyio.from_thread

from serve_asgi.app import hub_link
from serve_asgi.app import local_mode as local
from serve_asgi.app.hub_link import Link

PATIENCE: Final = 10.0
"""Seconds for a loop to start, or to turn once."""
END_TIME: Final = 1.0
"""Seconds for it to end; a handler that blocks it is not waited for any longer."""

_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def start(before: Link | None) -> None:
    """Start the loop, with a link of its own and the shared state of `before`. For `serve_asgi.app.hub_link`."""
    global _loop, _thread
    begun: concurrent.futures.Future[None] = concurrent.futures.Future()
    loop = _loop = asyncio.new_event_loop()
    _thread = threading.Thread(target=_run, args=(loop, before, begun), name="serve local mode", daemon=True)
    _thread.start()
    begun.result(PATIENCE)


def stop() -> None:
    """End the loop; calls that wait there raise LinkClosed. For `serve_asgi.app.hub_link`."""
    global _loop, _thread
    loop, thread, _loop, _thread = _loop, _thread, None, None
    if loop is not None and thread is not None and thread.is_alive():
        loop.call_soon_threadsafe(loop.stop)
        thread.join(END_TIME)


atexit.register(stop)


def loop_of_this_thread(imported_in: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop | None:
    """The running event loop for which this thread works, if that is known, or else the one in which this was imported.

    anyio and asgiref, in whose threads Starlette, FastAPI and Django call what is not async, leave a reference there;
    only that is read, since asking the loop would wait for it.
    """
    token = getattr(getattr(anyio.from_thread, "threadlocals", None), "current_token", None)
    django = getattr(getattr(sys.modules.get("asgiref.sync"), "SyncToAsync", None), "threadlocal", None)
    for loop in (getattr(token, "native_token", None), getattr(django, "main_event_loop", None), imported_in):
        if isinstance(loop, asyncio.AbstractEventLoop) and loop.is_running():
            return loop
    return None


def _run(loop: asyncio.AbstractEventLoop, before: Link | None, begun: concurrent.futures.Future[None]) -> None:
    asyncio.set_event_loop(loop)
    made: list[Link] = []

    def enter() -> None:
        new = local.create_local_link(loop, before)
        new.stand_in = True
        hub_link.set_current(new)
        new.begin()
        made.append(new)
        begun.set_result(None)

    loop.call_soon(enter)
    try:
        loop.run_forever()
        for each in made:
            each.close()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=END_TIME))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
