"""What comes of one input, as text that says also its types; and a process that says the same of the pure Python.

Each outcome is a function of plain values, which two processes are asked in the same order: what a process keeps from
one input to the next, as its caches, is part of what is compared.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

from serve_asgi import compiled_core
from serve_asgi.http.h2 import frames, header_encoder, huffman
from serve_asgi.http.h2.header_decoder import HeaderDecoder
from serve_asgi.http.head_parsers import parser_factory
from serve_asgi.http.request_body import RequestBody
from serve_asgi.http.request_head import CHUNKED, make_head
from serve_asgi.http.response_head import encode_headers, encode_hints, encode_trailers
from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.websocket.compression import Deflate
from serve_asgi.websocket.framing import MessageFraming
from tests.fuzzing import h2_inputs
from tests.fuzzing.inputs import SMALL
from tests.http.memory import Behaviour, Host, Outcome, Seen, Then
from tests.http.test_head_parsers import FIELDS

COUNTED: Final = (*range(Cell.CONNECTIONS, Cell.RSS), *range(Cell.REQUESTS, Cell.LAG_TOTAL))
COUNTED_TOO: Final = range(Cell.REFUSED, Cell.STREAM_FIRST_TOTAL)
"""Words of a row, less those that count time."""
HELD: Final = 1 << 30
Messages = list[dict[str, Any]]


class View(bytes):
    """Stands for a memoryview, which cannot be sent to another process."""


class Text(bytes):
    """No `bytes` to whoever compares types."""


def revived(value: Any) -> Any:
    """The value with memoryviews, and with an iterator for each set."""
    if type(value) is View:
        return memoryview(bytes(value))
    if isinstance(value, dict):
        return {name: revived(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(revived(each) for each in value)
    return value


def attempt(function: Callable[..., Any], *given: Any) -> Any:
    """What it returns, or what is said of what it raises: Python's own words for a wrong type differ by compiler."""
    try:
        return function(*given)
    except Exception as error:
        said = None if isinstance(error, TypeError | AttributeError) else str(error)
        more = [getattr(error, name, None) for name in ("status", "reason", "code")]
        return type(error).__name__, said, *more


class ScriptedHost(Host):
    """Its application may also send what it is told to."""

    def __init__(self, http: str, **config: Any) -> None:
        super().__init__(http, **config)
        self.worker.default_headers = b"date: today\r\nserver: one\r\n"
        self.script: Messages | None = None
        self.reads = True
        self.sent: list[Any] = []
        """What came of each message."""

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.script is None or scope["type"] != "http":
            await super()._call(scope, receive, send)
            return
        seen = Seen(scope["method"], scope["raw_path"], scope["query_string"], scope["http_version"], scope["headers"])
        self.application.seen.append(seen)
        while self.reads and seen.end == "running":
            message = await receive()
            seen.content += message.get("body", b"")
            if not message.get("more_body", False):
                seen.end = "whole" if message["type"] == "http.request" else "lost"
        for message in self.script:
            try:
                self.sent.append(await send(revived(message)))
            except Exception as error:
                self.sent.append(attempt(self._again, error))

    @staticmethod
    def _again(error: Exception) -> None:
        raise error

    def counts(self) -> list[int]:
        """Of the row, and how many requests were timed."""
        cells = self.worker.cells
        return [*(cells[word] for word in (*COUNTED, *COUNTED_TOO)), sum(self.worker.durations)]


_hosts: dict[tuple[str, bool], ScriptedHost] = {}


def connection(
    http: str, small: bool, pieces: list[bytes], behaviour: Behaviour, then: Then, travels: bool
) -> tuple[Outcome, list[Any], list[int]]:
    """A client connection, with an application of this behaviour."""
    return talk(http, small, pieces, behaviour, then, travels)


def response(http: str, pieces: list[bytes], then: Then, reads: bool, script: Messages) -> Any:
    """A client connection, with an application that sends these messages for each request."""
    return talk(http, False, pieces, Behaviour.READS, then, False, script, reads)


def talk(
    http: str,
    small: bool,
    pieces: list[bytes],
    behaviour: Behaviour,
    then: Then,
    travels: bool,
    script: Messages | None = None,
    reads: bool = True,
) -> tuple[Outcome, list[Any], list[int]]:
    host = _hosts.get((http, small))
    if host is None:
        host = _hosts[http, small] = ScriptedHost(http, **(SMALL if small else {}))
    host.script, host.reads, host.sent = script, reads, []
    try:
        return host.talk(pieces, behaviour, then, travels), host.sent, host.counts()
    except BaseException:
        del _hosts[http, small]  # it may still hold what is left of this connection
        raise


def heads(http: str, data: list[bytes]) -> list[Any]:
    """Request heads, read by one parser."""
    parser = parser_factory(http)()
    found = [attempt(parser.parse_head, each) for each in data]
    return [head if isinstance(head, tuple) else [getattr(head, name) for name in FIELDS] for head in found]


def encoded(headers: Any, bodiless: bool) -> list[Any]:
    """An application's headers, as those of a response, as its trailers, and its hints."""
    values = [value for _, value in headers] if isinstance(headers, list) else []
    return [
        attempt(encode_headers, revived(headers), bodiless),
        attempt(encode_trailers, revived(headers)),
        attempt(encode_hints, revived(values)),
    ]


def body(length: int, max_size: int, pieces: list[bytes], takes: int) -> list[Any]:
    """A request's body (`length`: or CHUNKED), of which the application takes what has come behind some pieces."""
    framing = b"chunked" if length == CHUNKED else b"%d" % length
    name = b"transfer-encoding" if length == CHUNKED else b"content-length"
    reader = RequestBody(make_head("POST", b"/", "1.1", [(b"host", b"a"), (name, framing)]), max_size, 100)
    found: list[Any] = []
    for number, piece in enumerate(pieces):
        found.append(attempt(reader.feed, piece))
        if takes >> number & 1:
            found.append(reader.take())
        found.append((reader.left, reader.whole, reader.arrived, reader.unread, reader.discardable()))
        if found[-2] is not None:
            break
    return found


def websocket(pieces: list[bytes], room: int, asked: bool, compressed: bool, sends: list[Any]) -> list[Any]:
    """The framing of a WebSocket; it sends something behind each piece."""
    framing = MessageFraming(Deflate(12, 12, True, True) if compressed else None, 400)
    found: list[Any] = []
    for number, piece in enumerate(pieces):
        single = attempt(framing.single, piece)
        found.append(single)
        if single is None:
            found.append(attempt(framing.receive, piece, room, asked))
        for _ in range(100):
            if not framing.behind:
                break
            found.append(attempt(framing.receive, b"", room, True))
        found += [framing.output, framing.behind, framing.room]
        message = sends[number % len(sends)] if sends else None
        if isinstance(message, tuple):
            found.append(attempt(framing.close, *message))
        elif message is not None:
            found.append(attempt(framing.text if isinstance(message, str) else framing.binary, message))
    return found


def decoded(blocks: list[bytes]) -> list[Any]:
    """HPACK blocks of one connection; and each as a Huffman-coded string."""
    decoder = HeaderDecoder()
    found = [(attempt(decoder.decode, block), decoder.entries, decoder.changes, decoder.largest) for block in blocks]
    return [found, [(attempt(huffman.decode, block), huffman.encode(block)) for block in blocks]]


def written(blocks: list[tuple[int | None, list[tuple[bytes, bytes]]]]) -> list[Any]:
    """Header blocks of one connection; before some the client limits the table."""
    header_encoder._known.clear()
    encoder = header_encoder.HeaderEncoder()
    found: list[Any] = []
    for limit, fields in blocks:
        if limit is not None:
            encoder.limit_table(limit)
        found += [attempt(encoder.encode, fields) for _ in range(3)]
        found.append((encoder.entries, encoder.sizes))
    return found


def taken_apart(pieces: list[bytes], max_size: int) -> list[Any]:
    """HTTP/2 frames, as they come."""
    reader = frames.FrameReader(max_size)
    return [(attempt(list, reader.frames(piece)), reader.rest) for piece in pieces]


def core(sent: bytes, piece: int, ways: bytes, moving: bool) -> list[Any]:
    """HTTP/2 without sockets: where nobody answers, and where an application does this and that."""
    return [attempt(h2_inputs.outcome, sent, piece), attempt(h2_inputs.answered, sent, ways, moving)]


def shown(function: Callable[..., Any], given: tuple[Any, ...]) -> str:
    """The outcome as text, in which `True` is not 1, nor a bytearray what it holds."""
    return repr(attempt(function, *given))


class PureCore:
    """A process of the same interpreter that has imported the pure Python modules alone."""

    def __init__(self) -> None:
        paths = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "SERVE_ASGI_PURE_PYTHON": "1", "PYTHONPATH": paths}
        command = [sys.executable, "-c", "from tests.core_outcomes import answer; answer()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def ask(self, function: Callable[..., Any], given: tuple[Any, ...]) -> None:
        """For an outcome, which `answer` then gives."""
        assert self._process.stdin is not None
        pickle.dump((function, given), self._process.stdin)
        self._process.stdin.flush()

    def answer(self) -> str:
        """To the last question. Raises EOFError if the process has ended."""
        assert self._process.stdout is not None
        return str(pickle.load(self._process.stdout))

    def close(self) -> None:
        """End it."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()


def answer() -> None:
    """What that process does."""
    logging.disable()  # applications that raise are part of it
    huffman.fill_table()
    while True:
        try:
            function, given = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(shown(function, given), sys.stdout.buffer)
        sys.stdout.buffer.flush()


def loaded_modules() -> int:
    """How many of the modules that ran are compiled."""
    return compiled_core.loaded_modules()
