"""The sending side of the messenger in one process: a window, frames of several messages, and the hub's confirmations.

It owns every message of this process from the call until its last confirmation. At most `WINDOW` messages are sent and
not accepted yet, at most half of them of one topic; further calls wait their turn, in order. Messages that are sent in
one turn of the event loop share a frame.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import secrets
from typing import Any, Final

from serve_asgi.app.hub_link import Link, LinkClosed, current
from serve_asgi.app.presence import presence
from serve_asgi.app.retiring import retiring
from serve_asgi.errors import ServeError
from serve_asgi.ipc.frames import Frame
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.message_frames import FRAME_BYTES, FRAME_MESSAGES, AckMode, EntryBatch, MessageKind, split_entries

WINDOW: Final = 256
"""Messages of one process that are sent and not accepted yet."""
WINDOW_BYTES: Final = 1024 * 1024
"""Bytes of their payloads, unless a single payload is larger."""
ANSWER_TIME: Final = 5.0
"""Seconds that the hub has to report on a message after its timeout."""


class NoReceiver(ServeError):
    """No process handles the topic, or the receiver that was named does not exist."""


class NotDelivered(ServeError, TimeoutError):
    """Not all destinations have accepted it in time: the text names those that have not, which will not get it."""


class NotHandled(ServeError, TimeoutError):
    """It was accepted, but its handler has not ended in time; an acknowledged message may still be handled."""


class CallFailed(ServeError):
    """The handler of a call raised, its process died, or its reply cannot be sent; the text says which."""


class DeadLettered(ServeError):
    """It was delivered as often as allowed, and never handled."""


_ERRORS: Final[dict[str, type[ServeError]]] = {
    "nobody": NoReceiver,
    "full": NotDelivered,
    "store": NotDelivered,
    "late": NotHandled,
    "lost": CallFailed,
    "dead": DeadLettered,
}


@dataclasses.dataclass(slots=True, eq=False)
class UnconfirmedMessage:
    """A message whose sender waits for a confirmation."""

    future: asyncio.Future[Any]
    size: int
    topic: str
    ack_mode: AckMode
    in_window: bool = True
    timer: asyncio.TimerHandle | None = None


class SendWindow:
    """Limits the messages, and their bytes, that are in flight to the hub.

    No topic may have more in flight than it leaves room for others, so that topics whose receivers are slow leave a
    share to the next one. Messages of a topic enter in order; none overtakes a topic that waits for room though it has
    none in flight.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._count = 0
        self._bytes = 0
        self._in_flight: dict[str, tuple[int, int]] = {}  # messages and bytes, by topic
        self._waiters: dict[str, collections.deque[tuple[asyncio.Future[None], int]]] = {}
        self._must_queue = False  # a topic with none in flight waits

    def _fits(self, topic: str, size: int) -> bool:
        free, free_bytes = WINDOW - self._count, WINDOW_BYTES - self._bytes
        if topic not in self._in_flight:
            return not self._count or (free > 0 and size <= free_bytes)
        count, bytes = self._in_flight[topic]
        return count < free and bytes + size <= free_bytes

    def _add(self, topic: str, messages: int, size: int) -> None:
        count, bytes = self._in_flight.get(topic, (0, 0))
        self._count += messages
        self._bytes += size
        if count + messages:
            self._in_flight[topic] = count + messages, bytes + size
        else:
            del self._in_flight[topic]

    def try_enter(self, topic: str, size: int) -> bool:
        """Enter at once, if there is room and no other has to enter first."""
        if self._must_queue or topic in self._waiters or not self._fits(topic, size):
            return False
        self._add(topic, 1, size)
        return True

    async def enter(self, topic: str, size: int) -> None:
        """Wait for room, in turn; the caller sets the deadline."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.setdefault(topic, collections.deque()).append((waiter, size))
        self._must_queue |= topic not in self._in_flight
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave(topic, size)  # it had just been admitted
            else:
                self._admit_waiting()  # others may have waited behind it
            raise

    def leave(self, topic: str, size: int) -> None:
        """A message has been accepted, or is not waited for any more."""
        self._add(topic, -1, -size)
        if self._waiters:
            self._admit_waiting()

    def _admit_waiting(self) -> None:
        """Admit those for whom there is room; a topic that got some goes behind the others."""
        self._must_queue = False
        for topic in list(self._waiters):
            waiters = self._waiters[topic]
            entered = False
            while waiters:
                waiter, size = waiters[0]
                if not waiter.done():
                    if not self._fits(topic, size):
                        break
                    self._add(topic, 1, size)
                    waiter.set_result(None)
                    entered = True
                waiters.popleft()
            if entered or not waiters:
                del self._waiters[topic]
                if waiters:
                    self._waiters[topic] = waiters
            if waiters and topic not in self._in_flight:
                self._must_queue = True
                break

    def fail(self, error: Exception) -> None:
        """Admit nobody any more: all who wait get this error."""
        waiting, self._waiters = self._waiters, {}
        for waiter in [waiter for waiters in waiting.values() for waiter, _ in waiters]:
            if not waiter.done():
                waiter.set_exception(error)


class FrameOutbox:
    """Entries of one kind of frame; those of one turn of the loop share a frame."""

    def __init__(self, link: Link, kind: str, limit: int = FRAME_MESSAGES) -> None:
        self._link = link
        self._limit = limit
        self._batch = EntryBatch(kind)

    def add(self, entry: Any, body: bytes = b"") -> None:
        """Send an entry, in order, at the end of this turn of the loop."""
        batch = self._batch
        if not batch.entries:
            self._link.loop.call_soon(self.flush)
        elif len(batch.entries) >= self._limit or batch.size + len(body) > FRAME_BYTES:
            self._send()
            batch = self._batch
        batch.entries.append(entry)
        if body:
            batch.bodies.append(body)
            batch.size += len(body)

    def flush(self) -> None:
        """Send what has been collected."""
        if self._batch.entries:
            self._send()

    def _send(self) -> None:
        batch, self._batch = self._batch, EntryBatch(self._batch.kind)
        if not self._link.closed:
            self._link.send(batch.kind, {"m": batch.entries}, b"".join(batch.bodies))


class MessageSender:
    """The sender of messages over one link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = link.loop
        self._token = f"{link.identity.member:x}.{secrets.token_hex(4)}"  # unique, also among servers
        self._count = 0
        self._window = SendWindow(link.loop)
        self._unconfirmed: dict[str, UnconfirmedMessage] = {}
        self._messages = FrameOutbox(link, "msg.send")
        self._withdrawn = FrameOutbox(link, "msg.withdraw")
        link.on_frame("msg.confirm", self._take)
        link.on_close(self._close)

    async def send(
        self, kind: MessageKind, topic: str, body: bytes, ack_mode: AckMode, limit: int, slot: int, timeout: float
    ) -> Any:
        """Send a message; return, by `ack_mode`, the number of receivers, the bytes of the reply, or who handled it.

        Must run on the link's loop.
        """
        began = self._loop.time()
        size = len(body)
        if not self._window.try_enter(topic, size):
            try:
                async with asyncio.timeout_at(began + timeout):
                    await self._window.enter(topic, size)
            except TimeoutError:
                raise NotDelivered(
                    f"a message of topic {topic!r} was not sent within {timeout:g} s: too many others of this "
                    "process wait to be accepted"
                ) from None
        if self._link.closed:
            self._window.leave(topic, size)
            raise LinkClosed("the listener of this server is gone: other processes cannot be reached any more")
        self._count += 1
        id = f"{self._token}-{self._count:x}"
        sent = self._unconfirmed[id] = UnconfirmedMessage(self._loop.create_future(), size, topic, ack_mode)
        self._messages.add([id, int(kind), topic, int(ack_mode), limit, slot, size], body)
        sent.timer = self._loop.call_at(began + timeout, self._expire, id)
        try:
            return await sent.future
        except asyncio.CancelledError:
            self._withdraw(id)
            raise
        finally:
            sent.timer.cancel()
            if sent.future.cancelled() and sent.in_window and not self._link.closed:
                # it is in flight all the same, and counts in the window
                sent.timer = self._loop.call_later(ANSWER_TIME, self._forget, id)
            else:
                self._forget(id)

    async def deliver(
        self, kind: MessageKind, topic: str, body: bytes, ack_mode: AckMode, limit: int, slot: int, timeout: float
    ) -> Any:
        """As `send`; while the server stops, an agent that finds no worker waits until it is told to finish."""
        while True:
            try:
                return await self.send(kind, topic, body, ack_mode, limit, slot, timeout)
            except NoReceiver:
                if kind is not MessageKind.ANY_WORKER or not _server_stops() or not await _workers_serve_again():
                    raise

    def _forget(self, id: str) -> None:
        sent = self._unconfirmed.pop(id, None)
        if sent is not None:
            if sent.timer is not None:
                sent.timer.cancel()
            self._accepted(sent)

    def _accepted(self, sent: UnconfirmedMessage) -> None:
        if sent.in_window:
            sent.in_window = False
            self._window.leave(sent.topic, sent.size)

    def _expire(self, id: str) -> None:
        """It has timed out: withdraw it, and wait for the hub to report on it."""
        self._withdraw(id)
        self._unconfirmed[id].timer = self._loop.call_later(ANSWER_TIME, self._give_up, id)

    def _withdraw(self, id: str) -> None:
        self._messages.flush()  # the message first: a full frame of withdrawals is sent at once
        self._withdrawn.add(id)

    def _give_up(self, id: str) -> None:
        sent = self._unconfirmed.get(id)
        if sent is not None and not sent.future.done():
            text = f"the listener has not reported on a message of topic {sent.topic!r}"
            sent.future.set_exception(NotDelivered(text))

    def _take(self, frame: Frame) -> None:
        for (id, outcome, value, _), body in split_entries(frame):
            sent = self._unconfirmed.get(id)
            if sent is None:
                continue
            if sent.future.done():
                if sent.future.cancelled():
                    self._forget(id)
                continue
            self._accepted(sent)
            match outcome:
                case "a":
                    if sent.ack_mode is AckMode.ACCEPTED:
                        sent.future.set_result(value)
                case "h":
                    sent.future.set_result((id, value))
                case "r":
                    sent.future.set_result(body)
                case "x":
                    text = body.decode(errors="replace")
                    sent.future.set_exception(CallFailed(f"the handler of topic {sent.topic!r} raised {text}"))
                case _:
                    code, text = value
                    error = _ERRORS.get(code, NotDelivered)
                    sent.future.set_exception(error(f"a message of topic {sent.topic!r}: {text}"))

    def _close(self) -> None:
        gone = "the listener of this server is gone: it is not known whether a message of topic {!r} was delivered"
        self._window.fail(LinkClosed(gone.format("any")))
        for sent in self._unconfirmed.values():
            if not sent.future.done():
                sent.future.set_exception(LinkClosed(gone.format(sent.topic)))


def _server_stops() -> bool:
    """Whether this is an agent whose workers are all retiring: it will be told to finish before long."""
    workers = [peer for peer in presence.peers if peer.role is Role.WORKER]
    return current().identity.role is Role.AGENT and bool(workers) and all(p.phase == "retiring" for p in workers)


async def _workers_serve_again() -> bool:
    """Wait until a worker serves again (it was a reload, not a stop); False if this agent is told to finish first."""
    tasks = {asyncio.ensure_future(_worker_serves()), asyncio.ensure_future(retiring.wait())}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return not retiring()


async def _worker_serves() -> None:
    async for peers in presence.changes():
        if any(peer.role is Role.WORKER and peer.phase != "retiring" for peer in peers):
            return
