"""How each server is started, told to reload, and stopped.

Each gets the same settings as far as it has them: the same workers, no access log, 75 s of keep-alive (so that what
closes a connection is the reload, and not the idle timeout) and 30 s to finish its requests. The application's
directory belongs to the run, so that a run can put bad code there.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import loadtest.app
from loadtest.processes import MARK, Process, of_run
from loadtest.tls import Certificate, make_certificate, trusting

KEEP_ALIVE = 75
GRACEFUL = 30
STOP_TIMEOUT = GRACEFUL + 20.0
APP = "loadtest_app:app"
PROJECT = Path(__file__).resolve().parent.parent


def sources(tree: Path) -> str:
    """The search path (PYTHONPATH) on which this server and its load tests are found in a checkout."""
    return f"{tree / 'server'}:{tree}"


def search_path(tree: Path | None) -> str:
    """The same for what is measured: in another checkout, or a directory with packages; before this one what PYTHONPATH
    names, a tree of compiled modules as a rule."""
    if tree is not None:
        first = [str(tree / "server") if (tree / "server" / "serve_asgi").is_dir() else str(tree)]
    else:
        first = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join([*first, sources(PROJECT)])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What the command line of a server is made from."""

    port: int
    workers: int
    http: str  # httptools | h11, where the server has a choice
    loop: str  # uvloop | asyncio
    directory: Path
    certificate: Certificate | None = None
    """Speak TLS with it."""
    http2: bool = False
    """Speak HTTP/2 as well, where that has to be asked for."""
    keep_previous: int = 0
    """Seconds for which the generation before stands by; this project's server only."""

    def tls(self, certificate: str, key: str) -> str:
        """The server's two options for TLS with their values; nothing without TLS."""
        if self.certificate is None:
            return ""
        return f" {certificate} {self.certificate.path} {key} {self.certificate.key}"

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"


def serve(start: Start) -> list[str]:
    """This project's server; with nothing that an earlier version of it would not know, unless it is asked for."""
    keep = f" --keep-previous {start.keep_previous}" if start.keep_previous else ""
    return (
        f"-m serve_asgi {APP} --bind {start.address} --workers {start.workers} --http {start.http} --loop {start.loop}"
        f" --app-dir {start.directory} --no-access-log --keep-alive {KEEP_ALIVE} --graceful-timeout {GRACEFUL}"
        f" --control {start.directory / 'control'}" + keep + start.tls("--tls-cert", "--tls-key")
    ).split()


def uvicorn(start: Start) -> list[str]:
    """With one worker uvicorn has no process that could reload it: HUP ends it. One of its parsers speaks HTTP/2."""
    parser = "zttp --http2" if start.http2 else start.http
    return (
        f"-m uvicorn {APP} --host 127.0.0.1 --port {start.port} --workers {start.workers} --http {parser}"
        f" --loop {start.loop} --app-dir {start.directory} --no-access-log --timeout-keep-alive {KEEP_ALIVE}"
        f" --timeout-graceful-shutdown {GRACEFUL}" + start.tls("--ssl-certfile", "--ssl-keyfile")
    ).split()


def gunicorn(start: Start) -> list[str]:
    """The native ASGI worker; its parser is its own."""
    http2 = " --http-protocols h2,h1 --http2-cleartext both" if start.http2 else ""
    return (
        f"-m gunicorn {APP} -k asgi -b {start.address} -w {start.workers} --asgi-loop {start.loop}"
        f" --chdir {start.directory} --keep-alive {KEEP_ALIVE} --graceful-timeout {GRACEFUL} --no-control-socket"
        + http2
        + start.tls("--certfile", "--keyfile")
    ).split()


def granian(start: Start) -> list[str]:
    """Its HTTP side is hyper, in Rust."""
    return (
        f"-m granian {APP} --interface asgi --host 127.0.0.1 --port {start.port} --workers {start.workers}"
        f" --loop {start.loop} --working-dir {start.directory} --no-access-log --workers-kill-timeout {GRACEFUL}"
        f" --ssl-protocol-min tls1.2" + start.tls("--ssl-certificate", "--ssl-keyfile")
    ).split()


def hypercorn(start: Start) -> list[str]:
    """Its HTTP side is h11."""
    worker = "uvloop" if start.loop == "uvloop" else "asyncio"
    return (
        f"-m hypercorn {APP} -b {start.address} -w {start.workers} -k {worker} --keep-alive {KEEP_ALIVE}"
        f" --graceful-timeout {GRACEFUL}" + start.tls("--certfile", "--keyfile")
    ).split()


def h2corn(start: Start) -> list[str]:
    """All its I/O is in Rust. Its limit for the time of a head is below the load's: 10 s, as it comes."""
    return (
        f"-m h2corn {APP} --bind {start.address} --workers {start.workers} --loop {start.loop}"
        f" --app-dir {start.directory} --no-access-log --timeout-keep-alive {KEEP_ALIVE}"
        f" --timeout-graceful-shutdown {GRACEFUL}" + start.tls("--certfile", "--keyfile")
    ).split()


COMMANDS: dict[str, Callable[[Start], list[str]]] = {
    "serve": serve,
    "uvicorn": uvicorn,
    "gunicorn": gunicorn,
    "granian": granian,
    "hypercorn": hypercorn,
    "h2corn": h2corn,
}


OWN_PARSERS = {"gunicorn": "its own parser", "granian": "hyper", "hypercorn": "h11", "h2corn": "its own parser"}
"""What parses HTTP where there is no choice."""
NO_HTTP_1_0 = ("h2corn",)
"""Servers that answer a request of HTTP/1.0 with 400."""


def parser(server: str, chosen: str) -> str:
    """The name of the parser that a server runs with."""
    return OWN_PARSERS.get(server, chosen)


class Server:
    """One started server. `output` is where its stdout and stderr go."""

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        workers: int,
        http: str,
        loop: str,
        python: str = sys.executable,
        tls: bool = False,
        http2: bool = False,
        keep_previous: int = 0,
        options: Sequence[str] = (),
    ) -> None:
        """Start it, with further `options`; `directory` must exist and be empty."""
        self.name = name
        self.directory = directory
        self.python = python
        self.port = free_port()
        self.mark = secrets.token_hex(8)
        self.output = directory / "output.log"
        self.executions = directory / "executions.log"
        self.executions.touch()
        shutil.copyfile(loadtest.app.__file__, directory / "loadtest_app.py")
        self.certificate = make_certificate(directory) if tls else None
        start = Start(
            port=self.port,
            workers=workers,
            http=http,
            loop=loop,
            directory=directory,
            certificate=self.certificate,
            http2=http2,
            keep_previous=keep_previous,
        )
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [python, *COMMANDS[name](start), *options],
                cwd=PROJECT if name == "serve" else directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        """What the server's processes inherit."""
        return os.environ | {
            loadtest.app.EXECUTIONS: str(self.executions),
            MARK: self.mark,
            "PYTHONPATH": search_path(None) if self.name == "serve" else str(self.directory),
        }

    def trusting(self) -> ssl.SSLContext | None:
        """What a client connects with; None if the server speaks plain HTTP."""
        return None if self.certificate is None else trusting(self.certificate)

    @property
    def pid(self) -> int:
        """The listener's."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the listener runs."""
        return self.process.poll() is None

    def hup(self) -> None:
        """Ask for a reload."""
        if self.alive:
            self.process.send_signal(signal.SIGHUP)

    @property
    def control_socket(self) -> Path:
        """Of this project's server."""
        return self.directory / "control"

    def control(self, *command: str) -> tuple[int, str]:
        """Run a control command of this project's server; its exit status and what it printed."""
        done = subprocess.run(
            [self.python, "-m", "serve_asgi", *command, "--control", str(self.control_socket)],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60.0,
        )
        return done.returncode, done.stdout.decode(errors="replace")

    def break_code(self) -> None:
        """Put code on disk that cannot be imported."""
        (self.directory / "loadtest_app.py").write_text('raise ImportError("bad code on disk")\n')

    def processes(self) -> list[Process]:
        """All its processes."""
        return of_run(self.mark, self.pid)

    def workers(self) -> list[Process]:
        """Its living processes other than the listener (with helpers such as multiprocessing's resource tracker)."""
        return [process for process in self.processes() if process.pid != self.pid and process.state != "Z"]

    def last_words(self, lines: int = 15) -> str:
        """The end of what it has said."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> int | None:
        """TERM, and wait; None if it had to be killed."""
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def sweep(self, patience: float = 2.0) -> list[Process]:
        """Kill what is left of it, by pid, and say what that was; to be called after `stop`.

        Workers that leave by themselves get `patience` seconds, since some servers do not wait for them.
        """
        deadline = time.monotonic() + patience
        while (left := self.workers()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in left:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return left


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses at the moment, below the range from which clients get theirs."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = 10_000 + secrets.randbelow(max(1_000, lowest - 10_000))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
