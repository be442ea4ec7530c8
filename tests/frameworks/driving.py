"""A real application on a real server, used by real clients while it is reloaded.

Whatever the framework, the questions are the same: was every request answered, and answered right; did a kept
connection stay open; did a stream that was begun before the reload come to its own end. An application here answers
with the PID of its process (JSON, `{"pid": …}`), which tells the old worker from the new one, and a stream of it goes
on until a file called `enough` lies in the working directory, which the test decides.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed

from tests.running import PATIENCE, RunningServer, running

APPLICATIONS = Path(__file__).resolve().parent / "applications"
PAUSE = 0.005
"""Seconds between two requests of a client: the machine has other things to do as well."""

Ask = Callable[[httpx.Client], int]
"""Some requests, checked; returns the PID of the worker that has answered."""


@contextlib.contextmanager
def serving(app: str, directory: Path, *arguments: str, **more: Any) -> Iterator[RunningServer]:
    """The application `module:attribute` of tests/frameworks/applications, with `directory` to work in."""
    with running(
        app,
        *("--app-dir", str(APPLICATIONS), "--no-access-log", "--ws-retire", "early", "--ws-retire-window", "0.1"),
        *arguments,
        directory=directory,
        **more,
    ) as server:
        yield server


def url(server: RunningServer, path: str = "", scheme: str = "http") -> str:
    host, port = server.address()
    return f"{scheme}://{host}:{port}{path}"


def client(server: RunningServer, **more: Any) -> httpx.Client:
    """A client that keeps one connection."""
    return httpx.Client(base_url=url(server), timeout=PATIENCE, trust_env=False, **more)


def reload(server: RunningServer, during: Callable[[], None] = lambda: None) -> None:
    """HUP, and wait until the next generation serves; `during` is called then; then until the older ones are gone."""
    generation = server.status()["generation"]
    server.signal(signal.SIGHUP)
    server.wait_until(lambda status: status["generation"] > generation)
    during()
    server.wait_until(lambda status: len(status["generations"]) == 1)


class Traffic:
    """Clients that ask, each on one connection, again and again, from `with` to its end, where failures are raised."""

    def __init__(self, server: RunningServer, *asks: Ask) -> None:
        self._server = server
        self._over = threading.Event()
        self._told = threading.Condition()
        self._failures: list[BaseException] = []
        self.pids: list[int] = []
        """Who has answered, in order."""
        self.connects = 0
        self._threads = [threading.Thread(target=self._run, args=(ask,)) for ask in asks]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        if self._failures and error[0] in (None, AssertionError):
            raise self._failures[0]

    def _run(self, ask: Ask) -> None:
        try:
            with client(self._server, event_hooks={"request": [self._trace]}) as asking:
                while not self._over.is_set():
                    pid = ask(asking)
                    with self._told:
                        self.pids.append(pid)
                        self._told.notify_all()
                    self._over.wait(PAUSE)
        except BaseException as error:
            with self._told:
                self._failures.append(error)
                self._told.notify_all()

    def _trace(self, request: httpx.Request) -> None:
        def note(event: str, _: object) -> None:
            if event == "connection.connect_tcp.complete":
                with self._told:
                    self.connects += 1

        request.extensions["trace"] = note

    def answers(self, more: int) -> None:
        """Wait for so many answers more."""
        with self._told:
            enough = len(self.pids) + more
            assert self._told.wait_for(lambda: len(self.pids) >= enough or bool(self._failures), PATIENCE)
            assert not self._failures, "a client has failed"


def reload_under_use(server: RunningServer, *asks: Ask) -> None:
    """Reload while clients ask: every answer is right, both generations have answered, no connection was lost."""
    before = set(server.worker_pids())
    with Traffic(server, *asks) as traffic:
        traffic.answers(3 * len(asks))
        reload(server, lambda: traffic.answers(len(asks)))
        traffic.answers(3 * len(asks))
    assert traffic.pids[0] in before
    assert traffic.pids[-1] not in before
    assert traffic.connects == len(asks)


def stream_over_reload(server: RunningServer, path: str = "/stream") -> str:
    """A stream that begins on the old worker and ends, by itself, when the new one has long been serving.

    Returns what was streamed; the last line is the application's own.
    """
    with client(server) as asking, asking.stream("GET", path) as response:
        assert response.status_code == 200
        pieces = response.iter_text()
        received = next(pieces)

        def go_on() -> None:
            nonlocal received
            received += next(pieces)
            with client(server) as other:
                other.get("/")
            (server.directory / "enough").touch()
            received += "".join(pieces)

        reload(server, go_on)
    (server.directory / "enough").unlink()
    return received


def websocket_over_reload(server: RunningServer, path: str = "/echo", binary: bool = True) -> None:
    """A WebSocket that echoes: the old worker closes it with 1012, after every answer; one comes back and is echoed."""
    address = url(server, path, "ws")
    with websockets.sync.client.connect(address, proxy=None) as socket:
        socket.send("hello")
        assert socket.recv(PATIENCE) == "hello"
        if binary:
            socket.send(b"\0" * 100_000)
            assert socket.recv(PATIENCE) == b"\0" * 100_000
        reloading = threading.Thread(target=reload, args=(server,))
        reloading.start()
        sent = answered = 0

        def talk_on() -> None:
            nonlocal sent, answered
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                socket.send(f"message {sent}")
                sent += 1
                assert socket.recv(PATIENCE) == f"message {answered}"
                answered += 1
                time.sleep(PAUSE)

        with pytest.raises(ConnectionClosed) as closed:
            talk_on()
        assert closed.value.rcvd is not None, "the connection was cut"
        assert closed.value.rcvd.code == 1012
        reloading.join(PATIENCE)
    assert sent - answered <= 1  # the one that met the close frame on its way
    with websockets.sync.client.connect(address, proxy=None) as socket:
        socket.send("again")
        assert socket.recv(PATIENCE) == "again"


def wait_for_note(server: RunningServer, line: str) -> None:
    """Wait until the application has added this line to its file `notes`."""
    deadline = time.monotonic() + PATIENCE
    notes = server.directory / "notes"
    while not notes.exists() or line not in notes.read_text().splitlines():
        assert time.monotonic() < deadline, f"no note {line!r}\n{server.log()}"
        time.sleep(0.01)
