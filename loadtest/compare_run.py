"""One run of the comparison: the servers, the load, and what is read off them (`loadtest.compare`).

Everything goes in rounds, in each of which every server has its turn, so that whatever else the machine does hits them
alike. While the lives are measured, one server is up at a time, since memory that several share would look small.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loadtest import bench_usage, compare_report, idle
from loadtest.bench import FAILURES, LOAD_PATIENCE, started, turns
from loadtest.bench_cases import CASES, lua, read_wrk
from loadtest.bench_servers import BenchServer, Settings, pinned
from loadtest.compare_client import Seen, percentile
from loadtest.compare_lives import everybody, first_response, patience, reloaded
from loadtest.compare_report import Findings
from loadtest.servers import PROJECT

CASE = CASES["plain"]
WORKERS = 2
SHARE = 70
"""% of the rate that saturates."""
CONNECTIONS = 64
"""While the two cores are saturated."""
GENERATORS = 2
"""Processes that send at a fixed rate, so that none of them is what is saturated."""
AT_A_RATE = 128
"""Their connections: enough that a request has to wait for one only if the server stalls."""
KEPT_UP = 0.97
"""Of the requests due, what must have been answered for the latency to mean anything."""
LATE = 1.0
"""ms by which the generator's own 99th percentile may be late."""
IDLE = 10_000
CONNECTION_COUNTS = (1, 10, 100, 1_000, 10_000)
WORKER_COUNTS = (1, 2, 4, 8, 16)
OF_A_WORKER = 32
"""Connections per worker."""
WARM_UP = 1
"""s"""
SETTLE = 1.0
"""Seconds before memory is read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run."""

    servers: list[str]
    rounds: int
    seconds: int
    """Of a round under load."""
    scaling_rounds: int
    scaling_seconds: int
    rate: int
    """Requests/s, the same for all."""
    cores: tuple[int, int]
    python: str
    root: Path
    """A directory of the run."""

    @property
    def both(self) -> str:
        """The cores, for taskset."""
        return ",".join(map(str, self.cores))

    def settings(self, workers: int, cores: int | str) -> Settings:
        """How servers are started."""
        return Settings(
            cases=[CASE],
            servers=self.servers,
            python=self.python,
            workers=workers,
            server_core=cores,
            load_core=self.both,
            bytecode=self.root / "bytecode",
        )

    def directory(self) -> Path:
        """A new one."""
        return Path(tempfile.mkdtemp(dir=self.root))


class Run:
    """What is being measured, and what has been found."""

    def __init__(self, plan: Plan, findings: Findings, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.findings = findings
        self._say = say

    def add(self, what: str, server: str, value: float, count: int = 0) -> None:
        """A figure."""
        self.findings.add(what, server, value, count)
        self._say(f"{server:10} {what:18} {f'{count:,}' if count else '':>8} {value:14,.3f}")

    def doubt(self, sentence: str) -> None:
        """A figure that is missing or unsafe; each is told once."""
        if sentence not in self.findings.problems:
            self.findings.problems.append(sentence)
            self._say(sentence)

    @contextlib.contextmanager
    def telling(self, server: BenchServer, what: str) -> Iterator[None]:
        """What cannot be measured is a problem of the run, and its figure is missing."""
        try:
            yield
        except (*FAILURES, OSError) as error:
            self.doubt(f"{server.name}, {what}: {error}")

    # lives

    def lives(self) -> None:
        """Start, memory, idle connections, reload."""
        for name in self.plan.servers:
            with self.alive(name) as server, self.telling(server, "the start"):
                first_response(server)  # nothing of it counts: it compiles, and fills the cache of the disk
        for number in range(self.plan.rounds):
            for name in self.in_turn(number):
                begun = time.monotonic()
                with self.alive(name) as server, self.telling(server, "a life"):
                    self.life(server, begun, number == 0)

    def in_turn(self, number: int) -> list[str]:
        """The servers, beginning with another one in each round."""
        start = number % len(self.plan.servers)
        return self.plan.servers[start:] + self.plan.servers[:start]

    @contextlib.contextmanager
    def alive(self, name: str) -> Iterator[BenchServer]:
        """One server."""
        server = BenchServer(name, self.plan.directory(), CASE, self.plan.settings(WORKERS, self.plan.both))
        try:
            yield server
        finally:
            server.stop()
            server.sweep()

    def life(self, server: BenchServer, begun: float, first: bool) -> None:
        """From its start to its reload; what does not change, and what does not work, in the first round alone."""
        self.add(compare_report.START, server.name, first_response(server) - begun)
        self.add(compare_report.START_CPU, server.name, bench_usage.cpu(server.processes()))
        pids = asyncio.run(everybody(server, WORKERS))
        time.sleep(SETTLE)
        self.add(compare_report.WORKER, server.name, sum(map(bench_usage.pss, pids)) / WORKERS)
        self.add(compare_report.TREE, server.name, idle.memory(server))
        if first:
            with self.telling(server, "idle connections"):
                self.add(compare_report.IDLE, server.name, idle_connection(server))
        if first or self.findings.median(compare_report.RELOAD, server.name) is not None:
            with self.telling(server, "the reload"):
                reload = asyncio.run(reloaded(server, WORKERS))
                self.add(compare_report.RELOAD, server.name, reload.complete)
                self.add(compare_report.FIRST_OF_RELOAD, server.name, reload.first)
                self.add(compare_report.FAILED, server.name, reload.failed)

    # load

    def load(self) -> None:
        """Two workers on two cores: saturated, then at a share of what each has reached, then at one rate for all."""
        with self.all(WORKERS, self.plan.both) as servers:
            for server in turns(servers, self.plan.rounds):
                with self.telling(server, "saturated"):
                    self.saturate(server)
            for server in turns(servers, self.plan.rounds):
                reached = self.findings.median(compare_report.RATE, server.name)
                if reached is not None:
                    with self.telling(server, f"at {SHARE} %"):
                        self.at_a_rate(server, compare_report.P99_OF_OWN, round(reached * SHARE / 100))
            for server in turns(servers, self.plan.rounds):
                with self.telling(server, f"at {self.plan.rate:,} requests/s"):
                    self.at_a_rate(server, compare_report.P99_OF_SAME, self.plan.rate)

    @contextlib.contextmanager
    def all(self, workers: int, cores: int | str) -> Iterator[list[BenchServer]]:
        """All servers, with all their workers, warmed up."""
        with started(CASE, self.plan.settings(workers, cores), self.plan.directory()) as servers:
            able = []
            for server in servers:
                with self.telling(server, f"with {workers} workers"):
                    self.warm(server, workers)
                    able.append(server)
            yield able

    def warm(self, server: BenchServer, workers: int) -> None:
        """Until it answers rightly, with all workers."""
        first_response(server, patience(workers))
        server.wait_until_right(CASE)
        asyncio.run(everybody(server, workers))
        self.wrk(server, WARM_UP)

    def wrk(self, server: BenchServer, seconds: int) -> str:
        """Saturate it."""
        script = server.directory / "wrk.lua"
        script.write_text(lua(CASE))
        command = f"wrk --threads 2 --connections {CONNECTIONS} --duration {seconds}s --timeout 10s --script {script}"
        done = subprocess.run(
            [*pinned(self.plan.both), *command.split(), f"http://127.0.0.1:{server.port}/"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds + LOAD_PATIENCE,
        )
        return done.stdout.decode(errors="replace")

    def saturate(self, server: BenchServer) -> None:
        """One round."""
        before = idle.cpu(server.processes())
        found = read_wrk(self.wrk(server, self.plan.seconds))
        used = idle.cpu(server.processes()) - before
        if not found.requests:
            raise RuntimeError(f"it has answered nothing:\n{server.last_words()}")
        if found.errors:
            self.doubt(f"{server.name}: {found.errors} errors while it was saturated.")
        self.add(compare_report.RATE, server.name, found.requests / found.seconds)
        self.add(compare_report.COST, server.name, used / found.requests * 1e6)

    def at_a_rate(self, server: BenchServer, what: str, rate: int) -> None:
        """One round."""
        seen = self.sent(server, GENERATORS, AT_A_RATE, self.plan.seconds, self.plan.both, rate)[0]
        if seen.errors:
            self.doubt(f"{server.name}: {seen.errors} errors at a fixed rate.")
        if percentile(seen.late, 0.99) > LATE:
            self.doubt(f"{server.name}, {what}: the load generator itself was late, 1 % by more than {LATE:g} ms.")
        if seen.requests < KEPT_UP * seen.due:
            raise RuntimeError(f"it has answered {seen.requests:,} of {seen.due:,} requests in time.")
        self.add(what, server.name, percentile(seen.latencies, 0.99), rate)

    def sent(
        self, server: BenchServer, processes: int, connections: int, seconds: int, cores: int | str, rate: int = 0
    ) -> tuple[Seen, float]:
        """What the load generators saw, and the CPU time of the server meanwhile in s. Raises RuntimeError."""
        command = [*pinned(cores), sys.executable, "-m", "loadtest.compare_client", str(server.port)]
        command += [str(connections // processes), str(seconds)]
        with contextlib.ExitStack() as stack:
            clients = []
            for number in range(processes):
                words = [str(rate / processes), str(number)] if rate else []
                client = subprocess.Popen(
                    [*command, *words], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                stack.enter_context(client)
                stack.callback(client.kill)
                clients.append(client)
            if not all(told(client) for client in clients):
                raise RuntimeError(f"{connections:,} connections could not be opened.")
            before = idle.cpu(server.processes())
            for client in clients:
                assert client.stdin is not None
                client.stdin.write("\n")
                client.stdin.flush()
            lines = [told(client) for client in clients]
            used = idle.cpu(server.processes()) - before
        seen = Seen()
        for line in lines:
            if not line:
                raise RuntimeError("A load generator has ended without a word.")
            seen.add(Seen.read(line))
        return seen, used

    # scaling

    def connections(self) -> None:
        """One worker on one core, the load on the other."""
        with self.all(1, self.plan.cores[0]) as servers:
            for count in CONNECTION_COUNTS:
                self.scale(servers, compare_report.CONNECTIONS, count, count)

    def workers(self) -> None:
        """All workers on one core, the load on the other: what grows is the cost, not what there is to be had."""
        for count in WORKER_COUNTS:
            with self.all(count, self.plan.cores[0]) as servers:
                self.scale(servers, compare_report.WORKERS, count, count * OF_A_WORKER)

    def scale(self, servers: Sequence[BenchServer], what: str, count: int, connections: int) -> None:
        """The cost of a request for this count."""
        for server in turns(servers, self.plan.scaling_rounds):
            with self.telling(server, f"{count:,} {what}"):
                self.cost(server, what, count, connections)

    def cost(self, server: BenchServer, what: str, count: int, connections: int) -> None:
        """One round."""
        seen, used = self.sent(server, 1, connections, self.plan.scaling_seconds, self.plan.cores[1])
        if not seen.requests:
            raise RuntimeError(f"it has answered nothing:\n{server.last_words()}")
        if seen.errors:
            self.doubt(f"{server.name}, {count:,} {what}: {seen.errors} errors.")
        self.add(what, server.name, used / seen.requests * 1e6, count)


def idle_connection(server: BenchServer) -> float:
    """Bytes of PSS, of all its processes."""
    with idle.held(server, 100):
        pass  # what it makes once, it has made
    time.sleep(SETTLE)
    before = idle.memory(server)
    with idle.held(server, IDLE):
        time.sleep(SETTLE)
        return (idle.memory(server) - before) / IDLE


def told(client: subprocess.Popen[str]) -> str:
    """Its next line."""
    assert client.stdout is not None
    return client.stdout.readline()
