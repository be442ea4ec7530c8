"""Messages between the processes of one server: `from serve_asgi import messenger`.

Every method that sends is awaited until each destination has a place for the message, or until the handler has ended
(`ack`, `call`); what cannot be delivered raises. Payloads are None, bool, int, float, str, bytes, and lists and dicts
of these, 128 KiB encoded at most. See docs/guides/messenger.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import math
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, Final, Literal, TypeVar, overload

from serve_asgi.app.application_functions import is_asynchronous
from serve_asgi.app.hub_link import LinkClosed, current, current_or_none, register, run_on_link_loop
from serve_asgi.app.message_receiver import (
    Handler,
    HandlerRegistration,
    Message,
    MessageIteration,
    MessageReceiver,
    Origin,
)
from serve_asgi.app.message_sender import CallFailed, DeadLettered, MessageSender, NoReceiver, NotDelivered, NotHandled
from serve_asgi.app.presence import Peer, presence
from serve_asgi.app.retiring import retiring
from serve_asgi.app.sync_calls import SyncCalls
from serve_asgi.ipc.frames import MAX_PAYLOAD, NotSendable, pack_sendable, unpack_value
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.message_frames import DEAD_LETTER_TOPIC, AckMode, MessageKind

TIMEOUT: Final = 10.0
"""Seconds until a send that was not accepted, or a call without an answer, raises."""
TOPIC_BYTES: Final = 200
RESERVED: Final = "serve:"
CONCURRENCY: Final = 10_000
"""Messages of one topic that a process handles at a time, at most."""
SLOTS: Final = 1_000_000
"""No server has so many workers."""

F = TypeVar("F", bound=Handler)


class MessageTooLarge(ValueError):
    """The payload has more bytes than can be sent; put it elsewhere, and send where it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """An acknowledged message has been handled."""

    id: str
    attempts: int
    handler: Origin
    """The process whose handler ended."""


class Messenger:
    """The messages of this process; one object, `messenger`.

    Payloads are None, bool, int, float, str, bytes, and lists and dicts of these. The errors are attributes, for
    `except messenger.NotDelivered`.
    """

    CallFailed: ClassVar = CallFailed
    DeadLettered: ClassVar = DeadLettered
    LinkClosed: ClassVar = LinkClosed
    NoReceiver: ClassVar = NoReceiver
    NotDelivered: ClassVar = NotDelivered
    NotHandled: ClassVar = NotHandled
    NotSendable: ClassVar = NotSendable
    TooLarge: ClassVar = MessageTooLarge

    def __init__(self) -> None:
        self._receiver = MessageReceiver()
        self._sender: MessageSender
        self.sync = MessengerSync(self)
        """The calls that wait, for code that is not asynchronous."""

    def bind(self, link: Any) -> None:
        """For the link alone."""
        self._sender = MessageSender(link)
        self._receiver.bind(link)

    # Sending

    async def broadcast(self, topic: str, payload: Any = None, *, timeout: float = TIMEOUT) -> int:
        """Send to every process that handles the topic, this one and the agent among them.

        Processes that start get it when they are up.

        Args:
            topic: What it is about, as in `on`.
            payload: What the handlers get as `message.payload`.
            timeout: Seconds until it has to lie in the queue of each of them.

        Returns:
            How many processes get it.

        Raises:
            NotSendable: The payload has a type that cannot be sent.
            TooLarge: It has more than 128 KiB when it is encoded.
            NotDelivered: Somebody's queue was full until the timeout; the error says whose.
            LinkClosed: The listener is gone.

        Example:
            ```python
            await messenger.broadcast("said", {"room": 7, "text": "hello"})
            ```
        """
        copies: int = await self._send(MessageKind.BROADCAST, topic, payload, AckMode.ACCEPTED, -1, timeout)
        return copies

    async def send_to_workers(self, topic: str, payload: Any = None, *, timeout: float = TIMEOUT) -> int:
        """As `broadcast`, without the agent.

        Args:
            topic: What it is about.
            payload: What the handlers get.
            timeout: Seconds, as of `broadcast`.

        Returns:
            How many workers get it.

        Raises:
            NotDelivered: And the others of `broadcast`.

        Example:
            ```python
            await messenger.send_to_workers("price", 12)
            ```
        """
        copies: int = await self._send(MessageKind.BROADCAST, topic, payload, AckMode.ACCEPTED, 0, timeout)
        return copies

    async def send_to_agent(self, topic: str, payload: Any = None, *, timeout: float = TIMEOUT) -> None:
        """Send to the agent; one that is being replaced gets it when it is there.

        Args:
            topic: What it is about.
            payload: What its handlers get.
            timeout: Seconds, as of `broadcast`.

        Raises:
            NoReceiver: There is no agent, or it does not handle the topic; and the errors of `broadcast`.

        Example:
            ```python
            await messenger.send_to_agent("subscribe", "room/7")
            ```
        """
        await self._send(MessageKind.DIRECT, topic, payload, AckMode.ACCEPTED, self._slot("agent"), timeout)

    async def send_to(self, worker: int | Peer, topic: str, payload: Any = None, *, timeout: float = TIMEOUT) -> None:
        """Send to the worker of a slot; if it is being replaced, its successor gets it.

        Args:
            worker: A slot, or one of `peers`.
            topic: What it is about.
            payload: What its handlers get.
            timeout: Seconds, as of `broadcast`.

        Raises:
            NoReceiver: There is no such worker, or it does not handle the topic; and the errors of `broadcast`.

        Example:
            ```python
            await messenger.send_to(0, "refresh")
            ```
        """
        await self._send(MessageKind.DIRECT, topic, payload, AckMode.ACCEPTED, self._slot(worker), timeout)

    @overload
    async def send_to_any(
        self,
        topic: str,
        payload: Any = None,
        *,
        ack: Literal[False] = False,
        max_deliveries: int = 3,
        timeout: float = TIMEOUT,
    ) -> None: ...

    @overload
    async def send_to_any(
        self,
        topic: str,
        payload: Any = None,
        *,
        ack: Literal[True, "success"],
        max_deliveries: int = 3,
        timeout: float = TIMEOUT,
    ) -> Receipt: ...

    async def send_to_any(
        self,
        topic: str,
        payload: Any = None,
        *,
        ack: bool | Literal["success"] = False,
        max_deliveries: int = 3,
        timeout: float = TIMEOUT,
    ) -> Receipt | None:
        """Send to one worker that handles the topic, the one with the least to do.

        With `ack` it is delivered at least once: if the worker dies before its handler has ended, another one gets it.
        While a server stops, its workers take no more: the agent then waits until it is told to finish, whatever
        `timeout` is.

        Args:
            topic: What it is about.
            payload: What the handler gets.
            ack: Wait until a handler has ended: True, also one that raised; "success", one that did not.
            max_deliveries: Attempts, after which it goes to the handlers of dead letters.
            timeout: Seconds until it is accepted, or with `ack` handled.

        Returns:
            Without `ack` None; otherwise the receipt: its id, the attempts, and who handled it.

        Raises:
            NoReceiver: No worker handles the topic.
            NotHandled: The timeout is over; the message stands, and may still be handled.
            DeadLettered: `max_deliveries` attempts have failed.
            NotDelivered: And the others of `broadcast`.

        Example:
            ```python
            receipt = await messenger.send_to_any("order", {"id": 7}, ack=True)
            ```
        """
        if ack not in (False, True, "success"):
            raise ValueError(f'ack is False, True or "success", not {ack!r}')
        if not isinstance(max_deliveries, int) or not 0 < max_deliveries < 1_000:
            raise ValueError(f"max_deliveries is between 1 and 999, not {max_deliveries!r}")
        ack_mode = {False: AckMode.ACCEPTED, True: AckMode.HANDLED, "success": AckMode.SUCCESS}[ack]
        told = await self._send(MessageKind.ANY_WORKER, topic, payload, ack_mode, 0, timeout, max_deliveries)
        if not ack:
            return None
        id, (attempts, role, slot, generation) = told
        return Receipt(id, attempts, Origin(role, slot, generation))

    send_random = send_to_any
    """An alias of `send_to_any`, under the name that people who come from egg look for."""

    async def call(
        self,
        topic: str,
        payload: Any = None,
        *,
        to: int | Peer | Literal["agent"] | None = None,
        timeout: float = TIMEOUT,
    ) -> Any:
        """Send to one worker and return what its handler returns. It is delivered once at most.

        What an agent asks of any worker at a stop waits as in `send_to_any`.

        Args:
            topic: What it is about.
            payload: What the handler gets.
            to: A slot, one of `peers`, or "agent"; None is the worker with the least to do.
            timeout: Seconds until the reply is there.

        Returns:
            What the handler returned.

        Raises:
            CallFailed: The handler raised, or its process died.
            NotHandled: There was no reply in time.
            NoReceiver: Nobody handles the topic; and the errors of `broadcast`.

        Example:
            ```python
            name = await messenger.call("who", user, to="agent", timeout=2)
            ```
        """
        kind, slot = (MessageKind.ANY_WORKER, 0) if to is None else (MessageKind.DIRECT, self._slot(to))
        return unpack_value(await self._send(kind, topic, payload, AckMode.REPLY, slot, timeout))

    # Receiving

    @overload
    def on(self, topic: str, handler: F, *, concurrency: int = 1, thread: bool = False) -> F: ...

    @overload
    def on(
        self, topic: str, handler: None = None, *, concurrency: int = 1, thread: bool = False
    ) -> Callable[[F], F]: ...

    def on(
        self, topic: str, handler: F | None = None, *, concurrency: int = 1, thread: bool = False
    ) -> F | Callable[[F], F]:
        """Handle the messages of a topic with a function, async or sync; a decorator too.

        Messages are handled in the order in which they came. Several handlers of one topic run one after another for
        each message.

        Args:
            topic: Which messages.
            handler: What is called with each `Message`; what it returns is the reply to a `call`.
            concurrency: How many messages are handled at a time.
            thread: Run a sync handler in a thread, where it may wait; otherwise it runs in the event loop and has to
                be short.

        Returns:
            The handler.

        Raises:
            TypeError: The handler cannot be called, is a generator, or is async though `thread` is true.
            ValueError: The topic or `concurrency` is not one.

        Example:
            ```python
            @messenger.on("order", concurrency=10)
            async def handle(message: Message) -> None:
                await ship(message.payload)
            ```
        """
        _check_topic(topic)
        if not isinstance(concurrency, int) or not 1 <= concurrency <= CONCURRENCY:
            raise ValueError(f"concurrency is a number from 1 to {CONCURRENCY}, not {concurrency!r}")
        return self._on(topic, handler, concurrency=concurrency, thread=thread)

    def _on(self, topic: str, handler: F | None, **how: Any) -> F | Callable[[F], F]:
        if handler is None:
            return lambda decorated: self._registered(topic, decorated, **how)
        return self._registered(topic, handler, **how)

    def _registered(self, topic: str, handler: F, concurrency: int = 1, once: bool = False, thread: bool = False) -> F:
        if not callable(handler):
            raise TypeError(f"a handler is a function that takes a message, not {handler!r}")
        if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
            raise TypeError(f"a handler cannot be a generator: nothing would run {handler!r}, which has a `yield`")
        if thread and is_asynchronous(handler):
            raise TypeError(
                f"{handler!r} is async and runs in the event loop: thread=True is for a handler that is not"
            )
        self._receiver.on(topic, HandlerRegistration(handler, concurrency, once, thread))
        return handler

    @overload
    def once(self, topic: str, handler: F) -> F: ...

    @overload
    def once(self, topic: str, handler: None = None) -> Callable[[F], F]: ...

    def once(self, topic: str, handler: F | None = None) -> F | Callable[[F], F]:
        """As `on`, for the next message alone.

        Args:
            topic: Which messages.
            handler: What is called with the next one.

        Returns:
            The handler.

        Raises:
            TypeError: As `on`.

        Example:
            ```python
            messenger.once("ready", lambda message: begin())
            ```
        """
        _check_topic(topic)
        return self._on(topic, handler, once=True)

    def off(self, topic: str, handler: Handler | None = None) -> None:
        """Handle a topic no more with this function, or with any; what has begun ends.

        Args:
            topic: Which messages.
            handler: The function that `on` was given; None takes away all of this process.

        Example:
            ```python
            messenger.off("order", handle)
            ```
        """
        self._receiver.off(topic, handler)

    async def messages(self, topic: str, *, concurrency: int = 1) -> AsyncIterator[Message]:
        """The messages of a topic, from the first step of the iteration to its end (`async for`).

        A message counts as handled when the next one is asked for, or the iteration ends.

        Args:
            topic: Which messages.
            concurrency: How many may be handled at a time by iterations and handlers of this process.

        Raises:
            RuntimeError: It is iterated outside of the server's event loop: `messenger.sync.messages` is for threads.

        Example:
            ```python
            async for message in messenger.messages("said"):
                await socket.send_text(message.payload)
            ```
        """
        _check_topic(topic)
        _check_loop("messenger.sync.messages(…)")
        incoming = MessageIteration()
        self.on(topic, incoming.take, concurrency=concurrency)
        try:
            while True:
                message, done = await incoming.next()
                try:
                    yield message
                finally:
                    done()
        finally:
            self.off(topic, incoming.take)
            incoming.close()

    def on_dead_letter(self, handler: F) -> F:
        """Handle messages that were given up, of any topic; one process that has such a handler gets each.

        Without one they are in the log alone (`message_dead_lettered`). A handler that raises gets it again, three
        times in all.

        Args:
            handler: What is called with the message; its `reason` says why it was given up.

        Returns:
            The handler.

        Raises:
            TypeError: As `on`.

        Example:
            ```python
            @messenger.on_dead_letter
            async def keep(message: Message) -> None:
                await table.insert(message.topic, message.payload, message.reason)
            ```
        """
        return self._registered(DEAD_LETTER_TOPIC, handler)

    # Who is there

    @property
    def me(self) -> Origin:
        """Which process this is: as `sender` of what it sends. Asked for anywhere, in threads as well."""
        link = current_or_none()
        if link is None:
            return Origin(Role.WORKER.value, 0, 0)  # as in local mode, which begins with the first event loop
        return Origin(link.identity.role.value, link.identity.slot, link.identity.generation)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The processes that take part, as far as this one has been told."""
        return presence.peers

    def presence(self) -> AsyncIterator[tuple[Peer, ...]]:
        """`peers`, now and after each change.

        Returns:
            An asynchronous iterator of tuples.

        Raises:
            RuntimeError: It is asked for outside of an event loop: `messenger.sync.presence` is for threads.

        Example:
            ```python
            async for peers in messenger.presence():
                print(len(peers), "processes")
            ```
        """
        _check_loop("messenger.sync.presence()")
        return presence.changes()

    async def ready(self, *, timeout: float | None = None) -> None:
        """Wait until the server is ready: its first generation serves.

        Args:
            timeout: Seconds; None waits as long as it takes.

        Raises:
            TimeoutError: It was not ready by then.

        Example:
            ```python
            await messenger.ready(timeout=30)
            ```
        """
        link = current()
        if link.loop is not asyncio.get_running_loop():
            await run_on_link_loop(link, self.ready(timeout=timeout))
            return
        async with asyncio.timeout(timeout):
            while not presence.ready:
                await presence.change()

    # Within

    async def _send(
        self, kind: MessageKind, topic: str, payload: Any, ack_mode: AckMode, slot: int, timeout: float, limit: int = 1
    ) -> Any:
        _check_topic(topic)
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout is a number of seconds above 0, not {timeout!r}")
        body = pack_sendable(payload, f"the payload of a message of topic {topic!r}")
        if len(body) > MAX_PAYLOAD:
            raise MessageTooLarge(
                f"the payload of a message of topic {topic!r} has {len(body)} bytes, {MAX_PAYLOAD} at most can be "
                "sent: put it elsewhere, and send where it is"
            )
        link = current()  # binds this to the link of the running loop, where there was none
        if link.loop is not asyncio.get_running_loop():
            return await run_on_link_loop(link, self._deliver(kind, topic, body, ack_mode, limit, slot, timeout))
        return await self._deliver(kind, topic, body, ack_mode, limit, slot, timeout)

    async def _deliver(
        self, kind: MessageKind, topic: str, body: bytes, ack_mode: AckMode, limit: int, slot: int, timeout: float
    ) -> Any:
        while True:
            try:
                return await self._sender.send(kind, topic, body, ack_mode, limit, slot, timeout)
            except NoReceiver:
                if kind is not MessageKind.ANY_WORKER or not _at_a_stop() or not await _workers_serve_again():
                    raise

    def _slot(self, to: int | Peer | Literal["agent"]) -> int:
        if to == "agent" or (isinstance(to, Peer) and to.role is Role.AGENT):
            return 0 if current().identity.local else -1  # a process on its own is the agent as well
        slot = to.slot if isinstance(to, Peer) else to
        if not isinstance(slot, int) or isinstance(slot, bool) or slot < 0:
            raise ValueError(f"a worker is named by its slot, a number from 0 on, not by {to!r}")
        if slot >= SLOTS:
            raise NoReceiver(f"there is no worker {slot}")
        return slot


class MessengerSync:
    """`messenger.sync`: the calls of `messenger` for threads that may wait, with the same results and errors.

    Loops over `messages` and `presence` end when the process does.
    """

    def __init__(self, messenger: Messenger) -> None:
        blocking = SyncCalls("messenger", _late)
        self.broadcast = blocking(messenger.broadcast)
        self.send_to_workers = blocking(messenger.send_to_workers)
        self.send_to_agent = blocking(messenger.send_to_agent)
        self.send_to = blocking(messenger.send_to)
        self.send_to_any = blocking(messenger.send_to_any)
        self.send_random = self.send_to_any
        self.call = blocking(messenger.call)
        self.ready = blocking(messenger.ready)
        self.messages = blocking.iterator(messenger.messages)
        self.presence = blocking.iterator(messenger.presence)


def _late(text: str, begun: bool) -> Exception:
    return NotDelivered(text)


def _check_loop(instead: str) -> None:
    """Raises RuntimeError if the server's event loop is not the one that runs here."""
    link = current()
    try:
        running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if link.loop is not running:
        raise RuntimeError(
            f"this iterates on the event loop that the server runs in: in a thread write `for … in {instead}`"
        )


def _at_a_stop() -> bool:
    """Whether this is an agent whose workers only finish what they have: it is told to finish itself before long."""
    workers = [peer for peer in presence.peers if peer.role is Role.WORKER]
    return current().identity.role is Role.AGENT and bool(workers) and all(p.phase == "retiring" for p in workers)


async def _workers_serve_again() -> bool:
    """Wait until a worker serves (the stop was none: a reload) or until this agent is to finish, then False."""
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


def _check_topic(topic: str) -> None:
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a string, not {topic!r}")
    with contextlib.suppress(UnicodeEncodeError):
        if 0 < len(topic.encode()) <= TOPIC_BYTES and not topic.startswith(RESERVED):
            return
    raise ValueError(f'a topic has 1 to {TOPIC_BYTES} bytes as UTF-8 and does not begin with "{RESERVED}": {topic!r}')


messenger: Final = Messenger()
register(messenger)

__all__ = [
    "CallFailed",
    "DeadLettered",
    "LinkClosed",
    "Message",
    "MessageTooLarge",
    "Messenger",
    "NoReceiver",
    "NotDelivered",
    "NotHandled",
    "NotSendable",
    "Origin",
    "Receipt",
    "messenger",
]
