"""A store process without a listener, and a Redis of the test's own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serve_asgi.config.options import Config
from serve_asgi.config.state_location import is_url
from serve_asgi.ipc.channel import PROTOCOL, pair
from serve_asgi.ipc.frames import MAX_FRAME, Frame, decode, encode, pack_value, unpack_value
from tests.running import PATIENCE, ROOT

REDIS = pytest.param("redis", marks=pytest.mark.needs("redis-server"))
POSTGRES = pytest.param("postgres", marks=pytest.mark.needs("postgres", "initdb"))
"""What several servers may share, for tests that are the same for each."""
VALUE_LIMIT, TOTAL_LIMIT = 64 * 1024, 1024 * 1024


class StoreProcess:
    """`python -m serve_asgi.store` as the listener has it, spoken to frame by frame."""

    def __init__(
        self, location: str | Path, *, again: bool = False, total_limit: int = TOTAL_LIMIT, modules: Path | None = None
    ) -> None:
        """`modules` is a directory whose modules come before all others."""
        self._end, theirs = pair()
        self._end.settimeout(PATIENCE)
        self.name = uuid.uuid4().hex
        self.said: list[Frame] = []
        """Everything but what `wait` and the like have taken."""
        self.topics: list[str] | None = None
        """Those of the fleet, as they were when it was up; None for a file."""
        self._shared = is_url(str(location))
        self._count = 0
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serve_asgi.store", "--channel", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **({"PYTHONPATH": str(modules), "PYTHONSAFEPATH": "1"} if modules else {})},
            )
        head = {"protocol": list(PROTOCOL), "location": str(location), "again": again, "name": self.name}
        head |= {"value_limit": VALUE_LIMIT, "total_limit": total_limit}
        self.send("store.open", head, pack_value(Config().to_json(), "the configuration"))

    def send(self, kind: str, head: dict[str, Any], body: bytes = b"") -> None:
        self._end.sendall(encode(kind, head, body))

    def receive(self, timeout: float = PATIENCE) -> Frame:
        """The next frame; EOFError at the end, TimeoutError if none comes."""
        self._end.settimeout(timeout)
        while True:
            try:
                data = self._end.recv(MAX_FRAME + 1)
            except ConnectionResetError:
                continue
            if not data:
                raise EOFError
            return decode(data)

    def wait(self, *kinds: str, timeout: float = PATIENCE, **head: Any) -> Frame:
        """The first frame of these kinds with these values in its head, kept or to come."""

        def fits(frame: Frame) -> bool:
            return frame.kind in kinds and all(frame.head.get(name) == value for name, value in head.items())

        for frame in self.said:
            if fits(frame):
                self.said.remove(frame)
                return frame
        deadline = time.monotonic() + timeout
        while not fits(frame := self.receive(max(0.01, deadline - time.monotonic()))):
            self.said.append(frame)
        return frame

    def up(self) -> dict[str, tuple[int, Any]]:
        """Wait until it is up; return the state that it has told: key -> version, value."""
        self.wait("store.up")
        if self._shared:
            self.topics = self.wait("store.topics", fresh=True).head["topics"]
        pieces = [frame for frame in self.said if frame.kind == "store.snapshot"]
        self.said = [frame for frame in self.said if frame.kind != "store.snapshot"]
        rows = [row for piece in pieces for row in unpack_value(piece.body)]
        return {key: (version, unpack_value(value)) for key, version, value in rows}

    def ask(self, kind: str, head: dict[str, Any], body: bytes = b"") -> int:
        self._count += 1
        self.send(kind, {"id": self._count, **head}, body)
        return self._count

    def write(self, op: str, key: str, value: Any = None, **more: Any) -> Frame:
        """Write and wait for the answer."""
        body = pack_value(value, "a value") if op in ("set", "cas") else b""
        return self.wait(
            "store.written", "store.refused", id=self.ask("store.write", {"op": op, "key": key, **more}, body)
        )

    def set(self, key: str, value: Any) -> Frame:
        frame = self.write("set", key, value)
        assert frame.kind == "store.written", frame
        return frame

    def read(self, key: str) -> Any:
        """The truth."""
        frame = self.wait("store.value", "store.refused", id=self.ask("store.read", {"key": key}))
        assert frame.kind == "store.value", frame
        return unpack_value(frame.body) if frame.head["exists"] else None

    def grant(self, name: str, tick: float, lease: float = 30.0, **more: Any) -> Frame:
        head = {"name": name, "tick": tick, "lease": lease, "holder": self.name, **more}
        return self.wait("store.granted", "store.taken", id=self.ask("store.grant", head))

    def failed(self) -> str:
        """Wait until it says that it cannot start, and has ended."""
        text = str(self.wait("store.failed").head["text"])
        assert self.process.wait(PATIENCE) == 2
        return text

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        """As a listener that ends: nothing more is said, and it may write what it has."""
        self._end.shutdown(socket.SHUT_WR)
        with contextlib.suppress(EOFError):
            while True:
                self.said.append(self.receive())
        assert self.process.wait(PATIENCE) == 0

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        self._end.close()


@contextlib.contextmanager
def store(location: str | Path, **more: Any) -> Iterator[StoreProcess]:
    """A store process, ended with the block."""
    process = StoreProcess(location, **more)
    try:
        yield process
    finally:
        process.close()


@contextlib.contextmanager
def pair_of(url: str) -> Iterator[tuple[StoreProcess, StoreProcess]]:
    """The stores of two servers, both up."""
    with store(url) as a, store(url) as b:
        a.up(), b.up()
        yield a, b


class Redis:
    """A Redis server on a unix socket and, with `tcp`, on a free port; its data lie in `directory`."""

    def __init__(self, directory: Path, *arguments: str, persistent: bool = False, tcp: bool = False) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.path = directory / "redis.sock"
        self.port = free_port() if tcp else 0
        self._arguments = [*arguments, *(("--appendonly", "yes", "--appendfsync", "always") if persistent else ())]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        own = {"port": self.port, "unixsocket": self.path, "save": "", "dir": self.directory, "bind": "127.0.0.1"}
        options = [each for name, value in own.items() for each in (f"--{name}", str(value))]
        self._process = subprocess.Popen(
            ["redis-server", *options, *self._arguments], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            with self.client() as client:
                try:
                    client.ping()
                    return
                except redis.AuthenticationError:
                    return
                except redis.RedisError:
                    pass
            assert time.monotonic() < deadline
            assert self._process.poll() is None
            time.sleep(0.01)

    def client(self) -> redis.Redis:
        """A connection that says at once when there is none."""
        retry = Retry(NoBackoff(), 0)
        return redis.Redis(unix_socket_path=str(self.path), socket_timeout=PATIENCE, retry=retry)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def own_redis(directory: Path, *arguments: str, **more: Any) -> Iterator[Redis]:
    """A Redis, ended with the block."""
    server = Redis(directory, *arguments, **more)
    try:
        yield server
    finally:
        server.close()


def scaled(default: int) -> int:
    """How often something is repeated: STORE_TEST_SCALE times the default."""
    return max(1, int(default * float(os.environ.get("STORE_TEST_SCALE", "1"))))


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object]) -> None:
    """Wait for something in another program, which has no event for us."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
