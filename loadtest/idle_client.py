"""Holds idle connections open: `python -m loadtest.idle_client PORT COUNT [tls]`.

Each connection has had one request answered. Once all stand it prints a line, and it holds them until its stdin ends.
It is a process of its own, so that client and server each have their own open-files limit.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time

PER_ADDRESS = 10_000
"""Connections from one source address: there are some 28,000 ports for each."""
AT_ONCE = 50
"""Connections that are opened before the first of them is read from: fewer than the shortest backlog (100)."""
PATIENCE = 120.0
"""Seconds within which all of them must stand."""
REQUEST = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


def hold(port: int, count: int, secure: bool) -> list[socket.socket]:
    """Connections to a server of the bench, each with one request answered. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    held: list[socket.socket] = []
    deadline = time.monotonic() + PATIENCE
    for number in range(count):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {PATIENCE:.0f} s {number:,} of {count:,} connections stand")
        source = f"127.0.0.{2 + number // PER_ADDRESS}"
        connection = socket.create_connection(("127.0.0.1", port), timeout=30.0, source_address=(source, 0))
        if secure:
            connection = context.wrap_socket(connection)
        connection.sendall(REQUEST)
        held.append(connection)
        if len(held) % AT_ONCE == 0 or len(held) == count:
            for each in held[(number // AT_ONCE) * AT_ONCE :]:
                read_response(each)
    return held


def read_response(connection: socket.socket) -> None:
    """Read it to its end. Raises OSError."""
    answer = b""
    while not answer.endswith(b"Hello, World!"):
        piece = connection.recv(4096)
        if not piece:
            raise ConnectionError(f"closed after {answer!r}")
        answer += piece


if __name__ == "__main__":
    _, port, count, *rest = sys.argv
    held = hold(int(port), int(count), rest == ["tls"])
    print(f"{len(held)} connections are held", flush=True)
    sys.stdin.read()
