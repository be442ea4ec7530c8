"""Ends a worker whose listener is dead and whose own loop is blocked.

A worker whose listener dies retires by itself if its loop runs; one that is blocked by an import or a handler of the
application would live for ever and keep the port from the next server, since nobody is left to kill it. So a thread
waits for the end of the channel (law 5: every wait has an end). It needs the interpreter lock: an extension that never
releases it cannot be ended this way.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final

from serve_asgi.logs import stdio_guard

PERIOD: Final = 0.1  # seconds between two checks of the remaining time


def _nothing() -> None:
    pass


def watch(
    channel: int,
    allowed: Callable[[], float],
    last: Callable[[], None] = _nothing,
    meanwhile: Callable[[], None] = _nothing,
) -> None:
    """Once the other end of the socket `channel` has closed, exit if the process is still alive after `allowed()` s.

    `allowed` is called repeatedly, since the worker may begin to serve meanwhile, and so is `meanwhile`; `last` is
    called before the exit.
    """
    own = os.dup(channel)  # stays valid whatever happens to the original
    threading.Thread(target=_wait, args=(own, allowed, last, meanwhile), name="serve-orphan-exit", daemon=True).start()


def _wait(channel: int, allowed: Callable[[], float], last: Callable[[], None], meanwhile: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(channel, 0)  # POLLHUP is always reported
    while not poll.poll():
        pass
    end = time.monotonic()
    while time.monotonic() < end + allowed():
        with contextlib.suppress(Exception):
            meanwhile()
        time.sleep(PERIOD)
    with contextlib.suppress(BaseException):
        last()
        stdio_guard.current().finish()
    os._exit(1)
