"""What applications do wrong without harm: it is put right, and told once for each route.

It owns the memory of what has been told, which is bounded, and the sentences. It must not know connections.
"""

from __future__ import annotations

import logging
import re
from typing import Final

from serve_asgi.http.request_head import Head
from serve_asgi.logs.server_log import about

MOST_ROUTES: Final = 64
"""So many are told in the life of a worker: a route is guessed from the path, and a client can make up paths."""

_VARIABLE: Final = re.compile(r"(?<=/)[^/]*[0-9][^/]*")
_SECTIONS: Final = {204: "15.3.5", 205: "15.3.6", 304: "15.4.5"}

_log: Final = logging.getLogger("serve.error")


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
