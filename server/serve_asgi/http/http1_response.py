"""The response to one HTTP/1.1 request: which bytes are written when.

It owns the head's bytes, and whether the connection persists after them; how the body is delimited is
`serve_asgi.http.response_framing`'s. It writes through the connection's write buffer, and tells the connection when it
is complete. What an application may send is `serve_asgi.http.response`'s.
"""

from __future__ import annotations

from typing import Final, Protocol

from serve_asgi.http.response import Response, ResponseSink
from serve_asgi.http.response_framing import CHUNKED, NONE, BodyFraming, ResponseFraming, chunk_start, wrong_length
from serve_asgi.http.response_head import CLOSE, STATUS_LINES, ResponseFlag, without
from serve_asgi.http.response_states import FILE, LOST, STARTED
from serve_asgi.http.sendfile import FileBody, FileSink
from serve_asgi.http.worker_context import Message, WorkerPhase
from serve_asgi.http.write_buffer import LARGE, WriteBuffer

_CLOSE: Final = int(ResponseFlag.CLOSE)
_OWN_LINES: Final = int(ResponseFlag.DATE | ResponseFlag.SERVER)
_SERVING: Final = WorkerPhase.SERVING
_CLOSING: Final = WorkerPhase.CLOSING
_HANDING_OVER: Final = WorkerPhase.HANDING_OVER


class Http1Sink(ResponseSink, FileSink, Protocol):
    """The connection, as far as a response needs it."""

    output: WriteBuffer

    def is_stationary(self) -> bool:
        """Whether it cannot move to another worker."""

    def requests_wait(self) -> bool:
        """Whether more has been read after the present request: it is answered before the connection is closed."""


class Http1Response(Response):
    """One response."""

    __slots__ = ()

    _connection: Http1Sink
    output: WriteBuffer

    def _write_hints(self, hints: bytes) -> None:
        if self.head.version == "1.1":
            self.output.hold(hints)

    def _first(self, body: bytes, more: bool) -> None:
        """Write the head together with the first of the body."""
        worker, head, output, length, size = self.worker, self.head, self.output, self._length, len(body)
        request_body = self.request.body
        if (
            more
            or self._flags
            or not head.keep_alive
            or worker.phase is not _SERVING
            or not worker.persistent
            or head.method == "HEAD"
            or size > LARGE
            or (request_body is not None and not request_body.whole)
        ):
            framing = self._frame(size, more)
            start = self._head_bytes(framing, more)
            if framing.kind is NONE:
                output.write(start)
                self._end_without_body(more)
                return
            payload = framing.payload(body, more)
            self.sent = size
            if size > LARGE and payload:
                output.write_large(start, payload)
                start = b""
            elif payload:
                start += payload
            if not more:
                if start:
                    output.write(start)
                self._body_sent(framing)
            else:
                if start:
                    output.hold(start)
                self._go_on_streaming()
        elif length == size:
            self.sent = size
            output.write(b"".join((STATUS_LINES[self.status], self._block, worker.persistent, b"\r\n", body)))
            self._complete()
        elif length < 0:
            self.sent = size
            output.write(
                b"%b%b%bcontent-length: %d\r\n\r\n%b"
                % (STATUS_LINES[self.status], self._block, worker.persistent, size, body)
            )
            self._complete()
        else:
            raise RuntimeError(wrong_length(size, length))

    def _is_last(self) -> bool:
        """Whether the connection ends with this response, because the worker retires."""
        connection = self._connection
        phase = self.worker.phase
        ends = phase is _CLOSING or (phase is _HANDING_OVER and connection.is_stationary())
        return ends and not connection.requests_wait()

    def _leaves_body(self) -> bool:
        """Whether too much of the request's body is still to come for it to be read after the response."""
        body = self.request.body
        return body is not None and not body.whole and not body.discardable()

    def _head_bytes(self, framing: ResponseFraming, more: bool) -> bytes:
        """The head; decides whether the connection persists. With `more`, body is still to come on the wire."""
        worker, head, flags, request_body = self.worker, self.head, self._flags, self.request.body
        self.close = close = (
            not head.keep_alive
            or bool(worker.phase is not _SERVING and self._is_last())
            or bool(worker.announce_close and not self._connection.requests_wait())
            or not worker.config.keep_alive
            or flags & _CLOSE != 0
            or framing.kind is BodyFraming.CLOSE
            or (not (more and framing.kind is not NONE) and self._leaves_body())
        )
        if request_body is not None:
            request_body.may_continue = False
        default = worker.default_headers
        return b"".join(
            (
                STATUS_LINES[self.status],
                self._block,
                b"\r\n",
                without(default, flags) if flags & _OWN_LINES else default,
                CLOSE if close else worker.keep_alive_lines,
                framing.field,
                b"\r\n",
            )
        )

    def write_next(self, body: bytes, more: bool) -> None:
        """Write further body."""
        size = len(body)
        output, framing = self.output, self._framing
        assert framing is not None
        if more and framing.kind is CHUNKED:
            if size:
                self.sent += size
                output.hold_framed(chunk_start(size), body, b"\r\n")
            return
        framing.advance(size, more)
        payload = framing.payload(body, more)
        self.sent += size
        if not more:
            if len(payload) > LARGE:
                output.write_large(payload)
            elif payload:
                output.write(payload)
            else:
                output.flush()
            self._body_sent(framing)
        elif payload:
            output.hold(payload)

    def _take_trailers(self, message: Message) -> None:
        assert self._framing is not None
        lines = self._framing.take_trailers(message)
        if lines is not None:
            self.output.write(b"0\r\n%b\r\n" % lines)
            self._complete()

    async def _write_file(self, file: FileBody, more: bool) -> None:
        output, size, start = self.output, file.left, b""
        if self.state is STARTED:
            framing = self._frame(size, more)
            start = self._head_bytes(framing, more)
            if framing.kind is NONE:
                self.output.write(start)
                self._end_without_body(more)
                return
        else:
            assert self._framing is not None
            framing = self._framing
            framing.advance(size, more)
        self.state = FILE
        before, behind = framing.around(size, more)
        if start or before:
            output.hold(start + before)
        await self._send_announced(file)
        if self.state is LOST:
            return
        if more:
            if behind:
                output.hold(behind)
            self._go_on_streaming()
        else:
            output.write(behind)
            self._body_sent(framing)

    async def _copy(self, file: FileBody) -> None:
        await file.send(self._connection)
