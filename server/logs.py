"""What is written down: the server's own events, and the access log.

The loggers are "serve" (the server's own events) and "serve.error" (what the application did wrong). Nothing in here
raises into its caller: a full disk or a closed pipe costs lines, never a request. Control characters in what clients
send are escaped, so that nobody can write a line of the log by a request. Files are opened for appending and written
by whole lines; USR1 opens them again under their names (logrotate's way).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from server.config import Config
from server.errors import UsageError
from server.output import FINISH_TIME, Sink, original

if TYPE_CHECKING:
    from server.address import Address

FLUSH_AT: Final = 32768  # characters of access log held until a write, if the ticker does not come before
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class _Logger(logging.Logger):
    """Stays on whatever the application does: `logging.config.dictConfig` disables loggers that it does not know."""

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        pass


class _File:
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

    def __init__(self, role: str, file: _File | None) -> None:
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
    handler = _LineHandler(role, _File(config.log_file) if config.log_file else None)
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


class AccessLog:
    """One line per answered request, collected and written together.

    `record` is cheap and writes nothing by itself, until much has come together; `flush` writes: once per tick and at
    the end. One object per worker; not for several threads.
    """

    __slots__ = ("_buffered", "_file", "_format", "_lines", "_second", "_sink", "_stamp")

    def __init__(self, config: Config) -> None:
        """Open the log that `config` names. Raises UsageError if its file cannot be opened."""
        self._file = _File(config.access_log_file) if config.access_log_file else None
        self._sink = self._file.sink if self._file is not None else original(1)
        self._lines: list[str] = []
        self._buffered = 0
        self._second = -1
        self._stamp = ""
        self._format = {"common": self._common, "combined": self._combined, "json": self._json}[
            config.access_log_format
        ]

    def record(
        self,
        client: Address,
        method: str,
        target: str,
        version: str,
        status: int,
        size: int,
        seconds: float,
        headers: Sequence[tuple[bytes, bytes]],
    ) -> None:
        """Note one answer: `size` in bytes of body, `seconds` that it took, the `headers` of the request."""
        try:
            line = self._format(client, method, target, version, status, size, seconds, headers)
        except Exception:
            logging.getLogger("serve").exception("a line of the access log could not be written")
            return
        self._lines.append(line)
        self._buffered += len(line)
        if self._buffered >= FLUSH_AT:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected; what nobody takes now is kept, within bounds, for the next time."""
        if self._lines:
            data = "".join(self._lines).encode(errors="backslashreplace")
            self._lines.clear()
            self._buffered = 0
            self._sink.write(data)
        elif self._sink.waiting:
            self._sink.pump()

    def reopen(self) -> None:
        """USR1: write what is pending to the old file, then go on in a new one of the same name."""
        self.flush()
        if self._file is not None:
            self._file.reopen()
            self._sink = self._file.sink

    def close(self) -> None:
        """Write everything, within a bounded time, and close."""
        self.flush()
        self._sink.finish(time.monotonic() + FINISH_TIME)
        self._sink.close()

    def _common(
        self,
        client: Address,
        method: str,
        target: str,
        version: str,
        status: int,
        size: int,
        seconds: float,
        headers: Sequence[tuple[bytes, bytes]],
    ) -> str:
        """The NCSA common log format, and the duration in seconds as a last field."""
        now = int(time.time())
        if now != self._second:
            self._new_second(now)
        request = f"{method} {target} HTTP/{version}"
        if not request.isprintable() or '"' in request or "\\" in request:
            request = escape(request)
        return f'{client[0] if client else "-"} - - [{self._stamp}] "{request}" {status} {size or "-"} {seconds:.6f}\n'

    def _combined(
        self,
        client: Address,
        method: str,
        target: str,
        version: str,
        status: int,
        size: int,
        seconds: float,
        headers: Sequence[tuple[bytes, bytes]],
    ) -> str:
        """Apache's combined format: the common one with Referer and User-Agent; the duration comes last."""
        line = self._common(client, method, target, version, status, size, seconds, headers)
        start, _, duration = line.rpartition(" ")
        referer, agent = _two_headers(headers)
        return f'{start} "{escape(referer) or "-"}" "{escape(agent) or "-"}" {duration}'

    def _json(
        self,
        client: Address,
        method: str,
        target: str,
        version: str,
        status: int,
        size: int,
        seconds: float,
        headers: Sequence[tuple[bytes, bytes]],
    ) -> str:
        """One JSON object per line, with the time in UTC (RFC 3339)."""
        now = time.time()
        referer, agent = _two_headers(headers)
        milliseconds = int(now % 1 * 1000)
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{milliseconds:03d}Z",
            "client": client[0] if client else None,
            "method": method,
            "target": target,
            "version": version,
            "status": status,
            "size": size,
            "seconds": round(seconds, 6),
            "referer": referer or None,
            "user_agent": agent or None,
            "pid": os.getpid(),
        }
        return json.dumps(fields, separators=(",", ":")) + "\n"

    def _new_second(self, now: int) -> None:
        local = time.localtime(now)
        zone = time.strftime("%z", local)
        self._stamp = f"{local.tm_mday:02d}/{MONTHS[local.tm_mon - 1]}/{time.strftime('%Y:%H:%M:%S', local)} {zone}"
        self._second = now


def _two_headers(headers: Sequence[tuple[bytes, bytes]]) -> tuple[str, str]:
    referer = agent = b""
    for name, value in headers:
        if name == b"referer":
            referer = value
        elif name == b"user-agent":
            agent = value
    return referer.decode("latin-1"), agent.decode("latin-1")


def escape(text: str) -> str:
    """`text` with quotes, backslashes and everything that is not printable ASCII written as escapes."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    made = []
    for character in text:
        code = ord(character)
        if character in '"\\':
            made.append("\\" + character)
        elif 0x20 <= code < 0x7F:
            made.append(character)
        else:
            made.append(f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return "".join(made)


def open_access_log(config: Config) -> AccessLog | None:
    """The access log that `config` asks for, or None. Raises UsageError if its file cannot be opened."""
    return AccessLog(config) if config.access_log else None
