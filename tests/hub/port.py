"""A hub's port that keeps what is sent, for tests of pure cores."""

from __future__ import annotations

import collections
from typing import Any

from serve_asgi.ipc.frames import Frame, decode


class RecordingPort:
    """`sent` by member, in order; `records` of what was said; members in `without_room` have no room."""

    def __init__(self) -> None:
        self.sent: dict[int, list[Frame]] = collections.defaultdict(list)
        self.to_store: list[Frame] = []
        self.records: list[tuple[str, str, dict[str, Any]]] = []
        self.without_room: set[int] = set()
        self.applied = 0
        self.leases: list[int] = []

    def send(self, member: int, data: bytes) -> None:
        self.sent[member].append(decode(data))

    def has_room(self, member: int) -> bool:
        return member not in self.without_room

    def send_to_store(self, data: bytes) -> None:
        self.to_store.append(decode(data))

    def report(self, level: int, event: str, text: str, detail: str = "", **about: Any) -> None:
        self.records.append((event, text, about))

    def agent_lease(self, token: int) -> None:
        self.leases.append(token)

    def publish(self, applied: int) -> None:
        self.applied = applied

    def take(self, member: int, *kinds: str) -> list[Frame]:
        """What was sent to a member since the last time, of these kinds if any are named."""
        frames, self.sent[member] = self.sent[member], []
        return [frame for frame in frames if not kinds or frame.kind in kinds]
