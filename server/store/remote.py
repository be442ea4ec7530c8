"""The state in a Redis, which several servers share: this process's conversation with it.

One connection asks, in batches of what is there at a time; another follows the two streams (changes, messages), so that
all servers hear of all changes in one order. A refusal or an answer goes to the hub when the changes that it is about
have gone there. Nothing is ever asked twice by itself: a batch that gets no answer is refused as unknown, the hub is
told that Redis is away, and the conversation begins anew with the whole state, until it succeeds. What a script does is
in `server.store.scripts`.

A Redis that comes back empty (no persistence) gets the state that this process has, or else the hub; one that comes
back with less than it had (a fail-over) keeps what it has, and people are told how much is missing.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import heapq
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import anyio
import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from server import logs
from server.errors import ChannelError, UsageError
from server.hub.decide import Change, Entry, Limits, Op, Refused, Write, decide
from server.hub.frames import Frame, unpacked
from server.store import answers, scripts
from server.store.answers import Answer
from server.store.followed import NOWHERE, At, Followed, number_of
from server.store.frames import Trouble
from server.store.lane import Lane
from server.store.location import RedisAddress, shown
from server.store.questions import (
    CHANGING,
    Lost,
    entry,
    granted,
    lease_until,
    not_done,
    question,
    reason,
    sentence,
    stored,
)
from server.store.refusals import Refusals

BATCH: Final = 64
"""Questions that are under way together."""
INBOX: Final = 1_000
"""Questions that wait here; more wait in the socket, and then in the listener, which refuses what is too much."""
FOLLOWED: Final = 64
"""Entries of the streams that are read at a time."""
LOOK: Final = 1.0
"""Seconds without news after which the follower looks whether Redis still has the same data."""
FIRST_DELAY: Final = 0.05
LONGEST_DELAY: Final = 1.0
"""Seconds between two attempts to reach Redis; the delay doubles."""
CANCEL_AGAIN: Final = 0.1
"""Seconds until a task that goes on is cancelled once more."""
WAIT_PART: Final = 0.5
"""Part of the timeout that replicas have to confirm a write."""

log = logging.getLogger("serve")


class Known(NamedTuple):
    """What there is of the state already."""

    entries: dict[str, Entry]
    version: int  # of the last change
    at: At = NOWHERE  # the last message


NOTHING: Final = Known({}, 0)


class RemoteState:
    """The conversation; `serve` holds it until the listener is gone."""

    def __init__(self, lane: Lane, address: RedisAddress, limits: Limits, name: str, known: Known = NOTHING) -> None:
        """`name` is that of this server, which no other one has; `known` is what its hub has of an earlier process."""
        self._lane = lane
        self._address = address
        self._limits = limits
        self._name = name
        self._inbox: collections.deque[Frame] = collections.deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._asking: list[Frame] = []  # the batch under way
        self._held: list[tuple[int, int, Answer]] = []  # until so many changes have gone to the hub
        self._count = 0
        self._trouble = ""
        self._refusals = Refusals()
        self._epoch = ""
        self._seq = 0  # version of the last change that the hub has been told
        self._highest = known.version  # of all that were ever told
        self._messages = Followed(known.at)
        self._entries = known.entries
        self._shas: dict[str, str] = {}

    async def serve(self, first: Sequence[Frame]) -> None:
        """Answer until the end of the lane. Raises EOFError then, and UsageError if Redis can never be used so."""
        self._inbox.extend(first)
        tasks = {asyncio.create_task(each) for each in (self._receive(), self._converse())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _end(tasks)

    # The lane

    async def _receive(self) -> None:
        while True:
            for frame in await self._lane.receive():
                if frame.kind == "store.reopen":
                    logs.reopen()
                elif self._trouble:
                    await self._refuse(frame, Trouble.AWAY, f"it was not done: {self._trouble}")
                else:
                    self._inbox.append(frame)
            self._news.set()
            while len(self._inbox) > INBOX:
                self._room.clear()
                await self._room.wait()

    async def _refuse(self, frame: Frame, why: Trouble, text: str) -> None:
        if (found := answers.trouble(frame.kind, frame.head, why, text)) is not None:
            await self._lane.send(*found)

    async def _say(self, level: int, event: str, text: str, **more: Any) -> None:
        await self._lane.send("store.say", {"level": level, "event": event, "text": text, "about": more})

    # The conversation

    async def _converse(self) -> None:
        delay = FIRST_DELAY
        while True:
            began = time.monotonic()
            try:
                await self._session()
            except (exceptions.RedisError, OSError, TimeoutError, Lost) as error:
                log.debug("the conversation with Redis", exc_info=True)
                await self._away(error)
            if time.monotonic() - began > LONGEST_DELAY:
                delay = FIRST_DELAY
            await asyncio.sleep(delay)
            delay = min(LONGEST_DELAY, delay * 2)

    async def _away(self, error: Exception) -> None:
        """Nothing can be asked until another session stands; whoever waits is told."""
        trouble = self._sentence(error)
        for _, _, answer in sorted(self._held, key=lambda each: each[:2]):
            await self._lane.send(*_out_of_order(answer, trouble))
        self._held.clear()
        self._refusals = Refusals()
        asked, self._asking = self._asking, []
        for frame in asked:
            await self._refuse(frame, Trouble.UNKNOWN, f"it is not known whether it was done: {trouble}")
        changed, self._trouble = trouble != self._trouble, trouble
        while self._inbox:
            await self._refuse(self._inbox.popleft(), Trouble.AWAY, f"it was not done: {trouble}")
        self._room.set()
        if changed:
            await self._lane.send("store.down", {"text": trouble})

    def _sentence(self, error: Exception) -> str:
        return sentence(error, " and ".join(shown(url) for url in self._address.urls))

    async def _session(self) -> None:
        asker, address = await self._reach()
        follower = self._client(address, LOOK + self._address.timeout)
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._look_at_memory(asker)
            await self._find_messages(asker, await self._take_all(asker))
            self._trouble = ""
            await self._up()
            tasks = {asyncio.create_task(each) for each in (self._ask(asker), self._follow(follower))}
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _end(tasks)
            for client in (asker, follower):
                await client.aclose()

    async def _reach(self) -> tuple[aioredis.Redis, str]:
        """The first address that takes writes. Raises what the last one said."""
        trouble: Exception = Lost("there is no address")
        for url in self._address.urls:
            client = self._client(url, self._address.timeout)
            try:
                for name in ("HELLO", "SNAPSHOT", "READ", "WRITE", "SEND", "GRANT", "RENEW", "RELEASE"):
                    self._shas[name] = await client.script_load(getattr(scripts, name))
                await self._greet(client)
                return client, url
            except (exceptions.RedisError, OSError) as error:
                trouble = error
                await client.aclose()
        raise trouble

    def _client(self, url: str, timeout: float) -> aioredis.Redis:
        return aioredis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=timeout,
            socket_connect_timeout=self._address.timeout,
            retry=Retry(NoBackoff(), 0),  # what is asked twice is done twice
            retry_on_timeout=False,
            client_name=f"serve-{self._name[:8]}",
        )

    def _key(self, name: str) -> str:
        return f"{self._address.prefix}:{name}"

    def _keys(self, *names: str) -> list[str]:
        return [self._key(name) for name in names]

    async def _run(self, client: Any, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        return await client.evalsha(self._shas[script], len(keys), *keys, *arguments)

    # The beginning of a session

    async def _greet(self, client: aioredis.Redis) -> None:
        """Begin the data, or find what there is. Raises UsageError if it is somebody else's."""
        keys = self._keys("about", "state", "log", "messages")
        mine: list[str | bytes] = []
        fresh = uuid.uuid4().hex
        try:
            found = await self._run(client, "HELLO", keys, fresh, self._highest, int(bool(self._entries)))
            if found == [b""]:
                mine = [each for key, entry in self._entries.items() for each in (key, stored(entry))]
                found = await self._run(client, "HELLO", keys, fresh, self._highest, 1, *mine)
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
        self._epoch = epoch
        if mine and epoch == fresh:
            text = f"Redis came back without the shared state: {len(self._entries)} keys have been written to it again"
            await self._say(logging.WARNING, "store_restored", text, keys=len(self._entries))
        elif seq < self._highest:
            text = f"Redis came back without the latest changes of the shared state: {self._highest - seq} are lost"
            await self._say(logging.ERROR, "store_lost", text, changes=self._highest - seq)

    async def _take_all(self, client: aioredis.Redis) -> int:
        """Tell the hub the whole state, and follow from there; return the number of the last message."""
        found = await self._run(client, "SNAPSHOT", self._keys("about", "state"), self._epoch)
        if found[0] == -1:
            raise Lost("its data was replaced")
        seq, sent = int(found[0]), int(found[1])
        self._entries = {key.decode(): entry(value) for key, value in zip(found[2::2], found[3::2], strict=True)}
        for piece in answers.snapshot(self._entries.items()):
            await self._lane.send(*piece)
        self._seq, self._highest = seq, max(self._highest, seq)
        return sent

    async def _find_messages(self, client: Any, last: int) -> None:
        """Go on with the messages where this server was, and say so if some may not arrive."""
        key, messages = self._key("messages"), self._messages
        if messages.begin(self._epoch, last):
            text = "Redis has lost its data: the latest broadcasts of other servers before that may not have arrived"
            await self._say(logging.ERROR, "store_missed", text)
        elif gone := await messages.agree(lambda number: client.xrange(key, f"{number}-0", "+", 1)):
            text = f"Redis came back without the latest {gone} broadcasts: who had not taken them does not get them"
            await self._say(logging.ERROR, "store_lost", text, messages=gone)
        if messages.cut(last):
            text = "Redis came back with less than this server remembers: broadcasts of other servers may be missing"
            await self._say(logging.ERROR, "store_missed", text)

    async def _look_at_memory(self, client: aioredis.Redis) -> None:
        """Say so if the operator lets Redis throw away what it keeps."""
        try:
            info = await client.info("memory")
        except exceptions.ResponseError:  # it may be forbidden
            return
        policy = str(info.get("maxmemory_policy", ""))
        if policy.startswith("allkeys") and info.get("maxmemory"):
            text = f"Redis may throw away parts of the shared state (maxmemory-policy {policy}): set it to noeviction"
            await self._say(logging.WARNING, "store_evicts", text, policy=policy)

    async def _up(self) -> None:
        await self._lane.send("store.up", {"server": self._name, "shared": True, "at": self._messages.at})
        await self._release_held()

    # Asking

    async def _ask(self, client: aioredis.Redis) -> None:
        while True:
            if self._refusals.due():
                await self._look_at_refusals(client)
            if not self._inbox:
                self._news.clear()
                with anyio.move_on_after(self._refusals.patience):
                    await self._news.wait()
                continue
            frames = [self._inbox.popleft() for _ in range(min(BATCH, len(self._inbox)))]
            self._asking = list(frames)
            self._room.set()
            pipe = client.pipeline(transaction=False)
            began = time.monotonic()
            waits = self._address.replicas > 0 and any(frame.kind == "store.write" for frame in frames)
            for frame in frames:
                script, keys, arguments = question(frame, self._address.prefix, self._epoch, self._name, self._limits)
                pipe.evalsha(self._shas[script], len(keys), *keys, *arguments)
            if waits:
                pipe.execute_command(
                    "WAIT", self._address.replicas, int(self._address.timeout * WAIT_PART * 1000)
                )  # counts the replicas that have all of the above
            said = await pipe.execute(raise_on_error=False)
            too_few = waits and (isinstance(said[-1], Exception) or said[-1] < self._address.replicas)
            ends: Exception | None = None
            for frame, found in zip(frames, said, strict=False):  # WAIT's answer comes last
                if (trouble := not_done(found)) is not None:
                    ends = trouble
                    await self._refuse(frame, Trouble.AWAY, f"it was not done: {self._sentence(trouble)}")
                else:
                    await self._heard(frame, found, began, too_few)
                self._asking.pop(0)
            if ends is not None:
                raise ends

    async def _look_at_refusals(self, client: aioredis.Redis) -> None:
        """Try whether writes would be refused still; what is written changes nothing."""
        try:
            await client.hsetnx(self._key("about"), "format", str(scripts.FORMAT))
        except exceptions.ResponseError as error:
            await self._tell(self._refusals.refused(f"Redis refused it: {reason(error)}"))
        else:
            await self._tell(self._refusals.taken())

    async def _tell(self, found: Iterable[Answer]) -> None:
        for each in found:
            await self._lane.send(*each)

    async def _heard(self, frame: Frame, found: Any, began: float, too_few: bool) -> None:
        """Redis has answered one question."""
        if isinstance(found, exceptions.ResponseError):
            text = f"Redis refused it: {reason(found)}"
            if frame.kind in CHANGING:
                await self._tell(self._refusals.refused(text))
            await self._refuse(frame, Trouble.STORAGE, text)
            return
        if isinstance(found, Exception):
            raise found
        head = frame.head
        match frame.kind:
            case "store.write":
                await self._wrote(frame, found, too_few)
            case "store.read":
                seq, version, value = found
                entry = None if value is None else Entry(version, value)
                await self._answer_at(seq, answers.value(head["id"], head["key"], entry))
            case "store.send":
                await self._lane.send("store.sent", {"id": head["id"]})
            case "store.grant":
                await self._lane.send(*granted(head, found, began))
            case "store.renew":
                name, token = head["name"], head["token"]
                answer = answers.lost(name, token, f"the lease of {name} was not renewed in time")
                if found[0]:
                    answer = answers.renewed(name, token, lease_until(head["lease"], began))
                await self._lane.send(*answer)

    async def _wrote(self, frame: Frame, found: Any, too_few: bool) -> None:
        id, write = frame.head["id"], Write.of(frame.head, frame.body)
        if not found[0]:
            _, seq, used, version, value = found
            decided = decide(write, None if value is None else Entry(version, value), self._limits, used, seq + 1)
            if not isinstance(decided, Refused):
                raise ChannelError(f"Redis refused {write.op.value} of {write.key!r}, which is in order")
            await self._answer_at(seq, answers.refused(id, decided))
        elif too_few:
            text = f"it stands, but fewer than {self._address.replicas} replicas have it: a fail-over may lose it"
            answer = answers.trouble(frame.kind, frame.head, Trouble.REPLICAS, text)
            assert answer is not None
            await self._answer_at(found[1], answer)
        else:
            value = None if write.op is Op.DELETE else found[2]
            await self._answer_at(found[1], answers.written(id, Change(write.key, found[1], value, 0)))

    async def _answer_at(self, seq: int, answer: Answer) -> None:
        """Answer when the hub has been told all changes up to this one."""
        self._count += 1
        heapq.heappush(self._held, (seq, self._count, answer))
        await self._release_held()

    async def _release_held(self) -> None:
        while self._held and self._held[0][0] <= self._seq:
            await self._lane.send(*heapq.heappop(self._held)[2])

    # Following

    async def _follow(self, client: Any) -> None:  # redis-py's annotations fit neither kind of answer
        changes, messages = self._keys("log", "messages")
        take = {changes.encode(): self._take_change, messages.encode(): self._take_message}
        while True:
            after = {changes: f"{self._seq}-0", messages: f"{self._messages.at.number}-0"}
            news = await client.xread(after, count=FOLLOWED, block=int(LOOK * 1000))
            for stream, entries in news or ():
                await self._take_entries(client, take[stream], entries)
            if not news:
                await self._look_at_master(client)

    async def _look_at_master(self, client: Any) -> None:
        """Nothing has come for a while. Raises Lost if nothing that matters would come any more.

        Redis ends the wait of those who read in the moment in which it becomes a replica, and of nobody else's.
        """
        if await client.hget(self._key("about"), "epoch") != self._epoch.encode():
            raise Lost("its data was replaced")
        with contextlib.suppress(exceptions.NoPermissionError):
            if (await client.execute_command("ROLE"))[0] != b"master":
                raise Lost("it has become a replica")

    async def _take_entries(
        self, client: aioredis.Redis, take: Callable[[int, dict[bytes, bytes]], Awaitable[bool]], entries: Any
    ) -> None:
        for id, fields in entries:
            if not await take(number_of(id), fields):
                await self._take_all(client)
                await self._up()
                return

    async def _take_change(self, version: int, fields: dict[bytes, bytes]) -> bool:
        """A change; False if some before it are not in the stream any more."""
        if version <= self._seq:
            return True  # it is in the snapshot that was taken meanwhile
        if version != self._seq + 1:
            return False
        key, value = fields[b"k"].decode(), fields.get(b"v")
        self._seq, self._highest = version, max(self._highest, version)
        if value is None:
            self._entries.pop(key, None)
        else:
            self._entries[key] = Entry(version, value)
        if not (self._held and self._held[0][0] == version and self._held[0][2].kind == "store.written"):
            await self._lane.send(*answers.changed(Change(key, version, value, 0)))
        await self._release_held()
        return True

    async def _take_message(self, number: int, fields: dict[bytes, bytes]) -> bool:
        if not self._messages.fits(fields):
            raise Lost("its data was replaced")
        if (missed := self._messages.take(number, fields)) > 0:
            text = f"{missed} messages of other servers were missed: they came faster than this server took them"
            await self._say(logging.ERROR, "store_missed", text, messages=missed)
        at = self._messages.at
        if fields[b"o"] != self._name.encode():
            head = {**unpacked(fields[b"h"]), "server": fields[b"o"].decode(), "at": at}
            await self._lane.send("store.message", head, fields[b"b"])
        elif not number % FOLLOWED:
            await self._lane.send("store.at", {"at": at})
        return True


def _out_of_order(answer: Answer, trouble: str) -> Answer:
    """An answer before the changes that it is about: of a write it says no more than that the write may stand."""
    if answer.kind != "store.written":
        return answer
    text = f"Redis had it, but went away before this server had heard of all changes before it: {trouble}"
    return answers.trouble("store.write", answer.head, Trouble.UNKNOWN, text) or answer


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel, and again: redis-py loses a cancellation that comes while it connects (8.1 on Python 3.11)."""
    pending = tasks
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)
