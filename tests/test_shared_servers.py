"""The shared state in real servers: several workers, reloads, blocked and killed ones; in memory, SQLite and Redis."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from serve_asgi.hub.state.write_evaluation import OVERHEAD
from tests.running import PATIENCE, RunningServer, connect, running
from tests.store.stores import own_redis

APP = """
import asyncio, inspect, json, os, time
from serve_asgi import shared

AT_IMPORT = dict(shared)
SEEN = []


async def append(n):
    return n + 1


async def watch():
    async for change in shared.watch("watched"):
        SEEN.append(change.value)


async def called(what, *args, **more):
    if what == "import":
        return AT_IMPORT
    if what == "seen":
        return SEEN
    if what == "until":  # blocks the event loop
        open(args[0] + ".blocked", "x").close()
        while not os.path.exists(args[0]):
            time.sleep(0.01)
        return None
    if what == "many":
        key, count = args
        made = [shared.incr(key) if n % 2 else shared.update(key, append, 0, timeout=60) for n in range(count)]
        return len(await asyncio.gather(*made))
    try:
        found = getattr(shared, what)(*args, **more)
        return await found if inspect.isawaitable(found) else found
    except (shared.SharedError, TypeError) as error:
        return {"error": type(error).__name__, "text": str(error), "slots": getattr(error, "slots", None)}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        watching = asyncio.ensure_future(watch())
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": json.dumps(shared.get("k"))})
        while (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": json.dumps(shared.get("k"))})
        return
    body = (await receive())["body"]
    if scope["path"] == "/stream":  # each change of a key, until it is "end"
        watch_it = shared.watch("k")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun\\n", "more_body": True})
        async for change in watch_it:
            line = json.dumps(change.value).encode() + b"\\n"
            await send({"type": "http.response.body", "body": line, "more_body": True})
            if change.value == "end":
                break
        await send({"type": "http.response.body", "body": b""})
        return
    what, args, more = json.loads(body)
    slot, found = scope["extensions"]["serve"]["slot"], await called(what, *args, **more)
    told = {"pid": os.getpid(), "slot": slot, "found": found}
    data = json.dumps(told).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]})
    await send({"type": "http.response.body", "body": data})
"""


class Worker:
    """A connection to one worker."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._answers = connection.makefile("rb")
        self.begin("version", "k")
        first = self._answer()
        self.pid, self.slot = first["pid"], first["slot"]

    def begin(self, what: str, *args: Any, **more: Any) -> None:
        """Ask, and let the answer wait."""
        body = json.dumps([what, args, more]).encode()
        self.connection.sendall(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    def _answer(self) -> Any:
        assert self._answers.readline() == b"HTTP/1.1 200 OK\r\n"
        length = 0
        while (line := self._answers.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name == b"content-length":
                length = int(value)
        return json.loads(self._answers.read(length))

    def answer(self, of_anyone: bool = False) -> Any:
        """What the worker has found, or the one that the connection has been handed over to."""
        told = self._answer()
        assert of_anyone or told["pid"] == self.pid
        return told["found"]

    def call(self, what: str, *args: Any, **more: Any) -> Any:
        """Ask and wait for the answer."""
        self.begin(what, *args, **more)
        return self.answer()


@contextlib.contextmanager
def workers(server: RunningServer, count: int, each: int = 1) -> Iterator[list[list[Worker]]]:
    """`each` connections to every one of `count` workers, by slot."""
    found: dict[int, list[Worker]] = {slot: [] for slot in range(count)}
    deadline = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as stack:
        while not all(len(there) >= each for there in found.values()):
            assert time.monotonic() < deadline, {slot: len(there) for slot, there in found.items()}
            together = [stack.enter_context(connect(server)) for _ in range(2 * count)]  # so that they spread
            for worker in map(Worker, together):
                found[worker.slot].append(worker)
        yield [found[slot] for slot in range(count)]


REDIS = pytest.param("redis", marks=[pytest.mark.once, pytest.mark.needs("redis-server")])
SQLITE = pytest.param("sqlite", marks=pytest.mark.once)
every_kind = pytest.mark.parametrize("kept", ["memory", SQLITE, REDIS], indirect=True)


@pytest.fixture(params=["memory", REDIS])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Where the state is: arguments for the server. SQLite decides as memory does, where no `every_kind` is."""
    if request.param == "redis":
        with own_redis(tmp_path / "redis") as server:
            yield ("--state", server.url)
    else:
        yield () if request.param == "memory" else ("--state", str(tmp_path / "state.db"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@every_kind
def test_what_is_set_is_everywhere_when_it_returns(kept: tuple[str, ...], directory: Path) -> None:
    with running("app:app", "--no-access-log", "--workers", "3", *kept, directory=directory) as server:
        with workers(server, 3) as slots:
            everyone = [there[0] for there in slots]
            for round in range(30):
                writer = everyone[round % 3]
                version = writer.call("set", "k", round)
                assert [worker.call("get", "k") for worker in everyone] == [round] * 3
                assert writer.call("version", "k") == version
                assert writer.call("incr", "n", 2) == 2 * round + 2
                assert [worker.call("get", "n") for worker in everyone] == [2 * round + 2] * 3
            assert everyone[0].call("get_authoritative", "n") == 60
            assert everyone[1].call("delete", "n") is True
            assert [worker.call("get", "n", "gone") for worker in everyone] == ["gone"] * 3
            assert everyone[2].call("delete", "n") is False
            assert everyone[2].call("incr", "k", "x")["error"] == "NotAnInteger"
            assert everyone[2].call("set", "k", 1, version=1_000_000)["error"] == "Conflict"
            assert everyone[0].call("get", "k") == 29
        server.reload()
        with workers(server, 3) as slots:
            assert [there[0].call("import") for there in slots] == [{"k": 29}] * 3
            slots[0][0].call("set", "k", "new")
            assert [there[0].call("get", "k") for there in slots] == ["new"] * 3
        assert server.stop() == 0
    with (
        running("app:app", "--no-access-log", "--workers", "1", *kept, directory=directory) as server,
        workers(server, 1) as slots,
    ):
        assert slots[0][0].call("import") == ({"k": "new"} if kept else {})


@every_kind
def test_no_increment_is_lost_whoever_writes_at_once(kept: tuple[str, ...], directory: Path) -> None:
    count = int(os.environ.get("SERVE_TEST_INCREMENTS", "100"))
    with (
        running("app:app", "--no-access-log", "--workers", "3", *kept, directory=directory) as server,
        workers(server, 3) as slots,
    ):
        with ThreadPoolExecutor(3) as threads:
            done = list(threads.map(lambda there: there[0].call("many", "n", count), slots))
        assert done == [count] * 3
        assert [there[0].call("get", "n") for there in slots] == [3 * count] * 3


def test_no_increment_is_lost_over_reloads(directory: Path) -> None:
    """Each answer on connections that are handed over is one increment; and no number is given twice."""
    stop = threading.Event()

    def write(worker: Worker) -> list[int]:
        found = []
        while not stop.is_set():
            worker.begin("incr", "n")
            found.append(worker.answer(of_anyone=True))
        return found

    with running("app:app", "--no-access-log", "--workers", "2", directory=directory) as server:
        with workers(server, 2) as slots, ThreadPoolExecutor(2) as threads:
            writing = [threads.submit(write, there[0]) for there in slots]
            try:
                for _ in range(int(os.environ.get("SERVE_TEST_RELOADS", "2"))):
                    server.reload()
            finally:
                stop.set()
            found = sorted(number for each in writing for number in each.result(PATIENCE))
        assert found == list(range(1, len(found) + 1))
        assert len(found) > 10


def blocked(worker: Worker, gate: Path) -> None:
    """Have the worker's event loop blocked until the file is there."""
    worker.begin("until", str(gate))
    until(Path(f"{gate}.blocked").exists)


@every_kind
def test_who_lags_is_named_and_catches_up_before_its_next_request(kept: tuple[str, ...], directory: Path) -> None:
    """Requests wait in the sockets of the blocked worker before the write; still they see what was written."""
    arguments = ("--no-access-log", "--workers", "3", "--block-warning", "0", *kept)
    with running("app:app", *arguments, directory=directory) as server, workers(server, 3, each=4) as slots:
        one, other, third = slots
        one[0].call("set", "k", "old")
        gate = directory / "gate"
        blocked(other[0], gate)
        other[0].begin("get", "k")  # behind what blocks
        for worker in other[1:3]:
            worker.begin("get", "k")
        upgrade(other[3].connection)
        failed = one[0].call("set", "k", "new", timeout=1.0)
        assert (failed["error"], failed["slots"]) == ("Lagging", [1])
        assert "worker 1 of generation 1" in failed["text"]
        assert one[1].call("get", "k") == third[0].call("get", "k") == "new"  # it stands
        for number in range(100):
            one[0].begin("set", f"k{number}", "v" * 30_000, timeout=0.01)  # more than fits into its socket
            one[0].answer()
        assert one[0].call("incr", "k0", 1, timeout=20)["error"] == "NotAnInteger"
        gate.touch()
        assert other[0].answer() is None
        assert [other[0].answer(), *(worker.answer() for worker in other[1:3])] == ["new"] * 3
        assert frame(other[3].connection) == "new"
        assert other[0].call("get", "k99") == "v" * 30_000
        assert one[0].call("set", "k", "newer") > 0
        assert other[1].call("get", "k") == "newer"
        assert server.log().count("worker 1 of generation 1 does not take the changes of the shared state in time") == 1
        assert "lacks" not in server.log()


MESSAGE = b"\x81\x80" + bytes(4)
"""A WebSocket message without a text."""


def upgrade(connection: socket.socket) -> None:
    """Ask for a WebSocket."""
    key = base64.b64encode(os.urandom(16))
    connection.sendall(
        b"GET / HTTP/1.1\r\nhost: test\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: " + key + b"\r\n\r\n"
    )


def frame(connection: socket.socket, handshake: bool = True) -> Any:
    """The text of the next WebSocket frame; the first comes after the handshake's answer."""
    data = b"" if handshake else b"HTTP/1.1 101\r\n\r\n"
    connection.settimeout(PATIENCE)
    while True:
        head, end, rest = data.partition(b"\r\n\r\n")
        if end and len(rest) >= 2 and len(rest) >= 2 + rest[1]:
            assert head.startswith(b"HTTP/1.1 101")
            return json.loads(rest[2 : 2 + rest[1]])
        piece = connection.recv(65536)
        assert piece, data
        data += piece


def test_a_message_of_a_websocket_sees_what_was_written_before_it(directory: Path) -> None:
    """It waits in a socket of the blocked worker, with more changes than the worker reads in one turn of its loop."""
    arguments = ("--no-access-log", "--workers", "2", "--block-warning", "0")
    with running("app:app", *arguments, directory=directory) as server, workers(server, 2, each=2) as slots:
        (writer, *_), (other, client, *_) = slots
        upgrade(client.connection)
        assert frame(client.connection) is None
        gate = directory / "gate"
        blocked(other, gate)
        for number in range(100):
            writer.call("set", "k", number, timeout=0.0)
        client.connection.sendall(MESSAGE)
        gate.touch()
        assert frame(client.connection, handshake=False) == 99
        assert other.answer() is None


def test_killed_workers_hold_up_nobody(kept: tuple[str, ...], directory: Path) -> None:
    with (
        running("app:app", "--no-access-log", "--workers", "3", *kept, directory=directory) as server,
        workers(server, 3) as slots,
    ):
        writer = slots[0][0]
        stop = threading.Event()
        lagged: list[Any] = []

        def write() -> int:
            written = 0
            while not stop.is_set():
                found = writer.call("incr", "n", timeout=20)
                if isinstance(found, dict):
                    lagged.append(found)
                    return written
                written = found
            return written

        with ThreadPoolExecutor(1) as threads:
            writing = threads.submit(write)
            try:
                for slot in (1, 2):
                    killed = slots[slot][0].pid
                    os.kill(killed, signal.SIGKILL)
                    server.wait_until(lambda status, killed=killed: replaced(status, killed))  # type: ignore[misc]
            finally:
                stop.set()
            written = writing.result(PATIENCE)
        assert lagged == []
        with workers(server, 3) as now:
            assert [there[0].call("get", "n") for there in now] == [written] * 3


def replaced(status: dict[str, Any], killed: int) -> bool:
    workers = status["workers"]
    return [w["state"] for w in workers] == ["serving"] * 3 and killed not in {w.get("pid") for w in workers}


def test_sizes_are_an_error_at_the_writer(kept: tuple[str, ...], directory: Path) -> None:
    limits = ("--state-value-limit", "1000", "--state-limit", str(5000 + 5 * OVERHEAD))
    arguments = ("--no-access-log", "--workers", "2", *kept, *limits)
    with running("app:app", *arguments, directory=directory) as server, workers(server, 2) as slots:
        writer, reader = slots[0][0], slots[1][0]
        assert writer.call("set", "k", "v" * 1001)["error"] == "ValueTooLarge"
        for number in range(5):
            writer.call("set", f"k{number}", "v" * 990)
        full = writer.call("set", "k5", "v" * 990)
        assert (full["error"], "--state-limit" in full["text"]) == ("ValueTooLarge", True)
        assert [reader.call("get", f"k{number}") for number in range(6)] == ["v" * 990] * 5 + [None]
        assert writer.call("set", "serve:mine", 1)["error"] == "BadKey"


def test_a_watch_goes_on_while_its_worker_retires(kept: tuple[str, ...], directory: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            running("app:app", "--no-access-log", "--workers", "2", *kept, directory=directory)
        )
        slots = stack.enter_context(workers(server, 2))
        with connect(server) as stream, stream.makefile("rb") as lines:
            stream.sendall(b"GET /stream HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
            wait_for(lines, b"begun")
            slots[0][0].call("set", "k", 1)
            wait_for(lines, b"1")
            with control_client.ControlConversation(server.control, "reload") as conversation:
                conversation.outcome()
            with workers(server, 2) as new:
                assert {there[0].pid for there in new}.isdisjoint(there[0].pid for there in slots)
                new[1][0].call("set", "watched", "w")
                new[1][0].call("set", "k", 2)
                wait_for(lines, b"2")
                new[0][0].call("set", "k", "end")
                wait_for(lines, b'"end"')
                assert [there[0].call("seen") for there in new] == [["w"]] * 2


def test_who_is_in_its_exit_handlers_is_not_waited_for(directory: Path) -> None:
    (directory / "app.py").write_text(
        APP + "import atexit, pathlib\n"
        "HERE = pathlib.Path(__file__).parent\n"
        "def slow():\n"
        "    (HERE / f'ending{os.getpid()}').touch()\n"
        "    end = time.monotonic() + 1.9\n"
        "    while not (HERE / 'gate').exists() and time.monotonic() < end:\n"
        "        time.sleep(0.01)\n"
        "atexit.register(slow)\n"
    )
    with running("app:app", "--no-access-log", "--workers", "2", directory=directory) as server:
        with workers(server, 2) as slots:
            old = [there[0].pid for there in slots]
        server.reload()
        with workers(server, 2) as new:
            until(lambda: all((directory / f"ending{pid}").exists() for pid in old))
            assert isinstance(new[0][0].call("set", "k", "v", timeout=1.5), int)
            assert new[1][0].call("get", "k") == "v"
        (directory / "gate").touch()


def wait_for(lines: Any, wanted: bytes) -> None:
    while (line := lines.readline()).strip() != wanted:
        assert line, f"the stream ended before {wanted!r}"


def test_the_agent_and_another_program_of_the_listener_have_it(kept: tuple[str, ...], directory: Path) -> None:
    (directory / "agent.py").write_text(
        "import asyncio\n"
        "from serve_asgi import shared\n"
        "async def prepare(): pass\n"
        "async def main():\n"
        "    await shared.incr('agents')\n"
        "    async for change in shared.watch('question'):\n"
        "        await shared.set('answer', [change.value, shared.get('k')])\n"
    )
    arguments = ("--no-access-log", "--workers", "2", "--agent", "agent:main", *kept)
    with running("app:app", *arguments, directory=directory) as server, workers(server, 2) as slots:
        one, two = slots[0][0], slots[1][0]
        until(lambda: two.call("get", "agents") == 1)  # entered, it writes; it is not waited for
        one.call("set", "k", "v")
        one.call("set", "question", 1)
        until(lambda: two.call("get", "answer") == [1, "v"])
        assert "the listener runs serve" in control_client.ask(server.control, "reload-listener")["text"]
        assert one.call("get", "k") == "v"
        assert isinstance(one.call("set", "k", "w", timeout=20), int)  # another store process may have to start first
        assert two.call("get", "k") == "w"
        assert two.call("incr", "n") == 1
        one.call("set", "question", 2)
        until(lambda: two.call("get", "answer") == [2, "w"])
        server.reload()
        with workers(server, 2) as new:
            assert new[0][0].call("import")["k"] == "w"
            until(lambda: new[1][0].call("get", "agents") == 2)


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again; what is waited for happens in another process."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.once
@pytest.mark.needs("redis-server")
def test_two_servers_on_one_redis(directory: Path) -> None:
    with own_redis(directory / "redis") as redis, contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                running("app:app", "--no-access-log", "--workers", "2", "--state", redis.url, directory=directory)
            )
            for _ in range(2)
        ]
        one, two = ([there[0] for there in stack.enter_context(workers(server, 2))] for server in servers)
        for round in range(20):
            one[0].call("set", "k", round)
            assert [worker.call("get", "k") for worker in one] == [round] * 2
            assert two[round % 2].call("get_authoritative", "k") == round
            two[0].call("set", "l", round)
            assert one[round % 2].call("get_authoritative", "l") == round
        until(lambda: [worker.call("get", "l") for worker in one] == [19] * 2)
        until(lambda: [worker.call("get", "k") for worker in two] == [19] * 2)
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda worker: worker.call("many", "n", 50), one + two)) == [50] * 4
        assert [worker.call("get_authoritative", "n") for worker in one + two] == [200] * 4
