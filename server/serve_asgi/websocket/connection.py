"""One WebSocket of a client: the shell around framing and handshake that talks to the transport, and its life.

It owns the state, the one deadline, and all that closes: the closing handshake, refusals, the keep-alive, a client that
does not read, the worker's retiring and its graceful timeout. The application's side is `serve_asgi.websocket.session`
(which sees the connection as `WebSocketPeer`), what waits for it is `incoming`, the request and its scope are
`request`; its states stand in `states`, timing in `keep_alive` and `closing`. It must not know how a connection became
a WebSocket (HTTP/1.1 gives the transport with the request's head, HTTP/2 a stream that is one to it) nor how the worker
retires.

Back-pressure: while more than `INCOMING_HIGH` bytes of messages wait for the application, no frame is read, nothing is
unpacked, nor is the socket read; `send` waits while the transport has too much to write. While it has, only the latest
pings are answered (RFC 6455 5.5.3). docs/guides/websocket.md tells applications and operators what they can rely on.
How it ends, and what each side is told of it, is in `serve_asgi.websocket.closing`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, cast

from serve_asgi.http.client_socket import hang_up
from serve_asgi.http.forwarded import Forwarded
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.request_head import Head
from serve_asgi.http.survival import Survival, is_running
from serve_asgi.http.survival_record import SurvivalRecord
from serve_asgi.http.underlying_tls import TlsDetails, tls_of
from serve_asgi.http.worker_context import WorkerContext
from serve_asgi.ipc.peer_address import Address
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.exceptions import exc_info
from serve_asgi.logs.server_log import about
from serve_asgi.websocket.application_call import call_application
from serve_asgi.websocket.closing import (
    CLOSE_TIMEOUT,
    FINISH_TIMEOUT,
    LINGER_BYTES,
    LINGER_TIMEOUT,
    PlannedClose,
    retire_code,
)
from serve_asgi.websocket.compression import Deflate
from serve_asgi.websocket.denial import Denial
from serve_asgi.websocket.frames import PING, control_frame
from serve_asgi.websocket.framing import End, MessageFraming, weigh
from serve_asgi.websocket.handshake import Handshake, HandshakeRefusal, offered_again, open_handshake
from serve_asgi.websocket.http1_life import Http1WebSocketLife
from serve_asgi.websocket.keep_alive import KeepAlive, PingVerdict
from serve_asgi.websocket.receive_queue import INCOMING_HIGH, INCOMING_LOW, ReceiveQueue, wake
from serve_asgi.websocket.request import WebSocketRequest
from serve_asgi.websocket.session import WebSocketPeer, WebSocketSession
from serve_asgi.websocket.states import (
    BETWEEN_LIVES,
    CLOSED,
    CLOSING,
    DENYING,
    FINISHING,
    HANDSHAKE,
    LEAVING,
    LINGERING,
    OPEN,
    PARTED,
    PARTING,
    RESUMING,
    TRANSITIONS,
    WebSocketState,
)
from serve_asgi.websocket.surviving import SurvivingWebSocket, begin_life
from serve_asgi.websocket.write_flow import WriteFlow

if TYPE_CHECKING:
    from serve_asgi.http.request_timeouts import RequestTimeouts

CONNECTIONS: Final = int(Cell.CONNECTIONS)
WEBSOCKETS: Final = int(Cell.WEBSOCKETS)
REFUSED: Final = int(Cell.REFUSED)
SURVIVED: Final = int(Cell.SURVIVED)


if sys.version_info >= (3, 12):

    def _start(worker: WorkerContext, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.Task(run, loop=worker.loop, context=worker.context.copy(), eager_start=True)
else:

    def _start(worker: WorkerContext, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return worker.loop.create_task(run, context=worker.context.copy())


class WebSocketConnection(WebSocketPeer, asyncio.Protocol):
    """A client connection whose request asked for a WebSocket; a `ClientConnection` to the worker.

    The caller has set it as the transport's protocol, has put it into `worker.connections` and counted it, calls
    `connection_made` and then `go_on` with the bytes that it had read beyond the head.
    """

    __slots__ = (
        "_accepted",
        "_denial",
        "_discarded",
        "_end",
        "_eof",
        "_keep_alive",
        "_planned_close",
        "_record",
        "_task",
        "_worker",
        "deadline",
        "early",
        "request",
        "trusted",
    )

    def __init__(
        self,
        worker: WorkerContext,
        head: Head,
        client: Address,
        server: Address,
        scheme: str = "http",
        forwarded: Forwarded | None = None,
        tls: TlsDetails | None = None,
        trusted: bool = False,
        record: SurvivalRecord | None = None,
    ) -> None:
        """`scheme` and `tls` are the connection's; `forwarded` is what trusted proxies say of the request.

        With a `record` it survives another worker, and goes on from there.
        """
        self._worker = worker
        self.request = WebSocketRequest(worker, head, client, server, scheme, forwarded, tls)
        self.set_deadline(math.inf)
        self.state = HANDSHAKE
        self._keep_alive: KeepAlive
        self._denial: Denial
        self._end: End
        """In FINISHING: how the client has ended, and the reply to it."""
        self._task: asyncio.Task[None] | None = None
        self.messages = ReceiveQueue()
        self._accepted = False
        self.early = b""
        """What came before the application has accepted, or is for the next life."""
        self.trusted = trusted
        self._record = record
        self.number = 0
        self.extensions: object = None
        self.surviving: SurvivingWebSocket | None = None
        self._discarded = 0
        self.output = WriteFlow(worker.loop)
        self.reading_paused = False
        self._planned_close = PlannedClose()
        self._eof = False
        """The client has shut down its side."""

    def _write(self, data: bytes) -> None:
        self._worker.sent += len(data)
        self.transport.write(data)

    def _respond(self, data: bytes) -> None:
        """Write what answers the request: the head of a response, as over HTTP/1.1, and then the body of a denial."""
        self._write(data)

    def set_deadline(self, deadline: float) -> None:
        """When `expire` is due (loop time, s), or infinity."""
        self.deadline = deadline

    def enter(self, state: WebSocketState) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state

    def has_ended(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.state in (CLOSING, LINGERING, CLOSED) or self.transport.is_closing()

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Judge the handshake and start the application."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.set_write_buffer_limits()
        worker = self._worker
        if self._record is not None:
            record, self._record = self._record, None
            self._arrive(record)
            return
        try:
            handshake = open_handshake(self.request.head, worker.config.ws_deflate)
        except HandshakeRefusal as refusal:
            worker.cells[REFUSED] += 1
            self.refuse(refusal)
            return
        if worker.retiring.is_set():  # the worker has told the connections that it retires before this one was there
            self.retire()
        self._call_application(handshake)

    def _call_application(self, handshake: Handshake) -> asyncio.Task[None] | None:
        """The task, unless it has ended at once."""
        worker = self._worker
        session = WebSocketSession(self, worker, self.request, handshake)
        task = _start(worker, call_application(worker, session))
        if task.done():
            return None
        self._task = session.task = task
        worker.tasks.add(task)
        task.add_done_callback(worker.tasks.discard)
        return task

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        worker = self._worker
        worker.received += len(data)
        if worker.published[0] > worker.shared.applied:  # as before a request
            worker.catch_up()
        if self.state is OPEN:
            self._keep_alive.heard = True
            message = self.framing.single(data)
            if message is None:
                self._receive_frames(data)
            else:
                messages = self.messages
                messages.queue.append(message)
                if messages.waiters:  # it is taken at once, and not counted
                    wake(messages.waiters)
                else:
                    messages.size += weigh(message)
                    if messages.size > INCOMING_HIGH:
                        self.pause_reading()
        else:
            self.go_on(data)

    def go_on(self, data: bytes) -> None:
        """Bytes from the client that have been counted: those that came with its request have been."""
        state = self.state
        if state is OPEN or state is CLOSING:
            self._receive_frames(data)
        elif state is HANDSHAKE or state in BETWEEN_LIVES:  # a client may trust in our response, and send early
            self.early += data
            if len(self.early) > INCOMING_HIGH:
                self.pause_reading()
        else:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.transport.abort()

    def _receive_frames(self, data: bytes, asked: bool = False, answering: bool = False) -> None:
        """Read frames while there is room for messages; if the application has `asked`, until there is one.

        `answering`: it is just being given a message, which it may answer before the client's end is.
        """
        framing, messages, state = self.framing, self.messages, self.state
        incoming = messages.queue
        if (messages.waiters and not incoming) or state is CLOSING:
            asked = True
        room = INCOMING_HIGH - messages.size
        events = framing.receive(data, room, asked)
        messages.behind = framing.behind
        if framing.pongs and state is not CLOSED:
            output = framing.output
            if self.output.paused and not (events and isinstance(events[-1], End)):
                self.output.pongs = output
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
            messages.size = INCOMING_HIGH - framing.room
        if incoming and messages.waiters:
            messages.wake()
        if (messages.behind or messages.size > INCOMING_HIGH) and self.state is OPEN:
            self.pause_reading()
        elif messages.behind and self.state is CLOSING:  # these are messages that nobody gets
            self._worker.loop.call_soon(self._seek_end)

    def _seek_end(self) -> None:
        if self.state is CLOSING and self.messages.behind:
            self._receive_frames(b"")

    def read_behind(self) -> None:
        """Read frames of what has come and was not read yet, until there is a message."""
        self._receive_frames(b"", asked=True)

    def go_on_reading(self) -> None:
        """The application has taken messages: there is room for more."""
        messages = self.messages
        if messages.behind:
            self._receive_frames(b"", asked=False, answering=True)
        caught_up = not messages.behind and messages.size <= INCOMING_LOW
        if self.reading_paused and caught_up and self.state is OPEN:
            self._resume_reading()

    def eof_received(self) -> bool:
        """The client has shut down its side: a WebSocket is over with that; what is owed to it is still said."""
        self._eof = True
        if self.state is DENYING or self.state is FINISHING or self.state in BETWEEN_LIVES:
            return True
        self.messages.tell_disconnect(1006, "")
        if self.state is not LINGERING and self.state is not CLOSED:
            self.enter(LINGERING)
            self.set_deadline(self._worker.loop.time() + min(LINGER_TIMEOUT, self._worker.most_linger))
        return False  # the transport writes what it has and closes

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by either side."""
        if self.state is CLOSED:  # handed over: a duplicate lives elsewhere
            return
        hang_up(self.transport)
        if not self.request.answered:
            self.request.count(0, self._denial.sent if self.state is DENYING else 0)
        if self.state is FINISHING:
            self.messages.tell_disconnect(self._end.code, self._end.reason)
        elif self.state is not OPEN:
            self.messages.behind = False  # the application has been told of the end, and gets nothing behind it
        self.enter(CLOSED)
        self.set_deadline(math.inf)
        self._planned_close.cancel()
        if self.surviving is not None:
            self.surviving.cancel()
        self.messages.tell_disconnect(1006, "")
        self.output.wake()
        if self._accepted:
            self.request.count_ended()
        self.forget()

    def pause_writing(self) -> None:
        """The transport has more to write than it likes."""
        output = self.output
        output.paused = True
        if self.state in (OPEN, DENYING, RESUMING, PARTING, PARTED):
            output.watch(self.transport, self._worker.loop.time() + self._worker.config.write_timeout)
            self.set_deadline(min(self.deadline, output.deadline))

    def resume_writing(self) -> None:
        """The transport has caught up."""
        output = self.output
        output.paused = False
        if output.pongs and self.state in (RESUMING, OPEN, PARTING, PARTED, CLOSING):
            pongs, output.pongs = output.pongs, b""
            self._write(pongs)
            if output.paused:  # the pongs have filled it again
                return
        if self.state is OPEN:
            self.set_deadline(self._keep_alive.deadline)
        elif self.state in (DENYING, RESUMING, PARTING, PARTED):
            self.set_deadline(math.inf)
        output.caught_up()
        if self.state is PARTED and self.surviving is not None:
            self._worker.loop.call_soon(self.surviving.depart)

    async def writable(self) -> None:
        """Wait until the transport has caught up, or the life ends. The client's end of it is `--write-timeout`."""
        while self.output.paused and self.state is not CLOSED and self.state is not PARTING:
            await self.output.wait()

    # The answer to the handshake

    def accept(self, response: bytes, deflate: Deflate | None) -> None:
        """The WebSocket is open with this response."""
        worker = self._worker
        self.framing = MessageFraming(deflate, worker.config.ws_max_size)
        if self.surviving is not None:
            self.framing.keep()
        self.enter(OPEN)
        self._accepted = True
        worker.cells[WEBSOCKETS] += 1
        self.request.count_opened(int(response[9:12]))
        self._respond(response)
        self._open()

    def _open(self) -> None:
        """Read what the client sends, and has sent already."""
        self._keep_alive = KeepAlive(self._worker.config, self._worker.loop.time())
        self.set_deadline(min(self.output.deadline, self._keep_alive.deadline))
        if self.early:
            early, self.early = self.early, b""
            self._receive_frames(early)
        messages = self.messages
        if self.state is OPEN and not messages.behind and messages.size <= INCOMING_HIGH:
            self._resume_reading()
        if self.surviving is not None:
            self.surviving.opened()
        if self._planned_close.overdue:
            self._retired()

    def begin_denial(self, denial: Denial) -> None:
        """The application begins an HTTP response instead."""
        self._denial = denial
        self.enter(DENYING)

    def deny(self, denial: Denial, data: bytes) -> None:
        """A piece of that response, perhaps its last."""
        self._respond(data)
        if denial.done:
            if denial.dropped:
                self._worker.dropped_bodies.report(self.request.head, denial.status)
            self.request.count(denial.status, denial.sent)
            self.messages.tell_disconnect(1006, "")
            self._linger()

    # Deadlines

    def end_overdue(self, timeouts: RequestTimeouts) -> None:
        """There is none."""

    def asked_at(self) -> float:
        """A WebSocket has no request that could be blocked."""
        return math.inf

    def expire(self) -> None:
        """The deadline has passed: a ping is due or unanswered, or the client did not end the connection in time."""
        now = self._worker.loop.time()
        state = self.state
        if state is OPEN:
            if not self._is_stalled(now):
                self._expire_open(now)
        elif state in (DENYING, RESUMING, PARTING, PARTED):
            if not self._is_stalled(now):
                self.set_deadline(self.output.deadline)
        elif state is FINISHING:
            self.finish()
        elif state is CLOSING:
            self._linger()
        elif state is LINGERING:
            if self.output.has_changed(self.transport):  # a slow client still reads the last of what was written
                self.set_deadline(now + min(LINGER_TIMEOUT, self._worker.most_linger))
            else:
                self.transport.abort()

    def _expire_open(self, now: float) -> None:
        keep_alive, output = self._keep_alive, self.output
        pulse = PingVerdict.REST
        if now >= keep_alive.deadline:
            behind = output.is_behind(self.transport)  # a slow client still takes what was written before the ping
            pulse = keep_alive.expire(now, deaf=self.reading_paused or behind, mute=output.paused)
        self.set_deadline(min(output.deadline, keep_alive.deadline))
        if pulse is PingVerdict.PING:
            self._write(control_frame(PING, b""))
        elif pulse is PingVerdict.DEAD:
            self._write(self.framing.fail(1011, "keep-alive ping timeout"))
            self.messages.tell_disconnect(1006, "")
            self._linger()

    def _is_stalled(self, now: float) -> bool:
        """Whether the client has taken nothing of what is written to it for too long; then it is cut."""
        if not self.output.is_stalled(self.transport, now, self._worker.config.write_timeout):
            return False
        self.transport.abort()
        self.messages.tell_disconnect(1006, "")
        return True

    # Ending

    def _client_ends(self, end: End, unread: bool) -> None:
        """The client has closed, or has broken a rule. `unread`: earlier messages still wait for the application."""
        self._end = end
        if unread:
            self.enter(FINISHING)
            self._planned_close.cancel()
            self.set_deadline(self._worker.loop.time() + FINISH_TIMEOUT)
            self.pause_reading()
        else:
            self.finish()

    def finish(self) -> None:
        """Answer the client's end."""
        end = self._end
        if end.reply and not self.transport.is_closing():
            self._write(end.reply)
        self.messages.tell_disconnect(end.code, end.reason)
        self._linger()

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake (RFC 6455 7.1.2), or end it if the client has begun.

        Raises ValueError for a code or reason that cannot be sent.
        """
        frame = self.framing.close(code, reason)
        if self.state is FINISHING:
            self.finish()
            return
        self._write(frame)
        self.enter(CLOSING)
        self.set_deadline(self._worker.loop.time() + CLOSE_TIMEOUT)
        self._planned_close.cancel()
        self.messages.tell_disconnect(code, reason)
        self._resume_reading()
        if self.early:
            early, self.early = self.early, b""
            self._receive_frames(early)
        if self.framing.behind:
            self._worker.loop.call_soon(self._seek_end)
        if self._eof and self.state is CLOSING:  # it ended while nothing was read, and answers no more
            self._linger()

    def refuse(self, refusal: HandshakeRefusal) -> None:
        """Answer the request with an HTTP error."""
        response, size = refusal.response(self._worker.default_headers)
        self.request.count(refusal.status, size)
        self._respond(response)
        self.messages.tell_disconnect(1006, "")
        self._linger()

    def application_failed(self) -> None:
        try:
            if self.state is OPEN or self.state is FINISHING:
                self.close(1011, "")
            elif self.state is HANDSHAKE:
                self.refuse(HandshakeRefusal(500, "Internal Server Error"))
            elif self.state is DENYING:
                self.transport.abort()
            elif self.state in BETWEEN_LIVES and self.surviving is not None:
                self.surviving.fail("its application failed")
        except BaseException as error:
            self.transport.abort()
            text = "a WebSocket could not be ended, and its connection was closed; please report this"
            logging.getLogger("serve").error(text, exc_info=exc_info(error), extra=about("internal_error"))

    def _linger(self) -> None:
        """Nothing more to say: shut down our side, await the client's end (closing with unread bytes would reset)."""
        self.enter(LINGERING)
        self._planned_close.cancel()
        self.set_deadline(self._worker.loop.time() + min(LINGER_TIMEOUT, self._worker.most_linger))
        self._resume_reading()
        transport = self.transport
        if transport.is_closing():
            return
        if transport.can_write_eof() and not self._eof:
            self.output.look(transport)
            transport.write_eof()
        else:
            transport.close()

    # The worker's side

    def retire(self) -> None:
        """The worker retires: survive, or close at a random moment of the window that the configuration names."""
        surviving = self.surviving
        if surviving is not None and (surviving.leaves or self.state in (PARTING, PARTED)):
            self._planned_close.call_off()
            surviving.retire()
        elif self.state in (HANDSHAKE, DENYING, RESUMING, OPEN):
            if surviving is not None:
                surviving.cancel()
            self._planned_close.plan(self._worker, self._retired)

    def resume(self) -> None:
        """The worker serves again: the close that was planned is off."""
        self._planned_close.call_off()
        if self.surviving is not None:
            self.surviving.resume()

    def _retired(self) -> None:
        if self.surviving is not None and self.surviving.leaves:  # it has been asked for meanwhile
            self.retire()
        elif self.state is OPEN:
            if self.surviving is not None:
                self.surviving.count_end("no worker takes it")
            self.close(retire_code(self._worker.retiring.reason), "")

    def cut(self) -> bool:
        """At the graceful timeout: send a close frame if nothing waits, cancel the application, cut the connection."""
        state = self.state
        if state is CLOSED or state is LEAVING:
            return False
        transport = self.transport
        unfinished = state not in (CLOSING, LINGERING)
        flushed = transport.get_write_buffer_size() == 0
        code = 1006
        last_words = b""
        if state in (RESUMING, OPEN, PARTING, PARTED):
            code = retire_code(self._worker.retiring.reason)
            last_words = self.framing.close(code)
            if self.surviving is not None:
                self.surviving.count_end("it had not been handed over within --graceful-timeout")
        elif state is FINISHING:
            code, last_words = self._end.code, self._end.reply
        if flushed and last_words:
            self._write(last_words)
        if unfinished:
            self.messages.tell_disconnect(code, "")
            self.enter(LINGERING)
        self.set_deadline(self._worker.loop.time())  # what cannot be flushed at once is aborted at the next tick
        if flushed:
            transport.close()
        else:
            transport.abort()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            unfinished = True
        return unfinished

    def let_go(self, instead: Any) -> asyncio.Transport:
        """In a forked child: see `serve_asgi.http.worker_context.ClientConnection`."""
        transport, self.transport = self.transport, instead
        return transport

    # Survival: see `serve_asgi.websocket.surviving`, `serve_asgi.websocket.http1_life`

    def life(self, record: SurvivalRecord | None, state: object = None) -> SurvivingWebSocket:
        """A life of it; `record` and `state` are of the one before, if there was one."""
        return Http1WebSocketLife(self, self._worker, record, state)

    def survive(self) -> SurvivingWebSocket:
        """The application speaks of survival."""
        if self.surviving is None:
            self.surviving = self.life(None)
            if self.state is OPEN:
                self.framing.keep()
        if self._worker.retiring.is_set():
            self._worker.loop.call_soon_threadsafe(self.retire)
        return self.surviving

    def opt_in(self, extensions: object, version: int | None) -> Survival | None:
        """See `serve_asgi.http.survival.SurvivableConnection`."""
        tls = tls_of(self.transport)
        if extensions is not self.extensions or (tls is not None and tls.stays()):
            return None
        return self.survive().survival.opt_in(version)

    def refuse_life(self, reason: str) -> None:
        """The application of this life cannot go on: the client gets the ordinary end."""
        if not is_running(self._worker.loop):
            self._worker.loop.call_soon_threadsafe(self.refuse_life, reason)
        elif self.state in (RESUMING, OPEN, PARTING):
            self.survive().fail(reason or "its application refused to go on")

    def begin_life(self, survival: SurvivingWebSocket) -> None:
        """Call the application again, for what another life of it has accepted.

        Not in `connection_made`: uvloop begins to read after it, whatever it has said.
        """
        self.surviving = survival
        self.extensions = None
        self._accepted = self.request.answered = True
        self.request.status = 101
        self.set_deadline(self.output.deadline)
        self._worker.loop.call_soon(self._call_again, survival)

    def _call_again(self, survival: SurvivingWebSocket) -> None:
        if self.state is RESUMING and self.surviving is survival:  # the client has not gone meanwhile
            self._worker.cells[SURVIVED] += 1
            self._call_application(offered_again(self.request.head))

    def resume_life(self) -> None:
        """The application has accepted what is open already."""
        self.enter(OPEN)
        self.framing.keep()
        self._open()
        if self._eof and self.state is OPEN and not self.eof_received():
            self.transport.close()

    def _arrive(self, record: SurvivalRecord) -> None:
        """Attached in the worker of the next life."""
        worker = self._worker
        worker.connections.add(self)
        self.number = worker.number(self)
        worker.cells[CONNECTIONS] += 1
        worker.cells[WEBSOCKETS] += 1
        begin_life(self, worker, record)
        if worker.retiring.is_set():
            self.retire()

    def forget(self) -> None:
        """The worker has one connection less."""
        worker = self._worker
        worker.cells[CONNECTIONS] -= 1
        if self._accepted:
            worker.cells[WEBSOCKETS] -= 1
        worker.numbered.pop(self.number, None)
        self.surviving = None  # which refers to this
        worker.forget(self)

    # Reading

    def pause_reading(self) -> None:
        """Read nothing of the client for now."""
        if not self.reading_paused and not self.transport.is_closing():
            self.reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self.reading_paused:
            self.reading_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()


def next_life(
    worker: WorkerContext, record: HandOverRecord, survival: SurvivalRecord, tls: TlsDetails | None
) -> WebSocketConnection:
    """A WebSocket that survives another worker, to be attached to its transport."""
    head = worker.read_again(survival.head)
    trusted = worker.forwarding.trusts(record.client) if record.trusted is None else record.trusted
    forwarded = worker.forwarding.understand(head.headers, record.client) if trusted else None
    return WebSocketConnection(
        worker, head, record.client, record.server, record.scheme, forwarded, tls, trusted, survival
    )
