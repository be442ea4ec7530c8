"""A server as its users run it, for a test: the command `serve`, with its listener and workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from serve_asgi.cli import control_client

START_TIMEOUT: Final = 60.0
"""Seconds until the first generation must serve."""
STOP_TIMEOUT: Final = 60.0
"""Seconds in which a server must have stopped before it is killed."""
GRACE: Final = 5.0
"""Seconds that what is in flight at the end of a test has to end, as in process."""


class ServerCommand:
    """A running server. It is started by `with`, and has stopped when that ends."""

    def __init__(
        self,
        *arguments: str,
        directory: str | os.PathLike[str] = ".",
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "serve_asgi"),
    ) -> None:
        """Nothing is started yet.

        Args:
            arguments: Those of `serve`: the application and options. Without `--bind`, `--port` or `--host` it listens
                on a port of 127.0.0.1 that the kernel chooses.
            directory: In which it runs, and where the application is found.
            environment: Variables beside those of this process.
            command: What `arguments` are given to.
        """
        self._arguments = arguments
        self._directory, self._environment, self._command = Path(directory), environment or {}, command
        self._scratch = tempfile.TemporaryDirectory(prefix="serve-")
        self._control, self._log = Path(self._scratch.name, "control.sock"), Path(self._scratch.name, "log")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServerCommand:
        notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)  # sd_notify(3): it says when it serves
        with notices, self._log.open("wb") as log:
            path = Path(self._scratch.name, "notify.sock")
            notices.bind(str(path))
            listening = any(each.split("=")[0] in ("--bind", "--port", "--host", "-b") for each in self._arguments)
            self._process = subprocess.Popen(
                [
                    *self._command,
                    *self._arguments,
                    *(() if listening else ("--bind", "127.0.0.1:0")),
                    *("--control", str(self._control)),
                ],
                cwd=self._directory,
                env={**os.environ, **self._environment, "NOTIFY_SOCKET": str(path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                self._wait_until_it_serves(notices, self._process)
            except BaseException:
                self._end()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _wait_until_it_serves(self, notices: socket.socket, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        notices.settimeout(0.1)
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if b"READY=1" in notices.recv(65536).split(b"\n"):
                    return
            except TimeoutError:
                pass
        how = f"ended with {process.poll()}" if process.poll() is not None else f"did not serve in {START_TIMEOUT:g} s"
        raise RuntimeError(f"the server {how}:\n{self.log()}")

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGINT, STOP_TIMEOUT), (signal.SIGKILL, None)):
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience)
                    break
        sys.stdout.write(self.log())
        self._scratch.cleanup()

    @property
    def pid(self) -> int:
        """Of the listener, for signals."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """The first address that it listens on, without a path."""
        return str(self.status()["listening"][0])

    @property
    def port(self) -> int:
        """The port of `url`."""
        return int(self.url.rpartition(":")[2])

    def log(self) -> str:
        """All that it has written so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def status(self) -> dict[str, Any]:
        """What `serve status --json` prints."""
        return control_client.look(self._control)

    def reload(self) -> str:
        """As `serve reload`: returns what that says. Raises RuntimeError with the reason and the code's traceback."""
        return self._ask("reload")

    def rollback(self) -> str:
        """As `serve rollback`, in the same manner."""
        return self._ask("rollback")

    def _ask(self, command: str) -> str:
        try:
            return str(control_client.ask(self._control, command)["text"])
        except control_client.RequestRefused as refused:
            raise RuntimeError(f"{refused}\n{refused.detail}".strip()) from None

    def stop(self) -> int:
        """End it as its service manager would, by TERM; returns the exit status, 0 if all went well."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_TIMEOUT)
