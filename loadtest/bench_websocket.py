"""`python -m loadtest.bench_websocket PORT CONNECTIONS SECONDS`: echoes of 64 bytes, as fast as the server gives them.

A raw-frame client: each connection has one message under way and knows the bytes of the answer beforehand, so that a
round trip costs the client one read, one comparison and one write. Prints one line of the same form as wrk's script.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from array import array
from typing import cast

import uvloop

from loadtest.bench_cases import MARK
from loadtest.ledger import percentile

PAYLOAD = b"x" * 64
MASK = b"\x12\x34\x56\x78"
FRAME = bytes((0x82, 0x80 | len(PAYLOAD))) + MASK + bytes(b ^ MASK[i % 4] for i, b in enumerate(PAYLOAD))
ANSWER = bytes((0x82, len(PAYLOAD))) + PAYLOAD
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


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
        self.transport.write(HANDSHAKE)

    def data_received(self, data: bytes) -> None:
        """The handshake's answer, then echoes."""
        if data != ANSWER or self.got or not self.open:
            self.got += data
            if not self.open and not self.opened():
                return
            if self.got and self.got != ANSWER:
                if len(self.got) >= len(ANSWER):
                    Client.errors += 1
                    self.transport.abort()
                return
            self.got = b""
        now = time.perf_counter()
        if self.sent:
            self.latencies.append(now - self.sent)
        self.sent = now
        self.transport.write(FRAME)

    def opened(self) -> bool:
        """Whether the handshake's answer is whole."""
        head, end, self.got = self.got.partition(b"\r\n\r\n")
        if not end:
            self.got = head
            return False
        self.open = head.startswith(b"HTTP/1.1 101 ")
        if not self.open:
            Client.errors += 1
            self.transport.abort()
        return self.open

    def connection_lost(self, exc: Exception | None) -> None:
        """A WebSocket that ends before the end is an error."""
        Client.errors += not Client.ending


async def main(port: int, connections: int, seconds: float) -> str:
    """Measure; the line to print."""
    loop = asyncio.get_running_loop()
    begun = time.perf_counter()
    made = [await loop.create_connection(Client, "127.0.0.1", port) for _ in range(connections)]
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
    print(uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))), flush=True)
    os._exit(0)
