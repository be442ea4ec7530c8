"""The transport that one stream of an HTTP/2 connection is to a protocol above it, such as a WebSocket (RFC 8441).

It owns the translation: what the protocol writes is DATA, the end of its side is END_STREAM, an abort is
RST_STREAM(CANCEL), and so back (RFC 8441 5). Back-pressure is the stream's: the client's window grows by what was read,
so that a protocol that has paused reading holds at most a window of it, and the protocol is paused while more waits for
the client's window, or its turn, than it likes. Rules: a stream without the head of a response never ends as if it had
had one; what came before the end of the stream is still read; the protocol hears of the end once, and in a turn of the
loop of its own where it has asked for it. The socket is everybody's: nothing here reaches it. It must not know what is
written, nor how the connection flushes.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from typing import Any, Final, Protocol

from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http2.exchange import StreamConnection

WRITE_HIGH: Final = 64 * 1024
"""Bytes that wait for the client above which the protocol is paused; asyncio's own number for a socket."""


NOBODY: Final = asyncio.Protocol()
"""In place of a protocol that has been told of the end."""


class StreamCarrier(StreamConnection, Protocol):
    """The connection, as far as a stream's transport needs it."""

    transport: asyncio.Transport

    def leave_to_another(self) -> None:
        """The worker retires: tell the client to begin on another connection what it begins next."""


class StreamPhase(enum.Enum):
    """Where the stream is in its life, from this side."""

    UNANSWERED = "unanswered"  # the head of the response has not been sent
    OPEN = "open"
    ENDED = "ended"  # nothing is written any more, the client may go on
    CLOSING = "closing"  # nothing is read any more, what was written goes out
    OVER = "over"


UNANSWERED: Final = StreamPhase.UNANSWERED
OPEN: Final = StreamPhase.OPEN
ENDED: Final = StreamPhase.ENDED
CLOSING: Final = StreamPhase.CLOSING
OVER: Final = StreamPhase.OVER


class StreamTransport(asyncio.Transport):
    """Of one stream. `receive_…`, `drained` and `lose` are the connection's to call, the rest is the protocol's."""

    __slots__ = (
        "_carrier",
        "_client_ended",
        "_core",
        "_held",
        "_high",
        "_loop",
        "_phase",
        "_protocol",
        "_reading_paused",
        "_unread",
        "_writing_paused",
        "stream_id",
    )

    def __init__(self, carrier: StreamCarrier, stream_id: int, protocol: asyncio.Protocol) -> None:
        """`stream_id`: of a stream that has just begun. The caller calls the protocol's `connection_made`."""
        self._carrier = carrier
        self._core = carrier.core
        self.stream_id = stream_id
        self._protocol = protocol
        self._loop = carrier.worker.loop
        self._phase = UNANSWERED
        self._high = WRITE_HIGH
        self._writing_paused = False
        self._reading_paused = False
        self._held: deque[bytes] = deque()
        """What has come while reading was paused."""
        self._unread = 0
        """Bytes that the protocol has been given, and paused reading at."""
        self._client_ended = False

    # ---- what the connection says

    def receive_data(self, data: bytes) -> None:
        """Some bytes from the client."""
        if self._reading_paused or self._held:
            self._held.append(data)
        elif self._phase is not CLOSING and self._phase is not OVER:
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        size = len(data)
        self._unread += size
        self._carrier.worker.received -= size  # counted as it was on the wire; the protocol counts it again
        self._protocol.data_received(data)
        if not self._reading_paused:
            self._consume()

    def _consume(self) -> None:
        size, self._unread = self._unread, 0
        self._core.consumed(self.stream_id, size)

    def receive_end(self, trailers: list[Field]) -> None:
        """The client has ended its side; trailers say nothing to a protocol of bytes."""
        self._client_ended = True
        if not self._reading_paused and not self._held:
            self._end()

    def _end(self) -> None:
        if self._phase is not CLOSING and self._phase is not OVER and not self._protocol.eof_received():
            self.close()

    def receive_eof(self) -> None:
        """The client has shut down its side of the connection: this stream has no end, and nothing more comes."""
        self.receive_end([])

    def receive_reset(self) -> None:
        """The stream is over before its time."""
        self._lose(ConnectionResetError("the stream was reset"))

    def lose(self) -> None:
        """The connection is gone."""
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if self._phase is not OVER:  # else it has been told, or will be
            self._phase = OVER
            self._tell_lost(error)

    def _tell_lost(self, error: Exception | None) -> None:
        """Tell the protocol, behind what has come before it."""
        while self._held:
            self._deliver(self._held.popleft())
        protocol, self._protocol = self._protocol, NOBODY  # which refers to this: it is freed without the collector
        protocol.connection_lost(error)

    def drained(self) -> None:
        """Nothing waits to be sent any more."""
        if self._writing_paused:
            self._writing_paused = False
            if self._phase is not OVER:
                self._protocol.resume_writing()
        if self._phase is CLOSING:
            self._finish()

    # ---- a protocol that goes on in another worker

    def take_held(self) -> bytes:
        """What has come while reading was paused: it counts as given to the protocol, which goes on being paused."""
        held = b"".join(self._held)
        self._held.clear()
        self._unread += len(held)
        return held

    def to_json(self) -> list[int]:
        """What another worker's transport of this stream is to know, beside what was held."""
        return [self._unread, self._client_ended]

    def restore(self, values: list[int]) -> None:
        """Go on where another worker's has been: the head has been sent, and reading is paused.

        Raises TypeError or ValueError for what no `to_json` has given.
        """
        self._unread, ended = map(int, values)
        self._client_ended = bool(ended)
        self._phase = OPEN
        self._reading_paused = True

    def look_at_what_waits(self) -> None:
        """Pause the protocol if more waits for the client's window, from the worker before, than it likes."""
        if self._core.queued(self.stream_id) > self._high:
            self._writing_paused = True
            self._protocol.pause_writing()

    def gone(self) -> None:
        """The stream goes on in another worker: nothing is heard of it here any more."""
        self._phase = OVER
        self._held.clear()
        self._protocol = NOBODY

    # ---- reading

    def pause_reading(self) -> None:
        """Give the protocol nothing more for now: the client can send what its window has left."""
        self._reading_paused = True

    def resume_reading(self) -> None:
        """Go on, soon."""
        self._reading_paused = False
        if self._unread:
            self._consume()
            self._carrier.flush_soon()
        if self._held or self._client_ended:
            self._loop.call_soon(self._read_held)

    def is_reading(self) -> bool:
        """Whether what comes is given to the protocol."""
        return not self._reading_paused and not self.is_closing()

    def _read_held(self) -> None:
        while self._held and not self._reading_paused and not self.is_closing():
            self._deliver(self._held.popleft())
        self._carrier.flush_soon()
        if self._client_ended and not self._held and not self._reading_paused:
            self._end()

    # ---- writing

    def respond(self, fields: list[Field]) -> None:
        """Send the head of the response, `:status` first; what is written follows it."""
        if self._phase is UNANSWERED:
            self._phase = OPEN
            self._core.send_head(self.stream_id, fields, False)
            self._carrier.flush_soon()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send some bytes, as soon as the client's windows and the connection allow."""
        if self._phase is OPEN:
            self._carrier.worker.sent -= len(data)  # which the protocol has counted, as the connection will
            queued = self._core.send_data(self.stream_id, bytes(data), False)
            self._carrier.flush_soon()
            if queued > self._high and not self._writing_paused:
                self._writing_paused = True
                self._protocol.pause_writing()
        elif not self.is_closing():
            raise RuntimeError(f"nothing can be written to a stream that is {self._phase.value}")

    def write_eof(self) -> None:
        """End this side, behind what was written."""
        if self._phase is OPEN:
            self._phase = ENDED
            self._core.send_data(self.stream_id, b"", True)
            self._carrier.flush_soon()

    def can_write_eof(self) -> bool:
        """A stream has two sides."""
        return True

    def get_write_buffer_size(self) -> int:
        """Bytes that wait for the client's window or for their turn."""
        return self._core.queued(self.stream_id)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """What `set_write_buffer_limits` has set."""
        return 0, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The protocol is paused when more than `high` bytes wait, and goes on when none do."""
        self._high = WRITE_HIGH if high is None else high

    # ---- the end

    def close(self) -> None:
        """Read nothing more; end when everything is written."""
        if self._phase is UNANSWERED:
            self.abort()
        elif self._phase is OPEN or self._phase is ENDED:
            if self._phase is OPEN:
                self._core.send_data(self.stream_id, b"", True)
            self._phase = CLOSING
            self._held.clear()
            self._core.discard(self.stream_id)
            self._carrier.flush_soon()
            if not self._core.waits(self.stream_id):
                self._finish()

    def _finish(self) -> None:
        """Everything is sent, with its end; a client that has not ended need not go on (RFC 9113 8.1)."""
        self._over(ErrorCode.NO_ERROR)

    def abort(self) -> None:
        """End at once; what waits to be written is dropped."""
        if self._phase is not OVER:
            whole = self._phase in (ENDED, CLOSING) and not self._core.waits(self.stream_id)
            self._over(ErrorCode.NO_ERROR if whole else ErrorCode.CANCEL)

    def _over(self, code: ErrorCode) -> None:
        self._phase = OVER
        self._core.reset(self.stream_id, code)  # of a stream that both sides have ended this does nothing
        self._carrier.flush_soon()
        self._loop.call_soon(self._tell_lost, None)

    def is_closing(self) -> bool:
        """Whether nothing is read or written any more."""
        return self._phase is CLOSING or self._phase is OVER

    # ---- what there is to know

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The connection's, but for its socket: that is not this stream's alone."""
        return default if name == "socket" else self._carrier.transport.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who reads and writes here."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Somebody else does."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol
