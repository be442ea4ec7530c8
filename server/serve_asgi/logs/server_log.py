"""The server log: the server's own events as lines.

The loggers are "serve" (the server's own events) and "serve.error" (the application's errors). Each record has the
stable name of an event, and its fields (`about`): a line for people on a terminal, a JSON object per line elsewhere
(docs/guides/logs.md). Nothing in here raises into its caller: a full disk or a closed pipe costs lines, not requests.
Neither a request nor an exception's text can forge a line of the log: control characters are escaped, and the further
lines of a text are indented. Lines are bounded: sentences and their parts have `TEXT_LIMIT` characters at most,
tracebacks are limited by `serve_asgi.logs.tracebacks`. Handlers and filters that the application adds to our loggers
may fail, which loses nothing but their own output. The log file is in `serve_asgi.logs.log_file`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from serve_asgi.config.options import Config
from serve_asgi.logs import stdio_guard
from serve_asgi.logs.exceptions import exc_info, name_of, shortened
from serve_asgi.logs.log_file import LineOutput, LogFile, write_all
from serve_asgi.logs.nonblocking_sink import last_moment
from serve_asgi.logs.tracebacks import TRACEBACK_LIMIT, traceback_text

TEXT_LIMIT: Final = 8192
"""Characters of a sentence, and of each of its fields."""
DETAIL_LIMIT: Final = 2 * TRACEBACK_LIMIT
"""Characters of a traceback from another process."""
DETAIL_KEYS: Final = {"hook_finished": "output", "hook_failed": "output"}
"""What the detail of an event is called in JSON, if it is no traceback."""
COMPLAINTS: Final = 20
"""Most failing handlers and filters of the application that are reported, each once."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_INDENT: Final = "\n  "

DIM: Final = "\x1b[2m"
PLAIN: Final = "\x1b[0m"
COLOURS: Final = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m"}
"""ECMA-48 8.3.117: faint, default, yellow, red."""


def about(event: str, **whom: object) -> dict[str, object]:
    """The `extra` of a log call: the stable name of the event, and its fields (JSON-compatible values)."""
    return {"event": event, "about": whom}


class _Logger(logging.Logger):
    """A logger that works whatever the application does.

    `logging.config.dictConfig` disables loggers that it does not know, `logging.disable` all of them, and a custom
    record factory may fail, or use our field names.
    """

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        pass

    def isEnabledFor(self, level: int) -> bool:
        return level >= self.getEffectiveLevel()

    def makeRecord(
        self,
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        record = logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)
        record.__dict__.update(extra or {})
        return record

    def filter(self, record: logging.LogRecord) -> Any:
        """As in `logging`, but a failing filter of the application's lets the record pass."""
        try:
            return super().filter(record)
        except BaseException as error:
            _complain("a filter", error)
            return True

    def callHandlers(self, record: logging.LogRecord) -> None:
        """As in `logging`, but a failing handler of the application's affects neither other handlers nor the caller."""
        found = False
        logger: logging.Logger | None = self
        while logger is not None:
            for handler in list(logger.handlers):
                found = True
                if record.levelno < handler.level:
                    continue
                try:
                    handler.handle(record)
                except BaseException as error:
                    if handler is _handler:  # a filter that the application has added to it
                        handler.write(record)
                    _complain(f"the handler {type(handler).__name__}", error)
            logger = logger.parent if logger.propagate else None
        last = logging.lastResort
        if not found and last is not None and record.levelno >= last.level:
            with contextlib.suppress(BaseException):
                last.handle(record)


_complained: Final[set[str]] = set()


def _complain(what: str, error: BaseException) -> None:
    """Report that a handler or filter of the application on our loggers fails."""
    of = f"{what}: {name_of(type(error))}"
    if _handler is None or of in _complained or len(_complained) >= COMPLAINTS:
        return
    _complained.add(of)
    record = logging.LogRecord(
        "serve.error", logging.ERROR, "", 0, "%s of the application's logging failed", (what,), exc_info(error)
    )
    record.__dict__.update(about("logging_failed"))
    _handler.write(record)


class LogEntry:
    """The parts of one log record, for both formats."""

    __slots__ = ("at", "detail", "event", "level", "text", "whom")

    def __init__(self, record: logging.LogRecord) -> None:
        self.at = record.created
        self.level = record.levelno
        mistake = record.exc_info and record.name == "serve"
        self.event = str(getattr(record, "event", "internal_error" if mistake else "log"))[:TEXT_LIMIT]
        whom: Mapping[str, Any] = getattr(record, "about", {})
        detail = whom.get("detail", "")
        self.whom = {
            name: shortened(value, TEXT_LIMIT) if type(value) is str else value
            for name, value in whom.items()
            if name != "detail"
        }
        try:
            self.text = shortened(record.getMessage(), TEXT_LIMIT)
        except BaseException:  # an application's object may raise anything when it is rendered
            self.text = (
                shortened(record.msg, TEXT_LIMIT) if type(record.msg) is str else "(a text that cannot be rendered)"
            )
        self.detail = shortened(detail, DETAIL_LIMIT) if type(detail) is str else ""
        if record.exc_info and record.exc_info[1] is not None:
            self.detail = traceback_text(record.exc_info[1])


class _LineHandler(logging.Handler):
    """Writes each record as one write of whole lines, to stderr or a file."""

    def __init__(self, role: str, output: LineOutput, as_json: bool, colour: bool, always: dict[str, object]) -> None:
        super().__init__()
        self.role = role
        self.output = output
        self.always = always
        """Fields of every JSON line of this process."""
        self._as_json = as_json
        self._colour = colour

    def emit(self, record: logging.LogRecord) -> None:
        # Whatever is wrong with a record or the disk: the caller continues.
        with contextlib.suppress(BaseException):
            happening = LogEntry(record)
            line = self._object(happening) if self._as_json else self._line(happening)
            self.output.put((line + "\n").encode(errors="backslashreplace"))

    def write(self, record: logging.LogRecord) -> None:
        """Write the record, bypassing all filters."""
        with self.lock or contextlib.nullcontext():
            self.emit(record)

    def call_oneself(self, role: str, always: dict[str, object]) -> None:
        """Use another name, and other fields of every JSON line."""
        self.role, self.always = role, always

    def _object(self, happening: LogEntry) -> str:
        made: dict[str, object] = {
            "time": utc_time(happening.at),
            "level": logging.getLevelName(happening.level).lower(),
            "event": happening.event,
            "text": happening.text,
            **self.always,
            "pid": os.getpid(),
            **happening.whom,
        }
        if happening.detail:
            made[DETAIL_KEYS.get(happening.event, "exception")] = happening.detail.rstrip()
        return json.dumps(made, default=str, separators=(",", ":"))

    def _line(self, happening: LogEntry) -> str:
        level = happening.level
        word = f"{logging.getLevelName(level).lower()}: " if level >= logging.WARNING else ""
        text = happening.text + (f"\n{happening.detail}" if happening.detail else "")
        return line_for_people(self.role, happening.at, level, word, text, self._colour)


def utc_time(at: float) -> str:
    """A Unix time as RFC 3339 has it, with milliseconds."""
    seconds, fraction = divmod(at, 1)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(fraction * 1000):03d}Z"


def line_for_people(role: str, at: float, level: int, word: str, text: str, colour: bool) -> str:
    """A line of text, without its end: nothing in `text` can forge another. `word`, coloured, precedes it."""
    seconds, fraction = divmod(at, 1)
    start = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{int(fraction * 1000):03d} "
    start += f"{role}[{os.getpid()}]"
    text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.rstrip("\n")).replace("\n", _INDENT)
    if colour:
        start = f"{DIM}{start}{PLAIN}"
        word = f"{COLOURS[min(level, logging.ERROR)]}{word}{PLAIN}" if word and level >= logging.WARNING else word
    return f"{start} {word}{text}"


def as_json(wanted: str, path: str, fd: int) -> bool:
    """Whether `--log-format` means JSON for the file `path`, or for descriptor `fd` if there is none.

    `auto` means text on a terminal.
    """
    if wanted == "auto":
        return bool(path) or not stdio_guard.is_terminal(fd)
    return wanted == "json"


def is_coloured(path: str) -> bool:
    """Whether lines may be coloured: on a capable terminal, unless its user declines (no-color.org)."""
    return (
        not path and stdio_guard.is_terminal(2) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


_handler: _LineHandler | None = None


def is_configured() -> bool:
    """Whether `configure` has been called."""
    return _handler is not None


def current() -> _LineHandler:
    """What writes this process's own lines, once `configure` has been called."""
    assert _handler is not None, "configure() comes first"
    return _handler


def _in_a_child() -> None:
    """A fork may have happened in the middle of a line, which the parent writes."""
    if _handler is not None:
        _handler.output.forget()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_in_a_child)


def configure(config: Config, role: str, **always: object) -> None:
    """Set up the loggers for this process.

    `role` names it in each line for people ("listener", "worker 2.7"); `always` are fields of each JSON line
    (generation, slot). May be called again: the last call counts. Raises UsageError if the log file cannot be opened.
    """
    global _handler
    path = config.log_file
    always = {"role": role.partition(" ")[0], **always}
    # The listener shares the pipe at its stderr with processes that it starts; a worker preserves the order of the
    # server's and the application's output.
    output = LineOutput(LogFile(path) if path else None, stdio_guard.write if role == "listener" else write_all)
    handler = _LineHandler(role, output, as_json(config.log_format, path, 2), is_coloured(path), always)
    for name in ("serve", "serve.error"):
        logger = logging.getLogger(name)
        logger.__class__ = _Logger
    top = logging.getLogger("serve")
    top.handlers = [handler]
    top.propagate = False
    top.setLevel(config.log_level.upper())
    if _handler is not None:
        _handler.output.close()
    _handler = handler


def unconfigure() -> None:
    """Undo `configure`, in a process that goes on without the server; the log file is closed."""
    global _handler
    finish()
    for name in ("serve", "serve.error"):
        logging.getLogger(name).__class__ = logging.Logger
    top = logging.getLogger("serve")
    top.handlers = [each for each in top.handlers if each is not _handler]
    top.propagate = True
    top.setLevel(logging.NOTSET)
    _handler = None


def continue_as(role: str, **always: object) -> None:
    """In a worker that was forked from a template: log to the same place, under its own name (as `configure`).

    The file stays open: the user that the template has changed to may not be allowed to open it.
    """
    if _handler is not None:
        _handler.call_oneself(role, {"role": role.partition(" ")[0], **always})
        _handler.output.inherit()


def let_go() -> None:
    """In a forked child: leave the log file to the parent."""
    if _handler is not None:
        _handler.output.let_go()


def reopen() -> None:
    """USR1: reopen the server's own log file, if there is one."""
    if _handler is not None:
        _handler.output.reopen()


def finish() -> None:
    """Close the log file, if there is one; later lines go to stderr."""
    if _handler is not None and isinstance(_handler.output.file, LogFile):
        file, _handler.output.file = _handler.output.file, None
        file.sink.finish(last_moment())
        file.sink.close()
