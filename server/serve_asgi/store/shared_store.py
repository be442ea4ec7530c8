"""What a store that several servers share has in common, Redis or PostgreSQL: its end of the link, and its sessions.

It owns the requests that wait (`inbox`) and those that were sent and not yet answered (`asked`). Nothing is repeated
automatically: when a session is lost, requests without an answer fail as unknown, those that wait as not done, the hub
is notified that the store is unavailable, and sessions are tried anew until one succeeds
(`serve_asgi.store.reconnect`). What a session does is the subclass's.
"""

from __future__ import annotations

import abc
import asyncio
import collections
import time
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final, NamedTuple

from serve_asgi.hub.state.write_evaluation import StateEntry
from serve_asgi.ipc.frames import Frame
from serve_asgi.ipc.store_frames import StoreFailure
from serve_asgi.logs import server_log as logs
from serve_asgi.store import replies
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.message_position import NOWHERE, StreamPosition
from serve_asgi.store.reconnect import reconnect
from serve_asgi.store.replies import StoreReply
from serve_asgi.store.write_availability import WriteAvailability

BATCH: Final = 64
"""Requests that are carried out together."""
INBOX: Final = 1_000
"""Requests that wait here; more wait in the socket, and then in the listener, which refuses what is too much."""
FINISH: Final = 2.0
"""Seconds that the requests of a listener that has ended may take."""
LOOK_AGAIN: Final = 0.01
"""Seconds between two looks at whether they are done."""
CANCEL_AGAIN: Final = 0.1
"""Seconds until a task that goes on is cancelled again."""


class KnownState(NamedTuple):
    """What is known of the state at the start."""

    entries: dict[str, StateEntry]
    version: int  # of the last change
    at: StreamPosition = NOWHERE  # the last message


NOTHING_KNOWN: Final = KnownState({}, 0)


class SharedStore(abc.ABC):
    """The store of one server in something that other servers share; `serve` runs until the listener is gone."""

    ERRORS: ClassVar[tuple[type[Exception], ...]] = ()
    """What the client library raises when a session cannot begin or go on."""

    def __init__(self, link: ListenerLink) -> None:
        """The link is the caller's, and is not closed here."""
        self._link = link
        self._inbox: collections.deque[Frame] = collections.deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._asked: list[Frame] = []
        self._trouble = ""
        self._availability = WriteAvailability()

    async def serve(self, first: Sequence[Frame]) -> None:
        """Serve until the link ends. Raises EOFError then, and UsageError if the store can never be used like this."""
        self._inbox.extend(first)
        sessions = reconnect(self._session, self._disconnected, self.ERRORS)
        tasks = {asyncio.create_task(each) for each in (self._receive(), sessions)}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await end_tasks(tasks)

    @abc.abstractmethod
    async def _session(self) -> None:
        """Connect, send the hub the whole state, and carry out requests until the connection is lost, which raises."""

    @abc.abstractmethod
    def _sentence(self, error: Exception) -> str:
        """Why the store cannot be used."""

    def _note(self, frame: Frame) -> bool:
        """Take a frame that needs no reply, and nothing of the store; return False for all others."""
        return False

    def _given_up(self, trouble: str) -> Iterable[StoreReply]:
        """Replies that were held back when the session was lost."""
        return ()

    async def _receive(self) -> None:
        while True:
            try:
                frames = await self._link.receive()
            except EOFError:
                await self._finish()
                raise
            for frame in frames:
                if frame.kind == "store.reopen":
                    logs.reopen()
                elif self._trouble:
                    await self._refuse(frame, StoreFailure.UNAVAILABLE, f"it was not done: {self._trouble}")
                elif not self._note(frame):
                    self._inbox.append(frame)
            self._news.set()
            while len(self._inbox) > INBOX:
                self._room.clear()
                await self._room.wait()

    async def _finish(self) -> None:
        """The listener has ended: carry out what it had sent, which may be that the server leaves its fleet."""
        ends = time.monotonic() + FINISH
        while (self._inbox or self._asked) and time.monotonic() < ends:
            await asyncio.sleep(LOOK_AGAIN)

    def _next_batch(self, most: int = BATCH) -> list[Frame]:
        """Take requests out of the inbox; they count as asked from now on."""
        frames = [self._inbox.popleft() for _ in range(min(BATCH, most, len(self._inbox)))]
        self._asked = list(frames)
        self._room.set()
        return frames

    async def _refuse(self, frame: Frame, why: StoreFailure, text: str) -> None:
        if (found := replies.failed(frame.kind, frame.head, why, text)) is not None:
            await self._link.send(*found)

    async def _disconnected(self, error: Exception) -> None:
        """Fail the pending requests: nothing can be requested until the next session."""
        trouble = self._sentence(error)
        await self._link.send_all(self._given_up(trouble))
        self._availability = WriteAvailability()
        asked, self._asked = self._asked, []
        for frame in asked:
            await self._refuse(frame, StoreFailure.UNKNOWN, f"it is not known whether it was done: {trouble}")
        changed, self._trouble = trouble != self._trouble, trouble
        while self._inbox:
            await self._refuse(self._inbox.popleft(), StoreFailure.UNAVAILABLE, f"it was not done: {trouble}")
        self._room.set()
        if changed:
            await self._link.send("store.down", {"text": trouble})


async def end_tasks(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks until they end: redis-py loses a cancellation while it connects (8.1 on Python 3.11)."""
    pending = tasks
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)
