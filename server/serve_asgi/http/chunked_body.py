"""Reading a body in chunked transfer coding (RFC 9112 7.1), one reader for every parser.

It owns the grammar of chunks and of the trailer section, and where a message ends. It is pure. Rules: the verdict on a
stream of bytes does not depend on where the stream was split; nothing but the grammar passes, since two readers that
disagree about a chunk disagree about where the next request begins.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from serve_asgi.http.request_head import FIELD_LINE, TOKEN, BadRequest

MAX_LINE: Final = 8192
"""Bytes of a line around the body's bytes: a chunk's size with its extensions, or a trailer field."""

# RFC 9112 7.1, 7.1.1. Of the size, at most 15 digits after leading zeros: above 64 bits readers begin to disagree, and
# below them there is room for more than an exbibyte. Extensions are read strictly, then ignored, as 7.1.1 demands.
# Only single characters are repeated possessively: of a group, CPython before 3.11.5 takes a part for the whole
# (gh-106052). Each repetition of a group here begins with what nothing before it can be, so that it is linear anyway.
_QUOTED: Final = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_SIZE_LINE: Final = re.compile(
    rb"(?=[0-9A-Fa-f])0*+([0-9A-Fa-f]{0,15}+)"
    rb"(?:[ \t]*+;[ \t]*+" + TOKEN + rb"(?:[ \t]*+=[ \t]*+(?:" + TOKEN + rb"|" + _QUOTED + rb"))?)*\r\n"
)
_SIZE_START: Final = re.compile(rb"[0-9A-Fa-f]++(?:[ \t]*+;[\t -~\x80-\xff]*+|[ \t]*+)\r?")
_FIELD_START: Final = re.compile(rb"(?:" + TOKEN + rb"(?::[\t -~\x80-\xff]*+)?)?\r?")

# RFC 9110 6.5.1: never in a trailer section. Trailer fields are dropped here, so these could do no harm; a sender of
# them hopes for another reader.
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"host"))

_CREDIT: Final = 8  # bytes around the body that each of its bytes pays for; chunks of one byte have 5
_SHORT_LINE: Final = 8  # never more than the credit of its chunk
_MAX_SIZES: Final = 1024
_sizes: dict[bytes, int] = {}
"""Short valid lines of sizes seen before, with CRLF: senders use few sizes, and a look-up is cheap."""


class _Part(enum.Enum):
    """What comes next: SIZE -> DATA -> DATA_END -> SIZE … SIZE -> TRAILERS -> END."""

    SIZE = "size"
    DATA = "data"
    DATA_END = "data end"
    TRAILERS = "trailers"
    END = "end"


_SIZE: Final = _Part.SIZE
_DATA: Final = _Part.DATA
_DATA_END: Final = _Part.DATA_END
_TRAILERS: Final = _Part.TRAILERS
_END: Final = _Part.END


class ChunkReader:
    """Reads the body of one message."""

    __slots__ = ("_left", "_limit", "_max_size", "_overhead", "_part", "_pending", "_size")

    def __init__(self, limit: int, max_size: int = 0) -> None:
        """`limit`: bytes of extensions and trailer fields, beyond what the body itself justifies.

        `max_size`: of the body, 0 for any.
        """
        self._limit = limit
        self._max_size = max_size
        self._size = 0
        self._overhead = 0
        self._part = _SIZE
        self._left = 0  # DATA: bytes of the chunk that have not arrived
        self._pending = b""  # the beginning of a line, or of the end of a chunk

    def feed(self, data: bytes) -> tuple[list[bytes], bytes | None]:
        """The pieces of the body in `data`; and None, or once the message is complete the bytes after it.

        Raises BadRequest.
        """
        pieces, rest = self._feed(data)
        if self._max_size:
            self._size += sum(map(len, pieces))
            if self._size > self._max_size:
                raise BadRequest(413, f"The request body is larger than {self._max_size} bytes.")
        return pieces, rest

    def _feed(self, data: bytes) -> tuple[list[bytes], bytes | None]:
        if self._pending:
            data = self._pending + data
            self._pending = b""
        pieces: list[bytes] = []
        position, size = 0, len(data)
        part = self._part
        while position < size:
            if part is _SIZE:
                end = data.find(b"\r\n", position, position + _SHORT_LINE) + 2
                left = _sizes.get(data[position:end])
                if left is None:
                    line = _SIZE_LINE.match(data, position, position + MAX_LINE)
                    if line is None:
                        self._wait_for_line(data, position, _SIZE_START, "A chunk's size or extension is malformed.")
                        break
                    end = line.end()
                    left = int(line[1] or b"0", 16)
                    self._count(end - position - _CREDIT * left)
                    if end - position <= _SHORT_LINE and len(_sizes) < _MAX_SIZES:
                        _sizes[line[0]] = left
                elif self._overhead:
                    self._count(-_CREDIT * left)
                position = end
                if left:
                    end = position + left
                    if data.startswith(b"\r\n", end):  # the whole chunk is there
                        pieces.append(data[position:end])
                        position = end + 2
                    else:
                        self._left = left
                        part = _DATA
                else:
                    part = _TRAILERS
            elif part is _DATA:
                left = self._left
                end = position + left
                if end > size:
                    pieces.append(data[position:] if position else data)
                    self._left = end - size
                    break
                pieces.append(data[position:end])
                position = end
                part = _DATA_END
            elif part is _DATA_END:
                if data.startswith(b"\r\n", position):
                    position += 2
                    part = _SIZE
                elif position + 1 == size and data[position] == 13:
                    self._pending = b"\r"
                    break
                else:
                    raise BadRequest(400, "A chunk is longer than its size.")
            else:
                position, part = self._read_trailer(data, position)
                if part is _END:
                    self._part = part
                    return pieces, data[position:]
                if self._pending:
                    break
        self._part = part
        return pieces, None

    def _read_trailer(self, data: bytes, position: int) -> tuple[int, _Part]:
        """Skip one trailer field, or the empty line that ends the message."""
        if data.startswith(b"\r\n", position):
            return position + 2, _END
        field = FIELD_LINE.match(data, position, position + MAX_LINE)
        if field is None:
            self._wait_for_line(data, position, _FIELD_START, "A trailer is malformed.")
            return position, _TRAILERS
        self._count(field.end() - position)
        if field[1].lower() in _FRAMING:
            raise BadRequest(400, "A trailer frames or routes the message, which only the head may do.")
        return field.end(), _TRAILERS

    def _count(self, size: int) -> None:
        """Count bytes around the body. Raises BadRequest for too many (RFC 9112 7.1.1: there ought to be a limit)."""
        self._overhead = max(self._overhead + size, 0)
        if self._overhead > self._limit:
            raise BadRequest(400, "The chunks of the body have too much overhead.")

    def _wait_for_line(self, data: bytes, position: int, start: re.Pattern[bytes], reason: str) -> None:
        """Keep the part of a line that has arrived. Raises BadRequest if it cannot become a valid one."""
        line = data[position:]
        if len(line) >= MAX_LINE or not start.fullmatch(line):
            raise BadRequest(400, reason)
        self._pending = line
