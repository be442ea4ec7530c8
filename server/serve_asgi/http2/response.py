"""The response to one request over HTTP/2: which frames are made of what the application sends.

It owns the fields of the head (RFC 9113 8.3.2), and what goes with the end of the stream. Frames, windows and the order
of bodies are the core's (`serve_asgi.http.h2`); what an application may send is `serve_asgi.http.response`'s. It must
not know the connection: what it needs of its stream is `ResponseStream`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Protocol

from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.h2.response_fields import STATUS_FIELDS, fields_of_lines
from serve_asgi.http.response import LARGEST_HEADERS, Response, ResponseSink
from serve_asgi.http.response_framing import NONE, ResponseFraming, wrong_length
from serve_asgi.http.response_head import ResponseFlag, without
from serve_asgi.http.response_states import FILE, LOST, STARTED
from serve_asgi.http.sendfile import FileBody, PieceOutput
from serve_asgi.http.worker_context import Message

KNOWN_HEADERS: Final = 512
"""Encoded headers of responses that are kept as fields."""

_OWN_LINES: Final = int(ResponseFlag.DATE | ResponseFlag.SERVER)


class ResponseOutput(PieceOutput, Protocol):
    """What responses over HTTP/2 are written through."""

    def send_interim(self, fields: list[Field]) -> None:
        """An interim response."""

    def send_head(self, fields: list[Field], ended: bool) -> None:
        """The head; `ended`: nothing follows it."""

    def send_response(self, fields: list[Field], body: bytes) -> None:
        """The head and the whole body, perhaps empty."""

    def send_data(self, data: bytes, ended: bool) -> None:
        """Some of the body; `ended`: the last of it, and no trailers follow."""

    def send_trailers(self, fields: list[Field]) -> None:
        """The end, behind the body."""


class ResponseStream(ResponseSink, Protocol):
    """A stream, as far as its response needs it."""

    @property
    def output(self) -> ResponseOutput:
        """What is written through."""


class Http2Response(Response):
    """One response."""

    __slots__ = ()

    output: ResponseOutput

    def _write_hints(self, hints: bytes) -> None:
        self.output.send_interim([STATUS_FIELDS[103], *fields_of_lines(hints.partition(b"\r\n")[2])])

    def _fields(self, flags: int) -> list[Field]:
        """Those of the head, the server's own included; other responses may have the same list."""
        block, default = self._block, self.worker.default_headers
        if flags & _OWN_LINES:
            default = without(default, flags)
        if len(block) > LARGEST_HEADERS:
            return [STATUS_FIELDS[self.status], *fields_of_lines(block), *_known_fields(default)]
        return _known_head(self.status, block, default)

    def _first(self, body: bytes, more: bool) -> None:
        """Write the head together with the first of the body."""
        size, length, flags = len(body), self._length, self._flags
        output, request_body = self.output, self.request.body
        if more or flags or self.head.method == "HEAD" or (request_body is not None and not request_body.whole):
            self._first_of_any(body, more)
            return
        if 0 <= length != size:
            raise RuntimeError(wrong_length(size, length))
        fields = self._fields(flags)
        if length < 0:
            fields = [*fields, (b"content-length", b"%d" % size)]
        self.sent = size
        output.send_response(fields, body)
        self._complete()

    def _first_of_any(self, body: bytes, more: bool) -> None:
        size, output = len(body), self.output
        framing = self._write_head(size, more)
        if framing.kind is NONE:
            self._end_without_body(more)
            return
        self.sent = size
        if size or not more:
            output.send_data(body, not more and not framing.trailers_follow)
        if more:
            self._go_on_streaming()
        else:
            self._body_sent(framing)

    def _write_head(self, size: int, more: bool) -> ResponseFraming:
        framing = self._frame(size, more)
        fields = self._fields(self._flags)
        if framing.field:
            fields = fields + fields_of_lines(framing.field)
        if self.request.body is not None:
            self.request.body.may_continue = False
        self.output.send_head(fields, framing.kind is NONE)
        return framing

    def write_next(self, body: bytes, more: bool) -> None:
        """Write further body."""
        size, framing = len(body), self._framing
        assert framing is not None
        framing.advance(size, more)
        self.sent += size
        if size or not more:
            self.output.send_data(body, not more and not framing.trailers_follow)
        if not more:
            self._body_sent(framing)

    def _take_trailers(self, message: Message) -> None:
        assert self._framing is not None
        lines = self._framing.take_trailers(message)
        if lines is not None:
            self.output.send_trailers(fields_of_lines(lines))
            self._complete()

    async def _write_file(self, file: FileBody, more: bool) -> None:
        size = file.left
        if self.state is STARTED:
            framing = self._write_head(size, more)
            if framing.kind is NONE:
                self._end_without_body(more)
                return
        else:
            assert self._framing is not None
            framing = self._framing
            framing.advance(size, more)
        self.state = FILE
        await self._send_announced(file)
        if self.state is LOST:
            return
        if more:
            self._go_on_streaming()
            return
        if not framing.trailers_follow:
            self.output.send_data(b"", True)
        self._body_sent(framing)

    async def _copy(self, file: FileBody) -> None:
        await file.send_pieces(self.output)


@lru_cache(KNOWN_HEADERS)
def _known_head(status: int, block: bytes, default: bytes) -> list[Field]:
    return [STATUS_FIELDS[status], *_known_fields(block), *_known_fields(default)]


@lru_cache(KNOWN_HEADERS)
def _known_fields(lines: bytes) -> tuple[Field, ...]:
    return tuple(fields_of_lines(lines))
