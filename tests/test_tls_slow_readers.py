"""Clients that read slowly over TLS: who takes nothing for --write-timeout is cut, who takes a little is not, and
nobody else is harmed.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.plain_and_tls import AUTHORITY, addresses, secure, serving_both
from tests.running import PATIENCE, RunningServer, request

SIZE: Final = 16 * 1024 * 1024
"""More than the kernel takes of a connection whose client does not read: 4 MiB (tcp_wmem, tcp(7)), and some more."""
WRITE_TIMEOUT: Final = 1.0
SMALL: Final = 65536
"""Bytes of SO_RCVBUF."""
APPLICATION = """
import os

SIZE = 16 * 1024 * 1024
LENGTH = (b"content-length", b"%d" % SIZE)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["path"] == "/":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [LENGTH]})
    if scope["path"] == "/file":
        await send({"type": "http.response.pathsend", "path": os.path.abspath("file")})
    elif scope["path"] == "/whole":
        await send({"type": "http.response.body", "body": b"x" * SIZE})
    else:
        for _ in range(SIZE // 65536):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await send({"type": "http.response.body"})
"""


@pytest.fixture(params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    (tmp_path / "app.py").write_text(APPLICATION)
    (tmp_path / "file").write_bytes(b"x" * SIZE)
    options = ("--loop", request.param, "--write-timeout", str(WRITE_TIMEOUT), "--keep-alive", "3")
    with serving_both(tmp_path, *options, "--no-access-log") as server:
        yield server


def reader(server: RunningServer, version: ssl.TLSVersion) -> ssl.SSLSocket:
    """A client whose kernel takes little, and to which the end of TCP without close_notify is an error."""
    context = AUTHORITY.client_context()
    context.minimum_version = context.maximum_version = version
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    raw.settimeout(PATIENCE)
    raw.connect(addresses(server)["https"])
    return context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)


def ask(connection: ssl.SSLSocket, target: str) -> None:
    connection.sendall(f"GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())


STALLED: Final = ("/stream", "/whole", "/file")
VERSIONS: Final = (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2)


def test_who_takes_nothing_is_cut_and_who_takes_a_little_is_not(server: RunningServer) -> None:
    stalled = [(version, target, reader(server, version)) for version in VERSIONS for target in STALLED]
    slow = [reader(server, version) for version in VERSIONS]
    normal = secure(server)
    begun = time.monotonic()
    for _, target, connection in stalled:
        ask(connection, target)
    taken = [0] * len(slow)
    threads = [
        threading.Thread(target=take_slowly, args=(connection, taken, number)) for number, connection in enumerate(slow)
    ]
    for thread in threads:
        thread.start()
    asked = 0
    while server.status()["workers"][0]["connections"] > 1:  # all but the normal one
        assert request(normal) == (200, b"ok")
        asked += 1
        time.sleep(0.02)
        assert time.monotonic() - begun < PATIENCE, server.status()
    assert time.monotonic() - begun >= WRITE_TIMEOUT
    for version, target, connection in stalled:
        assert take_the_rest(connection) < SIZE, (version, target)
    for thread in threads:
        thread.join(PATIENCE)
    assert taken == [SIZE] * len(slow)
    assert server.status()["totals"]["requests"] == asked + len(stalled) + len(slow)
    normal.close()
    assert server.stop() == 0
    assert "Traceback" not in server.log()


def take_slowly(connection: ssl.SSLSocket, taken: list[int], number: int) -> None:
    """Read a download at less than its size in three times the timeout, then faster; count its bytes."""
    ask(connection, "/stream")
    begun = time.monotonic()
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1)
    while taken[number] < SIZE and (piece := connection.recv(SMALL)):
        taken[number] += len(piece)
        if time.monotonic() - begun < 3 * WRITE_TIMEOUT:
            time.sleep(WRITE_TIMEOUT / 20)
    connection.close()


def take_the_rest(connection: ssl.SSLSocket) -> int:
    """Read until the connection breaks, as it must; how many bytes have come."""
    count = 0
    with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError), connection:
        while piece := connection.recv(SMALL):
            count += len(piece)
        raise AssertionError(f"a polite end after {count} bytes")
    return count
