"""`python -m loadtest.preload`: what --preload saves, with a FastAPI and a Django application, beside gunicorn's.

For each application and number of workers it prints, of this server with and without --preload and of gunicorn with and
without its own: the memory of a worker (PSS, so that what processes share counts once) after each has answered a few
hundred requests, and of the whole server; CPU and wall time of a reload (medians); the time from the death of a worker
(SIGKILL) until the one in its place answers (median).

gunicorn's HUP with --preload starts new workers of the old code; it is measured as what it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import click

from loadtest import bench_usage
from loadtest.processes import MARK, Process, of_run
from loadtest.report import columns
from loadtest.servers import PROJECT, free_port, sources

PATIENCE = 600.0
"""Seconds until something that is waited for is given up."""
REQUESTS = 200
"""To each worker, as a mean, before its memory is measured."""
SETTLE = 1.5
"""Seconds between the last request and a measurement."""
SERVERS = ("serve", "serve --preload", "gunicorn", "gunicorn --preload")
APPLICATIONS = ("fastapi", "django")


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Of one server."""

    worker: float
    """Bytes of PSS of a worker, as a mean."""
    whole: float
    """Bytes of PSS of all its processes."""
    cpu: float
    """Seconds of CPU time of a reload."""
    wall: float
    """Seconds from asking for a reload until it is over."""
    respawn: float
    """Seconds from the death of a worker until the next one answers."""


class PreloadServer:
    """A server under test."""

    def __init__(self, name: str, application: str, workers: int, directory: Path, python: str) -> None:
        self.name, self.workers, self.directory, self.python = name, workers, directory, python
        self.port = free_port()
        self.mark = secrets.token_hex(8)
        shutil.copyfile(PROJECT / "loadtest" / f"preload_app_{application}.py", directory / "loadtest_app.py")
        self.output = directory / "output.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [python, *self._command()],
                cwd=directory,
                env=os.environ | {MARK: self.mark, "PYTHONPATH": f"{sources(PROJECT)}:{directory}"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _command(self) -> list[str]:
        preload = ["--preload"] if self.name.endswith("--preload") else []
        if self.name.startswith("serve"):
            return [
                *("-m", "serve_asgi", "loadtest_app:app", "--bind", f"127.0.0.1:{self.port}"),
                *("--workers", str(self.workers), "--no-access-log", "--control", str(self.directory / "control")),
                *preload,
            ]
        return [
            *("-m", "gunicorn", "loadtest_app:app", "-k", "asgi", "-b", f"127.0.0.1:{self.port}"),
            *("-w", str(self.workers), "--asgi-loop", "uvloop", "--no-control-socket"),
            *preload,
        ]

    def processes(self) -> list[Process]:
        """The living ones."""
        return [each for each in of_run(self.mark, self.process.pid) if each.state != "Z"]

    def ask(self) -> int:
        """One request on a new connection; the PID of who has answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60.0)
        with contextlib.closing(connection):
            connection.request("GET", "/", headers={"Connection": "close"})
            return int(json.loads(connection.getresponse().read())["pid"])

    def add(self, seen: set[int], besides: AbstractSet[int] = frozenset()) -> int:
        """One request; add who has answered, and return how many there are, without those `besides`."""
        seen.add(self.ask())
        return len(seen - besides)

    def until(self, condition: Callable[[], bool], what: str) -> float:
        """Wait for something; the seconds that it took."""
        began = time.perf_counter()
        while not self._holds(condition):
            if time.perf_counter() > began + PATIENCE or self.process.poll() is not None:
                raise RuntimeError(f"{self.name}: {what}: not within {PATIENCE:g} s\n{self.output.read_text()[-3000:]}")
        return time.perf_counter() - began

    @staticmethod
    def _holds(condition: Callable[[], bool]) -> bool:
        try:
            return condition()
        except (OSError, http.client.HTTPException):
            time.sleep(0.005)
            return False

    def answering(self) -> set[int]:
        """Have all workers answer many requests; their PIDs."""
        seen: set[int] = set()
        self.until(lambda: self.add(seen) >= self.workers, "all workers answer")
        for _ in range(REQUESTS * self.workers):
            seen.add(self.ask())
        return seen

    def reload(self) -> tuple[float, float]:
        """Reload; CPU and wall time (s)."""
        before, used = self.answering(), bench_usage.cpu(self.processes())
        began = time.perf_counter()
        if self.name.startswith("serve"):
            command = ["-m", "serve_asgi", "reload", "--control", str(self.directory / "control")]
            subprocess.run(
                [self.python, *command],
                check=True,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": sources(PROJECT)},
            )
            wall = time.perf_counter() - began
        else:
            self.process.send_signal(signal.SIGHUP)
            fresh: set[int] = set()
            self.until(lambda: self.add(fresh, before) >= self.workers, "new workers answer")
            wall = time.perf_counter() - began
        self.until(lambda: not before & {each.pid for each in self.processes()}, "old workers have ended")
        time.sleep(SETTLE)
        return bench_usage.cpu(self.processes()) - used, wall

    def respawn(self) -> float:
        """Kill a worker; the seconds until another one answers in its place."""
        seen: set[int] = set()
        self.until(lambda: self.add(seen) >= self.workers, "all workers answer")
        os.kill(min(seen), signal.SIGKILL)
        return self.until(lambda: self.ask() not in seen, "the next worker answers")

    def measure(self, times: int) -> Measured:
        """All of it."""
        self.until(lambda: self.ask() > 0, "it answers")
        workers = self.answering()
        time.sleep(SETTLE)
        worker = statistics.mean(bench_usage.pss(pid) for pid in workers)
        whole = sum(bench_usage.pss(each.pid) for each in self.processes())
        reloads = [self.reload() for _ in range(times)]
        respawns = []
        for _ in range(times):
            respawns.append(self.respawn())
            time.sleep(SETTLE)
        cpu, wall = (statistics.median(each) for each in zip(*reloads, strict=True))
        return Measured(worker, whole, cpu, wall, statistics.median(respawns))


@contextlib.contextmanager
def running(name: str, application: str, workers: int, python: str) -> Iterator[PreloadServer]:
    """A server for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as directory:
        server = PreloadServer(name, application, workers, Path(directory), python)
        try:
            yield server
        finally:
            server.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(40)
            for each in server.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)
            server.process.wait()


@click.command(help=__doc__)
@click.option("--server", "servers", multiple=True, type=click.Choice(SERVERS), help="Only these; may be repeated.")
@click.option("--application", "applications", multiple=True, type=click.Choice(APPLICATIONS))
@click.option("--workers", multiple=True, type=int, default=(4, 16), show_default=True)
@click.option("--times", default=5, show_default=True, help="Reloads, and deaths of workers.")
@click.option("--python", default=sys.executable, help="The interpreter that has the servers and frameworks.")
def main(
    servers: tuple[str, ...], applications: tuple[str, ...], workers: tuple[int, ...], times: int, python: str
) -> None:
    heads = ["", "PSS of a worker", "whole server", "reload CPU", "reload wall", "respawn"]
    for application in applications or APPLICATIONS:
        for count in workers:
            rows = []
            for name in servers or SERVERS:
                with running(name, application, count, python) as server:
                    found = server.measure(times)
                rows.append(
                    [
                        name,
                        f"{found.worker / 1e6:.1f} MB",
                        f"{found.whole / 1e6:.0f} MB",
                        f"{found.cpu:.2f} s",
                        f"{found.wall:.2f} s",
                        f"{found.respawn * 1000:.0f} ms",
                    ]
                )
                print(f"{application}, {count} workers: {rows[-1]}", file=sys.stderr, flush=True)
            print(f"\n{application}, {count} workers\n" + "\n".join(columns([heads, *rows])), flush=True)


if __name__ == "__main__":
    main()
