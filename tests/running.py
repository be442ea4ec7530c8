"""A real server for a test: started by its command, watched as its service manager would, ended by its PID."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from serve_asgi.cli import control_client

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30.0
"""Seconds until a wait is a failure; never asserted on."""
T = TypeVar("T")


def until(condition: Callable[[], T], what: str | Callable[[], object] = "so", timeout: float = PATIENCE) -> T:
    """Ask again and again, of what has no event, until `condition()` is true, and return what it gave.

    After `timeout` seconds an AssertionError tells `what` was waited for, or what that function then gives.
    """
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what() if callable(what) else what}"
        time.sleep(0.02)
    return found


class Notices:
    """The service manager's end of NOTIFY_SOCKET (sd_notify(3)): each datagram is an event that can be waited for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o777)
        self.seen: list[str] = []

    def wait(self, pattern: str, timeout: float = PATIENCE) -> str:
        """Wait for a datagram that `pattern` is found in."""
        deadline = time.monotonic() + timeout
        while True:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                text = self._socket.recv(65536).decode()
            except TimeoutError:
                raise AssertionError(f"no notice {pattern!r} within {timeout} s; seen: {self.seen}") from None
            self.seen.append(text)
            if re.search(pattern, text):
                return text

    def close(self) -> None:
        self._socket.close()


class RunningServer:
    """A server process and what a test may ask of it."""

    def __init__(
        self,
        app: str,
        *arguments: str,
        directory: Path,
        environment: dict[str, str] | None = None,
        python: str = sys.executable,
        wrapper: Sequence[str] = (),
        bind: str = "127.0.0.1:0",
        pass_fds: Sequence[int] = (),
        command: Sequence[str] = (),
    ) -> None:
        """`command` takes the place of `python -m serve_asgi`."""
        self._scratch = tempfile.TemporaryDirectory(prefix="serve-test-")
        scratch = Path(self._scratch.name)
        scratch.chmod(0o777)
        self.control = scratch / "control.sock"
        self.log_path = scratch / "log"
        self.notices = Notices(scratch / "notify.sock")
        self.directory = directory
        self._log = self.log_path.open("wb")
        self.process = subprocess.Popen(
            [
                *wrapper,
                *(command or (python, "-m", "serve_asgi")),
                *(app, "--control", str(self.control)),
                *(("--bind", bind) if bind else ()),
                *arguments,
            ],
            cwd=directory,
            env={
                **{name: text for name, text in os.environ.items() if name != "PWD"},
                "PYTHONPATH": str(ROOT),
                "SERVE_LOG_FORMAT": "text",
                "NOTIFY_SOCKET": str(self.notices.path),
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(pass_fds),
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def ready(self) -> RunningServer:
        """Wait until the first generation serves."""
        try:
            self.notices.wait("READY=1")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        return self

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = control_client.ask(self.control, "status")["status"]
        return found

    def address(self) -> tuple[str, int]:
        host, _, port = self.status()["listening"][0].rpartition("://")[2].rpartition(":")
        return host.strip("[]"), int(port)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def reload(self) -> str:
        """Reload through the control socket and return what it says; raises control_client.RequestRefused."""
        return str(control_client.ask(self.control, "reload")["text"])

    def workers(self, *states: str) -> list[dict[str, Any]]:
        return [w for w in self.status()["workers"] if not states or w["state"] in states]

    def wait_until(self, condition: Callable[[dict[str, Any]], bool], timeout: float = PATIENCE) -> dict[str, Any]:
        """Ask for the status again and again until `condition` holds for it."""
        status: dict[str, Any] = {}

        def holds() -> bool:
            nonlocal status
            return condition(status := self.status())

        until(holds, lambda: f"still {status}\n{self.log()}", timeout)
        return status

    def logged(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until a regular expression, whose dot is any character, is in the log `count` times; its matches."""

        def found() -> list[str]:
            return [match[0] for match in re.finditer(pattern, self.log(), re.DOTALL)]

        until(lambda: len(found()) >= count, lambda: f"{pattern!r} in the log:\n{self.log()}")
        return found()

    def wait_for_workers(self, count: int) -> None:
        """Wait until exactly `count` workers live and all of them serve."""
        self.wait_until(lambda status: [w["state"] for w in status["workers"]] == ["serving"] * count)

    def worker_pids(self) -> list[int]:
        """The PIDs of all living children, from the kernel."""
        return children(self.pid)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end and return the exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end within {timeout} s\n{self.log()}") from None

    def stop(self) -> int:
        """TERM, and wait for the end."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """End everything that is left, by PID."""
        if self.process.poll() is None:
            pids = self.worker_pids()
            self.process.kill()
            self.process.wait()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._log.close()
        self.notices.close()
        self._scratch.cleanup()


def children(pid: int) -> list[int]:
    """The living or defunct children of a process (proc(5))."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def state_of(pid: int) -> str:
    """The process's state letter (proc(5)), or nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@contextlib.contextmanager
def running(app: str, *arguments: str, directory: Path, **more: Any) -> Iterator[RunningServer]:
    """A server that serves; ended when the block ends, its log printed (pytest shows it if the test fails)."""
    server = RunningServer(app, *arguments, directory=directory, **more)
    try:
        yield server.ready()
    finally:
        print(server.log())
        server.close()


def request(
    connection: socket.socket, /, path: str = "/", body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    """One request and its answer on a kept connection; raises AssertionError if it is closed before that."""
    method = "GET" if body is None else "POST"
    lines = [f"{method} {path} HTTP/1.1", "host: test", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + (body or b""))
    return answer(connection)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read one answer with a content-length."""
    connection.settimeout(PATIENCE)
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        assert piece, f"closed after {data!r}"
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])  # type: ignore[index]
    while len(rest) < length:
        piece = connection.recv(65536)
        assert piece, f"closed within the body: {head!r}"
        rest += piece
    return int(head.split()[1]), rest


def connect(server: RunningServer) -> socket.socket:
    """A client connection to the server's first address."""
    return socket.create_connection(server.address(), timeout=PATIENCE)
