"""The client's end of a connection in the tests: what it sends byte by byte or whole, and what the server says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import hpack

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.events import Event
from serve_asgi.http.h2.frames import END_HEADERS, END_STREAM, HEADERS
from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.request_head import Head

MAX_HEAD = 65536
GET: list[Field] = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")]
POST: list[Field] = [(b":method", b"POST"), *GET[1:]]
OK: list[Field] = [(b":status", b"200")]

E = TypeVar("E", bound=Event)


class Said(NamedTuple):
    """A frame of the server's."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def code(self) -> ErrorCode:
        """Of RST_STREAM and GOAWAY."""
        return ErrorCode(frames.number(self.payload[4:] if self.kind == frames.GOAWAY else self.payload))


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def accept_all(head: Head) -> None:
    """No further limits."""


class H2Peer:
    """A connection with the core at the other end."""

    def __init__(
        self, piece: int = 0, begun: bool = True, max_head_size: int = MAX_HEAD, max_streams: int = 100
    ) -> None:
        """`piece`: bytes that are given to the core at once, 0 for all; `begun`: prefaces and settings are through."""
        self.piece = piece
        self.clock = Clock()
        self.core = ConnectionCore(max_head_size, accept_all, max_streams, self.clock)
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.events: list[Event] = []
        self._reader = frames.FrameReader(1 << 24)
        if begun:
            self.core.begin(max_head_size)
            self.send(frames.PREFACE, frames.settings_frame({}), frames.SETTINGS_ACK)
            self.said()

    def send(self, *data: bytes) -> list[Event]:
        """Bytes of the client's; returns what happened."""
        sent = b"".join(data)
        piece = self.piece or max(len(sent), 1)
        events: list[Event] = []
        for start in range(0, len(sent), piece):
            events += self.core.receive(sent[start : start + piece])
        self.events += events
        return events

    def said(self, room: int = 1 << 30) -> list[Said]:
        """Frames of the server's since the last call."""
        return [Said(*each) for each in self._reader.frames(self.core.take_output(room))]

    def block(self, fields: Iterable[Field]) -> bytes:
        return self.encoder.encode(list(fields))

    def headers(self, stream_id: int, fields: Iterable[Field] = GET, ended: bool = True) -> bytes:
        """A HEADERS frame; in the order of these calls."""
        flags = END_HEADERS | (END_STREAM if ended else 0)
        return frames.frame(HEADERS, flags, stream_id, self.block(fields))

    def request(self, stream_id: int, fields: Iterable[Field] = GET, ended: bool = True) -> list[Event]:
        return self.send(self.headers(stream_id, fields, ended))

    def respond(self, stream_id: int, body: bytes = b"", fields: list[Field] = OK) -> None:
        """A whole response, and its application's end."""
        self.core.send_response(stream_id, fields, body)
        self.core.done(stream_id)

    def lost(self) -> ErrorCode | None:
        """The code of the GOAWAY with which the server has ended the connection."""
        if self.core.lost is None:
            return None
        said = self.said()[-1]
        assert said.kind == frames.GOAWAY
        assert said.code is self.core.lost.code
        return said.code

    def reset_code(self) -> ErrorCode | None:
        """The code of the one RST_STREAM that the server has said."""
        found = [said.code for said in self.said() if said.kind == frames.RST_STREAM]
        assert len(found) <= 1
        return found[0] if found else None


def data(stream_id: int, content: bytes, ended: bool = False) -> bytes:
    return frames.frame(frames.DATA, END_STREAM if ended else 0, stream_id, content)


def of(kind: type[E], events: list[Event]) -> list[E]:
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]
