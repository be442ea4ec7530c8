"""The floor over HTTP/2: frames are counted, not read, and each request has the same bytes as its answer.

It has no header table, no window and no priority: what it says first makes the client's windows as large as they can
be (RFC 9113 6.9.1), and a case's client opens its own as wide.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final, cast

from loadtest.bench_cases import Case
from loadtest.bench_http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

WIDEST: Final = (1 << 31) - 1
DEFAULT_WINDOW: Final = 65535
LARGEST_FRAME: Final = 16384
GREETING: Final = frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, WIDEST)) + frame(
    WINDOW_UPDATE, 0, 0, struct.pack(">I", WIDEST - DEFAULT_WINDOW)
)
FIELDS: Final = (
    (b"date", b"Sun, 06 Nov 1994 08:49:37 GMT"),
    (b"server", b"floor"),
    (b"content-type", b"text/plain"),
)


def block(case: Case) -> bytes:
    """The fields of each response: `:status: 200`, and the others spelled out (RFC 7541 6.2.2)."""
    fields = (*FIELDS, (b"content-length", b"%d" % len(case.answer)))
    return b"\x88" + b"".join(b"\x00%c%b%c%b" % (len(name), name, len(value), value) for name, value in fields)


class Http2Floor(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, case: Case) -> None:
        self.left = b""
        self.preface = PREFACE
        made = block(case)
        content = case.answer
        pieces = [content[at : at + LARGEST_FRAME] for at in range(0, len(content), LARGEST_FRAME)]
        last = len(pieces) - 1
        self.frames = [(len(made) << 8 | HEADERS, END_HEADERS, made)]
        self.frames += [(len(p) << 8 | DATA, END_STREAM if at == last else 0, p) for at, p in enumerate(pieces)]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer each request that has ended, all in one write."""
        data = self.left + data
        written: list[bytes] = []
        if self.preface:
            if len(data) < len(self.preface):
                self.left = data
                return
            data, self.preface = data[len(self.preface) :], b""
            written.append(GREETING)
        at, end = 0, len(data)
        while end - at >= HEAD.size:
            head, flags, stream = HEAD.unpack_from(data, at)
            after = at + HEAD.size + (head >> 8)
            if after > end:
                break
            kind = head & 255
            if kind in (HEADERS, DATA):
                if flags & END_STREAM:
                    for first, said, payload in self.frames:
                        written += (HEAD.pack(first, said, stream), payload)
            elif kind in (SETTINGS, PING) and not flags & ACK:
                written.append(frame(kind, ACK, 0, data[at + HEAD.size : after] if kind == PING else b""))
            at = after
        self.left = data[at:]
        if written:
            self.transport.write(b"".join(written))
