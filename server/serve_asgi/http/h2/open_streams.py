"""The streams of one connection that are not closed, and what the client may still send on them. Pure.

It owns how many there may be (RFC 9113 5.1.2), the windows that are granted (5.2), and what becomes of both when a
stream ends in whichever way. Rules: a request counts until its stream is closed and nobody works for it any more,
whichever is later, so that a client that resets what it has asked for gets no more work done at once than others;
every byte that came is granted to the connection again exactly once: when it was taken, or when its stream ends. It
must not know what requests and responses are.
"""

from __future__ import annotations

from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode
from serve_asgi.http.h2.flow_control import ReceiveWindow
from serve_asgi.http.h2.frames import reset_frame, window_update_frame
from serve_asgi.http.h2.limits import CONNECTION_WINDOW, STREAM_WINDOW
from serve_asgi.http.h2.sending import FrameSender
from serve_asgi.http.h2.streams import HALF_CLOSED_REMOTE, OPEN, EndedStreams, Stream, StreamStep


class OpenStreams:
    """Of one connection."""

    __slots__ = ("_max_streams", "_sender", "busy", "by_id", "ended", "resets", "window")

    def __init__(self, sender: FrameSender, by_id: dict[int, Stream], max_streams: int) -> None:
        """`by_id`: the streams, which the sender knows as well. `max_streams`: that may be open at once."""
        self._sender = sender
        self.by_id = by_id
        self._max_streams = max_streams
        self.busy: set[int] = set()
        """Streams that somebody works for, also where they are closed."""
        self.ended = EndedStreams()
        self.window = ReceiveWindow(CONNECTION_WINDOW)
        self.resets = 0
        """RST_STREAM frames sent, since somebody last set it to 0."""

    def begin(self, stream_id: int, send_window: int, ended: bool) -> Stream | None:
        """A request has begun; `ended`: it has no body. None if there are as many as there may be."""
        busy, by_id, most = self.busy, self.by_id, self._max_streams
        if len(busy) + len(by_id) >= most and len(busy | by_id.keys()) >= most:
            return None
        busy.add(stream_id)
        stream = by_id[stream_id] = Stream(stream_id, send_window, HALF_CLOSED_REMOTE if ended else OPEN)
        if not ended:
            stream.receive_window = ReceiveWindow(STREAM_WINDOW)
        return stream

    def check_begun(self, stream_id: int, name: str) -> None:
        """Raises ConnectionFault for a frame on a stream that has not begun (RFC 9113 5.1)."""
        if self.ended.is_idle(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{name} on stream {stream_id}, which has not begun")

    # ---- windows

    def grant(self, size: int) -> None:
        """Bytes that count for the connection's window were taken, or are nobody's any more."""
        increment = self.window.consume(size)
        if increment:
            self._sender.write(window_update_frame(0, increment))

    def consume(self, stream: Stream, size: int) -> None:
        """So much of a request's body was taken."""
        increment = self.window.consume(size)
        if increment:
            self._sender.write(window_update_frame(0, increment))
        window = stream.receive_window
        assert window is not None
        if stream.state is HALF_CLOSED_REMOTE:  # nothing more comes
            window.waiting -= size
            return
        increment = window.consume(size)
        if increment:
            self._sender.write(window_update_frame(stream.id, increment))

    # ---- ends

    def reset(self, stream_id: int, code: ErrorCode) -> bool:
        """Send RST_STREAM (RFC 9113 5.4.2); returns whether the stream was open."""
        self._sender.write(reset_frame(stream_id, code))
        self.resets += 1
        self.ended.has_been_reset(stream_id)
        stream = self.by_id.get(stream_id)
        if stream is None:
            return False
        stream.step(StreamStep.SEND_RESET)
        self.drop(stream)
        return True

    def drop(self, stream: Stream) -> None:
        """It is over before its time: what waits to be sent is nobody's any more either."""
        self._sender.forget(stream)
        self.close(stream)

    def close(self, stream: Stream) -> None:
        """It is closed."""
        self.by_id.pop(stream.id, None)
        window = stream.receive_window
        if window is not None and window.waiting:
            self.grant(window.waiting)
            window.waiting = 0

    def close_sent(self) -> None:
        """The sender has ended streams by what it sent."""
        closed, self._sender.closed = self._sender.closed, []
        for stream in closed:
            self.close(stream)

    def lose(self) -> None:
        """The connection is over."""
        for stream in self.by_id.values():
            self._sender.forget(stream)
        self.by_id.clear()
