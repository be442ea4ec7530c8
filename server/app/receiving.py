"""The receiving side of the messenger in one process: who handles which topic, and the tasks that do.

It owns what the hub has given and whose handler has not ended. Messages of a topic are begun in the order in which they
came, as many at a time as its handlers want (`concurrency`). A process that retires gives back what it has not begun.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import inspect
import logging
from collections.abc import Callable
from typing import Any, Final

from server.app.link import Link
from server.app.sending import Outbox
from server.app.work import work
from server.errors import ChannelError
from server.hub.frames import MAX_PAYLOAD, Frame, NotSendable, sendable, unpacked
from server.hub.lanes import Kind, Want
from server.hub.places import entries
from server.logs import about
from server.specification import error_text

TOPICS: Final = 1_000
"""Topics that one process handles, at most."""
TOGETHER: Final = 5_000
"""Messages that are given back in one frame, so that they keep their order; a process hardly ever has more."""
ERROR_TEXT: Final = 4_000
"""Characters of an exception that the caller is told."""

log = logging.getLogger("serve.error")


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """The process that sent a message."""

    role: str  # "worker" or "agent"
    slot: int  # -1 for the agent
    generation: int


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """What a handler gets."""

    topic: str
    payload: Any
    id: str
    """The same for every copy and every delivery of a message, and no other's."""
    attempt: int
    """1 for the first delivery; more if the process that had it before died, or its handler raised."""
    sender: Origin
    reason: str = ""
    """Of a dead letter: why it was given up; `attempt` is then how often it was delivered."""


Handler = Callable[[Message], Any]


@dataclasses.dataclass(slots=True)
class Registration:
    """A handler of a topic."""

    handler: Handler
    concurrency: int
    once: bool = False


@dataclasses.dataclass(slots=True)
class Delivery:
    """A message in this process's hands."""

    number: int
    id: str
    attempt: int
    kind: Kind
    want: Want
    origin: list[Any]
    subject: list[Any] | None
    body: bytes

    def message(self, topic: str) -> Message:
        """What the handler gets. Raises ChannelError for a payload that is none."""
        id, attempt, reason = self.id, self.attempt, ""
        if self.subject is not None:
            topic, id, attempt, reason = self.subject
        return Message(topic, unpacked(self.body), id, attempt, Origin(*self.origin), reason)


class Topic:
    """One topic in this process."""

    def __init__(self, name: str, handlers: list[Registration] | None = None) -> None:
        self.name = name
        self.handlers = handlers or []
        self.queue: collections.deque[Delivery] = collections.deque()
        self.running = 0

    @property
    def concurrency(self) -> int:
        """How many messages are handled at a time; 0 if nobody handles any."""
        return max((each.concurrency for each in self.handlers), default=0)


class Receiver:
    """What this process handles. Registrations outlive the link."""

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        self._link: Link | None = None
        self._done: Outbox
        self._back: Outbox
        work.at_retire(self._give_back)

    def bind(self, link: Link) -> None:
        """Take messages from this link; nothing of an earlier one's is handled any more."""
        self._link = link
        self._done, self._back = Outbox(link, "msg.done"), Outbox(link, "msg.back", TOGETHER)
        # what an earlier loop has left behind may end at any time, and counts for nothing here
        self._topics = {name: Topic(name, old.handlers) for name, old in self._topics.items() if old.handlers}
        link.take("msg.give", self._take)
        handled = {topic.name: topic.concurrency for topic in self._topics.values() if topic.concurrency}
        names = list(handled)
        for start in range(0, len(names), 100):
            link.send("msg.topics", {"topics": {name: handled[name] for name in names[start : start + 100]}})

    def on(self, topic: str, handler: Handler, concurrency: int, once: bool = False) -> None:
        """Have the messages of a topic handled. Raises ValueError for too many topics."""
        there = self._topics.get(topic)
        if there is None:
            if len(self._topics) >= TOPICS:
                raise ValueError(f"one process handles {TOPICS} topics at most: put what differs into the payload")
            there = self._topics[topic] = Topic(topic)
        before = there.concurrency
        there.handlers.append(Registration(handler, concurrency, once))
        self._tell(there, before)

    def off(self, topic: str, handler: Handler | None) -> None:
        """Remove a handler, or all of a topic; what has begun ends."""
        there = self._topics.get(topic)
        if there is None:
            return
        before = there.concurrency
        there.handlers = [each for each in there.handlers if handler not in (None, each.handler)]
        self._tell(there, before)
        self._next(there)

    def _tell(self, topic: Topic, before: int) -> None:
        """Let the hub know what has changed."""
        link = self._link
        if link is not None and not link.closed and not link.loop.is_closed() and topic.concurrency != before:
            link.send("msg.topics", {"topics": {topic.name: topic.concurrency}})
        if not topic.handlers and not topic.queue and not topic.running:
            self._topics.pop(topic.name, None)

    def _take(self, frame: Frame) -> None:
        touched: dict[str, Topic] = {}
        for (number, name, id, attempt, kind, want, origin, subject, _), body in entries(frame):
            delivery = Delivery(number, id, attempt, Kind(kind), Want(want), origin, subject, body)
            topic = self._topics.get(name)
            if topic is None:
                self._not_wanted(delivery)
            elif work.retiring and delivery.kind is not Kind.COPY:
                self._back.add(number)
            else:
                topic.queue.append(delivery)
                touched[name] = topic
        for topic in touched.values():
            self._next(topic)

    def _not_wanted(self, delivery: Delivery) -> None:
        """Nobody handles its topic here any more."""
        if delivery.kind is Kind.COPY:
            self._done.add([delivery.number, True, 0])
        else:
            self._back.add(delivery.number)

    def _next(self, topic: Topic) -> None:
        while topic.queue and not topic.handlers:
            self._not_wanted(topic.queue.popleft())
        while topic.queue and topic.running < topic.concurrency:
            delivery = topic.queue.popleft()
            topic.running += 1
            handlers = list(topic.handlers)
            if any(each.once for each in handlers):
                before = topic.concurrency
                topic.handlers = [each for each in handlers if not each.once]
                self._tell(topic, before)
            work.start(self._handle(topic, delivery, handlers, self._done), f"message {topic.name}")

    async def _handle(self, topic: Topic, delivery: Delivery, handlers: list[Registration], outbox: Outbox) -> None:
        """Run the handlers, and say that they have ended. Cut by the hammer it says nothing: the process dies."""
        body, wrong = b"", ""
        try:
            message = delivery.message(topic.name)
            for each in handlers:
                result, wrong = await _run(each.handler, message, wrong)
                if delivery.want is Want.ANSWER and not wrong and not body:
                    body, wrong = _answer(result, message)
        except asyncio.CancelledError as error:
            if work.cut:
                raise
            # whoever cancelled it: the hub has to know, or the topic gets nothing more here
            local = self._link is not None and self._link.identity.local
            wrong = error_text(error) if local else _failed(message, error)  # local: so its loop ends
        except ChannelError as error:
            wrong = error_text(error)
            log.error("message %s of topic %r cannot be read: %s", delivery.id, topic.name, error)
        finally:
            topic.running -= 1
        if wrong:
            body = wrong[:ERROR_TEXT].encode(errors="replace") if delivery.want is Want.ANSWER else b""
        outbox.add([delivery.number, not wrong, len(body)], body)
        if outbox is self._done:  # else another link has taken its place
            self._next(topic)
            if not topic.handlers and not topic.queue and not topic.running:
                self._topics.pop(topic.name, None)

    def _give_back(self) -> None:
        """The process retires: what has not begun is for others, but for copies, which everyone has his own of."""
        if self._link is None or self._link.closed:
            return
        for topic in self._topics.values():
            kept: collections.deque[Delivery] = collections.deque()
            for delivery in topic.queue:
                if delivery.kind is Kind.COPY:
                    kept.append(delivery)
                else:
                    self._back.add(delivery.number)
            topic.queue = kept
        self._back.flush()
        self._link.send("msg.back", {"m": [], "all": True})  # what follows may go to others


async def _run(handler: Handler, message: Message, wrong: str) -> tuple[Any, str]:
    """Run one handler; return its result, and what went wrong with it or with one before.

    Whatever it raises is its own failure, `sys.exit()` as well: the process has other things to do. Raises
    CancelledError if this task was cancelled.
    """
    try:
        result = handler(message)
        if inspect.isawaitable(result):
            result = await result
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        failed = _failed(message, error)  # something that it waited for was cancelled
        return None, wrong or failed
    except GeneratorExit:  # the loop is closed, and this coroutine with it
        raise
    except BaseException as error:
        failed = _failed(message, error)
        return None, wrong or failed
    return result, wrong


def _failed(message: Message, error: BaseException) -> str:
    log.error(
        "the handler of topic %r raised for message %s (attempt %d)",
        *(message.topic, message.id, message.attempt),
        exc_info=error,
        extra=about("message_handler_failed", topic=message.topic, id=message.id, attempt=message.attempt),
    )
    return error_text(error)


def _answer(result: Any, message: Message) -> tuple[bytes, str]:
    """The answer to a call, or why it cannot be sent."""
    try:
        body = sendable(result, "its answer")
    except NotSendable as error:
        return b"", _failed(message, error)
    if len(body) > MAX_PAYLOAD:
        return b"", _failed(message, ValueError(f"its answer has {len(body)} bytes, {MAX_PAYLOAD} at most can be sent"))
    return body, ""


_ENDED: Final = "the iteration over the messages ended before it came to this one"


class Incoming:
    """Messages for an iteration: each is handled when the iteration goes on."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Message, asyncio.Future[None]]] = asyncio.Queue()
        self._closed = False

    async def take(self, message: Message) -> None:
        """The handler."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            raise EOFError(_ENDED)
        self._queue.put_nowait((message, done))
        await done

    async def next(self) -> tuple[Message, Callable[[], None]]:
        """Wait for a message; also return what to call when it has been dealt with."""
        message, done = await self._queue.get()
        return message, lambda: None if done.done() else done.set_result(None)

    def close(self) -> None:
        """What came and was not taken up has failed."""
        self._closed = True
        while not self._queue.empty():
            _, done = self._queue.get_nowait()
            if not done.done():
                done.set_exception(EOFError(_ENDED))
