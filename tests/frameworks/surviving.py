"""Connections that an application keeps over deploys, followed by their clients.

Each application answers with numbers that it keeps in the connection's state: a stream sends events `number pid`, a
WebSocket answers each message with `number pid message`. A client that is given each number once and in order, by one
process after another, on one connection, has lost nothing and has not noticed the deploys.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

import httpx
import websockets.sync.client

from tests.browser import page
from tests.frameworks.driving import APPLICATIONS, client, reload, url
from tests.running import PATIENCE, RunningServer, until

RELOADS = 3
QUICK = ("--workers", "1", "--survive-window", "0", "--survive-timeout", "3")
BURST = 3
"""Messages that a WebSocket's client sends before it reads their answers."""

LISTENING = """
    let opened = 0, errors = 0, events = [], told = () => {};
    const source = new EventSource("/events");
    source.onopen = () => opened++;
    source.onerror = () => { errors++; told(); };
    source.onmessage = event => { events.push(event.data.split(" ").map(Number)); told(); };
    const next = async () => {
        if (!events.length && !errors) await new Promise(done => told = done);
        return [events.splice(0), opened, errors];
    };
"""
"""In a page: `next()` is what has come since, and how often the EventSource was opened and has failed in all."""

Answer = tuple[int, int]
"""The number of a message, and the PID of the process that sent it."""
Follow = Callable[[RunningServer], Generator[Answer]]
"""What a client is told, until it is closed."""


def numbers_of(response: httpx.Response) -> Generator[Answer]:
    """The events of a stream, whatever else it says between them."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            number, pid = line.removeprefix("data: ").strip('"').split()
            yield int(number), int(pid)


def stream(path: str, **request: Any) -> Follow:
    """A client of the stream at `path`."""

    def follow(server: RunningServer) -> Generator[Answer]:
        request.setdefault("method", "GET")
        with client(server) as asking, asking.stream(url=path, **request) as response:
            assert response.status_code == 200, response.read()
            yield from numbers_of(response)

    return follow


def websocket(path: str, burst: int = BURST) -> Follow:
    """A client of the WebSocket at `path`."""

    def follow(server: RunningServer) -> Generator[Answer]:
        with websockets.sync.client.connect(url(server, path, "ws"), proxy=None) as socket:
            sent = 0
            while True:
                for ahead in range(burst):
                    socket.send(f"message {sent + ahead + 1}")
                for _ in range(burst):
                    sent += 1
                    number, pid, text = str(socket.recv(PATIENCE)).split(" ", 2)
                    assert text == f"message {sent}", f"{text} answers message {sent}"
                    yield int(number), int(pid)

    return follow


def event_source(server: RunningServer) -> Generator[Answer]:
    """The EventSource of a page in Chromium, of the stream at /events: it opens once and never sees an error."""
    with page(server.directory / "profile") as browser:
        browser.open(url(server, "/"))
        browser.wait_for("document.title == 'a page'")
        browser.evaluate(LISTENING)
        while True:
            events, opened, errors = browser.evaluate("next()")
            assert (opened, errors) == (1, 0), f"opened {opened} times, with {errors} errors"
            yield from ((number, pid) for number, pid in events)


def socketio(server: RunningServer) -> Generator[Answer]:
    """A client of Socket.IO."""
    command = [sys.executable, str(APPLICATIONS / "surviving_socketio_client.py"), url(server)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in process.stdout:
                number, pid, text = line.split(" ", 2)
                assert text == f"message {number}\n", line
                yield int(number), int(pid)
        finally:
            process.stdin.close()


class Follower:
    """One client in a thread."""

    def __init__(self, server: RunningServer, follow: Follow) -> None:
        self.answers: list[Answer] = []
        self.failure: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(follow(server),))
        self._thread.start()

    def _run(self, answers: Generator[Answer]) -> None:
        try:
            with contextlib.closing(answers):
                for answer in answers:
                    self.answers.append(answer)
                    if self._over.is_set():
                        return
            raise AssertionError(f"it ended after {self.answers[-3:]}")
        except BaseException as failure:
            self.failure = failure

    def has_reached(self, pid: int) -> bool:
        """Whether this process has sent some messages; raises what the client has failed with."""
        if self.failure is not None:
            raise self.failure
        return len(self.answers) > 2 and all(answer[1] == pid for answer in self.answers[-3:])

    def end(self) -> None:
        self._over.set()
        self._thread.join(PATIENCE)


def over_reloads(server: RunningServer, *follows: Follow) -> None:
    """Reload three times while clients follow, and see that each was given each number once, in order, by each life."""
    survived, lost = counts(server)
    followers = [Follower(server, follow) for follow in follows]
    pids: list[int] = []
    try:
        for past in range(RELOADS + 1):
            if past:
                reload(server)
            pids += server.worker_pids()
            until(functools.partial(all_reach, followers, pids[-1]), server.log)
    finally:
        for follower in followers:
            follower.end()
    for follower in followers:
        numbers = [number for number, _ in follower.answers]
        assert numbers == list(range(1, len(numbers) + 1)), gaps(follower.answers)
        assert list(dict.fromkeys(pid for _, pid in follower.answers)) == pids
    assert counts(server) == (survived + RELOADS * len(follows), lost)


def all_reach(followers: list[Follower], pid: int) -> bool:
    return all(follower.has_reached(pid) for follower in followers)


def gaps(answers: list[Answer]) -> str:
    """Where numbers do not follow each other."""
    pairs = itertools.pairwise(answers)
    return ", ".join(f"{before} then {after}" for before, after in pairs if after[0] != before[0] + 1)


def counts(server: RunningServer) -> tuple[int, int]:
    """Next lives begun, and connections that were to have one."""
    totals = server.status()["totals"]
    return totals["survived"], totals["not_survived"]
