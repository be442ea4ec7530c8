"""Following the messages of other servers: they go to the hub, and it is logged if some may be missing.

The position is `serve_asgi.store.message_position`'s; where messages are read from is the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from serve_asgi.ipc.frames import unpack_value
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.message_position import NOWHERE, Fields, FollowedMessages, StreamEntry, StreamPosition

REPORTED: Final = 64
"""Messages of this server's own after which the hub is told the position."""


class MessageFollower:
    """The messages that one server follows, over all sessions."""

    def __init__(self, link: ListenerLink, server: str, store: str, at: StreamPosition = NOWHERE) -> None:
        """`server` identifies this server uniquely, `store` is for sentences ("Redis"), `at` where reading goes on."""
        self._link = link
        self._server = server.encode()
        self._store = store
        self._followed = FollowedMessages(at)

    @property
    def at(self) -> StreamPosition:
        """The last message that was taken."""
        return self._followed.at

    async def begin(self, epoch: str, last: int, entry_from: Callable[[int], Awaitable[list[StreamEntry]]]) -> None:
        """A session begins: the data have this epoch, and `last` is the number of the latest message.

        `entry_from` returns the first entry from a number on, if there is one.
        """
        followed = self._followed
        if followed.begin(epoch, last):
            text = (
                f"{self._store} has lost its data: the latest broadcasts of other servers before that may not have "
                "arrived"
            )
            await self._link.log(logging.ERROR, "store_messages_missed", text)
        elif gone := await followed.agree(entry_from):
            text = (
                f"{self._store} came back without the latest {gone} broadcasts: who had not read them will not get them"
            )
            await self._link.log(logging.ERROR, "store_data_lost", text, messages=gone)
        if followed.cut(last):
            text = (
                f"{self._store} came back with less than this server remembers: broadcasts of other servers may be "
                "missing"
            )
            await self._link.log(logging.ERROR, "store_messages_missed", text)

    async def take(self, number: int, fields: Fields) -> bool:
        """Take the next message: b"o" origin, b"h" head, b"b" body, b"e" epoch; return False if it is of another life
        of the data."""
        if not self._followed.fits(fields):
            return False
        if (missed := self._followed.take(number, fields)) > 0:
            text = f"{missed} messages of other servers were missed: they came faster than this server read them"
            await self._link.log(logging.ERROR, "store_messages_missed", text, messages=missed)
        if fields[b"o"] != self._server:
            head = {**unpack_value(fields[b"h"]), "server": fields[b"o"].decode(), "at": self.at}
            await self._link.send("store.message", head, fields[b"b"])
        elif not number % REPORTED:
            await self._link.send("store.at", {"at": self.at})
        return True
