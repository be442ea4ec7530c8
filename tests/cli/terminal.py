"""A command on a terminal of its own (pty(7)): what a person sees, and the keys that a person hits."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cli.serving import command, environment
from tests.running import PATIENCE, ROOT, RunningServer

CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][0-9A-B]?|\r")


def _take_terminal() -> None:
    """Make the terminal that is the standard input the controlling one: its keys and its size become signals."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A terminal of so many columns and lines, and one command on it. Used as a context manager."""

    def __init__(
        self,
        server: RunningServer | None,
        *arguments: str,
        columns: int = 80,
        lines: int = 24,
        cwd: Path = ROOT,
        **more: str,
    ) -> None:
        """`more` are variables of the environment."""
        self.seen = ""
        self._fd, other = pty.openpty()
        self.resize(columns, lines)
        self.process = subprocess.Popen(
            command(server, *arguments),
            cwd=cwd,
            env=environment(TERM="xterm-256color", **more),
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(other)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._fd)

    def resize(self, columns: int, lines: int) -> None:
        """Another size, as when a person draws at the window's corner."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def hit(self, key: str) -> None:
        os.write(self._fd, key.encode())

    def wait_for(self, text: str) -> None:
        """Wait until `text` has been shown since the last call, colours and movements aside."""
        for shown in self._shown():
            if text in shown:
                return
        raise AssertionError(f"{text!r} was not shown; this was: {self.seen}")

    def wait_until_shown(self, sequence: str) -> None:
        """The same of a control sequence."""
        for _ in self._shown():
            if sequence in self.seen:
                return
        raise AssertionError(f"{sequence!r} was not sent; this was: {self.seen}")

    def wait(self) -> int:
        """Read to the end; return the exit status."""
        for _ in self._shown():
            pass
        return self.process.wait(PATIENCE)

    def settings(self) -> list[object]:
        """How the terminal is set (termios(3)): to see whether it was left as it was found."""
        return termios.tcgetattr(self._fd)[:4]

    def _shown(self) -> Iterator[str]:
        """What has been shown, again and again as it grows, to the end."""
        deadline = time.monotonic() + PATIENCE
        while True:
            yield CONTROLS.sub("", self.seen)
            readable, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"nothing more was shown within {PATIENCE} s; this was: {self.seen}"
            try:
                piece = os.read(self._fd, 65536)
            except OSError:  # EIO: nobody holds the other end any more
                piece = b""
            if not piece:
                return
            self.seen += piece.decode(errors="replace")
