"""One HTTP/2 connection from the server's side (RFC 9113): bytes in, events out, and the reverse. Pure.

It is what a connection's shell speaks to. It joins what the client says (`serve_asgi.http.h2.receiving`) with what the
server says (`serve_asgi.http.h2.sending`), and owns how a connection leaves: by GOAWAY in two steps, or, held still
until nothing is in progress, as a value to another process (`serve_asgi.http.h2.connection_value`). It must not know
sockets, the loop, ASGI or what a response means.

The shell's duties: give `receive` all that comes; answer each `StreamRequest` and `StreamRefusal`; tell `consumed` and
`done`; write what `take_output` gives once per turn of the loop, and while the transport takes nothing neither take
output nor, once `unwritten` is large, read; end the connection once `lost` is set and the output is written. A stream
may be gone whenever the shell speaks of it: then nothing happens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode
from serve_asgi.http.h2.events import ConnectionLost, Event
from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.h2.limits import CONNECTION_WINDOW, MAX_STREAMS, STREAM_WINDOW
from serve_asgi.http.h2.receiving import SHUTDOWN_PING, FrameReceiver, Leaving
from serve_asgi.http.h2.settings import DEFAULT_WINDOW, server_settings
from serve_asgi.http.request_head import Head

ROOM: Final = 256 * 1024
"""Bytes that one turn of the loop writes at most, beside what does not wait."""


class ConnectionCore:
    """One connection."""

    __slots__ = ("_open", "_sender", "_streams", "receive", "receiver")

    def __init__(
        self,
        max_head_size: int,
        check: Callable[[Head], None],
        max_streams: int = MAX_STREAMS,
        clock: Callable[[], float] = time.monotonic,
        at_once: float = math.inf,
    ) -> None:
        """`max_head_size`: bytes of a request head; `check` raises BadRequest for one that other limits refuse.

        `max_streams`: requests in progress at once. `clock`: a monotonic time (s). `at_once`: requests that one
        `receive` begins at most; while there is `more`, give it b"", in another turn of the loop.
        """
        self.receiver = FrameReceiver(max_head_size, check, max_streams, clock)
        self.receiver.at_once = at_once
        self.receive: Callable[[bytes], list[Event]] = self.receiver.receive
        """Take bytes from the client; return what has happened, in its order."""
        self._sender = self.receiver.sender
        self._open = self.receiver.streams
        self._streams = self._open.by_id

    def begin(self, max_head_size: int, max_streams: int = MAX_STREAMS) -> None:
        """Say what a server says first (RFC 9113 3.4); not on a connection that has come from another process."""
        said = server_settings(max_streams, STREAM_WINDOW, max_head_size)
        self._sender.write(frames.settings_frame(said))
        self._sender.write(frames.window_update_frame(0, CONNECTION_WINDOW - DEFAULT_WINDOW))

    # ---- responses

    def send_interim(self, stream_id: int, fields: list[Field]) -> None:
        """The head of an interim response: 100, 103."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.responded:
            self._sender.write_headers(stream, fields, False)

    def send_head(self, stream_id: int, fields: list[Field], ended: bool) -> None:
        """The head of the response, `:status` first; `ended`: it has no body and no trailers."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.responded = True
            self._sender.write_headers(stream, fields, ended)
            if self._sender.closed:
                self._open.close_sent()

    def send_data(self, stream_id: int, data: bytes, ended: bool) -> int:
        """Some of the response's body. Returns how many bytes of it wait: more than a little, and the application is to
        wait until the stream is in `take_drained`."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return 0
        self._sender.write_data(stream, data, ended)
        if self._sender.closed:
            self._open.close_sent()
        return stream.queued

    def send_response(self, stream_id: int, fields: list[Field], body: bytes) -> int:
        """A whole response: `send_head` and the only `send_data`, in half the time. Returns as the latter."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return 0
        stream.responded = True
        self._sender.write_response(stream, fields, body)
        if self._sender.closed:
            self._open.close_sent()
        return stream.queued

    def send_trailers(self, stream_id: int, fields: list[Field]) -> None:
        """The end of the response, behind its body."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._sender.write_trailers(stream, fields)
            if self._sender.closed:
                self._open.close_sent()

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream before its time; no event follows.

        With NO_ERROR behind a whole response: the rest of the request's body is not wanted (RFC 9113 8.1).
        """
        if stream_id in self._streams:
            self._open.reset(stream_id, code)

    def take_resets(self) -> int:
        """RST_STREAM frames that were sent since the last call."""
        resets, self._open.resets = self._open.resets, 0
        return resets

    def take_up(self, stream_id: int) -> None:
        """Somebody works for an open stream again, after its last `done`."""
        if stream_id in self._streams:
            self._open.busy.add(stream_id)

    def done(self, stream_id: int) -> None:
        """Nobody works for the stream any more: it stops counting, once it is closed."""
        self._open.busy.discard(stream_id)

    # ---- requests' bodies

    def consumed(self, stream_id: int, size: int) -> None:
        """So much of what came as `StreamData` was taken: the client may send as much again."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.discarding:
            self._open.consume(stream, size)

    def discard(self, stream_id: int) -> None:
        """Nobody takes the stream's body any more: what waits and what still comes counts as taken."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.discarding:
            stream.discarding = True
            if stream.receive_window is not None:
                self._open.consume(stream, stream.receive_window.waiting)

    # ---- output

    def take_output(self, room: int = ROOM) -> bytes:
        """What is to be written now; DATA is added by priority until it is `room` bytes. Look at `lost` afterwards."""
        try:
            output = self._sender.take(room)
        except ConnectionFault as fault:
            self.receiver.lose(fault)
            return self._sender.take(0)
        if self._sender.closed:
            self._open.close_sent()
        return output

    def take_drained(self) -> list[int]:
        """Streams of whose bodies nothing waits any more, since the last call."""
        drained, self._sender.drained = self._sender.drained, []
        return drained

    @property
    def waiting(self) -> bool:
        """Whether `take_output` would give something."""
        return self._sender.waiting

    @property
    def unwritten(self) -> int:
        """Bytes that were said and not taken, beside bodies that wait for a window or their turn."""
        return self._sender.size

    # ---- what is asked of a stream

    def open_streams(self) -> list[int]:
        """Those on which either side may still send."""
        return list(self._streams)

    def is_open(self, stream_id: int) -> bool:
        """Whether either side may still send on it."""
        return stream_id in self._streams

    def waits(self, stream_id: int) -> bool:
        """Whether some of its response's body waits for a window or its turn."""
        stream = self._streams.get(stream_id)
        return stream is not None and stream.queued > 0

    def queued(self, stream_id: int) -> int:
        """Bytes of its response's body that wait so."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.queued

    def progress(self, stream_id: int) -> int:
        """A number from 0 that stays the same while some of the body `waits` and the client takes nothing.

        What waits with an open window of its own waits for the connection's, or for its turn behind what is more urgent
        (RFC 9218 4.1): as long as the client takes anything, it is not the client that is to blame.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return 0
        return stream.sent if stream.send_window <= 0 else self._sender.granted - self._sender.window

    def may_receive(self, stream_id: int) -> bool:
        """Whether the windows allow the client to send more of its request's body."""
        stream = self._streams.get(stream_id)
        window = None if stream is None else stream.receive_window
        return window is not None and window.left > 0 and self._open.window.left > 0

    # ---- the connection's end

    @property
    def lost(self) -> ConnectionLost | None:
        """Set when the client has broken the protocol or a limit: write what there is, and close."""
        return self.receiver.lost

    @property
    def settled(self) -> bool:
        """Whether the client has begun as it must: with the preface and SETTINGS."""
        return self.receiver.settled

    @property
    def more(self) -> bool:
        """Whether `receive` has left some of what has come for its next call."""
        return self.receiver.more

    @property
    def in_the_middle(self) -> bool:
        """Whether the client's beginning, a frame, or a header block, has begun to come and is not whole."""
        receiver = self.receiver
        return bool(receiver.frames.rest) or receiver.blocks.stream_id != 0 or not receiver.settled

    @property
    def requests(self) -> int:
        """Requests that the client has begun, also with other processes before."""
        return self.receiver.requests

    @property
    def resting(self) -> bool:
        """Whether no stream is open. (Who works on for one that has ended needs no connection for that.)"""
        return not self._streams

    def announce_shutdown(self) -> None:
        """The first step (RFC 9113 6.8): GOAWAY without a last stream, and PING. What comes is still served; the PING's
        answer, or the shell's patience by `finish_shutdown`, brings the second step."""
        if self.receiver.leaving is Leaving.NO and self.lost is None:
            self.receiver.leaving = Leaving.ANNOUNCED
            self._sender.write(frames.go_away_frame(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR, ""))
            self._sender.write(frames.ping_frame(SHUTDOWN_PING, False))

    def finish_shutdown(self) -> None:
        """The second step: GOAWAY with the last stream that is served. Once `resting`, the connection can be closed."""
        if self.receiver.leaving is not Leaving.FINAL and self.lost is None:
            self.receiver.leave()

    @property
    def shutting_down(self) -> Leaving:
        """How far that has come."""
        return self.receiver.leaving

    def abandon(self) -> None:
        """The client is gone, or told of the end: no stream is open any more, and nothing waits."""
        self._open.lose()

    def hold(self) -> None:
        """Leave aside, undecoded, what begins new requests, so that the connection can leave once it is `resting`.

        If more comes than may wait, it goes on by itself, and `holding` says no. Trailers of a stream in progress have
        what came before them happen, and it holds on.
        """
        if self.receiver.held is None and self.lost is None:
            self.receiver.hold()

    def release(self) -> list[Event]:
        """Go on after `hold`: what was left aside has happened now."""
        return self.receiver.release()

    @property
    def holding(self) -> bool:
        """Whether what begins new requests is left aside."""
        return self.receiver.held is not None
