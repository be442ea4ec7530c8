"""Whether the file or the Redis accepts writes at present: the disk or the memory may be full, the file moved away.

Each refused write gets its reply. The listener is notified once when refusals begin and once when they are over
(`store.refuses`), which a write of the store's own detects. It knows no file and no network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Final

from serve_asgi.store.replies import StoreReply

LOOK: Final = 1.0
"""Seconds between two attempts to write."""
QUIET: Final = 2.0
"""Seconds without a refusal until they count as over: with little room left, one write may fit and the next not."""


class WriteAvailability:
    """The availability of one file or Redis. Times are those of time.monotonic()."""

    def __init__(self) -> None:
        self.why = ""
        """Why writes are refused; "" if they are accepted."""
        self._last = self._looked = -math.inf

    def refused(self, why: str) -> Iterator[StoreReply]:
        """A write was refused; yield what to send."""
        self._last = time.monotonic()
        if why != self.why:
            self.why = why
            yield StoreReply("store.refuses", {"text": why})

    def taken(self) -> Iterator[StoreReply]:
        """A write was accepted; yield what to send."""
        if self.why and time.monotonic() - self._last >= QUIET:
            self.why = ""
            yield StoreReply("store.refuses", {"text": ""})

    def due(self) -> bool:
        """Whether to try a write now; asking counts as trying."""
        now = time.monotonic()
        if not self.why or now - self._looked < LOOK:
            return False
        self._looked = now
        return True

    @property
    def patience(self) -> float:
        """Most seconds to wait until `due` has to be called again."""
        return LOOK if self.why else math.inf
