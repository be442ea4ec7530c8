"""Messages between the processes of one server: `from serve_asgi import messenger`.

Every method that sends returns when each destination has queued the message, or when its handler has ended (`ack`,
`call`), and raises if it cannot be delivered. Payloads are None, bool, int, float, str, bytes, and lists and dicts
of these, 128 KiB encoded at most. See docs/guides/messenger.md.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Final, Literal, overload

from serve_asgi.app.hub_link import LinkClosed, current, current_or_none, register, run_on_link_loop
from serve_asgi.app.message_arguments import (
    MessageTooLarge,
    check_deliveries,
    check_loop,
    check_timeout,
    check_topic,
    encode_payload,
    slot_of,
)
from serve_asgi.app.message_receiver import Message, Origin
from serve_asgi.app.message_sender import CallFailed, DeadLettered, MessageSender, NoReceiver, NotDelivered, NotHandled
from serve_asgi.app.message_subscriptions import MessageSubscriptions
from serve_asgi.app.presence import Peer, presence
from serve_asgi.app.sync_calls import SyncCalls
from serve_asgi.ipc.frames import NotSendable, unpack_value
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.message_frames import AckMode, MessageKind

TIMEOUT: Final = 10.0
"""Seconds until a send that is not accepted, or a call without a reply, raises."""


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """The confirmation that an acknowledged message has been handled."""

    id: str
    attempts: int
    handler: Origin
    """The process whose handler ended."""


class Messenger(MessageSubscriptions):
    """Sends and receives messages; one object per process, `messenger`.

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
        super().__init__()
        self._sender: MessageSender
        self.sync = MessengerSync(self)
        """Blocking versions of the calls that wait, for threads."""

    def bind(self, link: Any) -> None:
        """For `serve_asgi.app.hub_link`: use this link."""
        self._sender = MessageSender(link)
        self._receiver.bind(link)

    # Sending

    async def broadcast(self, topic: str, payload: Any = None, *, timeout: float = TIMEOUT) -> int:
        """Send to every process that handles the topic, including this one and the agent.

        Processes that are starting get it when they are up.

        Args:
            topic: The topic, as in `on`.
            payload: What the handlers get as `message.payload`.
            timeout: Seconds in which all of them have to queue it.

        Returns:
            How many processes get it.

        Raises:
            NotSendable: The payload has a type that cannot be sent.
            TooLarge: The payload has more than 128 KiB when encoded.
            NotDelivered: The queue of a receiver was full until the timeout; the error names it.
            LinkClosed: The listener is gone.

        Example:
            ```python
            await messenger.broadcast("said", {"room": 7, "text": "hello"})
            ```
        """
        copies: int = await self._send(MessageKind.BROADCAST, topic, payload, AckMode.ACCEPTED, -1, timeout)
        return copies

    async def send_to_workers(self, topic: str, payload: Any = None, *, timeout: float = TIMEOUT) -> int:
        """As `broadcast`, but not to the agent.

        Args:
            topic: The topic.
            payload: What the handlers get.
            timeout: Seconds, as of `broadcast`.

        Returns:
            How many workers get it.

        Raises:
            NotDelivered: Also the other errors of `broadcast`.

        Example:
            ```python
            await messenger.send_to_workers("price", 12)
            ```
        """
        copies: int = await self._send(MessageKind.BROADCAST, topic, payload, AckMode.ACCEPTED, 0, timeout)
        return copies

    async def send_to_agent(self, topic: str, payload: Any = None, *, timeout: float = TIMEOUT) -> None:
        """Send to the agent; while it is being replaced, the message waits for the new one.

        Args:
            topic: The topic.
            payload: What its handlers get.
            timeout: Seconds, as of `broadcast`.

        Raises:
            NoReceiver: There is no agent, or it does not handle the topic. Also the errors of `broadcast`.

        Example:
            ```python
            await messenger.send_to_agent("subscribe", "room/7")
            ```
        """
        await self._send(MessageKind.DIRECT, topic, payload, AckMode.ACCEPTED, slot_of("agent"), timeout)

    async def send_to(self, worker: int | Peer, topic: str, payload: Any = None, *, timeout: float = TIMEOUT) -> None:
        """Send to the worker in a slot; while it is being replaced, the message waits for its successor.

        Args:
            worker: A slot, or one of `peers`.
            topic: The topic.
            payload: What its handlers get.
            timeout: Seconds, as of `broadcast`.

        Raises:
            NoReceiver: There is no such worker, or it does not handle the topic. Also the errors of `broadcast`.

        Example:
            ```python
            await messenger.send_to(0, "refresh")
            ```
        """
        await self._send(MessageKind.DIRECT, topic, payload, AckMode.ACCEPTED, slot_of(worker), timeout)

    @overload
    async def send_to_any(
        self,
        topic: str,
        payload: Any = None,
        *,
        ack: Literal[False] = False,
        max_deliveries: int = 3,
        timeout: float = TIMEOUT,
        scope: Literal["server", "cluster"] = "server",
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
        scope: Literal["server", "cluster"] = "server",
    ) -> Receipt: ...

    async def send_to_any(
        self,
        topic: str,
        payload: Any = None,
        *,
        ack: bool | Literal["success"] = False,
        max_deliveries: int = 3,
        timeout: float = TIMEOUT,
        scope: Literal["server", "cluster"] = "server",
    ) -> Receipt | None:
        """Send to one worker that handles the topic, the least loaded.

        With `ack` it is delivered at least once: if the worker dies before its handler has ended, another one gets it,
        with `scope="cluster"` also if its whole server dies; `message.attempt` is then larger than 1.
        While the server stops, workers take no more messages: an agent that sends then waits until it is told to
        finish, whatever `timeout` is.

        Args:
            topic: The topic.
            payload: What the handler gets.
            ack: Wait until a handler has ended: True, even if it raised; "success", only if it did not.
            max_deliveries: Attempts after which it becomes a dead letter.
            timeout: Seconds in which it has to be accepted, or handled (`ack`).
            scope: "server" for the workers of this server; "cluster" for those of all servers that share a Redis or
                PostgreSQL (`--state`), whichever has one that is free first.

        Returns:
            None without `ack`; otherwise a receipt with its id, the number of attempts, and who handled it.

        Raises:
            NoReceiver: No worker handles the topic; or "cluster" was asked of a server that shares no state.
            NotHandled: Its handler has not ended in time; the message may still be handled.
            DeadLettered: `max_deliveries` attempts have failed.
            ValueError: `ack`, `scope` or `max_deliveries` is invalid.
            NotDelivered: Also the other errors of `broadcast`.

        Example:
            ```python
            receipt = await messenger.send_to_any("order", {"id": 7}, ack=True)
            ```
        """
        if ack not in (False, True, "success"):
            raise ValueError(f'ack is False, True or "success", not {ack!r}')
        if scope not in ("server", "cluster"):
            raise ValueError(f'scope is "server" or "cluster", not "{scope}"')
        check_deliveries(max_deliveries)
        kind = MessageKind.ANY_WORKER if scope == "server" else MessageKind.ANY_IN_FLEET
        ack_mode = {False: AckMode.ACCEPTED, True: AckMode.HANDLED, "success": AckMode.SUCCESS}[ack]
        told = await self._send(kind, topic, payload, ack_mode, 0, timeout, max_deliveries)
        if not ack:
            return None
        id, (attempts, role, slot, generation) = told
        return Receipt(id, attempts, Origin(role, slot, generation))

    send_random = send_to_any
    """An alias of `send_to_any`: the name that it has in egg."""

    async def call(
        self,
        topic: str,
        payload: Any = None,
        *,
        to: int | Peer | Literal["agent"] | None = None,
        timeout: float = TIMEOUT,
    ) -> Any:
        """Send to one worker and return what its handler returns. It is delivered at most once.

        A call of an agent to any worker waits while the server stops, as in `send_to_any`.

        Args:
            topic: The topic.
            payload: What the handler gets.
            to: A slot, one of `peers`, or "agent"; None for the least loaded worker.
            timeout: Seconds until the reply has to arrive.

        Returns:
            What the handler returned.

        Raises:
            CallFailed: The handler raised, or its process died.
            NotHandled: There was no reply in time.
            NoReceiver: No process handles the topic. Also the errors of `broadcast`.

        Example:
            ```python
            name = await messenger.call("who", user, to="agent", timeout=2)
            ```
        """
        kind, slot = (MessageKind.ANY_WORKER, 0) if to is None else (MessageKind.DIRECT, slot_of(to))
        return unpack_value(await self._send(kind, topic, payload, AckMode.REPLY, slot, timeout))

    # Presence

    @property
    def me(self) -> Origin:
        """This process, as the receivers of its messages see it (`sender`). May be used in threads as well."""
        link = current_or_none()
        if link is None:
            return Origin(Role.WORKER.value, 0, 0)  # as in local mode, which begins with the first event loop
        return Origin(link.identity.role.value, link.identity.slot, link.identity.generation)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The processes of this server, as far as this one knows."""
        return presence.peers

    def presence(self) -> AsyncIterator[tuple[Peer, ...]]:
        """`peers`, now and after each change.

        Returns:
            An asynchronous iterator of tuples.

        Raises:
            RuntimeError: It is called outside of the server's event loop; `messenger.sync.presence` is for threads.

        Example:
            ```python
            async for peers in messenger.presence():
                print(len(peers), "processes")
            ```
        """
        check_loop("messenger.sync.presence()")
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

    # Internal

    async def _send(
        self, kind: MessageKind, topic: str, payload: Any, ack_mode: AckMode, slot: int, timeout: float, limit: int = 1
    ) -> Any:
        check_topic(topic)
        check_timeout(timeout)
        body = encode_payload(topic, payload)
        link = current()  # binds this to the link of the running loop, if it was not bound
        delivering = self._sender.deliver(kind, topic, body, ack_mode, limit, slot, timeout)
        if link.loop is not asyncio.get_running_loop():
            return await run_on_link_loop(link, delivering)
        return await delivering


class MessengerSync:
    """`messenger.sync`: the calls of `messenger` for threads that may block, with the same results and errors.

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
