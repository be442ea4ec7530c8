"""The life of a stream as a table (RFC 9113 5.1), and what is known of those that have ended. Pure.

It owns the states, the only ways from one to another, and the verdict on a frame that does not fit the state of its
stream. A server that does not push knows no reserved states. What has ended is remembered as far as a frame on it can
be the client's right: after a RST_STREAM of ours it may have been on its way. It must not know what frames hold.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Any, Final

from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode, StreamFault
from serve_asgi.http.h2.flow_control import ReceiveWindow
from serve_asgi.http.h2.limits import MAX_GAPS, REMEMBERED


class StreamState(enum.IntEnum):
    """RFC 9113 5.1, from the server's side."""

    IDLE = 0  # not begun
    OPEN = 1  # both may send
    HALF_CLOSED_REMOTE = 2  # the client has ended: the request is whole
    HALF_CLOSED_LOCAL = 3  # we have ended: the response is whole, the request is not
    CLOSED = 4


class StreamStep(enum.IntEnum):
    """What happens to a stream; each of them with END_STREAM is the step and then the end."""

    RECEIVE_HEADERS = 0
    RECEIVE_DATA = 1
    RECEIVE_END = 2
    RECEIVE_RESET = 3
    SEND_HEADERS = 4
    SEND_DATA = 5
    SEND_END = 6
    SEND_RESET = 7


IDLE: Final = StreamState.IDLE
OPEN: Final = StreamState.OPEN
HALF_CLOSED_REMOTE: Final = StreamState.HALF_CLOSED_REMOTE
HALF_CLOSED_LOCAL: Final = StreamState.HALF_CLOSED_LOCAL
CLOSED: Final = StreamState.CLOSED

TRANSITIONS: Final[tuple[tuple[StreamState | None, ...], ...]] = (
    # HEADERS, DATA, END, RST_STREAM received; the same sent
    (OPEN, None, None, None, None, None, None, None),  # IDLE
    (OPEN, OPEN, HALF_CLOSED_REMOTE, CLOSED, OPEN, OPEN, HALF_CLOSED_LOCAL, CLOSED),  # OPEN
    (None, None, None, CLOSED, HALF_CLOSED_REMOTE, HALF_CLOSED_REMOTE, CLOSED, CLOSED),  # HALF_CLOSED_REMOTE
    (HALF_CLOSED_LOCAL, HALF_CLOSED_LOCAL, CLOSED, CLOSED, None, None, None, CLOSED),  # HALF_CLOSED_LOCAL
    (None, None, None, None, None, None, None, None),  # CLOSED
)
"""By state and step; None: may not be."""


class Stream:
    """One that is not idle and not closed."""

    __slots__ = (
        "discarding",
        "end_queued",
        "expected",
        "id",
        "incremental",
        "offset",
        "pieces",
        "queued",
        "receive_window",
        "responded",
        "send_window",
        "sent",
        "state",
        "trailers",
        "urgency",
    )

    def __init__(self, stream_id: int, send_window: int, state: StreamState) -> None:
        self.id = stream_id
        self.state = state
        self.expected = -1
        """Bytes of the request's body that are announced and have not come; -1: nothing is announced."""
        self.discarding = False
        """Nobody takes the body of the request any more."""
        self.receive_window: ReceiveWindow | None = None
        """None: the request has no body."""
        self.send_window = send_window
        """What we may send; SETTINGS may make it negative."""
        self.sent = 0
        """Bytes of the response's body that have gone out."""
        self.responded = False
        """The final response's head has gone out."""
        self.pieces: deque[bytes | memoryview] | None = None
        """Of the response's body, what waits for a window or for its turn."""
        self.offset = 0
        """Bytes of the first piece that have gone out."""
        self.queued = 0
        """Bytes that wait."""
        self.end_queued = False
        """The response ends behind them,"""
        self.trailers: list[tuple[bytes, bytes]] | None = None
        """with these."""
        self.urgency = 3
        self.incremental = False

    def step(self, step: StreamStep) -> None:
        """One step of the client's or of ours; ours are always allowed, or the caller is at fault.

        Raises StreamFault for a step of the client's that may not be.
        """
        state = TRANSITIONS[self.state][step]
        if state is None:
            if step >= StreamStep.SEND_HEADERS:
                raise RuntimeError(f"stream {self.id} is {self.state.name}: {step.name} may not be")
            raise StreamFault(self.id, ErrorCode.STREAM_CLOSED, "a frame behind the end of its stream")
        self.state = state

    def receive_content(self, size: int, ended: bool) -> None:
        """So much of the request's body has come (RFC 9113 8.1.1).

        Raises StreamFault if more, or less, was announced.
        """
        if self.expected >= 0:
            self.expected -= size
            if self.expected < 0 or (ended and self.expected):
                raise StreamFault(self.id, ErrorCode.PROTOCOL_ERROR, "a body that is not as long as its content-length")


class EndedStreams:
    """What is known of the client's streams that are not open: which there were, and how they ended."""

    __slots__ = ("_forgotten", "_gaps", "_reset", "last")

    def __init__(self) -> None:
        self.last = 0
        """The highest stream that the client has begun."""
        self._gaps: deque[tuple[int, int]] = deque()
        """Streams that it has left out, first and last: they can never begin (RFC 9113 5.1.1)."""
        self._reset: dict[int, None] = {}
        """Streams that we have reset; what still comes on them is ignored."""
        self._forgotten = 0
        """So high was the highest of those that are no longer in it."""

    def begin(self, stream_id: int) -> None:
        """The client begins a stream (RFC 9113 5.1.1). Raises ConnectionFault."""
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's stream has an odd number")
        following = self.last + 2 if self.last else 1
        if stream_id > following:
            self._gaps.append((following, stream_id - 2))
            if len(self._gaps) > MAX_GAPS:
                self._gaps.popleft()
        self.last = stream_id

    def has_been_reset(self, stream_id: int) -> None:
        """By us."""
        self._reset[stream_id] = None
        if len(self._reset) > REMEMBERED:
            oldest = next(iter(self._reset))
            del self._reset[oldest]
            self._forgotten = max(self._forgotten, oldest)

    def is_idle(self, stream_id: int) -> bool:
        """Whether it has not begun. (Those that were left out have ended without it.)"""
        return stream_id > self.last or not stream_id & 1

    def judge(self, stream_id: int, headers: bool) -> None:
        """HEADERS or DATA on a stream that has ended: it is to be ignored. Raises ConnectionFault if it may not be.

        RFC 9113 5.1: what was on its way when we reset the stream is ignored; behind its own END_STREAM or RST_STREAM
        the client has nothing to send.
        """
        if headers and any(first <= stream_id <= last for first, last in self._gaps):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} after stream {self.last}")
        if stream_id > self._forgotten and stream_id not in self._reset:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"a frame on stream {stream_id}, which has ended")

    # ---- what travels with the connection

    def to_json(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            "last": self.last,
            "gaps": [list(gap) for gap in self._gaps],
            "reset": list(self._reset),
            "forgotten": self._forgotten,
        }

    def restore(self, values: dict[str, Any]) -> None:
        """The reverse."""
        self.last = values["last"]
        self._gaps.extend((first, last) for first, last in values["gaps"])
        self._reset.update(dict.fromkeys(values["reset"]))
        self._forgotten = values["forgotten"]
