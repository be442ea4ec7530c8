"""`python -m loadtest.canary`: the mixed strict load over N deploys on trial, half of them bad; one table.

Every request is accounted for, as in `loadtest.reload`. What a bad version answers with its error counts apart
(`loadtest.canary_versions`). A version that crashes may take with it what was in flight in its process at that moment,
and nothing else. `run` is the way in for tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import click

from loadtest import canary_versions, processes
from loadtest.canary_versions import FAULTS, GOOD_SECONDS, MAX_RSS, Fault
from loadtest.client import CLOSE_TIMEOUT, UNANNOUNCED, Load
from loadtest.kinds import users
from loadtest.ledger import Accounts, Entry, Execution, Ledger, Left, Reconnect, parse_executions, settle
from loadtest.proxies import PROXIES, behind
from loadtest.reload import FINISH_TIMEOUT, LEAVE_TIMEOUT, odd_accounts, on_uvloop, stop, wait_until_up
from loadtest.servers import Server
from loadtest.tls import ClientTls

LATENCY = 3.0
"""--canary-latency."""
SETTLE = 0.6
"""Seconds of load between two deploys."""
CRASH_TIME = 3.0
"""Seconds within which a client notices that a process has crashed, also one on a busy machine."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CanarySettings:
    """One run."""

    deploys: int = 50
    workers: int = 2
    behind: str | None = None
    """The proxy in front, whose pool of kept connections is what the canary gets its share of."""
    tls: bool = False
    http: str = "httptools"
    loop: str = "uvloop"
    scale: float = 1.0
    seed: int = 1
    python: str = sys.executable
    faults: tuple[str, ...] = ()
    """Names of the ways of being bad; all, if empty."""


@dataclasses.dataclass(slots=True)
class Deploy:
    """One deploy. Times on the monotonic clock, s; 0 for what did not happen."""

    number: int
    fault: Fault | None
    began: float = 0.0
    on_trial: float = 0.0
    """When the canary began to serve."""
    decided: float = 0.0
    """When it was taken back or promoted."""
    ended: float = 0.0
    generation: int = 0
    taken_back: bool = False
    reason: str = ""
    said: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """What `serve reload --json` has printed."""

    @property
    def right(self) -> bool:
        """Bad ones are taken back while they are on trial, good ones are not."""
        return bool(self.on_trial) and self.taken_back is (self.fault is not None)


@dataclasses.dataclass(frozen=True, slots=True)
class Crash:
    """The end of a process by its own fault."""

    pid: int
    time: float


@dataclasses.dataclass(slots=True)
class CanaryResult:
    """What a run has found."""

    settings: CanarySettings
    deploys: list[Deploy]
    ledger: Ledger
    accounts: Accounts
    executions: list[Execution]
    lost: list[Entry]
    """Without an answer, and nothing excuses it."""
    crashed: list[Entry]
    """In flight in a process that crashed, at that moment."""
    reconnects: list[Reconnect]
    crashed_connections: list[Reconnect]
    problems: list[str]
    began: float
    ended: float

    @property
    def wrong(self) -> list[Deploy]:
        """The deploys whose end is not the one that they deserve."""
        return [deploy for deploy in self.deploys if not deploy.right]

    @property
    def spotless(self) -> bool:
        """Nothing lost, duplicated, reconnected, odd; every verdict right."""
        return not (self.lost or self.accounts.duplicated or self.reconnects or self.problems or self.wrong)

    def answered_by(self, deploy: Deploy) -> list[Entry]:
        """What the version of this deploy has answered until the verdict on it, in the order of the answers."""
        until = deploy.ended if deploy.taken_back else deploy.decided
        mine = [e for e in self.ledger.entries if e.generation == deploy.generation and e.pid and e.done <= until + 30]
        return sorted((e for e in mine if deploy.taken_back or e.done <= until), key=lambda e: e.done)

    def failed_by(self, deploy: Deploy) -> list[Entry]:
        """What it has answered with its error."""
        return [entry for entry in self.answered_by(deploy) if entry.cause is not None]


def run(settings: CanarySettings) -> CanaryResult:
    """Do one run. Raises RuntimeError if the server or the proxy does not start."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        server = Server(
            "serve",
            Path(name),
            workers=settings.workers,
            http=settings.http,
            loop=settings.loop,
            python=settings.python,
            tls=settings.tls,
            options=["--max-rss", str(MAX_RSS), "--canary-latency", str(LATENCY)],
        )
        try:
            on_uvloop(wait_until_up(server, settings.workers))
            with contextlib.ExitStack() as stack:
                port = server.port
                if settings.behind is not None:
                    port = stack.enter_context(behind(settings.behind, Path(name), port))
                return _run(server, settings, port)
        finally:
            if server.alive:
                server.process.kill()
                server.process.wait()
            server.sweep(0)


def _run(server: Server, settings: CanarySettings, port: int) -> CanaryResult:
    ledger, problems = Ledger(), list[str]()
    tls = ClientTls(server.certificate, "1.3", settings.seed) if server.certificate is not None else None
    before = len(server.workers()), processes.descriptors(server.pid)
    began = time.monotonic()
    deploys = on_uvloop(_under_load(server, settings, Load("127.0.0.1", port, ledger, settings.scale, settings.seed,
                                                           tls=tls)))  # fmt: skip
    ended = time.monotonic()
    if server.alive:
        deadline = time.monotonic() + LEAVE_TIMEOUT
        while len(server.workers()) > before[0] and time.monotonic() < deadline:
            time.sleep(0.1)
        if (count := len(server.workers())) != before[0]:
            problems.append(f"{count} child processes at the end, {before[0]} at the beginning")
        time.sleep(0.3)
        if (count := processes.descriptors(server.pid)) > before[1]:
            problems.append(f"the listener had {before[1]} descriptors and has {count}")
        if dead := processes.zombies(server.processes(), server.pid):
            problems.append(f"{len(dead)} zombies")
    stop(server, problems)
    executions = parse_executions(server.executions.read_bytes())
    accounts = settle(ledger.entries, executions)
    crashes = _crashes(server.directory / canary_versions.CRASHES)
    excused = {entry.number for entry in accounts.lost if in_crash(entry, executions_of(executions), crashes)}
    accounts.unfinished[:] = [n for n in accounts.unfinished if not _executed_in(n, executions, crashes)]
    problems += odd_accounts(accounts)
    crashed_connections = [each for each in ledger.reconnects if _ended_in(each, crashes)]
    if ledger.oddities[UNANNOUNCED] <= len(crashed_connections) + len(excused):
        del ledger.oddities[UNANNOUNCED]  # a process that crashes says nothing
    problems += [f"{what} ({count} times)" for what, count in ledger.oddities.items()]
    if problems:
        problems.append("the server's last words:\n" + server.last_words())
    return CanaryResult(
        settings,
        deploys,
        ledger,
        accounts,
        executions,
        [entry for entry in accounts.lost if entry.number not in excused],
        [entry for entry in accounts.lost if entry.number in excused],
        [each for each in ledger.reconnects if each not in crashed_connections],
        crashed_connections,
        problems,
        began,
        ended,
    )


# What a crash excuses


def executions_of(executions: Sequence[Execution]) -> dict[int, set[int]]:
    """The pids that have executed each id."""
    found: dict[int, set[int]] = {}
    for execution in executions:
        found.setdefault(execution.number, set()).add(execution.pid)
    return found


def in_crash(entry: Entry, executed: dict[int, set[int]], crashes: Sequence[Crash]) -> bool:
    """Whether a lost id was in flight when a process crashed, and was executed by none but that process.

    That a WebSocket is refused is noted when its connection has been closed, too.
    """
    return any(
        entry.sent <= crash.time + CRASH_TIME / 2
        and crash.time <= entry.done <= crash.time + CRASH_TIME + (CLOSE_TIMEOUT if entry.kind == "WebSocket" else 0)
        and executed.get(entry.number, {crash.pid}) == {crash.pid}
        for crash in crashes
    )


def _executed_in(number: int, executions: Sequence[Execution], crashes: Sequence[Crash]) -> bool:
    pids = {crash.pid for crash in crashes}
    return any(execution.number == number and execution.pid in pids for execution in executions)


def _ended_in(reconnect: Reconnect, crashes: Sequence[Crash]) -> bool:
    ends = (Left.EOF, Left.RESET, Left.TRUNCATION)
    return any(reconnect.left in ends and 0 <= reconnect.time - crash.time <= CRASH_TIME for crash in crashes)


def _crashes(path: Path) -> list[Crash]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [Crash(int(pid), int(nanoseconds) / 1e9) for pid, nanoseconds in map(str.split, lines)]


# The deploys


def planned(settings: CanarySettings) -> list[Fault | None]:
    """The deploys of a run: every second one is bad, in all the ways in turn, in an order drawn by the seed."""
    faults = [fault for fault in FAULTS if not settings.faults or fault.name in settings.faults]
    plan: list[Fault | None] = [faults[index % len(faults)] for index in range(settings.deploys // 2)]
    plan += [None] * (settings.deploys - len(plan))
    Random(settings.seed).shuffle(plan)
    return plan


async def _under_load(server: Server, settings: CanarySettings, load: Load) -> list[Deploy]:
    tasks = {asyncio.ensure_future(user) for user in users(load)}
    await load.pause(2.0)
    deploys = []
    for number, fault in enumerate(planned(settings), 2):
        deploys.append(await one_deploy(server, Deploy(number, fault)))
        if not server.alive:
            break
        await load.pause(SETTLE)
    await load.pause(1.0)
    load.stop()
    done, late = await asyncio.wait(tasks, timeout=FINISH_TIMEOUT)
    for task in late:
        task.cancel()
    for task in done:
        task.result()  # an error of the load test itself must not pass for a good run
    return deploys


async def one_deploy(server: Server, deploy: Deploy) -> Deploy:
    """Deploy this version on trial, and wait for the outcome; what was there before is put back if it is refused."""
    canary_versions.deploy(server.directory, deploy.number, deploy.fault)
    seconds = GOOD_SECONDS if deploy.fault is None else deploy.fault.seconds
    deploy.began = time.monotonic()
    status, said = await asyncio.to_thread(server.control, "reload", "--canary", "--for", f"{seconds}", "--json")
    deploy.ended = time.monotonic()
    clock = time.time() - time.monotonic()
    deploy.said = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    for record in deploy.said:
        at = record.get("at", clock) - clock
        match record.get("event"):
            case "canary_started":
                deploy.on_trial, deploy.generation = at, record["generation"]
            case "canary_withdrawn" | "canary_promoted":
                deploy.decided, deploy.reason = at, record["reason"]
    deploy.taken_back = status == 1
    if not deploy.reason:
        deploy.reason = said.strip().splitlines()[-1] if said.strip() else f"exit status {status}"
    if status:
        canary_versions.deploy(server.directory, deploy.number - 1)
    return deploy


@click.command(context_settings={"show_default": True})
@click.option("--deploys", type=click.IntRange(1), default=50, help="How many; every second one is bad.")
@click.option("--workers", type=click.IntRange(1), default=2, help="The server's worker processes.")
@click.option("--behind", type=click.Choice(list(PROXIES)), help="A proxy with a pool, in front of the server.")
@click.option("--tls", is_flag=True, help="Speak TLS 1.3.")
@click.option("--http", type=click.Choice(["httptools", "h11"]), default="httptools", help="The server's parser.")
@click.option("--loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", help="The server's event loop.")
@click.option("--scale", type=click.FloatRange(0.01), default=1.0, help="Factor for the request rates.")
@click.option("--faults", type=click.Choice([each.name for each in FAULTS]), multiple=True, help="Only these.")
@click.option("--seed", type=int, default=1, help="For the order of the deploys and the load's random choices.")
@click.option("--python", default=sys.executable, help="The interpreter that runs the server.", show_default=False)
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw a bad deploy, as PNG.")
@click.option("-v", "--verbose", is_flag=True, help="Print each deploy.")
def main(picture: Path | None, verbose: bool, **options: Any) -> None:
    """Deploy good and bad versions on trial under strict mixed load. Exits 1 if anything was lost or judged wrongly."""
    from loadtest.canary_report import table

    if options["behind"] and options["tls"]:
        raise click.UsageError("--behind speaks plain HTTP to the server: leave --tls out")
    try:
        result = run(CanarySettings(**options))
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(result, verbose=verbose))
    if picture is not None:
        from loadtest.canary_plot import plot

        plot(result, picture)
    sys.exit(0 if result.spotless else 1)


if __name__ == "__main__":
    main()
