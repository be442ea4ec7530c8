"""What waits for changes of the shared state: of each key the newest change, no more, whatever the reader's speed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from serve_asgi.hub.state.replica import KeyChange
from serve_asgi.ipc.frames import unpack_value


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

    def tell(self, item: KeyChange) -> None:
        """For `shared`: this has changed."""
        if not self._ended:
            self._waiting.pop(item.key, None)
            self._waiting[item.key] = item
            self._news.set()

    def end(self) -> None:
        """For `shared`: no more comes."""
        self._ended = True
        self._news.set()
