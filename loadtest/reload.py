"""`python -m loadtest.reload`: one server, the mixed strict load, N reloads, one table.

Owns a run from start to end: start the server, wait until it answers, count its descriptors, run the load, send the
HUPs, let the load finish what it has sent, count again, stop the server, settle the accounts. `run` is the way in for
tests. With `--surviving` the load is of WebSockets and streams that survive reloads (`loadtest.surviving_websocket`,
`loadtest.surviving_stream`; with `--http2` several of each on one connection, `loadtest.http2_surviving`), and of
requests beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop

from loadtest import processes, surviving
from loadtest.client import Load
from loadtest.kinds import HTTP2, HTTP2_SURVIVING, HTTP_1_0, KINDS, SURVIVING, users
from loadtest.ledger import Accounts, Ledger, parse_executions, settle
from loadtest.proxies import PROXIES, behind
from loadtest.report import as_json, table
from loadtest.result import Measures, Reload, Result, Settings
from loadtest.servers import COMMANDS, GRACEFUL, NO_HTTP_1_0, Server
from loadtest.tls import VERSIONS, ClientTls, renew
from serve_asgi.cli import control_client
from serve_asgi.errors import ServeError

START_TIMEOUT = 60.0
RELOAD_TIMEOUT = 90.0
FINISH_TIMEOUT = 60.0  # the load's own answers time out before that
LEAVE_TIMEOUT = GRACEFUL + 15.0  # for the workers of the older generations
KEEP_PREVIOUS = 600  # s
UNIX = "socket"
"""The name of the unix socket in the directory of the run."""
QUIET = 1.0  # s without a response by an old worker on a new connection, after which a reload counts as complete

T = TypeVar("T")


class Watch:
    """Tells when a reload is complete, by who answers first on new connections."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._known: set[tuple[int, int]] = set()
        self._new: set[tuple[int, int]] = set()
        self._last_old = 0.0

    def first_answer(self, pid: int, generation: int) -> None:
        """A new connection was answered by `pid`. Over hundreds of reloads a PID comes again, in another generation."""
        worker = pid, generation
        if worker in self._known:
            self._last_old = time.monotonic()
        else:
            self._new.add(worker)

    def begin(self) -> None:
        """A HUP is about to be sent."""
        self._known |= self._new
        self._new = set()
        self._last_old = time.monotonic()

    def begin_rollback(self) -> None:
        """The last reload is about to be taken back: the workers before it are the new ones."""
        self._known, self._new = self._new, set()
        self._last_old = time.monotonic()

    @property
    def complete(self) -> bool:
        """All workers are new ones, or only new ones take connections."""
        if len(self._new) >= self._workers:
            return True
        return bool(self._new) and time.monotonic() - self._last_old > QUIET


def run(settings: Settings) -> Result:
    """Do one run. Raises RuntimeError if the server does not start, or cannot do what a kind of load is made of."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        server = Server(
            settings.server,
            Path(name),
            workers=settings.workers,
            http=settings.http,
            loop=settings.loop,
            python=settings.python,
            tls=bool(settings.tls),
            http2=settings.http2,
            keep_previous=KEEP_PREVIOUS if settings.rollbacks else 0,
            options=options(settings, Path(name)),
        )
        try:
            with contextlib.ExitStack() as stack:
                on_uvloop(wait_until_up(server, settings.workers))
                port = server.port
                if settings.behind is not None:
                    port = stack.enter_context(behind(settings.behind, Path(name), port))
                return _run(server, settings, port)
        finally:
            if server.alive:
                server.process.kill()
                server.process.wait()
            server.sweep(0)


def options(settings: Settings, directory: Path) -> list[str]:
    """What this project's server is told besides."""
    found = ["--bind", f"unix:{directory / UNIX}"] if settings.unix else []
    if settings.survive_window is not None:
        found += ["--survive-window", str(settings.survive_window)]
    if settings.h2_hold is not None:
        found += ["--h2-hold", str(settings.h2_hold)]
    return found


def _run(server: Server, settings: Settings, port: int) -> Result:
    ledger, measures, problems = Ledger(), Measures(), list[str]()
    tls = None
    if settings.tls is not None and server.certificate is not None:
        tls = ClientTls(server.certificate, settings.tls, settings.seed, "h2" if settings.http2 else "http/1.1")
    workers_before = len(server.workers())
    measures.descriptors_before = processes.descriptors(server.pid)
    measures.memory.append(processes.resident(server.pid))
    began = time.monotonic()
    unix = server.directory / UNIX if settings.unix else None
    load = Load(
        "127.0.0.1",
        port,
        ledger,
        settings.scale,
        settings.seed,
        settings.stretch,
        tls=tls,
        unix=unix,
        deflate=settings.deflate,
    )
    if settings.h2_hold is not None:
        load.h2_hold = settings.h2_hold
    reloads = on_uvloop(under_load(server, settings, load, measures, problems))
    ended = time.monotonic()
    measures.memory.append(processes.resident(server.pid))

    if server.alive:
        deadline = time.monotonic() + LEAVE_TIMEOUT
        while len(server.workers()) > workers_before and time.monotonic() < deadline:
            time.sleep(0.1)
        if (count := len(server.workers())) != workers_before:
            problems.append(f"{count} child processes at the end, {workers_before} at the beginning")
        time.sleep(0.3)
        measures.descriptors_after = processes.descriptors(server.pid)
        if measures.descriptors_after > measures.descriptors_before:
            problems.append(
                f"the listener had {measures.descriptors_before} descriptors and has {measures.descriptors_after}"
            )
        if dead := processes.zombies(server.processes(), server.pid):
            problems.append(f"{len(dead)} zombies")
    measures.exit_status = stop(server, problems)

    executions = parse_executions(server.executions.read_bytes())
    accounts = settle(ledger.entries, executions)
    problems += odd_accounts(accounts)
    problems += surviving.problems(ledger.survivors, len(reloads))
    problems += [f"{what} ({count} times)" for what, count in ledger.oddities.items()]
    if problems and server.output.stat().st_size:
        problems.append("the server's last words:\n" + server.last_words())
    return Result(settings, ledger, accounts, executions, reloads, measures, problems, tls, began, ended)


def stop(server: Server, problems: list[str]) -> int | None:
    """Stop the server by TERM and look at what it leaves behind; its exit status, None if it had to be killed."""
    died = not server.alive
    status = server.stop()
    allowed = (0,) if server.name == "serve" else (0, -15)  # some end themselves by the signal they were sent
    if status is None:
        problems.append("the server did not stop after TERM and was killed")
    elif died:
        problems.append(f"the server ended by itself with status {status}")
    elif status not in allowed:
        problems.append(f"the server's exit status is {status}")
    if left := server.sweep():
        problems.append("left behind: " + ", ".join(f"{process.name} {process.pid}" for process in left))
    return status


def odd_accounts(accounts: Accounts) -> list[str]:
    """Sentences about what does not agree, besides what is lost or duplicated."""
    kinds = {
        "executed but never sent": accounts.phantom,
        "answered but never executed": accounts.unexecuted,
        "answered, but the execution never ended": accounts.unfinished,
        "answered by another process than the one that executed them": accounts.mismatched,
    }
    return [f"{len(ids)} ids {what}: {ids[:5]}" for what, ids in kinds.items() if ids]


async def wait_until_up(server: Server, workers: int) -> None:
    """Wait until all workers run and the server answers. This is the only place that tries again."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and server.alive:
        if len(server.workers()) >= workers and await answers(server):
            await asyncio.sleep(1.0)  # some servers' workers come one after another
            return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"{server.name} did not start:\n{server.last_words()}")


async def answers(server: Server) -> bool:
    """Whether a GET / is answered with 200."""
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=server.trusting())
            with contextlib.closing(writer):
                writer.write(b"GET / HTTP/1.1\r\nhost: loadtest\r\nconnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
    except (OSError, TimeoutError):
        return False


async def under_load(
    server: Server,
    settings: Settings,
    load: Load,
    measures: Measures,
    problems: list[str],
) -> list[Reload]:
    """Run the mixed load and the reloads."""
    tls = load.tls
    watch = Watch(settings.workers)
    load.first_answer = watch.first_answer
    reloads: list[Reload] = []
    tasks = {asyncio.ensure_future(user) for user in users(load, kinds_of(settings))}
    await load.pause(settings.warmup)
    if load.impossible:
        raise RuntimeError(load.impossible)
    for number in range(1, settings.reloads + settings.rollbacks + 1):
        reload = Reload(time.monotonic())
        reloads.append(reload)
        if settings.renew and tls is not None:
            await renew_certificate(server, number, tls, problems)
        watch.begin()
        if settings.listener:
            status, said = await asyncio.to_thread(server.control, "reload", "--listener")
            if status:
                problems.append(f"the listener was not replaced: {said}")
        server.hup()
        if not await completed(server, watch, reload, settings.interval):
            problems.append(f"reload {number} was not seen to complete")
        measures.memory.append(processes.resident(server.pid))
        if not server.alive:
            problems.append(f"the server ended at reload {number}")
            break
        if number > settings.reloads:
            rollback = await rolled_back(server, watch, settings.interval, problems)
            reloads.append(rollback)
    await load.pause(settings.warmup)
    load.stop()
    done, late = await asyncio.wait(tasks, timeout=FINISH_TIMEOUT)
    for task in late:
        task.cancel()
    for task in done:
        task.result()  # an error of the load test itself must not pass for a good run
    if tls is not None and tls.shown_old:
        problems.append(f"{tls.shown_old} handshakes showed a certificate that had been replaced before they began")
    return reloads


def kinds_of(settings: Settings) -> Sequence[str]:
    """The names of the kinds of load."""
    if settings.kinds or settings.http2:
        return settings.kinds or HTTP2
    unable = HTTP_1_0 if settings.server in NO_HTTP_1_0 else ""
    return [kind.name for kind in KINDS if not kind.named and kind.name != unable]


async def renew_certificate(server: Server, number: int, tls: ClientTls, problems: list[str]) -> None:
    """Replace the certificate of a server under load."""
    assert server.certificate is not None
    tls.trust(renew(server.certificate, number))
    status, said = await asyncio.to_thread(server.control, "tls-reload")
    if status:
        problems.append(f"the certificate was not taken up: {said}")
    else:
        tls.renewed()


async def completed(server: Server, watch: Watch, reload: Reload, interval: float) -> bool:
    """Wait until the reload is complete and the interval is over; False if it was not seen to complete."""
    while time.monotonic() - reload.sent < RELOAD_TIMEOUT and server.alive:
        await asyncio.sleep(0.02)
        if watch.complete:
            reload.complete = time.monotonic()
            await asyncio.sleep(max(0.0, reload.sent + interval - time.monotonic()))
            return True
    return False


async def rolled_back(server: Server, watch: Watch, interval: float, problems: list[str]) -> Reload:
    """Take the last reload back, and wait until the workers before it answer."""
    watch.begin_rollback()
    rollback = Reload(time.monotonic())
    try:
        await asyncio.to_thread(control_client.ask, server.control_socket, "rollback")
        rollback.answered = time.monotonic()
    except ServeError as error:
        problems.append(str(error))
    if not await completed(server, watch, rollback, interval):
        problems.append("a roll-back was not seen to complete")
    return rollback


def on_uvloop(work: Coroutine[Any, Any, T]) -> T:
    """The client runs on uvloop, whatever the server runs on. TERM ends it as Ctrl-C does: the server is ended too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(until_term(work))


async def until_term(work: Coroutine[Any, Any, T]) -> T:
    """Raises KeyboardInterrupt at TERM, out of here: one raised wherever the client is at the moment is taken by uvloop
    for an error of the connection that is being read, and lost."""
    loop, task, received = asyncio.get_running_loop(), asyncio.current_task(), []

    def end() -> None:
        received.append(signal.SIGTERM)
        if task is not None:
            task.cancel()

    loop.add_signal_handler(signal.SIGTERM, end)
    try:
        return await work
    except asyncio.CancelledError:
        if received:
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@click.command(context_settings={"show_default": True})
@click.option("--server", type=click.Choice(list(COMMANDS)), default="serve", help="The server under test.")
@click.option("--workers", type=click.IntRange(1), default=2, help="Its worker processes.")
@click.option("--reloads", type=click.IntRange(0), default=10, help="How many HUPs.")
@click.option("--rollbacks", type=click.IntRange(0), default=0, help="Further reloads, each of which is rolled back.")
@click.option("--interval", type=click.FloatRange(0), default=3.0, help="Least seconds between two HUPs.")
@click.option("--http", type=click.Choice(["httptools", "h11"]), default="httptools", help="The server's parser.")
@click.option("--loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", help="The server's event loop.")
@click.option("--scale", type=click.FloatRange(0.01), default=1.0, help="Factor for the request rates.")
@click.option("--python", default=sys.executable, help="The interpreter that runs the server.", show_default=False)
@click.option("--warmup", type=click.FloatRange(0), default=2.0, help="Seconds of load before and after the reloads.")
@click.option("--listener", is_flag=True, help="Replace the listener's own program, too, before each reload.")
@click.option(
    "--tls",
    type=click.Choice(list(VERSIONS)),
    is_flag=False,
    flag_value="1.3",
    help="Speak TLS of this version (1.3 if none is named).",
)
@click.option("--http2", is_flag=True, help="Speak HTTP/2: with prior knowledge, or with --tls by ALPN.")
@click.option("--renew", is_flag=True, help="Replace the certificate before each reload, without one, as certbot does.")
@click.option("--kinds", type=click.Choice([kind.name for kind in KINDS]), multiple=True, help="Only these loads.")
@click.option("--surviving", is_flag=True, help="Only WebSockets and streams that survive, and requests beside them.")
@click.option("--behind", type=click.Choice(list(PROXIES)), help="A proxy in front of the server.")
@click.option("--unix", is_flag=True, help="Connect to a unix socket.")
@click.option("--deflate/--no-deflate", default=None, help="Compress the surviving WebSockets: all, none; or half.")
@click.option("--survive-window", type=click.FloatRange(0), help="Of the server, in seconds.")
@click.option("--h2-hold", type=click.FloatRange(0), help="Of the server, in seconds.")
@click.option("--seed", type=int, default=1, help="For the load's random choices.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Write a timeline as PNG (needs matplotlib).")
@click.option("--json", "document", type=click.Path(path_type=Path), help="Write everything that was found as JSON.")
def main(picture: Path | None, document: Path | None, surviving: bool, **options: Any) -> None:
    """Reload a server under strict mixed load and print what was lost. Exits 1 if anything was."""
    if options["renew"] and (options["tls"] is None or options["server"] != "serve"):
        raise click.UsageError("--renew needs --tls, and this project's server.")
    if (options["behind"] or options["unix"]) and (options["tls"] is not None or options["server"] != "serve"):
        raise click.UsageError("--behind and --unix are for this project's server, without --tls.")
    if surviving:
        options["kinds"] = HTTP2_SURVIVING if options["http2"] else SURVIVING
    try:
        result = run(Settings(**options))
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(result))
    if document is not None:
        document.write_text(as_json(result))
    if picture is not None:
        from loadtest.plot import plot

        plot(result, picture)
    sys.exit(0 if result.spotless else 1)


if __name__ == "__main__":
    main()
