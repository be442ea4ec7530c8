"""What travels with a connection that survives: all that its next life begins with. Pure.

Encoded it is the leftover of the `serve_asgi.http.hand_over_record.HandOverRecord`, in place of the bytes that another
connection has read. The request's head travels as HTTP/1.1, so that its reader judges it again by the limits of the
new worker.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

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
