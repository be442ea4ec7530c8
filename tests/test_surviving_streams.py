"""Streamed responses that survive a deploy: one connection and one response, and new code on the other side of it."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from tests.plain_and_tls import AUTHORITY, addresses, secure
from tests.running import PATIENCE, RunningServer, running, until

APPLICATION = '''
import asyncio, os
from serve_asgi import retiring, survive

VERSION = 1
EVENTS = [(b"content-type", b"text/event-stream")]


def event(number):
    return b"data: %d %d\\n\\n" % (number, VERSION)


def stopped():
    return os.path.exists("stop")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    name = scope["path"].split("/")[1]
    if name in HANDLERS:
        await HANDLERS[name](scope, receive, send)
    elif name == "short":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"short"})
    else:
        from frameworks import starlette, fastapi
        await {"starlette": starlette, "fastapi": fastapi}[name](scope, receive, send)


async def say(send, body, more=True):
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def begin(send, *headers):
    await send({"type": "http.response.start", "status": 200, "headers": [*EVENTS, *headers]})


async def end_of(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def numbers(scope, receive, send):
    """Until the file "stop" is there, or a million bytes where that was announced."""
    kept = survive(scope, version=VERSION)
    length = 1_000_000 if scope["path"].endswith("length") else 0
    await begin(send, *([(b"content-length", b"1000000")] if length else ()))
    over = asyncio.ensure_future(end_of(receive))
    state = kept.state
    state.setdefault("number", 0), state.setdefault("sent", 0)
    while not over.done():
        if stopped():
            await say(send, b"x" * (length - state["sent"]) if length else b"", more=False)
            return
        text = event(state["number"])
        await say(send, text)
        state["number"] += 1
        state["sent"] += len(text)
        await asyncio.wait([over], timeout=0.02)


async def sends(scope, receive, send):
    """Never receives."""
    kept = survive(scope)
    await begin(send)
    number = kept.state.get("number", 0)
    while not stopped():
        await say(send, event(number))
        number = kept.state["number"] = number + 1
        await asyncio.sleep(0.02)
    await say(send, b"", more=False)


async def messages(scope, receive, send):
    """By plain messages of ASGI."""
    number = (scope["extensions"]["serve.survive"].get("state") or [0])[0]
    await begin(send)
    while not stopped():
        await say(send, event(number))
        number += 1
        await send({"type": "serve.survive", "state": [number]})
        await asyncio.sleep(0.02)
    await say(send, b"", more=False)


async def by_itself(scope, receive, send):
    """Ends a life at `retiring`."""
    kept = survive(scope)
    await begin(send)
    number = kept.state.get("number", 0)
    while not retiring():
        if stopped():
            await say(send, b"", more=False)
            return
        await say(send, event(number))
        number = kept.state["number"] = number + 1
        await asyncio.sleep(0.02)


async def large(scope, receive, send):
    """More than the buffers hold."""
    kept = survive(scope)
    await begin(send)
    number = kept.state.get("number", 0)
    last = number + 20 if kept.resumed else 10_000
    while number < last:
        await say(send, event(number) * 2000)
        number = kept.state["number"] = number + 1
        await asyncio.sleep(0)
    await say(send, b"", more=False)


async def raises(scope, receive, send):
    survive(scope)
    await begin(send)
    await say(send, event(0))
    await end_of(receive)
    raise ValueError("no")


async def hangs(scope, receive, send):
    survive(scope)
    await begin(send)
    await say(send, event(0))
    while True:
        await asyncio.sleep(1)


async def unfit(scope, receive, send):
    kept = survive(scope)
    await begin(send)
    await say(send, event(0))
    kept.state = {"send": send}
    await end_of(receive)


async def refuses(scope, receive, send):
    kept = survive(scope, version=VERSION)
    if kept.resumed and kept.version != VERSION:
        kept.refuse("the state is too old")
        return
    await begin(send)
    await say(send, event(0))
    await end_of(receive)


async def route(scope, receive, send):
    """Only the first version has it; the next ones answer with a page."""
    if VERSION > 1:
        status = 404 if scope["path"] == "/route" else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/html")]})
        await say(send, b"<!doctype html>", more=False)
    else:
        survive(scope)
        await begin(send)
        await say(send, event(0))
        await end_of(receive)


async def asks(scope, receive, send):
    await begin(send)
    await say(send, repr(survive(scope)).encode(), more=False)


HANDLERS = {
    name: globals()[name]
    for name in "numbers sends messages by_itself large raises hangs unfit refuses route asks".split()
}
'''
FRAMEWORKS = """
import asyncio
from app import EVENTS, event, stopped
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse as FastStreaming
from serve_asgi import survive
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Mount, Route


async def events(request, text):
    kept = survive(request.scope)
    number = kept.state.get("number", 0)
    while not stopped():
        yield text(number)
        number = kept.state["number"] = number + 1
        await asyncio.sleep(0.02)


async def stream(request):
    return StreamingResponse(events(request, event), media_type="text/event-stream")


async def sse(request):
    text = lambda number: {"data": event(number).decode().strip().removeprefix("data: ")}
    return EventSourceResponse(events(request, text), sep="\\n")


routes = [Route("/stream", stream), Route("/sse", sse)]
starlette = Starlette(routes=[Mount("/starlette", routes=routes)])
fastapi = FastAPI()


@fastapi.get("/fastapi")
async def fast(request: Request):
    return FastStreaming(events(request, event), media_type="text/event-stream")
"""
QUICK = ("--survive-window", "0", "--survive-timeout", "1", "--graceful-timeout", "20")
EVENT = re.compile(rb"data: (\d+) (\d+)\n\n")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APPLICATION)
    (tmp_path / "frameworks.py").write_text(FRAMEWORKS)
    return tmp_path


def deploy(server: RunningServer, version: int) -> None:
    (server.directory / "app.py").write_text(APPLICATION.replace("VERSION = 1", f"VERSION = {version}"))
    server.reload()


class Stream:
    """A client that reads one response to its end, in a thread; `at_rest` has it wait between two reads."""

    def __init__(self, client: socket.socket, path: str, version: str = "1.1", behind: bytes = b"") -> None:
        self.client = client
        self.behind = behind
        self.data = b""
        self.failure: BaseException | None = None
        self.at_rest = threading.Event()
        self.at_rest.set()
        self._ended = b"0\r\n\r\n" if version == "1.1" and not path.endswith("length") else b""
        client.settimeout(PATIENCE)
        client.sendall(f"GET {path} HTTP/{version}\r\nHost: a\r\n\r\n".encode() + behind)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := self.client.recv(65536):
                self.data += data
                self.at_rest.wait(PATIENCE)
                if self.whole():
                    return
        except OSError as error:
            self.failure = error
        finally:
            self.client.close()

    def whole(self) -> bool:
        head, _, body = self.data.partition(b"\r\n\r\n")
        if b"content-length: 1000000" in head:
            return len(body) >= 1_000_000
        if self.behind:
            return self.data.endswith(b"short")
        return bool(self._ended) and body.endswith(self._ended)

    def body(self) -> bytes:
        """Of the response alone, after its end. The framing of its chunks is checked."""
        self._thread.join()
        head, _, body = self.data.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" not in head:
            return body
        content = b""
        while True:
            size, _, body = body.partition(b"\r\n")
            content, ended, body = content + body[: int(size, 16)], body[int(size, 16) :][:2], body[int(size, 16) + 2 :]
            assert ended == b"\r\n"
            if size == b"0":
                self.data = body
                return content

    def version(self) -> int:
        """Of the latest event that has come."""
        found = EVENT.findall(self.data[-2000:])
        return int(found[-1][1]) if found else 0


def check(stream: Stream, path: str, versions: int, times: int = 1) -> None:
    """Nothing lost, doubled or out of order, from every version."""
    body = stream.body()
    assert stream.failure is None, (path, stream.failure, body[-200:])
    found = EVENT.findall(body.replace(b"\r\n", b"\n"))
    rest = EVENT.sub(b"", body)
    assert rest.strip(b"x\n") == b"" or b": ping" in rest, (path, rest[-100:])
    assert [int(number) for number, _ in found] == [n // times for n in range(len(found))], path
    assert sorted({int(version) for _, version in found}) == list(range(1, versions + 1)), path


PATHS = ("numbers", "numbers/length", "sends", "messages", "by_itself", "starlette/stream", "starlette/sse", "fastapi")


@pytest.mark.parametrize("way", ["httptools uvloop", "h11 asyncio"])
def test_streams_go_on_over_three_deploys(way: str, directory: Path) -> None:
    """Over TCP, TLS 1.3 and a unix socket; also to a client of HTTP/1.0, and to one that has sent its next request."""
    http, loop = way.split()
    cert, key = AUTHORITY.server("localhost").write(directory)
    binds = ("--bind", "http://127.0.0.1:0", "--bind", "https://127.0.0.1:0", "--bind", "unix:here.sock")
    options = ("--workers", "2", "--http", http, "--loop", loop, "--tls-cert", str(cert), "--tls-key", str(key))
    with running("app:app", *binds, *options, *QUICK, directory=directory, bind="") as server:
        where = addresses(server)["http"]

        def unix() -> socket.socket:
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(directory / "here.sock"))
            return client

        streams = {path: Stream(socket.create_connection(where), f"/{path}") for path in PATHS}
        streams["1.0"] = Stream(socket.create_connection(where), "/numbers", "1.0")
        streams["TLS"] = Stream(secure(server), "/numbers")
        streams["TLS 1.0"] = Stream(secure(server), "/sends", "1.0")
        streams["unix"] = Stream(unix(), "/numbers")
        behind = b"GET /short HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        streams["behind"] = Stream(socket.create_connection(where), "/numbers", behind=behind)
        for version in (1, 2, 3, 4):
            if version > 1:
                deploy(server, version)
            until(
                lambda version=version: all(each.version() == version or each.failure for each in streams.values()),  # type: ignore[misc]
                lambda: {path: (each.version(), each.failure) for path, each in streams.items()},
            )
        (directory / "stop").touch()
        for path, stream in streams.items():
            check(stream, path, 4)
        assert streams["behind"].data.endswith(b"\r\n\r\nshort")
        totals = server.status()["totals"]
        assert totals["not_survived"] == 0
        assert totals["survived"] >= 3 * len(streams)  # more where nobody could take one at once: it went on there
        assert not re.findall("ERROR|Traceback|cut ", server.log())


def test_slow_reader(directory: Path) -> None:
    """The response moves when the client has taken what was written; what was not written is not written twice."""
    with running("app:app", "--workers", "1", *QUICK, directory=directory) as server:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.address())
        stream = Stream(client, "/large")
        until(lambda: len(stream.data) > 1000, "its beginning")
        stream.at_rest.clear()
        deploy(server, 2)
        stream.at_rest.set()
        check(stream, "large", 2, times=2000)


ENDS: dict[str, str] = {
    "raises": "its handler failed",
    "hangs": "its handler had not returned 1 s after it was told",
    "unfit": "the state cannot be written as JSON",
    "refuses": "the state is too old",
    "route": "the application now answers 404, where the client has had 200",
    "route/page": "the application now answers with text/html, where the client has had text/event-stream",
}
"""What is logged of each path, whose responses do not survive."""


@contextlib.contextmanager
def one(directory: Path, *arguments: str) -> Iterator[tuple[RunningServer, Callable[..., Stream]]]:
    with running("app:app", "--workers", "1", *QUICK, *arguments, directory=directory) as server:
        yield server, lambda path, version="1.1": Stream(socket.create_connection(server.address()), path, version)


def test_what_cannot_go_on_is_cut_where_the_client_sees_it(directory: Path) -> None:
    with one(directory) as (server, opened):
        kinds = [(path, version) for path in ENDS for version in ("1.1", "1.0")]
        streams = {(path, version): opened(f"/{path}", version) for path, version in kinds}
        for stream in streams.values():
            until(lambda stream=stream: EVENT.search(stream.data), "its event")  # type: ignore[misc]
        deploy(server, 2)
        for (path, version), stream in streams.items():
            stream._thread.join()
            if version == "1.1":
                assert stream.failure is None, path
                assert not stream.whole(), path
            else:
                assert isinstance(stream.failure, ConnectionResetError), path
            assert stream.data.endswith(b"data: 0 1\n\n" if version == "1.0" else b"data: 0 1\n\n\r\n"), path
        server.wait_until(lambda status: status["totals"]["not_survived"] == len(kinds))


@pytest.mark.parametrize("path", ["hangs", "route/page"])
def test_it_is_logged_why_a_response_did_not_survive(directory: Path, path: str) -> None:
    with one(directory) as (server, opened):
        stream = opened(f"/{path}")
        until(lambda: EVENT.search(stream.data), "its event")
        deploy(server, 2)
        assert server.logged(f"the response to GET /{path} did not survive: " + re.escape(ENDS[path]))


def test_a_stream_of_a_version_that_is_taken_back_comes_home(directory: Path) -> None:
    """And a stop is what it always was."""
    with one(directory, "--keep-previous", "60") as (server, opened):
        stream, last = opened("/numbers"), opened("/by_itself")
        deploy(server, 2)
        until(lambda: stream.version() == last.version() == 2, "the second version")
        control_client.ask(server.control, "rollback")
        until(lambda: stream.version() == last.version() == 1, "the first version")
        server.signal(signal.SIGTERM)
        (directory / "stop").touch()
        found = EVENT.findall(stream.body())
        assert stream.failure is None
        assert [int(number) for number, _ in found] == list(range(len(found)))
        assert server.wait() == 0
        assert "did not survive" not in server.log()


def test_over_tls_1_2_nobody_survives(directory: Path) -> None:
    context = AUTHORITY.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    cert, key = AUTHORITY.server("localhost").write(directory)
    options = ("--bind", "https://127.0.0.1:0", "--tls-cert", str(cert), "--tls-key", str(key))
    with running("app:app", "--workers", "1", *options, *QUICK, directory=directory, bind="") as server:
        assert Stream(secure(server, context), "/asks", "1.0").body() == b"None"
