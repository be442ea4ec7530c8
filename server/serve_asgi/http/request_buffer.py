"""What has arrived on a connection and belongs to no request yet, and the request heads in it. Pure.

It owns the search for the end of a head, and the verdict on a head that is too large or can never become one (RFC 9112
2.2, 3). Rules: the verdict does not depend on the pieces in which the bytes have arrived; slow senders cost no
quadratic work; bytes that are not taken stay as they came, so that they can move to another worker. It must not know
time, sockets or what a head means.
"""

from __future__ import annotations

from typing import Final

from serve_asgi.http.request_head import BadRequest, endless_target, hopeless

MAX_EMPTY_LINES: Final = 8
"""Empty lines that are skipped on one connection, besides one for each request."""


class RequestBuffer(bytearray):
    """Bytes to which a connection adds what arrives, and from which it takes whole heads."""

    __slots__ = ("_empty_lines", "scanned")

    def __init__(self) -> None:
        super().__init__()
        self.scanned = 0
        """Bytes that are known to hold no end of a head."""
        self._empty_lines = 0

    def take_head(self, max_size: int, max_target: int, requests: int) -> bytes:
        """The head at the beginning, taken out; empty if none is whole. `requests`: were answered on this connection.

        Raises BadRequest.
        """
        while self[:2] == b"\r\n":  # RFC 9112 2.2: empty lines before a request line are skipped
            del self[:2]
            self.scanned = 0
            self._empty_lines += 1
            if self._empty_lines > MAX_EMPTY_LINES + requests:
                raise BadRequest(400, "There are too many empty lines before the request.")
        if not self:
            return b""
        end = self.find(b"\r\n\r\n", max(self.scanned - 3, 0)) + 4
        if end > max_size or (end == 3 and len(self) >= max_size):
            raise self._too_large(max_size, max_target)
        if end == 3:
            self._check_start(max_target)
            return b""
        head = bytes(self[:end])
        del self[:end]
        self.scanned = 0
        return head

    def holds_part_of_head(self) -> bool:
        """Whether a request has begun to arrive: more than half an empty line."""
        return bool(self) and self != b"\r"

    def _check_start(self, max_target: int) -> None:
        """A part of a head must look like one. Raises BadRequest."""
        if self == b"\r":
            return  # half an empty line
        refused = endless_target(self, max_target) if len(self) > max_target else None
        refused = refused or hopeless(self, self.scanned)
        if refused is not None:
            raise refused
        self.scanned = len(self)

    def _too_large(self, max_size: int, max_target: int) -> BadRequest:
        """The verdict on a head of more than `max_size` bytes."""
        start = self[:max_size]
        return (
            endless_target(start, max_target)
            or hopeless(start, 0)
            or BadRequest(431, f"The request head is larger than {max_size} bytes.")
        )
