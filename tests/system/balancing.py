"""What the tests behind balancers share: nodes that keep their port over restarts, the strict load, and its verdict.

The load is that of `loadtest` (nothing is sent twice, nothing is forgiven), in a thread of its own, plus clients of
server-sent events. Rule: a test waits for counts (so many more answers, this node answered), never for times.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

import loadtest.app
from loadtest.client import Client, Load, Request
from loadtest.kinds import KINDS
from loadtest.ledger import Accounts, Ledger, Left, parse_executions, settle
from loadtest.servers import free_port
from tests.running import PATIENCE, ROOT, RunningServer

DEPLOY = ROOT / "deploy"
STRETCH = 0.4
"""What takes up to 5 s in the long load test takes up to 2 s here."""
NOTE_TIME = 10.0
"""Seconds in which a node has written down the end of what it has answered."""
EVERY_KIND = tuple(kind.name for kind in KINDS if not kind.named)
NODE_APP = """
import asyncio

import loadtest_app
from serve_asgi import retiring


async def app(scope, receive, send):
    if scope["type"] != "http" or scope["path"] != "/events":
        await loadtest_app.app(scope, receive, send)
        return
    number = int(dict(scope["headers"]).get(b"last-event-id", b"0"))
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    retires = asyncio.ensure_future(retiring.wait())
    while not retiring():
        number += 1
        await send({"type": "http.response.body", "body": b"id: %d\\n\\n" % number, "more_body": True})
        await asyncio.wait([retires], timeout=0.05)
    await send({"type": "http.response.body", "body": b"event: again\\n\\n"})
"""
"""The load test's application, and a stream of events that ends when its worker retires and goes on where the client
says."""


class Node:
    """One node: this server on a port that it keeps over restarts. All nodes of a test count into one file."""

    def __init__(self, name: str, directory: Path, *arguments: str, host: str = "127.0.0.1") -> None:
        self.name = name
        self.host = host
        self.port = free_port()
        self.executions = directory / "executions"
        self._directory = directory
        self._arguments = arguments
        self._server: RunningServer | None = None
        self.logs = ""
        (directory / "node_app.py").write_text(NODE_APP)
        shutil.copyfile(loadtest.app.__file__, directory / "loadtest_app.py")
        self.executions.touch()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    @property
    def server(self) -> RunningServer:
        """The one that runs."""
        assert self._server is not None, f"node {self.name} does not run"
        return self._server

    def begin(self) -> None:
        """Start it."""
        assert self._server is None
        self._server = RunningServer(
            "node_app:app",
            *("--workers", "2", "--no-access-log", *self._arguments),
            directory=self._directory,
            environment={loadtest.app.EXECUTIONS: str(self.executions)},
            bind=self.address,
        )

    def start(self) -> None:
        """Start it; returns when it serves."""
        self.begin()
        self.server.ready()

    def reload(self) -> None:
        """`serve reload`: returns when the new generation serves."""
        before = self.server.status()["generation"]
        self.server.reload()
        assert self.server.status()["generation"] == before + 1

    @property
    def handed_over(self) -> int:
        """Connections that its workers have handed over."""
        return int(self.server.status()["totals"]["handed_over"])

    def stop(self, delay: float = 0.0) -> None:
        """`serve stop`; it must find that nothing was cut."""
        command = [sys.executable, "-m", "serve_asgi", "stop", "--control", str(self.server.control)]
        said = subprocess.run(
            [*command, "--delay", f"{delay}"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * PATIENCE,
        )
        self.logs += said.stdout
        assert (said.returncode, self.server.wait()) == (0, 0), said.stdout
        self.close()

    def terminate(self, patience: float = PATIENCE) -> None:
        """TERM, and wait for the end (--drain-delay included), which must come in time and well."""
        self.server.signal(signal.SIGTERM)
        assert self.server.wait(patience) == 0
        self.close()

    def kill(self) -> None:
        """The machine is gone: KILL for the listener and all workers."""
        self.close()

    def close(self) -> None:
        """End what is left of it, by PID."""
        if self._server is not None:
            self.logs += f"--- node {self.name}\n{self._server.log()}"
            self._server.close()
            self._server = None


@contextlib.contextmanager
def serving(*nodes: Node) -> Iterator[None]:
    """The nodes serve, and are ended when the block ends; their logs are printed then."""
    try:
        for node in nodes:
            node.begin()
        for node in nodes:
            node.server.ready()
        yield
    finally:
        for node in nodes:
            node.close()
            print(node.logs)


@contextlib.contextmanager
def two_nodes(directory: Path, *arguments: str) -> Iterator[tuple[Node, Node]]:
    """Two nodes that serve until the block ends."""
    nodes = Node("a", directory, *arguments), Node("b", directory, *arguments)
    with serving(*nodes):
        yield nodes


class Leaving(Client):
    """A virtual user who leaves after each answer: for balancers that end their clients' idle connections."""

    async def exchanges(self, makes: Sequence[Callable[[int], Request]]) -> None:
        await super().exchanges(makes)
        self.leave()


class StrictLoad:
    """The load test's clients against one port, in a thread, from `__enter__` to `finish`."""

    def __init__(
        self,
        port: int,
        executions: Path,
        *,
        kinds: Sequence[str] = EVERY_KIND,
        share: float = 0.4,
        leaving: bool = False,
        events: int = 3,
        seed: int = 1,
    ) -> None:
        """`share` of the load test's users and rates; `events` clients of event streams; `leaving`: see Leaving."""
        self.ledger = Ledger()
        self.streams = Counter[str]()
        """What the clients of event streams have seen: "events", and "streams" that were opened."""
        self._port = port
        self._executions = executions
        self._kinds = kinds
        self._share = share
        self._leaving = leaving
        self._events = events
        self._seed = seed
        self._load: Load | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trouble: BaseException | None = None
        self._began = threading.Event()
        self._thread = threading.Thread(target=self._in_thread)

    def __enter__(self) -> StrictLoad:
        os.truncate(self._executions, 0)  # the ids begin with 1 again
        self._thread.start()
        assert self._began.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def answers(self, count: int) -> None:
        """Wait until so many more requests have been answered."""
        wanted = self._answered() + count
        self.until(lambda: self._answered() >= wanted, f"{count} more answers")

    def answered_by(self, pids: set[int], count: int = 20) -> None:
        """Wait until these processes have answered so many of the requests that are sent from now on."""
        since = len(self.ledger.entries)
        self.until(
            lambda: sum(entry.cause is None and entry.pid in pids for entry in self.ledger.entries[since:]) >= count,
            f"{count} answers by {pids}",
        )

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Look again and again until `condition` holds, while the load goes on."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self._thread.is_alive(), self._trouble
            assert time.monotonic() < deadline, f"still waiting for {what}; so far {self.verdict().text()}"
            time.sleep(0.02)

    def finish(self) -> Verdict:
        """Let the clients finish what they have sent, and settle the accounts.

        The application writes down the end of an execution after the answer has gone, so that the last one may follow.
        """
        self._stop()
        deadline = time.monotonic() + NOTE_TIME
        while (verdict := self.verdict()).accounts.unfinished and time.monotonic() < deadline:
            time.sleep(0.02)
        return verdict

    def verdict(self) -> Verdict:
        """The accounts so far."""
        executions = parse_executions(self._executions.read_bytes())
        return Verdict(settle(self.ledger.entries, executions), self.ledger, self.streams)

    def _answered(self) -> int:
        return sum(entry.cause is None for entry in list(self.ledger.entries))

    def _stop(self) -> None:
        if self._loop is not None and self._load is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._load.stop)
        self._thread.join(90.0)
        assert not self._thread.is_alive(), "the clients do not come to an end"
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble

    def _in_thread(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._run())
        except BaseException as error:
            self._trouble = error

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._load = load = Load("127.0.0.1", self._port, self.ledger, self._share, self._seed, STRETCH)
        async with asyncio.TaskGroup() as users:
            for kind in KINDS:
                if kind.name in self._kinds:
                    count = max(1, round(kind.users * self._share))
                    for _ in range(count):
                        client = (Leaving if self._leaving else Client)(load, kind.name, kind.keep)
                        users.create_task(self._user(kind.run, client, load.scale * kind.rate / count))
            for _ in range(self._events):
                users.create_task(self._event_source(load))
            self._began.set()

    async def _user(self, run: Callable[[Client, float], Awaitable[None]], client: Client, rate: float) -> None:
        await client.load.pause(client.random.uniform(0.0, 0.5))
        await run(client, rate)
        client.leave()

    async def _event_source(self, load: Load) -> None:
        """As a browser does: when the stream has ended well, ask for what follows the last event."""
        last = 0
        while load.running:
            reader, writer = await asyncio.open_connection(load.host, load.port)
            self.streams["streams"] += 1
            # HTTP/1.0: the answer comes without chunks. Its last line tells the end from a cut.
            writer.write(b"GET /events HTTP/1.0\r\nhost: loadtest\r\nlast-event-id: %d\r\n\r\n" % last)
            ended_well = False
            with contextlib.closing(writer):
                first = await reader.readline()
                if b" 200 " not in first:
                    self.ledger.oddities[f"a stream of events was answered {first!r}"] += 1
                while load.running and (line := await reader.readline()):
                    if line.startswith(b"id: "):
                        if int(line[4:]) != last + 1:
                            self.ledger.oddities[f"event {int(line[4:])} came after {last}"] += 1
                        last = int(line[4:])
                        self.streams["events"] += 1
                    ended_well = ended_well or line.startswith(b"event: again")
            if load.running and not ended_well:
                self.ledger.oddities["a stream of events was cut"] += 1
                await load.pause(0.1)


class Verdict:
    """What the clients and the applications say of one run."""

    def __init__(self, accounts: Accounts, ledger: Ledger, streams: Counter[str]) -> None:
        self.accounts = accounts
        self.ledger = ledger
        self.streams = streams

    @property
    def lost(self) -> int:
        """Requests and messages without their right and whole answer."""
        return len(self.accounts.lost)

    def left(self, how: Left) -> int:
        """Kept connections that were ended like this, without the client having asked for it."""
        return sum(reconnect.left is how for reconnect in self.ledger.reconnects)

    def faults(self, *, reconnects: Sequence[Left] = ()) -> list[str]:
        """Sentences about everything that must not be; `reconnects` are the kinds that the balancer may cause."""
        accounts = self.accounts
        found = [f"lost {e.number} ({e.kind}): {e.cause and e.cause.value} {e.detail}" for e in accounts.lost[:10]]
        if accounts.lost:
            found.insert(0, f"{len(accounts.lost)} of {accounts.sent} lost, {accounts.lost_executed} of them executed")
        kinds = ("duplicated", "phantom", "unexecuted", "unfinished", "mismatched")
        odd = {what: getattr(accounts, what) for what in kinds}
        found += [f"{len(ids)} {what}: {ids[:5]}" for what, ids in odd.items() if ids]
        found += [f"{count} times {what}" for what, count in self.ledger.oddities.items()]
        ends = Counter(r.left for r in self.ledger.reconnects if r.left not in reconnects)
        found += [f"{count} kept connections ended by {how.value}" for how, count in ends.items()]
        return found

    def text(self) -> str:
        """For a person."""
        ends = Counter(reconnect.left.value for reconnect in self.ledger.reconnects)
        text = f"{self.accounts.sent} sent, {self.lost} lost, {len(self.accounts.duplicated)} executed twice"
        return "\n".join(
            [f"{text}, reconnects {dict(ends)}, {dict(self.streams)}", *self.faults(reconnects=list(Left))]
        )


def pids_of(node: Node) -> set[int]:
    """The workers that serve on the node now."""
    return set(node.server.worker_pids())


@contextlib.contextmanager
def program(port: int, *command: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends; it listens on `port` when the block begins."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **more)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, f"{command[0]} ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def deployed(name: str, substitutions: dict[str, str]) -> str:
    """A file of deploy/ with what the test has to change; each of these must be there."""
    text = (DEPLOY / name).read_text()
    for documented, here in substitutions.items():
        assert documented in text, f"deploy/{name} has no {documented!r}"
        text = text.replace(documented, here)
    return text
