"""The access log, whose lines are collected and written together, and the cached texts that lines are built from.

Rules: nothing raises into the caller; a full disk or a closed pipe costs lines, never a request. The formats are in
`serve_asgi.logs.access_log_standard` (the usual ones, which are cheapest) and `serve_asgi.logs.access_log_format`
(custom ones).
"""

from __future__ import annotations

import abc
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from serve_asgi.config.options import Config
from serve_asgi.logs.log_file import LogFile
from serve_asgi.logs.nonblocking_sink import last_moment
from serve_asgi.logs.server_log import about
from serve_asgi.logs.stdio_guard import original

if TYPE_CHECKING:
    from serve_asgi.ipc.peer_address import Address

FLUSH_AT: Final = 32768  # characters that trigger a write, unless the housekeeping writes before
KEPT: Final = 2048  # cached texts of each kind
TELL_EVERY: Final = 60.0  # seconds between two warnings about lost lines
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

MILLISECONDS: Final = tuple(f"{number:03d}" for number in range(1000))
to_json: Final = json.JSONEncoder().encode

T = TypeVar("T")


class LoggedRequest(Protocol):
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

    logged: tuple[str, ...] | None
    """The access log's cached text for this request; None at first."""


class RefusedRequest:
    """A request that was refused before it could be parsed."""

    method = "-"
    target = b"-"
    version = "1.1"
    headers: Sequence[tuple[bytes, bytes]] = ()
    logged: tuple[str, ...] | None = None


class LoggedTls(Protocol):
    """What was negotiated for a TLS connection."""

    @property
    def cipher_name(self) -> str:
        """As OpenSSL writes it."""

    @property
    def resumed(self) -> bool:
        """Whether a session of before was resumed."""

    @property
    def version_name(self) -> str:
        """TLSv1.3."""


class LoggedResponse(Protocol):
    """What only some formats need, besides the request (which equal requests share)."""

    def peer(self) -> Address:
        """The connected peer: the client, or a proxy in front of it."""

    def client_scheme(self) -> str:
        """The client's scheme: http, https, ws or wss."""

    def tls(self) -> LoggedTls | None:
        """Of the connection; None if it is not this server that speaks TLS."""

    def identity(self) -> str:
        """The request's id, "" if it has none."""

    def response_header(self, name: bytes) -> bytes:
        """The value of a header that the application has set, or b""."""


class ServerResponse:
    """A response of the server itself, without the application."""

    __slots__ = ("_peer", "_scheme", "_tls")

    def __init__(self, peer: Address, scheme: str, tls: LoggedTls | None = None) -> None:
        self._peer = peer
        self._scheme = scheme
        self._tls = tls

    def peer(self) -> Address:
        """See LoggedResponse."""
        return self._peer

    def client_scheme(self) -> str:
        """See LoggedResponse."""
        return self._scheme

    def tls(self) -> LoggedTls | None:
        """See LoggedResponse."""
        return self._tls

    def identity(self) -> str:
        """See LoggedResponse."""
        return ""

    def response_header(self, name: bytes) -> bytes:
        """See LoggedResponse."""
        return b""


NOBODY: Final = ServerResponse(None, "")


class TextCache(dict[T, str]):
    """Rendered texts by value, created when they are first needed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[T], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: T) -> str:
        if len(self) >= KEPT:
            self.clear()
        self[key] = text = self._make(key)
        return text


class RequestLog(Protocol):
    """What is told of each request: an access log, or what counts them (`serve_asgi.logs.statsd`)."""

    def record(
        self,
        client: Address,
        request: LoggedRequest,
        status: int,
        size: int,
        begun: float,
        response: LoggedResponse = NOBODY,
    ) -> None:
        """See AccessLog."""

    def flush(self) -> None:
        """Once per tick, and at the end."""

    def reopen(self) -> None:
        """Open log files again."""

    def close(self) -> None:
        """Write everything, within a bounded time, and close."""


class AccessLog(abc.ABC):
    """Collects lines.

    `record` does not write until there is much to write; `flush` writes: once per tick and at the end. One object per
    worker; not thread-safe.
    """

    __slots__ = (
        "_file",
        "_flush_at",
        "_held",
        "_lines",
        "_sink",
        "_tell_at",
        "_told",
        "_until",
    )

    def __init__(self, config: Config) -> None:
        """Open the log that `config` names. Raises UsageError if its file cannot be opened."""
        self._file = LogFile(config.access_log_file) if config.access_log_file else None
        self._sink = self._file.sink if self._file is not None else original(1)
        self._flush_at = 1 if self._file is None and os.isatty(1) else FLUSH_AT
        """Characters that are written at once; any, where somebody is looking."""
        self._lines: list[str] = []
        self._held = 0
        self._until = 0.0
        """CLOCK_MONOTONIC (time.perf_counter(), s) up to which the cached time is valid."""
        self._told = 0
        """How many of the bytes dropped by the sink have been reported in the server's own log."""
        self._tell_at = 0.0
        """CLOCK_MONOTONIC (s) of the next report, at the earliest."""

    @abc.abstractmethod
    def record(
        self,
        client: Address,
        request: LoggedRequest,
        status: int,
        size: int,
        begun: float,
        response: LoggedResponse = NOBODY,
    ) -> None:
        """Record one response: `size` in bytes of body, `begun` the time.perf_counter() at which its request
        arrived."""

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self._held += len(line)
        if self._held >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """Write the collected lines; what cannot be written now is kept, within bounds, for the next time."""
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
        lost = self._sink.dropped - self._told
        logging.getLogger("serve").warning(
            "the access log cannot be written (nobody reads the pipe, or the disk is full): %d bytes are lost",
            lost,
            extra=about("access_log_lost", bytes=lost),
        )
        self._told = self._sink.dropped
        self._tell_at = time.monotonic() + TELL_EVERY

    def reopen(self) -> None:
        """USR1: write what is pending to the old file, then continue in a new one of the same name."""
        self.flush()
        if self._file is not None:
            self._file.reopen()
            self._sink = self._file.sink
            self._told = self._sink.dropped

    def close(self) -> None:
        """Write everything, within a bounded time, and close."""
        self.flush()
        self._sink.finish(last_moment())
        if self._sink.dropped > self._told:
            self._tell_of_loss()
        self._sink.close()


def complain() -> None:
    """Report that a line could not be rendered; its request has been served."""
    logging.getLogger("serve").exception("a line of the access log could not be written", extra=about("internal_error"))


def common_time(wall: float) -> str:
    """Local time in the common log format: [22/Nov/2026:10:43:10 +0000]."""
    local = time.localtime(wall)
    zone = time.strftime("%z", local)
    return f"[{local.tm_mday:02d}/{MONTHS[local.tm_mon - 1]}/{time.strftime('%Y:%H:%M:%S', local)} {zone}]"


def seconds(microseconds: int) -> str:
    """Seconds with six decimal places."""
    if microseconds < 1_000_000:
        return "0." + str(1_000_000 + microseconds)[1:]
    return f"{microseconds / 1e6:.6f}"


def escape(text: str) -> str:
    """`text` with quotes, backslashes and everything but printable ASCII escaped."""
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
