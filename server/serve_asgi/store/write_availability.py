"""Whether what the state is kept in takes writes at present: a full disk, a Redis without memory, a file moved away.

The writers are told each time, and may be few; people are told once when it begins and once when it is over
(`store.refuses`), which a write of the store's own finds out. It knows no file and no network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Final

from serve_asgi.store.replies import StoreReply

LOOK: Final = 1.0
"""Seconds between two looks at whether writes are taken again."""
QUIET: Final = 2.0
"""Seconds without a refusal until it counts as over: where little room is left, a small write fits and the next does
not."""


class WriteAvailability:
    """Of one place. Times are those of time.monotonic()."""

    def __init__(self) -> None:
        self.why = ""
        """Why writes are refused; "": they are taken."""
        self._last = self._looked = -math.inf

    def refused(self, why: str) -> Iterator[StoreReply]:
        """The place has refused a write; what there is to tell."""
        self._last = time.monotonic()
        if why != self.why:
            self.why = why
            yield StoreReply("store.refuses", {"text": why})

    def taken(self) -> Iterator[StoreReply]:
        """The place has taken a write."""
        if self.why and time.monotonic() - self._last >= QUIET:
            self.why = ""
            yield StoreReply("store.refuses", {"text": ""})

    def due(self) -> bool:
        """Whether to write something now, to see; asked for, it counts as done."""
        now = time.monotonic()
        if not self.why or now - self._looked < LOOK:
            return False
        self._looked = now
        return True

    @property
    def patience(self) -> float:
        """How long (s) to wait for something to do at most, until `due` is to be asked again."""
        return LOOK if self.why else math.inf
