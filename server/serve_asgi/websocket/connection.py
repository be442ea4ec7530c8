"""One WebSocket of a client: the shell around framing, handshake and denial that talks to transport and application.

It owns the application's task, the bounded queue of incoming messages, and what either side may say when. How a
connection ends is in `websocket_endings`, framing in `websocket_framing`, the opening handshake in
`websocket_handshake`. It must not know how a connection became a WebSocket (`http1` hands it over with the request's
head) nor how the worker retires.

Back-pressure: while more than `INCOMING_HIGH` bytes of messages wait for the application, no frame is read, nothing is
unpacked, nor is the socket read; `send` waits while the transport has too much to write. While it has, only the latest
pings are answered (RFC 6455 5.5.3).
docs/reference/websocket.md tells applications and operators what they can rely on.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final, cast

from serve_asgi.http.client_socket import hang_up
from serve_asgi.http.forwarded import Forwarded
from serve_asgi.http.request import ASGI_VERSION
from serve_asgi.http.request_head import Head
from serve_asgi.http.worker_context import DROP_TIME, ClientDisconnected, Message, Scope, WorkerContext
from serve_asgi.ipc import forked_children as forks
from serve_asgi.ipc.address import Address
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.exceptions import all_tell, is_a, is_from_outside
from serve_asgi.websocket.closing import Endings
from serve_asgi.websocket.denial import BODY, START, Denial
from serve_asgi.websocket.framing import End, MessageFraming, weigh
from serve_asgi.websocket.handshake import Handshake, HandshakeRefusal, open_handshake
from serve_asgi.websocket.lifecycle import (
    CLOSED,
    CLOSING,
    DENYING,
    FINISHING,
    HANDSHAKE,
    LINGER_BYTES,
    LINGER_TIMEOUT,
    LINGERING,
    OPEN,
    KeepAlive,
)

CONNECTIONS: Final = int(Cell.CONNECTIONS)
WEBSOCKETS: Final = int(Cell.WEBSOCKETS)
WEBSOCKETS_OPENED: Final = int(Cell.WEBSOCKETS_OPENED)

WEBSOCKET_SPEC_VERSION: Final = "2.4"
"""Of the WebSocket part of ASGI: from 2.4 on, send() after the client has gone raises an OSError."""

INCOMING_HIGH: Final = 64 * 1024
"""Bytes of messages that wait for the application, above which reading pauses."""
INCOMING_LOW: Final = 16 * 1024


if sys.version_info >= (3, 12):

    def _start(worker: WorkerContext, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.Task(run, loop=worker.loop, context=worker.context.copy(), eager_start=True)
else:

    def _start(worker: WorkerContext, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return worker.loop.create_task(run, context=worker.context.copy())


class WebSocketConnection(Endings):
    """A client connection whose request asked for a WebSocket; a `Connection` to the worker.

    The caller has set it as the transport's protocol, has put it into `worker.connections` and counted it, calls
    `connection_made` and then `data_received` with the bytes that it had read beyond the head.
    """

    __slots__ = (
        "_accepted",
        "_behind",
        "_connect_told",
        "_discarded",
        "_dropped",
        "_early",
        "_forwarded",
        "_handshake",
        "_held",
        "_identity",
        "_incoming",
        "_incoming_size",
        "_peer",
        "_scheme",
        "_server",
    )

    def __init__(
        self,
        worker: WorkerContext,
        head: Head,
        client: Address,
        server: Address,
        scheme: str = "http",
        forwarded: Forwarded | None = None,
    ) -> None:
        """`scheme` is the connection's; `forwarded` is what trusted proxies say of the request."""
        super().__init__(worker, head, client if forwarded is None else forwarded.client)
        self._peer = client
        self._identity = ""
        self._server = server
        self._scheme = scheme
        self._forwarded = forwarded
        self._handshake: Handshake
        self._accepted = False
        self._early = b""
        """What came before the application has accepted."""
        self._connect_told = False
        self._incoming: deque[str | bytes] = deque()
        self._incoming_size = 0
        self._behind = False
        """Bytes that have come are neither read as frames nor unpacked before the application asks for more."""
        self._held = b""
        """Pongs that wait until the transport can write again."""
        self._discarded = 0
        self._dropped = 0.0
        """When the first message that nobody can get was sent (loop time, s)."""

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Judge the handshake and start the application."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits()
        worker = self._worker
        try:
            self._handshake = open_handshake(self._head, worker.config.ws_deflate)
        except HandshakeRefusal as refusal:
            self._refuse(refusal)
            return
        if worker.retiring.is_set():  # the worker has told the connections that it retires before this one was there
            self.retire()
        task = _start(worker, self._run())
        if not task.done():
            self._task = task
            worker.tasks.add(task)
            task.add_done_callback(worker.tasks.discard)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        worker = self._worker
        worker.received += len(data)
        if worker.published[0] > worker.shared.applied:  # as before a request
            worker.catch_up()
        if self._state is OPEN:
            self._keep_alive.heard = True
            message = self._framing.single(data)
            if message is None:
                self._receive_frames(data)
            else:
                self._incoming.append(message)
                if self._receivers:  # it is taken at once, and not counted
                    self._wake(self._receivers)
                else:
                    self._incoming_size += weigh(message)
                    if self._incoming_size > INCOMING_HIGH:
                        self._pause_reading()
        else:
            self.go_on(data)

    def go_on(self, data: bytes) -> None:
        """Bytes from the client that have been counted: those that came with its request have been."""
        state = self._state
        if state is OPEN or state is CLOSING:
            self._receive_frames(data)
        elif state is HANDSHAKE:  # too early, but it may be that the client trusts in our answer
            self._early += data
            if len(self._early) > INCOMING_HIGH:
                self._pause_reading()
        else:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self._transport.abort()

    def _receive_frames(self, data: bytes, asked: bool = False, answering: bool = False) -> None:
        """Read frames while there is room for messages; if the application has `asked`, until there is one.

        `answering`: it is just being given a message, which it may answer before the client's end is.
        """
        framing, incoming, state = self._framing, self._incoming, self._state
        if (self._receivers and not incoming) or state is CLOSING:
            asked = True
        room = INCOMING_HIGH - self._incoming_size
        events = framing.receive(data, room, asked)
        self._behind = framing.behind
        output = framing.output
        if output and state is not CLOSED:
            if self._writing_paused and not (events and isinstance(events[-1], End)):
                self._held = output
            else:
                self._write(output)
        is_open = state is OPEN
        for event in events:
            if isinstance(event, End):
                if state is not CLOSED:
                    self._client_ends(event, unread=is_open and (answering or bool(incoming)))
            elif is_open or state is CLOSED:  # what came before the connection was lost
                incoming.append(event)
        if is_open:
            self._incoming_size = INCOMING_HIGH - framing.room
        if incoming and self._receivers:
            self._wake(self._receivers)
        if (self._behind or self._incoming_size > INCOMING_HIGH) and self._state is OPEN:
            self._pause_reading()
        elif self._behind and self._state is CLOSING:  # these are messages that nobody gets
            self._worker.loop.call_soon(self._seek_end)

    def _seek_end(self) -> None:
        if self._state is CLOSING and self._behind:
            self._receive_frames(b"")

    def _go_on_reading(self) -> None:
        """The application has taken messages: there is room for more."""
        if self._behind:
            self._receive_frames(b"", answering=True)
        if self._reading_paused and not self._behind and self._incoming_size <= INCOMING_LOW and self._state is OPEN:
            self._resume_reading()

    def eof_received(self) -> bool:
        """The client has shut down its side: a WebSocket is over with that; what is owed to it is still said."""
        self._eof = True
        if self._state is DENYING or self._state is FINISHING:
            return True
        self._tell_disconnect(1006, "")
        if self._state is not LINGERING and self._state is not CLOSED:
            self._enter(LINGERING)
            self.deadline = self._worker.loop.time() + LINGER_TIMEOUT
        return False  # the transport writes what it has and closes

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone, by whoever's doing."""
        hang_up(self._transport)
        worker = self._worker
        cells = worker.cells
        cells[CONNECTIONS] -= 1
        if self._accepted:
            cells[WEBSOCKETS] -= 1
        if not self._answered:
            self._count(0, self._denial.sent if self._state is DENYING else 0)
        if self._state is FINISHING:
            self._tell_disconnect(self._end.code, self._end.reason)
        elif self._state is not OPEN:
            self._behind = False  # the application has been told of the end, and gets nothing behind it
        self._enter(CLOSED)
        self.deadline = math.inf
        self._cancel_retirement()
        self._tell_disconnect(1006, "")
        self._wake(self._write_waiters)
        worker.forget(self)

    def resume_writing(self) -> None:
        """The transport has caught up."""
        if self._held and (self._state is OPEN or self._state is CLOSING):
            held, self._held = self._held, b""
            self._writing_paused = False
            self._write(held)
            if self._writing_paused:  # the pongs have filled it again
                return
        super().resume_writing()

    # The application's side

    async def _run(self) -> None:
        """Run the application to its end and see that the connection ends with it.

        Whatever the application raises, the client gets its end (law 13): what is said of it comes before, and cannot
        prevent it.
        """
        try:
            await self._worker.app(self._scope(), self.receive, self.send)
        except BaseException as error:
            forks.leave(error)
            if is_from_outside(error, self._task):  # the loop is closed, and this coroutine with it
                raise
            self._failed(error)
        else:
            self._application_returned()

    def _failed(self, error: BaseException) -> None:
        try:
            cancelled = is_a(error, asyncio.CancelledError)
            if not self._ended() or not (cancelled or all_tell(error, ClientDisconnected)):
                self._report("was cancelled at" if cancelled else "failed at", "application_failed", error)
        finally:
            self._application_failed()

    def _scope(self) -> Scope:
        """ASGI www, "WebSocket Connection Scope"."""
        head, worker = self._head, self._worker
        root_path = worker.config.root_path
        path, raw_path = head.text, head.path
        if root_path and not (path + "/").startswith(root_path + "/"):
            # A proxy may or may not have taken the mount point off; the application always sees the whole path.
            path = root_path + path
            raw_path = worker.raw_root_path + raw_path
        headers = head.headers.copy()  # the head is shared with equal requests
        if worker.request_ids.generates:
            self._identity = worker.request_ids.keep_or_generate(headers)
        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": ASGI_VERSION, "spec_version": WEBSOCKET_SPEC_VERSION},
            "http_version": head.version,
            "scheme": "wss" if self._scheme == "https" else "ws",
            "path": path,
            "raw_path": raw_path,
            "query_string": head.query,
            "root_path": root_path,
            "headers": headers,
            "client": self._client,
            "server": self._server,
            "subprotocols": self._handshake.subprotocols,
            "state": worker.state.copy(),
            "extensions": {
                "serve": {"generation": worker.generation, "slot": worker.slot},
                "websocket.http.response": {},
            },
        }
        if self._forwarded is not None:
            self._forwarded.apply(scope)
        return scope

    def peer(self) -> Address:
        """Who is connected."""
        return self._peer

    def client_scheme(self) -> str:
        """What the client speaks."""
        said = None if self._forwarded is None else self._forwarded.secure
        secure = self._scheme == "https" if said is None else said
        return "wss" if secure else "ws"

    def identity(self) -> str:
        """The request's id, or ""."""
        return self._identity or super().identity()

    async def receive(self) -> Message:
        """ASGI `receive`: `websocket.connect`, then messages in order, then `websocket.disconnect` for ever."""
        if not self._connect_told:
            self._connect_told = True
            return {"type": "websocket.connect"}
        incoming = self._incoming
        while not incoming:
            if self._behind and (self._state is OPEN or self._state is CLOSED):
                self._receive_frames(b"", asked=True)
                continue
            if self._disconnect is not None:
                return dict(self._disconnect)
            if self._state is FINISHING:  # all that came before the client's end is taken, and answered
                self._finish()
                continue
            waiter: asyncio.Future[None] = self._worker.loop.create_future()
            self._receivers.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._receivers:
                    self._receivers.remove(waiter)
                raise
        event = incoming.popleft()
        self._incoming_size = self._incoming_size - weigh(event) if incoming else 0
        if self._reading_paused and self._incoming_size <= INCOMING_LOW and self._state is OPEN:
            self._go_on_reading()
        if type(event) is str:
            return {"type": "websocket.receive", "text": event}
        return {"type": "websocket.receive", "bytes": event}

    async def send(self, message: Message) -> None:
        """ASGI `send`. Returns when the transport is ready for more, and takes nothing before that from another task.

        Raises ClientDisconnected once the connection has ended; RuntimeError, TypeError or ValueError, with a
        sentence, for a message that is out of place or not as ASGI has it.
        """
        if self._writing_paused:
            await self._writable()
        kind = message["type"]
        transport = self._transport
        state = self._state
        if transport.is_closing():
            await self._drop()
            return
        if state is OPEN or state is FINISHING:
            if kind == "websocket.send":
                data = message.get("bytes")
                frame = self._framing.binary(data) if type(data) is bytes else self._data_frame(message)
                self._worker.sent += len(frame)
                transport.write(frame)
            elif kind == "websocket.close":
                self._close(message.get("code") or 1000, message.get("reason") or "")
                return
            else:
                raise RuntimeError(
                    f"After websocket.accept come websocket.send and websocket.close, not {kind!r}; "
                    "correct the application."
                )
        elif state is HANDSHAKE:
            self._answer(kind, message)
        elif state is DENYING:
            self._deny(kind, message)
        else:
            await self._drop()
            return
        if self._writing_paused:
            await self._writable()

    async def _drop(self) -> None:
        """A message that nobody will get. Gives way, so that whoever reads as well is told of the end."""
        now = self._worker.loop.time()
        self._dropped = self._dropped or now
        if now - self._dropped > DROP_TIME:
            raise ClientDisconnected("The WebSocket has ended: nothing can be sent any more.")
        await asyncio.sleep(0)

    async def _writable(self) -> None:
        """Wait until the transport has caught up. The client's end of it is `--write-timeout`."""
        while self._writing_paused and self._state is not CLOSED:
            await self._wait(self._write_waiters)

    def _data_frame(self, message: Message) -> bytes:
        """The frame of a `websocket.send` whose content is not plainly bytes."""
        data = message.get("bytes")
        if data is not None:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"websocket.send: bytes is bytes, not {type(data).__name__}")
            return self._framing.binary(bytes(data))
        text = message.get("text")
        if not isinstance(text, str):
            if text is None:
                raise ValueError("websocket.send: one of bytes and text has to be given")
            raise TypeError(f"websocket.send: text is str, not {type(text).__name__}")
        return self._framing.text(text)

    def _answer(self, kind: str, message: Message) -> None:
        """The application's answer to `websocket.connect`."""
        if kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            self._refuse(HandshakeRefusal(403, "The application has refused the WebSocket."))
        elif kind == START:
            self._denial = Denial(message, self._own_lines(message))
            self._enter(DENYING)
        else:
            raise RuntimeError(
                f"websocket.connect is answered by websocket.accept, websocket.close or {START}, not {kind!r}; "
                "correct the application."
            )

    def _accept(self, message: Message) -> None:
        worker = self._worker
        handshake = self._handshake
        response = handshake.response(message, self._own_lines(message))
        self._framing = MessageFraming(handshake.deflate, worker.config.ws_max_size)
        self._keep_alive = KeepAlive(worker.config, worker.loop.time())
        self.deadline = self._keep_alive.deadline
        self._enter(OPEN)
        self._accepted = True
        worker.cells[WEBSOCKETS] += 1
        worker.cells[WEBSOCKETS_OPENED] += 1
        self._count(101, 0)
        self._write(response)
        self._resume_reading()
        if self._early:
            early, self._early = self._early, b""
            self._receive_frames(early)
        if self._retire_overdue and self._state is OPEN:
            self._close(self._retire_code(), "")

    def _own_lines(self, message: Message) -> bytes:
        """The server's own fields of the answer: with the request's id, where that is returned."""
        worker, identity = self._worker, self._identity
        ids, given = worker.request_ids, message.get("headers") or ()
        if not ids.echoes or any(bytes(name).lower() == ids.name for name, _ in given):
            return worker.default_headers
        return worker.default_headers + b"%b: %b\r\n" % (ids.name, identity.encode())

    def _deny(self, kind: str, message: Message) -> None:
        """A further piece of the application's HTTP response."""
        if kind != BODY:
            raise RuntimeError(f"After {START} comes {BODY}, not {kind!r}; correct the application.")
        denial = self._denial
        try:
            self._write(denial.body(message))
        except RuntimeError:
            self._transport.abort()  # what the client has is not the whole and must not look like it
            raise
        if denial.done:
            if denial.dropped:
                self._worker.dropped_bodies.report(self._head, denial.status)
            self._count(denial.status, denial.sent)
            self._tell_disconnect(1006, "")
            self._linger()
