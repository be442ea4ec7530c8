"""The state in a Redis that several servers share: this process's sessions with it.

One connection sends requests, in batches of what has arrived; another follows the two streams (changes, messages), so
that all servers see all changes in the same order (`serve_asgi.store.redis_stream_following`). A reply goes to the hub
after the changes that it depends on. Nothing is repeated automatically: the requests of a batch without a reply fail as
unknown, the hub is notified that Redis is unavailable, and sessions are tried anew, with the whole state, until one
succeeds (`serve_asgi.store.redis_reconnect`). The scripts are in `serve_asgi.store.redis_scripts`.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import anyio
import redis.asyncio as aioredis
from redis import exceptions

from serve_asgi.config.state_location import RedisAddress, shown
from serve_asgi.errors import ChannelError
from serve_asgi.hub.state.write_evaluation import AcceptedWrite, StateEntry, StateLimits, WriteRefusal, evaluate_write
from serve_asgi.ipc.frames import Frame
from serve_asgi.ipc.state_frames import Write, WriteOp
from serve_asgi.ipc.store_frames import StoreFailure
from serve_asgi.logs import server_log as logs
from serve_asgi.store import redis_scripts as scripts
from serve_asgi.store import replies
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.redis_connector import RedisConnector, maxmemory_policy
from serve_asgi.store.redis_reconnect import reconnect
from serve_asgi.store.redis_requests import (
    CHANGING,
    SessionLost,
    granted,
    lease_until,
    not_done,
    reason_of,
    script_call,
    sentence,
)
from serve_asgi.store.redis_stream_following import LOOK, NOTHING_KNOWN, KnownState, StreamFollower
from serve_asgi.store.write_availability import WriteAvailability

BATCH: Final = 64
"""Requests that are sent to Redis together."""
INBOX: Final = 1_000
"""Requests that wait here; more wait in the socket, and then in the listener, which refuses what is too much."""
CANCEL_AGAIN: Final = 0.1
"""Seconds until a task that goes on is cancelled again."""
WAIT_PART: Final = 0.5
"""The part of the timeout in which replicas have to confirm a write."""


class RedisState:
    """The store in one Redis; `serve` runs until the listener is gone."""

    def __init__(
        self,
        link: ListenerLink,
        address: RedisAddress,
        limits: StateLimits,
        name: str,
        known: KnownState = NOTHING_KNOWN,
    ) -> None:
        """`name` identifies this server uniquely; `known` is what its hub has from an earlier store process."""
        self._link = link
        self._address = address
        self._limits = limits
        self._name = name
        self._inbox: collections.deque[Frame] = collections.deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._asking: list[Frame] = []  # the batch that was sent
        self._trouble = ""
        self._availability = WriteAvailability()
        self._redis = RedisConnector(address, name)
        self._following = StreamFollower(link, self._redis, address, name, known)

    async def serve(self, first: Sequence[Frame]) -> None:
        """Serve until the link ends. Raises EOFError then, and UsageError if Redis can never be used like this."""
        self._inbox.extend(first)
        tasks = {asyncio.create_task(each) for each in (self._receive(), reconnect(self._session, self._disconnected))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _end(tasks)

    # The link

    async def _receive(self) -> None:
        while True:
            for frame in await self._link.receive():
                if frame.kind == "store.reopen":
                    logs.reopen()
                elif self._trouble:
                    await self._refuse(frame, StoreFailure.UNAVAILABLE, f"it was not done: {self._trouble}")
                else:
                    self._inbox.append(frame)
            self._news.set()
            while len(self._inbox) > INBOX:
                self._room.clear()
                await self._room.wait()

    async def _refuse(self, frame: Frame, why: StoreFailure, text: str) -> None:
        if (found := replies.failed(frame.kind, frame.head, why, text)) is not None:
            await self._link.send(*found)

    # Sessions

    async def _disconnected(self, error: Exception) -> None:
        """Fail the pending requests: nothing can be requested until the next session."""
        trouble = self._sentence(error)
        await self._link.send_all(self._following.held_replies.broken_off(trouble))
        self._availability = WriteAvailability()
        asked, self._asking = self._asking, []
        for frame in asked:
            await self._refuse(frame, StoreFailure.UNKNOWN, f"it is not known whether it was done: {trouble}")
        changed, self._trouble = trouble != self._trouble, trouble
        while self._inbox:
            await self._refuse(self._inbox.popleft(), StoreFailure.UNAVAILABLE, f"it was not done: {trouble}")
        self._room.set()
        if changed:
            await self._link.send("store.down", {"text": trouble})

    def _sentence(self, error: Exception) -> str:
        return sentence(error, " and ".join(shown(url) for url in self._address.urls))

    async def _session(self) -> None:
        asker, address = await self._reach()
        follower = self._redis.client(address, LOOK + self._address.timeout)
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._check_memory_policy(asker)
            await self._following.begin(asker)
            self._trouble = ""
            await self._following.up()
            tasks = {asyncio.create_task(each) for each in (self._ask(asker), self._following.follow(follower))}
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _end(tasks)
            for client in (asker, follower):
                await client.aclose()

    async def _reach(self) -> tuple[aioredis.Redis, str]:
        """Connect to the first address that accepts writes. Raises the error of the last one."""
        trouble: Exception = SessionLost("there is no address")
        for url in self._address.urls:
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
            if self._availability.due():
                await self._probe_writes(client)
            if not self._inbox:
                self._news.clear()
                with anyio.move_on_after(self._availability.patience):
                    await self._news.wait()
                continue
            frames = [self._inbox.popleft() for _ in range(min(BATCH, len(self._inbox)))]
            self._asking = list(frames)
            self._room.set()
            pipe = client.pipeline(transaction=False)
            began = time.monotonic()
            waits = self._address.replicas > 0 and any(frame.kind == "store.write" for frame in frames)
            for frame in frames:
                script, keys, arguments = script_call(
                    frame, self._address.prefix, self._following.epoch, self._name, self._limits
                )
                self._redis.add(pipe, script, keys, arguments)
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
                self._asking.pop(0)
            if ends is not None:
                raise ends

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
            case "store.grant":
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


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks until they end: redis-py loses a cancellation while it connects (8.1 on Python 3.11)."""
    pending = tasks
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)
