"""Reading requests with httptools (llhttp), in its strict mode."""

from __future__ import annotations

import httptools

from server.protocol.chunks import ChunkReader
from server.protocol.head import CHUNKED, METHODS, Head, make_head
from server.protocol.strict import read_head


class HttptoolsParser:
    """A `server.protocol.parser.Parser`."""

    __slots__ = ("_chunks", "_headers", "_parser", "_url")

    def __init__(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._url = b""
        self._parser: httptools.HttpRequestParser | None = None
        self._chunks: ChunkReader | None = None

    # llhttp's callbacks
    def on_url(self, url: bytes) -> None:
        """The request-target; a head is always fed whole, so there is one call."""
        self._url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field; llhttp leaves white space after the value."""
        self._headers.append((name.lower(), value.rstrip()))

    def parse_head(self, data: bytes) -> Head:
        """See `Parser`."""
        head = self._read(data)
        if head.body:
            self._parser = None  # it expects content, which it will not be given
            if head.body == CHUNKED:
                self._chunks = ChunkReader()
        return head

    def _read(self, data: bytes) -> Head:
        headers: list[tuple[bytes, bytes]] = []
        self._headers = headers
        parser = self._parser
        if parser is None:
            self._parser = parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._parser = None  # it has stopped at the head's end, as it should, for good
        except httptools.HttpParserError:
            self._parser = None
            return read_head(data)
        raw_method = parser.get_method()
        method = METHODS.get(raw_method)
        url = self._url
        # llhttp puts up with several spaces in the request line; RFC 9112 3 knows exactly one.
        after_target = len(raw_method) + 1 + len(url)
        if method is not None:
            if data.startswith(b" HTTP/1.1\r\n", after_target):
                return make_head(method, url, "1.1", headers)
            if data.startswith(b" HTTP/1.0\r\n", after_target):
                return make_head(method, url, "1.0", headers)
        self._parser = None
        return read_head(data)

    def feed_body(self, data: bytes) -> tuple[list[bytes], bytes | None]:
        """See `Parser`."""
        assert self._chunks is not None, "feed_body() follows a head with chunked content"
        return self._chunks.feed(data)
