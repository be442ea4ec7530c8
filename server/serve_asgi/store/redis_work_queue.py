"""Work of the fleet in a Redis: streams with a consumer group, one for each topic.

What is wanted is waited for on a connection of its own (XREADGROUP), which is only made when this server handles a
topic of the fleet. Requests go with all others (`serve_asgi.store.redis_state`), and new topics and outcomes are
followed with the other streams (`serve_asgi.store.redis_stream_following`). Taken work is kept by XCLAIM, and what
others have not kept is claimed (XAUTOCLAIM); the scripts are in `serve_asgi.store.redis_work_scripts`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from redis import exceptions

from serve_asgi.ipc.frames import Frame, pack_value, unpack_value
from serve_asgi.ipc.store_frames import StoreFailure
from serve_asgi.ipc.work_frames import WorkOutcome
from serve_asgi.store import replies
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.reconnect import SessionLost
from serve_asgi.store.redis_connector import RedisConnector
from serve_asgi.store.redis_work_scripts import GROUP
from serve_asgi.store.replies import StoreReply
from serve_asgi.store.taken_work import TakenWork

WAIT: Final = 1.0
"""Seconds that one XREADGROUP waits."""
FIRST: Final = "0-0"

Fields = Mapping[bytes, bytes]
ScriptCall = tuple[str, list[str], list[Any]]


class RedisWorkQueue:
    """The work of one server, over all sessions."""

    def __init__(self, link: ListenerLink, redis: RedisConnector, server: str, lease: float) -> None:
        """`server` identifies this server uniquely."""
        self._link = link
        self._redis = redis
        self._server = server
        self.taken = TakenWork(lease)
        self._at = dict.fromkeys((redis.key("topics"), redis.key(f"outcomes:{server}")), FIRST)
        self._kept: set[str] = set()  # topics whose group has been tidied in this session
        self._waiter = 0  # the id of the connection that waits
        self._waits_for: frozenset[str] = frozenset()
        self._epoch = ""

    async def begin(self, client: Any, epoch: str) -> None:
        """A session begins: find the topics of the fleet. `store.up` has been sent."""
        self._epoch, self._waits_for, self._kept = epoch, frozenset(), set()
        self._at = dict.fromkeys(self._at, FIRST)
        topics, _ = self._at
        found = await client.xrange(topics)
        if found:
            self._at[topics] = found[-1][0].decode()
        names = dict.fromkeys(fields[b"t"].decode() for _, fields in found)
        self.taken.begin(names)
        await self._link.send_all(replies.topics(list(names), fresh=True))

    # Requests

    def call(self, frame: Frame) -> ScriptCall:
        """The script for a request, its keys and arguments. Raises LookupError or TypeError for an invalid frame."""
        head = frame.head
        topic = head["topic"]
        about, work, sizes = self._redis.keys("about", f"work:{topic}", "sizes")
        if frame.kind == "store.post":
            topics, handlers = self._redis.keys("topics", f"handlers:{topic}")
            origin = pack_value(head["origin"], "an origin")
            values = [topic, self._server, head["id"], head["message"], head["ack"], head["limit"], origin, frame.body]
            return "POST", [about, topics, work, handlers, sizes], [self._epoch, *values]
        if frame.kind == "store.withdraw":
            return "WITHDRAW", [about, work, sizes], [self._epoch, topic, head["entry"]]
        outcome, value = head["outcome"], head["value"]
        packed = value if outcome == WorkOutcome.AGAIN.value else pack_value(value, "an outcome")
        values = [topic, head["entry"], outcome, packed, self._redis.key("outcomes:")]
        return "SETTLE", [about, work, sizes], [self._epoch, *values]

    def reply(self, frame: Frame, found: Any, too_few: str) -> StoreReply | None:
        """The reply to a request; `too_few` says that it may be lost in a fail-over."""
        head = frame.head
        if frame.kind == "store.withdraw":
            return StoreReply("store.withdrawn", {"id": head["id"], "found": bool(found[0])})
        if frame.kind == "store.settle":
            self.taken.settled(head["topic"], head["entry"])
            return StoreReply("store.settled", {"id": head["id"]})
        if not found[0]:
            return replies.failed(frame.kind, head, StoreFailure.BUSY, replies.queue_full(head["topic"], found[1]))
        if too_few:
            return replies.failed(frame.kind, head, StoreFailure.REPLICAS, too_few)
        return StoreReply("store.posted", {"id": head["id"], "entry": found[1].decode(), "handlers": found[2]})

    # Keeping what has been taken

    async def turn(self, client: Any) -> None:
        """Renew the leases if it is time, and let the waiting connection know of topics that are wanted now."""
        if self.taken.keep_due():
            await self._keep(client)
        if self._waits_for and not self._waits_for.issuperset(self.taken.wanted()):
            self._waits_for = frozenset()
            with contextlib.suppress(exceptions.ResponseError):  # not allowed: it is noticed after `WAIT`
                await client.client_unblock(self._waiter)

    async def _keep(self, client: Any) -> None:
        """Say what this server handles and still has, and take over what dead servers had."""
        pipe, wanted, topics = client.pipeline(transaction=False), self.taken.wanted(), self.taken.to_keep()
        for topic, (handled, held) in topics.items():
            keys = self._redis.keys("about", f"work:{topic}", f"handlers:{topic}")
            values = [self._epoch, self._server, round(self.taken.lease * 1000), int(handled)]
            more = [int(topic not in self._kept), wanted.get(topic, 0), *held]
            self._redis.add(pipe, "KEEP", keys, [*values, *more])
        self._kept.update(topics)
        for topic, (said, *claimed) in zip(topics, await pipe.execute(), strict=True):
            if said == -1:
                raise SessionLost("its data was replaced")
            for id, flat, delivered in claimed:
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                await self._link.send(*self._taken(topic, id.decode(), fields, delivered))

    # Taking

    async def take(self, client: Any) -> None:
        """Take what is wanted, on a connection of its own, until that is lost, which raises."""
        while True:
            wanted = self.taken.wanted()
            if not wanted:
                self.taken.changed.clear()
                await self.taken.changed.wait()
                continue
            if not self._waiter:
                self._waiter = await client.client_id()
                continue
            streams = {self._redis.key(f"work:{topic}"): topic for topic in wanted}
            self._waits_for = frozenset(wanted)
            try:
                found = await client.xreadgroup(
                    GROUP, self._server, dict.fromkeys(streams, ">"), min(wanted.values()), int(WAIT * 1000)
                )
            except exceptions.ResponseError as error:
                if "NOGROUP" in str(error):
                    raise SessionLost("its data was replaced") from None
                raise
            finally:
                self._waits_for = frozenset()
            for stream, entries in found or ():
                for id, fields in entries:
                    await self._link.send(*self._taken(streams[stream.decode()], id.decode(), fields, 1))

    def _taken(self, topic: str, id: str, fields: Fields, delivered: int) -> StoreReply:
        message, attempt = fields[b"m"].decode(), int(fields[b"n"]) + delivered
        ack, limit, origin = int(fields[b"a"]), int(fields[b"l"]), unpack_value(fields[b"o"])
        return self.taken.taken(topic, id, message, attempt, ack, limit, origin, fields[b"b"])

    def lost(self) -> None:
        """The session has ended, and its connections with it."""
        self._waiter = 0

    # Following

    @property
    def positions(self) -> dict[str, str]:
        """The streams to follow, and the last entry that was read of each."""
        return self._at

    async def follow(self, client: Any, stream: str, entries: Any) -> None:
        """Take what is new in one of these streams."""
        ids = [id for id, _ in entries]
        self._at[stream] = ids[-1].decode()
        if stream == self._redis.key("topics"):
            names = [fields[b"t"].decode() for _, fields in entries]
            self.taken.topics.update(names)
            self.taken.changed.set()
            await self._link.send_all(replies.topics(names, fresh=False))
            return
        for _, fields in entries:
            await self._link.send(*replies.outcome(fields[b"k"].decode(), fields[b"o"].decode(), fields[b"v"]))
        await client.xdel(stream, *ids)
