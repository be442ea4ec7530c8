"""Who works for one stream of an HTTP/2 connection: a request with its response, or a WebSocket."""

from __future__ import annotations

from typing import Protocol

from serve_asgi.http.h2.events import Fields
from serve_asgi.http.survival import Survival


class StreamHandler(Protocol):
    """What the connection tells it. Whatever it answers it gives to the connection's core, then calls `flush_soon`."""

    deadline: float
    """Loop time (CLOCK_MONOTONIC, s) at which `expire()` is due, or infinity. The connection is told of an earlier one
    by `Http2Connection.expect`."""

    @property
    def begun(self) -> float:
        """When the request began (time.perf_counter, s), or infinity for one that may last."""

    def receive_data(self, data: bytes) -> None:
        """Some of the request's body. Once it was taken, `ConnectionCore.consumed` is to be told."""

    def receive_end(self, trailers: Fields) -> None:
        """The client sends no more on this stream."""

    def receive_reset(self) -> None:
        """The client has reset the stream, or made the core reset it."""

    def receive_eof(self) -> None:
        """The client has shut down its side of the connection: nothing more comes, on no stream."""

    def drained(self) -> None:
        """Nothing of what it has sent waits in the core any more."""

    def lose(self) -> None:
        """The connection has ended."""

    def expire(self) -> None:
        """The deadline has passed."""

    def retire(self) -> None:
        """The worker's phase has changed: it retires, or serves again."""

    def cut(self) -> bool:
        """At the graceful timeout: end at once. True if anything was cut."""

    def opt_in(self, extensions: object, version: int | None) -> Survival | None:
        """See `serve_asgi.http.survival.SurvivableConnection`. None unless its scope has these `extensions`."""
