"""Reading requests with h11. It only reads: answers are written by `serve_asgi.http.response_head` for every parser."""

from __future__ import annotations

import h11

from serve_asgi.http.head_grammar import read_head
from serve_asgi.http.request_head import BadRequest, Head


class H11Parser:
    """A `serve_asgi.http.parser.Parser`.

    h11 puts up with more than RFC 9112 allows, and merges what it may: every head is read strictly as well, and served
    only if h11 finds the same request in it.
    """

    __slots__ = ()

    def parse_head(self, data: bytes) -> Head:
        """See `Parser`. h11's connection object is made for one request: its state ends with the message."""
        head = read_head(data)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(data))
        try:
            connection.receive_data(data)
            request = connection.next_event()
        except h11.RemoteProtocolError:
            raise BadRequest(400, "The request head is malformed.") from None
        if type(request) is not h11.Request or request.target != head.target:
            raise BadRequest(400, "The request head is malformed.")
        return head
