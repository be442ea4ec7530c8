"""The state in a Redis that several servers share: this process's sessions with it.

One connection sends requests, in batches of what has arrived; another follows the two streams (changes, messages), so
that all servers see all changes in the same order (`serve_asgi.store.redis_stream_following`). A reply goes to the hub
after the changes that it depends on. What becomes of requests when a session is lost is
`serve_asgi.store.shared_store`'s. The scripts are in `serve_asgi.store.redis_scripts`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Final

import anyio
import redis.asyncio as aioredis
from redis import exceptions

from serve_asgi.config.state_location import RedisAddress
from serve_asgi.errors import ChannelError
from serve_asgi.hub.state.write_evaluation import AcceptedWrite, StateEntry, StateLimits, WriteRefusal, evaluate_write
from serve_asgi.ipc.frames import Frame
from serve_asgi.ipc.state_frames import Write, WriteOp
from serve_asgi.ipc.store_frames import GrantRefusal, StoreFailure
from serve_asgi.ipc.work_frames import WORK_REQUESTS
from serve_asgi.store import redis_scripts as scripts
from serve_asgi.store import replies
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.reconnect import SessionLost
from serve_asgi.store.redis_connector import RedisConnector, maxmemory_policy
from serve_asgi.store.redis_requests import (
    CHANGING,
    granted,
    not_done,
    reason_of,
    script_call,
    sentence,
)
from serve_asgi.store.redis_stream_following import LOOK, StreamFollower
from serve_asgi.store.redis_work_queue import RedisWorkQueue
from serve_asgi.store.replies import StoreReply
from serve_asgi.store.schedule_leases import lease_until
from serve_asgi.store.shared_store import NOTHING_KNOWN, KnownState, SharedStore, end_tasks

WAIT_PART: Final = 0.5
"""The part of the timeout in which replicas have to confirm a write."""
_REPLICATED: Final = frozenset({"store.write", "store.grant", "store.post"})
"""What replicas have to confirm: a write, work for the fleet, and a grant, so that no fail-over has a tick run
twice."""


class RedisState(SharedStore):
    """The store in one Redis."""

    ERRORS = (exceptions.RedisError,)

    def __init__(
        self,
        link: ListenerLink,
        address: RedisAddress,
        limits: StateLimits,
        name: str,
        known: KnownState = NOTHING_KNOWN,
    ) -> None:
        """`name` identifies this server uniquely; `known` is what its hub has from an earlier store process."""
        super().__init__(link)
        self._address = address
        self._limits = limits
        self._name = name
        self._redis = RedisConnector(address, name)
        self._work = RedisWorkQueue(link, self._redis, name, address.lease)
        self._following = StreamFollower(link, self._redis, address, name, self._work, known)

    def _note(self, frame: Frame) -> bool:
        return self._work.taken.note(frame)

    def _given_up(self, trouble: str) -> Iterable[StoreReply]:
        return self._following.held_replies.broken_off(trouble)

    def _sentence(self, error: Exception) -> str:
        return sentence(error, self._redis.where)

    async def _session(self) -> None:
        asker, address = await self._reach()
        follower, taker = (self._redis.client(address, LOOK + self._address.timeout) for _ in range(2))
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._check_memory_policy(asker)
            await self._following.begin(asker)
            self._trouble = ""
            await self._following.up()
            await self._work.begin(asker, self._following.epoch)
            parts = (self._ask(asker), self._following.follow(follower), self._work.take(taker))
            tasks = {asyncio.create_task(each) for each in parts}
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await end_tasks(tasks)
            self._work.lost()
            for client in (asker, follower, taker):
                await client.aclose()

    async def _reach(self) -> tuple[aioredis.Redis, str]:
        """Connect to the first address that accepts writes. Raises the error of the last one."""
        trouble: Exception = SessionLost("there is no address")
        async for url in self._redis.masters():
            client = self._redis.client(url, self._address.timeout)
            try:
                await self._redis.bring_scripts(client)
                await self._following.greet(client)
                return client, url
            except (exceptions.RedisError, OSError) as error:
                trouble = error
                await client.aclose()
        raise trouble

    async def _check_memory_policy(self, client: aioredis.Redis) -> None:
        """Log it if Redis is configured to evict keys."""
        policy = await maxmemory_policy(client)
        if policy.startswith("allkeys"):
            text = f"Redis may throw away parts of the shared state (maxmemory-policy {policy}): set it to noeviction"
            await self._link.log(logging.WARNING, "store_eviction_enabled", text, policy=policy)

    # Requests

    async def _ask(self, client: aioredis.Redis) -> None:
        while True:
            self._news.clear()
            if self._availability.due():
                await self._probe_writes(client)
            await self._work.turn(client)
            if not self._inbox:
                with anyio.move_on_after(min(self._availability.patience, self._work.taken.patience)):
                    await self._news.wait()
                continue
            frames = self._next_batch()
            pipe = client.pipeline(transaction=False)
            began = time.monotonic()
            waits = self._address.replicas > 0 and any(frame.kind in _REPLICATED for frame in frames)
            for frame in frames:
                self._redis.add(pipe, *self._call(frame))
            if waits:
                pipe.execute_command(
                    "WAIT", self._address.replicas, int(self._address.timeout * WAIT_PART * 1000)
                )  # counts the replicas that have all the above
            said = await pipe.execute(raise_on_error=False)
            too_few = waits and (isinstance(said[-1], Exception) or said[-1] < self._address.replicas)
            ends: Exception | None = None
            for frame, found in zip(frames, said, strict=False):  # the reply to WAIT comes last
                if (trouble := not_done(found)) is not None:
                    ends = trouble
                    await self._refuse(frame, StoreFailure.UNAVAILABLE, f"it was not done: {self._sentence(trouble)}")
                else:
                    await self._take_result(frame, found, began, too_few)
                self._asked.pop(0)
            if ends is not None:
                raise ends

    def _call(self, frame: Frame) -> tuple[str, list[str], list[Any]]:
        """The script for a request, its keys and arguments."""
        if frame.kind in WORK_REQUESTS:
            return self._work.call(frame)
        return script_call(frame, self._address.prefix, self._following.epoch, self._name, self._limits)

    async def _probe_writes(self, client: aioredis.Redis) -> None:
        """Try whether writes are still refused, with one that changes nothing."""
        try:
            await client.hsetnx(self._redis.key("about"), "format", str(scripts.FORMAT))
        except exceptions.ResponseError as error:
            await self._link.send_all(self._availability.refused(f"Redis refused it: {reason_of(error)}"))
        else:
            await self._link.send_all(self._availability.taken())

    async def _take_result(self, frame: Frame, found: Any, began: float, too_few: bool) -> None:
        """Handle the reply of Redis to one request."""
        if isinstance(found, exceptions.ResponseError):
            text = f"Redis refused it: {reason_of(found)}"
            if frame.kind in CHANGING:
                await self._link.send_all(self._availability.refused(text))
            await self._refuse(frame, StoreFailure.STORAGE, text)
            return
        if isinstance(found, Exception):
            raise found
        head = frame.head
        match frame.kind:
            case "store.write":
                await self._take_write_result(frame, found, too_few)
            case "store.read":
                seq, version, value = found
                entry = None if value is None else StateEntry(version, value)
                await self._following.reply_at(seq, replies.value(head["id"], head["key"], entry))
            case "store.send":
                await self._link.send("store.sent", {"id": head["id"]})
            case "store.announce" if found[1]:
                await self._link.send("store.order", {}, found[1])
            case "store.post" | "store.withdraw" | "store.settle":
                few = f"it is queued, but fewer than {self._address.replicas} replicas have it: it may be handled"
                if (reply := self._work.reply(frame, found, few if too_few else "")) is not None:
                    await self._link.send(*reply)
            case "store.grant":
                if found[0] and too_few:  # asked again, it is the same grant
                    text = f"it is granted, but fewer than {self._address.replicas} replicas have it"
                    await self._link.send(*replies.taken(head["id"], GrantRefusal.TROUBLE, text))
                else:
                    await self._link.send(*granted(head, found, began))
            case "store.renew":
                name, token = head["name"], head["token"]
                answer = replies.lost(name, token, f"the lease of {name} was not renewed in time")
                if found[0]:
                    answer = replies.renewed(name, token, lease_until(head["lease"], began))
                await self._link.send(*answer)

    async def _take_write_result(self, frame: Frame, found: Any, too_few: bool) -> None:
        id, write = frame.head["id"], Write.of(frame.head, frame.body)
        if not found[0]:
            _, seq, used, version, value = found
            decided = evaluate_write(
                write, None if value is None else StateEntry(version, value), self._limits, used, seq + 1
            )
            if not isinstance(decided, WriteRefusal):
                raise ChannelError(f"Redis refused {write.op.value} of {write.key!r}, which is in order")
            await self._following.reply_at(seq, replies.refused(id, decided))
        elif too_few:
            text = f"it is written, but fewer than {self._address.replicas} replicas have it: a fail-over may lose it"
            answer = replies.failed(frame.kind, frame.head, StoreFailure.REPLICAS, text)
            assert answer is not None
            await self._following.reply_at(found[1], answer)
        else:
            value = None if write.op is WriteOp.DELETE else found[2]
            await self._following.reply_at(found[1], replies.written(id, AcceptedWrite(write.key, found[1], value, 0)))
