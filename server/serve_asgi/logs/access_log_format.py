"""Custom access log formats: a line with gunicorn's atoms, or JSON with a list of fields.

`compile_format` reads the format; `CustomLog` writes it. A format is split at the fields that differ between responses
("moving": client, time, status, size, duration …); the text between them depends only on the request and is cached with
its head. Rule: every value is escaped where its text is rendered; no format lets a request forge a line.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from serve_asgi.config.options import Config
from serve_asgi.logs.access_log import (
    MILLISECONDS,
    NOBODY,
    AccessLog,
    LoggedRequest,
    LoggedResponse,
    LoggedTls,
    TextCache,
    common_time,
    complain,
    escape,
    seconds,
    to_json,
)
from serve_asgi.logs.request_ids import HEADER_NAME, RequestIds, traceparent

if TYPE_CHECKING:
    from serve_asgi.ipc.peer_address import Address

NAMED: Final = ("auto", "common", "combined", "json")
"""Formats with names."""

ATOMS: Final = {
    "h": "client",
    "t": "time",
    "r": "request",
    "m": "method",
    "U": "path",
    "q": "query",
    "H": "protocol",
    "s": "status",
    "B": "size",
    "b": "size",
    "f": "referer",
    "a": "user_agent",
    "L": "seconds",
    "T": "whole_seconds",
    "M": "milliseconds",
    "D": "microseconds",
    "p": "pid",
}
"""gunicorn's letters (docs.gunicorn.org, access_log_format), and the fields' names here."""

_ATOM: Final = re.compile(r"%(?:\(([^)]*)\)s|(%))?")
_HEADER: Final = re.compile(r"\{([^{}]*)\}([a-zA-Z])")

Value = str | int | float | None
"""A field's value, of a JSON type. None is written as null, and as "-" in a line; a float is a duration (s)."""
OfRequest = Callable[[LoggedRequest], Value]
Ask = Callable[[LoggedResponse], str | None]


@dataclasses.dataclass(frozen=True, slots=True)
class LogField:
    """One field of a format: a name of docs/guides/logs.md, or a header of the request ("i") or the response ("o")."""

    name: str
    header: str = ""
    direction: str = ""
    empty_size: str = "0"
    """How a size of 0 is written in a line: `%(b)s` has "-"."""

    @property
    def key(self) -> str:
        """Its key in a JSON object."""
        return {"": self.name, "i": self.header, "o": f"response.{self.header}"}[self.direction]


@dataclasses.dataclass(frozen=True, slots=True)
class CompiledFormat:
    """A parsed format: literal texts and fields, alternating."""

    as_json: bool
    parts: tuple[str | LogField, ...]


def compile_format(text: str) -> CompiledFormat:
    """Parse a format. Raises ValueError, a sentence, if it is invalid."""
    if text.startswith("json:"):
        fields = [_field(name.strip()) for name in re.split(r",(?![^{]*\})", text.removeprefix("json:"))]
        parts: list[str | LogField] = []
        for index, field in enumerate(fields):
            parts += [("," if index else "{") + f"{to_json(field.key)}:", field]
        if len({field.key for field in fields}) < len(fields):
            raise ValueError(f"{text!r} names a field twice")
        return CompiledFormat(True, (*parts, "}\n"))
    if "%(" not in text:
        raise ValueError(
            f"{text!r} is not a format of the access log: write {', '.join(NAMED)}, a line such as '%(h)s %(s)s', or "
            "json:FIELD,FIELD,… (docs/guides/logs.md has the fields)"
        )
    if not text.isprintable():
        raise ValueError("the access log's format holds a character that cannot be printed, such as a line's end")
    return CompiledFormat(False, (*_parts(text), "\n"))


def _parts(text: str) -> list[str | LogField]:
    parts: list[str | LogField] = []
    end = 0
    for found in _ATOM.finditer(text):
        parts.append(text[end : found.start()])
        end = found.end()
        if found[1] is not None:
            literal = "-" if found[1] in ("l", "u") else ""  # identities are never known
            parts.append(literal or _field(found[1]))
        elif found[2]:
            parts.append("%")
        else:
            raise ValueError(
                f"{text[found.start() :][:20]!r} is not a field of the access log: write %(NAME)s, or %% for %"
            )
    return [*parts, text[end:]]


def _field(name: str) -> LogField:
    header = _HEADER.fullmatch(name)
    if header is not None:
        field, direction = header[1].lower(), header[2].lower()
        if direction in ("i", "o") and HEADER_NAME.fullmatch(field):
            return LogField("header", field, direction)
        raise ValueError(
            f"{name!r} is not a field of the access log: {{NAME}}i is a request's header, {{NAME}}o a response's"
        )
    known = ATOMS.get(name, name).replace("-", "_")
    if known not in _CONSTANTS and known not in _OF_REQUEST and known not in _MOVING:
        raise ValueError(
            f"{name!r} is not a field of the access log; there are: "
            + ", ".join(sorted({*_CONSTANTS, *_OF_REQUEST, *_MOVING}))
            + ", {NAME}i and {NAME}o"
        )
    return LogField(known, empty_size="-" if name == "b" else "0")


# Values

_CONSTANTS: Final = frozenset({"generation", "slot", "pid"})


def _text(value: bytes) -> str | None:
    return value.decode("latin-1") if value else None


def _header(name: str) -> OfRequest:
    raw = name.encode()

    def find(request: LoggedRequest) -> Value:
        found = [value for field, value in request.headers if field == raw]
        return _text(b", ".join(found))  # RFC 9110 5.3

    return find


_OF_REQUEST: Final[dict[str, OfRequest]] = {
    "request": lambda request: f"{request.method} {str(request.target, 'latin-1')} HTTP/{request.version}",
    "method": lambda request: request.method,
    "target": lambda request: _text(request.target),
    "path": lambda request: _text(request.target.partition(b"?")[0]),
    "query": lambda request: _text(request.target.partition(b"?")[2]),
    "version": lambda request: request.version,
    "protocol": lambda request: f"HTTP/{request.version}",
    "referer": _header("referer"),
    "user_agent": _header("user-agent"),
    "traceparent": lambda request: traceparent(request.headers) or None,
}

_MOVING: Final = frozenset(
    {
        "client",
        "peer",
        "scheme",
        "tls_version",
        "tls_cipher",
        "tls_resumed",
        "request_id",
        "time",
        "status",
        "size",
        "seconds",
        "whole_seconds",
        "milliseconds",
        "microseconds",
    }
)


class CustomLog(AccessLog):
    """Writes lines in a compiled format.

    For each request a template is cached, with a `%s` for each moving field, whose texts are cached by value.
    """

    __slots__ = ("_as_json", "_asks", "_between", "_ids", "_moments", "_pick", "_since", "_stamp", "_texts", "_write")

    def __init__(self, config: Config, compiled: CompiledFormat, generation: int, slot: int) -> None:
        super().__init__(config)
        self._as_json = compiled.as_json
        self._write: Callable[[Value], str] = to_json if compiled.as_json else _in_line
        self._ids = RequestIds(config)
        self._stamp = ""
        self._since = 0.0
        self._moments = TextCache[int](self._moment)
        """Times of the current second, by millisecond; a line format has only one."""
        constants: dict[str, Value] = {"generation": generation, "slot": slot, "pid": os.getpid()}
        self._between: list[str | OfRequest] = []
        """The parts of a template: texts (in which a moving field is `%s`), and functions of the request."""
        self._texts: list[TextCache[Any]] = []
        """For each moving field, its texts by value."""
        self._asks: list[Ask] = []
        """What is read from the response, besides the values of every line."""
        picked: list[int] = []
        """For each moving field, the index of its value."""
        for part in compiled.parts:
            if isinstance(part, str):
                self._between.append(_literal(part))
            elif part.name in constants:
                self._between.append(_literal(self._write(constants[part.name])))
            elif (of_request := self._of_request(part)) is not None:
                self._between.append(of_request)
            else:
                self._between.append("%s")
                place, texts = self._moving(part)
                picked.append(place)
                self._texts.append(texts)
        self._pick = operator.itemgetter(*picked) if len(picked) > 1 else _few(picked)

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
        try:
            now = time.perf_counter()
            if now >= self._until:
                self._new_second(now)
            (template,) = request.logged or self._describe(request)
            moment = min(int((now - self._since) * 1000), 999) if self._as_json else 0
            given: tuple[Any, ...]
            given = (client[0] if client else None, moment, status, size, int((now - begun) * 1e6))
            if self._asks:
                given += tuple([ask(response) for ask in self._asks])
            self._add(template % tuple(map(operator.getitem, self._texts, self._pick(given))))
        except Exception:
            complain()

    def _describe(self, request: LoggedRequest) -> tuple[str]:
        write = self._write
        template = "".join(
            [part if isinstance(part, str) else _literal(write(part(request))) for part in self._between]
        )
        request.logged = logged = (template,)
        return logged

    def _of_request(self, field: LogField) -> OfRequest | None:
        """How to get the field from the request alone; None if that is not possible."""
        if field.direction == "i":
            return _header(field.header)
        if field.name == "request_id" and not self._ids.generates:
            return lambda request: self._ids.carried(request.headers) or None
        return _OF_REQUEST.get(field.name) if not field.direction else None

    def _moving(self, field: LogField) -> tuple[int, TextCache[Any]]:
        """The index of a moving field's value, and its cached texts."""
        name, write = field.name, self._write
        if name == "client":
            return _CLIENT, TextCache[str | None](write)
        if name == "time":
            return _TIME, self._moments
        if name == "status":
            return _STATUS, TextCache[int](str)
        if name == "size":
            empty = "0" if self._as_json else field.empty_size
            return _SIZE, TextCache[int](lambda size: str(size) if size else empty)
        if name in _UNITS:
            return _DURATION, TextCache[int](_UNITS[name])
        self._asks.append(_ask(field))
        return _DURATION + len(self._asks), TextCache[str | None](write)

    def _moment(self, millisecond: int) -> str:
        return f'{self._stamp}{MILLISECONDS[millisecond]}Z"' if self._as_json else self._stamp

    def _new_second(self, now: float) -> None:
        wall = time.time()
        self._since = now - wall % 1.0
        self._until = self._since + 1.0
        self._stamp = time.strftime('"%Y-%m-%dT%H:%M:%S.', time.gmtime(wall)) if self._as_json else common_time(wall)
        self._moments.clear()


_CLIENT, _TIME, _STATUS, _SIZE, _DURATION = range(5)
"""Indexes of a line's values; those from the response follow."""


def _literal(text: str) -> str:
    """Text, escaped for a template."""
    return text.replace("%", "%%")


def _few(picked: list[int]) -> Callable[[tuple[Any, ...]], Any]:
    """As operator.itemgetter, but always returning a tuple."""
    return lambda given: tuple([given[place] for place in picked])


def _ask(field: LogField) -> Ask:
    if field.direction == "o":
        header = field.header.encode()
        return lambda response: _text(response.response_header(header))
    if field.name == "peer":
        return lambda response: peer[0] if (peer := response.peer()) else None
    if field.name == "scheme":
        return lambda response: response.client_scheme() or None
    if field.name in _OF_TLS:
        of_tls = _OF_TLS[field.name]
        return lambda response: None if (tls := response.tls()) is None else of_tls(tls)
    return lambda response: response.identity() or None


_OF_TLS: Final[dict[str, Callable[[LoggedTls], str]]] = {
    "tls_version": lambda tls: tls.version_name,
    "tls_cipher": lambda tls: tls.cipher_name,
    "tls_resumed": lambda tls: "yes" if tls.resumed else "no",
}


def _in_line(value: Value) -> str:
    return "-" if value is None else escape(str(value))


def _whole_seconds(microseconds: int) -> str:
    return str(microseconds // 1_000_000)


def _milliseconds(microseconds: int) -> str:
    return str(microseconds // 1000)


_UNITS: Final[dict[str, Callable[[int], str]]] = {
    "seconds": seconds,
    "whole_seconds": _whole_seconds,
    "milliseconds": _milliseconds,
    "microseconds": str,
}
