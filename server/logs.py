"""What is written down of the server's own events, and the files that logs are written to.

The loggers are "serve" (the server's own events) and "serve.error" (what the application did wrong). Nothing in here
raises into its caller: a full disk or a closed pipe costs lines, never a request. Control characters in what clients
send are escaped, so that nobody can write a line of the log by a request. Files are opened for appending and written
by whole lines; USR1 opens them again under their names (logrotate's way).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from typing import Final

from server.config import Config
from server.errors import UsageError
from server.output import FINISH_TIME, Sink

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class _Logger(logging.Logger):
    """Stays on whatever the application does: `logging.config.dictConfig` disables loggers that it does not know."""

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        pass


class LogFile:
    """A log file that can be opened again. Owns its descriptor."""

    __slots__ = ("path", "sink")

    def __init__(self, path: str) -> None:
        """Open `path` for appending. Raises UsageError if that cannot be."""
        self.path = os.path.abspath(path)
        try:
            self.sink = Sink(self._open())
        except OSError as error:
            raise UsageError(
                f"the log file {path} cannot be opened: {error.strerror}; give a path that can be"
            ) from None

    def _open(self) -> int:
        # O_NONBLOCK for a named pipe; O_NOCTTY for a terminal: neither may hold us up.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        return os.open(self.path, flags, 0o644)

    def reopen(self) -> None:
        """Open the path again; what was pending goes to the old file. If that fails, the old one stays in use."""
        try:
            fresh = Sink(self._open())
        except OSError as error:
            logging.getLogger("serve").error(
                "the log file %s cannot be opened again: %s; the old one stays in use", self.path, error.strerror
            )
            return
        old, self.sink = self.sink, fresh
        old.close()


class _LineHandler(logging.Handler):
    """Writes each record as one write of whole lines, to stderr or a file."""

    def __init__(self, role: str, file: LogFile | None) -> None:
        super().__init__()
        self.role = role
        self.file = file

    def emit(self, record: logging.LogRecord) -> None:
        # Whatever is wrong with a record or the disk: the caller's work goes on.
        with contextlib.suppress(Exception):
            data = (self._line(record) + "\n").encode(errors="backslashreplace")
            if self.file is not None:
                self.file.sink.write(data)
            else:
                _write_all(2, data)

    def _line(self, record: logging.LogRecord) -> str:
        seconds, fraction = divmod(record.created, 1)
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = f"{record.msg} {record.args}"
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.rstrip("\n"))
        return f"{at}.{int(fraction * 1000):03d} {self.role}[{os.getpid()}] {level}{text}"


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


_handler: _LineHandler | None = None


def configure(config: Config, role: str) -> None:
    """Set the loggers up for this process; `role` names it in each line ("listener", "worker 2").

    May be called again: the last call counts. Raises UsageError if the log file cannot be opened.
    """
    global _handler
    handler = _LineHandler(role, LogFile(config.log_file) if config.log_file else None)
    for name in ("serve", "serve.error"):
        logger = logging.getLogger(name)
        logger.__class__ = _Logger
    top = logging.getLogger("serve")
    top.handlers = [handler]
    top.propagate = False
    top.setLevel(config.log_level.upper())
    if _handler is not None and _handler.file is not None:
        _handler.file.sink.close()
    _handler = handler


def reopen() -> None:
    """USR1: open the server's own log file again, if there is one."""
    if _handler is not None and _handler.file is not None:
        _handler.file.reopen()


def finish() -> None:
    """Close the log file, if there is one; what is logged later goes to stderr."""
    if _handler is not None and _handler.file is not None:
        file, _handler.file = _handler.file, None
        file.sink.finish(time.monotonic() + FINISH_TIME)
        file.sink.close()
