"""From a connection's header blocks to heads, trailers, or what is wrong with them; what repeats is kept. Pure.

It owns the decoder with the client's table, the limits on what a block unpacks to (RFC 9113 10.5.1), and a memory of
the last blocks: a client that asks for the same sends the same bytes, and while its table does not change they mean
the same. Rules: every block goes through here in its order, also one whose stream is gone; the memory never changes a
result; it holds few heads, and rests where nothing repeats. It must not know frames or streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode
from serve_asgi.http.h2.header_decoder import ENTRY_OVERHEAD, Field, HeaderDecoder, list_size
from serve_asgi.http.h2.limits import BOMB_RATIO
from serve_asgi.http.h2.priorities import DEFAULT_PRIORITY, StreamPriority, read_priority
from serve_asgi.http.h2.request_fields import check_fields, check_trailers, read_request
from serve_asgi.http.request_head import BadRequest, Head

KEPT: Final = 16
"""Heads kept for a connection; the next one empties the memory."""
LARGEST_KEPT: Final = 512
"""Blocks of more bytes are not kept."""
PATIENCE: Final = 4 * KEPT
"""After so many blocks in a row that were not among them, nothing is kept for sixteen times as many."""


class RequestReader:
    """Of one connection."""

    __slots__ = ("_check", "_kept", "_kept_at", "_max_size", "_misses", "_suspect", "decoder", "method")

    def __init__(self, max_head_size: int, check: Callable[[Head], None]) -> None:
        """`max_head_size`: bytes of a head as RFC 9113 6.5.2 counts them.

        `check` raises BadRequest for a head that the configured limits refuse.
        """
        self._max_size = max_head_size
        self._check = check
        self.decoder = HeaderDecoder()
        self._suspect = False
        """A field that is malformed has come, and may be in the table: from now on every field is looked at."""
        self._kept: tuple[dict[bytes, Kept], dict[bytes, Kept]] = ({}, {})
        """Of requests with a body, and of those without one."""
        self._kept_at = 0
        """To which state of the table they belong."""
        self._misses = 0
        self.method = b""
        """Of the request that was refused last, as far as it could be read."""

    def read(self, block: bytes, ended: bool) -> tuple[Head, StreamPriority]:
        """The head of a request and its priority; `ended`: it has no body.

        Raises BadRequest; ConnectionFault.
        """
        kept = self._kept[ended]
        known = kept.get(block)
        decoder = self.decoder
        if known is not None and self._kept_at == decoder.changes:
            self._misses = 0
            return known
        before = decoder.changes
        fields, literals = decoder.decode(block)
        try:
            self._check_size(fields, block)
            if literals or self._suspect:
                self._check_fields(fields if self._suspect else literals)
            head, said = read_request(fields, ended)
            self._check(head)
        except BadRequest:
            self.method = _method_of(fields)
            raise
        result = head, (read_priority(said) if said else DEFAULT_PRIORITY)
        misses = self._misses = self._misses + 1
        if misses < PATIENCE:
            if decoder.changes == before and len(block) <= LARGEST_KEPT:  # else it means something else next time
                self._keep(kept, block, result)
        elif misses == PATIENCE:
            kept.clear()
        elif misses > 17 * PATIENCE:
            self._misses = 0
        return result

    def _keep(self, kept: dict[bytes, Kept], block: bytes, result: Kept) -> None:
        changes = self.decoder.changes
        if self._kept_at != changes:
            self._kept_at = changes
            for each in self._kept:
                each.clear()
        elif len(kept) >= KEPT:
            kept.clear()
        kept[block] = result

    def _check_size(self, fields: list[Field], block: bytes) -> None:
        """Raises BadRequest if the head is too large, ConnectionFault if it is far too large."""
        limit = self._max_size
        # Nothing is added up where it cannot be too much: what is spelled out is at most 8/5 of the block.
        if len(fields) * (self.decoder.largest + ENTRY_OVERHEAD) + 2 * len(block) <= limit:
            return
        size = list_size(fields, BOMB_RATIO * limit)
        if size > BOMB_RATIO * limit:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM, f"a request head of more than {BOMB_RATIO * limit} bytes"
            )
        if size > limit:
            raise BadRequest(431, f"The request head is larger than {limit} bytes.")

    def _check_fields(self, fields: list[Field]) -> None:
        try:
            check_fields(fields)
        except BadRequest:
            self._suspect = True
            raise

    def read_trailers(self, block: bytes) -> list[Field]:
        """Raises BadRequest; ConnectionFault."""
        fields, _ = self.decoder.decode(block)
        self._check_size(fields, block)
        self._check_fields(fields)
        check_trailers(fields)
        return fields

    def skip(self, block: bytes) -> None:
        """A block that means nothing any more, but for the table. Raises ConnectionFault."""
        _, literals = self.decoder.decode(block)
        with contextlib.suppress(BadRequest):
            self._check_fields(literals)

    def restore(self, max_size: int, entries: list[Field]) -> None:
        """The decoder's table in another process; nobody says there whether its entries were looked at."""
        self.decoder.restore(max_size, entries)
        with contextlib.suppress(BadRequest):
            self._check_fields(entries)


def _method_of(fields: list[Field]) -> bytes:
    return next((value for name, value in fields if name == b":method"), b"")


Kept = tuple[Head, StreamPriority]
