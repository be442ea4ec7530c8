"""Writing header blocks: HPACK (RFC 7541) with a table that our side fills. Pure.

It owns our dynamic table, and what goes into it. Rules: what was sent once is spelled out, as it stands; what the
process sends for the second time, on whichever connection, is likely to come again and goes into the connection's
table, Huffman-coded; from then on it is a byte or two. So ids and lengths, which are new each time, cost a copy and
disturb no table, and what an application always sends is soon small. Fields that must not be guessed by trying
(RFC 7541 7.1) never go into a table. It must not know what else fields mean, nor frames.
"""

from __future__ import annotations

from typing import Final

from serve_asgi.http.h2 import huffman
from serve_asgi.http.h2.header_decoder import ENTRY_OVERHEAD, FIRST_DYNAMIC, STATIC_ENTRIES, Field
from serve_asgi.http.h2.limits import MAX_TABLE_SIZE

SECRET: Final = frozenset((b"set-cookie", b"authorization", b"proxy-authorization", b"cookie"))
"""Sent as never to be indexed, by proxies either (RFC 7541 6.2.3, 7.1.3)."""
_CHANGING: Final = frozenset((b"content-length", b"content-range", b"date", b"age", b"etag", b"location", b":path"))
"""Other values each time, or soon: the date alone would push everything else out of the table within a minute."""

MAX_KNOWN: Final = 1024
_MAX_KNOWN_SIZE: Final = 1024
_known: dict[Field, bytes] = {}
"""Fields that the process has spelled out, so that they are likely to come again, with how: not indexed."""

_STATIC: Final = {field: bytes((0x80 | index,)) for index, field in reversed(list(enumerate(STATIC_ENTRIES, 1)))}
_NAMES: Final = {name: index for index, (name, _) in reversed(list(enumerate(STATIC_ENTRIES, 1)))}


def integer(value: int, prefix: int, pattern: int) -> bytes:
    """An integer behind the bits `pattern` of its first byte, in which it has `prefix`, all ones (RFC 7541 5.1)."""
    if value < prefix:
        return bytes((pattern | value,))
    pieces = bytearray((pattern | prefix,))
    value -= prefix
    while value >= 0x80:
        pieces.append(0x80 | value & 0x7F)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)


_INDEXED: Final = tuple(integer(FIRST_DYNAMIC + age, 0x7F, 0x80) for age in range(MAX_TABLE_SIZE // ENTRY_OVERHEAD + 1))
"""The entry that is so many newer entries old."""


class HeaderEncoder:
    """Our table, and what writes with it."""

    __slots__ = ("_block", "_fields", "_max_size", "_newest", "_order", "_size", "_smallest")

    def __init__(self) -> None:
        self._order: dict[Field, int] = {}
        """The table, the oldest entry first, with the number that each one had among all that went in."""
        self._newest = 0
        self._size = 0
        self._max_size = MAX_TABLE_SIZE
        self._smallest = MAX_TABLE_SIZE + 1
        """The smallest size that it has had since the last block; more than the largest: it has not changed."""
        self._fields: list[Field] | None = None
        """Those of the last block, if the same block says them again,"""
        self._block = b""
        """and that."""

    def encode(self, fields: list[Field]) -> bytes:
        """The block of these fields; names are in lower case, pseudo-header fields first."""
        if fields == self._fields:
            return self._block
        self._fields = None
        pieces = []
        if self._smallest <= MAX_TABLE_SIZE:
            pieces.append(self._size_changes())
        again = not pieces
        static, order, known = _STATIC.get, self._order.get, _known.get
        for field in fields:
            piece = static(field)
            if piece is None:
                number = order(field)
                if number is not None:
                    piece = _INDEXED[self._newest - number]
                else:
                    piece = known(field)
                    if piece is None:
                        piece = _spelled_out(field)
                        again = False
                    elif field[0] not in _CHANGING:
                        inserted = self._insert(field)
                        if inserted:
                            piece = inserted
                            again = False
            pieces.append(piece)
        block = b"".join(pieces)
        if again:
            self._fields, self._block = fields.copy(), block
        return block

    def _insert(self, field: Field) -> bytes:
        """Take a field into the table (RFC 7541 6.2.1); empty if it is too large to be worth it, or secret."""
        name, value = field
        size = len(name) + len(value) + ENTRY_OVERHEAD
        if size * 2 > self._max_size or name in SECRET:
            return b""
        self._size += size
        self._newest += 1
        self._order[field] = self._newest
        self._evict()
        index = _NAMES.get(name, 0)
        start = integer(index, 0x3F, 0x40)
        return start + (b"" if index else _shortest(name)) + _shortest(value)

    def _evict(self) -> None:
        order = self._order
        while self._size > self._max_size:
            name, value = field = next(iter(order))
            del order[field]
            self._size -= len(name) + len(value) + ENTRY_OVERHEAD

    def limit_table(self, size: int) -> None:
        """The client has said how large our table may be (RFC 9113 6.5.2): as much of it as we want is used."""
        size = min(size, MAX_TABLE_SIZE)
        if size != self._max_size:
            self._max_size = size
            self._smallest = min(self._smallest, size)
            self._fields = None
            self._evict()

    def _size_changes(self) -> bytes:
        """RFC 7541 4.2: the smallest of several changes, and the last."""
        smallest, self._smallest = self._smallest, MAX_TABLE_SIZE + 1
        change = integer(self._max_size, 0x1F, 0x20)
        return change if smallest == self._max_size else integer(smallest, 0x1F, 0x20) + change

    # ---- what travels with the connection

    @property
    def entries(self) -> list[Field]:
        """The oldest first."""
        return list(self._order)

    @property
    def sizes(self) -> tuple[int, int]:
        """The table's size, and the smallest that has not been said yet (more than the largest: there is none)."""
        return self._max_size, self._smallest

    def restore(self, sizes: tuple[int, int], entries: list[Field]) -> None:
        """The reverse of the two."""
        self._max_size, self._smallest = sizes
        for field in entries:
            self._newest += 1
            self._order[field] = self._newest
            self._size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD


def _spelled_out(field: Field) -> bytes:
    """A field that is in no table and shall not be (RFC 7541 6.2.2, 6.2.3), as it stands."""
    name, value = field
    secret = name in SECRET
    index = _NAMES.get(name, 0)
    start = integer(index, 0x0F, 0x10 if secret else 0x00)
    piece = start + (b"" if index else _plain(name)) + _plain(value)
    if not secret and len(piece) <= _MAX_KNOWN_SIZE:
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        _known[field] = piece
    return piece


def _plain(text: bytes) -> bytes:
    return integer(len(text), 0x7F, 0x00) + text


def _shortest(text: bytes) -> bytes:
    coded = huffman.encode(text)
    return integer(len(coded), 0x7F, 0x80) + coded if len(coded) < len(text) else _plain(text)
