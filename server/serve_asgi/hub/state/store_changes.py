"""What a store tells of the shared state: which of it is new to the hub. The decision alone; it keeps no entries.

A change may be told late (the answer to a write that another one has overtaken), and a snapshot of all that there is
comes in pieces, after the store was away: what is different from what the hub has are changes then.
"""

from __future__ import annotations

from typing import Any, Final

from serve_asgi.errors import ChannelError
from serve_asgi.hub.state.entries import StateEntries
from serve_asgi.hub.state.replica import KeyChange
from serve_asgi.hub.state.write import entry_size
from serve_asgi.ipc.frames import ValidatedFrame
from serve_asgi.ipc.store_schema import SNAPSHOT_ENTRIES

MAX_TOMBSTONES: Final = 4096
"""Of so many deleted keys the version is remembered, in case a store tells of an older change afterwards."""


SNAPSHOT_FACTOR: Final = 4
SNAPSHOT_MARGIN: Final = 64 * 1024 * 1024
"""A snapshot may have so many times the limit, and so many bytes besides."""


class StoreChanges:
    """What one store has told."""

    def __init__(self, limit: int) -> None:
        """`limit` is --state-limit (bytes): a store that another server has filled may hold more, but not far more."""
        self._limit = SNAPSHOT_MARGIN + SNAPSHOT_FACTOR * limit
        self._size = 0
        self._tombstones: dict[str, int] = {}
        self._snapshot: dict[str, KeyChange] = {}
        self._settled = 0  # the last snapshot has all changes up to this one

    def piece(self, frame: ValidatedFrame) -> None:
        """A frame `store.snapshot`. Raises ChannelError for more than any store has."""
        if frame.head.first:
            self.broken_off()
        for key, version, value in SNAPSHOT_ENTRIES.decode(frame.body):
            self._size += entry_size(key, value)
            self._snapshot[key] = KeyChange(key, version, value)
        if self._size > self._limit:
            raise ChannelError("the state is more than four times what --state-limit allows; give it more room")

    def broken_off(self) -> None:
        """The store is away: the pieces that came are of no use."""
        self._snapshot.clear()
        self._size = 0

    def snapshot(self, entries: StateEntries) -> list[KeyChange]:
        """The pieces were all: what is to change, deletions first, then in the order of versions."""
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

    def newer(self, item: KeyChange, entries: StateEntries) -> bool:
        """Whether a change is news; it may have been overtaken by a newer one of the same key."""
        entry = entries.get(item.key)
        newest = entry.version if entry is not None else self._tombstones.get(item.key, 0)
        return item.version > max(newest, self._settled)

    def deleted(self, key: str, version: int) -> None:
        """The key is not there any more."""
        self._tombstones[key] = version
        if len(self._tombstones) > MAX_TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]

    def to_state(self) -> dict[str, Any]:
        return {"settled": self._settled, "tombstones": self._tombstones}

    def load(self, state: dict[str, Any]) -> None:
        """The reverse, of a mapping that may hold more."""
        self._settled, self._tombstones = state["settled"], dict(state["tombstones"])
