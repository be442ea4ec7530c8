"""Requests that are given an id where they carry none (`--request-id generate` and `echo`).

The application sees the id where a proxy would have put it: in the request's headers. A class of its own, so that a
server that generates no ids spends nothing on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from serve_asgi.http.request_cycle import Exchange

if TYPE_CHECKING:
    from serve_asgi.http.connection import Http1Connection
    from serve_asgi.http.request_head import Head
    from serve_asgi.http.worker_context import Message, Service


class IdentifiedExchange(Exchange):
    """A request that has an id, and its response, which may carry it."""

    __slots__ = ("_identity",)

    def __init__(self, connection: Http1Connection, service: Service, head: Head) -> None:
        super().__init__(connection, service, head)
        self._identity = service.request_ids.keep_or_generate(self.scope["headers"])

    def identity(self) -> str:
        """The request's id."""
        return self._identity

    def _start(self, message: Message) -> None:
        super()._start(message)
        self._block = echoed(self.service, self._block, self._identity)


def echoed(service: Service, block: bytes, identity: str) -> bytes:
    """The response headers in `block` (each preceded by CRLF), with the request's id if it is to be echoed.

    One that the application has set itself stays.
    """
    start = b"\r\n" + service.request_ids.name + b": "
    if not service.request_ids.echoes or start in block:
        return block
    return block + start + identity.encode()
