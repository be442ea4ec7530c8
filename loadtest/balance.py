"""`python -m loadtest.balance`: how evenly new connections are spread over the workers.

200 connections are opened 2 ms apart, one after another, and each asks which process answers it: once connections that
are kept open, once connections with a single request. For each kind of listening socket and each server it prints how
many connections the busiest worker got in relation to the mean (1.00: all the same), and what a connection costs.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from loadtest import bench_usage
from loadtest.processes import MARK
from loadtest.report import columns
from loadtest.servers import COMMANDS, PROJECT, Server, Start, free_port, sources

APART = 0.002
"""Seconds from one connection to the next."""
PATIENCE = 30.0
SETTLE = 3.0
"""Seconds for all workers to have answered once; some servers give some of them nothing."""
KINDS = ("tcp", "unix", "fd", "listen_fds")
"""Bound by the server to a port or a path; inherited as --fd; inherited in the manner of systemd."""
PASS_ON = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)
"""A program that passes a listening socket as systemd does (sd_listen_fds(3)), and becomes another program."""

COLOURS = ("#4e79a7", "#59a14f", "#b07aa1", "#b6992d")
"""Of the workers in the picture."""

Address = tuple[str, int] | str


def ask(connection: socket.socket, close: bool = False) -> int:
    """One request; the process that answered it. Raises ConnectionError if it is closed without a response."""
    field = b"connection: close\r\n" if close else b""
    connection.sendall(b"GET / HTTP/1.1\r\nhost: test\r\n" + field + b"\r\n")
    answer = b""
    while not (body := answer.partition(b"\r\n\r\n")[2]):
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"closed after {answer!r}")
        answer += piece
    return int(body)


def connect(address: Address) -> socket.socket:
    """A connection to a port or to the path of a unix socket."""
    connection = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    connection.settimeout(PATIENCE)
    connection.connect(address)
    return connection


def spread(address: Address, count: int, keep: bool) -> collections.Counter[int]:
    """Open `count` connections, APART; how many each process got. With `keep` they stay open until the last one."""
    found: collections.Counter[int] = collections.Counter()
    with contextlib.ExitStack() as kept:
        due = time.monotonic()
        for _ in range(count):
            connection = kept.enter_context(connect(address))
            found[ask(connection, close=not keep)] += 1
            if not keep:
                connection.close()
            due += APART
            time.sleep(max(0.0, due - time.monotonic()))
    return found


def ratio(found: collections.Counter[int], workers: int) -> float:
    """The busiest worker's share in relation to the mean."""
    return max(found.values()) / (found.total() / workers)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one server did on one kind of socket with one kind of connection."""

    server: str
    kind: str
    keep: bool
    ratios: list[float]
    counts: list[list[int]]
    """Of each run: connections per worker, the busiest first."""
    cpu: float
    """µs of CPU time per connection, all processes of the server together."""

    def typical(self) -> list[int]:
        """The counts of the median run."""
        return self.counts[self.ratios.index(statistics.median_low(self.ratios))]


class BalanceServer(Server):
    """A server of several workers on one kind of socket."""

    def __init__(self, name: str, kind: str, workers: int, directory: Path, python: str) -> None:
        """Start it; `directory` must exist and be empty."""
        self.name, self.directory, self.python = name, directory, python
        self.port = free_port()
        self.mark = secrets.token_hex(8)
        self.output = directory / "output.log"
        self.executions = directory / "executions.log"
        self.address: Address = str(directory / "socket") if kind == "unix" else ("127.0.0.1", self.port)
        shutil.copyfile(PROJECT / "loadtest" / "balance_app.py", directory / "loadtest_app.py")
        start = Start(port=self.port, workers=workers, http="httptools", loop="uvloop", directory=directory)
        command = [python, *COMMANDS[name](start)]
        at = command.index("--bind") if "--bind" in command else -1
        with contextlib.ExitStack() as given:
            passed: tuple[int, ...] = ()
            if kind == "unix":
                command[at + 1] = f"unix:{self.address}"
            elif kind != "tcp":
                inherited = given.enter_context(socket.create_server(("127.0.0.1", self.port), backlog=2048))
                passed = (inherited.fileno(),)
                command[at : at + 2] = ["--fd", str(passed[0])] if kind == "fd" else []
                command = [*([python, "-c", PASS_ON, str(passed[0])] if kind == "listen_fds" else []), *command]
            output = given.enter_context(self.output.open("wb"))
            self.process = subprocess.Popen(
                command,
                cwd=PROJECT if name == "serve" else directory,
                env=os.environ
                | {MARK: self.mark, "PYTHONPATH": sources(PROJECT) if name == "serve" else str(directory)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=passed,
            )

    def wait_for(self, workers: int) -> None:
        """Wait until it serves, and then a little for all workers. Raises RuntimeError if it does not serve in time."""
        deadline, settled = time.monotonic() + PATIENCE, 0.0
        seen: set[int] = set()
        while len(seen) < workers and not (seen and time.monotonic() > settled):
            with contextlib.suppress(OSError), connect(self.address) as one, connect(self.address) as other:
                settled = settled or time.monotonic() + SETTLE
                seen |= {ask(one), ask(other)}
            if not seen and (time.monotonic() > deadline or not self.alive):
                raise RuntimeError(f"{self.name} does not serve. It said:\n{self.last_words()}")
            time.sleep(0.01)


def measure(server: BalanceServer, kind: str, workers: int, runs: int, count: int) -> Iterator[Finding]:
    """All runs on a server that serves."""
    for keep in (True, False):
        before = bench_usage.cpu(server.processes())
        found = [spread(server.address, count, keep) for _ in range(runs)]
        used = bench_usage.cpu(server.processes()) - before
        yield Finding(
            server=server.name,
            kind=kind,
            keep=keep,
            ratios=[ratio(one, workers) for one in found],
            counts=[sorted(one.values(), reverse=True) + [0] * (workers - len(one)) for one in found],
            cpu=used / (runs * count) * 1e6,
        )


def table(findings: list[Finding]) -> str:
    """One line per finding."""
    head = ["server", "socket", "connections", "max/mean", "worst", "the median run", "µs CPU"]
    lines = [
        [
            each.server,
            each.kind,
            "kept" if each.keep else "one-shot",
            f"{statistics.median(each.ratios):.2f}",
            f"{max(each.ratios):.2f}",
            "/".join(map(str, each.typical())),
            f"{each.cpu:.0f}",
        ]
        for each in findings
    ]
    return "\n".join(columns([head, *lines]))


def plot(findings: list[Finding], path: Path) -> None:
    """Draw two bars: this server's kept connections over TCP, and those of the peer that spreads them worst.

    Raises ImportError if matplotlib is missing.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    from loadtest.plot import STYLE

    kept = [each for each in findings if each.kind == "tcp" and each.keep]
    shown = [each for each in kept if each.server == "serve"]
    shown += sorted((each for each in kept if each not in shown), key=lambda each: -statistics.median(each.ratios))[:1]
    count = sum(shown[0].typical())
    with pyplot.rc_context(STYLE):
        figure, panel = pyplot.subplots(figsize=(8.0, 0.7 + 0.55 * len(shown)), layout="constrained", dpi=130)
        for place, each in enumerate(shown):
            start = 0
            for number, size in enumerate(each.typical()):
                colour = COLOURS[number % len(COLOURS)]
                panel.barh(place, size, left=start, color=colour, edgecolor="white", linewidth=2)
                if size > count / 40:
                    panel.text(start + size / 2, place, str(size), color="white", ha="center", va="center", fontsize=11)
                start += size
        panel.set_yticks(range(len(shown)), [each.server for each in shown], fontsize=11)
        panel.set_title(f"Where {count} new connections went, by worker", fontsize=12, fontweight="bold")
        panel.invert_yaxis()
        panel.set_xlim(0, count)
        panel.set_xticks([])
        panel.tick_params(axis="y", length=0)
        panel.spines[["left", "bottom"]].set_visible(False)
        figure.savefig(path)
        pyplot.close(figure)


@contextlib.contextmanager
def started(name: str, kind: str, workers: int, python: str) -> Iterator[BalanceServer]:
    """A server that serves; it is ended by its ids, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="balance-") as directory:
        server = BalanceServer(name, kind, workers, Path(directory), python)
        try:
            server.wait_for(workers)
            yield server
        finally:
            server.stop()
            server.sweep()


def run(
    servers: list[str], workers: int, runs: int, count: int, python: str, say: Callable[[str], None] = lambda line: None
) -> list[Finding]:
    """Measure this server on every kind of socket, and the others on TCP."""
    findings: list[Finding] = []
    for name in servers:
        for kind in KINDS if name == "serve" else KINDS[:1]:
            with started(name, kind, workers, python) as server:
                for found in measure(server, kind, workers, runs, count):
                    findings.append(found)
                    say(table([found]).splitlines()[-1])
    return findings


@click.command(context_settings={"show_default": True})
@click.option("--servers", default="serve,uvicorn,granian,gunicorn", help="Which servers, separated by commas.")
@click.option("--workers", type=click.IntRange(2), default=4, help="Workers of each server.")
@click.option("--runs", type=click.IntRange(1), default=9, help="Runs, of which the median counts.")
@click.option("--count", type=click.IntRange(1), default=200, help="Connections of a run.")
@click.option("--python", default=sys.executable, help="The interpreter that runs the servers.", show_default=False)
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the result into this PNG.")
def main(servers: str, picture: Path | None, **options: Any) -> None:
    """How evenly new connections are spread over the workers."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers are ended too
    names = [name.strip() for name in servers.split(",") if name.strip()]
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        raise click.UsageError(f"There is no server {unknown[0]!r}; there are {', '.join(COMMANDS)}.")
    findings = run(names, say=lambda line: click.echo(line, err=True), **options)
    click.echo(table(findings))
    if picture is not None:
        plot(findings, picture)


if __name__ == "__main__":
    main()
