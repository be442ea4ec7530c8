"""`python -m loadtest.bounds`: what a client can make a worker hold, and do, for each byte that it sends.

For each kind of attack a server with one worker is started; one connection tries first, so that what is there once does
not count, then as many as are asked for. Each sends until nothing more is taken from it. Printed are, for a connection,
what the worker has read of it and what it holds (its RSS less the RSS before), the ratio of the two, and the processor
time for each MB. See docs/measured/bounds.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from loadtest.report import columns
from loadtest.servers import PROJECT, sources

TICKS = os.sysconf("SC_CLK_TCK")
STILL = 0.5
"""Seconds without a byte taken from anybody, after which all is sent."""
REST = 0.05
"""Seconds of processor time, in a second and a bit, up to which a worker rests."""
LIMIT = 20.0
"""Seconds for one kind at most."""
MOST = 1 << 20
"""Bytes that one connection sends at most."""
COMMON = "Host: a\r\n"
PLAIN = (
    "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
UPGRADE = PLAIN + "Sec-WebSocket-Extensions: permessage-deflate\r\n"


def head(method: str, path: str, fields: str = "") -> bytes:
    """A request's."""
    return f"{method} {path} HTTP/1.1\r\n{COMMON}{fields}\r\n".encode()


def frame(opcode: int, payload: bytes, fin: bool = True, packed: bool = False) -> bytes:
    """A client's frame (RFC 6455 5.2), masked with zeros."""
    size = len(payload)
    short = min(size, 126) if size < 65536 else 127
    long = b"" if size < 126 else size.to_bytes(2 if size < 65536 else 8)
    return bytes((0x80 * fin | 0x40 * packed | opcode, 0x80 | short)) + long + bytes(4) + payload


def deflated(data: bytes) -> bytes:
    """One message (RFC 7692 7.2.1)."""
    packer = zlib.compressobj(9, wbits=-12)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


CHUNKED = "Transfer-Encoding: chunked\r\n"
FIELDS = "".join(f"{chr(97 + n // 26)}{chr(97 + n % 26)}: xy\r\n" for n in range(98))
WEBSOCKET = head("GET", "/unread", UPGRADE)
LARGE_WEBSOCKET = head("GET", "/large", PLAIN)

KINDS: dict[str, tuple[bytes, bytes]] = {
    "an idle connection": (head("GET", "/one"), b""),
    "half a head": (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"h" * 60_000),
    "a request of 98 tiny fields, unanswered": (head("GET", "/unread", FIELDS), b""),
    "content unread, Content-Length": (head("POST", "/unread", f"Content-Length: {1 << 40}\r\n"), b"x" * MOST),
    "content unread, chunks of 2 bytes": (head("POST", "/unread", CHUNKED), b"2\r\naa\r\n" * (MOST // 7)),
    "content unread, chunks with extensions": (head("POST", "/unread", CHUNKED), b"1;x\r\na\r\n" * (MOST // 8)),
    "content read, chunks of 2 bytes": (head("POST", "/", CHUNKED), b"2\r\naa\r\n" * (MOST // 7)),
    "pipelined behind a request unanswered": (head("GET", "/unread"), head("GET", "/one") * (MOST // 40)),
    "pipelined, answers unread": (b"", head("GET", "/one") * (MOST // 40)),
    "1 MiB pieces of a response, unread": (head("GET", "/large"), b""),
    "early frames, not accepted": (head("GET", "/late", UPGRADE), frame(2, b"xy") * (MOST // 8)),
    "messages unread, 64 KB": (WEBSOCKET, frame(2, b"x" * 65_000) * 16),
    "messages unread, 2 bytes": (WEBSOCKET, frame(2, b"xy") * (MOST // 8)),
    "messages unread, text with one wide character": (WEBSOCKET, frame(1, b"x" * 50_000 + "😀".encode()) * 20),
    "messages unread, empty": (WEBSOCKET, frame(2, b"") * (MOST // 6)),
    "messages unread, packed, empty": (WEBSOCKET, frame(2, b"\0", packed=True) * (MOST // 7)),
    "messages unread, packed, 2 KB of 13": (WEBSOCKET, frame(2, deflated(bytes(2000)), packed=True) * (MOST // 19)),
    "messages unread, packed, 16 MiB of 16 KB": (WEBSOCKET, frame(2, deflated(bytes(16 << 20)), packed=True) * 15),
    "a message without end, packed": (
        head("GET", "/", UPGRADE),
        frame(2, deflated(bytes(15 << 20)), fin=False, packed=True),
    ),
    "a message of empty fragments": (head("GET", "/", UPGRADE), frame(2, b"x", False) + frame(0, b"", False) * 170_000),
    "pings, pongs unread": (head("GET", "/", PLAIN), frame(9, b"") * (MOST // 6)),
    "1 MiB messages without end, unread": (LARGE_WEBSOCKET, b""),
}


class Worker:
    """One server with one worker."""

    def __init__(self, directory: Path, checkout: Path, loop: str) -> None:
        self.control = directory / "control"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        command = f"-m serve_asgi loadtest.bounds_app:app --bind 127.0.0.1:{self.port} --no-access-log --loop {loop}"
        self.process = subprocess.Popen(
            [sys.executable, *command.split(), "--app-dir", str(PROJECT), "--control", str(self.control)],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": sources(checkout)},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while not self.status() and time.monotonic() < deadline:
            time.sleep(0.1)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (self.pid,) = (
            int(each) for each in children if b"serve_asgi.worker" in Path(f"/proc/{each}/cmdline").read_bytes()
        )

    def status(self) -> dict[str, Any]:
        """What the listener says; nothing before it serves."""
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as asker:
            asker.connect(str(self.control))
            asker.sendall(b'{"version":1,"command":"status"}\n')
            said: dict[str, Any] = json.loads(asker.makefile("rb").readline())["status"]
            return said if said["state"] == "running" else {}
        return {}

    def received(self) -> int:
        """Bytes read from clients, once the worker rests: each second is told of at its end."""
        for _ in range(40):
            before = self.cpu()
            time.sleep(1.1)
            if self.cpu() - before < REST:
                break
        return int(self.status()["totals"]["bytes_received"])

    def rss(self) -> int:
        """Bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        """Seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def attack(self, start: bytes, rest: bytes, count: int) -> list[socket.socket]:
        """Connections that have each sent as much as is taken."""
        connections = []
        for _ in range(count):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", self.port))
            connection.sendall(start)
            connections.append(connection)
        time.sleep(STILL)  # a WebSocket has to be accepted before its frames come, or they are early
        left = dict.fromkeys(connections, memoryview(rest))
        for connection in connections:
            connection.setblocking(False)
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            _, ready, _ = select.select([], [each for each in connections if left[each]], [], STILL)
            for connection in ready:
                try:
                    left[connection] = left[connection][connection.send(left[connection][:65536]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    left[connection] = left[connection][:0]  # refused
            if not ready:
                break
        return connections

    def stop(self) -> None:
        """At once."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.kill(self.pid, 9)


def measure(kind: str, count: int, checkout: Path, loop: str) -> Iterator[str]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as directory:
        worker = Worker(Path(directory), checkout, loop)
        try:
            connections = worker.attack(*KINDS[kind], 1)
            before, rss, cpu = worker.received(), worker.rss(), worker.cpu()
            connections += worker.attack(*KINDS[kind], count)
            read = (worker.received() - before) / count
            held, took = max(0, worker.rss() - rss) / count, worker.cpu() - cpu
            for connection in connections:
                connection.close()
        finally:
            worker.stop()
    yield kind
    yield f"{read / 1024:.1f}"
    yield f"{held / 1024:.1f}"
    yield f"{held / read:.1f}" if read > 10_000 else "-"
    yield f"{1000 * took / (read * count / 1e6):.0f}" if read * count > 1e6 else "-"


@click.command()
@click.option("--kinds", default="", help="Only those whose name has this in it.")
@click.option("--connections", default=50, type=click.IntRange(1, 500), help="Of each kind.")
@click.option("--loop", default="uvloop", type=click.Choice(["uvloop", "asyncio"]))
@click.option("--checkout", default=PROJECT, type=click.Path(path_type=Path), help="The server that is measured.")
def main(kinds: str, connections: int, loop: str, checkout: Path) -> None:
    """What a client can make a worker hold and do, for each byte that it sends."""
    table = [["kind", "KiB read", "KiB held", "ratio", "CPU ms/MB"]]
    for kind in KINDS:
        if kinds in kind:
            table.append(list(measure(kind, connections, checkout, loop)))
            print(*table[-1], sep="  ", flush=True)
    print(*columns(table), sep="\n")


if __name__ == "__main__":
    main()
