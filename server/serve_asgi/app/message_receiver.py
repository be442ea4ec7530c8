"""The receiving side of the messenger in one process: delivered messages, and the tasks that handle them.

It owns the messages that the hub has delivered until their handlers have ended. Messages of a topic are started in
order, as many at a time as its handlers allow (`concurrency`). A retiring process returns what it has not started.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from serve_asgi.app.application_functions import call_in_thread
from serve_asgi.app.background_work import work
from serve_asgi.app.hub_link import Link
from serve_asgi.app.message_sender import FrameOutbox
from serve_asgi.errors import ChannelError
from serve_asgi.ipc import forked_children as forks
from serve_asgi.ipc.frames import MAX_PAYLOAD, Frame, NotSendable, pack_sendable, unpack_value
from serve_asgi.ipc.message_frames import AckMode, MessageKind, split_entries
from serve_asgi.logs.exceptions import exc_info, is_from_outside
from serve_asgi.logs.server_log import about
from serve_asgi.logs.tracebacks import error_text

MAX_TOPICS: Final = 1_000
"""Most topics that one process handles."""
MAX_RETURNED: Final = 5_000
"""Messages that are returned in one frame, which keeps their order; a process hardly ever has more."""
ERROR_TEXT: Final = 4_000
"""Characters of an exception that the caller gets."""

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
    """Unique to a message, and the same for all its copies and deliveries."""
    attempt: int
    """1 for the first delivery; more if a process that had it died, or its handler raised."""
    sender: Origin
    reason: str = ""
    """For a dead letter: why it was given up; `attempt` is then the number of deliveries."""


Handler = Callable[[Message], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class HandlerRegistration:
    """A handler of a topic."""

    handler: Handler
    concurrency: int
    once: bool = False
    thread: bool = False
    """It is not async, and is called in a thread."""


class TopicHandlers:
    """The handlers of a topic, and what follows from them, computed at each change rather than for each message."""

    __slots__ = ("all", "concurrency", "once")

    def __init__(self, registrations: Iterable[HandlerRegistration] = ()) -> None:
        self.all = tuple(registrations)
        self.concurrency = max((each.concurrency for each in self.all), default=0)
        """How many messages are handled at a time; 0 if there is no handler."""
        self.once = any(each.once for each in self.all)
        """Some of them handle only one message."""


NO_HANDLERS: Final = TopicHandlers()


@dataclasses.dataclass(slots=True)
class ReceivedMessage:
    """A message that this process has in flight."""

    number: int
    id: str
    attempt: int
    kind: MessageKind
    ack_mode: AckMode
    origin: list[Any]
    subject: list[Any] | None
    body: bytes
    late: bool = False
    """It was sent while this process was retiring, which does not wait for it."""

    def message(self, topic: str) -> Message:
        """The message for the handlers. Raises ChannelError for an invalid payload."""
        id, attempt, reason = self.id, self.attempt, ""
        if self.subject is not None:
            topic, id, attempt, reason = self.subject
        return Message(topic, unpack_value(self.body), id, attempt, Origin(*self.origin), reason)


class TopicState:
    """One topic at one link: what has been delivered and not started, and how many are running."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.title = f"message {name}"
        self.queue: collections.deque[ReceivedMessage] = collections.deque()
        self.running = 0


class MessageReceiver:
    """The handlers of this process. Registrations outlive the link."""

    def __init__(self) -> None:
        self._handlers: dict[str, TopicHandlers] = {}
        self._link_receiver: LinkReceiver | None = None
        work.on_retire(self._return_unstarted)
        work.on_resume(self._resume)

    def bind(self, link: Link) -> None:
        """Receive messages from this link; those of an earlier link are still handled and confirmed over that one."""
        self._link_receiver = LinkReceiver(self, link)
        names = list(self._handlers)
        for start in range(0, len(names), 100):
            some = {name: self._handlers[name].concurrency for name in names[start : start + 100]}
            link.send("msg.topics", {"topics": some})

    def handlers(self, topic: str) -> TopicHandlers:
        """The handlers of a topic."""
        return self._handlers.get(topic, NO_HANDLERS)

    def on(self, topic: str, registration: HandlerRegistration) -> None:
        """Register a handler of a topic. Raises ValueError for too many topics."""
        if topic not in self._handlers and len(self._handlers) >= MAX_TOPICS:
            raise ValueError(f"one process handles {MAX_TOPICS} topics at most: put what differs into the payload")
        self._change(topic, [*self.handlers(topic).all, registration])

    def off(self, topic: str, handler: Handler | None) -> None:
        """Remove a handler, or all of a topic; those that are running finish."""
        if topic in self._handlers:
            self._change(topic, [each for each in self.handlers(topic).all if handler not in (None, each.handler)])
            if self._link_receiver is not None:
                self._link_receiver.topic_changed(topic)

    def registered(self) -> dict[str, TopicHandlers]:
        """All handlers, by topic."""
        return dict(self._handlers)

    def register_only(self, wanted: Mapping[str, TopicHandlers]) -> None:
        """Have these handlers, and no others; those that are running finish."""
        for topic in {**self._handlers, **wanted}:
            handlers = wanted.get(topic, NO_HANDLERS).all
            if handlers != self.handlers(topic).all:
                self._change(topic, list(handlers))

    def message_started(self, topic: str) -> None:
        """A message of a topic is handled: remove the handlers that wanted only one."""
        self._change(topic, [each for each in self.handlers(topic).all if not each.once])

    def _change(self, topic: str, registrations: list[HandlerRegistration]) -> None:
        """Set the handlers of a topic; the hub is notified if that is a change for it."""
        before, now = self.handlers(topic), TopicHandlers(registrations)
        if registrations:
            self._handlers[topic] = now
        else:
            self._handlers.pop(topic, None)
        if self._link_receiver is not None and now.concurrency != before.concurrency:
            self._link_receiver.announce(topic, now.concurrency)

    def _return_unstarted(self) -> None:
        if self._link_receiver is not None:
            self._link_receiver.return_unstarted()

    def _resume(self) -> None:
        if self._link_receiver is not None:
            self._link_receiver.resume()


class LinkReceiver:
    """The messages that came over one link and have not been handled."""

    def __init__(self, receiver: MessageReceiver, link: Link) -> None:
        self._receiver = receiver
        self._link = link
        self._done, self._returned = FrameOutbox(link, "msg.done"), FrameOutbox(link, "msg.return", MAX_RETURNED)
        self._topics: dict[str, TopicState] = {}
        self._last = asyncio.Event()
        """This process is retiring, and has been delivered all that it waits for."""
        self._late: set[asyncio.Task[None]] = set()
        link.on_frame("msg.deliver", self._take)
        link.on_frame("msg.last", lambda _: self._last.set())
        link.on_close(lambda: self._last.set())  # whichever it is by then

    def announce(self, topic: str, concurrency: int) -> None:
        """Notify the hub of the handlers of a topic; the change may come from a thread."""
        if self._link.closed or self._link.loop.is_closed():
            return
        if self._in_another_thread():
            self._link.loop.call_soon_threadsafe(self.announce, topic, concurrency)
        else:
            self._link.send("msg.topics", {"topics": {topic: concurrency}})

    def topic_changed(self, topic: str) -> None:
        """The handlers of a topic have changed: go through what waits."""
        if self._in_another_thread():
            self._link.loop.call_soon_threadsafe(self.topic_changed, topic)
        elif (there := self._topics.get(topic)) is not None:
            self._start_next(there)

    def _in_another_thread(self) -> bool:
        """Whether the link's loop runs in another thread."""
        try:
            return asyncio.get_running_loop() is not self._link.loop and self._link.loop.is_running()
        except RuntimeError:
            return self._link.loop.is_running()

    def _take(self, frame: Frame) -> None:
        touched: dict[str, TopicState] = {}
        late = self._last.is_set()
        for (number, name, id, attempt, kind, ack_mode, origin, subject, _), body in split_entries(frame):
            delivery = ReceivedMessage(
                number, id, attempt, MessageKind(kind), AckMode(ack_mode), origin, subject, body, late
            )
            if not self._receiver.handlers(name).all:
                self._return_unhandled(delivery)
            elif work.retiring and delivery.kind is not MessageKind.BROADCAST:
                self._returned.add(number)
            else:
                topic = self._topics.get(name)
                if topic is None:
                    topic = self._topics[name] = TopicState(name)
                topic.queue.append(delivery)
                touched[name] = topic
        for topic in touched.values():
            self._start_next(topic)

    def _return_unhandled(self, delivery: ReceivedMessage) -> None:
        """Its topic is not handled here any more: return it."""
        if delivery.kind is MessageKind.BROADCAST:
            self._done.add([delivery.number, True, 0])
        else:
            self._returned.add(delivery.number)

    def _start_next(self, topic: TopicState) -> None:
        """Start as many messages as may run."""
        receiver, name = self._receiver, topic.name
        while topic.queue and topic.running < (handlers := receiver.handlers(name)).concurrency:
            topic.running += 1
            delivery = topic.queue.popleft()
            if handlers.once:
                receiver.message_started(name)
            self._start(self._handle(topic, delivery, handlers.all), topic.title, delivery.late)
        while topic.queue and not receiver.handlers(name).all:
            self._return_unhandled(topic.queue.popleft())
        if not topic.queue and not topic.running:
            self._topics.pop(name, None)

    def _start(self, handling: Coroutine[Any, Any, None], name: str, late: bool) -> None:
        if late:
            task = self._link.loop.create_task(handling, name=name)
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        else:
            work.start(handling, name)

    async def _handle(
        self, topic: TopicState, delivery: ReceivedMessage, handlers: Sequence[HandlerRegistration]
    ) -> None:
        """Run the handlers, and report that they have ended; report nothing if they are cut, as the process exits."""
        body, wrong = b"", ""
        task = asyncio.current_task()
        try:
            message = delivery.message(topic.name)
            for each in handlers:
                result, wrong = await _run(each, message, wrong)
                if delivery.ack_mode is AckMode.REPLY and not wrong and not body:
                    body, wrong = _encoded_reply(result, message)
        except asyncio.CancelledError as error:
            if work.cut:
                raise
            # report it, whoever cancelled it: otherwise the topic gets nothing more here
            local = self._link.identity.local
            wrong = error_text(error) if local else _log_failure(message, error)  # local: its loop ends
        except ChannelError as error:
            wrong = error_text(error)
            log.error("message %s of topic %r cannot be read: %s", delivery.id, topic.name, error)
        except BaseException as error:  # a result that raises when it is encoded
            forks.leave(error)
            if is_from_outside(error, task):  # the loop is closed, and this coroutine with it
                raise
            body, wrong = b"", _log_failure(message, error)
        finally:
            topic.running -= 1
        if wrong:
            body = wrong[:ERROR_TEXT].encode(errors="replace") if delivery.ack_mode is AckMode.REPLY else b""
        self._done.add([delivery.number, not wrong, len(body)], body)
        self._start_next(topic)

    def return_unstarted(self) -> None:
        """The process retires: return what has not been started, except broadcasts, which others get anyway."""
        if self._link.closed:
            return
        for topic in self._topics.values():
            kept: collections.deque[ReceivedMessage] = collections.deque()
            for delivery in topic.queue:
                if delivery.kind is MessageKind.BROADCAST:
                    kept.append(delivery)
                else:
                    self._returned.add(delivery.number)
            topic.queue = kept
        self._returned.flush()
        self._link.send("msg.return", {"m": [], "all": True})  # later messages may go to others
        work.start_uncounted(self._wait_for_last(), "messages that wait")

    def resume(self) -> None:
        """The process serves again, after it has stood by: what comes from now on is work as any other."""
        self._last.set()
        self._last = asyncio.Event()

    async def _wait_for_last(self) -> None:
        """A retiring process waits for what was accepted for it before; the deadline is the graceful timeout."""
        await self._last.wait()


async def _run(registered: HandlerRegistration, message: Message, wrong: str) -> tuple[Any, str]:
    """Run one handler; return its result, and the error of it or of an earlier one.

    Whatever it raises is a failure of the handler alone, `sys.exit()` as well. Raises CancelledError if this task was
    cancelled.
    """
    task = asyncio.current_task()
    try:
        if registered.thread:
            call = functools.partial(registered.handler, message)
            result = await call_in_thread(call, f"message {message.topic}")
        else:
            result = registered.handler(message)
        if inspect.isawaitable(result):
            result = await result
    except asyncio.CancelledError as error:
        if task is not None and task.cancelling():
            raise
        failed = _log_failure(message, error)  # something that it awaited was cancelled
        return None, wrong or failed
    except BaseException as error:
        forks.leave(error)
        if is_from_outside(error, task):  # the loop is closed, and this coroutine with it
            raise
        failed = _log_failure(message, error)
        return None, wrong or failed
    return result, wrong


def _log_failure(message: Message, error: BaseException) -> str:
    log.error(
        "the handler of topic %r raised for message %s (attempt %d)",
        *(message.topic, message.id, message.attempt),
        exc_info=exc_info(error),
        extra=about("message_handler_failed", topic=message.topic, id=message.id, attempt=message.attempt),
    )
    return error_text(error)


def _encoded_reply(result: Any, message: Message) -> tuple[bytes, str]:
    """The reply to a call, or why it cannot be sent."""
    try:
        body = pack_sendable(result, "its answer")
    except NotSendable as error:
        return b"", _log_failure(message, error)
    if len(body) > MAX_PAYLOAD:
        return b"", _log_failure(
            message, ValueError(f"its answer has {len(body)} bytes, {MAX_PAYLOAD} at most can be sent")
        )
    return body, ""


_ENDED: Final = "the iteration over the messages ended before it came to this one"


class MessageIteration:
    """Messages for an iteration; each counts as handled when the iteration goes on."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Message, asyncio.Future[None]]] = asyncio.Queue()
        self._closed = False

    async def take(self, message: Message) -> None:
        """The handler of the messages."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            raise EOFError(_ENDED)
        self._queue.put_nowait((message, done))
        await done

    async def next(self) -> tuple[Message, Callable[[], None]]:
        """Wait for a message; also return what to call when it has been handled."""
        message, done = await self._queue.get()
        return message, lambda: None if done.done() else done.set_result(None)

    def close(self) -> None:
        """Fail the messages that have not been taken."""
        self._closed = True
        while not self._queue.empty():
            _, done = self._queue.get_nowait()
            if not done.done():
                done.set_exception(EOFError(_ENDED))
