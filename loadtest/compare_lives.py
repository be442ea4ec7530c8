"""A server from its start to its end, seen from outside: when it answers, who answers, and when a reload is over."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from loadtest import bench_app
from loadtest.bench_servers import START_TIMEOUT, BenchServer
from loadtest.idle_client import REQUEST

NEW = "new code"
"""The version of the application after a reload. It is of another length than the old one, or Python would take what it
has compiled of a file of the same second."""
PAUSE = 0.001
"""Seconds between two tries."""
ANSWER_TIMEOUT = 5.0
RELOAD_TIMEOUT = 30.0
QUIET = 1.0
"""Seconds without a response by old code, after which there will be none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Who has answered on a new connection."""

    moment: float
    """Monotonic, s."""
    version: str
    pid: int


@dataclasses.dataclass(frozen=True, slots=True)
class Reload:
    """How a reload went. Seconds from its HUP."""

    first: float
    """The first response by new code."""
    complete: float
    """Every worker is a new one that has answered, and no old one has answered since."""
    failed: int
    """Connections meanwhile that were refused, reset, or not answered."""


def patience(workers: int) -> float:
    """Seconds within which so many workers have started, other servers beside them, on one core."""
    return START_TIMEOUT + 5.0 * workers


def first_response(server: BenchServer, patience: float = START_TIMEOUT) -> float:
    """The moment (monotonic, s) of its first response. Raises RuntimeError if there is none in time."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and server.alive:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), ANSWER_TIMEOUT) as it:
            it.sendall(REQUEST)
            said = b""
            while piece := it.recv(4096):
                said += piece
                if said.endswith(bench_app.HELLO):
                    return time.monotonic()
        time.sleep(PAUSE)
    raise RuntimeError(f"it does not answer. It said:\n{server.last_words()}")


async def ask(port: int) -> Answer:
    """Who answers on a new connection. Raises OSError, EOFError, ValueError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /worker HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        said = await reader.read()
    finally:
        writer.close()
    version, _, pid = said.rpartition(b"\r\n")[2].decode().rpartition(" ")
    return Answer(time.monotonic(), version, int(pid))


class Asking:
    """Asks on new connections, several at once, as long as its context lasts."""

    def __init__(self, port: int, at_once: int) -> None:
        self.answers: list[Answer] = []
        self.failed = 0
        self._port = port
        self._at_once = at_once

    async def _ask(self) -> None:
        while True:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    self.answers.append(await ask(self._port))
            except (OSError, EOFError, ValueError):
                self.failed += 1
            await asyncio.sleep(PAUSE)

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        """Ask."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask()) for _ in range(self._at_once)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()


def at_once(workers: int) -> int:
    """Connections that are enough for each worker to get one."""
    return max(8, 2 * workers)


async def everybody(server: BenchServer, workers: int) -> set[int]:
    """The PIDs of all workers. Raises RuntimeError if not all of them answer in time."""
    asking = Asking(server.port, at_once(workers))
    deadline = time.monotonic() + patience(workers)
    pids: set[int] = set()
    async with asking():
        while len(pids) < workers and time.monotonic() < deadline and server.alive:
            await asyncio.sleep(0.01)
            pids = {answer.pid for answer in asking.answers}
    if len(pids) < workers:
        raise RuntimeError(f"{len(pids)} of {workers} workers answer. It said:\n{server.last_words()}")
    return pids


def completed(answers: Sequence[Answer], workers: int) -> float | None:
    """The moment since which all `workers` new ones have answered, and no older one; None if not all have."""
    new: dict[int, float] = {}
    last = 0.0
    for answer in answers:
        if answer.version == NEW:
            new.setdefault(answer.pid, answer.moment)
        else:
            last = max(last, answer.moment)
    return max(last, sorted(new.values())[workers - 1]) if len(new) >= workers else None


async def reloaded(server: BenchServer, workers: int) -> Reload:
    """Put new code there, send HUP, and see it through. Raises RuntimeError if it is not seen to complete."""
    application = server.directory / "loadtest_app.py"
    await asyncio.to_thread(change, application)
    asking = Asking(server.port, at_once(workers))
    async with asking():
        begun = time.monotonic()
        server.hup()
        while (now := time.monotonic()) - begun < RELOAD_TIMEOUT and server.alive:
            await asyncio.sleep(0.05)
            complete = completed(asking.answers, workers)
            if complete is not None and now - complete > QUIET:
                first = min(answer.moment for answer in asking.answers if answer.version == NEW)
                return Reload(first - begun, complete - begun, asking.failed)
    new = {answer.pid for answer in asking.answers if answer.version == NEW}
    raise RuntimeError(
        f"{RELOAD_TIMEOUT:.0f} s after a HUP {len(new)} of {workers} workers have the new code, and "
        f"{asking.failed} connections have failed. It said:\n{server.last_words(5)}"
    )


def change(application: Path) -> None:
    """New code."""
    application.write_text(application.read_text().replace(f'VERSION = "{bench_app.VERSION}"', f'VERSION = "{NEW}"'))
