"""Responses of the server's own on a stream: the health endpoint's, and those to what is not served.

Their bytes are made once for both protocols, as HTTP/1.1 has them (`serve_asgi.http.health`, `refusals`); this makes
frames of them. It must not know why they are given.
"""

from __future__ import annotations

import math
from typing import Protocol

from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.events import Fields
from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.h2.response_fields import STATUS_FIELDS, fields_of_lines
from serve_asgi.http.worker_context import WorkerContext


class RespondingConnection(Protocol):
    """The connection, as far as a response of its own needs it."""

    worker: WorkerContext
    core: ConnectionCore

    @property
    def blocked(self) -> bool:
        """The transport takes no more, which is judged elsewhere."""

    def flush_soon(self) -> None:
        """Write what the core has to say, once, at the end of this turn of the loop."""

    def expect(self, deadline: float) -> None:
        """A handler has a deadline (loop time, s)."""

    def forget_stream(self, stream_id: int) -> None:
        """Nobody works for the stream any more."""


def fields_of_head(head: bytes) -> list[Field]:
    """The fields of a response's head that is given as HTTP/1.1 has it, without the empty line."""
    line, _, lines = head.partition(b"\r\n")
    return [STATUS_FIELDS[int(line[9:12])], *fields_of_lines(lines)]


def write_response(core: ConnectionCore, stream_id: int, response: bytes) -> None:
    """Send a whole response that is given as HTTP/1.1 has it."""
    head, _, body = response.partition(b"\r\n\r\n")
    core.send_response(stream_id, fields_of_head(head), body)


class OwnResponse:
    """One that does not end at once: the client's window takes nothing of it, or the request has a body."""

    __slots__ = ("_code", "_connection", "_sent", "_stream_id", "begun", "deadline")

    def __init__(self, connection: RespondingConnection, stream_id: int, code: ErrorCode) -> None:
        """`code`: with which the stream is reset behind it, unless the request has ended."""
        self._connection = connection
        self._stream_id = stream_id
        self._code = code
        self._sent = -1
        self.begun = math.inf
        self.deadline = math.inf

    def begin(self, response: bytes) -> bool:
        """Send it. Whether anything is left to do."""
        core, stream_id = self._connection.core, self._stream_id
        core.discard(stream_id)
        write_response(core, stream_id, response)
        core.done(stream_id)
        if core.waits(stream_id):
            self._watch()
            return True
        core.reset(stream_id, self._code)
        return False

    def _watch(self) -> None:
        worker = self._connection.worker
        self._sent = self._connection.core.progress(self._stream_id)
        self.deadline = worker.loop.time() + worker.config.write_timeout
        self._connection.expect(self.deadline)

    def receive_data(self, data: bytes) -> None:
        """The body is discarded by the core."""

    def receive_end(self, trailers: Fields) -> None:
        """What ends the request changes nothing."""

    def receive_reset(self) -> None:
        """The client wants nothing of it."""
        self._connection.forget_stream(self._stream_id)

    def receive_eof(self) -> None:
        """The client may still read."""

    def drained(self) -> None:
        """All of it has gone out."""
        self._connection.core.reset(self._stream_id, self._code)
        self._connection.forget_stream(self._stream_id)

    def lose(self) -> None:
        """The connection has ended."""

    def expire(self) -> None:
        """The client takes nothing of it."""
        core, stream_id = self._connection.core, self._stream_id
        if core.progress(stream_id) != self._sent or self._connection.blocked:
            self._watch()
            return
        core.reset(stream_id, ErrorCode.CANCEL)
        self._connection.forget_stream(stream_id)
        self._connection.flush_soon()

    def retire(self) -> None:
        """It ends by itself."""

    def cut(self) -> bool:
        """Nothing of an application's is cut."""
        return False

    def opt_in(self, extensions: object, version: int | None) -> None:
        """No application is called."""
