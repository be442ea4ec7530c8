"""The entries of the shared state in the hub, and which of the changes that a store reports are new to it.

A store may report a change late (the reply to a write that a later one has overtaken). After an outage it sends a
snapshot of the whole state in pieces: the changes are what differs from the entries of the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

from serve_asgi.errors import ChannelError
from serve_asgi.hub.state.write_evaluation import StateEntry, entry_size
from serve_asgi.ipc.frames import ValidatedFrame
from serve_asgi.ipc.state_frames import RESERVED, KeyChange
from serve_asgi.ipc.store_frames import SNAPSHOT_ENTRIES

MAX_TOMBSTONES: Final = 4096
"""Deleted keys whose version is remembered, in case a store reports an older change afterwards."""
SNAPSHOT_FACTOR: Final = 4
SNAPSHOT_MARGIN: Final = 64 * 1024 * 1024
"""A snapshot may have this many times the limit, plus this many bytes."""


class StateEntries:
    """Every key with its newest change. The server's own keys are kept apart, so that copying the others is cheap."""

    def __init__(self) -> None:
        self.used = 0
        """The size of all entries (`entry_size`)."""
        self._replicated: dict[str, KeyChange] = {}
        self._reserved: dict[str, KeyChange] = {}

    def get(self, key: str) -> StateEntry | None:
        """The version and value of a key, if it is there."""
        item = self._dict_of(key).get(key)
        return None if item is None or item.value is None else StateEntry(item.version, item.value)

    def apply(self, item: KeyChange) -> None:
        """Apply a change."""
        items = self._dict_of(item.key)
        before = items.pop(item.key, None)
        if before is not None and before.value is not None:
            self.used -= entry_size(before.key, before.value)
        if item.value is not None:
            items[item.key] = item
            self.used += entry_size(item.key, item.value)

    def newest(self) -> Iterator[str]:
        """The keys that are replicated to processes, newest changes first."""
        return reversed(self._replicated)

    def to_send(self) -> list[KeyChange]:
        """All entries that are replicated to processes, oldest changes first."""
        return list(self._replicated.values())

    def __len__(self) -> int:
        return len(self._replicated) + len(self._reserved)

    def __iter__(self) -> Iterator[KeyChange]:
        return chain(self._replicated.values(), self._reserved.values())

    def _dict_of(self, key: str) -> dict[str, KeyChange]:
        return self._reserved if key.startswith(RESERVED) else self._replicated


class StoreChanges:
    """What the store has reported."""

    def __init__(self, limit: int) -> None:
        """`limit` is --state-limit (bytes): a store that another server fills may hold more, but not far more."""
        self._limit = SNAPSHOT_MARGIN + SNAPSHOT_FACTOR * limit
        self._size = 0
        self._tombstones: dict[str, int] = {}
        self._snapshot: dict[str, KeyChange] = {}
        self._settled = 0  # the last snapshot contains all changes up to this version

    def take_snapshot(self, frame: ValidatedFrame) -> None:
        """Take one piece of a snapshot. Raises ChannelError if it is larger than any store may be."""
        if frame.head.first:
            self.discard_snapshot()
        for key, version, value in SNAPSHOT_ENTRIES.decode(frame.body):
            self._size += entry_size(key, value)
            self._snapshot[key] = KeyChange(key, version, value)
        if self._size > self._limit:
            raise ChannelError("the state is more than four times what --state-limit allows; give it more room")

    def discard_snapshot(self) -> None:
        """The store is unavailable: forget the pieces of an incomplete snapshot."""
        self._snapshot.clear()
        self._size = 0

    def snapshot(self, entries: StateEntries) -> list[KeyChange]:
        """The snapshot is complete: return what it changes, deletions first, then by version."""
        snapshot, self._snapshot, self._size = self._snapshot, {}, 0
        self._settled = max((item.version for item in snapshot.values()), default=0)
        self._tombstones.clear()
        gone, known = [], set()
        for item in entries:
            there = snapshot.get(item.key)
            if there is None:
                gone.append(KeyChange(item.key, 0, None))
            elif there.version == item.version and there.value == item.value:
                known.add(item.key)
        found = [item for key, item in snapshot.items() if key not in known]
        return gone + sorted(found, key=lambda item: item.version)

    def is_news(self, item: KeyChange, entries: StateEntries) -> bool:
        """Whether a change is new, and not overtaken by a later change of the same key."""
        entry = entries.get(item.key)
        newest = entry.version if entry is not None else self._tombstones.get(item.key, 0)
        return item.version > max(newest, self._settled)

    def remember_deleted(self, key: str, version: int) -> None:
        """A key has been deleted."""
        self._tombstones[key] = version
        if len(self._tombstones) > MAX_TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]

    def to_state(self) -> dict[str, Any]:
        return {"settled": self._settled, "tombstones": self._tombstones}

    def load(self, state: dict[str, Any]) -> None:
        """The reverse; the mapping may have more members."""
        self._settled, self._tombstones = state["settled"], dict(state["tombstones"])
