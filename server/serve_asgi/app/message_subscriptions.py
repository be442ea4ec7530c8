"""Which functions of this process handle which topics: `messenger.on`, `once`, `off`, `messages`, `on_dead_letter`.

It registers them; `serve_asgi.app.message_receiver` calls them. It sends nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar, overload

from serve_asgi.app.message_arguments import check_concurrency, check_handler, check_loop, check_topic
from serve_asgi.app.message_receiver import Handler, HandlerRegistration, Message, MessageIteration, MessageReceiver
from serve_asgi.ipc.message_frames import DEAD_LETTER_TOPIC

F = TypeVar("F", bound=Handler)


class MessageSubscriptions:
    """The receiving half of `messenger`."""

    def __init__(self) -> None:
        self._receiver = MessageReceiver()

    @property
    def receiver(self) -> MessageReceiver:
        """What calls the handlers."""
        return self._receiver

    @overload
    def on(self, topic: str, handler: F, *, concurrency: int = 1, thread: bool = False) -> F: ...

    @overload
    def on(
        self, topic: str, handler: None = None, *, concurrency: int = 1, thread: bool = False
    ) -> Callable[[F], F]: ...

    def on(
        self, topic: str, handler: F | None = None, *, concurrency: int = 1, thread: bool = False
    ) -> F | Callable[[F], F]:
        """Handle the messages of a topic with a function, async or sync; can be used as a decorator.

        Messages are handled in the order in which they arrive. Several handlers of one topic run one after another for
        each message.

        Args:
            topic: The topic.
            handler: Called with each `Message`; what it returns is the reply to a `call`.
            concurrency: How many messages are handled at a time.
            thread: Run a sync handler in a thread, where it may block; otherwise it runs in the event loop and must be
                short.

        Returns:
            The handler.

        Raises:
            TypeError: The handler cannot be called, is a generator, or is async though `thread` is true.
            ValueError: The topic or `concurrency` is invalid.

        Example:
            ```python
            @messenger.on("order", concurrency=10)
            async def handle(message: Message) -> None:
                await ship(message.payload)
            ```
        """
        check_topic(topic)
        check_concurrency(concurrency)
        return self._on(topic, handler, concurrency=concurrency, thread=thread)

    def _on(self, topic: str, handler: F | None, **how: Any) -> F | Callable[[F], F]:
        if handler is None:
            return lambda decorated: self._registered(topic, decorated, **how)
        return self._registered(topic, handler, **how)

    def _registered(self, topic: str, handler: F, concurrency: int = 1, once: bool = False, thread: bool = False) -> F:
        check_handler(handler, thread)
        self._receiver.on(topic, HandlerRegistration(handler, concurrency, once, thread))
        return handler

    @overload
    def once(self, topic: str, handler: F) -> F: ...

    @overload
    def once(self, topic: str, handler: None = None) -> Callable[[F], F]: ...

    def once(self, topic: str, handler: F | None = None) -> F | Callable[[F], F]:
        """As `on`, but only for the next message.

        Args:
            topic: The topic.
            handler: Called with the next message.

        Returns:
            The handler.

        Raises:
            TypeError: As `on`.

        Example:
            ```python
            messenger.once("ready", lambda message: begin())
            ```
        """
        check_topic(topic)
        return self._on(topic, handler, once=True)

    def off(self, topic: str, handler: Handler | None = None) -> None:
        """Stop handling a topic, with one function or with all; handlers that are running finish.

        Args:
            topic: The topic.
            handler: The function that was given to `on`; None removes all of this process.

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
            topic: The topic.
            concurrency: How many may be handled at a time by iterations and handlers of this process.

        Raises:
            RuntimeError: It is iterated outside of the server's event loop; `messenger.sync.messages` is for threads.

        Example:
            ```python
            async for message in messenger.messages("said"):
                await socket.send_text(message.payload)
            ```
        """
        check_topic(topic)
        check_loop("messenger.sync.messages(…)")
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
        """Handle messages of any topic that were given up; each goes to one process that has such a handler.

        Without a handler they are only logged (`message_dead_lettered`). A handler that raises gets the message again,
        three times in all.

        Args:
            handler: Called with the message, whose `reason` says why it was given up.

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
