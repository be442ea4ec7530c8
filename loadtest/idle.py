"""`python -m loadtest.idle`: what a connection costs on which nothing happens.

One worker holds 10,000 keep-alive connections, each with one request answered. For each server it prints the memory
per connection (PSS of all its processes, with and without them) and the CPU time that passes in silence, with them and
before they came. CPU time is taken from the scheduler (nanoseconds, proc(5): schedstat), since the clock ticks of
/proc/PID/stat would show nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from loadtest import bench_usage
from loadtest.bench_cases import CASES
from loadtest.bench_servers import BenchServer, Settings
from loadtest.processes import Process
from loadtest.report import columns
from loadtest.servers import COMMANDS, PROJECT

SPARE = 200
"""Descriptors that a process has open besides its connections."""
PATIENCE = 120.0
SETTLE = 2.0
"""Seconds between the last request and the measurement."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """What one server used."""

    server: str
    memory: float
    """Bytes of PSS per connection."""
    empty: float
    """µs of CPU time per second without any connection."""
    full: float
    """The same with all of them."""


def cpu(processes: Iterable[Process]) -> float:
    """Seconds that all threads of these processes have run (proc_pid_schedstat: the first field, ns)."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def silence(server: BenchServer, seconds: float) -> float:
    """µs of CPU time per second while nothing is asked."""
    time.sleep(SETTLE)
    before, start = cpu(server.processes()), time.monotonic()
    time.sleep(seconds)
    return (cpu(server.processes()) - before) / (time.monotonic() - start) * 1e6


def memory(server: BenchServer) -> int:
    """PSS of all its processes in bytes."""
    return sum(bench_usage.pss(process.pid) for process in server.processes())


@contextlib.contextmanager
def held(server: BenchServer, count: int) -> Iterator[None]:
    """So many idle connections, held by a process of their own. Raises RuntimeError if they do not come to stand."""
    command = [sys.executable, "-m", "loadtest.idle_client", str(server.port), str(count)]
    command += ["tls"] if server.certificate is not None else []
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        try:
            assert client.stdout is not None
            if not client.stdout.readline():
                raise RuntimeError("the connections could not be opened")
            yield
        finally:
            assert client.stdin is not None
            client.stdin.close()
            try:
                client.wait(PATIENCE)
            finally:
                client.kill()


def measure(name: str, connections: int, seconds: float, python: str, tls: bool) -> Idle:
    """Start a server, measure it, end it. Raises RuntimeError if it does not serve."""
    case = CASES["tls" if tls else "plain"]
    settings = Settings(cases=[], servers=[name], python=python)
    with tempfile.TemporaryDirectory(prefix="idle-") as directory:
        server = BenchServer(name, Path(directory), case, settings)
        try:
            server.wait_until_right(case)
            with held(server, 100):
                pass  # what it makes once, it has made
            empty = silence(server, seconds)
            before = memory(server)
            with held(server, connections):
                full = silence(server, seconds)
                grown = memory(server) - before
        finally:
            server.stop()
            server.sweep()
    return Idle(server=name, memory=grown / connections, empty=empty, full=full)


def table(findings: list[Idle]) -> str:
    """One line per server."""
    lines = [["server", "bytes per connection", "µs CPU per s, none", "with all"]]
    lines += [[each.server, f"{each.memory:.0f}", f"{each.empty:.0f}", f"{each.full:.0f}"] for each in findings]
    return "\n".join(columns(lines))


def run(
    servers: list[str], connections: int, seconds: float, python: str, tls: bool, say: Callable[[str], None]
) -> list[Idle]:
    """Measure one server after the other."""
    findings = []
    for name in servers:
        findings.append(measure(name, connections, seconds, python, tls))
        say(table(findings[-1:]).splitlines()[-1])
    return findings


def raise_limit(connections: int) -> None:
    """Let this process and its children have so many connections. Raises click.ClickException if they may not."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < connections + SPARE:
        raise click.ClickException(f"A process may have {most} open files here: raise the hard limit, or ask for less.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@click.command(context_settings={"show_default": True})
@click.option("--servers", default=",".join(COMMANDS), help="Which servers, separated by commas.")
@click.option("--connections", type=click.IntRange(1), default=10_000, help="Idle connections.")
@click.option("--seconds", type=click.FloatRange(1), default=20.0, help="How long the silence is measured.")
@click.option("--python", default=sys.executable, help="The interpreter that runs the servers.", show_default=False)
@click.option("--tls", is_flag=True, help="Over TLS.")
def main(servers: str, connections: int, **options: Any) -> None:
    """What a connection costs on which nothing happens."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server is ended too
    names = [name.strip() for name in servers.split(",") if name.strip()]
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        raise click.UsageError(f"There is no server {unknown[0]!r}; there are {', '.join(COMMANDS)}.")
    raise_limit(connections)
    click.echo(table(run(names, connections, say=lambda line: click.echo(line, err=True), **options)))


if __name__ == "__main__":
    main()
