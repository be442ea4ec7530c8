"""What the server says on one connection: frames in their order, DATA as windows and priorities allow. Pure.

It owns the output that has not been taken, the bodies that wait for a window or for their turn, our header table and
the windows in which we may send (RFC 9113 5.2, 6.9). Rules: header blocks go out in the order in which they were
encoded, which is when they are given; DATA of a small response follows its head at once while little waits, so that
both go out in one record; everything else waits in its stream and is taken by priority when the transport has room, so
that what is not urgent never lies before what is. It must not know what a client sends, nor ASGI.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from serve_asgi.http.h2.flow_control import widened
from serve_asgi.http.h2.frames import DATA, END_HEADERS, END_STREAM, HEAD, HEAD_SIZE, HEADERS, header_frames
from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.h2.header_encoder import HeaderEncoder
from serve_asgi.http.h2.limits import CRUMB, FloodKind, Floods
from serve_asgi.http.h2.priorities import DataScheduler, StreamPriority
from serve_asgi.http.h2.settings import DEFAULT_WINDOW, ClientSettings
from serve_asgi.http.h2.streams import CLOSED, Stream, StreamStep

AT_ONCE: Final = 64 * 1024
"""While less waits to be taken than this, a body that fits one frame is not scheduled."""
MAX_FRAME: Final = 16384
"""Bytes of a DATA frame, also where the client takes larger ones: the turns of other streams come between them."""

_AT_ONCE: Final = AT_ONCE
_MAX_FRAME: Final = MAX_FRAME
_SEND_HEADERS: Final = StreamStep.SEND_HEADERS
_SEND_DATA: Final = StreamStep.SEND_DATA
_SEND_END: Final = StreamStep.SEND_END


class FrameSender:
    """Of one connection."""

    __slots__ = (
        "_floods",
        "_output",
        "_scheduled",
        "_scheduler",
        "_settings",
        "_size",
        "_streams",
        "closed",
        "drained",
        "encoder",
        "granted",
        "window",
    )

    def __init__(self, streams: dict[int, Stream], settings: ClientSettings, floods: Floods) -> None:
        """`streams`: those that are not closed; one that this side ends for good is taken out."""
        self._streams = streams
        self._settings = settings
        self._floods = floods
        self._scheduler = DataScheduler()
        self._scheduled = self._scheduler.places
        self._output: list[bytes | memoryview] = []
        self._size = 0
        self.encoder = HeaderEncoder()
        self.window = DEFAULT_WINDOW
        """What we may send on the connection,"""
        self.granted = DEFAULT_WINDOW
        """and what the client has granted in all."""
        self.closed: list[Stream] = []
        """Streams with a request's body that have ended with what was sent, since somebody last emptied this."""
        self.drained: list[int] = []
        """Streams of which everything that had to wait has gone out, since somebody last emptied this."""

    # ---- frames that do not wait

    def write(self, frame: bytes) -> None:
        """A frame that is no stream's DATA."""
        self._output.append(frame)
        self._size += len(frame)

    def write_headers(self, stream: Stream, fields: list[Field], ended: bool) -> None:
        """A block of fields: an interim response's, the final one's, or trailers'."""
        stream.step(_SEND_END if ended else _SEND_HEADERS)
        block = self.encoder.encode(fields)
        size = len(block)
        if size <= self._settings.max_frame_size:
            flags = END_HEADERS | END_STREAM if ended else END_HEADERS
            self._output += (HEAD.pack(size << 8 | HEADERS, flags, stream.id), block)
        else:
            self._output += header_frames(stream.id, block, ended, self._settings.max_frame_size)
        self._size += size + HEAD_SIZE
        if ended and stream.state is CLOSED:
            self._close(stream)

    def _close(self, stream: Stream) -> None:
        """It has ended in both directions."""
        del self._streams[stream.id]
        if stream.receive_window is not None:
            self.closed.append(stream)

    # ---- DATA

    def write_data(self, stream: Stream, data: bytes, ended: bool) -> None:
        """Some of a body. It goes out as soon as windows, priorities and the transport allow."""
        size = len(data)
        if not stream.queued and (
            not size  # needs no window (RFC 9113 6.9)
            or (
                size <= _MAX_FRAME
                and size <= stream.send_window
                and size <= self.window
                and self._size < _AT_ONCE
                and not self._scheduled
            )
        ):
            if size or ended:
                self._put(stream, data, ended)
            return
        if stream.pieces is None:
            stream.pieces = deque()
        if size:
            stream.pieces.append(data if size <= _MAX_FRAME else memoryview(data))
            stream.queued += size
        stream.end_queued = ended
        self._schedule(stream)

    def write_response(self, stream: Stream, fields: list[Field], body: bytes) -> None:
        """A whole response: what `write_headers` and `write_data` do one after the other."""
        size = len(body)
        if (
            not size
            or size > _MAX_FRAME
            or size > stream.send_window
            or size > self.window
            or self._size >= _AT_ONCE
            or self._scheduled
        ):
            self.write_headers(stream, fields, not size)
            if size:
                self.write_data(stream, body, True)
            return
        stream.step(_SEND_END)
        block = self.encoder.encode(fields)
        block_size = len(block)
        stream_id = stream.id
        if block_size <= self._settings.max_frame_size:
            self._output += (
                HEAD.pack(block_size << 8 | HEADERS, END_HEADERS, stream_id),
                block,
                HEAD.pack(size << 8 | DATA, END_STREAM, stream_id),
                body,
            )
        else:
            self._output += header_frames(stream_id, block, False, self._settings.max_frame_size)
            self._output += (HEAD.pack(size << 8 | DATA, END_STREAM, stream_id), body)
        self._size += block_size + size + 2 * HEAD_SIZE
        stream.send_window -= size
        stream.sent = size
        self.window -= size
        self._floods.useful += 1
        if stream.state is CLOSED:
            self._close(stream)

    def write_trailers(self, stream: Stream, fields: list[Field]) -> None:
        """The end of a response, behind all of its body."""
        if stream.queued:
            stream.end_queued = True
            stream.trailers = fields
        else:
            self.write_headers(stream, fields, True)

    def _put(self, stream: Stream, data: bytes | memoryview, ended: bool) -> None:
        """One DATA frame."""
        stream.step(_SEND_END if ended else _SEND_DATA)
        size = len(data)
        self._output += (HEAD.pack(size << 8 | DATA, END_STREAM if ended else 0, stream.id), data)
        self._size += size + HEAD_SIZE
        stream.send_window -= size
        stream.sent += size
        self.window -= size
        self._floods.useful += 1
        if ended and stream.state is CLOSED:
            self._close(stream)

    def _schedule(self, stream: Stream) -> None:
        if stream.queued and stream.send_window > 0:
            self._scheduler.add(stream.id, StreamPriority(stream.urgency, stream.incremental))
        else:
            self._scheduler.remove(stream.id)

    def reschedule(self, stream: Stream) -> None:
        """Its window or its priority has changed."""
        if stream.pieces is not None:
            self._schedule(stream)

    def take(self, room: int) -> bytes:
        """What is to be written now: all frames that do not wait, and DATA by priority until it is `room` bytes.

        Raises ConnectionFault if the client makes DATA frames tiny.
        """
        if self._scheduled:
            self._take_data(room)
        output, self._output = self._output, []
        self._size = 0
        return b"".join(output)

    def _take_data(self, room: int) -> None:
        scheduler, scheduled, streams = self._scheduler, self._scheduled, self._streams
        while scheduled and self._size < room:
            stream = streams[scheduler.next()]
            most = min(stream.queued, stream.send_window, self.window, _MAX_FRAME)
            if most <= 0:
                return  # the connection's window: nobody can send
            ended = most == stream.queued and stream.end_queued
            if most < CRUMB and most < stream.queued:
                self._floods.count(FloodKind.CRUMBS)
            data = self._cut(stream, most)
            if not stream.queued or stream.send_window <= most:
                scheduler.remove(stream.id)
            trailers = stream.trailers
            if ended and trailers is not None:
                self._put(stream, data, False)
                self.write_headers(stream, trailers, True)
            else:
                self._put(stream, data, ended)
            if not stream.queued:
                self.drained.append(stream.id)

    def _cut(self, stream: Stream, size: int) -> bytes | memoryview:
        """The next bytes of the body that waits; of a large piece nothing is copied."""
        pieces, offset = stream.pieces, stream.offset
        assert pieces is not None
        stream.queued -= size
        piece = pieces[0]
        end = offset + size
        if end < len(piece):
            stream.offset = end
            return piece[offset:end]
        cut: list[bytes | memoryview] = []
        while size:
            piece = pieces[0]
            if offset:
                piece = piece[offset:]
                offset = 0
            have = len(piece)
            if have <= size:
                pieces.popleft()
            else:
                piece = piece[:size]
                offset = have = size
            cut.append(piece)
            size -= have
        stream.offset = offset
        return cut[0] if len(cut) == 1 else b"".join(cut)

    def forget(self, stream: Stream) -> None:
        """The stream is over before its time: what waits is dropped."""
        stream.pieces = None
        stream.queued = 0
        self._scheduler.remove(stream.id)

    # ---- windows

    def widen(self, increment: int) -> None:
        """The connection's window. Raises OverflowError."""
        self.window = widened(self.window, increment)
        self.granted += increment

    def widen_stream(self, stream: Stream, increment: int) -> None:
        """A stream's window. Raises OverflowError."""
        stream.send_window = widened(stream.send_window, increment)
        self.reschedule(stream)

    def change_initial_window(self, before: int, now: int) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE has changed: so have the windows of all streams (RFC 9113 6.9.2).

        Raises OverflowError.
        """
        for stream in self._streams.values():
            self.widen_stream(stream, now - before)

    @property
    def waiting(self) -> bool:
        """Whether there is something that `take` would give."""
        return bool(self._output) or (bool(self._scheduled) and self.window > 0)

    @property
    def size(self) -> int:
        """Bytes of frames that are to be taken and do not wait for a window or their turn."""
        return self._size
