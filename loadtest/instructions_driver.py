"""`python -m loadtest.instructions_driver TRANSPORT LOOP WHAT:CASE:COUNT …`: COUNT requests on a connection, each in a
process of its own, forked from this one.

What `loadtest.instructions` runs under valgrind, which counts on in a forked process: so all of them have begun alike.
WHAT is "serve", or one of the floors of the bench: "floor" (a canned response) or "floor+app" (the application called
in a task, then that). TRANSPORT is "memory", which hands each request over in a callback of the loop and takes the
response as soon as it is written, or "socket", a connection over loopback with its client in the same loop. The client
sends the next request when it has the whole response, so that whatever else the machine does changes nothing. Prints a
line for each: its process id, WHAT, CASE, COUNT; and at the end how many modules of the server are compiled.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, cast

import uvloop

from loadtest import bench_app, bench_websocket
from loadtest.bench_cases import CASES, COUNTER, Case, fields
from loadtest.bench_floor import CallingFloor, Floor
from serve_asgi.app.retiring import RetiringFlag
from serve_asgi.config.options import Config
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.response_head import default_headers
from serve_asgi.http.worker_context import WorkerContext
from serve_asgi.ipc.scoreboard import ROW_WORDS, WORD, Scoreboard

HOST = "127.0.0.1:8000"
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def request(case: Case) -> bytes:
    """As wrk makes it; `COUNTER` stands where each one has its own number."""
    path = f"{case.path}?page={COUNTER}" if case.varied else case.path
    lines = [f"{'POST' if case.body else 'GET'} {path} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name}: {value}" for name, value in fields(case).items()]
    if case.body:
        lines.append(f"Content-Length: {case.body}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + b"x" * case.body


class Client:
    """Sends one request after another. `send` is set by whoever makes the connection."""

    send: Callable[[bytes], None]

    def __init__(self, case: Case, count: int, done: Callable[[], None]) -> None:
        self.case = case
        self.left = count
        self.done = done
        self.first = bench_websocket.HANDSHAKE + b"\r\n" if case.websocket else b""
        self.request = bench_websocket.FRAME if case.websocket else request(case)
        self.parts = self.request.split(COUNTER.encode())
        self.number = 1_000_000_000
        self.size = 0
        """Of a response, once that is known."""
        self.got = 0
        self.seen = b""

    def begin(self) -> None:
        """Send the first request, or the handshake before it."""
        if self.first:
            self.send(self.first)
        else:
            self.next()

    def next(self) -> None:
        """Send the next request, if there is one."""
        if not self.left:
            self.done()
            return
        self.left -= 1
        if len(self.parts) > 1:
            self.number += 1
            self.send((b"%d" % self.number).join(self.parts))
        else:
            self.send(self.request)

    def received(self, data: bytes) -> None:
        """Of a response."""
        if not self.size:
            self.learn(data)
            return
        self.got += len(data)
        if self.got >= self.size:
            if self.got > self.size:
                raise RuntimeError("A response was longer than the one before it.")
            self.got = 0
            self.next()

    def learn(self, data: bytes) -> None:
        """The first response: is it the right one?"""
        self.seen += data
        if self.first:
            if self.seen.endswith(b"\r\n\r\n"):
                if not self.seen.startswith(b"HTTP/1.1 101 "):
                    raise RuntimeError(f"The handshake was refused: {self.seen!r}")
                self.first = self.seen = b""
                self.next()
            return
        if self.case.websocket:
            right = self.seen == bench_websocket.ANSWER
        else:
            end = b"\r\n0\r\n\r\n" if self.case.name == "stream" else b"\r\n\r\n" + self.case.answer
            right = self.seen.startswith(b"HTTP/1.1 200 ") and self.seen.endswith(end)
        if right:
            self.size = len(self.seen)
            self.next()
        elif len(self.seen) > len(self.case.answer) + 2048 and self.case.name != "stream":
            raise RuntimeError(f"The response is not the right one: {self.seen[:1000]!r}")


class MemoryTransport(asyncio.Transport):
    """Everything that is written is with the client at once; what the client sends comes in the loop's next turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, client: Client) -> None:
        super().__init__({"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8000)})
        self.loop = loop
        self.protocol = protocol
        self.client = client
        client.send = self.arrive

    def arrive(self, data: bytes) -> None:
        """From the client."""
        self.loop.call_soon(self.protocol.data_received, data)

    def write(self, data: Any) -> None:
        self.client.received(data)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.client.received(b"".join(list_of_data))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def server(what: str, case: Case, loop: asyncio.AbstractEventLoop) -> asyncio.Protocol:
    """What answers the connection."""
    if what == "floor":
        return Floor(case)
    if what == "floor+app":
        return CallingFloor(case, bench_app.app)
    cells = memoryview(bytearray(ROW_WORDS * WORD)).cast("Q")
    config = Config(http="httptools", ws_ping_interval=0.0)
    worker = WorkerContext(bench_app.app, config, loop, Scoreboard.create(1, 1), cells, RetiringFlag())
    worker.default_headers = default_headers(time.time(), True, True)
    return cast(asyncio.Protocol, Http1Connection(worker))


async def connect(protocol: asyncio.Protocol, client: Client) -> None:
    """Over loopback, both ends in this loop."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    loop.add_reader(near, lambda: client.received(near.recv(1 << 18)))
    client.send = near.sendall
    await loop.connect_accepted_socket(lambda: protocol, far)


async def main(what: str, case: Case, count: int, transport: str) -> None:
    """All requests."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    client = Client(case, count, lambda: done.set_result(None))
    protocol = server(what, case, loop)
    failed: list[Any] = []

    def fail(_: object, context: dict[str, Any]) -> None:
        failed.append(context.get("exception") or context["message"])
        if not done.done():
            done.set_result(None)

    loop.set_exception_handler(fail)
    if transport == "socket":
        await connect(protocol, client)
    else:
        protocol.connection_made(MemoryTransport(loop, protocol, client))
    client.begin()
    await done
    if failed:
        raise RuntimeError(f"The case {case.name} went wrong: {failed[0]!r}")


def run(what: str, case: Case, count: int, transport: str, loop: str) -> None:
    """All requests, in this process."""
    LOOPS[loop]().run_until_complete(main(what, case, count, transport))


def in_a_fork(what: str, case: Case, count: int, transport: str, loop: str) -> int:
    """The same in a process of its own; returns its id. Raises RuntimeError if it failed."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            run(what, case, count, transport, loop)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)  # what would end now is of no interest
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"The case {case.name} of {what} failed.")
    return pid


if __name__ == "__main__":
    _, way, loop_name, *jobs = sys.argv
    for job in jobs:
        kind, name, number = job.split(":")
        print(in_a_fork(kind, CASES[name], int(number), way, loop_name), kind, name, number, flush=True)
    loaded = [module for name, module in sys.modules.items() if name.startswith("serve_asgi")]
    print(sum(not str(getattr(module, "__file__", "")).endswith(".py") for module in loaded))
