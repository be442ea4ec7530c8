"""The window of a DEFLATE stream that is being read: the text up to here that what follows may refer to. Pure.

zlib knows it (inflateGetDictionary), but Python has no call for that. So the stream is asked in its own language: a
copy of it reads a block that says "repeat what stood so many bytes ago" (RFC 1951 3.2.5), until all of its window has
come out. That costs nothing until somebody asks, and some 100 µs then; remembering the text beside zlib would cost
every message. It must not know messages or frames. Window sizes are in bits: one of 12 bits holds 4 KiB.
"""

from __future__ import annotations

import zlib
from typing import Final

LONGEST: Final = 258
"""What one match repeats at most (RFC 1951 3.2.5): symbol 285,"""
LONGEST_CODE: Final = "11000101"
"""and its code in a block of fixed codes (3.2.6), which begins and ends so:"""
FIXED_BLOCK: Final = "010"
END_OF_BLOCK: Final = "0000000"
PROBE: Final = b"does a block begin here?"


def between_blocks(stream: zlib._Decompress) -> bool:
    """Whether a block begins here, with a byte; all that the stream has read must have come out.

    It does after each whole message, unless its sender has broken RFC 7692 7.2.1 in a way that zlib reads on.
    """
    copy = stream.copy()
    try:
        return copy.decompress(_stored(PROBE)) == PROBE and not copy.eof
    except zlib.error:
        return False


def window_of(stream: zlib._Decompress, bits: int) -> bytes:
    """What a stream that stands `between_blocks` remembers: 2 ** `bits` bytes, or all if it has come to fewer."""
    size = 1 << bits
    if not _repeated(stream, size, LONGEST):  # as long as it is not full, how much is there shows by trying
        some, beyond = 0, size
        while beyond - some > 1:
            size = (some + beyond) // 2
            if _repeated(stream, size, LONGEST):
                some = size
            else:
                beyond = size
        size = some
    return _repeated(stream, size, size) if size else b""


def stream_after(window: bytes, bits: int) -> zlib._Decompress:
    """A stream that reads on where one with this window stood; at most 2 ** 15 bytes."""
    stream = zlib.decompressobj(-bits)
    if window:  # as a `zdict` Python would hold it beside zlib for as long as the stream lives
        stream.decompress(_stored(window))
    return stream


def _stored(data: bytes) -> bytes:
    """A block that is not compressed (RFC 1951 3.2.4)."""
    return b"\0" + len(data).to_bytes(2, "little") + (len(data) ^ 0xFFFF).to_bytes(2, "little") + data


def _repeated(stream: zlib._Decompress, distance: int, size: int) -> bytes:
    """The `size` bytes that begin `distance` bytes ago, again and again if those are fewer; b"" if they never came."""
    match = LONGEST_CODE + _distance_code(distance)
    bits = FIXED_BLOCK + match * -(-size // LONGEST) + END_OF_BLOCK
    try:
        return stream.copy().decompress(int(bits[::-1], 2).to_bytes(len(bits) // 8 + 1, "little"))[:size]
    except zlib.error:
        return b""


def _distance_code(distance: int) -> str:
    """Its bits in the order in which a fixed block has them (RFC 1951 3.2.5, 3.2.6), for 1 to 32768."""
    above = distance - 1
    if above < 4:
        return f"{above:05b}"
    extra = above.bit_length() - 2
    code = 2 * (extra + 1) + (above >> extra & 1)
    return f"{code:05b}" + f"{above & (1 << extra) - 1:0{extra}b}"[::-1]
