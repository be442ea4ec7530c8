"""Watches of the shared state: iterators over the changes of a key, or of all keys (`shared.watch`).

A watch keeps only the newest change of each key, however slow its reader is. One that nobody refers to any more is
forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

from serve_asgi.ipc.frames import unpack_value
from serve_asgi.ipc.state_frames import KeyChange

MANY_WATCHED: Final = 64
"""From this number of watched keys on, those without a watch are removed now and then."""


class Change(NamedTuple):
    """A key has been written or deleted."""

    key: str
    value: Any  # None if it is deleted
    version: int
    deleted: bool


class StateWatch(AsyncIterator[Change]):
    """The changes of a key (or of all keys) since it was made; it ends when no more can come.

    A reader that is slower than the writers gets only the newest change of each key.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """`loop` is the one on which `notify` and `end` are called."""
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
            await self._news.wait()  # there may be several readers
        item = self._waiting.pop(next(iter(self._waiting)))
        value = None if item.value is None else unpack_value(item.value)
        return Change(item.key, value, item.version, item.value is None)

    async def aclose(self) -> None:
        """Stop watching."""
        self._waiting.clear()
        self.end()

    def notify(self, item: KeyChange) -> None:
        """For `shared`: a key has changed."""
        if not self._ended:
            self._waiting.pop(item.key, None)
            self._waiting[item.key] = item
            self._news.set()

    def end(self) -> None:
        """For `shared`: no more changes will come."""
        self._ended = True
        self._news.set()


class StateWatches:
    """All watches of this process, by key; None stands for all keys."""

    def __init__(self) -> None:
        self._by_key: defaultdict[str | None, weakref.WeakSet[StateWatch]] = defaultdict(weakref.WeakSet)
        self._many_watched = MANY_WATCHED

    def __len__(self) -> int:
        """The number of watched keys, including some whose watches are gone."""
        return len(self._by_key)

    def add(self, key: str | None, watch: StateWatch) -> None:
        """Add a watch of a key."""
        self._by_key[key].add(watch)
        if len(self._by_key) > self._many_watched:
            for each in [key for key, watches in self._by_key.items() if not watches]:
                del self._by_key[each]
            self._many_watched = 2 * len(self._by_key) + MANY_WATCHED

    def notify(self, item: KeyChange) -> None:
        """A key has changed: notify its watches."""
        for key in (item.key, None):
            if (watches := self._by_key.get(key)) is not None:
                for watch in list(watches):
                    watch.notify(item)
                if not watches:
                    del self._by_key[key]

    def end_all(self) -> None:
        """No more changes will come."""
        for watches in self._by_key.values():
            for watch in list(watches):
                with contextlib.suppress(RuntimeError):  # the loop of an earlier local mode is closed
                    watch.end()
        self._by_key.clear()
