"""What comes out of a connection's core, in the order in which it happened. Pure."""

from __future__ import annotations

from typing import NamedTuple

from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.request_head import BadRequest, Head

Fields = list[tuple[bytes, bytes]]


class StreamRequest(NamedTuple):
    """A request has begun. The stream counts until `ConnectionCore.done` is called for it."""

    stream_id: int
    head: Head
    """Perhaps shared with equal requests: nobody may change it."""
    ended: bool
    """It has no body; if not, `StreamData` and `StreamEnd` follow."""


class StreamRefusal(NamedTuple):
    """What came is no request that could be served: to be answered, by a response of the server's own.

    The stream counts until `ConnectionCore.done` is called for it, as that of a request.
    """

    stream_id: int
    refused: BadRequest
    """A `MalformedRequest` if RFC 9113 makes it an error of the stream: `refuse` resets it behind the response."""
    method: bytes
    """Of the request, as far as it is known: a HEAD is answered without a body."""
    ended: bool


class StreamData(NamedTuple):
    """Some of a request's body. Once somebody has taken it, `ConnectionCore.consumed` is to be told."""

    stream_id: int
    data: bytes


class StreamEnd(NamedTuple):
    """The request is whole."""

    stream_id: int
    trailers: Fields
    """Perhaps none."""


class StreamReset(NamedTuple):
    """The stream is over before its time: what has not been sent never will be."""

    stream_id: int
    code: int
    reason: str
    """What the client did wrong; empty if it has reset the stream itself."""


class ClientLeaves(NamedTuple):
    """The client has sent GOAWAY: it begins nothing new, as a rule; what is in progress goes on."""

    code: int
    reason: bytes


class ConnectionLost(NamedTuple):
    """The last event: the client has broken the protocol or a limit. The output ends with our GOAWAY; then close."""

    code: ErrorCode
    reason: str


Event = StreamRequest | StreamRefusal | StreamData | StreamEnd | StreamReset | ClientLeaves | ConnectionLost
