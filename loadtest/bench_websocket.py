"""`python -m loadtest.bench_websocket PORT CONNECTIONS SECONDS [SIZE] [deflate]`: echoes, as fast as they come.

A raw-frame client: each connection has one message of SIZE bytes (64) under way and knows the bytes of the response
beforehand, so that a round trip costs the client one read, one comparison and one write. With `deflate` the message is
JSON in a text, compressed with context takeover as a browser does. Prints one line of the same form as wrk's script.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
import zlib
from array import array
from typing import cast

import uvloop

from loadtest.bench_cases import MARK
from loadtest.ledger import percentile

BINARY, TEXT = 0x82, 0x81
RSV1 = 0x40
MASK = b"\x12\x34\x56\x78"
TAIL = b"\x00\x00\xff\xff"


def head(first: int, size: int, masked: bool) -> bytes:
    """A frame's head (RFC 6455 5.2) without the key."""
    bit = 0x80 if masked else 0
    if size < 126:
        return bytes((first, bit | size))
    if size < 65536:
        return bytes((first, bit | 126)) + size.to_bytes(2)
    return bytes((first, bit | 127)) + size.to_bytes(8)


def sent(first: int, payload: bytes) -> bytes:
    """The client's frame."""
    size = len(payload)
    key = (MASK * (size // 4 + 1))[:size]
    masked = (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(size)
    return head(first, size, True) + MASK + masked


PAYLOAD = b"x" * 64
FRAME = sent(BINARY, PAYLOAD)
ANSWER = head(BINARY, len(PAYLOAD), False) + PAYLOAD
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"


class Client(asyncio.Protocol):
    """One WebSocket. `latencies` and `errors` are everybody's."""

    transport: asyncio.Transport
    latencies: array[float] = array("d")
    errors = 0
    ending = False

    def __init__(self) -> None:
        self.got = b""
        self.open = False
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(HANDSHAKE + b"\r\n")

    def data_received(self, data: bytes) -> None:
        """The handshake's response, then echoes."""
        if data != ANSWER or self.got or not self.open:
            self.got += data
            if not self.open and not self.opened():
                return
            if self.got and self.got != ANSWER:
                if len(self.got) >= len(ANSWER):
                    self.fail()
                return
            self.got = b""
        self.next()
        self.transport.write(FRAME)

    def next(self) -> None:
        """A round trip is over, and another begins."""
        now = time.perf_counter()
        if self.sent:
            self.latencies.append(now - self.sent)
        self.sent = now

    def fail(self) -> None:
        """The server has given a wrong response."""
        Client.errors += 1
        self.transport.abort()

    def opened(self) -> bool:
        """Whether the handshake's response is whole."""
        head, end, self.got = self.got.partition(b"\r\n\r\n")
        if not end:
            self.got = head
            return False
        self.open = head.startswith(b"HTTP/1.1 101 ")
        if not self.open:
            self.fail()
        return self.open

    def connection_lost(self, exc: Exception | None) -> None:
        """A WebSocket that ends before the end is an error."""
        Client.errors += not Client.ending


class Large(Client):
    """A message of several reads: gathered, then compared."""

    frame = b""
    answer = b""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = bytearray()

    def data_received(self, data: bytes) -> None:
        """As above."""
        if not self.open:
            self.got += data
            if not self.opened():
                return
            data, self.got = self.got, b""
        if data or self.sent:
            self.gathered += data
            if len(self.gathered) < len(self.answer):
                return
            if self.gathered != self.answer:
                self.fail()
                return
            self.gathered.clear()
        self.next()
        self.transport.write(self.frame)


class Compressed(Client):
    """permessage-deflate (RFC 7692)."""

    text = b""

    def __init__(self) -> None:
        super().__init__()
        self.compressor = zlib.compressobj(wbits=-9)  # any window that may be agreed on is as large
        self.decompressor = zlib.decompressobj(wbits=-15)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(HANDSHAKE + DEFLATE + b"\r\n")

    def data_received(self, data: bytes) -> None:
        """As above."""
        self.got += data
        if not self.open and not self.opened():
            return
        if self.got or self.sent:
            size, start = self.got[1] & 127, 2
            if size == 126:
                size, start = int.from_bytes(self.got[2:4]), 4
            if len(self.got) < start + size:
                return
            if self.decompressor.decompress(self.got[start:] + TAIL) != self.text:
                self.fail()
                return
            self.got = b""
        self.next()
        payload = self.compressor.compress(self.text) + self.compressor.flush(zlib.Z_SYNC_FLUSH)
        self.transport.write(sent(TEXT | RSV1, payload[:-4]))


def client(size: int, compressed: bool) -> type[Client]:
    """The kind of client for a message."""
    if compressed:
        text = json.dumps([{"id": i, "name": f"item {i}", "price": i * 1.25} for i in range(size // 40 + 1)])
        Compressed.text = text[:size].encode()
        return Compressed
    if size == len(PAYLOAD):
        return Client
    payload = os.urandom(size)
    Large.frame = sent(BINARY, payload)
    Large.answer = head(BINARY, size, False) + payload
    return Large


async def main(port: int, connections: int, seconds: float, kind: type[Client]) -> str:
    """Measure; the line to print."""
    loop = asyncio.get_running_loop()
    begun = time.perf_counter()
    made = [await loop.create_connection(kind, "127.0.0.1", port) for _ in range(connections)]
    await asyncio.sleep(seconds)
    duration = time.perf_counter() - begun
    found = sorted(Client.latencies)
    Client.ending = True
    for transport, _ in made:
        transport.abort()
    latencies = [round(percentile(found, share) * 1e6) for share in (0.5, 0.99)]
    errors = Client.errors + (not found)
    return f"{MARK} [{len(found)}, {round(duration * 1e6)}, {latencies[0]}, {latencies[1]}, {errors}]"


if __name__ == "__main__":
    gc.disable()
    _, port, connections, seconds, *rest = sys.argv
    kind = client(int(rest[0]) if rest else len(PAYLOAD), "deflate" in rest)
    print(uvloop.run(main(int(port), int(connections), float(seconds), kind)), flush=True)
    os._exit(0)
