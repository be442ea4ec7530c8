"""Reading header blocks: HPACK (RFC 7541) with the table that the client's encoder fills. Pure.

It owns the client's dynamic table and the representations of fields; a block is given whole
(`serve_asgi.http.h2.header_blocks` puts it together). Rules: every block of the connection goes through here, in the
order in which they came, also those that nobody answers, since each may change the table; what is wrong with a block
ends the connection (RFC 9113 4.3), as nobody could read the next one. A block's fields are references into the table:
a block of n bytes makes at most n of them, and copies nothing but its own literals, so that what a small block unpacks
to (an HPACK bomb) is counted before anybody multiplies it. It must not know what fields mean.

docs/how-it-works/http2-header-compression.md says why it is not the library's decoder.
"""

from __future__ import annotations

from typing import Final

from hpack.table import HeaderTable

from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode
from serve_asgi.http.h2.huffman import BadHuffman
from serve_asgi.http.h2.huffman import decode as decode_huffman
from serve_asgi.http.h2.limits import MAX_TABLE_SIZE, MAX_TABLE_UPDATES

Field = tuple[bytes, bytes]

ENTRY_OVERHEAD: Final = 32
"""What an entry counts beside its name and value (RFC 7541 4.1)."""
STATIC_ENTRIES: Final[tuple[Field, ...]] = HeaderTable.STATIC_TABLE
"""RFC 7541 appendix A; the first one has the index 1."""
FIRST_DYNAMIC: Final = len(STATIC_ENTRIES) + 1

_INDEXED: Final = 0x80
_FIRST_DYNAMIC_BYTE: Final = _INDEXED | FIRST_DYNAMIC
_LONG_INDEX: Final = 0xFF
_BYTES: Final = _LONG_INDEX - _FIRST_DYNAMIC_BYTE
"""Entries of the dynamic table that one byte can mean."""
_STATIC_NAMES: Final = (b"", *(name for name, _ in STATIC_ENTRIES))
_INCREMENTAL: Final = 0x40
_TABLE_SIZE: Final = 0x20
_MAX_INTEGER_SHIFT: Final = 21
"""Of an integer five bytes are read, at most 2^28 and a prefix: nothing here is as large (RFC 7541 5.1)."""


class HeaderDecoder:
    """The client's table, and what reads with it."""

    __slots__ = ("_by_byte", "_entries", "_max_size", "_size", "changes", "largest")

    def __init__(self) -> None:
        self._entries: list[Field] = []
        """The newest is the last."""
        self._by_byte: list[Field | None] = [None] * (_INDEXED + 1) + [*STATIC_ENTRIES] + [None] * (_BYTES + 1)
        """What a field in one byte means, which most fields are."""
        self._size = 0
        self._max_size = MAX_TABLE_SIZE
        self.changes = 0
        """How often the table has changed: a block means the same as long as this is the same."""
        self.largest = 64
        """No field of the tables has, or had, a name and a value that are longer than this together."""

    def decode(self, block: bytes) -> tuple[list[Field], list[Field]]:
        """The fields of a block in their order; and those that were spelled out in it, which nobody has seen before.

        Raises ConnectionFault.
        """
        fields: list[Field] = []
        literals: list[Field] = []
        entries, by_byte = self._entries, self._by_byte
        position, end = 0, len(block)
        updates = 0
        try:
            while position < end:
                first = block[position]
                position += 1
                known = by_byte[first]
                if known is not None:  # RFC 7541 6.1
                    fields.append(known)
                    continue
                if first >= _INDEXED:
                    if first < _LONG_INDEX:
                        raise IndexError
                    index, position = read_integer(block, position, 0x7F)
                    fields.append(entries[FIRST_DYNAMIC - 1 - index])
                    continue
                if first >= _INCREMENTAL:  # 6.2.1
                    index = first & 0x3F
                    if index == 0x3F:
                        index, position = read_integer(block, position, 0x3F)
                elif first >= _TABLE_SIZE:  # 6.3
                    size, position = _integer(block, position, first, 0x1F)
                    updates += 1
                    if fields or updates > MAX_TABLE_UPDATES or size > MAX_TABLE_SIZE:
                        raise _fault("a change of the table's size that may not be")
                    self._resize(size)
                    continue
                else:  # without indexing, 6.2.2; never to be indexed, 6.2.3, which is for proxies to know
                    index = first & 0x0F
                    if index == 0x0F:
                        index, position = read_integer(block, position, 0x0F)
                if not index:
                    name, position = _string(block, position)
                elif index < FIRST_DYNAMIC:
                    name = _STATIC_NAMES[index]
                else:
                    name = entries[FIRST_DYNAMIC - 1 - index][0]
                # The value: as `_string` has it.
                length = block[position]
                position += 1
                coded = length & 0x80
                length &= 0x7F
                if length == 0x7F:
                    length, position = read_integer(block, position, 0x7F)
                after = position + length
                value = block[position:after]
                if after > end:
                    raise _fault("it ends within a value")
                position = after
                if coded:
                    value = decode_huffman(value)
                field = (name, value)
                fields.append(field)
                literals.append(field)
                if first >= _INCREMENTAL:
                    self._insert(field)
        except IndexError:
            raise _fault("it ends within a field, or names an entry that the table does not have") from None
        except BadHuffman:
            raise _fault("a string that is not in the Huffman code") from None
        return fields, literals

    def _insert(self, field: Field) -> None:
        """RFC 7541 2.3.2, 4.4: an entry larger than the table empties it."""
        length = len(field[0]) + len(field[1])
        if length > self.largest:
            self.largest = length
        self.changes += 1
        self._entries.append(field)
        by_byte = self._by_byte
        by_byte.insert(_FIRST_DYNAMIC_BYTE, field)
        del by_byte[-2]  # the last means an index of more bytes
        self._size += length + ENTRY_OVERHEAD
        if self._size > self._max_size:
            self._evict()

    def _resize(self, size: int) -> None:
        self._max_size = size
        self.changes += 1
        self._evict()

    def _evict(self) -> None:
        """Let the oldest go until the rest fits."""
        entries, gone = self._entries, 0
        size = self._size
        while size > self._max_size:
            name, value = entries[gone]
            size -= len(name) + len(value) + ENTRY_OVERHEAD
            gone += 1
        del entries[:gone]
        self._size = size
        left = len(entries)
        if left < _BYTES:
            oldest = _FIRST_DYNAMIC_BYTE + left
            self._by_byte[oldest:_LONG_INDEX] = [None] * (_LONG_INDEX - oldest)

    # ---- what travels with the connection

    @property
    def max_size(self) -> int:
        """What the client's encoder has made of the table's size."""
        return self._max_size

    @property
    def entries(self) -> list[Field]:
        """The oldest first."""
        return list(self._entries)

    def restore(self, max_size: int, entries: list[Field]) -> None:
        """The reverse of the two."""
        self._max_size = max_size
        for field in entries:
            self._insert(field)


def list_size(fields: list[Field], limit: int) -> int:
    """What the fields come to as RFC 9113 6.5.2 counts it; no more is counted once it exceeds `limit`."""
    size = 0
    for name, value in fields:
        size += len(name) + len(value) + ENTRY_OVERHEAD
        if size > limit:
            break
    return size


def read_integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    """An integer that its prefix, all ones, does not hold, and the position behind it (RFC 7541 5.1).

    Raises ConnectionFault; IndexError if the block ends within it.
    """
    value = prefix
    for shift in range(0, _MAX_INTEGER_SHIFT + 1, 7):
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _fault("an integer that is too large")


def _integer(block: bytes, position: int, first: int, prefix: int) -> tuple[int, int]:
    value = first & prefix
    if value < prefix:
        return value, position
    return read_integer(block, position, prefix)


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """RFC 7541 5.2. Raises ConnectionFault, IndexError, BadHuffman."""
    first = block[position]
    length, position = _integer(block, position + 1, first, 0x7F)
    end = position + length
    text = block[position:end]
    if end > len(block):
        raise _fault("it ends within a name")
    return (decode_huffman(text) if first & 0x80 else text), end


def _fault(what: str) -> ConnectionFault:
    return ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"a header block cannot be read: {what}")
