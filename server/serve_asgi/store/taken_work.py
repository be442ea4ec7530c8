"""What one server's store process has taken of the fleet's work, and what its hub has room for.

It is the part of `serve_asgi.ipc.work_frames` that needs no reply, the same over a Redis and a PostgreSQL; without a
connection. All of it belongs to one session: at the next one the hub says it again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from typing import Any, Final

from serve_asgi.ipc.frames import Frame
from serve_asgi.ipc.work_frames import WORK_NOTES
from serve_asgi.store.replies import StoreReply

KEEP_PART: Final = 0.25
"""The part of a lease after which it is renewed."""


class TakenWork:
    """The work of one server. Times are those of time.monotonic()."""

    def __init__(self, lease: float) -> None:
        """`lease` is the time (s) for which taken work belongs to a server that is not heard of."""
        self.lease = lease
        self.topics: set[str] = set()
        """The topics of the fleet."""
        self.handled: dict[str, bool] = {}
        """Whether this server handles them, if it ever did."""
        self.held: dict[str, dict[str, None]] = {}
        """The entries that it has, by topic."""
        self.changed = asyncio.Event()
        """Set when there may be more credit, or another topic."""
        self._credit: dict[str, int] = {}
        self._kept = -math.inf

    def begin(self, topics: Iterable[str]) -> None:
        """A session begins, in which these topics are known."""
        self.topics = set(topics)
        self.handled, self.held, self._credit, self._kept = {}, {}, {}, -math.inf

    def note(self, frame: Frame) -> bool:
        """Take a frame that needs no reply; return False for all others."""
        if frame.kind not in WORK_NOTES:
            return False
        match frame.kind:
            case "store.handles":
                self.handled |= frame.head["topics"]
                self._credit = {topic: n for topic, n in self._credit.items() if self.handled.get(topic, True)}
                self._kept = -math.inf
            case "store.credit":
                for topic, count in frame.head["topics"].items():
                    self._credit[topic] = self._credit.get(topic, 0) + count
            case "store.held":
                for topic, entry in frame.head["m"]:
                    self.held.setdefault(topic, {})[entry] = None
                self._kept = -math.inf
        self.changed.set()
        return True

    def wanted(self) -> dict[str, int]:
        """How much may be taken now, by topic."""
        return {topic: count for topic, count in self._credit.items() if count > 0 and topic in self.topics}

    def taken(
        self, topic: str, entry: str, message: str, attempt: int, ack: int, limit: int, origin: Any, body: bytes
    ) -> StoreReply:
        """This has been taken: the frame for the hub."""
        self._credit[topic] = self._credit.get(topic, 0) - 1
        self.held.setdefault(topic, {})[entry] = None
        head = {"topic": topic, "entry": entry, "message": message, "attempt": attempt, "ack": ack, "limit": limit}
        return StoreReply("store.work", head | {"origin": origin}, body)

    def settled(self, topic: str, entry: str) -> None:
        """It is not held any more."""
        if (entries := self.held.get(topic)) is not None:
            entries.pop(entry, None)

    # Keeping

    def keep_due(self) -> bool:
        """Whether the leases are to be renewed now; asking counts as doing so."""
        if not (self.handled or self.held) or time.monotonic() - self._kept < self.lease * KEEP_PART:
            return False
        self._kept = time.monotonic()
        return True

    @property
    def patience(self) -> float:
        """Most seconds until `keep_due` has to be asked again."""
        if not (self.handled or self.held):
            return math.inf
        return max(0.0, self._kept + self.lease * KEEP_PART - time.monotonic())

    def to_keep(self) -> dict[str, tuple[bool, list[str]]]:
        """By topic, whether this server handles it, and what it holds; topics that it has given up are forgotten."""
        found = {
            topic: (self.handled.get(topic, False), list(self.held.get(topic, ())))
            for topic in {**self.handled, **self.held}
        }
        self.handled = {topic: yes for topic, yes in self.handled.items() if yes}
        self.held = {topic: entries for topic, entries in self.held.items() if entries}
        return found
