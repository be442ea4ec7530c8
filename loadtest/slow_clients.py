"""`python -m loadtest.slow_clients`: what many slow clients cost the others.

For each kind of slowness in turn, thousands of connections are opened and held by a process of their own
(`loadtest.slow_holder`), while a normal client sends at a fixed rate. Rounds of all kinds follow each other, one of
idle connections among them, and the medians over the rounds are compared with those of the idle ones. See
docs/measured/loadtest.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import click

from loadtest.client import Load
from loadtest.ledger import Ledger, percentile
from loadtest.openloop import OpenLoop
from loadtest.reload import on_uvloop, wait_until_up
from loadtest.report import columns
from loadtest.servers import COMMANDS, PROJECT, Server
from loadtest.slow_holder import KINDS, OF_TLS
from loadtest.tls import ClientTls

IDLE = "idle"
OPEN_TIMEOUT = 60.0
SETTLE = 0.5
"""Seconds after the slow connections have been opened or left, before anything else begins."""
LIMIT = 2.0
"""What the p99 beside slow clients may be, as a multiple of that beside idle ones."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run."""

    server: str = "serve"
    workers: int = 1
    http: str = "httptools"
    loop: str = "uvloop"
    python: str = sys.executable
    kinds: tuple[str, ...] = tuple(name for name in KINDS if name not in OF_TLS)
    """Of `loadtest.slow_holder`; "idle" is always measured."""
    count: int = 2000
    """Slow connections."""
    drip: float = 200.0
    """Bytes/s, over all of them."""
    rate: float = 500.0
    """Requests/s of the normal client."""
    connections: int = 16
    """Of the normal client."""
    rounds: int = 5
    seconds: float = 5.0
    """Of each round."""
    tls: bool = False
    """Everybody speaks TLS 1.3."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The normal client beside slow ones of one kind."""

    kind: str
    p50: float
    """ms"""
    p99: float
    """ms"""
    ended: int
    """Slow connections that the server had ended when the round was over."""


@dataclasses.dataclass(slots=True)
class Outcome:
    """A run."""

    settings: Settings
    rounds: list[Round] = dataclasses.field(default_factory=list)
    lost: int = 0
    """Requests of the normal client that were not answered."""

    def of(self, kind: str) -> list[Round]:
        """The rounds of one kind."""
        return [found for found in self.rounds if found.kind == kind]

    def kinds(self) -> list[str]:
        """Idle first."""
        return [IDLE, *(name for name in dict.fromkeys(found.kind for found in self.rounds) if name != IDLE)]

    def p99(self, kind: str, over: Callable[[Sequence[float]], float] = statistics.median) -> float:
        """Over the rounds, ms."""
        return over([found.p99 for found in self.of(kind)])

    def ratio(self, kind: str, over: Callable[[Sequence[float]], float] = statistics.median) -> float:
        """The p99 beside these slow clients, compared with that beside idle ones."""
        return self.p99(kind, over) / self.p99(IDLE, over)

    def good(self) -> bool:
        """Whether nobody was disturbed by more than allowed, and nothing lost."""
        return not self.lost and all(self.ratio(kind) <= LIMIT for kind in self.kinds())


@contextlib.asynccontextmanager
async def held(kind: str, port: int, settings: Settings) -> AsyncIterator[Callable[[], Any]]:
    """Slow clients; what is given back lets them go and says how many the server had ended. Raises RuntimeError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "loadtest.slow_holder", kind, str(port), str(settings.count), str(settings.drip)),
        *(("tls",) if settings.tls else ()),
        cwd=PROJECT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def let_go() -> int:
        stdin.close()
        return int(await asyncio.wait_for(stdout.readline(), OPEN_TIMEOUT))

    try:
        if await asyncio.wait_for(stdout.readline(), OPEN_TIMEOUT) != b"open\n":
            raise RuntimeError(f"the slow clients of the kind {kind} could not be opened")
        await asyncio.sleep(SETTLE)
        yield let_go
    finally:
        stdin.close()
        await process.wait()
    await asyncio.sleep(SETTLE)


def run(settings: Settings, say: Callable[[str], None] = lambda line: None) -> Outcome:
    """Do all rounds. Raises RuntimeError if the server does not start, or refuses the slow clients."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        server = Server(
            settings.server,
            Path(name),
            workers=settings.workers,
            http=settings.http,
            loop=settings.loop,
            python=settings.python,
            tls=settings.tls,
        )
        try:
            return on_uvloop(_run(server, settings, say))
        finally:
            server.stop()
            server.sweep()


async def _run(server: Server, settings: Settings, say: Callable[[str], None]) -> Outcome:
    await wait_until_up(server, settings.workers)
    tls = None if server.certificate is None else ClientTls(server.certificate, "1.3")
    client = OpenLoop(Load("127.0.0.1", server.port, Ledger(), tls=tls))
    await client.open(settings.connections)
    await client.run(settings.rate, 1.0)  # warm
    outcome = Outcome(settings)
    kinds = [IDLE, *(kind for kind in settings.kinds if kind != IDLE)]
    for number in range(settings.rounds):
        first = number % len(kinds)
        for kind in kinds[first:] + kinds[:first]:
            async with held(kind, server.port, settings) as let_go:
                p50, p99 = await measured(client, settings)
                found = Round(kind=kind, p50=p50, p99=p99, ended=await let_go())
            outcome.rounds.append(found)
            say(f"{kind:10} p50 {p50:.2f} ms  p99 {p99:.2f} ms  {found.ended} ended by the server")
    client.close()
    outcome.lost = client.lost
    return outcome


async def measured(client: OpenLoop, settings: Settings) -> tuple[float, float]:
    """p50 and p99 of the normal client, ms."""
    gc.collect()
    gc.disable()  # the client's own pauses are not the server's
    try:
        await client.run(settings.rate, settings.seconds)
    finally:
        gc.enable()
    latencies = sorted(1000 * latency for latency in client.latencies)
    return percentile(latencies, 0.5), percentile(latencies, 0.99)


def table(outcome: Outcome) -> str:
    """The medians and the ratios."""
    settings = outcome.settings
    rows = [["slow clients", "what they do", "p50 ms", "p99 ms", "p99 to idle", "ended by the server"]]
    for kind in outcome.kinds():
        found = outcome.of(kind)
        rows.append(
            [
                kind,
                KINDS[kind].what,
                f"{statistics.median(one.p50 for one in found):.2f}",
                f"{outcome.p99(kind):.2f}",
                f"{outcome.ratio(kind):.2f}",
                f"{statistics.median(one.ended for one in found):.0f}",
            ]
        )
    title = (
        f"{settings.server} · {settings.workers} workers · {settings.http} · {settings.loop} · "
        f"{'TLS 1.3 · ' if settings.tls else ''}{settings.count} slow connections, "
        f"{settings.drip:.0f} bytes/s in all · {settings.rate:.0f} requests/s, open loop · medians of "
        f"{settings.rounds} rounds of {settings.seconds:.0f} s"
    )
    return "\n".join([title, "", *columns(rows), "", f"{outcome.lost} lost"])


def document(outcome: Outcome) -> str:
    """All rounds as JSON."""
    return json.dumps(dataclasses.asdict(outcome), indent=1)


def plot(outcome: Outcome, path: Path) -> None:
    """Draw the p99 of every round, kind by kind. Raises ImportError if matplotlib is missing."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    kinds = outcome.kinds()
    style: Any = {"font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(8.0, 0.45 * len(kinds) + 1.2), layout="constrained", dpi=130)
        axes.barh(kinds[::-1], [outcome.p99(kind) for kind in kinds[::-1]], color="#4e79a7", height=0.6)
        for kind in kinds:
            values = [found.p99 for found in outcome.of(kind)]
            axes.plot(values, [kind] * len(values), linestyle="", marker="|", color="#222222")
        axes.axvline(LIMIT * outcome.p99(IDLE), color="#e15759", linewidth=1)
        axes.set_xlabel("p99 of a normal client, ms: median and rounds; red: twice that beside idle connections")
        axes.set_title(f"{outcome.settings.count} slow connections of one kind", loc="left")
        axes.tick_params(axis="y", length=0)
        figure.savefig(path)
        pyplot.close(figure)


@click.command(context_settings={"show_default": True})
@click.option("--server", type=click.Choice(list(COMMANDS)), default="serve", help="The server under test.")
@click.option("--workers", type=click.IntRange(1), default=1, help="Its worker processes.")
@click.option("--kinds", default="", help="Which kinds of slowness, separated by commas.  [default: all]")
@click.option("--count", type=click.IntRange(1), default=2000, help="Slow connections.")
@click.option("--drip", type=click.FloatRange(0.1), default=200.0, help="Bytes per second over all of them.")
@click.option("--rate", type=click.FloatRange(1), default=500.0, help="Requests per second of the normal client.")
@click.option("--connections", type=click.IntRange(1), default=16, help="Keep-alive connections of the normal client.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Rounds of each kind.")
@click.option("--seconds", type=click.FloatRange(0.5), default=5.0, help="Length of a round.")
@click.option("--http", type=click.Choice(["httptools", "h11"]), default="httptools", help="The parser, where chosen.")
@click.option("--loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", help="The event loop.")
@click.option("--python", default=sys.executable, help="The interpreter that runs the server.", show_default=False)
@click.option("--tls", is_flag=True, help="Over TLS 1.3, with clients that are slow in their handshakes.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the result into this PNG.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all rounds as JSON.")
def main(kinds: str, picture: Path | None, file: Path | None, **options: Any) -> None:
    """What many slow clients cost the others. Exits 1 if a p99 is more than twice that beside idle connections."""
    possible = [name for name in KINDS if options["tls"] or name not in OF_TLS]
    names = tuple(name.strip() for name in kinds.split(",") if name.strip()) or tuple(possible)
    unknown = [name for name in names if name not in possible]
    if unknown:
        raise click.UsageError(f"There is no kind {unknown[0]!r}; there are {', '.join(possible)}.")
    try:
        outcome = run(Settings(kinds=names, **options), lambda line: click.echo(line, err=True))
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(outcome))
    if file is not None:
        file.write_text(document(outcome))
    if picture is not None:
        plot(outcome, picture)
    sys.exit(0 if outcome.good() else 1)


if __name__ == "__main__":
    main()
