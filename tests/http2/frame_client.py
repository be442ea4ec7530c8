"""The client's side of an HTTP/2 connection in the tests, without a socket: frames by hand, and what comes back.

It judges what it gets: one final head, nothing behind an end, no frames on streams that it has not begun.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import hpack

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.header_decoder import Field
from tests.http.h2.peer import GET, POST, Said


@dataclasses.dataclass
class Answer:
    """What has come on one stream."""

    heads: list[list[Field]] = dataclasses.field(default_factory=list)
    content: bytearray = dataclasses.field(default_factory=bytearray)
    trailers: list[Field] = dataclasses.field(default_factory=list)
    ended: bool = False
    reset: ErrorCode | None = None

    @property
    def over(self) -> bool:
        """Nothing more comes."""
        return self.ended or self.reset is not None

    @property
    def interim(self) -> list[int]:
        """The statuses before the final one."""
        statuses = [int(head[0][1]) for head in self.heads]
        return [status for status in statuses if status < 200]

    @property
    def status(self) -> int:
        """The final one, or 0."""
        return next((status for status in (int(head[0][1]) for head in self.heads) if status >= 200), 0)

    @property
    def fields(self) -> dict[bytes, bytes]:
        """Those of the final head."""
        return dict(self.heads[-1][1:]) if self.status else {}


class FrameClient:
    """It grants no window by itself. What it sends goes through `send`; what comes is given to `receive`."""

    def __init__(self) -> None:
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.frames: list[Said] = []
        """All that have come."""
        self.answers: dict[int, Answer] = {}
        self.settings: dict[int, int] = {}
        """The server's."""
        self.answers_pings = True
        self._next = 1
        self._reader = frames.FrameReader(1 << 24)

    def send(self, *data: bytes) -> None:
        """Send bytes."""
        raise NotImplementedError

    # ---- what it sends

    def begin(self, settings: dict[int, int], connection_window: int = 0) -> None:
        """The preface and SETTINGS."""
        window = frames.window_update_frame(0, connection_window) if connection_window else b""
        self.send(frames.PREFACE, frames.settings_frame(settings), frames.SETTINGS_ACK, window)

    def head(
        self,
        fields: Iterable[Field] = GET,
        ended: bool = True,
        path: bytes | None = None,
        more: Iterable[Field] = (),
    ) -> tuple[int, bytes]:
        """The number of the next stream, and the HEADERS that begin it, which are to be sent next."""
        stream_id = self._next
        self._next += 2
        self.answers[stream_id] = Answer()
        found = [(name, path if name == b":path" and path is not None else value) for name, value in fields]
        flags = frames.END_HEADERS | (frames.END_STREAM if ended else 0)
        block = self.encoder.encode([*found, *more])
        return stream_id, frames.frame(frames.HEADERS, flags, stream_id, block)

    def get(self, path: bytes = b"/", *more: Field) -> int:
        """Ask; returns the stream."""
        stream_id, head = self.head(GET, path=path, more=more)
        self.send(head)
        return stream_id

    def post(self, path: bytes = b"/", content: bytes | None = None, *more: Field) -> int:
        """Begin a request with a body; it is whole if there is content."""
        stream_id, head = self.head(POST, False, path, more)
        rest = b"" if content is None else data(stream_id, content, True)
        self.send(head, rest)
        return stream_id

    def reset(self, stream_id: int, code: ErrorCode = ErrorCode.CANCEL) -> None:
        self.send(frames.reset_frame(stream_id, code))

    def widen(self, stream_id: int, size: int) -> None:
        self.send(frames.window_update_frame(stream_id, size))

    # ---- what it gets

    def receive(self, data: bytes) -> None:
        """Take what the server has sent."""
        for kind, flags, stream_id, payload in self._reader.frames(data):
            self.frames.append(Said(kind, flags, stream_id, bytes(payload)))
            self._take(self.frames[-1])

    def _take(self, said: Said) -> None:
        kind, flags, stream_id, payload = said
        if kind == frames.SETTINGS and not flags & frames.ACK:
            for start in range(0, len(payload), 6):
                self.settings[int.from_bytes(payload[start : start + 2], "big")] = int.from_bytes(
                    payload[start + 2 : start + 6], "big"
                )
            return
        if kind == frames.PING and not flags & frames.ACK and self.answers_pings:
            self.send(frames.ping_frame(payload, True))
            return
        answer = self.answers.get(stream_id)
        if answer is None:
            assert kind not in (frames.HEADERS, frames.DATA, frames.CONTINUATION), said
            return
        if kind == frames.HEADERS:
            assert flags & frames.END_HEADERS
            assert not answer.over, said
            fields = [(bytes(name), bytes(value)) for name, value in self.decoder.decode(payload, raw=True)]
            if fields and fields[0][0] == b":status":
                assert not answer.status, "two final heads"
                answer.heads.append(fields)
            else:
                assert flags & frames.END_STREAM
                assert answer.status
                answer.trailers = fields
            answer.ended = flags & frames.END_STREAM != 0
        elif kind == frames.DATA:
            assert answer.status
            assert not answer.over, said
            answer.content += payload
            answer.ended = flags & frames.END_STREAM != 0
        elif kind == frames.RST_STREAM and not answer.ended:
            answer.reset = said.code

    def of(self, kind: int, stream_id: int | None = None) -> list[Said]:
        """The frames of one kind that have come."""
        return [said for said in self.frames if said.kind == kind and stream_id in (None, said.stream_id)]

    def goaways(self) -> list[tuple[int, ErrorCode]]:
        """The last stream and the code of each GOAWAY that has come."""
        return [
            (int.from_bytes(said.payload[:4], "big"), ErrorCode(int.from_bytes(said.payload[4:8], "big")))
            for said in self.of(frames.GOAWAY)
        ]


def data(stream_id: int, content: bytes, ended: bool = False) -> bytes:
    """DATA frames of at most 16 KiB."""
    found = []
    size = frames.LEAST_MAX_FRAME_SIZE
    for start in range(0, max(len(content), 1), size):
        last = ended and start + size >= len(content)
        piece = content[start : start + size]
        found.append(frames.frame(frames.DATA, frames.END_STREAM if last else 0, stream_id, piece))
    return b"".join(found)
