"""What an application sends, and what its client gets of it: one table, run over HTTP/1.1 and over HTTP/2.

Each case says what comes of it; beside that everything that can be seen of a request has to be the same in both: the
fields, the content, whether the client sees that it is not whole, what was raised into the application, the access log,
and the counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.worker_context import ASGIApplication, Message, Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.connection_server import LOOPS, Log
from tests.http.http_server import HttpServer, body, start
from tests.http2.frame_client import data
from tests.http2.http2_server import Http2Server

PER_CONNECTION = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"date", b"server"}
COUNTED = (
    Cell.REQUESTS,
    Cell.STATUS_2XX,
    Cell.STATUS_4XX,
    Cell.STATUS_5XX,
    Cell.IN_FLIGHT,
    Cell.REFUSED,
    Cell.EXCUSED_5XX,
    Cell.FAILED_WITHOUT_5XX,
)


@dataclasses.dataclass
class Ask:
    """A request, whole."""

    method: bytes = b"GET"
    path: bytes = b"/"
    fields: tuple[Field, ...] = ()
    content: bytes = b""
    chunked: bool = False
    """The length of the content is not announced."""
    continues: bool = False
    """The content is sent only once the server has said 100, and not at all if it does not."""


@dataclasses.dataclass
class Seen:
    """What has come of it."""

    status: int = 0
    interim: list[int] = dataclasses.field(default_factory=list)
    fields: list[Field] = dataclasses.field(default_factory=list)
    content: bytes = b""
    trailers: list[Field] = dataclasses.field(default_factory=list)
    whole: bool = False
    raised: list[str] = dataclasses.field(default_factory=list)
    """Into the application, by `send`."""
    received: list[str] = dataclasses.field(default_factory=list)
    logged: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    errors: list[str] = dataclasses.field(default_factory=list)
    """In the server's log."""


def fields_of(lines: list[bytes]) -> list[Field]:
    found = [line.split(b": ", 1) for line in lines if line]
    return [(name, value) for name, value in found if name not in PER_CONNECTION]


def over_http1(server: HttpServer, ask: Ask) -> Seen:
    client = server.connect()
    fields = [*ask.fields, (b"connection", b"close")]
    if ask.continues:
        fields.append((b"expect", b"100-continue"))
    content = ask.content
    if ask.chunked:
        fields.append((b"transfer-encoding", b"chunked"))
        content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if content else b"0\r\n\r\n"
    elif content:
        fields.append((b"content-length", b"%d" % len(content)))
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
    client.send(ask.method + b" " + ask.path + b" HTTP/1.1\r\nhost: a\r\n" + lines + b"\r\n")
    seen = Seen()
    if ask.continues:
        head = client.read_until(b"\r\n\r\n")
        if head == b"HTTP/1.1 100 Continue\r\n\r\n":
            seen.interim.append(100)
            client.send(content)
        else:
            client.pending[:0] = head
    else:
        client.send(content)
    try:
        output = client.read_to_end()
    except ConnectionResetError:
        output = bytes(client.pending)
    while output:
        head, _, output = output.partition(b"\r\n\r\n")
        line, *rest = head.split(b"\r\n")
        status = int(line.split(b" ")[1])
        if status < 200:
            seen.interim.append(status)
            continue
        seen.status, seen.fields = status, fields_of(rest)
        every = dict(each.split(b": ", 1) for each in rest)
        if every.get(b"transfer-encoding") == b"chunked":
            unchunk(output, seen)
        elif b"content-length" in every and ask.method != b"HEAD" and status not in (204, 304):
            seen.content = output
            seen.whole = len(output) == int(every[b"content-length"])
        else:
            assert output == b""
            seen.whole = True
        break
    return seen


def unchunk(output: bytes, seen: Seen) -> None:
    while output:
        size, _, output = output.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            trailers = output.removesuffix(b"\r\n").split(b"\r\n")
            seen.trailers, seen.whole = fields_of(trailers), output.endswith(b"\r\n")
            return
        seen.content += output[:length]
        output = output[length + 2 :]


def over_http2(server: HttpServer, ask: Ask) -> Seen:
    assert isinstance(server, Http2Server)
    client = server.client({4: 1 << 24})
    fields = list(ask.fields)
    if ask.continues:
        fields.append((b"expect", b"100-continue"))
    if ask.content and not ask.chunked:
        fields.append((b"content-length", b"%d" % len(ask.content)))
    pseudo = [(b":method", ask.method), (b":scheme", b"http"), (b":authority", b"a"), (b":path", ask.path)]
    has_body = bool(ask.content) or ask.chunked
    stream_id, head = client.head(pseudo, not has_body, None, fields)
    answer = client.answers[stream_id]
    rest = data(stream_id, ask.content, True) if has_body else b""
    if ask.continues:
        client.send(head)
        client.read_until(lambda: answer.heads or answer.over)
        if answer.interim == [100]:
            client.send(rest)
    else:
        client.send(head, rest)
    client.wait(stream_id)
    seen = Seen(answer.status, answer.interim, content=bytes(answer.content), whole=answer.ended)
    if answer.status:
        seen.fields = [field for field in answer.heads[-1][1:] if field[0] not in PER_CONNECTION]
    seen.trailers = answer.trailers
    assert not {name for name, _ in answer.heads[-1]} & {b"connection", b"keep-alive", b"transfer-encoding"}
    client.sync()
    assert client.goaways() == []
    return seen


class Noting:
    """An application, and what happens to it."""

    def __init__(self, app: ASGIApplication) -> None:
        self.app = app
        self.raised: list[str] = []
        self.received: list[str] = []
        self.ended = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting_send(message: Message) -> None:
            try:
                await send(message)
            except Exception as error:
                self.raised.append(f"{type(error).__name__}: {error}")
                raise

        async def noting_receive() -> Message:
            message = await receive()
            kind, size, received = message["type"], len(message.get("body", b"")), self.received
            if kind == "http.request" and received and received[-1].endswith(" True"):
                size += int(received.pop().split()[1])  # in how many pieces a body comes is the kernel's choice
            received.append(f"{kind} {size} {message.get('more_body')}")
            return message

        try:
            await self.app(scope, noting_receive, noting_send)
        finally:
            self.ended += 1


def see(kind: type[HttpServer], loop: str, app: ASGIApplication, ask: Ask, caplog: Any, **config: Any) -> Seen:
    noting = Noting(app)
    server = kind(noting, loop, **config)
    server.worker.access_log = log = Log()  # type: ignore[assignment]
    caplog.clear()
    try:
        seen = (over_http2 if kind is Http2Server else over_http1)(server, ask)
        server.until(lambda: not server.worker.tasks and log.records != [])
        seen.raised, seen.received = noting.raised, noting.received
        seen.logged = [(record[1], record[2], record[4], record[5]) for record in log.records]
        seen.counts = {cell.name: server.cell(cell) for cell in COUNTED}
        seen.errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    finally:
        server.stop()
    return seen


# ---- applications

Body = Callable[[Scope, Receive, Send], Awaitable[None]]


def sending(*messages: Message, reading: bool = False, then: BaseException | None = None) -> ASGIApplication:
    """Sends these; then raises, or returns."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = reading
        while more:
            more = (await receive())["more_body"]
        for message in messages:
            await send(message)
        if then is not None:
            raise then

    return app


def going_on(*messages: Message) -> ASGIApplication:
    """Sends these, whatever is raised."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            with contextlib.suppress(RuntimeError, ValueError, TypeError):
                await send(message)

    return app


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    content, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        content += message["body"]
        more = message["more_body"]
    await send(start())
    await send(body(content))


LENGTH = (b"content-length", b"5")
TRAILERS: Message = {"type": "http.response.trailers", "headers": [(b"x-sum", b"abc")]}
HINT: Message = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload", b"</b.js>; rel=preload"]}
TE = (b"te", b"trailers")

CASES: dict[str, tuple[ASGIApplication, Ask, tuple[int, bytes, bool]]] = {
    "whole": (sending(start(), body(b"hello")), Ask(), (200, b"hello", True)),
    "empty": (sending(start(), body()), Ask(), (200, b"", True)),
    "fields": (
        sending(start(200, (b"x-a", b"1"), (b"X-B", b"2"), (b"set-cookie", b"a"), (b"set-cookie", b"b")), body(b"x")),
        Ask(),
        (200, b"x", True),
    ),
    "own date and server": (
        sending(start(200, (b"date", b"now"), (b"server", b"mine")), body(b"x")),
        Ask(),
        (200, b"x", True),
    ),
    "fields of the connection": (
        sending(start(200, (b"connection", b"close"), (b"keep-alive", b"x"), (b"upgrade", b"h2c")), body(b"x")),
        Ask(),
        (200, b"x", True),
    ),
    "length": (sending(start(200, LENGTH), body(b"hello")), Ask(), (200, b"hello", True)),
    "length, in pieces": (
        sending(start(200, LENGTH), body(b"hel", True), body(b"lo")),
        Ask(),
        (200, b"hello", True),
    ),
    "too short in one": (sending(start(200, LENGTH), body(b"hell")), Ask(), (500, b"Internal Server Error", True)),
    "too long in one": (sending(start(200, LENGTH), body(b"hello!")), Ask(), (500, b"Internal Server Error", True)),
    "too short in pieces": (sending(start(200, LENGTH), body(b"hel", True), body(b"l")), Ask(), (200, b"hel", False)),
    "too long in pieces": (sending(start(200, LENGTH), body(b"hel", True), body(b"lo!")), Ask(), (200, b"hel", False)),
    "streamed": (
        sending(start(), body(b"a", True), body(b"", True), body(b"b", True), body()),
        Ask(),
        (200, b"ab", True),
    ),
    "large": (sending(start(), body(bytes(100_000))), Ask(), (200, bytes(100_000), True)),
    "large, in pieces": (
        sending(start(), *[body(bytes(50_000), True)] * 6, body()),
        Ask(),
        (200, bytes(300_000), True),
    ),
    "HEAD": (sending(start(), body(b"hello")), Ask(b"HEAD"), (200, b"", True)),
    "HEAD, length": (sending(start(200, LENGTH), body(b"hello")), Ask(b"HEAD"), (200, b"", True)),
    "HEAD, no body": (sending(start(200, LENGTH), body()), Ask(b"HEAD"), (200, b"", True)),
    "HEAD, in pieces": (sending(start(), body(b"a", True), body(b"b")), Ask(b"HEAD"), (200, b"", True)),
    "HEAD, raises": (sending(then=ValueError("x")), Ask(b"HEAD"), (500, b"", True)),
    "204": (sending(start(204), body()), Ask(), (204, b"", True)),
    "204, body": (sending(start(204), body(b"hello")), Ask(), (204, b"", True)),
    "204, length": (sending(start(204, LENGTH), body()), Ask(), (204, b"", True)),
    "205": (sending(start(205), body()), Ask(), (205, b"", True)),
    "205, body": (sending(start(205), body(b"hello")), Ask(), (205, b"", True)),
    "304": (sending(start(304), body()), Ask(), (304, b"", True)),
    "304, length": (sending(start(304, LENGTH), body()), Ask(), (304, b"", True)),
    "304, in pieces": (sending(start(304), body(b"a", True), body(b"b")), Ask(), (304, b"", True)),
    "hints": (sending(HINT, HINT, start(), body(b"x")), Ask(), (200, b"x", True)),
    "trailers": (
        sending(start(trailers=True), body(b"x"), TRAILERS),
        Ask(fields=(TE,)),
        (200, b"x", True),
    ),
    "trailers in two": (
        sending(
            start(trailers=True),
            body(b"x", True),
            body(b"y"),
            {**TRAILERS, "more_trailers": True},
            {"type": "http.response.trailers", "headers": [(b"x-more", b"1")]},
        ),
        Ask(fields=(TE,)),
        (200, b"xy", True),
    ),
    "trailers that are not wanted": (
        sending(start(trailers=True), body(b"x"), TRAILERS),
        Ask(),
        (200, b"x", True),
    ),
    "trailers that do not come": (sending(start(trailers=True), body(b"x")), Ask(fields=(TE,)), (200, b"x", False)),
    "trailers, HEAD": (
        sending(start(trailers=True), body(b"x"), TRAILERS),
        Ask(b"HEAD", fields=(TE,)),
        (200, b"", True),
    ),
    "raises": (sending(then=ZeroDivisionError("x")), Ask(), (500, b"Internal Server Error", True)),
    "raises behind the start": (
        sending(start(), then=ZeroDivisionError("x")),
        Ask(),
        (500, b"Internal Server Error", True),
    ),
    "raises behind a piece": (
        sending(start(), body(b"x", True), then=ZeroDivisionError("x")),
        Ask(),
        (200, b"x", False),
    ),
    "raises behind the end": (sending(start(), body(b"x"), then=ZeroDivisionError("x")), Ask(), (200, b"x", True)),
    "cancels itself": (sending(then=asyncio.CancelledError()), Ask(), (500, b"Internal Server Error", True)),
    "exits": (sending(then=SystemExit(3)), Ask(), (500, b"Internal Server Error", True)),
    "returns": (sending(), Ask(), (500, b"Internal Server Error", True)),
    "returns behind the start": (sending(start()), Ask(), (500, b"Internal Server Error", True)),
    "returns behind a piece": (sending(start(), body(b"x", True)), Ask(), (200, b"x", False)),
    "body first": (sending(body(b"x")), Ask(), (500, b"Internal Server Error", True)),
    "start twice": (going_on(start(), start(), body(b"x")), Ask(), (200, b"x", True)),
    "body behind the end": (going_on(start(), body(b"x"), body(b"y")), Ask(), (200, b"x", True)),
    "unknown message": (going_on(start(), {"type": "http.response.push"}, body(b"x")), Ask(), (200, b"x", True)),
    "no status": (
        going_on({"type": "http.response.start"}, start(201), body(b"x")),
        Ask(),
        (201, b"x", True),
    ),
    "status 199": (going_on(start(199), start(201), body(b"x")), Ask(), (201, b"x", True)),
    "status 600": (going_on(start(600), start(201), body(b"x")), Ask(), (201, b"x", True)),
    "text for a body": (
        going_on(start(), {"type": "http.response.body", "body": "text"}, body(b"x")),
        Ask(),
        (200, b"x", True),
    ),
    "a line break in a field": (
        going_on(start(200, (b"x", b"a\r\nset-cookie: b")), start(201), body(b"x")),
        Ask(),
        (201, b"x", True),
    ),
    "a name that is none": (
        going_on(start(200, (b"x y", b"a")), start(200, (b":status", b"1")), start(201), body(b"x")),
        Ask(),
        (201, b"x", True),
    ),
    "a length that is none": (
        going_on(start(200, (b"content-length", b"-1")), start(201), body(b"x")),
        Ask(),
        (201, b"x", True),
    ),
    "echo": (echo, Ask(b"POST", content=b"hello"), (200, b"hello", True)),
    "echo, of unknown length": (echo, Ask(b"POST", content=b"hello", chunked=True), (200, b"hello", True)),
    "echo, empty": (echo, Ask(b"POST", chunked=True), (200, b"", True)),
    "echo, large": (echo, Ask(b"POST", content=bytes(100_000)), (200, bytes(100_000), True)),
    "deaf": (sending(start(), body(b"x")), Ask(b"POST", content=b"hello"), (200, b"x", True)),
    "continue": (echo, Ask(b"POST", content=b"hello", continues=True), (200, b"hello", True)),
    "continue, deaf": (
        sending(start(), body(b"x")),
        Ask(b"POST", content=b"hello", continues=True),
        (200, b"x", True),
    ),
    "continue, behind the start": (
        sending(start(), reading=False),
        Ask(b"POST", content=b"hello", continues=True),
        (500, b"Internal Server Error", True),
    ),
}


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize("name", list(CASES))
def test_both_protocols_make_the_same_of_it(name: str, loop: str, caplog: pytest.LogCaptureFixture) -> None:
    app, ask, expected = CASES[name]
    second = see(Http2Server, loop, app, ask, caplog, early_hints=True)
    assert (second.status, second.content, second.whole) == expected
    first = see(HttpServer, loop, app, ask, caplog, early_hints=True)
    assert second == first


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("kind", ["path", "file", "part of a file", "file in pieces", "no file"])
def test_files(kind: str, method: bytes, loop: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with path.open("rb") as file:
            whole: Message = {"type": "http.response.zerocopysend", "file": file}
            await send(start())
            if kind == "path":
                await send({"type": "http.response.pathsend", "path": str(path)})
            elif kind == "file":
                await send(whole)
            elif kind == "part of a file":
                await send({**whole, "offset": 100, "count": 70_000})
            elif kind == "file in pieces":
                await send(body(b"before", True))
                await send({**whole, "count": 70_000, "more_body": True})
                await send(body(b"behind"))
            else:
                await send({"type": "http.response.pathsend", "path": str(tmp_path / "none")})

    second = see(Http2Server, loop, app, Ask(method), caplog)
    first = see(HttpServer, loop, app, Ask(method), caplog)
    assert second == first
    assert second.status == (500 if kind == "no file" else 200)
    assert second.whole


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize("sent", [(), ((b"x-request-id", b"given"),)])
def test_request_ids(sent: tuple[Field, ...], loop: str, caplog: pytest.LogCaptureFixture) -> None:
    seen = [
        see(kind, loop, sending(start(), body(b"x")), Ask(fields=sent), caplog, request_id_header="x-request-id")
        for kind in (HttpServer, Http2Server)
    ]
    first, second = (dict(each.fields) for each in seen)
    assert first.keys() == second.keys()


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize("announced", [True, False])
def test_bodies_that_are_too_large(announced: bool, loop: str, caplog: pytest.LogCaptureFixture) -> None:
    ask = Ask(b"POST", content=bytes(2000), chunked=not announced)
    second = see(Http2Server, loop, echo, ask, caplog, max_body_size=1000)
    first = see(HttpServer, loop, echo, ask, caplog, max_body_size=1000)
    assert dataclasses.replace(second, received=[]) == dataclasses.replace(first, received=[])
    assert second.status == 413
