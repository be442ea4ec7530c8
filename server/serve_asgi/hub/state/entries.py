"""The entries of the shared state as the hub has them, and what they count as."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final

from serve_asgi.hub.state.replica import KeyChange
from serve_asgi.hub.state.write import StateEntry, entry_size

RESERVED: Final = "serve:"
"""Keys that begin so are the server's own: no application's, and sent to no process."""


class StateEntries:
    """Every key with its newest change; the server's own are kept apart, so that a copy of the others costs little."""

    def __init__(self) -> None:
        self.used = 0
        """What all entries count as (bytes)."""
        self._sent: dict[str, KeyChange] = {}
        self._own: dict[str, KeyChange] = {}

    def get(self, key: str) -> StateEntry | None:
        """What a key has."""
        item = self._of(key).get(key)
        return None if item is None or item.value is None else StateEntry(item.version, item.value)

    def apply(self, item: KeyChange) -> None:
        """Have a change."""
        items = self._of(item.key)
        before = items.pop(item.key, None)
        if before is not None and before.value is not None:
            self.used -= entry_size(before.key, before.value)
        if item.value is not None:
            items[item.key] = item
            self.used += entry_size(item.key, item.value)

    def to_send(self) -> list[KeyChange]:
        """All that processes get, oldest changes first."""
        return list(self._sent.values())

    def __len__(self) -> int:
        return len(self._sent) + len(self._own)

    def __iter__(self) -> Iterator[KeyChange]:
        return chain(self._sent.values(), self._own.values())

    def _of(self, key: str) -> dict[str, KeyChange]:
        return self._own if key.startswith(RESERVED) else self._sent
