"""A line of the log that many clients can cause: written now and then, with the number of those that were not.

Nobody can fill a disk with it, and nothing goes unsaid for long. It must not know what it is about.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any, Final

log: Final = logging.getLogger("serve")


class RareLine:
    """One kind of line."""

    __slots__ = ("_every", "_next", "_unsaid")

    def __init__(self, every: float) -> None:
        """`every`: seconds between two lines."""
        self._every = every
        self._next = -math.inf
        self._unsaid = 0

    def info(self, text: str, *values: object, extra: dict[str, Any]) -> None:
        """Write the line, or count it if another one was written just now; `text` has the places for `values`."""
        now = time.monotonic()
        if now < self._next:
            self._unsaid += 1
            return
        more = f"; and {self._unsaid} others since the last such line" if self._unsaid else ""
        log.info(text + "%s", *values, more, extra=extra)
        self._next, self._unsaid = now + self._every, 0
