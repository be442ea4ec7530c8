"""What an application sends that nobody can get: it is dropped, and the application is told when that is enough.

After the end of a connection, messages are dropped for a moment, and then `send` raises. After the end of a response
that has no body, a body is dropped, up to a limit in bytes and in time; where it is a mistake it is logged, once for
each route. It must not know connections.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Final

from serve_asgi.http.request_head import Head
from serve_asgi.logs.server_log import about

DROP_TIME: Final = 1.0
"""For this long (s) from the first message that nobody can get, `send` drops what it is given; then it raises.

So an application that is in the middle of something comes to what it does next: a background task after the response,
or `websocket.disconnect` in `receive`. One that only ever sends is ended all the same.
"""

DROPPED_AT_MOST: Final = 1 << 20
"""How many bytes of body an application may send after the end of a response that has none (for DROP_TIME at most)
before it is told that nobody takes them."""

MOST_ROUTES: Final = 64
"""So many are told in the life of a worker: a route is guessed from the path, and a client can make up paths."""

_VARIABLE: Final = re.compile(r"(?<=/)[^/]*[0-9][^/]*")
_SECTIONS: Final = {204: "15.3.5", 205: "15.3.6", 304: "15.4.5"}

_log: Final = logging.getLogger("serve.error")


class ClientDisconnected(OSError):
    """Raised by `send` once the connection has ended (ASGI www, "Disconnected Client - send exception", since 2.4).

    An application that lets it through has done nothing wrong: it is not logged.
    """


async def drop_message(loop: asyncio.AbstractEventLoop, since: float) -> float:
    """Drop a message; return when the first was dropped, which is `since` (loop time, s) unless that is 0.

    Gives way to other tasks, so that a framework can end a stream that it has cancelled, and whoever waits in `receive`
    is told of the end. Raises ClientDisconnected when messages have been dropped for `DROP_TIME`.
    """
    now = loop.time()
    since = since or now
    if now - since > DROP_TIME:
        raise ClientDisconnected("The client has disconnected: nothing can be sent any more.")
    await asyncio.sleep(0)
    return since


class DroppedBody:
    """The body that an application sends after the end of a response that has none."""

    __slots__ = ("_left", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        """`expired` is called after `DROP_TIME`, unless it has ended by then."""
        self._left = DROPPED_AT_MOST
        self._timer = loop.call_later(DROP_TIME, expired)

    def take(self, size: int) -> bool:
        """Drop `size` bytes; False if that was more than is dropped."""
        self._left -= size
        return self._left >= 0

    def end(self) -> None:
        """The application has ended it, or has been told."""
        self._timer.cancel()


class DroppedBodyLog:
    """Of one worker's application."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: set[tuple[str, str, int]] = set()

    def report(self, head: Head, status: int) -> None:
        """The application has sent a body in a response to `head` whose `status` has none; it was dropped."""
        # The server does not know the application's routes: what holds digits is taken for a parameter of one.
        path = head.path.decode("latin-1")
        route = _VARIABLE.sub("*", path)
        told = self._told
        if len(told) >= MOST_ROUTES or (head.method, route, status) in told:
            return
        told.add((head.method, route, status))
        _log.warning(
            "The application sent a body in its %d response to %s %s. Such a response has none (RFC 9110 %s), so it "
            "was dropped; respond without a body, or with another status. %s",
            status,
            head.method,
            route,
            _SECTIONS[status],
            "This is logged once for each route." if len(told) < MOST_ROUTES else "No more routes will be named.",
            extra=about("body_dropped", method=head.method, path=path, status=status),
        )
