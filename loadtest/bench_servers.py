"""The servers of the bench: how each is started, and that it answers rightly before it is measured.

Each is pinned, as a rule with one worker to one core; what it needs beside its command line of the load test is here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h2.exceptions

from loadtest import bench_http2
from loadtest.bench_cases import Case
from loadtest.bench_report import AGAINST, CALLING, FLOOR, LOGGED, SERVE
from loadtest.processes import MARK
from loadtest.servers import APP, COMMANDS, PROJECT, Server, Start, free_port, search_path
from loadtest.tls import make_certificate

START_TIMEOUT = 30.0
EXTRA = {"gunicorn": ["--http-parser", "fast"], "granian": ["--backpressure", "16384"]}
"""What a server needs beside its command line of the load test: gunicorn's parser in C; more than granian's 1,024
connections, which all of its workers share."""
HTTP2 = {
    "uvicorn": ["--http", "zttp", "--http2"],
    "gunicorn": ["--http-protocols", "h2,h1", "--http2-cleartext", "prior-knowledge"],
}
"""What makes a server speak HTTP/2, where it does not do so by itself."""
HTTP2_LIFETIME = {"uvicorn": 4000}
"""Requests after which a server lets a connection of HTTP/2 have its end: zttp 0.0.35 resets those beyond 4,096."""
ACCESS_LOG = {
    "granian": ["--access-log"],
    "gunicorn": ["--access-logfile", "-"],
    "hypercorn": ["--access-logfile", "-"],
}
"""What turns the access log on, besides leaving `--no-access-log` out; this server has a format to choose."""
COMMON = "common"
"""The format of the access log that the others write."""


def socketify(start: Start) -> list[str]:
    """Its HTTP side is uWebSockets, in C++; it has no reload and no access log, so it is met in the bench alone.

    Without TLS, since its command line (0.0.31) refuses its own options for that.
    """
    return f"-m socketify {APP} --host 127.0.0.1 --port {start.port} --workers 1 --asgi".split()


BENCHED: dict[str, Callable[[Start], list[str]]] = {**COMMANDS, "socketify": socketify}
"""The servers of the bench."""
LOGGERS = [name for name in BENCHED if name != "socketify"]
"""Those that can write an access log."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run."""

    cases: list[Case]
    servers: list[str]
    """Names of BENCHED, "floor", "floor+app", "against"; with "+log" behind them: with an access log."""
    rounds: int = 5
    seconds: int = 2
    """Of each round."""
    python: str = sys.executable
    http: str = "httptools"
    loop: str = "uvloop"
    workers: int = 1
    """Of each server; socketify has one."""
    together: bool = False
    """All servers of a case have their rounds at the same time, instead of one after another."""
    server_core: int | str = 0
    """One, or several as taskset(1) has them: "0,1"."""
    load_core: int | str = 1
    against: Path | None = None
    """Another checkout of this server, measured beside this one as "against"."""
    access_log_format: str = COMMON
    """Of this server's access log; the others write the common format, or one like it."""
    bytecode: Path | None = None
    """Where Python keeps what it has compiled, so that a second start finds it, whatever the environment says."""


class BenchServer(Server):
    """A server, pinned, that runs an application of the bench."""

    def __init__(self, name: str, directory: Path, case: Case, settings: Settings) -> None:
        """Start it; `directory` must exist and be empty."""
        self.name = name
        self.directory = directory
        self.python = settings.python
        self.port = free_port()
        self.mark = secrets.token_hex(8)
        self.output = directory / "output.log"
        self.executions = directory / "executions.log"
        shutil.copyfile(PROJECT / "loadtest" / f"{module(case)}.py", directory / "loadtest_app.py")
        self.tree = settings.against if name.startswith(AGAINST) and settings.against else PROJECT
        self.certificate = make_certificate(directory) if case.tls else None
        start = Start(
            port=self.port,
            workers=settings.workers,
            http=settings.http,
            loop=settings.loop,
            directory=directory,
            certificate=self.certificate,
        )
        self._log_format = settings.access_log_format
        self._bytecode = settings.bytecode
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*pinned(settings.server_core), self.python, *self.command(start, case)],
                cwd=self.tree if self.is_own else directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def http2_lifetime(self) -> int:
        """Requests that it answers on a connection of HTTP/2; 0 is without end."""
        return HTTP2_LIFETIME.get(self.name.removesuffix(LOGGED), 0)

    @property
    def is_own(self) -> bool:
        """Whether it is code of this project."""
        return self.name.removesuffix(LOGGED) in (SERVE, AGAINST, FLOOR, CALLING)

    def command(self, start: Start, case: Case) -> list[str]:
        """What follows the interpreter."""
        if self.name in (FLOOR, CALLING):
            app = f"loadtest.{module(case)}" if self.name == CALLING else ""
            pair = [] if start.certificate is None else [str(start.certificate.path), str(start.certificate.key)]
            return ["-m", "loadtest.bench_floor", str(start.port), case.name, app, *pair]
        name = self.name.removesuffix(LOGGED).replace(AGAINST, SERVE)
        words = BENCHED[name](start) + EXTRA.get(name, []) + (HTTP2.get(name, []) if case.http2 else [])
        if self.name.endswith(LOGGED):
            words = [word for word in words if word != "--no-access-log"] + ACCESS_LOG.get(name, [])
            words += ["--access-log-format", self._log_format] if name == SERVE else []
        return words

    def search_path(self) -> str:
        """Where a server of this project is found."""
        return search_path(self.tree if self.name.startswith(AGAINST) else None)

    def core(self) -> str:
        """What a server of this project runs on: a line of `serve --version`."""
        said = subprocess.check_output(
            [self.python, "-m", "serve_asgi", "--version"], cwd=self.tree, env=self.environment(), text=True, timeout=60
        )
        return " ".join(said.split())

    def environment(self) -> dict[str, str]:
        """What the server's processes inherit."""
        made = os.environ | {MARK: self.mark, "PYTHONPATH": self.search_path() if self.is_own else str(self.directory)}
        if self._bytecode is not None:
            made.pop("PYTHONDONTWRITEBYTECODE", None)
            made["PYTHONPYCACHEPREFIX"] = str(self._bytecode)
        return made

    def wait_until_right(self, case: Case) -> None:
        """Wait until it gives the right answer to the case's request. Raises RuntimeError if it does not in time."""
        deadline = time.monotonic() + START_TIMEOUT
        said = "nothing"
        while time.monotonic() < deadline and self.alive:
            with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException, h2.exceptions.H2Error):
                if case.websocket:
                    http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0).connect()
                    return  # the client looks at the answers itself
                said = self.ask(case)
                if said == "":
                    return
            time.sleep(0.05)
        raise RuntimeError(
            f"{self.name} does not answer the case {case.name} as it should ({said}). It said:\n{self.last_words()}"
        )

    def ask(self, case: Case) -> str:
        """What is wrong with its response; nothing if it is right."""
        trusted = self.trusting()
        if case.http2:
            status, body = bench_http2.fetch(case, self.port, trusted)
            return verdict(case, status, body)
        connection = (
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
            if trusted is None
            else http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5.0, context=trusted)
        )
        try:
            connection.request("POST" if case.body else "GET", case.path, b"x" * case.body or None)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        return verdict(case, response.status, body)


def verdict(case: Case, status: int, body: bytes) -> str:
    """What is wrong with a response; nothing if it is right."""
    if status == 200 and body == case.answer:
        return ""
    return f"status {status}, {len(body)} bytes where {len(case.answer)} were expected"


def speaks(name: str, case: Case) -> bool:
    """Whether a server can be in a case at all."""
    if name == CALLING:
        return case.framework
    return not (name == "socketify" and (case.tls or case.http2))


def module(case: Case) -> str:
    """Where the case's application is, in this directory."""
    return "bench_app" if case.app == "plain" else f"bench_app_{case.app}"


def pinned(core: int | str) -> list[str]:
    """The prefix of a command that makes it stay on one core, or on some."""
    return ["taskset", "--cpu-list", str(core)]
