"""The access log: one line per answered request, collected and written together.

A line is put together from texts that have been made before: what a request says of itself is kept with its head (which
equal requests share), and so are clients, statuses, sizes and durations that come again; the time is told once per
second. So all escaping, without which a request could write lines of its own, is done where such a text is made, and
costs a repeated request nothing. Rules: nothing raises into the caller; a full disk or a closed pipe costs lines, never
a request. It knows nothing of protocols.
"""

from __future__ import annotations

import abc
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from server.config import Config
from server.logs import LogFile
from server.output import FINISH_TIME, original

if TYPE_CHECKING:
    from server.address import Address

FLUSH_AT: Final = 32768  # characters held until a write, if the ticker does not come before
KEPT: Final = 2048  # texts kept of each kind
TELL_EVERY: Final = 60.0  # seconds between two warnings that lines are lost
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_MILLISECONDS: Final = tuple(f"{number:03d}" for number in range(1000))
_json: Final = json.JSONEncoder().encode

T = TypeVar("T")


class Request(Protocol):
    """The request as the access log sees it."""

    @property
    def method(self) -> str:
        """As sent."""

    @property
    def target(self) -> bytes:
        """As sent."""

    @property
    def version(self) -> str:
        """Of HTTP: "1.0" or "1.1"."""

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Names in lower case."""

    logged: tuple[str, str] | None
    """The access log's own note of what it writes of this request; None at first."""


class NoRequest:
    """What has been refused before it was a request."""

    method = "-"
    target = b"-"
    version = "1.1"
    headers: Sequence[tuple[bytes, bytes]] = ()
    logged: tuple[str, str] | None = None


class _Texts(dict[T, str]):
    """Texts by what they say, made when they are first asked for."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[T], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: T) -> str:
        if len(self) >= KEPT:
            self.clear()
        self[key] = text = self._make(key)
        return text


class AccessLog(abc.ABC):
    """Collects lines.

    `record` writes nothing by itself until much has come together; `flush` writes: once per tick and at the end. One
    object per worker; not for several threads.
    """

    __slots__ = (
        "_clients",
        "_durations",
        "_file",
        "_held",
        "_lines",
        "_sink",
        "_sizes",
        "_stamp",
        "_statuses",
        "_tell_at",
        "_told",
        "_until",
    )

    def __init__(self, config: Config) -> None:
        """Open the log that `config` names. Raises UsageError if its file cannot be opened."""
        self._file = LogFile(config.access_log_file) if config.access_log_file else None
        self._sink = self._file.sink if self._file is not None else original(1)
        self._lines: list[str] = []
        self._held = 0
        self._until = 0.0
        """CLOCK_MONOTONIC (time.perf_counter(), s) at which `_stamp` is over."""
        self._stamp = ""
        self._told = 0
        """Of the bytes that the sink has dropped: how many the server's own log has told of."""
        self._tell_at = 0.0
        """CLOCK_MONOTONIC (s) before which it does not tell of more."""

    @abc.abstractmethod
    def record(self, client: Address, request: Request, status: int, size: int, begun: float) -> None:
        """Note one answer: `size` in bytes of body, `begun` the time.perf_counter() when it was asked for."""

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self._held += len(line)
        if self._held >= FLUSH_AT:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected; what nobody takes now is kept, within bounds, for the next time."""
        if self._lines:
            data = "".join(self._lines).encode(errors="backslashreplace")
            self._lines.clear()
            self._held = 0
            self._sink.write(data)
        elif self._sink.waiting:
            self._sink.pump()
        if self._sink.dropped > self._told and time.monotonic() >= self._tell_at:
            self._tell_of_loss()

    def _tell_of_loss(self) -> None:
        logging.getLogger("serve").warning(
            "nobody takes the access log (a pipe that is not read, or a full disk): %d bytes are lost",
            self._sink.dropped - self._told,
        )
        self._told = self._sink.dropped
        self._tell_at = time.monotonic() + TELL_EVERY

    def reopen(self) -> None:
        """USR1: write what is pending to the old file, then go on in a new one of the same name."""
        self.flush()
        if self._file is not None:
            self._file.reopen()
            self._sink = self._file.sink
            self._told = self._sink.dropped

    def close(self) -> None:
        """Write everything, within a bounded time, and close."""
        self.flush()
        self._sink.finish(time.monotonic() + FINISH_TIME)
        if self._sink.dropped > self._told:
            self._tell_of_loss()
        self._sink.close()


class CommonLog(AccessLog):
    """The NCSA common log format, and the duration in seconds as a last field."""

    __slots__ = ()

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._clients = _Texts[str](escape)
        self._statuses = _Texts[int](lambda status: f'" {status} ')  # with the quote that ends the request
        self._sizes = _Texts[int](lambda size: f"{size or '-'} ")
        self._durations = _Texts[int](lambda microseconds: _seconds(microseconds) + "\n")

    def record(self, client: Address, request: Request, status: int, size: int, begun: float) -> None:
        """See AccessLog."""
        try:
            now = time.perf_counter()
            if now >= self._until:
                self._new_second(now)
            before, after = request.logged or self._describe(request)
            line = (
                f"{self._clients[client[0]] if client else '-'}{self._stamp}{before}{self._statuses[status]}"
                f"{self._sizes[size]}{after}{self._durations[int((now - begun) * 1e6)]}"
            )
            # What `_add` does, without the call.
            self._lines.append(line)
            self._held += len(line)
            if self._held >= FLUSH_AT:
                self.flush()
        except Exception:
            _complain()

    def _describe(self, request: Request) -> tuple[str, str]:
        """What stands before status and size, and behind them."""
        said = f"{request.method} {str(request.target, 'latin-1')} HTTP/{request.version}"
        if not said.isascii() or not said.isprintable() or '"' in said or "\\" in said:
            said = escape(said)
        request.logged = logged = said, self._further(request)
        return logged

    def _further(self, request: Request) -> str:
        return ""

    def _new_second(self, now: float) -> None:
        wall = time.time()
        self._until = now + 1.0 - wall % 1.0
        local = time.localtime(wall)
        zone = time.strftime("%z", local)
        moment = f"{local.tm_mday:02d}/{MONTHS[local.tm_mon - 1]}/{time.strftime('%Y:%H:%M:%S', local)} {zone}"
        self._stamp = f' - - [{moment}] "'


class CombinedLog(CommonLog):
    """Apache's combined format: the common one with Referer and User-Agent; the duration comes last."""

    __slots__ = ()

    def _further(self, request: Request) -> str:
        referer, agent = _two_headers(request.headers)
        return f'"{escape(referer) or "-"}" "{escape(agent) or "-"}" '


class JsonLog(AccessLog):
    """One JSON object per line, with the time in UTC (RFC 3339)."""

    __slots__ = ("_pid", "_since")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._since = 0.0
        self._pid = f'"pid":{os.getpid()}}}\n'
        self._clients = _Texts[str](_json)
        self._statuses = _Texts[int](lambda status: f'"status":{status},')
        self._sizes = _Texts[int](lambda size: f'"size":{size},')
        self._durations = _Texts[int](lambda microseconds: f'"seconds":{_seconds(microseconds)},')

    def record(self, client: Address, request: Request, status: int, size: int, begun: float) -> None:
        """See AccessLog."""
        try:
            now = time.perf_counter()
            if now >= self._until:
                self._new_second(now)
            before, after = request.logged or self._describe(request)
            milliseconds = _MILLISECONDS[min(int((now - self._since) * 1000), 999)]
            self._add(
                f'{self._stamp}{milliseconds}Z","client":{self._clients[client[0]] if client else "null"}{before}'
                f"{self._statuses[status]}{self._sizes[size]}{self._durations[int((now - begun) * 1e6)]}{after}"
            )
        except Exception:
            _complain()

    def _describe(self, request: Request) -> tuple[str, str]:
        target = _json(str(request.target, "latin-1"))
        referer, agent = _two_headers(request.headers)
        request.logged = logged = (
            f',"method":{_json(request.method)},"target":{target},"version":{_json(request.version)},',
            f'"referer":{_json(referer or None)},"user_agent":{_json(agent or None)},{self._pid}',
        )
        return logged

    def _new_second(self, now: float) -> None:
        wall = time.time()
        self._since = now - wall % 1.0
        self._until = self._since + 1.0
        self._stamp = time.strftime('{"time":"%Y-%m-%dT%H:%M:%S.', time.gmtime(wall))


def _complain() -> None:
    logging.getLogger("serve").exception("a line of the access log could not be written")


def _seconds(microseconds: int) -> str:
    """With six digits behind the point."""
    if microseconds < 1_000_000:
        return "0." + str(1_000_000 + microseconds)[1:]
    return f"{microseconds / 1e6:.6f}"


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


FORMATS: Final[dict[str, type[AccessLog]]] = {"common": CommonLog, "combined": CombinedLog, "json": JsonLog}


def open_access_log(config: Config) -> AccessLog | None:
    """The access log that `config` asks for, or None. Raises UsageError if its file cannot be opened."""
    return FORMATS[config.access_log_format](config) if config.access_log else None
