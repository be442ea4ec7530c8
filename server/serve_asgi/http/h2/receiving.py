"""What each frame of the client's does to the connection and to its stream (RFC 9113 5 and 6). Pure.

It owns the order in which frames may come, and what the server answers by itself: SETTINGS, PING, RST_STREAM, GOAWAY.
Rules: the verdict does not depend on how the bytes are cut; what the client does wrong on a stream costs that stream
alone, what it does wrong on the connection ends it with GOAWAY, and nothing that it can send makes it hold more than
the bounds of `serve_asgi.http.h2.limits`. It must not know what a response is; the clock is asked only by what counts
floods.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Generator
from typing import Final

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode, StreamFault
from serve_asgi.http.h2.events import (
    ClientLeaves,
    ConnectionLost,
    Event,
    StreamData,
    StreamEnd,
    StreamRefusal,
    StreamRequest,
    StreamReset,
)
from serve_asgi.http.h2.frames import ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, SETTINGS, Frame
from serve_asgi.http.h2.header_blocks import HeaderBlockAssembly
from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.h2.held_frames import HeldFrames
from serve_asgi.http.h2.limits import CRUMB, FloodKind, Floods
from serve_asgi.http.h2.open_streams import OpenStreams
from serve_asgi.http.h2.priorities import DEFAULT_PRIORITY, StreamPriority, read_priority, remember_early
from serve_asgi.http.h2.request_fields import MalformedRequest
from serve_asgi.http.h2.request_reader import RequestReader
from serve_asgi.http.h2.sending import FrameSender
from serve_asgi.http.h2.settings import ClientSettings
from serve_asgi.http.h2.streams import CLOSED, HALF_CLOSED_LOCAL, Stream, StreamStep
from serve_asgi.http.request_head import BadRequest, Head

SHUTDOWN_PING: Final = b"shutdown"
"""Its answer says that the client has read the first GOAWAY of a shutdown."""

_RECEIVE_HEADERS: Final = StreamStep.RECEIVE_HEADERS
_RECEIVE_DATA: Final = StreamStep.RECEIVE_DATA
_RECEIVE_END: Final = StreamStep.RECEIVE_END
_EXTRAS: Final = PADDED | frames.HAS_PRIORITY


class Leaving(enum.Enum):
    """How far a shutdown of the server's has come (RFC 9113 6.8)."""

    NO = "no"
    ANNOUNCED = "announced"  # GOAWAY without a last stream; new ones are still served
    FINAL = "final"  # the last stream is said: new ones are ignored, as the client knows


_FINAL: Final = Leaving.FINAL
_new_event: Final = tuple.__new__
"""How a NamedTuple is made without its own `__new__`, which takes twice the time."""


class FrameReceiver:
    """Of one connection."""

    __slots__ = (
        "at_once",
        "blocks",
        "early_priorities",
        "floods",
        "frames",
        "held",
        "leaving",
        "lost",
        "more",
        "preface",
        "reader",
        "requests",
        "sender",
        "settings",
        "settled",
        "streams",
    )

    def __init__(
        self, max_head_size: int, check: Callable[[Head], None], max_streams: int, clock: Callable[[], float]
    ) -> None:
        """See `ConnectionCore`."""
        self.preface = frames.PREFACE
        """What is still to come of it."""
        self.settled = False
        """The client's first SETTINGS have come."""
        self.settings = ClientSettings()
        self.floods = Floods(clock)
        self.frames = frames.FrameReader()
        self.blocks = HeaderBlockAssembly(max_head_size)
        self.reader = RequestReader(max_head_size, check)
        by_id: dict[int, Stream] = {}
        self.sender = FrameSender(by_id, self.settings, self.floods)
        self.streams = OpenStreams(self.sender, by_id, max_streams)
        self.early_priorities: dict[int, StreamPriority] = {}
        """Of streams that have not begun yet."""
        self.held: HeldFrames | None = None
        """Frames that are not looked at before it is known where the connection goes on; None: all are."""
        self.requests = 0
        """Requests that the client has begun, also with other processes before."""
        self.at_once: float = math.inf
        """Requests that one `receive` begins at most."""
        self.more = False
        """It has left some of what has come for the next call."""
        self.leaving = Leaving.NO
        self.lost: ConnectionLost | None = None

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the client; return what has happened, in its order. After a `ConnectionLost` nothing more."""
        events: list[Event] = []
        self.more = False
        if self.lost is not None:
            return events
        try:
            if self.preface:
                data = self._read_preface(data)
            self._receive_frames(self.frames.frames(data), events, self.requests + self.at_once)
        except ConnectionFault as fault:
            events.append(self.lose(fault))
        return events

    def _read_preface(self, data: bytes) -> bytes:
        """Take the preface off (RFC 9113 3.4). Raises ConnectionFault if it is another one."""
        preface = self.preface
        size = min(len(preface), len(data))
        if data[:size] != preface[:size]:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the client does not begin as HTTP/2 does")
        self.preface = preface[size:]
        return data[size:]

    def _receive_frames(self, given: Generator[Frame, None, None], events: list[Event], most: float = math.inf) -> None:
        """Stop at so many requests since the connection began. Raises ConnectionFault."""
        blocks = self.blocks
        for frame in given:
            kind, flags, stream_id, payload = frame
            if blocks.stream_id and kind != CONTINUATION:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame within a header block")
            held = self.held
            if held is not None and held.takes(frame, self.streams.ended.last):
                if held.full or held.needed:
                    self._go_on(events)
                if held.needed:
                    self.hold()
                continue
            if not self.settled and (kind != SETTINGS or flags & ACK):  # RFC 9113 3.4
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the client's first frame is not SETTINGS")
            try:
                if kind == HEADERS:
                    if flags & _EXTRAS:
                        payload = frames.header_fragment(flags, stream_id, payload)
                    if flags & END_HEADERS:
                        self._receive_block(stream_id, payload, flags & END_STREAM != 0, events)
                    else:
                        blocks.begin(stream_id, payload, flags & END_STREAM != 0)
                elif kind == DATA:
                    self._receive_data(flags, stream_id, payload, events)
                else:
                    receive = _RECEIVERS.get(kind)
                    if receive is None:  # RFC 9113 4.1, 5.5
                        self.floods.count(FloodKind.IDLE)
                    else:
                        receive(self, flags, stream_id, payload, events)
            except StreamFault as fault:
                if self.streams.reset(fault.stream_id, fault.code):
                    events.append(StreamReset(fault.stream_id, fault.code, fault.reason))
                self.floods.count(FloodKind.RESETS, self.requests)  # CVE-2025-8671
            if kind == HEADERS and self.requests >= most:
                given.close()
                self.more = bool(self.frames.rest)
                return

    # ---- header blocks

    def _receive_continuation(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        self.blocks.go_on(stream_id, payload)
        if flags & END_HEADERS:
            begun, block, ended = self.blocks.finish()
            self._receive_block(begun, block, ended, events)

    def _receive_block(self, stream_id: int, block: bytes, ended: bool, events: list[Event]) -> None:
        """A whole header block: a request begins, or ends with trailers. Raises StreamFault, ConnectionFault."""
        streams, floods = self.streams, self.floods
        known = streams.by_id.get(stream_id)
        if known is not None:
            self._receive_trailers(known, block, ended, events)
            return
        before = streams.ended
        last = before.last
        if stream_id <= last:
            self.reader.skip(block)
            before.judge(stream_id, True)
            floods.count(FloodKind.IDLE)
            return
        if self.leaving is _FINAL:
            self.reader.skip(block)
            floods.count(FloodKind.IDLE)
            return
        if stream_id == last + 2:  # nearly always; the very first one is not
            before.last = stream_id
        else:
            before.begin(stream_id)
        floods.useful += 1
        self.requests += 1
        early = self.early_priorities.pop(stream_id, None) if self.early_priorities else None
        stream = streams.begin(stream_id, self.settings.initial_window, ended)
        if stream is None:
            self.reader.skip(block)
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "more requests at once than allowed")
        try:
            head, priority = self.reader.read(block, ended)
        except BadRequest as refused:
            stream.discarding = True
            events.append(StreamRefusal(stream_id, refused, self.reader.method, ended))
            if isinstance(refused, MalformedRequest):
                floods.count(FloodKind.RESETS, self.requests)
            return
        if early is not None or priority is not DEFAULT_PRIORITY:
            stream.urgency, stream.incremental = early or priority
        if not ended and head.body >= 0 and not head.websocket:
            stream.expected = head.body
        events.append(_new_event(StreamRequest, (stream_id, head, ended)))

    def _receive_trailers(self, stream: Stream, block: bytes, ended: bool, events: list[Event]) -> None:
        """RFC 9113 8.1."""
        try:
            stream.step(_RECEIVE_HEADERS)
        except StreamFault:
            self.reader.skip(block)
            raise
        try:
            trailers = self.reader.read_trailers(block)
        except BadRequest as refused:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, refused.reason) from None
        if not ended:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "trailers that do not end the stream")
        stream.receive_content(0, True)
        self._end_request(stream, trailers, events)

    def _end_request(self, stream: Stream, trailers: list[Field], events: list[Event]) -> None:
        stream.step(_RECEIVE_END)
        if stream.state is CLOSED:
            self.streams.close(stream)
        events.append(_new_event(StreamEnd, (stream.id, trailers)))

    # ---- DATA and windows

    def _receive_data(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """RFC 9113 6.1; padding counts for the windows, and for nothing else."""
        size = len(payload)
        streams = self.streams
        window = streams.window
        window.left -= size  # as `receive` has it
        window.waiting += size
        if window.left < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection's window has room for")
        content = frames.without_padding(DATA, payload) if flags & PADDED else payload
        ended = flags & END_STREAM != 0
        stream = streams.by_id.get(stream_id)
        if stream is None:
            streams.grant(size)
            if not self._is_ignored(stream_id):
                streams.check_begun(stream_id, "DATA")
                streams.ended.judge(stream_id, False)
            if size < CRUMB:  # an upload that was on its way comes in large ones
                self.floods.count(FloodKind.IDLE)
            return
        own_window = stream.receive_window
        if own_window is None or not own_window.receive(size):
            if own_window is None:  # else it is given back with the rest when the stream is reset
                streams.grant(size)
            stream.step(_RECEIVE_DATA)
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more DATA than its window has room for")
        stream.step(_RECEIVE_DATA)
        if stream.expected >= 0:
            stream.receive_content(len(content), ended)
        if content:
            self.floods.useful += 1
        elif not ended:
            self.floods.count(FloodKind.IDLE)
        taken = size if stream.discarding else size - len(content)
        if taken:
            streams.consume(stream, taken)
        if content and not stream.discarding:
            events.append(_new_event(StreamData, (stream_id, content)))
        if ended:
            self._end_request(stream, [], events)

    def _is_ignored(self, stream_id: int) -> bool:
        """Whether it began, or will, behind the last one that our GOAWAY has named."""
        return self.leaving is Leaving.FINAL and stream_id > self.streams.ended.last

    def _receive_window_update(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """RFC 9113 6.9."""
        self.floods.count(FloodKind.WINDOW_UPDATES)
        stream = self.streams.by_id.get(stream_id)
        if stream is None and stream_id:
            if not self._is_ignored(stream_id):
                self.streams.check_begun(stream_id, "WINDOW_UPDATE")
            return  # sent before the client knew that the stream has ended
        increment = frames.window_increment(stream_id, payload)
        try:
            if stream is None:
                self.sender.widen(increment)
            else:
                self.sender.widen_stream(stream, increment)
        except OverflowError as error:
            if stream is None:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, str(error)) from None
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, str(error)) from None

    # ---- other frames of streams

    def _receive_reset(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """RFC 9113 6.4."""
        stream = self.streams.by_id.get(stream_id)
        if stream is None:
            if not self._is_ignored(stream_id):
                self.streams.check_begun(stream_id, "RST_STREAM")
            self.floods.count(FloodKind.IDLE)
            return
        whole = stream.state is HALF_CLOSED_LOCAL
        stream.step(StreamStep.RECEIVE_RESET)
        self.streams.drop(stream)
        events.append(StreamReset(stream_id, frames.number(payload), ""))
        if not whole:
            self.floods.count(FloodKind.RESETS, self.requests)

    def _receive_priority(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """RFC 9113 5.3.2: deprecated, and ignored."""
        if frames.depends_on_itself(stream_id, payload):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
        self.floods.count(FloodKind.IDLE)

    def _receive_priority_update(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """RFC 9218 7.1."""
        self.floods.count(FloodKind.IDLE)
        stream_id = frames.number(payload) & frames.MAX_STREAM_ID
        if not stream_id & 1:  # no stream, or one that only a push could begin
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"PRIORITY_UPDATE of stream {stream_id}")
        priority = read_priority(payload[4:])
        stream = self.streams.by_id.get(stream_id)
        if stream is not None:
            stream.urgency, stream.incremental = priority
            self.sender.reschedule(stream)
        elif self.streams.ended.is_idle(stream_id):
            remember_early(self.early_priorities, stream_id, priority, self.streams.ended.last)

    # ---- frames of the connection

    def _receive_settings(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """RFC 9113 6.5."""
        if self.settled:
            self.floods.count(FloodKind.CONTROL)
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS that has content")
            return
        self.settled = True
        settings = self.settings
        before = settings.initial_window
        settings.apply(payload)
        if settings.initial_window != before:
            try:
                self.sender.change_initial_window(before, settings.initial_window)
            except OverflowError as error:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, str(error)) from None
        self.sender.encoder.limit_table(settings.table_size)
        self.sender.write(frames.SETTINGS_ACK)

    def _receive_ping(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """RFC 9113 6.7."""
        if not flags & ACK:
            self.floods.count(FloodKind.CONTROL)
            self.sender.write(frames.ping_frame(payload, True))
        elif payload == SHUTDOWN_PING and self.leaving is Leaving.ANNOUNCED:
            self.leave()
        else:
            self.floods.count(FloodKind.IDLE)

    def _receive_go_away(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """RFC 9113 6.8."""
        self.floods.count(FloodKind.CONTROL)
        events.append(ClientLeaves(frames.number(payload[4:]), payload[8 : 8 + frames.MAX_DEBUG_DATA]))

    # ---- the end, and holding still before it

    def leave(self) -> None:
        """Say which stream is the last that is served (RFC 9113 6.8); what comes on later ones is ignored."""
        self.leaving = Leaving.FINAL
        self.sender.write(frames.go_away_frame(self.streams.ended.last, ErrorCode.NO_ERROR, ""))

    def lose(self, fault: ConnectionFault) -> ConnectionLost:
        """RFC 9113 5.4.1."""
        self.lost = ConnectionLost(fault.code, fault.reason)
        self.streams.lose()
        self.sender.write(frames.go_away_frame(self.streams.ended.last, fault.code, fault.reason))
        return self.lost

    def hold(self) -> None:
        """From now on leave aside what begins new requests."""
        under_way = b""
        if self.blocks.stream_id > self.streams.ended.last:
            under_way = self.blocks.frames()
            self.blocks.finish()
        self.held = HeldFrames(under_way)

    def release(self) -> list[Event]:
        """Go on with what was left aside."""
        events: list[Event] = []
        try:
            self._go_on(events)
        except ConnectionFault as fault:
            events.append(self.lose(fault))
        return events

    def _go_on(self, events: list[Event]) -> None:
        held, self.held = self.held, None
        if held is not None:
            self._receive_frames(frames.FrameReader().frames(held.data), events)


_RECEIVERS: Final[dict[int, Callable[[FrameReceiver, int, int, bytes, list[Event]], None]]] = {
    frames.PRIORITY: FrameReceiver._receive_priority,
    frames.RST_STREAM: FrameReceiver._receive_reset,
    frames.SETTINGS: FrameReceiver._receive_settings,
    frames.PING: FrameReceiver._receive_ping,
    frames.GOAWAY: FrameReceiver._receive_go_away,
    frames.WINDOW_UPDATE: FrameReceiver._receive_window_update,
    frames.CONTINUATION: FrameReceiver._receive_continuation,
    frames.PRIORITY_UPDATE: FrameReceiver._receive_priority_update,
}
