"""The client's end of a request and its response: a connection of HTTP/1.1, or a stream of one of HTTP/2.

It owns what requests read of it and ask of it, in the same place whatever the client speaks: for the compiled core that
is a field of a struct. What they mean is said where they are asked for: `serve_asgi.http.request_receive.RequestSource`
and `serve_asgi.http.response.ResponseSink`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serve_asgi.http.underlying_tls import UnderlyingTls
from serve_asgi.ipc.peer_address import Address

if TYPE_CHECKING:
    from serve_asgi.http.request_body import RequestBody
    from serve_asgi.http.request_head import Head


class ClientEnd:
    """See `serve_asgi.http.request_receive.RequestSource` and `serve_asgi.http.response.ResponseSink`."""

    __slots__ = ("client", "life", "number", "read_paused", "scheme", "server", "tls", "trusted")

    client: Address
    server: Address
    life: Any
    """Of the response in progress, if that is to survive."""
    number: int
    read_paused: bool
    scheme: str
    tls: UnderlyingTls | None
    trusted: bool

    def new_body(self, head: Head) -> RequestBody:
        """What holds the body that this head announces."""
        raise NotImplementedError

    def adjust_reading(self) -> None:
        """Pause reading while too much has arrived that nobody has taken; read on otherwise."""
        raise NotImplementedError

    def response_complete(self, response: Any) -> None:
        """All of it is written; in state OVER, the application still sends."""
        raise NotImplementedError
