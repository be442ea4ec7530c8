"""A WebSocket as its application has it: the call of the application, `receive` and `send`.

It owns what either side may say when (ASGI www, "WebSocket"), and that an application that does not do its part is
logged. Rule: whatever the application raises, the client gets its end. It must not know frames on the wire,
deadlines, or how the connection closes: what it needs of the connection is `WebSocketPeer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, cast

from serve_asgi.http.dropped_messages import ClientDisconnected, drop_message
from serve_asgi.http.survival import EXTENSION, REFUSAL, gone_on, tells_of_end
from serve_asgi.http.worker_context import Message, Scope, WorkerContext
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.exceptions import all_tell, is_a
from serve_asgi.websocket.compression import Deflate
from serve_asgi.websocket.denial import BODY, START, Denial
from serve_asgi.websocket.framing import MessageFraming, weigh
from serve_asgi.websocket.handshake import Handshake, HandshakeRefusal
from serve_asgi.websocket.receive_queue import INCOMING_LOW, ReceiveQueue
from serve_asgi.websocket.request import WebSocketRequest
from serve_asgi.websocket.states import (
    BETWEEN_LIVES,
    CLOSED,
    DENYING,
    FINISHING,
    HANDSHAKE,
    LEAVING,
    OPEN,
    PARTING,
    RESUMING,
    WebSocketState,
)
from serve_asgi.websocket.surviving import SurvivingWebSocket
from serve_asgi.websocket.write_flow import WriteFlow

_FAILED_WITHOUT_5XX: Final = int(Cell.FAILED_WITHOUT_5XX)


class WebSocketPeer:
    """The connection, as far as its application needs it."""

    __slots__ = (
        "extensions",
        "framing",
        "messages",
        "number",
        "output",
        "reading_paused",
        "state",
        "surviving",
        "transport",
    )

    state: WebSocketState
    transport: asyncio.Transport
    framing: MessageFraming
    """From `accept` on."""
    messages: ReceiveQueue
    reading_paused: bool
    output: WriteFlow
    number: int
    """`scope["extensions"]["serve"]["connection"]`."""
    extensions: object
    """The application's, by which it is told from others."""
    surviving: SurvivingWebSocket | None
    """Of one that is to survive, or that has."""

    def survive(self) -> SurvivingWebSocket:
        """The application speaks of survival."""
        raise NotImplementedError

    def resume_life(self) -> None:
        """The application of this life has accepted what is open already."""
        raise NotImplementedError

    def refuse_life(self, reason: str) -> None:
        """The application of this life cannot go on."""
        raise NotImplementedError

    def has_ended(self) -> bool:
        """Whether nothing can be sent any more."""
        raise NotImplementedError

    def read_behind(self) -> None:
        """Read frames of what has come and was not read yet, until there is a message."""
        raise NotImplementedError

    def go_on_reading(self) -> None:
        """The application has taken messages: there is room for more."""
        raise NotImplementedError

    def finish(self) -> None:
        """The application has taken all that came before the client's end: answer that."""
        raise NotImplementedError

    async def writable(self) -> None:
        """Wait until the transport has caught up."""
        raise NotImplementedError

    def accept(self, response: bytes, deflate: Deflate | None) -> None:
        """The WebSocket is open with this response."""
        raise NotImplementedError

    def refuse(self, refusal: HandshakeRefusal) -> None:
        """There will be no WebSocket."""
        raise NotImplementedError

    def begin_denial(self, denial: Denial) -> None:
        """The application begins an HTTP response instead."""
        raise NotImplementedError

    def deny(self, denial: Denial, data: bytes) -> None:
        """A piece of that response, perhaps its last."""
        raise NotImplementedError

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake. Raises ValueError for a code or reason that cannot be sent."""
        raise NotImplementedError

    def application_failed(self) -> None:
        """The application has raised, or has returned before it answered the handshake."""
        raise NotImplementedError


class _EndedTransport(asyncio.Transport):
    """In place of one that another life goes on with."""

    def is_closing(self) -> bool:
        return False


def _ended_life() -> WebSocketPeer:
    """What a call of the application that has ended has in place of its connection: another one goes on with that."""
    peer = WebSocketPeer()
    peer.state = LEAVING
    peer.surviving = None
    peer.reading_paused = False
    peer.output = WriteFlow(cast(asyncio.AbstractEventLoop, None))  # it never pauses
    peer.transport = _EndedTransport()
    return peer


_ENDED_LIFE: Final = _ended_life()


class WebSocketSession:
    """One call of the application."""

    __slots__ = (
        "_connect_told",
        "_connection",
        "_denial",
        "_dropped_since",
        "_handshake",
        "_worker",
        "messages",
        "request",
        "task",
    )

    def __init__(
        self, connection: WebSocketPeer, worker: WorkerContext, request: WebSocketRequest, handshake: Handshake
    ) -> None:
        self._connection = connection
        self.messages = connection.messages
        self._worker = worker
        self.request = request
        self._handshake = handshake
        self.task: asyncio.Task[None] | None = None
        """Runs the application, if that has not returned before its first wait."""
        self._connect_told = False
        self._dropped_since = 0.0
        """When the first message that nobody can get was sent (loop time, s), or 0."""

    _denial: Denial
    """From the beginning of one."""

    def scope(self) -> Scope:
        """What the application is called with."""
        connection = self._connection
        survival = {} if connection.surviving is None else connection.surviving.survival.extension()
        scope = self.request.scope(self._handshake.subprotocols, connection.number, survival)
        connection.extensions = scope["extensions"]
        return scope

    def failed(self, error: BaseException) -> None:
        """The application has raised, and the connection ends with it.

        What is said of the failure comes before the connection's end, and cannot prevent it.
        """
        if self._connection.state is PARTING and tells_of_end(error):
            self.returned()
            return
        try:
            cancelled = is_a(error, asyncio.CancelledError)
            if not self._connection.has_ended() or not (cancelled or all_tell(error, ClientDisconnected)):
                self._count_failure()
                self.request.report("was cancelled at" if cancelled else "failed at", "application_failed", error)
        finally:
            self._connection.application_failed()

    def returned(self) -> None:
        """The application is done; one that leaves its socket open means it to end well."""
        connection = self._connection
        surviving = connection.surviving
        if surviving is not None and surviving.application_returned():
            self._connection = _ENDED_LIFE  # tasks that it has left behind have no part in the next life
            return
        state = connection.state
        if state is OPEN or state is FINISHING:
            connection.close(1000, "")
        elif state is RESUMING:
            self._count_failure()
            self.request.report("returned without going on with", "request_unanswered")
            connection.application_failed()
        elif state is HANDSHAKE or state is DENYING:
            self._count_failure()
            self.request.report("returned without answering", "request_unanswered")
            connection.application_failed()

    def _count_failure(self) -> None:
        """The application has failed; where the handshake can still be answered it counts by its status of 500."""
        if self._connection.state is not HANDSHAKE and self.request.status < 500:
            self._worker.cells[_FAILED_WITHOUT_5XX] += 1

    def next_message(self) -> Message | None:
        """What `receive` returns, or None if there is nothing yet: wait until `messages` wakes it, and ask again."""
        messages = self.messages
        if not self._connect_told:
            self._connect_told = True
            return {"type": "websocket.connect"}
        connection = self._connection
        while not messages.queue:
            if messages.behind and (connection.state is OPEN or connection.state is CLOSED):
                connection.read_behind()
            elif messages.disconnect is not None:
                return dict(messages.disconnect)
            elif connection.state is FINISHING:  # all that came before the client's end is taken, and answered
                connection.finish()
            else:
                return None
        message = messages.queue.pop(0)
        messages.size = messages.size - weigh(message) if messages.queue else 0
        if connection.reading_paused and messages.size <= INCOMING_LOW and connection.state is OPEN:
            connection.go_on_reading()
        if type(message) is str:
            return {"type": "websocket.receive", "text": message}
        return {"type": "websocket.receive", "bytes": message}

    def send(self, message: Message, waited: bool = False) -> Coroutine[Any, Any, None] | None:
        """What `send` does with a message, but for what it waits for, which is returned. `waited`: it has, before.

        Raises RuntimeError, TypeError or ValueError, with a sentence, for a message that is out of place or not as ASGI
        has it.
        """
        connection = self._connection
        if connection.output.paused and not waited:
            return self._send_when_writable(message)
        kind = message["type"]
        transport = connection.transport
        state = connection.state
        if transport.is_closing():
            return self._drop_message()
        if state is OPEN or state is FINISHING:
            if kind == "websocket.send":
                data = message.get("bytes")
                frame = connection.framing.binary(data) if type(data) is bytes else self._data_frame(message, data)
                self._worker.sent += len(frame)
                transport.write(frame)
            elif kind == "websocket.close":
                connection.close(message.get("code") or 1000, message.get("reason") or "")
                return None
            elif kind in (EXTENSION, REFUSAL):
                self._survive(kind, message)
                return None
            else:
                raise RuntimeError(
                    f"After websocket.accept come websocket.send and websocket.close, not {kind!r}; "
                    "correct the application."
                )
        elif state is HANDSHAKE:
            self._answer(kind, message)
        elif state is DENYING:
            self._deny(kind, message)
        elif state in BETWEEN_LIVES:
            self._send_between_lives(kind, message)
            return None
        else:
            return self._drop_message()
        return connection.writable() if connection.output.paused else None

    async def _send_when_writable(self, message: Message) -> None:
        await self._connection.writable()
        waits = self.send(message, True)  # the life may have ended meanwhile
        if waits is not None:
            await waits

    async def _drop_message(self) -> None:
        self._dropped_since = await drop_message(self._worker.loop, self._dropped_since)

    def _data_frame(self, message: Message, data: Any) -> bytes:
        """The frame of a `websocket.send` whose `bytes` are `data`."""
        framing = self._connection.framing
        if data is not None:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"websocket.send: bytes is bytes, not {type(data).__name__}")
            return framing.binary(bytes(data))
        text = message.get("text")
        if not isinstance(text, str):
            if text is None:
                raise ValueError("websocket.send: one of bytes and text has to be given")
            raise TypeError(f"websocket.send: text is str, not {type(text).__name__}")
        return framing.text(text)

    def _answer(self, kind: str, message: Message) -> None:
        """The application's answer to `websocket.connect`."""
        connection, lines = self._connection, self.request.own_lines
        if kind == "websocket.accept":
            response = self._handshake.response(message, lines(message))
            self.request.subprotocol = message.get("subprotocol")
            connection.accept(response, self._handshake.deflate)
        elif kind == "websocket.close":
            connection.refuse(HandshakeRefusal(403, "The application has refused the WebSocket."))
        elif kind == START:
            self._denial = Denial(message, lines(message), chunks=self.request.head.method != "CONNECT")
            connection.begin_denial(self._denial)
        elif kind == EXTENSION:
            connection.survive().survival.update(message)
        else:
            raise RuntimeError(
                f"websocket.connect is answered by websocket.accept, websocket.close or {START}, not {kind!r}; "
                "correct the application."
            )

    def _send_between_lives(self, kind: str, message: Message) -> None:
        """A life that has not accepted yet what is open, or one that ends, or that has ended.

        Raises ClientDisconnected when nothing goes out any more.
        """
        connection, surviving = self._connection, self._connection.surviving
        if surviving is None:
            raise gone_on()
        if kind in (EXTENSION, REFUSAL):
            self._survive(kind, message)
        elif connection.state is RESUMING:
            if kind == "websocket.accept":
                surviving.accept(message.get("subprotocol"))
            elif kind == "websocket.close" or kind == START:
                connection.refuse_life("the new version of the application does not accept it")
            else:
                raise RuntimeError(f"websocket.connect is answered by websocket.accept, not {kind!r}.")
        elif connection.state is not PARTING:
            raise gone_on()
        elif kind == "websocket.send":
            surviving.check_sending()
            frame = self._data_frame(message, message.get("bytes"))
            self._worker.sent += len(frame)
            connection.transport.write(frame)
        elif kind != "websocket.close":  # that is how code cleans up that takes the connection for closed
            raise RuntimeError(f"After websocket.accept come websocket.send and websocket.close, not {kind!r}.")

    def _survive(self, kind: str, message: Message) -> None:
        """What the application says by messages of its connection's survival."""
        if kind == EXTENSION:
            self._connection.survive().survival.update(message)
        else:
            self._connection.refuse_life(str(message.get("reason") or ""))

    def _deny(self, kind: str, message: Message) -> None:
        """A further piece of the application's HTTP response."""
        if kind != BODY:
            raise RuntimeError(f"After {START} comes {BODY}, not {kind!r}; correct the application.")
        try:
            data = self._denial.body(message)
        except RuntimeError:
            self._connection.transport.abort()  # what the client has is not the whole and must not look like it
            raise
        self._connection.deny(self._denial, data)
