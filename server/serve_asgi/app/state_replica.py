"""This process's replica of the shared state: what the hub's frames make of it, and the watches that wait for changes.

Containers are decoded each time they are asked for, so that nobody can change the replica through what he was given;
what is immutable is decoded once. A watch holds of each key the newest change, no more, however slow its reader is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, NamedTuple

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
        """The value; a list or dict is the caller's own."""
        if self._value is not _UNREAD:
            return self._value
        value = unpack_value(self.raw)
        if not isinstance(value, list | dict):
            self._value = value
        return value


class StateReplica:
    """The copy itself; only to be read, but for `take`."""

    def __init__(self) -> None:
        self.entries: dict[str, ReplicaEntry] = {}
        self.applied = 0
        """How many changes of the state this copy has."""
        self.whole = False
        """The first batch, which is the whole state, has been applied."""
        self._batch: list[KeyChange] = []
        self._renews = False

    def take(self, frame: Frame) -> list[KeyChange]:
        """A frame `state.changes` came: apply the batch if this is its end; return what has changed.

        Raises LookupError, TypeError, ValueError or ChannelError for nonsense.
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


class Change(NamedTuple):
    """A key has been written or deleted."""

    key: str
    value: Any  # None if it is deleted
    version: int
    deleted: bool


class StateWatch(AsyncIterator[Change]):
    """The changes of a key (or of all) from the moment at which it was made; ends when no more can come.

    Who is slower than the writers gets of each key the newest.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """`loop` is the one on which `tell` and `end` are called."""
        self._loop = loop
        self._waiting: dict[str, KeyChange] = {}
        self._news = asyncio.Event()
        self._ended = False

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            if self._loop not in (None, asyncio.get_running_loop()):
                raise RuntimeError(
                    "a watch of the shared state works on the server's event loop alone, and this is another one: in a "
                    "thread write `for change in shared.sync.watch(…)`"
                )
            self._news.clear()
            await self._news.wait()  # perhaps one of several
        item = self._waiting.pop(next(iter(self._waiting)))
        value = None if item.value is None else unpack_value(item.value)
        return Change(item.key, value, item.version, item.value is None)

    async def aclose(self) -> None:
        """Watch no more."""
        self._waiting.clear()
        self.end()

    def notify(self, item: KeyChange) -> None:
        """For `shared`: this has changed."""
        if not self._ended:
            self._waiting.pop(item.key, None)
            self._waiting[item.key] = item
            self._news.set()

    def end(self) -> None:
        """For `shared`: no more comes."""
        self._ended = True
        self._news.set()
