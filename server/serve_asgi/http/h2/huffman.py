"""The Huffman code of HPACK (RFC 7541 5.2, appendix B), a byte at a time. Pure.

It owns decoding and encoding; the code itself is the library `hpack`'s. Decoding is a walk over states: a state is how
far into a symbol the last byte ended (there are 256, one per inner node of the code's tree), and has for each next byte
what follows from it. That is worked out when it is first needed and then kept, for all connections: a few tens of rows
for the text that clients send, and four megabytes if somebody tries to reach every one. The library walks by half
bytes, and takes three times as long. So does the compiled core, where a number in a table of 16 KiB costs less than
any object: the two are tested against each other.
"""

from __future__ import annotations

from array import array
from typing import Any, Final

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

_EOS: Final = 256
_NODE: Final = 256
"""Behind a row's 256 entries: the node of the tree it belongs to,"""
_MAY_END: Final = 257
"""and whether a string may end there: with less than a byte of padding, which is the beginning of EOS, all ones."""
_MAX_PADDING: Final = 7


_COMPILED: Final = not __file__.endswith((".py", ".pyc"))

# An entry of the table by half bytes: the next state in the lowest eight bits, a symbol in the next eight, and
_ENDED: Final = 0x10000
"""the symbol has ended here;"""
_BAD: Final = 0x20000
"""EOS has;"""
_COMPLETE: Final = 0x40000
"""a string may end here."""
_LEAST_LENGTH: Final = 5
"""Bits of the shortest code."""


class BadHuffman(Exception):
    """The string is not in the code: EOS within it, or padding that is none (RFC 7541 5.2)."""


def _tree() -> list[Any]:
    """The code as a tree: a node is a list of two, each a node or a symbol."""
    root: list[Any] = [None, None]
    for symbol, (code, length) in enumerate(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)):
        node = root
        for place in range(length - 1, 0, -1):
            bit = code >> place & 1
            if node[bit] is None:
                node[bit] = [None, None]
            node = node[bit]
        node[code & 1] = symbol
    return root


_ROOT: Final = _tree()
_rows: Final[dict[int, list[Any]]] = {}
"""By the node's identity."""


def _row(node: list[Any]) -> list[Any]:
    row = _rows.get(id(node))
    if row is None:
        row = _rows[id(node)] = [None] * 256 + [node, False]
    return row


_START: Final = _row(_ROOT)


def _mark_ends() -> None:
    node: Any = _ROOT
    for _ in range(_MAX_PADDING + 1):
        _row(node)[_MAY_END] = True
        node = node[1]


_mark_ends()


def _work_out(row: list[Any], byte: int) -> tuple[list[Any], bytes]:
    """What follows from a byte in a state: the next state, and the symbols that ended. Raises BadHuffman."""
    node: Any = row[_NODE]
    symbols = bytearray()
    for place in range(7, -1, -1):
        node = node[byte >> place & 1]
        if type(node) is int:
            if node == _EOS:
                raise BadHuffman
            symbols.append(node)
            node = _ROOT
    entry = row[byte] = (_row(node), bytes(symbols))
    return entry


_table = array("I", bytes(4 * 16 * 256))
"""What follows from four bits in each state, at 16 × state + bits."""


def fill_table() -> None:
    """Make what `decode_by_nibbles` reads: work of some milliseconds."""
    numbers = {id(_ROOT): 0}
    nodes = [_ROOT]
    complete = {node for node in _rows if _rows[node][_MAY_END]}
    for number, start in enumerate(nodes):  # which grow
        for bits in range(16):
            node: Any = start
            entry = 0
            for place in range(3, -1, -1):
                node = node[bits >> place & 1]
                if type(node) is int:
                    entry |= _BAD if node == _EOS else _ENDED | node << 8
                    node = _ROOT
            if id(node) not in numbers:
                numbers[id(node)] = len(nodes)
                nodes.append(node)
            _table[16 * number + bits] = entry | numbers[id(node)] | (_COMPLETE if id(node) in complete else 0)


if _COMPILED:
    fill_table()


def decode_by_nibbles(data: bytes) -> bytes:
    """As `decode`, once there is the table."""
    text = bytearray(8 * len(data) // _LEAST_LENGTH)
    size, entry = 0, _COMPLETE
    for byte in data:
        entry = _table[(entry & 0xFF) << 4 | byte >> 4]
        if entry & _ENDED:
            text[size] = entry >> 8 & 0xFF
            size += 1
        bad = entry & _BAD
        entry = _table[(entry & 0xFF) << 4 | byte & 0x0F]
        if entry & _ENDED:
            text[size] = entry >> 8 & 0xFF
            size += 1
        if (bad | entry) & _BAD:
            raise BadHuffman
    if not entry & _COMPLETE:
        raise BadHuffman
    return bytes(text[:size])


def decode(data: bytes) -> bytes:
    """The string that was encoded. Raises BadHuffman."""
    if _COMPILED:
        return decode_by_nibbles(data)
    row = _START
    pieces: list[bytes] = []
    append = pieces.append
    rest = iter(data)
    while True:
        byte = 0
        try:
            for byte in rest:
                row, piece = row[byte]
                append(piece)
            break
        except TypeError:  # an entry that is not worked out yet
            row, piece = _work_out(row, byte)
            append(piece)
    if not row[_MAY_END]:
        raise BadHuffman
    return b"".join(pieces)


_CODES: Final = tuple(
    format(code, f"0{length}b") for code, length in zip(REQUEST_CODES[:_EOS], REQUEST_CODES_LENGTH[:_EOS], strict=True)
)


def encode(text: bytes) -> bytes:
    """The string in the code, padded with ones."""
    if not text:
        return b""
    bits = "".join([_CODES[byte] for byte in text])
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8)
