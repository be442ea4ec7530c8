"""What was worked out lately, for as long as the same comes again.

Clients on one network and applications with few kinds of responses repeat themselves byte for byte: the same head, the
same response headers. It owns bounded caches of the results of pure functions. Rules: a cache never changes a result;
it is small; where little repeats it soon stops looking up and storing, so that it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from serve_asgi.http.head_parsers import Parser
from serve_asgi.http.request_head import Head
from serve_asgi.ipc.scoreboard import Cell

CAPACITY: Final = 256
"""Results kept; the next one empties the cache."""

LARGEST_HEAD: Final = 2048
"""Heads of more bytes are not kept."""

REST: Final = 60
"""Seconds (ticks) for which a cache that does not pay off is not used."""

_LARGEST_HEAD: Final = LARGEST_HEAD
_REQUESTS: Final = int(Cell.REQUESTS)


class BoundedCache:
    """One cache. `known.get(key)` looks up, if `resting` is 0; `keep` adds what had to be worked out."""

    __slots__ = ("_asked", "known", "resting")

    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}
        self.resting = 0
        """Ticks for which the cache is still not to be used."""
        self._asked = 0

    def keep(self, key: Any, value: Any, asked: int) -> None:
        """Add a result; `asked` counts all look-ups that there were in this process."""
        known = self.known
        if len(known) >= CAPACITY:
            known.clear()
            if asked - self._asked < 2 * CAPACITY:  # fewer than half of them were answered from it
                self.resting = REST
            self._asked = asked
        known[key] = value

    def tick(self) -> None:
        """Once per second."""
        if self.resting:
            self.resting -= 1


class CachedHeadReader:
    """Reads whole heads for all connections of a worker."""

    __slots__ = ("_cells", "_check", "_heads", "_parser")

    def __init__(self, new_parser: Callable[[], Parser], check: Callable[[Head], None], cells: memoryview) -> None:
        """`check` raises BadRequest for a head that the configured limits refuse; `cells` is the worker's row."""
        self._cells = cells
        self._check = check
        self._parser = new_parser()
        self._heads = BoundedCache()

    def read(self, data: bytes) -> Head:
        """The head that `data` is, from the request line up to and including CRLFCRLF.

        It is shared by equal requests: nobody may change it. Raises BadRequest.
        """
        heads = self._heads
        if heads.resting or len(data) > _LARGEST_HEAD:
            return self._parse(data)
        head: Head | None = heads.known.get(data)
        if head is None:
            head = self._parse(data)
            heads.keep(data, head, self._cells[_REQUESTS])
        return head

    def _parse(self, data: bytes) -> Head:
        head = self._parser.parse_head(data)
        self._check(head)
        return head

    def tick(self) -> None:
        """Once per second."""
        self._heads.tick()
