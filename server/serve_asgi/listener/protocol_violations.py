"""What happens to a child that breaks the protocol, and how much any child may send.

Everything that the listener does with a child's packets follows one rule: if it raises, that child is ended, and
nothing else happens. A `ChannelError` is the child's fault; anything else is a bug of ours, which is logged with its
traceback, once.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.untrusted_input import sayable
from serve_asgi.logs.server_log import about

MOST_REASON: Final = 300
"""Characters of a reason."""

log = logging.getLogger("serve")


def reason(who: object, where: str, error: Exception) -> str:
    """Why this child is ended: handling what it sent over its "channel" or "link" raised `error`."""
    if isinstance(error, ChannelError):
        return sayable(f"it violated the protocol of its {where}: {error}")[:MOST_REASON]
    text = "the listener could not handle what %s sent over its %s; please report this"
    log.error(text, who, where, exc_info=error, extra=about("packet_handling_failed"))
    return f"the listener could not handle what it sent over its {where}: {type(error).__name__}"


class RateLimit:
    """A token bucket: so many at once, and so many more per second."""

    __slots__ = ("_at", "_left", "_most", "_per_second")

    def __init__(self, most: float, per_second: float) -> None:
        self._most = self._left = most
        self._per_second = per_second
        self._at = time.monotonic()

    def use(self) -> bool:
        """Take a token; return False if none is left."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second) - 1
        self._at = now
        if self._left < 0:
            self._left = 0
            return False
        return True
