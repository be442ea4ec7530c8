"""`python -m loadtest.surviving_idle`: what a reload costs that takes 10,000 idle WebSockets over to new workers.

One server is reloaded some times without them, then as often with them; each time requests come at a fixed rate
(open loop, `loadtest.openloop`) over the same connections. It prints how long a reload took, the most memory (PSS of
all processes, sampled), the latency of the other requests, and how many WebSockets have survived: each is asked at the
end for the number of its lives. The server wants a limit of open files above its share of the connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click

from loadtest import bench_usage
from loadtest.client import Load
from loadtest.idle import SPARE
from loadtest.ledger import Ledger, percentile
from loadtest.openloop import OpenLoop
from loadtest.reload import on_uvloop, wait_until_up
from loadtest.report import columns
from loadtest.servers import PROJECT, Server

PATH = "/surviving?id={id}&every=0&manner=at+once"
ORDINARY = "/ws?id={id}"
"""WebSockets that do not survive."""
CONNECTIONS = 16
"""For the other requests."""
BEFORE = 1.0
"""Seconds of requests before the reload."""
EVERY = 0.2
"""Seconds between two looks at the memory."""
SLICE = 2.0
"""Seconds after which the requests are counted."""
LEAVE_TIMEOUT = 60.0
MIB = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IdleSettings:
    """One comparison."""

    connections: int = 10_000
    workers: int = 4
    rounds: int = 3
    rate: float = 200.0
    """Other requests/s."""
    loop: str = "uvloop"
    python: str = sys.executable
    options: tuple[str, ...] = ()
    """Further ones of the server."""


@dataclasses.dataclass(slots=True)
class Round:
    """One reload. Seconds and bytes."""

    answered: float = 0.0
    """Until `serve reload` has ended."""
    left: float = 0.0
    """Until the workers before had left."""
    memory: int = 0
    """Before it."""
    peak: int = 0
    latencies: list[float] = dataclasses.field(default_factory=list)
    lost: int = 0


class Holder:
    """The process that holds the WebSockets (`loadtest.surviving_holder`)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, command: str) -> Any:
        """What it prints for `check` or `events`. Raises RuntimeError if it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return json.loads(self.line())

    def line(self) -> str:
        """The next line that it prints. Raises RuntimeError if it has ended."""
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the WebSockets are not held: their process has ended")
        return line


@contextlib.contextmanager
def held(port: int, count: int, path: str, *, returns: bool = False) -> Iterator[Holder]:
    """So many WebSockets, once they stand. Raises RuntimeError if they do not."""
    command = [sys.executable, "-m", "loadtest.surviving_holder", str(port), str(count), path]
    command += ["return"] if returns else []
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        try:
            holder = Holder(client)
            holder.line()
            yield holder
        finally:
            client.kill()


class Memory(threading.Thread):
    """Looks at the PSS of all processes of a server again and again."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._stop = threading.Event()
        self.first = self.look()
        self.peak = self.first

    def look(self) -> int:
        """Bytes."""
        return sum(bench_usage.pss(process.pid) for process in self._server.processes())

    def run(self) -> None:
        """Until `end`."""
        while not self._stop.wait(EVERY):
            self.peak = max(self.peak, self.look())

    def end(self) -> None:
        """Stop looking."""
        self._stop.set()
        self.join()


async def one_round(server: Server, settings: IdleSettings) -> Round:
    """One reload beside requests. Raises RuntimeError if it fails."""
    found = Round()
    requests = OpenLoop(Load("127.0.0.1", server.port, Ledger()))
    await requests.open(CONNECTIONS)
    memory = await asyncio.to_thread(Memory, server)
    memory.start()
    over = asyncio.Event()
    sending = asyncio.ensure_future(send_until(over, requests, settings, found))
    await asyncio.sleep(BEFORE)
    old = {process.pid for process in server.workers()}
    began = time.monotonic()
    status, said = await asyncio.to_thread(server.control, "reload")
    found.answered = time.monotonic() - began
    if status:
        raise RuntimeError(f"the reload failed: {said}")
    while any(process.pid in old for process in server.workers()) and time.monotonic() - began < LEAVE_TIMEOUT:
        await asyncio.sleep(0.02)
    found.left = time.monotonic() - began
    over.set()
    await sending
    await asyncio.to_thread(memory.end)
    requests.close()
    found.memory, found.peak = memory.first, memory.peak
    return found


async def send_until(over: asyncio.Event, requests: OpenLoop, settings: IdleSettings, found: Round) -> None:
    """Send requests all the time, and note what became of them."""
    while not over.is_set():
        await requests.run(settings.rate, SLICE)
        found.latencies += requests.latencies
    found.latencies.sort()
    found.lost = requests.lost


def row(name: str, rounds: list[Round]) -> list[str]:
    """The medians over some rounds."""
    times = [f"{median(each.answered for each in rounds):.2f}", f"{median(each.left for each in rounds):.2f}"]
    memory = [f"{median(each.memory for each in rounds) / MIB:.0f}", f"{max(each.peak for each in rounds) / MIB:.0f}"]
    shares = (0.5, 0.99, 0.999)
    latencies = [f"{1000 * median(percentile(each.latencies, share) for each in rounds):.1f}" for share in shares]
    return [name, *times, *memory, *latencies, str(sum(each.lost for each in rounds))]


HEAD = ("WebSockets", "reload s", "old left s", "PSS MiB", "most", "p50 ms", "p99 ms", "p99.9 ms", "lost")


def run(settings: IdleSettings) -> tuple[dict[str, list[Round]], dict[str, Any]]:
    """The rounds without WebSockets and with them, and what has become of these. Raises RuntimeError."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        server = Server(
            "serve",
            Path(name),
            workers=settings.workers,
            http="httptools",
            loop=settings.loop,
            python=settings.python,
            options=settings.options,
        )
        try:
            on_uvloop(wait_until_up(server, settings.workers))
            rounds = {"none": [on_uvloop(one_round(server, settings)) for _ in range(settings.rounds)]}
            with held(server.port, settings.connections, PATH) as holder:
                time.sleep(2.0)
                label = f"{settings.connections:,}"
                rounds[label] = [on_uvloop(one_round(server, settings)) for _ in range(settings.rounds)]
                outcome = holder.ask("check")
            return rounds, outcome
        finally:
            server.stop()
            server.sweep()


def open_files(connections: int) -> None:
    """Raise the limit for this process and those it starts. Raises click.ClickException if it cannot be enough."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < connections + SPARE:
        raise click.ClickException(f"A process may have {most} open files here: raise the hard limit, or ask for less.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@click.command(context_settings={"show_default": True})
@click.option("--connections", type=click.IntRange(1), default=10_000, help="Idle WebSockets that survive.")
@click.option("--workers", type=click.IntRange(1), default=4, help="The server's worker processes.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Reloads without them, and with them.")
@click.option("--rate", type=click.FloatRange(1), default=200.0, help="Other requests per second.")
@click.option("--loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", help="The server's event loop.")
@click.option("--python", default=sys.executable, help="The interpreter that runs the server.", show_default=False)
@click.argument("options", nargs=-1)
def main(**given: Any) -> None:
    """Reload a server that holds idle WebSockets which survive. Exits 1 if one has not. OPTIONS are the server's."""
    open_files(given["connections"])
    settings = IdleSettings(**given)
    try:
        rounds, outcome = run(settings)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n".join(columns([HEAD, *(row(name, found) for name, found in rounds.items())])))
    lives = ", ".join(f"{count:,} in life {life}" for life, count in sorted(outcome["lives"].items()))
    click.echo(f"{outcome['answered']:,} of {settings.connections:,} WebSockets have survived: {lives}")
    sys.exit(0 if outcome["lives"] == {str(settings.rounds + 1): settings.connections} else 1)


if __name__ == "__main__":
    main()
