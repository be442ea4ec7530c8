"""This process's replica of the shared state, built from the frames of the hub.

Lists and dicts are decoded on every read, so that no caller can change the replica through what it was given; immutable
values are decoded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from serve_asgi.ipc.frames import Frame, unpack_value
from serve_asgi.ipc.state_frames import KeyChange

_UNREAD: Final = object()


class ReplicaEntry:
    """The value of a key, with its version."""

    __slots__ = ("_value", "raw", "version")

    def __init__(self, version: int, raw: bytes) -> None:
        self.version = version
        self.raw = raw
        self._value: Any = _UNREAD

    @property
    def value(self) -> Any:
        """The value; a list or dict belongs to the caller."""
        if self._value is not _UNREAD:
            return self._value
        value = unpack_value(self.raw)
        if not isinstance(value, list | dict):
            self._value = value
        return value


class StateReplica:
    """The replica. Only `take` changes it."""

    def __init__(self) -> None:
        self.entries: dict[str, ReplicaEntry] = {}
        self.applied = 0
        """The number of changes that it has."""
        self.whole = False
        """It has applied its first batch, which is the whole state."""
        self._batch: list[KeyChange] = []
        self._renews = False

    def take(self, frame: Frame) -> list[KeyChange]:
        """Take a frame `state.changes`: at the end of a batch apply it, and return what has changed.

        Raises LookupError, TypeError, ValueError or ChannelError for an invalid frame.
        """
        self._batch += [KeyChange(*each) for each in unpack_value(frame.body)]
        self._renews = self._renews or bool(frame.head.get("whole"))
        if frame.head.get("more"):
            return []
        batch, self._batch = self._batch, []
        if self._renews:
            self._renews, self.whole = False, True
            there = {item.key for item in batch}
            batch = [KeyChange(key, 0, None) for key in self.entries if key not in there] + [*self._different(batch)]
        for key, version, value in batch:
            if value is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = ReplicaEntry(version, value)
        self.applied = frame.head["seq"]
        return batch

    def _different(self, batch: list[KeyChange]) -> Iterator[KeyChange]:
        for item in batch:
            entry = self.entries.get(item.key)
            if entry is None or (entry.version, entry.raw) != (item.version, item.value):
                yield item
