"""`python -m loadtest.latency`: what a reload does to the latency, apart from what starting interpreters does.

Rounds at a fixed open-loop rate follow each other: quiet (nothing happens), control (as many interpreters as a reload
starts import the same modules in the same rhythm, and never serve), reloading (HUPs). Each round gives p50, p99 and
p99.9; the medians over the rounds are compared, and the ratio of reloading to control is the price of the reload
itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click

from loadtest.client import Load
from loadtest.ledger import Ledger, percentile
from loadtest.openloop import OpenLoop
from loadtest.processes import MARK
from loadtest.reload import START_TIMEOUT, on_uvloop, wait_until_up
from loadtest.report import columns
from loadtest.servers import COMMANDS, PROJECT, Server, sources

SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
SETTLE = 1.0  # s between two rounds
CHANGE_TIMEOUT = 60.0  # for one reload, or one generation of the control


class Mode(enum.Enum):
    """What happens during a round."""

    QUIET = "quiet"
    CONTROL = "control"
    RELOADING = "reloading"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One comparison."""

    server: str = "serve"
    workers: int = 2
    http: str = "httptools"
    loop: str = "uvloop"
    python: str = sys.executable
    rate: float = 500.0
    """Requests/s; about a fifth of what the machine can do with the client on it."""
    connections: int = 32
    rounds: int = 5
    seconds: float = 20.0
    """Of each round."""
    interval: float = 4.0
    """Least seconds between two reloads."""


@dataclasses.dataclass(slots=True)
class Comparison:
    """What the rounds gave."""

    settings: Settings
    rounds: dict[Mode, list[dict[str, float]]]
    """Milliseconds by the names of SHARES."""
    changes: dict[Mode, int]
    """Reloads, or generations of the control, in all rounds."""
    lost: int = 0
    reconnects: int = 0

    def median(self, mode: Mode, name: str) -> float:
        """The median over the rounds, ms."""
        return statistics.median(found[name] for found in self.rounds[mode])

    def ratio(self, name: str, to: Mode) -> float:
        """Reloading compared with another mode."""
        return self.median(Mode.RELOADING, name) / self.median(to, name)


class Importers:
    """The control's interpreters, driven by a process of their own (`loadtest.importers`)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, server: Server, modules: list[str], count: int) -> Importers:
        """`count` interpreters per generation, started as the server starts its own: half the cores at a time."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "loadtest.importers",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=server.environment() | {"PYTHONPATH": f"{sources(PROJECT)}:{server.directory}", MARK: "control"},
        )
        importers = cls(process)
        concurrency = max(1, (os.cpu_count() or 1) // 2)
        setting = {"python": server.python, "modules": modules, "count": count, "concurrency": concurrency}
        importers._say(json.dumps(setting))
        await importers.change()  # the first has no other before it that would have to end
        return importers

    async def change(self) -> None:
        """Start a generation, wait until it has imported everything; the one before ends."""
        self._say("next")
        assert self._process.stdout is not None
        async with asyncio.timeout(CHANGE_TIMEOUT):
            await self._process.stdout.readline()

    async def stop(self) -> None:
        """End them all."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")


def compare(settings: Settings, say: Callable[[str], None] = lambda line: None) -> Comparison:
    """Do all rounds. Raises RuntimeError if the server does not start."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        server = Server(
            settings.server,
            Path(name),
            workers=settings.workers,
            http=settings.http,
            loop=settings.loop,
            python=settings.python,
        )
        try:
            return on_uvloop(_compare(server, settings, say))
        finally:
            server.stop()
            server.sweep()


async def _compare(server: Server, settings: Settings, say: Callable[[str], None]) -> Comparison:
    await wait_until_up(server, settings.workers)
    children = len(server.workers())
    importers = await Importers.start(server, await modules_of(server.port), children)
    load = Load("127.0.0.1", server.port, Ledger())
    client = OpenLoop(load)
    await client.open(settings.connections)
    result = Comparison(settings, {mode: [] for mode in Mode}, dict.fromkeys(Mode, 0))

    async def reload() -> None:
        known = set(client.pids)
        server.hup()
        async with asyncio.timeout(CHANGE_TIMEOUT):
            while known & set(client.pids):
                await asyncio.sleep(0.02)

    happenings: dict[Mode, Callable[[], Awaitable[None]] | None] = {
        Mode.QUIET: None,
        Mode.CONTROL: importers.change,
        Mode.RELOADING: reload,
    }
    await client.run(settings.rate, 2.0)  # warm
    for _ in range(settings.rounds):
        for mode in Mode:
            found, changes = await one_round(client, settings, happenings[mode])
            result.rounds[mode].append(found)
            result.changes[mode] += changes
            say(f"{mode.value:10}" + "  ".join(f"{name} {value:.2f} ms" for name, value in found.items()))
            await settled(server, children)
    client.close()
    await importers.stop()
    result.lost, result.reconnects = client.lost, len(load.ledger.reconnects)
    return result


async def one_round(
    client: OpenLoop, settings: Settings, happening: Callable[[], Awaitable[None]] | None
) -> tuple[dict[str, float], int]:
    """The percentiles of one round in ms, and how many reloads (or the like) were in it."""
    gc.collect()
    gc.disable()  # the client's own pauses are not the server's
    running = asyncio.ensure_future(client.run(settings.rate, settings.seconds))
    changes = 0
    try:
        end = time.monotonic() + settings.seconds
        while happening is not None and time.monotonic() + settings.interval / 2 < end:
            begun = time.monotonic()
            await asyncio.sleep(settings.interval / 4)
            await happening()
            changes += 1
            await asyncio.sleep(max(0.0, begun + settings.interval - time.monotonic()))
        await running
    finally:
        gc.enable()
    latencies = sorted(1000 * latency for latency in client.latencies)
    return {name: percentile(latencies, share) for name, share in SHARES.items()}, changes


async def settled(server: Server, children: int) -> None:
    """Wait until older generations have ended."""
    deadline = time.monotonic() + START_TIMEOUT
    await asyncio.sleep(SETTLE)
    while len(server.workers()) > children and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


async def modules_of(port: int) -> list[str]:
    """What a worker has imported, in that order."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /modules HTTP/1.1\r\nhost: loadtest\r\nconnection: close\r\n\r\n")
    document = await reader.read()
    writer.close()
    names = json.loads(document[document.index(b"[") : document.rindex(b"]") + 1])
    return [name for name in names if name not in ("__main__", "__mp_main__")]


def table(result: Comparison) -> str:
    """The medians and the ratios."""
    settings = result.settings
    rows = [["median of rounds, ms", *SHARES, "changes"]]
    for mode in Mode:
        values = [f"{result.median(mode, name):.2f}" for name in SHARES]
        rows.append([mode.value, *values, str(result.changes[mode])])
    rows += [
        [f"reloading / {mode.value}", *(f"{result.ratio(name, mode):.2f}" for name in SHARES), ""]
        for mode in (Mode.CONTROL, Mode.QUIET)
    ]
    title = (
        f"{settings.server} · {settings.workers} workers · {settings.http} · {settings.loop} · "
        f"{settings.rate:.0f} requests/s, open loop · {settings.rounds} rounds of {settings.seconds:.0f} s each"
    )
    return "\n".join([title, "", *columns(rows), "", f"{result.lost} lost, {result.reconnects} reconnects"])


@click.command(context_settings={"show_default": True})
@click.option("--server", type=click.Choice(list(COMMANDS)), default="serve", help="The server under test.")
@click.option("--workers", type=click.IntRange(1), default=2, help="Its worker processes.")
@click.option("--rate", type=click.FloatRange(1), default=500.0, help="Requests per second.")
@click.option("--connections", type=click.IntRange(1), default=32, help="Keep-alive connections of the client.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Rounds of each kind.")
@click.option("--seconds", type=click.FloatRange(1), default=20.0, help="Length of a round.")
@click.option("--interval", type=click.FloatRange(0.1), default=4.0, help="Least seconds between two reloads.")
@click.option("--http", type=click.Choice(["httptools", "h11"]), default="httptools", help="The server's parser.")
@click.option("--loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", help="The server's event loop.")
@click.option("--python", default=sys.executable, help="The interpreter that runs the server.", show_default=False)
@click.option("--limit", type=float, default=1.5, help="Most that p99 and p99.9 may be, compared with the control.")
@click.option("--json", "document", type=click.Path(path_type=Path), help="Write all rounds as JSON.")
def main(limit: float, document: Path | None, **options: Any) -> None:
    """Compare the latency during reloads with a control. Exits 1 if it is beyond the limit or anything was lost."""
    try:
        result = compare(Settings(**options), lambda line: click.echo(line, err=True))
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(result))
    if document is not None:
        rounds = {mode.value: found for mode, found in result.rounds.items()}
        document.write_text(json.dumps({"settings": dataclasses.asdict(result.settings), "rounds": rounds}, indent=1))
    good = all(result.ratio(name, Mode.CONTROL) <= limit for name in ("p99", "p99.9"))
    sys.exit(0 if good and not result.lost else 1)


if __name__ == "__main__":
    main()
