"""Reading requests with httptools (llhttp), in its strict mode."""

from __future__ import annotations

import httptools

from serve_asgi.http.head_grammar import read_head
from serve_asgi.http.request_head import METHODS, Head, make_head


class HttptoolsParser:
    """A `serve_asgi.http.parser.Parser`."""

    __slots__ = ("_headers", "_parser", "_url")

    def __init__(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._url = b""
        self._parser: httptools.HttpRequestParser | None = None

    # llhttp's callbacks
    def on_url(self, url: bytes) -> None:
        """The request-target; a head is always fed whole, so there is one call."""
        self._url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field; llhttp leaves white space after the value."""
        self._headers.append((name.lower(), value.rstrip()))

    def parse_head(self, data: bytes) -> Head:
        """See `Parser`."""
        headers: list[tuple[bytes, bytes]] = []
        self._headers = headers
        parser, self._parser = self._parser, None  # it comes back only if it is ready for another head
        if parser is None:
            parser = httptools.HttpRequestParser(self)
        upgrade = False
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            upgrade = True  # it has stopped at the head's end, as it should, for good
        except httptools.HttpParserError:
            return read_head(data)
        raw_method = parser.get_method()
        method = METHODS.get(raw_method)
        url = self._url
        # llhttp puts up with several spaces in the request line; RFC 9112 3 knows exactly one.
        after_target = len(raw_method) + 1 + len(url)
        if method is None:
            return read_head(data)
        if data.startswith(b" HTTP/1.1\r\n", after_target):
            head = make_head(method, url, "1.1", headers)
        elif data.startswith(b" HTTP/1.0\r\n", after_target):
            head = make_head(method, url, "1.0", headers)
        else:
            return read_head(data)
        if not head.body and not upgrade:  # it expects no content
            self._parser = parser
        return head
