"""Whatever an application raises, the client gets its end, one line is logged and nothing is left behind (law 13)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve_asgi.config.options import Config
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.dropped_messages import ClientDisconnected
from serve_asgi.http.worker_context import Message, Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs import server_log as logs
from serve_asgi.logs.exceptions import all_tell
from tests.http.memory import Host, MemoryTransport, deliver
from tests.raising import Graph, Hostile, graphs, link

GET: Final = b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"
UPGRADE: Final = (
    b"GET /a HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
START: Final[Message] = {"type": "http.response.start", "status": 200}
LONGEST: Final = 800_000
"""Bytes of a line: escaped in JSON, a character takes six at most."""


class Raising:
    """An application that says some of these messages, and raises."""

    def __init__(self, error: BaseException, *said: Message, later: bool = False, ruins: bool = False) -> None:
        self.error = error
        self.said = said
        self.later = later
        self.ruins = ruins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
        for message in self.said:
            await send(dict(message))
        if self.ruins:
            scope.clear()
            scope["path"] = Hostile()
        if self.later:
            await asyncio.sleep(0)
        raise self.error


class Place:
    """One worker's part in memory, with its log."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "log"
        logs.configure(Config(log_file=str(self.log), log_format="json"), "worker 0.1")
        self.host = Host("httptools")

    def serve(self, data: bytes, application: Raising) -> tuple[bytes, bool, list[dict[str, Any]]]:
        """What the client has got, whether the connection has ended, and what was logged."""
        host, worker = self.host, self.host.worker
        worker.app = application
        self.log.write_bytes(b"")
        logger = logging.getLogger("serve")
        logger.handlers = [each for each in logger.handlers if not type(each).__module__.startswith("_pytest.")]
        connection = Http1Connection(worker)
        transport = MemoryTransport(host.loop, connection)
        connection.connection_made(transport)
        deliver(transport, data)
        host.loop.settle()
        output, ended = bytes(transport.output), transport.ended
        assert worker.cells[Cell.IN_FLIGHT] == 0
        assert not worker.tasks
        if not transport.closed:
            transport.close()
            host.loop.settle()
        assert not worker.connections
        assert host.loop.problems == []
        lines = self.log.read_bytes().splitlines()
        assert all(len(line) < LONGEST for line in lines)
        return output, ended, [json.loads(line) for line in lines]

    def close(self) -> None:
        self.host.close()
        logs.finish()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("log"))
    yield made
    made.close()


HTTP: Final[dict[str, tuple[tuple[Message, ...], bytes]]] = {
    "at once": ((), b"HTTP/1.1 500 "),
    "after the start": ((START,), b"HTTP/1.1 500 "),
    "in the content": ((START, {"type": "http.response.body", "body": b"a", "more_body": True}), b"HTTP/1.1 200 "),
    "after the answer": ((START, {"type": "http.response.body", "body": b"whole"}), b"HTTP/1.1 200 "),
}


def cycle() -> Graph:
    """What Starlette's BaseHTTPMiddleware makes of every error."""
    error = RuntimeError("a mistake")
    link(error, "__context__", BaseExceptionGroup("of the task group", [error]))
    return Graph(error, ["a circle"])


@pytest.mark.parametrize("when", HTTP)
@settings(max_examples=60, deadline=None)
@given(graph=graphs(), later=st.booleans(), ruins=st.booleans())
@example(graph=cycle(), later=True, ruins=False)
def test_http(place: Place, when: str, graph: Graph, later: bool, ruins: bool) -> None:
    said, begins = HTTP[when]
    failures = place.host.worker.cells[Cell.STATUS_1XX + 4]
    output, ended, logged = place.serve(GET, Raising(graph.error, *said, later=later, ruins=ruins))
    assert output.startswith(begins)
    if when == "in the content":
        assert ended
        assert not output.endswith(b"0\r\n\r\n")
    else:
        assert output.endswith((b"\r\n\r\nInternal Server Error", b"\r\n\r\nwhole"))
        assert not ended
    assert place.host.worker.cells[Cell.STATUS_1XX + 4] - failures == (begins == b"HTTP/1.1 500 ")
    assert [line["event"] for line in logged] == ["application_failed"]
    assert logged[0]["exception"]
    assert logged[0]["path"] == "/a"


WEBSOCKET: Final[dict[str, tuple[tuple[Message, ...], bytes]]] = {
    "before the accept": ((), b"HTTP/1.1 500 "),
    "when open": (({"type": "websocket.accept"},), b"HTTP/1.1 101 "),
    "in a denial": (({"type": "websocket.http.response.start", "status": 401},), b""),
    "after the close": (({"type": "websocket.accept"}, {"type": "websocket.close"}), b"HTTP/1.1 101 "),
}


@pytest.mark.parametrize("when", WEBSOCKET)
@settings(max_examples=60, deadline=None)
@given(graph=graphs(), later=st.booleans(), ruins=st.booleans())
def test_websockets(place: Place, when: str, graph: Graph, later: bool, ruins: bool) -> None:
    said, begins = WEBSOCKET[when]
    output, ended, logged = place.serve(UPGRADE, Raising(graph.error, *said, later=later, ruins=ruins))
    assert output.startswith(begins)
    if when == "when open":
        assert output.endswith(b"\x88\x02\x03\xf3")  # 1011
    elif when == "in a denial":
        assert ended
    in_vain = issubclass(type(graph.error), asyncio.CancelledError) or all_tell(graph.error, ClientDisconnected)
    if when == "after the close" and in_vain:
        assert logged == []
    else:
        assert [line["event"] for line in logged] == ["application_failed"]
        assert logged[0]["exception"]


def test_the_end_of_the_loop_is_no_error(place: Place) -> None:
    """A coroutine that is thrown away is closed by GeneratorExit; the application's own is answered."""
    host = place.host
    reached = []

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            reached.append(True)

    host.worker.app = waits
    connection = Http1Connection(host.worker)
    transport = MemoryTransport(host.loop, connection)
    connection.connection_made(transport)
    deliver(transport, GET)
    host.loop.settle()
    place.log.write_bytes(b"")
    assert connection.pipeline.response is not None
    task = connection.pipeline.response.request.task
    assert task is not None
    task.get_coro().close()
    assert reached
    assert transport.output == b""
    assert place.log.read_bytes() == b""
    task.cancel()
    host.loop.settle()
    assert isinstance(task.exception(), RuntimeError)  # a closed coroutine cannot go on
    transport.close()
    host.loop.settle()


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("name", ["serve", "serve.error"])
@pytest.mark.parametrize("part", ["handler", "filter", "formatter"])
def test_logging_that_fails(place: Place, part: str, name: str, raised: type[BaseException]) -> None:
    """What an application has put into our loggers costs no answer, and no line of ours."""

    def raises(*given: Any) -> Any:
        raise raised("of the application's logging")

    fails: Any = raises

    class Formatter(logging.Formatter):
        format = formatException = fails

    class Handler(logging.Handler):
        emit = fails

    class Reraising(logging.StreamHandler[Any]):
        def handleError(self, record: logging.LogRecord) -> None:
            raise

    class Filter(logging.Filter):
        filter = fails

    getattr(logs, "_complained").clear()  # noqa: B009
    logger = logging.getLogger(name)
    ours = logger.handlers[:]
    added: logging.Handler = Handler() if part == "handler" else Reraising()
    added.setFormatter(Formatter())
    try:
        if part == "filter":
            logger.addFilter(added_filter := Filter())
            logging.getLogger("serve").handlers[0].addFilter(added_filter)
        else:
            logger.handlers.insert(0, added)
        output, _, logged = place.serve(GET, Raising(ZeroDivisionError("own")))
    finally:
        logger.handlers = ours
        logger.filters.clear()
        logging.getLogger("serve").handlers[0].filters.clear()
    assert output.startswith(b"HTTP/1.1 500 ")
    assert [line["event"] for line in logged].count("application_failed") == 1
    complaints = [line for line in logged if line["event"] == "logging_failed"]
    assert complaints
    assert all("of the application's logging" in line["exception"] for line in complaints)
