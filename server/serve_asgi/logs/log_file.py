"""Where logs are written to: files, opened for appending and reopened for USR1, or a descriptor; always whole lines.

A file is reopened by its path, since logrotate has renamed the old one. The contents of lines are up to
`serve_asgi.logs.server_log` and `serve_asgi.logs.access_log`; `serve_asgi.logs.nonblocking_sink` ensures that nobody
waits for the disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator

from serve_asgi.config.accounts import own_name
from serve_asgi.errors import UsageError
from serve_asgi.logs.nonblocking_sink import Sink


class LogFile:
    """A log file that can be reopened. Owns its descriptor."""

    __slots__ = ("path", "sink")

    def __init__(self, path: str) -> None:
        """Open `path` for appending. Raises UsageError if it cannot be opened."""
        self.path = os.path.abspath(path)
        try:
            self.sink = Sink(self._open())
        except OSError as error:
            way = f"let user {own_name()} write it, or " if isinstance(error, PermissionError) else ""
            raise UsageError(
                f"the log file {path} cannot be opened: {error.strerror}; {way}give another path"
            ) from None

    def _open(self) -> int:
        if sys.platform == "win32":
            return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_BINARY, 0o644)
        # O_NONBLOCK for a named pipe; O_NOCTTY for a terminal: neither may block us.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(self.path, flags, 0o644)
        end_last_line(fd)
        return fd

    def write(self, data: bytes) -> None:
        """Write whole lines."""
        self.sink.write(data)

    def reopen(self) -> None:
        """Reopen the path.

        If that fails, the old file stays in use. Pending lines go to the old file, or to the new one if the disk was
        full: a rotation makes room.
        """
        try:
            fresh = Sink(self._open())
        except OSError as error:
            logging.getLogger("serve").error(
                "the log file %s cannot be reopened: %s; let user %s write it; the old one stays in use",
                self.path,
                error.strerror,
                own_name(),
                extra={"event": "log_reopen_failed", "about": {"path": self.path}},
            )
            return
        old, self.sink = self.sink, fresh
        old.pump()
        fresh.write(old.take_lines())
        old.close()


def end_last_line(fd: int) -> None:
    """If the log file ends in the middle of a line, begin a new one: its writer was killed, or the disk was full."""
    if not stat.S_ISREG(os.fstat(fd).st_mode) or not os.fstat(fd).st_size:
        return
    with contextlib.suppress(OSError), open(f"/proc/self/fd/{fd}", "rb") as reading:  # some may only append to it
        reading.seek(-1, os.SEEK_END)
        if reading.read(1) != b"\n":
            os.write(fd, b"\n")


class ForkedLogFile:
    """The log file of a forked child, opened for each of its few lines, so that no rotated file is kept open."""

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, data: bytes) -> None:
        """Write whole lines; to stderr if the file cannot be opened."""
        try:
            file = LogFile(self.path)
        except UsageError:
            write_all(2, data)
            return
        file.write(data)
        file.sink.close()


def write_all(fd: int, data: bytes) -> None:
    """Write to the descriptor, blocking. Raises OSError."""
    while data:
        data = data[os.write(fd, data) :]


class LineOutput:
    """Writes whole lines, one after another, whatever interrupts whom: to a file, or through `write` to stderr.

    A thread may log while it is writing: the garbage collector runs anywhere, and finalisers may log. A sink's lock is
    not reentrant, so such lines are written afterwards.
    """

    __slots__ = ("_lock", "_meanwhile", "_write", "_writing", "file")

    def __init__(self, file: LogFile | ForkedLogFile | None, write: Callable[[int, bytes], None]) -> None:
        self.file = file
        self._write = write
        self._lock = threading.RLock()
        self._writing = False
        self._meanwhile: list[bytes] = []

    def put(self, data: bytes) -> None:
        """Write whole lines. Raises OSError."""
        with self._lock:
            self._meanwhile.append(data)
            if not self._writing:
                with self._alone():
                    pass

    def reopen(self) -> None:
        """Reopen the file, if there is one."""
        if isinstance(self.file, LogFile):
            with self._alone():
                self.file.reopen()

    def forget(self) -> None:
        """In a child: a fork may have happened in the middle of a line, which the parent writes."""
        self._lock = threading.RLock()
        self._writing = False
        self._meanwhile.clear()

    def inherit(self) -> None:
        """In a worker that was forked from a template: use its open file; its unwritten lines remain its own."""
        if isinstance(self.file, LogFile):
            self.file.sink.forget()

    def let_go(self) -> None:
        """In a forked child: the file belongs to its parent, as do lines that another thread was about to write."""
        self.forget()
        if self.file is not None:
            self.file = ForkedLogFile(self.file.path)

    def close(self) -> None:
        """Close the file, if there is one."""
        if isinstance(self.file, LogFile):
            self.file.sink.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Use the file exclusively; lines logged meanwhile are written afterwards."""
        with self._lock:
            self._writing = True
            try:
                yield
                while self._meanwhile:
                    data = self._meanwhile.pop(0)
                    if self.file is not None:
                        self.file.write(data)
                    else:
                        self._write(2, data)
            finally:
                self._writing = False
