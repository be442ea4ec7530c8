"""Reading a request head by the letter of RFC 9112: the judge over what the parsers' libraries say.

It owns the grammar of a whole head and the sentence that tells what is wrong with one. It is pure. What llhttp reads
at once is inside this grammar; what llhttp refuses, and everything with h11, is read here, so that the verdict on a
head is the same with every parser, and so are the events.
"""

from __future__ import annotations

from typing import Final

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

_WHITE: Final = b" \t"


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
