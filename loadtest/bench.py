"""`python -m loadtest.bench`: what a request costs, on this server and on its peers, in one run.

Every server is pinned to one core with one worker, the load generator to another: wrk for HTTP/1.1, h2load for HTTP/2,
a raw-frame client for WebSocket. All servers of a case are up at the same time and get their rounds in turn (A B C, B C
A …), so that whatever else the machine does hits them alike; or, `--together`, all at once. Printed are medians over
the rounds, with the floor (a bare uvloop protocol that writes a canned response) and the application called directly
beside them. See docs/measured/bench.md.

Over TLS, kept connections are asked by wrk too, which takes what the server prefers; connections of one request by
`loadtest.bench_tls`; requests over HTTP/2 of which no two are alike, by `loadtest.bench_http2`.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from loadtest import bench_h2load, bench_report, bench_usage
from loadtest.bench_cases import CASES, Case, Load, chosen, lua, read_wrk
from loadtest.bench_report import AGAINST, CALLING, FLOOR, LOGGED, SERVE, Findings, Round
from loadtest.bench_servers import BENCHED, COMMON, LOGGERS, BenchServer, Settings, module, pinned, speaks
from loadtest.servers import PROJECT

WARM_UP = 1  # s, before the first round of each server
LOAD_PATIENCE = 30.0  # s beyond a round's length, after which the load generator is a failure
DIRECT_SECONDS = 0.3
PROGRAMS = {"wrk": "wrk", "h2load": "nghttp2-client", "taskset": "util-linux"}
"""What it needs, and where Debian has it."""
FAILURES = (RuntimeError, ValueError, subprocess.TimeoutExpired)


def load(server: BenchServer, case: Case, settings: Settings, seconds: int) -> Load:
    """Run the load generator once. Raises RuntimeError or ValueError if it does not measure."""
    if case.http2 and not case.varied:
        return load_http2(server, case, settings, seconds)
    if case.websocket:
        arguments = [str(server.port), str(case.connections), str(seconds)]
        command = [sys.executable, "-m", "loadtest.bench_websocket", *arguments]
    elif case.http2:
        arguments = [str(server.port), str(seconds), case.name, str(server.http2_lifetime)]
        command = [sys.executable, "-m", "loadtest.bench_http2", *arguments]
    elif case.handshake:
        arguments = [str(server.port), str(case.connections), str(seconds), case.handshake]
        command = [sys.executable, "-m", "loadtest.bench_tls", *arguments]
    else:
        script = server.directory / f"{case.name}.lua"
        script.write_text(lua(case))
        command = ["wrk", "--threads", "1", "--connections", str(case.connections), "--duration", f"{seconds}s"]
        command += ["--timeout", "10s", "--script", str(script)]
        command.append(f"{'https' if case.tls else 'http'}://127.0.0.1:{server.port}{case.path}")
    return read_wrk(said(command, settings, seconds))


def load_http2(server: BenchServer, case: Case, settings: Settings, seconds: int) -> Load:
    """The same by h2load; as often as it takes, where connections have an end."""
    requests = server.http2_lifetime * min(case.connections, 8)
    loads: list[Load] = []
    while not loads or (requests and sum(load.seconds for load in loads) < seconds):
        command = bench_h2load.command(case, server.port, seconds, server.directory, requests)
        output = said(command, settings, seconds)
        loads.append(bench_h2load.read(output, bench_h2load.log_file(server.directory).read_text()))
    return bench_h2load.together(loads)


def said(command: Sequence[str], settings: Settings, seconds: int) -> str:
    """The output of a load generator. Raises subprocess.TimeoutExpired."""
    done = subprocess.run(
        [*pinned(settings.load_core), *command],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds + LOAD_PATIENCE,
    )
    return done.stdout.decode(errors="replace")


def one_round(server: BenchServer, case: Case, settings: Settings) -> Round:
    """One round of one server."""
    before = bench_usage.cpu(server.processes())
    found = load(server, case, settings, settings.seconds)
    after = server.processes()
    used = bench_usage.cpu(after) - before
    if not found.requests:
        raise RuntimeError(f"{server.name} has answered nothing in the case {case.name}:\n{server.last_words()}")
    return Round(
        case=case.name,
        server=server.name,
        requests=found.requests,
        rate=found.requests / found.seconds,
        cpu=used / found.requests * 1e6,
        used=used,
        p50=found.p50,
        p99=found.p99,
        pss=max((bench_usage.pss(process.pid) for process in after), default=0),
        errors=found.errors,
    )


def direct(case: Case, settings: Settings) -> float:
    """µs of one call of the application without a server: the median of three processes."""
    command = [settings.python, "-m", "loadtest.bench_direct", f"loadtest.{module(case)}", case.name]
    command.append(str(DIRECT_SECONDS))
    return statistics.median(
        float(subprocess.check_output([*pinned(settings.server_core), *command], cwd=PROJECT, timeout=60.0))
        for _ in range(3)
    )


@contextlib.contextmanager
def started(case: Case, settings: Settings, root: Path) -> Iterator[list[BenchServer]]:
    """All servers, for one case. They are ended by their ids, whatever happens."""
    servers: list[BenchServer] = []
    try:
        for name in settings.servers:
            if not speaks(name, case):
                continue
            directory = root / f"{case.name}-{name}"
            directory.mkdir()
            servers.append(BenchServer(name, directory, case, settings))
        yield servers
    finally:
        for server in servers:
            if server.alive:
                server.process.send_signal(signal.SIGTERM)
        for server in servers:
            server.stop()
            server.sweep(0)


def turns(servers: Sequence[BenchServer], rounds: int) -> Iterator[BenchServer]:
    """Each server once per round; who comes first changes from round to round."""
    for number in range(rounds):
        start = number % max(1, len(servers))
        yield from servers[start:]
        yield from servers[:start]


def run(settings: Settings, say: Callable[[str], None] = lambda line: None) -> Findings:
    """Measure everything. What cannot be measured is among the findings' problems."""
    version = subprocess.check_output(
        [settings.python, "-c", "import platform as p; print(p.python_implementation(), p.python_version())"]
    )
    described = {
        "interpreter": version.decode().strip(),
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "server_core": settings.server_core,
        "load_core": settings.load_core,
        "http": settings.http,
        "loop": settings.loop,
        "against": settings.against is not None,
        "together": settings.together,
        "cores": {},
        "access_log_format": settings.access_log_format,
    }
    findings = Findings(described, [], {})
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for case in settings.cases:
            findings.direct[case.name] = direct(case, settings)
            with started(case, settings, Path(name)) as servers:
                measure(case, servers, findings, settings, say)
    return findings


def measure(
    case: Case, servers: Sequence[BenchServer], findings: Findings, settings: Settings, say: Callable[[str], None]
) -> None:
    """All rounds of one case. A server that fails is told of, and left out of what follows."""
    able = []
    for server in servers:
        try:
            server.wait_until_right(case)
            load(server, case, settings, WARM_UP)
        except FAILURES as error:
            findings.problems.append(f"{case.name}, {server.name}: {error}")
        else:
            able.append(server)
    for server in able:
        if server.name in (SERVE, AGAINST):
            findings.settings["cores"][server.name] = server.core()
    failed: set[str] = set()

    def measured(server: BenchServer) -> None:
        if server.name in failed:
            return
        try:
            found = one_round(server, case, settings)
        except FAILURES as error:
            failed.add(server.name)
            findings.problems.append(f"{case.name}, {server.name}: {error}")
        else:
            findings.rounds.append(found)
            say(f"{case.name:10} {server.name:13} {found.cpu:8.1f} µs  {found.rate:9.0f}/s")

    if settings.together:
        with ThreadPoolExecutor(len(able) or 1) as pool:
            for _ in range(settings.rounds):
                list(pool.map(measured, able))
    else:
        for server in turns(able, settings.rounds):
            measured(server)


@click.command(context_settings={"show_default": True})
@click.option("--cases", default=",".join(CASES), help="Which cases, separated by commas.")
@click.option("--servers", default=",".join((FLOOR, CALLING, *BENCHED)), help="Which servers, separated by commas.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Rounds of each server in each case.")
@click.option("--seconds", type=click.IntRange(1), default=2, help="Length of a round.")
@click.option(
    "--together",
    is_flag=True,
    help="All servers of a case at the same time: exact ratios on a noisy machine, no rates.",
)
@click.option("--http", type=click.Choice(["httptools", "h11"]), default="httptools", help="The parser, where chosen.")
@click.option("--loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", help="The event loop.")
@click.option("--python", default=sys.executable, help="The interpreter that runs the servers.", show_default=False)
@click.option("--server-core", type=click.IntRange(0), default=0, help="The servers' core.")
@click.option("--load-core", type=click.IntRange(0), default=1, help="The load generator's core.")
@click.option(
    "--against",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="Another checkout of this server, measured beside it.",
)
@click.option("--access-log", is_flag=True, help="Measure each server a second time with its access log on.")
@click.option("--access-log-format", default=COMMON, help="Of this server's access log; the others' stays as it is.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the result into this PNG.")
@click.option("--json", "document", type=click.Path(path_type=Path), help="Write all rounds as JSON.")
def main(
    cases: str, servers: str, access_log: bool, picture: Path | None, document: Path | None, **options: Any
) -> None:
    """What a request costs, on this server and on its peers. Exits 1 if a figure is in doubt."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers are ended too
    names = [name.strip() for name in servers.split(",") if name.strip()]
    known = (FLOOR, CALLING, *BENCHED)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.UsageError(f"There is no server {unknown[0]!r}; there are {', '.join(known)}.")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise click.ClickException(f"The bench needs the program {program}; install {package}.")
    if options["against"] is not None:
        names.append(AGAINST)
    if access_log:
        names += [name + LOGGED for name in names if name in LOGGERS or name == AGAINST]
    try:
        settings = Settings(cases=chosen(cases, CASES), servers=names, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    findings = run(settings, lambda line: click.echo(line, err=True))
    click.echo(bench_report.text(findings))
    if document is not None:
        document.write_text(bench_report.document(findings))
    if picture is not None:
        from loadtest.bench_picture import plot

        plot(findings, picture)
    sys.exit(1 if findings.doubts() else 0)


if __name__ == "__main__":
    main()
