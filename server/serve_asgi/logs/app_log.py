"""The application's own log: what it logs through `logging` in a worker or the agent, as lines beside the server's.

It owns what `--app-log` asks for. Rules: an application that configures `logging` keeps its loggers, levels, filters
and handlers; with `auto` only what no handler of its own would take is written here (`logging.lastResort`), otherwise
also what it would print by a plain StreamHandler. A line has at most `LINE_LIMIT` bytes. Nothing raises into the
application, whatever it logs, and nothing waits for a reader (`serve_asgi.logs.log_file`). It must not know requests: a
line names the one that `RequestNaming` has put into its context.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Final

from serve_asgi.config.options import APP_LOG_WORDS, Config
from serve_asgi.logs import server_log
from serve_asgi.logs.exceptions import shortened
from serve_asgi.logs.log_file import LineOutput, LogFile, write_all
from serve_asgi.logs.request_ids import RequestIds, named, traceparent
from serve_asgi.logs.tracebacks import traceback_text

AUTO: Final = "auto"
OFF: Final = "off"
LINE_LIMIT: Final = 16 * 1024
"""Bytes of a line, with its end: what container runtimes take as one (Docker and CRI-O split longer ones)."""
NAME_LIMIT: Final = 200
"""Characters of a logger's name, and of the name of a field that the application adds."""
MOST_FIELDS: Final = 50
"""Fields of one record that the application adds."""

_STANDARD: Final = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}
"""The attributes that every record has; the others come from `extra`."""
_MARK: Final = "_serve_written"
"""Set on a record that has been written: several of its loggers may have a handler of ours."""
_UNWRITABLE: Final = "(a value that cannot be rendered)"

_handler: AppLogHandler | None = None


class RequestNames:
    """The request that a context serves, as far as log lines name it."""

    __slots__ = ("_headers", "_ids", "_named")

    def __init__(self, headers: list[tuple[bytes, bytes]], ids: RequestIds) -> None:
        self._headers = headers
        self._ids = ids
        self._named: tuple[str, str] | None = None

    def names(self) -> tuple[str, str]:
        """Its id and its traceparent, each "" if it has none; looked up with the first line."""
        if self._named is None:
            self._named = self._ids.carried(self._headers), traceparent(self._headers)
            self._headers = []
        return self._named


_request: Final[contextvars.ContextVar[RequestNames | None]] = contextvars.ContextVar("serve_request", default=None)


class RequestNaming:
    """The application behind this notes in its context which request it serves. Costs nothing where it is not used."""

    __slots__ = ("_app", "_ids")

    def __init__(self, app: Callable[..., Awaitable[None]], config: Config) -> None:
        self._app = app
        self._ids = RequestIds(config)

    def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> Awaitable[None]:
        """Call the application, as ASGI has it."""
        _request.set(RequestNames(scope["headers"], self._ids))
        return self._app(scope, receive, send)


def names_requests(config: Config) -> bool:
    """Whether lines of the application's log are to name the request."""
    return config.app_log not in (AUTO, OFF)


class AppLogHandler(logging.Handler):
    """Writes a record as one line, of JSON or for people."""

    def __init__(self, output: LineOutput | None, as_json: bool, colour: bool) -> None:
        """`output`: where to, if not where the server's own log goes."""
        super().__init__()
        self.output = output
        self._as_json = as_json
        self._colour = colour

    def emit(self, record: logging.LogRecord) -> None:
        # Whatever is wrong with a record or the disk: the caller continues.
        with contextlib.suppress(BaseException):
            if _MARK in record.__dict__:
                return
            record.__dict__[_MARK] = True
            line = self._object(record) if self._as_json else self._line(record)
            output = self.output if self.output is not None else server_log.current().output
            output.put(line)

    def twin(self, other: logging.Handler) -> AppLogHandler:
        """One that takes the place of `other`: it writes what that would have written."""
        twin = AppLogHandler(self.output, self._as_json, self._colour)
        twin.setLevel(other.level)
        twin.filters = list(other.filters)
        return twin

    def _object(self, record: logging.LogRecord) -> bytes:
        request_id, trace = _names_of_request()
        made: dict[str, Any] = {
            "time": server_log.utc_time(record.created),
            "level": shortened(str(record.levelname), NAME_LIMIT).lower(),
            "event": "application_logged",
            "logger": shortened(str(record.name), NAME_LIMIT),
            "text": _text_of(record),
            **server_log.current().always,
            "pid": os.getpid(),
        }
        if request_id:
            made["request_id"] = request_id
        if trace:
            made["traceparent"] = trace
        if extra := dict(_fields_of(record)):
            made["extra"] = extra
        if detail := _traceback_of(record):
            made["exception"] = detail
        if record.stack_info:
            made["stack"] = shortened(str(record.stack_info), LINE_LIMIT)
        data = _json(made)
        if len(data) <= LINE_LIMIT:
            return data
        made["cut"] = True
        if "extra" in made:
            made["extra"] = json.dumps(made["extra"], separators=(",", ":"))
        whole = {name: made[name] for name in ("text", "extra", "exception", "stack") if name in made}
        limits = {name: len(text) for name, text in whole.items()}
        while len(data := _json(made)) > LINE_LIMIT:
            longest = max(whole, key=lambda name: len(json.dumps(made[name])))
            limits[longest] //= 2
            made[longest] = shortened(whole[longest], limits[longest])
        return data

    def _line(self, record: logging.LogRecord) -> bytes:
        level, own = record.levelno, server_log.current()
        word = f"{shortened(str(record.levelname), NAME_LIMIT).lower()}: " if level >= logging.WARNING else ""
        text = f"{shortened(str(record.name), NAME_LIMIT)}: {_text_of(record)}{named(*_names_of_request())}"
        for more in (_traceback_of(record), record.stack_info):
            if more:
                text += f"\n{shortened(str(more), LINE_LIMIT)}"
        limit = len(text)
        while True:
            line = server_log.line_for_people(
                own.role, record.created, level, word, shortened(text, limit), self._colour
            )
            if len(data := (line + "\n").encode(errors="backslashreplace")) <= LINE_LIMIT:
                return data
            limit = min(limit // 2, LINE_LIMIT) if limit > 2 * LINE_LIMIT else limit * 3 // 4


def _names_of_request() -> tuple[str, str]:
    request = _request.get()
    return ("", "") if request is None else request.names()


def _text_of(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except BaseException:  # an application's object may raise anything when it is rendered
        text = record.msg if type(record.msg) is str else "(a text that cannot be rendered)"
    return shortened(str.__str__(text), LINE_LIMIT)


def _traceback_of(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if type(record.exc_info) is tuple else None
    return traceback_text(error).rstrip() if error is not None else ""


def _fields_of(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    """What the application has added to the record (`extra`), as JSON-compatible values."""
    left = MOST_FIELDS
    for name, value in list(record.__dict__.items()):
        if name in _STANDARD or name == _MARK or type(name) is not str:
            continue
        if not left:
            return
        left -= 1
        yield shortened(name, NAME_LIMIT), _plain(value)


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int):
        return value
    try:
        if type(value) is str:
            return shortened(value, LINE_LIMIT)
        text = json.dumps(value, default=str, allow_nan=False)
        return json.loads(text) if len(text) <= LINE_LIMIT else shortened(text, LINE_LIMIT)
    except BaseException:  # a cycle, NaN, an object that cannot be rendered
        with contextlib.suppress(BaseException):
            return shortened(str.__str__(str(value)), LINE_LIMIT)
        return _UNWRITABLE


def _json(made: dict[str, Any]) -> bytes:
    return (json.dumps(made, default=str, separators=(",", ":")) + "\n").encode(errors="backslashreplace")


def begin(config: Config) -> None:
    """Take what the application logs, as `--app-log` says: after `server_log.configure`, before it is imported.

    Raises UsageError if the file cannot be opened.
    """
    global _handler
    wanted = config.app_log
    if wanted == OFF:
        return
    if wanted in APP_LOG_WORDS:
        style = config.log_format if wanted == AUTO else wanted
        as_json = server_log.as_json(style, config.log_file, 2)
        _handler = AppLogHandler(None, as_json, server_log.is_coloured(config.log_file))
    else:
        output = LineOutput(LogFile(wanted), write_all)
        _handler = AppLogHandler(output, server_log.as_json(config.log_format, wanted, 2), colour=False)
    if wanted == AUTO:
        _handler.setLevel(logging.WARNING)
        logging.lastResort = _handler
        return
    top = logging.getLogger()
    top.addHandler(_handler)
    top.setLevel(config.log_level.upper())


def replace_console_handlers(config: Config) -> None:
    """Write what the application's plain StreamHandlers would print: after its import, and after its startup.

    They keep their levels and filters. Its other handlers, subclasses too, stay as they are.
    """
    if _handler is None or config.app_log == AUTO:
        return
    with contextlib.suppress(BaseException):  # the application may have put anything into its loggers
        loggers = [logging.getLogger(), *list(logging.Logger.manager.loggerDict.values())]
        for logger in loggers:
            if not isinstance(logger, logging.Logger) or logger.name in ("serve", "serve.error"):
                continue
            logger.handlers[:] = [_handler.twin(each) if _prints(each) else each for each in logger.handlers]


def _prints(handler: logging.Handler) -> bool:
    """Whether it prints to stdout or stderr."""
    return type(handler) is logging.StreamHandler and handler.stream in (
        *(sys.stdout, sys.stderr),
        *(sys.__stdout__, sys.__stderr__),
    )


def inherit() -> None:
    """In a worker that was forked from a template: use its open file; its unwritten lines remain its own."""
    if (output := _own_output()) is not None:
        output.inherit()


def let_go() -> None:
    """In a forked child: leave the file to the parent."""
    if (output := _own_output()) is not None:
        output.let_go()


def reopen() -> None:
    """USR1: reopen the application's log file, if there is one."""
    if (output := _own_output()) is not None:
        output.reopen()


def _own_output() -> LineOutput | None:
    return None if _handler is None else _handler.output


def _in_a_child() -> None:
    if (output := _own_output()) is not None:
        output.forget()


os.register_at_fork(after_in_child=_in_a_child)
