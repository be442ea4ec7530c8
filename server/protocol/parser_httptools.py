"""Reading requests with httptools (llhttp), in its strict mode."""

from __future__ import annotations

from typing import Final

import httptools

from server.protocol.head import CHUNKED, METHODS, BadRequest, Head, make_head, raise_for_line, refusal

# Chunked content is read by a parser of its own, so that the parser of heads needs no callback for content. With
# `close`, llhttp refuses every byte after the message instead of reading it as the next request.
_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
_END: Final = b"\r\n\r\n"
_TAIL: Final = len(_END) - 1


class HttptoolsParser:
    """A `server.protocol.parser.Parser`."""

    __slots__ = ("_body", "_headers", "_parser", "_url")

    def __init__(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._url = b""
        self._parser: httptools.HttpRequestParser | None = None
        self._body: _ChunkedBody | None = None

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
        parser = self._parser
        if parser is None:
            self._parser = parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._parser = None  # it has stopped at the head's end, as it should, for good
        except httptools.HttpParserError:
            raise refusal(data) from None
        raw_method = parser.get_method()
        url = self._url
        # llhttp puts up with several spaces in the request line; RFC 9112 3 knows exactly one, and so does h11.
        after_target = len(raw_method) + 1 + len(url)
        if data.startswith(b" HTTP/1.1\r\n", after_target):
            version = "1.1"
        elif data.startswith(b" HTTP/1.0\r\n", after_target):
            version = "1.0"
        else:
            raise refusal(data)
        method = METHODS.get(raw_method)
        if method is None:
            raise_for_line(raw_method, version.encode())
            raise refusal(data)
        head = make_head(method, url, version, headers)
        if head.body:
            self._parser = None  # it expects content, which it will not be given
            if head.body == CHUNKED:
                self._body = _ChunkedBody()
        return head

    def feed_body(self, data: bytes) -> tuple[list[bytes], bytes | None]:
        """See `Parser`."""
        assert self._body is not None, "feed_body() follows a head with chunked content"
        return self._body.feed(data)


class _ChunkedBody:
    """One message's chunked content.

    llhttp does not say where in a piece of bytes a message ended. But it can only end directly after CRLFCRLF, so it
    is fed in pieces that are cut after each of these (also where one straddles two reads), and what remains is what
    follows.
    """

    __slots__ = ("_complete", "_parser", "_pieces", "_tail")

    def __init__(self) -> None:
        self._complete = False
        self._pieces: list[bytes] = []
        self._tail = b""  # the last bytes fed
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_CHUNKED_HEAD)

    def on_body(self, data: bytes) -> None:
        """A decoded piece."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """The content is complete."""
        self._complete = True

    def feed(self, data: bytes) -> tuple[list[bytes], bytes | None]:
        """See `Parser.feed_body`."""
        pieces: list[bytes] = []
        self._pieces = pieces
        start, end = 0, self._first_cut(data)
        while start < len(data):
            try:
                self._parser.feed_data(data if end - start == len(data) else data[start:end])
            except httptools.HttpParserError:
                raise BadRequest(400, "The chunked content is malformed.") from None
            if self._complete:
                return pieces, data[end:]
            start = end
            end = data.find(_END, start) + len(_END)
            if end < len(_END):
                end = len(data)
        self._tail = (self._tail + data[-_TAIL:])[-_TAIL:]
        return pieces, None

    def _first_cut(self, data: bytes) -> int:
        tail = self._tail
        if tail:
            straddling = (tail + data[:_TAIL]).find(_END)
            if straddling >= 0:
                return straddling + len(_END) - len(tail)
        found = data.find(_END)
        return len(data) if found < 0 else found + len(_END)
