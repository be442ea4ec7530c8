"""Reaching Redis again when the connection to it is lost, with a delay between two attempts that doubles (back-off).

It owns when the next attempt is made; what a session does, and what becomes of those who wait for an answer when it is
lost, is its caller's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Never

from redis import exceptions

from serve_asgi.store.redis_requests import SessionLost

FIRST_DELAY: Final = 0.05
LONGEST_DELAY: Final = 1.0
"""Seconds between two attempts to reach Redis; the delay doubles."""

log = logging.getLogger("serve")


async def reconnect(
    session: Callable[[], Awaitable[None]], disconnected: Callable[[Exception], Awaitable[None]]
) -> Never:
    """Hold one session after another. `disconnected` is told why each of them ended, or did not come about."""
    delay = FIRST_DELAY
    while True:
        began = time.monotonic()
        try:
            await session()
        except (exceptions.RedisError, OSError, TimeoutError, SessionLost) as error:
            log.debug("the connection to Redis", exc_info=True)
            await disconnected(error)
        if time.monotonic() - began > LONGEST_DELAY:
            delay = FIRST_DELAY
        await asyncio.sleep(delay)
        delay = min(LONGEST_DELAY, delay * 2)
