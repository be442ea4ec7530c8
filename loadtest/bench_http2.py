"""`python -m loadtest.bench_http2 PORT SECONDS CASE LIFETIME`: requests over HTTP/2 that are all different.

A raw-frame client. Each request has a path and a cookie of its own behind the fields of a browser, in header blocks as
nghttp2 and the browsers make them (RFC 7541): Huffman-coded, every field into the table but the path, so that a new
cookie each time also pushes out what was there. It looks at no field of a response, but it counts the content; whether
a server answers rightly is seen before by `fetch`, with the h2 library. After LIFETIME requests (0: never) a connection
gives way to a new one. Prints one line of the form of wrk's script.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import struct
import sys
import time
from array import array
from collections import deque
from typing import Final, cast

import h2.config
import h2.connection
import h2.events
import uvloop
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

from loadtest.bench_cases import CASES, COUNTER, MARK, Case, fields
from loadtest.ledger import percentile

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE: Final = 4
WINDOW: Final = 1 << 30
"""Bytes, of streams and of the connection: so many that no response of a case waits for it."""
HEAD: Final = struct.Struct(">IBI")  # length and kind, flags, stream
TABLE_SIZE: Final = 4096
OVERHEAD: Final = 32  # of an entry (RFC 7541 4.1)
FIRST_DYNAMIC: Final = len(HeaderTable.STATIC_TABLE) + 1
STATIC_NAMES: Final = {name: index for index, (name, _) in reversed(list(enumerate(HeaderTable.STATIC_TABLE, 1)))}
STATIC: Final = {field: index for index, field in reversed(list(enumerate(HeaderTable.STATIC_TABLE, 1)))}
CODES: Final = [f"{code:0{size}b}" for code, size in zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113 4.1."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def integer(value: int, prefix: int, pattern: int) -> bytes:
    """Behind the bits `pattern` (RFC 7541 5.1)."""
    if value < prefix:
        return bytes((pattern | value,))
    made = bytearray((pattern | prefix,))
    value -= prefix
    while value > 127:
        made.append(128 | value & 127)
        value >>= 7
    made.append(value)
    return bytes(made)


def bits(text: bytes) -> str:
    """The Huffman code of a string (RFC 7541 appendix B), as digits."""
    return "".join(map(CODES.__getitem__, text))


def coded(code: str) -> bytes:
    """A string of which this is the code (RFC 7541 5.2)."""
    code += "1" * (-len(code) % 8)
    size = len(code) // 8
    return integer(size, 127, 128) + int(code, 2).to_bytes(size)


class Encoder:
    """The client's header table, and the blocks that are made with it."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[bytes, bytes], int] = {}
        self.order: deque[tuple[tuple[bytes, bytes], int]] = deque()
        self.newest = 0
        self.size = 0

    def field(self, field: tuple[bytes, bytes]) -> bytes:
        """The representation of a field that comes again."""
        number = self.numbers.get(field)
        if number is not None:
            return integer(FIRST_DYNAMIC + self.newest - number, 127, 128)
        index = STATIC.get(field, 0)
        return bytes((128 | index,)) if index else self.new_field(field, bits(field[1]))

    def new_field(self, field: tuple[bytes, bytes], code: str) -> bytes:
        """The representation of one that is new, whose value has this code."""
        name = field[0]
        index = STATIC_NAMES.get(name, 0)
        if name == b":path":
            return integer(index, 15, 0) + coded(code)
        self.insert(field)
        return integer(index, 63, 64) + (b"" if index else coded(bits(name))) + coded(code)

    def insert(self, field: tuple[bytes, bytes]) -> None:
        """Into the table; the oldest give way."""
        size = len(field[0]) + len(field[1]) + OVERHEAD
        self.newest += 1
        self.numbers[field] = self.newest
        self.order.append((field, size))
        self.size += size
        while self.size > TABLE_SIZE:
            gone, size = self.order.popleft()
            del self.numbers[gone]
            self.size -= size


def pseudo_fields(case: Case, port: int) -> list[tuple[bytes, bytes]]:
    """RFC 9113 8.3.1, without the path."""
    return [
        (b":method", b"POST" if case.body else b"GET"),
        (b":scheme", b"https" if case.tls else b"http"),
        (b":authority", b"127.0.0.1:%d" % port),
    ]


def plain_fields(case: Case) -> list[tuple[bytes, bytes]]:
    """The others; of HTTP/1.1's, but for those of the connection (RFC 9113 8.2.2)."""
    return [(name.lower().encode(), value.encode()) for name, value in fields(case).items() if name != "Connection"]


def begun(name: bytes, value: bytes) -> tuple[bytes, bytes, str]:
    """What of a field that ends with a number is always the same: name, value, and the value's code."""
    start = value.removesuffix(COUNTER.encode())
    return name, start, bits(start)


class Run:
    """What all connections have in common."""

    def __init__(self, case: Case, port: int, lifetime: int) -> None:
        self.case = case
        self.port = port
        self.lifetime = lifetime
        changing = [(name, value) for name, value in plain_fields(case) if value.endswith(COUNTER.encode())]
        self.same = pseudo_fields(case, port)
        self.after = [field for field in plain_fields(case) if field not in changing]
        path = b"%b?page=%b" % (case.path.encode(), COUNTER.encode())
        self.changing = [begun(name, value) for name, value in ((b":path", path), *changing)]
        self.latencies: array[float] = array("d")
        self.number = 10**9
        self.content = 0
        self.errors = 0
        self.ending = False
        self.clients: list[Client] = []
        self.connecting: set[asyncio.Future[None]] = set()
        self.tls: ssl.SSLContext | None = None

    async def connect(self) -> None:
        """One connection more."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: Client(self), "127.0.0.1", self.port, ssl=self.tls)

    def replace(self) -> None:
        """A connection has come to its end."""
        task = asyncio.ensure_future(self.connect())
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)


class Client(asyncio.Protocol):
    """One connection, with as many requests under way as the case says."""

    transport: asyncio.Transport

    def __init__(self, run: Run) -> None:
        self.run = run
        self.encoder = Encoder()
        self.left = b""
        self.begun: dict[int, float] = {}
        self.last = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio."""
        self.transport = cast(asyncio.Transport, transport)
        self.run.clients.append(self)
        settings = frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, WINDOW))
        wider = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW))
        self.transport.write(PREFACE + settings + wider + self.requests(self.run.case.streams))

    def requests(self, count: int) -> bytes:
        """The next ones, as frames."""
        run, encoder = self.run, self.encoder
        field = encoder.field
        now = time.perf_counter()
        pieces = []
        for _ in range(count):
            run.number += 1
            number = b"%d" % run.number
            code = bits(number)
            block = [field(each) for each in run.same]
            block += [encoder.new_field((name, start + number), head + code) for name, start, head in run.changing]
            block += [field(each) for each in run.after]
            self.last += 2
            self.begun[self.last] = now
            pieces.append(frame(HEADERS, END_HEADERS | END_STREAM, self.last, b"".join(block)))
        return b"".join(pieces)

    def data_received(self, data: bytes) -> None:
        """Take the frames; ask for as much as was answered."""
        if self.left:
            data = self.left + data
        at, end = 0, len(data)
        finished = 0
        run = self.run
        now = time.perf_counter()
        while end - at >= 9:
            head, flags, stream = HEAD.unpack_from(data, at)
            after = at + 9 + (head >> 8)
            if after > end:
                break
            kind = head & 255
            if kind in (DATA, HEADERS):
                if kind == DATA:
                    run.content += head >> 8
                if flags & END_STREAM:
                    finished += 1
                    run.latencies.append(now - self.begun.pop(stream))
            elif kind in (RST_STREAM, GOAWAY):
                run.errors += not run.ending
            elif kind in (SETTINGS, PING) and not flags & ACK:
                self.transport.write(frame(kind, ACK, 0, data[at + 9 : after] if kind == PING else b""))
            at = after
        self.left = data[at:]
        if finished:
            self.go_on(finished)

    def go_on(self, finished: int) -> None:
        """So many requests were answered."""
        run = self.run
        if not run.lifetime or self.last // 2 + 1 < run.lifetime:
            self.transport.write(self.requests(finished))
        elif not self.begun:
            run.clients.remove(self)
            self.transport.close()
            run.replace()

    def connection_lost(self, exc: Exception | None) -> None:
        """One that ends before the end is an error."""
        self.run.errors += not self.run.ending and self in self.run.clients


def client_context(context: ssl.SSLContext) -> ssl.SSLContext:
    """The same, asking for HTTP/2."""
    context.set_alpn_protocols(["h2"])
    return context


def unverified() -> ssl.SSLContext:
    """What `fetch` has verified already."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return client_context(context)


def fetch(case: Case, port: int, context: ssl.SSLContext | None, patience: float = 5.0) -> tuple[int, bytes]:
    """The status and the content of one response, by way of the h2 library.

    Raises OSError, or RuntimeError if the server speaks something else.
    """
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    connection.increment_flow_control_window(1 << 20)
    text = [(name.decode(), value.decode()) for name, value in pseudo_fields(case, port)]
    text.append((":path", case.path))
    connection.send_headers(1, text, end_stream=not case.body)
    connection.increment_flow_control_window(1 << 20, 1)
    if case.body:
        connection.send_data(1, b"x" * case.body, end_stream=True)
    status, content = 0, b""
    tcp = socket.create_connection(("127.0.0.1", port), patience)
    with tcp if context is None else client_context(context).wrap_socket(tcp, server_hostname="localhost") as spoken:
        spoken.sendall(connection.data_to_send())
        while data := spoken.recv(1 << 16):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers or ())[b":status"])
                elif isinstance(event, h2.events.DataReceived):
                    content += event.data or b""
                elif isinstance(event, h2.events.StreamEnded):
                    return status, content
    raise RuntimeError("the server has closed before its response was whole")


async def main(port: int, seconds: float, case: Case, lifetime: int) -> str:
    """Measure; the line to print."""
    run = Run(case, port, lifetime)
    run.tls = unverified() if case.tls else None
    begun = time.perf_counter()
    for _ in range(case.connections):
        await run.connect()
    await asyncio.sleep(seconds)
    duration = time.perf_counter() - begun
    found = sorted(run.latencies)
    run.ending = True
    for task in run.connecting:
        task.cancel()
    for client in run.clients:
        client.transport.abort()
    latencies = [round(percentile(found, share) * 1e6) for share in (0.5, 0.99)]
    short = run.content < len(found) * len(case.answer)
    return f"{MARK} [{len(found)}, {round(duration * 1e6)}, {latencies[0]}, {latencies[1]}, {run.errors + short}]"


if __name__ == "__main__":
    gc.disable()
    _, port, seconds, name, lifetime = sys.argv
    print(uvloop.run(main(int(port), float(seconds), CASES[name], int(lifetime))), flush=True)
    os._exit(0)
