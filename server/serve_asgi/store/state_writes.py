"""The writes of one transaction, each decided upon all before it; they take effect when it has been committed.

The decision is `serve_asgi.hub.state.write_evaluation`'s. It knows no file and no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_asgi.hub.state.write_evaluation import (
    AcceptedWrite,
    StateEntry,
    StateLimits,
    WriteRefusal,
    evaluate_write,
)
from serve_asgi.ipc.state_frames import Write
from serve_asgi.store import replies
from serve_asgi.store.replies import StoreReply


class StateWrites:
    """The writes of one transaction."""

    def __init__(self, entries: Mapping[str, StateEntry], limits: StateLimits, version: int, used: int) -> None:
        """`entries` is the state before, `version` that of its last change, `used` its size (`entry_size`)."""
        self._entries = entries
        self._limits = limits
        self.version = version
        self.used = used
        self.accepted: list[AcceptedWrite] = []
        """All of them, in order."""
        self.changes: dict[str, AcceptedWrite] = {}
        """The last one of each key."""

    def write(self, id: Any, write: Write) -> StoreReply:
        """Decide a write, and return the reply that holds once the transaction has been committed."""
        decided = evaluate_write(write, self.entry(write.key), self._limits, self.used, self.version + 1)
        if isinstance(decided, WriteRefusal):
            return replies.refused(id, decided)
        self.accepted.append(decided)
        self.changes[write.key] = decided
        self.version, self.used = decided.version, self.used + decided.grows
        return replies.written(id, decided)

    def entry(self, key: str) -> StateEntry | None:
        """The entry of a key, as the next write finds it."""
        change = self.changes.get(key)
        if change is None:
            return self._entries.get(key)
        return None if change.value is None else StateEntry(change.version, change.value)


def apply_change(entries: dict[str, StateEntry], change: AcceptedWrite) -> None:
    """Make a change that stands."""
    if change.value is None:
        entries.pop(change.key, None)
    else:
        entries[change.key] = StateEntry(change.version, change.value)
