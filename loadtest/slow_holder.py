"""`python -m loadtest.slow_holder KIND PORT COUNT RATE [tls]`: slow clients of one kind, in a process of their own.

It opens COUNT connections, says `open` on its stdout, and drips RATE bytes per second over all of them, one byte at a
time and in turn, until its stdin ends. Then it says how many of them the server had ended by then, and leaves.
With `tls` they are slow after a TLS handshake, or in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import resource
import select
import socket
import ssl
import sys
import time

from loadtest.bench_tls import client_hello

MASK = b"\x12\x34\x56\x78"
TIMEOUT = 30.0
"""Seconds for a connection to be opened and, where the kind has one, for its first response."""
SMALL_BUFFER = 4096
"""Bytes of SO_RCVBUF of a client that does not read: the less the kernel takes, the more the server has to keep."""


def frame(text: bytes) -> bytes:
    """A text message in one masked frame (RFC 6455 5.2); at most 125 bytes."""
    return bytes((0x81, 0x80 | len(text))) + MASK + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(text))


def request(line: str, *fields: str) -> bytes:
    """A request head."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: loadtest", *fields, "", ""]).encode()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One way of being slow."""

    name: str
    what: str
    start: bytes = b""
    """Sent at once."""
    answered: bytes = b""
    """The connection counts as open when a response has come that ends with this."""
    drip: bytes = b""
    """Sent byte by byte, again and again."""
    asks_for_much: bool = False
    """And reads nothing of it by itself."""
    reads: bool = False
    """What drips is what is read."""
    hello: float = 0.0
    """Of TLS: this part of a ClientHello is sent, and nothing else; 1.0 is all of it."""


HANDSHAKE = request(
    "GET /?id=0",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)
ALL = [
    Kind(name="idle", what="one answered request, then silence", start=request("GET /"), answered=b"\n"),
    Kind(name="silent", what="connected, and not a byte"),
    Kind(name="line", what="half a request line, then silence", start=b"GET /hal"),
    Kind(name="head", what="drips header fields", start=b"GET / HTTP/1.1\r\nHost: loadtest\r\n", drip=b"X-Slow: 1\r\n"),
    Kind(
        name="body",
        what="drips content with Content-Length",
        start=request("POST /echo?id=0", "Content-Length: 1000000"),
        drip=b"x",
    ),
    Kind(
        name="chunked",
        what="drips chunks of one byte",
        start=request("POST /echo?id=0", "Transfer-Encoding: chunked"),
        drip=b"1\r\nx\r\n",
    ),
    Kind(name="unread", what="asks for 1 MiB and reads nothing", start=request("GET /large"), asks_for_much=True),
    Kind(
        name="reader",
        what="asks for 1 MiB and drips in reading",
        start=request("GET /large"),
        asks_for_much=True,
        reads=True,
    ),
    Kind(
        name="websocket",
        what="drips frames of a WebSocket",
        start=HANDSHAKE,
        answered=b"hello",
        drip=frame(b"0 " + b"x" * 60),
    ),
    Kind(name="hello", what="half a ClientHello, then silence", hello=0.5),
    Kind(name="handshake", what="a ClientHello, answered, then silence", hello=1.0),
]
KINDS = {kind.name: kind for kind in ALL}
OF_TLS = [kind.name for kind in ALL if kind.hello]
"""The kinds that there are over TLS alone."""
UNPROVEN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
UNPROVEN.check_hostname, UNPROVEN.verify_mode = False, ssl.CERT_NONE


def opened(kind: Kind, port: int, tls: bool) -> socket.socket:
    """A connection that has begun to be slow. Raises OSError."""
    made = socket.socket()
    made.settimeout(TIMEOUT)
    if kind.asks_for_much:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    made.connect(("127.0.0.1", port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if kind.hello:
        message = client_hello(None)
        record = b"\x16\x03\x01" + len(message).to_bytes(2) + message
        made.sendall(record[: round(len(record) * kind.hello)])
        if kind.hello == 1.0:
            made.recv(1)  # the server has done its part: what is measured is who waits, not the work of the handshakes
    elif tls:
        made = UNPROVEN.wrap_socket(made)
    made.sendall(kind.start)
    got = b""
    while kind.answered and not got.endswith(kind.answered):
        piece = made.recv(65536)
        if not piece:
            raise OSError(f"the server ended a connection after {got!r}")
        got += piece
    if kind.asks_for_much:
        made.recv(1)  # the server has written what it could
    made.setblocking(False)
    return made


class Holder:
    """The connections, and whose turn it is."""

    def __init__(self, kind: Kind, connections: list[socket.socket]) -> None:
        self.kind = kind
        self._connections = connections
        self._turns = itertools.cycle(range(len(connections)))
        self._sent = [0] * len(connections)

    def drip(self) -> None:
        """One byte on the next connection."""
        turn = next(self._turns)
        with contextlib.suppress(OSError):  # it has been ended, or takes nothing more
            if self.kind.reads:
                self._connections[turn].recv(1)
            elif self.kind.drip:
                sent = self._sent[turn]
                self._sent[turn] += self._connections[turn].send(self.kind.drip[sent % len(self.kind.drip) :][:1])

    def ended(self) -> int:
        """How many the server has ended."""
        poll = select.poll()
        for connection in self._connections:
            poll.register(connection, select.POLLRDHUP)  # and POLLERR and POLLHUP, always
        return len(poll.poll(0))


def main(kind: Kind, port: int, count: int, rate: float, tls: bool) -> None:
    """Hold them until stdin ends."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    holder = Holder(kind, [opened(kind, port, tls) for _ in range(count)])
    print("open", flush=True)
    due = time.monotonic()
    stdin = select.poll()
    stdin.register(0, select.POLLIN)
    while not stdin.poll(max(0.0, due - time.monotonic()) * 1000):
        holder.drip()
        due = max(due + 1.0 / rate, time.monotonic() - 1.0)  # a hold-up is not made up for by a burst of many
    print(holder.ended(), flush=True)


if __name__ == "__main__":
    _, name, port, count, rate, *rest = sys.argv
    main(KINDS[name], int(port), int(count), float(rate), rest == ["tls"])
