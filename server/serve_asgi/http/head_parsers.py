"""Reading a request head: two libraries behind one narrow interface, with the letter of RFC 9112 as the judge of both.

A parser is pure: it is given bytes and returns what they mean; it knows no socket, no clock and no application. It is
given only whole request heads (a head ends at the first CRLFCRLF); a body with a Content-Length is counted and chunks
are read by `serve_asgi.http.request_body` for every parser. So no parser ever sees a byte that it might have to give
back, a half-sent head stays raw bytes that can move to another worker, and the bytes after a message are always known.

What llhttp reads at once is inside the grammar of `read_head`; what llhttp refuses, and everything with h11, is read
there, so that the verdict on a head is the same with every parser, and so are the events. Responses are written by
`serve_asgi.http.response_head`, whichever parser read the request. A library is imported when its parser is made.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from serve_asgi.http.request_head import (
    FIELD_LINE,
    METHODS,
    REQUEST_LINE,
    BadRequest,
    Head,
    bad_line,
    make_head,
    raise_for_line,
)

if TYPE_CHECKING:
    import httptools

_WHITE: Final = b" \t"


class Parser(Protocol):
    """Reads heads, one after another; nothing of one, valid or not, shows in the next."""

    def parse_head(self, data: bytes) -> Head:
        """Read one whole request head, from the request line up to and including CRLFCRLF. Raises BadRequest."""


def parser_factory(name: str) -> Callable[[], Parser]:
    """What makes the parsers of the option --http: "httptools", "h11", or "auto" (httptools where it is installed)."""
    if name == "auto":
        name = "h11" if importlib.util.find_spec("httptools") is None else "httptools"
    if name == "httptools":
        return HttptoolsParser
    return H11Parser


_USUAL: Final = (
    b"Accept Accept-Encoding Accept-Language Authorization Cache-Control Connection Content-Length Content-Type Cookie "
    b"Forwarded Host If-Modified-Since If-None-Match Origin Pragma Priority Range Referer Sec-Fetch-Dest "
    b"Sec-Fetch-Mode Sec-Fetch-Site Sec-Fetch-User TE Traceparent Transfer-Encoding Upgrade "
    b"Upgrade-Insecure-Requests User-Agent X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto X-Real-IP X-Request-ID "
    b"sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform"
).split()
_LOWER: Final = {spelt: name.lower() for name in _USUAL for spelt in (name, name.lower())}
"""Names as clients spell them, in lower case: to find one costs less than to make it."""
_SPACE: Final = 32


class HttptoolsParser:
    """Reads with httptools (llhttp), in its strict mode."""

    __slots__ = ("_headers", "_httptools", "_parser", "_url")

    def __init__(self) -> None:
        import httptools

        self._httptools = httptools
        self._headers: list[tuple[bytes, bytes]] = []
        self._url = b""
        self._parser: httptools.HttpRequestParser | None = None

    # llhttp's callbacks
    def on_url(self, url: bytes) -> None:
        """The request-target; a head is always fed whole, so there is one call."""
        self._url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field; llhttp leaves white space after the value."""
        known = _LOWER.get(name)
        if value and value[-1] <= _SPACE:  # perhaps: what is no white space stays
            value = value.rstrip()
        self._headers.append((name.lower() if known is None else known, value))

    def parse_head(self, data: bytes) -> Head:
        """See `Parser`."""
        headers: list[tuple[bytes, bytes]] = []
        self._headers = headers
        parser, self._parser = self._parser, None  # it comes back only if it is ready for another head
        if parser is None:
            parser = self._httptools.HttpRequestParser(self)
        upgrade = False
        try:
            parser.feed_data(data)
        except self._httptools.HttpParserUpgrade:
            upgrade = True  # it has stopped at the head's end, as it should, for good
        except self._httptools.HttpParserError:
            return read_head(data)
        raw_method = parser.get_method()
        method = METHODS.get(raw_method)
        url = self._url
        # llhttp tolerates several spaces in the request line; RFC 9112 3 knows exactly one.
        after_target = len(raw_method) + 1 + len(url)
        if method is None:
            return read_head(data)
        if data.startswith(b" HTTP/1.1\r\n", after_target):
            head = make_head(method, url, "1.1", headers)
        elif data.startswith(b" HTTP/1.0\r\n", after_target):
            head = make_head(method, url, "1.0", headers)
        else:
            return read_head(data)
        if not head.body and not upgrade:  # it expects no body
            self._parser = parser
        return head


class H11Parser:
    """Reads with h11.

    h11 tolerates more than RFC 9112 allows, and merges what it may: every head is read strictly as well, and served
    only if h11 finds the same request in it.
    """

    __slots__ = ("_h11",)

    def __init__(self) -> None:
        import h11

        self._h11 = h11

    def parse_head(self, data: bytes) -> Head:
        """See `Parser`. h11's connection object is made for one request: its state ends with the message."""
        head = read_head(data)
        h11 = self._h11
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(data))
        try:
            connection.receive_data(data)
            request = connection.next_event()
        except h11.RemoteProtocolError:
            raise BadRequest(400, "The request head is malformed.") from None
        if type(request) is not h11.Request or request.target != head.target:
            raise BadRequest(400, "The request head is malformed.")
        return head


def read_head(data: bytes) -> Head:
    """The head in `data`, which ends at the first CRLFCRLF. Raises BadRequest."""
    line = REQUEST_LINE.match(data)
    if line is None:
        raise bad_line(data)
    raise_for_line(line[1], line[3], line[4])
    headers: list[tuple[bytes, bytes]] = []
    position, end = line.end(), len(data) - 2
    while position < end:
        field = FIELD_LINE.match(data, position)
        if field is None:
            raise BadRequest(400, _what_is_wrong(data, position))
        headers.append((field[1].lower(), field[2].strip(_WHITE)))
        position = field.end()
    version = "1.0" if line[4] == b"0" else "1.1"
    return make_head(METHODS[line[1]], line[2], version, headers)


def _what_is_wrong(data: bytes, position: int) -> str:
    """A sentence about the malformed field line at `position`."""
    line = data[position : data.index(b"\r\n", position)]
    if line[:1] in (b" ", b"\t"):
        return "A header is folded over several lines, or there is whitespace before the first."
    if b"\0" in line:
        return "A header contains a NUL byte."
    if b"\n" in line:
        return "Lines of the request head end without a carriage return."
    if b"\r" in line:
        return "A header contains a carriage return."
    name, colon, _ = line.partition(b":")
    if not colon:
        return "A line of the request head has no colon."
    if name[-1:] in (b" ", b"\t"):
        return "There is whitespace between the name of a header and its colon."
    return "A header has a name or a value with characters that are not allowed."
