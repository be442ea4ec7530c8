"""Following the streams of Redis: what this server's hub has received, and what is new.

It owns this process's copy of the state, the position in both streams (changes, messages), and the replies that wait
for changes. If Redis comes back empty (no persistence), it is given the state that this process or the hub has. If it
comes back with less than it had (a fail-over), it keeps what it has, and the loss is logged. Requests are not known
here.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

import redis.asyncio as aioredis
from redis import exceptions

from serve_asgi.config.state_location import RedisAddress, shown
from serve_asgi.errors import UsageError
from serve_asgi.hub.state.write_evaluation import AcceptedWrite, StateEntry
from serve_asgi.store import redis_scripts as scripts
from serve_asgi.store import replies
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.message_following import MessageFollower
from serve_asgi.store.message_position import number_of
from serve_asgi.store.reconnect import SessionLost
from serve_asgi.store.redis_connector import RedisConnector
from serve_asgi.store.redis_requests import decoded_entry, encoded_entry
from serve_asgi.store.redis_work_queue import RedisWorkQueue
from serve_asgi.store.replies import HeldReplies, StoreReply
from serve_asgi.store.shared_store import NOTHING_KNOWN, KnownState

FOLLOWED: Final = 64
"""Most entries of a stream that are read at a time."""
LOOK: Final = 1.0
"""Seconds without news after which it is checked that Redis still has the same data."""


class StreamFollower:
    """The follower of one Redis, over all sessions."""

    def __init__(
        self,
        link: ListenerLink,
        redis: RedisConnector,
        address: RedisAddress,
        name: str,
        work: RedisWorkQueue,
        known: KnownState = NOTHING_KNOWN,
    ) -> None:
        """`name` identifies this server uniquely; `known` is what its hub has from an earlier store process."""
        self._link = link
        self._work = work
        self._redis = redis
        self._address = address
        self._name = name
        self.epoch = ""
        """Identifies this life of the data."""
        self.held_replies = HeldReplies()
        """Replies that wait until the changes that they depend on have gone to the hub."""
        self._seq = 0  # version of the last change that has gone to the hub
        self._highest = known.version  # the highest version that ever went to the hub
        self._messages = MessageFollower(link, name, "Redis", known.at)
        self._entries = known.entries
        self._rung: str | bytes = "0-0"  # the last entry of this server's bell (`serve_asgi.store.redis_fleet_scripts`)

    # The start of a session

    async def greet(self, client: aioredis.Redis) -> None:
        """Initialise the data, or find what is there. Raises UsageError if it belongs to something else."""
        keys = self._redis.keys("about", "state", "log", "messages")
        mine: list[str | bytes] = []
        fresh = uuid.uuid4().hex
        try:
            found = await self._redis.run(client, "HELLO", keys, fresh, self._highest, int(bool(self._entries)))
            if found == [b""]:
                mine = [
                    each for key, decoded_entry in self._entries.items() for each in (key, encoded_entry(decoded_entry))
                ]
                found = await self._redis.run(client, "HELLO", keys, fresh, self._highest, 1, *mine)
        except exceptions.ResponseError as error:
            if "WRONGTYPE" in str(error):
                raise UsageError(
                    f"a key that begins with {self._address.prefix!r} in {shown(self._address.urls[0])} is not this "
                    "server's: choose other names with ?prefix=NAME at the end of --state"
                ) from None
            raise
        if len(found) == 1:
            raise UsageError(
                f"what {shown(self._address.urls[0])} holds is in format {found[0].decode()}, of another version of "
                f"this server (this one reads {scripts.FORMAT}): start that version, or add ?prefix=NAME to --state"
            )
        epoch, seq = found[0].decode(), int(found[1])
        self.epoch = epoch
        if mine and epoch == fresh:
            text = f"Redis came back without the shared state: {len(self._entries)} keys have been written to it again"
            await self._link.log(logging.WARNING, "store_restored", text, keys=len(self._entries))
        elif seq < self._highest:
            text = f"Redis came back without the latest changes of the shared state: {self._highest - seq} are lost"
            await self._link.log(logging.ERROR, "store_data_lost", text, changes=self._highest - seq)

    async def begin(self, client: Any) -> None:
        """Send the hub the whole state; `store.up` comes next, and then `follow`."""
        key = self._redis.key("messages")
        last = await self._take_all(client)
        await self._messages.begin(self.epoch, last, lambda number: client.xrange(key, f"{number}-0", "+", 1))

    async def _take_all(self, client: aioredis.Redis) -> int:
        """Send the hub the whole state, and follow from there; return the number of the last message."""
        found = await self._redis.run(client, "SNAPSHOT", self._redis.keys("about", "state"), self.epoch)
        if found[0] == -1:
            raise SessionLost("its data was replaced")
        seq, sent = int(found[0]), int(found[1])
        self._entries = {
            key.decode(): decoded_entry(value) for key, value in zip(found[2::2], found[3::2], strict=True)
        }
        for piece in replies.snapshot(self._entries.items()):
            await self._link.send(*piece)
        self._seq, self._highest = seq, max(self._highest, seq)
        return sent

    async def up(self) -> None:
        await self._link.send("store.up", {"server": self._name, "shared": True, "at": self._messages.at})
        await self._send_held()

    async def reply_at(self, seq: int, answer: StoreReply) -> None:
        """Send a reply when all changes up to this one have gone to the hub."""
        self.held_replies.add(seq, answer)
        await self._send_held()

    async def _send_held(self) -> None:
        await self._link.send_all(self.held_replies.due(self._seq))

    # Following

    async def follow(self, client: Any) -> None:  # redis-py's annotations fit neither kind of reply
        changes, messages, bell = self._redis.keys("log", "messages", f"fleet:bell:{self._name}")
        take = {changes.encode(): self._take_change, messages.encode(): self._take_message}
        while True:
            after = {changes: f"{self._seq}-0", messages: f"{self._messages.at.number}-0", bell: self._rung}
            news = await client.xread({**after, **self._work.positions}, count=FOLLOWED, block=int(LOOK * 1000))
            for stream, entries in news or ():
                if stream == bell.encode():
                    self._rung = entries[-1][0]
                    await self._link.send("store.bell")
                elif stream in take:
                    await self._take_entries(client, take[stream], entries)
                else:
                    await self._work.follow(client, stream.decode(), entries)
            if not news:
                await self._check_master(client)

    async def _check_master(self, client: Any) -> None:
        """Nothing has come for a while. Raises SessionLost if nothing relevant would come any more.

        Redis unblocks clients that wait when it becomes a replica, but not in other cases.
        """
        if await client.hget(self._redis.key("about"), "epoch") != self.epoch.encode():
            raise SessionLost("its data was replaced")
        with contextlib.suppress(exceptions.NoPermissionError):
            if (await client.execute_command("ROLE"))[0] != b"master":
                raise SessionLost("it has become a replica")

    async def _take_entries(
        self, client: aioredis.Redis, take: Callable[[int, dict[bytes, bytes]], Awaitable[bool]], entries: Any
    ) -> None:
        for id, fields in entries:
            if not await take(number_of(id), fields):
                await self._take_all(client)
                await self.up()
                return

    async def _take_change(self, version: int, fields: dict[bytes, bytes]) -> bool:
        """Handle a change; return False if earlier ones are not in the stream any more."""
        if version <= self._seq:
            return True  # it is in the snapshot taken meanwhile
        if version != self._seq + 1:
            return False
        key, value = fields[b"k"].decode(), fields.get(b"v")
        self._seq, self._highest = version, max(self._highest, version)
        if value is None:
            self._entries.pop(key, None)
        else:
            self._entries[key] = StateEntry(version, value)
        if not self.held_replies.announces(version):
            await self._link.send(*replies.changed(AcceptedWrite(key, version, value, 0)))
        await self._send_held()
        return True

    async def _take_message(self, number: int, fields: dict[bytes, bytes]) -> bool:
        if not await self._messages.take(number, fields):
            raise SessionLost("its data was replaced")
        return True
