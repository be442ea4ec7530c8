"""Reconnecting to the Redis or PostgreSQL when the connection is lost, with exponential back-off.

It owns the time of the next attempt. What a session does, and what happens to pending requests when it is lost, is up
to its caller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Never

FIRST_DELAY: Final = 0.05
LONGEST_DELAY: Final = 1.0
"""Most seconds between two attempts; the delay doubles."""

log = logging.getLogger("serve")


class SessionLost(Exception):
    """The session has to begin anew; the outcome of pending requests is unknown."""


async def reconnect(
    session: Callable[[], Awaitable[None]],
    disconnected: Callable[[Exception], Awaitable[None]],
    errors: tuple[type[Exception], ...],
) -> Never:
    """Run one session after another. `disconnected` is called with why each of them ended or could not begin.

    `errors` are what the client library raises for that; OSError, TimeoutError and SessionLost count as well.
    """
    lost: tuple[type[Exception], ...] = (*errors, OSError, TimeoutError, SessionLost)
    delay = FIRST_DELAY
    while True:
        began = time.monotonic()
        try:
            await session()
        except lost as error:
            log.debug("the connection to the shared store", exc_info=True)
            await disconnected(error)
        if time.monotonic() - began > LONGEST_DELAY:
            delay = FIRST_DELAY
        await asyncio.sleep(delay)
        delay = min(LONGEST_DELAY, delay * 2)
