"""What comes of one input, as text that says types as well; and a process that says it of the pure Python.

Each outcome is a function of plain values. Two processes are asked for the same ones in the same order: what a process
keeps from one input to the next, as its caches, is part of what is compared.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

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
from tests.fuzzing.inputs import SMALL
from tests.http.memory import Behaviour, Host, Seen, Then
from tests.http.test_head_parsers import verdict

Function = Callable[..., Any]
COUNTED: Final = (
    *range(Cell.CONNECTIONS, Cell.RSS),
    *range(Cell.REQUESTS, Cell.LAG_TOTAL),
    *range(Cell.REFUSED, Cell.STREAM_FIRST_TOTAL),
)
"""Words of a row, less those that say times."""


class View(bytes):
    """Stands for a memoryview, which no process can send to another."""


class Text(bytes):
    """No `bytes` to whoever compares types."""


def revived(value: Any) -> Any:
    """The value with its memoryviews."""
    if type(value) is View:
        return memoryview(bytes(value))
    if isinstance(value, dict):
        return {name: revived(each) for name, each in value.items()}
    return type(value)(map(revived, value)) if isinstance(value, (list, tuple)) else value


def said(error: Exception) -> tuple[Any, ...]:
    """What is compared of it: in Python's own words for a wrong type, compilers differ."""
    words = None if isinstance(error, (TypeError, AttributeError)) else str(error)
    return type(error).__name__, words, *(getattr(error, name, None) for name in ("status", "reason", "code"))


def attempt(function: Function, *given: Any) -> Any:
    """What it returns, or what it raises."""
    try:
        return function(*given)
    except Exception as error:
        return said(error)


class ScriptedHost(Host):
    """Its application sends what it is told to, if that is anything."""

    script: list[dict[str, Any]] | None = None
    reads = True

    def __init__(self, http: str, **config: Any) -> None:
        super().__init__(http, **config)
        self.worker.default_headers = b"date: today\r\nserver: one\r\n"
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
                await send(revived(message))
                self.sent.append(None)
            except Exception as error:
                self.sent.append(said(error))

    def counts(self) -> list[int]:
        """Of the row, and how many requests were timed."""
        return [*(self.worker.cells[word] for word in COUNTED), sum(self.worker.durations)]


_hosts: dict[tuple[str, bool], ScriptedHost] = {}


def talk(
    http: str, small: bool, pieces: list[bytes], then: Then, behaviour: Behaviour | list[Any], variant: bool
) -> list[Any]:
    """A connection, with an application of this behaviour, or one that sends these messages.

    `variant`: it travels; or the application does not read.
    """
    header_encoder._known.clear()  # of all connections of a process, in which other tests may have run
    host = _hosts.pop((http, small), None) or ScriptedHost(http, **(SMALL if small else {}))
    host.sent, before = [], host.counts()
    host.script, host.reads = (behaviour, not variant) if isinstance(behaviour, list) else (None, True)
    known = behaviour if isinstance(behaviour, Behaviour) else Behaviour.READS
    outcome = host.talk(pieces, known, then, variant and host.script is None)
    _hosts[http, small] = host  # which else may still hold what is left of a connection
    return [outcome, host.sent, [after - count for after, count in zip(host.counts(), before, strict=True)]]


def heads(http: str, data: list[bytes]) -> list[Any]:
    """Request heads, read by one parser."""
    parser = parser_factory(http)()
    return [attempt(verdict, parser, each) for each in data]


def headers(given: Any, bodiless: bool) -> list[Any]:
    """Those of a response, the same as its trailers, and as hints."""
    encoders: list[tuple[Function, *tuple[Any, ...]]] = [
        (encode_headers, bodiless),
        (encode_trailers,),
        (encode_hints,),
    ]
    return [attempt(encode, revived(given), *more) for encode, *more in encoders]


def body(length: int, max_size: int, pieces: list[bytes], takes: int) -> list[Any]:
    """A request's body (`length`: or CHUNKED), of which the application takes what has come behind some pieces."""
    framing = (b"transfer-encoding", b"chunked") if length == CHUNKED else (b"content-length", b"%d" % length)
    reader = RequestBody(make_head("POST", b"/", "1.1", [(b"host", b"a"), framing]), max_size, 100)
    found: list[Any] = []
    for number, piece in enumerate(pieces):
        rest = attempt(reader.feed, piece)
        content = reader.take() if takes >> number & 1 else None
        found.append((rest, content, reader.left, reader.whole, reader.arrived, reader.unread, reader.discardable()))
        if rest is not None:
            break
    return found


def websocket(pieces: list[bytes], room: int, asked: bool, compressed: bool, sends: list[Any]) -> list[Any]:
    """The framing of a WebSocket, which sends something behind each piece."""
    framing = MessageFraming(Deflate(12, 12, True, True) if compressed else None, 400)
    found: list[Any] = []
    for number, piece in enumerate(pieces):
        found.append(attempt(framing.single, piece))
        if found[-1] is None:
            found.append(attempt(framing.receive, piece, room, asked))
        while framing.behind and len(found) < 200:
            found.append(attempt(framing.receive, b"", room, True))
        found.append((framing.output, framing.room))
        if sends:
            how, *given = sends[number % len(sends)]
            found.append(attempt(getattr(framing, how), *given))
    return found


def read_blocks(blocks: list[bytes]) -> list[Any]:
    """HPACK blocks of one connection; and each as a Huffman-coded string."""
    decoder = HeaderDecoder()
    found = [(attempt(decoder.decode, block), decoder.entries, decoder.changes, decoder.largest) for block in blocks]
    return [found, [(attempt(huffman.decode, block), huffman.encode(block)) for block in blocks]]


def written_blocks(blocks: list[tuple[int | None, list[tuple[bytes, bytes]]]]) -> list[Any]:
    """Header blocks of one connection; before some the client limits the table."""
    header_encoder._known.clear()
    encoder = header_encoder.HeaderEncoder()
    found: list[Any] = []
    for limit, fields in blocks:
        if limit is not None:
            encoder.limit_table(limit)
        found += [attempt(encoder.encode, fields), attempt(encoder.encode, fields), attempt(encoder.encode, fields)]
        found.append((encoder.entries, encoder.sizes))
    return found


def http2_frames(pieces: list[bytes], max_size: int) -> list[Any]:
    """As they come."""
    reader = frames.FrameReader(max_size)
    return [(attempt(list, reader.frames(piece)), reader.rest) for piece in pieces]


def shown(function: Function, given: tuple[Any, ...]) -> str:
    """The outcome as text, in which `True` is not 1, nor a bytearray what it holds."""
    return repr(attempt(function, *given))


def pure_core() -> subprocess.Popen[bytes]:
    """A process of the same interpreter that imports the pure Python modules, and answers questions until its end."""
    environment = {**os.environ, "SERVE_ASGI_PURE_PYTHON": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", "from tests.core_outcomes import answer; answer()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def outcomes(pure: subprocess.Popen[bytes], function: Function, *given: Any) -> tuple[str, str]:
    """Of this process, and of that one. Raises EOFError if it has ended."""
    assert pure.stdin is not None
    assert pure.stdout is not None
    pickle.dump((function, given), pure.stdin)
    pure.stdin.flush()
    return shown(function, given), pickle.load(pure.stdout)


def answer() -> None:
    """What that process does."""
    logging.disable()  # applications that raise are part of it
    huffman.fill_table()
    with contextlib.suppress(EOFError):
        while True:
            pickle.dump(shown(*pickle.load(sys.stdin.buffer)), sys.stdout.buffer)
            sys.stdout.buffer.flush()
