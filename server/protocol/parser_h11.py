"""Reading requests with h11. It only reads: answers are written by `server.protocol.response` for every parser."""

from __future__ import annotations

import re
from typing import Final

import h11

from server.protocol.head import METHODS, BadRequest, Head, make_head, raise_for_line, refusal

# What h11 accepts and llhttp refuses: control characters, lines that end without CR, folded lines (RFC 9112 5.2), equal
# Content-Length fields or values, which h11 merges, and a tab behind a transfer coding.
_REFUSED: Final = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|[^\r]\n|\r\n[ \t]"
    rb"|\r\ntransfer-encoding:[^\r]*\t *\r"
    rb"|\r\ncontent-length:(?:[^\r]*,|[^\r]*\r\n(?:[^\r]*\r\n)*?content-length:)",
    re.IGNORECASE,
)
_END: Final = b"\r\n\r\n"
_LONGEST_LINES: Final = 65536  # of a chunk's head or the trailer section; the connection's own limit is smaller


class H11Parser:
    """A `server.protocol.parser.Parser`."""

    __slots__ = ("_connection", "_tail")

    def __init__(self) -> None:
        self._connection: h11.Connection | None = None
        self._tail = b""  # the last bytes of chunked content fed

    def parse_head(self, data: bytes) -> Head:
        """See `Parser`. h11's connection object is made for one request: its state ends with the message."""
        if _REFUSED.search(data):
            raise refusal(data)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=max(len(data), _LONGEST_LINES))
        try:
            connection.receive_data(data)
            request = connection.next_event()
        except h11.RemoteProtocolError:
            raise refusal(data) from None
        if type(request) is not h11.Request:
            raise refusal(data)
        raise_for_line(request.method, request.http_version)
        self._tail = b""
        self._connection = connection
        headers = [(bytes(name), bytes(value)) for name, value in request.headers]
        return make_head(METHODS[request.method], bytes(request.target), request.http_version.decode(), headers)

    def feed_body(self, data: bytes) -> tuple[list[bytes], bytes | None]:
        """See `Parser`."""
        connection = self._connection
        assert connection is not None, "feed_body() follows a head with chunked content"
        pieces: list[bytes] = []
        try:
            connection.receive_data(data)
            while True:
                event = connection.next_event()
                if type(event) is h11.Data:
                    pieces.append(bytes(event.data))
                elif type(event) is h11.EndOfMessage:
                    break
                else:
                    self._tail = (self._tail + data[-len(_END) :])[-len(_END) :]
                    return pieces, None
        except h11.RemoteProtocolError:
            raise BadRequest(400, "The chunked content is malformed.") from None
        leftover = bytes(connection.trailing_data[0])
        # The end lies in the bytes just fed. h11 takes a bare LF for the end of the trailer section; llhttp does not.
        if not (self._tail + data[: len(data) - len(leftover)]).endswith(_END):
            raise BadRequest(400, "The chunked content is malformed.")
        return pieces, leftover
