"""What travels with a connection that survives: all that its next life begins with. Pure.

Encoded it is the leftover of the `serve_asgi.http.hand_over_record.HandOverRecord`, in place of the bytes that another
connection has read; of an HTTP/2 connection there may be several, one for each of its streams (`pack_streams`). The
request's head travels as its protocol sends it, so that the same reader judges it again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from serve_asgi.http.request_head import Head

LENGTH_SIZE: Final = 4


@dataclasses.dataclass(frozen=True, slots=True)
class SurvivalRecord:
    """Of one life that has ended."""

    head: bytes
    """The head of the request, with the request id that the application was given."""
    state: bytes
    """As JSON."""
    version: int | None
    unread: bytes
    """What the client has sent and the life has not received: frames, or requests that were pipelined."""
    websocket: dict[str, Any] | None = None
    """Of a WebSocket: what was negotiated."""
    response: dict[str, Any] | None = None
    """Of a streamed response: what its head has promised, and how far it is."""
    window: bytes = b""
    """Of a WebSocket with compression: the text that the client's next message may refer to (RFC 7692 7.2.2)."""
    body: bytes = b""
    """Of a request with a body: what the life has not received of it."""

    def to_bytes(self) -> bytes:
        """The length of the JSON, the JSON, the bytes."""
        pieces = (self.head, self.state, self.window, self.body, self.unread)
        values = {
            "version": self.version,
            "websocket": self.websocket,
            "response": self.response,
            "sizes": [len(piece) for piece in pieces],
        }
        described = json.dumps(values).encode()
        return b"".join((len(described).to_bytes(LENGTH_SIZE), described, *pieces))

    @classmethod
    def from_bytes(cls, data: bytes) -> SurvivalRecord:
        """The reverse. Raises ValueError or LookupError for anything else."""
        start = LENGTH_SIZE + int.from_bytes(data[:LENGTH_SIZE])
        values = json.loads(data[LENGTH_SIZE:start])
        pieces = []
        for size in values["sizes"]:
            pieces.append(data[start : start + size])
            start += size
        head, state, window, body, unread = pieces
        if start != len(data):
            raise ValueError("a record of another length than it says")
        return cls(head, state, values["version"], unread, values["websocket"], values["response"], window, body)

    def decoded_state(self) -> Any:
        """The state."""
        return json.loads(self.state)


def head_bytes(head: Head, id_name: bytes = b"", identity: str = "") -> bytes:
    """The head as it is sent by HTTP/1.1, with this request id in place of what it had."""
    lines = [b"%b %b HTTP/%b" % (head.method.encode(), head.target, head.version.encode())]
    lines += [b"%b: %b" % (name, value) for name, value in head.headers if not identity or name != id_name]
    if identity:
        lines.append(b"%b: %b" % (id_name, identity.encode()))
    return b"\r\n".join((*lines, b"", b""))


def field_bytes(head: Head, scheme: str, id_name: bytes = b"", identity: str = "") -> bytes:
    """The fields of a request's head over HTTP/2, each in a line, with this request id in place of what it had."""
    (_, authority), *headers = head.headers
    fields = [
        (b":method", head.method.encode()),
        *(((b":protocol", b"websocket"),) if head.websocket else ()),
        (b":scheme", scheme.encode()),
        (b":authority", authority),
        (b":path", head.target),
        *(field for field in headers if not identity or field[0] != id_name),
    ]
    if identity:
        fields.append((id_name, identity.encode()))
    return b"\r\n".join(b"%b: %b" % field for field in fields)


def fields_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """The reverse."""
    return [(name, value) for name, _, value in (line.partition(b": ") for line in data.split(b"\r\n"))]


class MovedStream(NamedTuple):
    """A stream of an HTTP/2 connection whose response, or whose WebSocket, goes on elsewhere."""

    stream_id: int
    record: SurvivalRecord
    unsent: bytes
    """What of its response waits for a window."""


def pack_streams(streams: Iterable[MovedStream], unread: bytes) -> bytes:
    """Those of one connection, and what has come and was not looked at."""
    packed = [(stream_id, record.to_bytes(), unsent) for stream_id, record, unsent in streams]
    sizes = json.dumps([[stream_id, len(record), len(unsent)] for stream_id, record, unsent in packed]).encode()
    pieces = [piece for _, record, unsent in packed for piece in (record, unsent)]
    return b"".join((len(sizes).to_bytes(LENGTH_SIZE), sizes, *pieces, unread))


def unpack_streams(data: bytes) -> tuple[list[MovedStream], bytes]:
    """The reverse. Raises ValueError or LookupError for anything else."""
    start = LENGTH_SIZE + int.from_bytes(data[:LENGTH_SIZE])
    streams = []
    for stream_id, record_size, unsent_size in json.loads(data[LENGTH_SIZE:start]):
        middle, end = start + record_size, start + record_size + unsent_size
        streams.append(MovedStream(stream_id, SurvivalRecord.from_bytes(data[start:middle]), data[middle:end]))
        start = end
    return streams, data[start:]
