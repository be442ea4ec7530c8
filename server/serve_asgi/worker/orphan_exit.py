"""The worker's end when its listener is dead and its own loop does not turn.

A worker whose listener dies retires by itself, if its loop turns; one that an import or a handler of the
application blocks would live for ever and keep the port from the next server, since nobody is left to kill it. A
thread waits for the end of the channel in its place (law 5: every wait has an end). It needs the interpreter lock:
code of an extension that never gives it up cannot be ended this way.
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

PERIOD: Final = 0.1  # seconds between two looks at how long there is left


def watch(channel: int, allowed: Callable[[], float], last: Callable[[], None] = lambda: None) -> None:
    """Once the other end of the socket `channel` has closed, end the process if it still lives after `allowed()` s.

    `allowed` is asked again and again, since the worker may begin to serve meanwhile; `last` is called before the end.
    """
    own = os.dup(channel)  # stays valid whatever becomes of the original
    threading.Thread(target=_wait, args=(own, allowed, last), name="serve-orphan-exit", daemon=True).start()


def _wait(channel: int, allowed: Callable[[], float], last: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(channel, 0)  # POLLHUP is always reported
    while not poll.poll():
        pass
    end = time.monotonic()
    while time.monotonic() < end + allowed():
        time.sleep(PERIOD)
    with contextlib.suppress(BaseException):
        last()
        stdio_guard.current().finish()
    os._exit(1)
