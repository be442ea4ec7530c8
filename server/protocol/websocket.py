"""One WebSocket of a client: the shell around framing, handshake and denial that talks to transport and application.

It owns the transport, the application's task, the bounded queue of incoming messages, and the ways to end. States and
timing are in `websocket_lifecycle`, framing in `websocket_framing`, the opening handshake in `websocket_handshake`. It
must not know how a connection became a WebSocket (`http1` hands it over with the request's head) nor how the worker
retires.

How it ends, and what each side is told:

=============================================  ====================  ==================================================
what happens                                   the client gets       the application's `websocket.disconnect`
=============================================  ====================  ==================================================
application sends `websocket.close`            its code              the same code
application returns while the socket is open   1000                  -
application raises while the socket is open    1011                  - (logged with its traceback)
application closes before accepting            403                   1006
application returns or raises before it        500                   - (logged)
client closes                                  its code, echoed      the client's code (1005 if it gave none)
client is gone without a close frame           -                     1006
client breaks the protocol or a limit          1002, 1007, 1009      the same code
client answers no ping                         1011                  1006
worker retires                                 1012 (1001 to stop)   the same code
=============================================  ====================  ==================================================

Back-pressure: reading pauses while more than `INCOMING_HIGH` bytes wait for the application; `send` waits while the
transport has too much to write. While it has, only the latest ping is answered (RFC 6455 5.5.3).
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final, cast
from urllib.parse import unquote

from server.address import Address
from server.protocol.exchange import ASGI_VERSION, CLIENT_GONE, SPEC_VERSION, tells_of_disconnect
from server.protocol.head import Head
from server.protocol.service import ClientDisconnected, Message, Scope, Service
from server.protocol.websocket_denial import BODY, START, Denial
from server.protocol.websocket_framing import End, Framing
from server.protocol.websocket_handshake import Handshake, Refusal, open_handshake
from server.protocol.websocket_lifecycle import (
    CLOSE_TIMEOUT,
    LINGER_BYTES,
    LINGER_TIMEOUT,
    TRANSITIONS,
    KeepAlive,
    Pulse,
    State,
    closing_moment,
)
from server.scoreboard import Cell

ERRORS: Final = logging.getLogger("serve.error")

CONNECTIONS: Final = int(Cell.CONNECTIONS)
WEBSOCKETS: Final = int(Cell.WEBSOCKETS)
REQUESTS: Final = int(Cell.REQUESTS)
STATUS_1XX: Final = int(Cell.STATUS_1XX)

INCOMING_HIGH: Final = 64 * 1024
"""Bytes of messages that wait for the application, above which reading pauses."""
INCOMING_LOW: Final = 16 * 1024
MESSAGE_COST: Final = 256
"""What a waiting message counts beside its content, so that empty ones are bounded as well."""

# Bound once: an attribute of an enum costs a lookup for each message.
HANDSHAKE, DENYING, OPEN = State.HANDSHAKE, State.DENYING, State.OPEN
CLOSING, LINGERING, CLOSED = State.CLOSING, State.LINGERING, State.CLOSED


if sys.version_info >= (3, 12):

    def _start(service: Service, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.Task(run, loop=service.loop, context=service.context.copy(), eager_start=True)
else:

    def _start(service: Service, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return service.loop.create_task(run, context=service.context.copy())


class WebSocketConnection(asyncio.Protocol):
    """A client connection whose request asked for a WebSocket; `server.protocol.service.Connection` to the worker.

    The caller has set it as the transport's protocol, has put it into `service.connections` and counted it, calls
    `connection_made` and then `data_received` with the bytes that it had read beyond the head.
    """

    __slots__ = (
        "_accepted",
        "_answered",
        "_client",
        "_connect_told",
        "_denial",
        "_discarded",
        "_disconnect",
        "_drains",
        "_early",
        "_eof",
        "_framing",
        "_handshake",
        "_head",
        "_held",
        "_incoming",
        "_incoming_size",
        "_keep_alive",
        "_reading_paused",
        "_receivers",
        "_retire_overdue",
        "_retire_timer",
        "_server",
        "_service",
        "_started",
        "_state",
        "_task",
        "_transport",
        "_unsent",
        "_writing_paused",
        "deadline",
    )

    def __init__(self, service: Service, head: Head, client: Address, server: Address) -> None:
        self._service = service
        self._head = head
        self._client = client
        self._server = server
        self.deadline = math.inf
        self._state = HANDSHAKE
        self._transport: asyncio.Transport
        self._handshake: Handshake
        self._framing: Framing
        self._denial: Denial
        self._accepted = False
        self._task: asyncio.Task[None] | None = None
        self._started = 0.0 if service.access_log is None else service.loop.time()
        self._early = b""
        """What came before the application has accepted."""
        self._connect_told = False
        self._incoming: deque[str | bytes] = deque()
        self._incoming_size = 0
        self._receivers: list[asyncio.Future[None]] = []
        self._disconnect: Message | None = None
        """What `receive` returns once the messages before it are read; set when the connection stops being open."""
        self._drains: list[asyncio.Future[None]] = []
        self._reading_paused = False
        self._writing_paused = False
        self._held = b""
        """Pongs that wait until the transport can write again."""
        self._keep_alive: KeepAlive
        self._retire_timer: asyncio.TimerHandle | None = None
        self._retire_overdue = False
        """The moment to retire came while the application had not answered: close as soon as it has accepted."""
        self._eof = False
        """The client has shut down its side."""
        self._answered = False
        """Whether the request has got its answer: the 101 or a whole HTTP response."""
        self._discarded = 0
        self._unsent = 0

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Judge the handshake and start the application."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits()
        service = self._service
        try:
            self._handshake = open_handshake(self._head, service.config.ws_deflate)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if service.draining.is_set():  # the worker has told the connections that it retires before this one was there
            self.retire()
        task = _start(service, self._run())
        if not task.done():
            self._task = task
            service.tasks.add(task)
            task.add_done_callback(service.tasks.discard)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if not data:
            return
        state = self._state
        if state is OPEN or state is CLOSING:
            self._keep_alive.heard = True
            self._receive_frames(data)
        elif state is HANDSHAKE:  # too early, but it may be that the client trusts in our answer
            self._early += data
            if len(self._early) > INCOMING_HIGH:
                self._pause_reading()
        else:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self._transport.abort()

    def _receive_frames(self, data: bytes) -> None:
        framing = self._framing
        events = framing.receive(data)
        if framing.output:
            output, framing.output = framing.output, b""
            if self._writing_paused and not (events and type(events[-1]) is End):
                self._held = output
            else:
                self._transport.write(output)
        if not events:
            return
        if self._state is OPEN:
            incoming = self._incoming
            for event in events:
                if isinstance(event, End):
                    self._tell_disconnect(event.code, event.reason)
                    self._linger()
                    return
                incoming.append(event)
                self._incoming_size += len(event) + MESSAGE_COST
            if self._incoming_size > INCOMING_HIGH:
                self._pause_reading()
            if self._receivers:
                self._wake(self._receivers)
        elif type(events[-1]) is End:
            self._linger()

    def eof_received(self) -> bool:
        """The client has shut down its side: a WebSocket is over with that; a denial is still finished."""
        self._eof = True
        if self._state is DENYING:
            return True
        self._tell_disconnect(1006, "")
        if self._state is not LINGERING and self._state is not CLOSED:
            self._enter(LINGERING)
            self.deadline = self._service.loop.time() + LINGER_TIMEOUT
        return False  # the transport writes what it has and closes

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone, by whoever's doing."""
        service = self._service
        cells = service.cells
        cells[CONNECTIONS] -= 1
        if self._accepted:
            cells[WEBSOCKETS] -= 1
        if not self._answered:
            self._count(0, self._denial.sent if self._state is DENYING else 0)
        self._enter(CLOSED)
        self.deadline = math.inf
        self._cancel_retirement()
        self._tell_disconnect(1006, "")
        self._wake(self._drains)
        service.forget(self)

    def pause_writing(self) -> None:
        """The transport has more to write than it likes."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The transport has caught up."""
        self._writing_paused = False
        if self._held and (self._state is OPEN or self._state is CLOSING):
            self._transport.write(self._held)
        self._held = b""
        if not self._writing_paused:  # the pongs may have filled it again
            self._wake(self._drains)

    # The application's side

    async def _run(self) -> None:
        """Run the application to its end and see that the connection ends with it."""
        try:
            await self._service.app(self._scope(), self.receive, self.send)
        except asyncio.CancelledError:
            self._application_failed()
            raise
        except GeneratorExit:  # the loop is closed, and this coroutine with it
            raise
        except BaseException as error:  # whatever it is, the client is told
            if not self._ended() or not tells_of_disconnect(error):
                path = self._head.path.decode("latin-1")
                ERRORS.error("The application failed at the WebSocket %s", path, exc_info=error)
            self._application_failed()
        else:
            self._application_returned()

    def _ended(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._state in (CLOSING, LINGERING, CLOSED) or self._transport.is_closing()

    def _scope(self) -> Scope:
        """ASGI www, "WebSocket Connection Scope"."""
        head, service = self._head, self._service
        root_path = service.config.root_path
        raw_path = head.path
        path = unquote(raw_path.decode("latin-1"))
        if root_path and not (path + "/").startswith(root_path + "/"):
            # A proxy may or may not have taken the mount point off; the application always sees the whole path.
            path = root_path + path
            raw_path = root_path.encode() + raw_path
        return {
            "type": "websocket",
            "asgi": {"version": ASGI_VERSION, "spec_version": SPEC_VERSION},
            "http_version": head.version,
            "scheme": "ws",
            "path": path,
            "raw_path": raw_path,
            "query_string": head.query,
            "root_path": root_path,
            "headers": head.headers,
            "client": self._client,
            "server": self._server,
            "subprotocols": self._handshake.subprotocols,
            "state": service.state.copy(),
            "extensions": {**service.extensions, "websocket.http.response": {}},
        }

    async def receive(self) -> Message:
        """ASGI `receive`: `websocket.connect`, then messages in order, then `websocket.disconnect` for ever."""
        if not self._connect_told:
            self._connect_told = True
            return {"type": "websocket.connect"}
        incoming = self._incoming
        while not incoming:
            if self._disconnect is not None:
                return dict(self._disconnect)
            await self._wait(self._receivers)
        event = incoming.popleft()
        self._incoming_size -= len(event) + MESSAGE_COST
        if self._reading_paused and self._incoming_size <= INCOMING_LOW:
            self._resume_reading()
        if type(event) is str:
            return {"type": "websocket.receive", "text": event}
        return {"type": "websocket.receive", "bytes": event}

    async def send(self, message: Message) -> None:
        """ASGI `send`. Returns when the transport is ready for more.

        Raises ClientDisconnected once the connection has ended; RuntimeError, TypeError or ValueError, with a
        sentence, for a message that is out of place or not as ASGI has it.
        """
        kind = message["type"]
        transport = self._transport
        if self._state is OPEN and not transport.is_closing():
            if kind == "websocket.send":
                transport.write(self._data_frame(message))
            elif kind == "websocket.close":
                self._close(message.get("code") or 1000, message.get("reason") or "")
                return
            else:
                raise RuntimeError(
                    f"After websocket.accept come websocket.send and websocket.close, not {kind!r}; "
                    "correct the application."
                )
        elif self._state is HANDSHAKE and not transport.is_closing():
            self._answer(kind, message)
        elif self._state is DENYING and not transport.is_closing():
            self._deny(kind, message)
        else:
            raise ClientDisconnected("The WebSocket has ended: nothing can be sent any more.")
        if self._writing_paused:
            await self._wait(self._drains)
            if self._state is CLOSED:
                raise ClientDisconnected("The client has gone before everything was sent.")

    def _data_frame(self, message: Message) -> bytes:
        """The frame of a `websocket.send`."""
        data = message.get("bytes")
        if data is not None:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"websocket.send: bytes is bytes, not {type(data).__name__}")
            return self._framing.binary(data)
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
            self._refuse(Refusal(403, "The application has refused the WebSocket."))
        elif kind == START:
            self._denial = Denial(message, self._service.default_headers)
            self._enter(DENYING)
        else:
            raise RuntimeError(
                f"websocket.connect is answered by websocket.accept, websocket.close or {START}, not {kind!r}; "
                "correct the application."
            )

    def _accept(self, message: Message) -> None:
        service = self._service
        handshake = self._handshake
        response = handshake.response(message, service.default_headers)
        self._framing = Framing(handshake.extensions, service.config.ws_max_size)
        self._enter(OPEN)
        self._accepted = True
        service.cells[WEBSOCKETS] += 1
        self._count(101, 0)
        self._transport.write(response)
        self._keep_alive = KeepAlive(service.config, service.loop.time())
        self.deadline = self._keep_alive.deadline
        self._resume_reading()
        if self._early:
            early, self._early = self._early, b""
            self._receive_frames(early)
        if self._retire_overdue and self._state is OPEN:
            self._close(self._retire_code(), "")

    def _deny(self, kind: str, message: Message) -> None:
        """A further piece of the application's HTTP response."""
        if kind != BODY:
            raise RuntimeError(f"After {START} comes {BODY}, not {kind!r}; correct the application.")
        denial = self._denial
        try:
            self._transport.write(denial.body(message))
        except RuntimeError:
            self._transport.abort()  # what the client has is not the whole and must not look like it
            raise
        if denial.done:
            self._count(denial.status, denial.sent)
            self._tell_disconnect(1006, "")
            self._linger()

    def _application_returned(self) -> None:
        """The application is done; one that leaves its socket open means it to end well."""
        if self._state is OPEN:
            self._close(1000, "")
        elif self._state is HANDSHAKE or self._state is DENYING:
            path = self._head.path.decode("latin-1")
            ERRORS.error("The application returned without answering the WebSocket %s", path)
            self._application_failed()

    def _application_failed(self) -> None:
        if self._state is OPEN:
            self._close(1011, "")
        elif self._state is HANDSHAKE:
            self._refuse(Refusal(500, "Internal Server Error"))
        elif self._state is DENYING:
            self._transport.abort()

    # The worker's side

    def expire(self) -> None:
        """The deadline has passed: a ping is due or unanswered, or the client did not end the connection in time."""
        now = self._service.loop.time()
        if self._state is OPEN:
            self._expire_open(now)
        elif self._state is CLOSING:
            self._linger()
        elif self._state is LINGERING:
            unsent = self._transport.get_write_buffer_size()
            if unsent and unsent != self._unsent:  # a slow client still reads the last of its answer
                self._unsent = unsent
                self.deadline = now + LINGER_TIMEOUT
            else:
                self._transport.abort()

    def _expire_open(self, now: float) -> None:
        pulse = self._keep_alive.expire(now, deaf=self._reading_paused)
        self.deadline = self._keep_alive.deadline
        if pulse is Pulse.PING:
            self._transport.write(self._framing.ping())
        elif pulse is Pulse.DEAD:
            self._transport.write(self._framing.fail(1011, "keep-alive ping timeout"))
            self._tell_disconnect(1006, "")
            self._linger()

    def retire(self) -> None:
        """The worker retires: close at a random moment of the window that the configuration names.

        The one timer of its own that a connection has: the tick of a second would let the clients come back in bursts.
        """
        if self._retire_timer is not None or self._state is CLOSED:
            return
        service = self._service
        moment = closing_moment(service.config, service.loop.time(), service.retire_deadline)
        if moment != math.inf:
            self._retire_timer = service.loop.call_at(moment, self._retired)

    def _retired(self) -> None:
        self._retire_timer = None
        if self._state is OPEN:
            self._close(self._retire_code(), "")
        elif self._state is HANDSHAKE:
            self._retire_overdue = True

    def _retire_code(self) -> int:
        """RFC 6455 7.4.1 and the registry: going away for good, or a restart after which one may come back."""
        return 1001 if self._service.draining.reason == "stop" else 1012

    def cut(self) -> bool:
        """The hammer: say the close code if that takes no waiting, cancel the application, drop the connection."""
        if self._state is CLOSED:
            return False
        transport = self._transport
        unfinished = self._state in (HANDSHAKE, DENYING, OPEN)
        flushed = transport.get_write_buffer_size() == 0
        code = self._retire_code()
        if self._state is OPEN and flushed:
            transport.write(self._framing.close(code))
        if unfinished:
            self._tell_disconnect(code if self._state is OPEN else 1006, "")
            self._enter(LINGERING)
        self.deadline = self._service.loop.time()  # what cannot be flushed at once is aborted at the next tick
        if flushed:
            transport.close()
        else:
            transport.abort()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            unfinished = True
        return unfinished

    # Ending

    def _enter(self, state: State) -> None:
        assert state in TRANSITIONS[self._state], f"{self._state} -> {state}"
        self._state = state

    def _close(self, code: int, reason: str) -> None:
        """Begin the closing handshake (RFC 6455 7.1.2). Raises ValueError for a code or reason that cannot be sent."""
        self._transport.write(self._framing.close(code, reason))
        self._enter(CLOSING)
        self.deadline = self._service.loop.time() + CLOSE_TIMEOUT
        self._cancel_retirement()
        self._tell_disconnect(code, reason)
        self._resume_reading()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer the request with an HTTP error."""
        response, size = refusal.response(self._service.default_headers)
        self._count(refusal.status, size)
        self._transport.write(response)
        self._tell_disconnect(1006, "")
        self._linger()

    def _linger(self) -> None:
        """All is said: shut down our side and wait for the client's end (closing with unread bytes would reset)."""
        self._enter(LINGERING)
        self._cancel_retirement()
        self.deadline = self._service.loop.time() + LINGER_TIMEOUT
        self._resume_reading()
        transport = self._transport
        if transport.is_closing():
            return
        if transport.can_write_eof() and not self._eof:
            self._unsent = transport.get_write_buffer_size()
            transport.write_eof()
        else:
            transport.close()

    def _tell_disconnect(self, code: int, reason: str) -> None:
        """Let the application know, once, after the messages that came before."""
        if self._disconnect is None:
            self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._wake(self._receivers)

    def _cancel_retirement(self) -> None:
        if self._retire_timer is not None:
            self._retire_timer.cancel()
            self._retire_timer = None

    def _count(self, status: int, size: int) -> None:
        """Count and log the answer to the request; status 0: nobody has had a whole one."""
        self._answered = True
        service = self._service
        service.cells[REQUESTS] += 1
        if status:
            service.cells[STATUS_1XX + status // 100 - 1] += 1
        if service.access_log is not None:
            head = self._head
            seconds = service.loop.time() - self._started
            target = head.target.decode("latin-1")
            service.access_log.record(
                self._client, head.method, target, head.version, status or CLIENT_GONE, size, seconds, head.headers
            )

    # Waiting

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    async def _wait(self, waiters: list[asyncio.Future[None]]) -> None:
        """Wait until `_wake` is called on the list; the wait ends with the connection at the latest."""
        waiter: asyncio.Future[None] = self._service.loop.create_future()
        waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in waiters:
                waiters.remove(waiter)
            raise

    @staticmethod
    def _wake(waiters: list[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        waiters.clear()
