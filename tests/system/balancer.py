"""A strict balancer that only asks its nodes how they are, as cloud providers' balancers do.

It owns its listening socket, its probes and its connections to the nodes, in a thread and loop of its own. It passes on
connections (TCP), or requests over a pool of kept connections (HTTP). It never tries anything twice: what cannot be
connected is closed, and a request without an answer is answered with 502. A node is taken out of the rotation after
`fall` failed probes in a row, or by `remove`; the connections that it has then persist, as they do in TCP balancers.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import itertools
import threading
from collections import Counter
from types import TracebackType
from typing import Final, Self

PATIENCE: Final = 30.0
HOP_BY_HOP: Final = (b"connection", b"keep-alive")


class Layer(enum.Enum):
    """What is passed on."""

    TCP = "connections"
    HTTP = "requests"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How nodes are asked; times in seconds."""

    interval: float
    fall: int
    timeout: float
    rise: int = 2
    path: str = "/ping"


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclasses.dataclass(slots=True)
class Backend:
    """One node as the balancer sees it."""

    host: str
    port: int
    in_rotation: bool = True
    streak: int = 0  # probes in a row that say otherwise
    answers: Counter[int] = dataclasses.field(default_factory=Counter)  # of the probes, 0 if there was none
    pool: list[Stream] = dataclasses.field(default_factory=list)

    async def connect(self) -> Stream:
        """A new connection; raises OSError."""
        return await asyncio.open_connection(self.host, self.port)

    async def connection(self) -> Stream:
        """A kept connection, if there is one that the node has not ended, or a new one; raises OSError."""
        while self.pool:
            reader, writer = self.pool.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await self.connect()


class Balancer:
    """Runs from `__enter__` to `__exit__`; listens on `port` of 127.0.0.1."""

    def __init__(self, addresses: list[tuple[str, int]], layer: Layer, check: Check | None) -> None:
        """Without `check`, nodes leave by `remove` and come by `add` alone."""
        self.backends = [Backend(host, port) for host, port in addresses]
        self.layer = layer
        self.check = check
        self.port = 0
        self._turns = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._trouble: BaseException | None = None
        self._main: asyncio.Task[None]

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE), self._trouble
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join(PATIENCE)
        if self._trouble is not None:
            raise self._trouble

    def remove(self, index: int) -> None:
        """Nothing new goes to this node."""
        self.backends[index].in_rotation = False

    def add(self, index: int) -> None:
        """The node takes part again."""
        self.backends[index].in_rotation = True

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._trouble = error

    async def _serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._main = task
        passing = self._pass_connection if self.layer is Layer.TCP else self._pass_requests
        clients: set[asyncio.Task[None]] = set()

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            client = asyncio.ensure_future(passing(reader, writer))
            clients.add(client)
            client.add_done_callback(clients.discard)

        server = await asyncio.start_server(begin, "127.0.0.1", 0, backlog=1000)
        self.port = server.sockets[0].getsockname()[1]
        try:
            async with asyncio.TaskGroup() as tasks:
                if self.check is not None:
                    for backend in self.backends:
                        tasks.create_task(self._watch(backend, self.check))
                self._ready.set()
                await asyncio.get_running_loop().create_future()
        finally:
            server.close()
            for client in list(clients):
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            for backend in self.backends:
                for _, writer in backend.pool:
                    writer.close()
            await asyncio.sleep(0)  # what was closed is given back to the kernel in the loop's next turn

    # Probes

    async def _watch(self, backend: Backend, check: Check) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + check.interval, loop.time())
            await asyncio.sleep(due - loop.time())
            status = await self._probe(backend, check)
            backend.answers[status] += 1
            backend.streak = backend.streak + 1 if (status == 200) is not backend.in_rotation else 0
            if backend.streak >= (check.fall if backend.in_rotation else check.rise):
                backend.in_rotation, backend.streak = not backend.in_rotation, 0

    async def _probe(self, backend: Backend, check: Check) -> int:
        try:
            async with asyncio.timeout(check.timeout):
                reader, writer = await backend.connect()
                with contextlib.closing(writer):
                    writer.write(b"GET %s HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n" % check.path.encode())
                    return int((await reader.readline()).split()[1])
        except (OSError, TimeoutError, IndexError, ValueError):
            return 0

    def _next(self) -> Backend | None:
        rotation = [backend for backend in self.backends if backend.in_rotation]
        return rotation[next(self._turns) % len(rotation)] if rotation else None

    # Connections

    async def _pass_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            backend = self._next()
            if backend is None:
                return
            try:
                node_reader, node_writer = await backend.connect()
            except OSError:
                return
            with contextlib.closing(node_writer):
                await asyncio.gather(_copy(reader, node_writer), _copy(node_reader, writer))

    # Requests

    async def _pass_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            goes_on = True
            while goes_on:
                head = await reader.readuntil(b"\r\n\r\n")
                goes_on = await self._pass_request(_Head(head), reader, writer)

    async def _pass_request(self, head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Pass one request on; whether the client's connection goes on."""
        backend = self._next()
        try:
            if backend is None:
                raise OSError("no node is left")
            node_reader, node_writer = await backend.connection()
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return False
        keeps = False
        body = asyncio.ensure_future(_pass_message(head, reader, node_writer))
        try:
            keeps = await _pass_answer(node_reader, writer, head.closes)
            await body
        except (OSError, asyncio.IncompleteReadError):
            keeps = False
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return False
        finally:
            body.cancel()
            if keeps:
                backend.pool.append((node_reader, node_writer))
            else:
                node_writer.close()
        return not head.closes


class _Head:
    """The head of a message, and how its content is framed."""

    def __init__(self, data: bytes) -> None:
        self.start, *lines = data.removesuffix(b"\r\n\r\n").split(b"\r\n")
        fields = [(line.partition(b":")[0].strip().lower(), line) for line in lines]
        values = {name: line.partition(b":")[2].strip().lower() for name, line in fields}
        self.closes = values.get(b"connection") == b"close"
        self.length = int(values.get(b"content-length", b"0"))
        self.chunked = values.get(b"transfer-encoding") == b"chunked"
        self._lines = [line for name, line in fields if name not in HOP_BY_HOP]

    def passed_on(self, *more: bytes) -> bytes:
        """The head without what concerns one connection alone."""
        return b"\r\n".join([self.start, *self._lines, *more, b"", b""])


async def _pass_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, closes: bool) -> bool:
    """Pass on the answer; whether the node's connection can be kept."""
    while True:
        head = _Head(await reader.readuntil(b"\r\n\r\n"))
        interim = head.start.split()[1].startswith(b"1")
        await _pass_message(head, reader, writer, *([b"connection: close"] if closes and not interim else []))
        if not interim:
            return not head.closes


async def _pass_message(head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *more: bytes) -> None:
    writer.write(head.passed_on(*more))
    if head.chunked:
        size = -1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line, 16)
            writer.write(line + await reader.readexactly(size + 2))
            await writer.drain()
    elif head.length:
        left = head.length
        while left:
            data = await reader.read(min(left, 65536))
            if not data:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(data)
            writer.write(data)
            await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, and then its end."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
