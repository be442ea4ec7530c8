"""The total time of a request, over both protocols: what the client sees, what the application is told, what counts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest

from serve_asgi.config import sources
from serve_asgi.config.values import read_path_time
from serve_asgi.errors import UsageError
from serve_asgi.http.request_timeouts import RequestTimeouts
from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.http.http_server import HttpServer, body, respond, serving, start
from tests.http2.http2_server import Http2Server
from tests.http2.http2_server import serving as serving2

RULES = ("0.2", "/slow=60", "/never=0", "/events/named=0.2")


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/", (0.2, False)),
        ("/slow", (60, True)),
        ("/slow/", (60, True)),
        ("/slow/er", (60, True)),
        ("/slower", (0.2, False)),
        ("/never/ever", (math.inf, True)),
        ("*", (0.2, False)),
    ],
)
def test_the_longest_prefix_counts(path: str, limit: tuple[float, bool]) -> None:
    assert RequestTimeouts(RULES).limit(path) == limit
    assert RequestTimeouts(("/a=1", "/a/b=2")).limit("/a/b/c") == (2, True)
    assert RequestTimeouts(("/a=1",)).limit("/") == (math.inf, False)


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "inf", "reports=3", "/reports", "/a=b"])
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(ValueError, match="is no time: write seconds, as in 30, or a path"):
        read_path_time(text)


def test_mistakes_are_told() -> None:
    with pytest.raises(UsageError, match=r"--request-timeout: /a is given twice"):
        sources.read("a:a", {"request_timeout": ("/a=1", "/a/=2")}, {})
    with pytest.raises(UsageError, match=r"--request-timeout: 'soon' is no time"):
        sources.read("a:a", {"request_timeout": ("soon",)}, {})


class Waiting:
    """Begins its response, or not, by what the path says, and waits to the end of its time; says how that came."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/short":
            await respond(send, b"short")
            return
        if scope["path"].startswith("/events"):
            await send(start(200, (b"content-type", b"text/event-stream; charset=utf-8")))
            await send(body(b"data: 1\n\n", more=True))
        elif scope["path"] != "/wait":
            await send(start(200))
        if scope["path"] == "/begun":
            await send(body(b"begun", more=True))
        try:
            await asyncio.sleep(1.0 if scope["path"] in ("/slow", "/events") else 60)
        except asyncio.CancelledError:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.ends.append("cancelled")
            raise
        await send(body(b"end"))
        self.ends.append("whole")


def counts(server: HttpServer) -> tuple[int, ...]:
    return tuple(map(server.cell, (Cell.TIMED_OUT, Cell.STATUS_5XX, Cell.EXCUSED_5XX, Cell.FAILED_WITHOUT_5XX)))


@pytest.mark.parametrize("path", ["/wait", "/started"])
def test_what_the_client_has_seen_nothing_of_is_answered_with_503(path: str, caplog: pytest.LogCaptureFixture) -> None:
    app = Waiting()
    with serving(app, "uvloop", request_timeout=RULES) as server:
        client = server.connect()
        client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: rid\r\n\r\n".encode())
        answer = client.read_to_end()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"\r\n\r\nThe request took too long.\n")
        server.until(lambda: app.ends == ["cancelled"])
        assert counts(server) == (1, 1, 0, 0)
        assert server.cell(Cell.IN_FLIGHT) == 0
    (line,) = [record for record in caplog.records if record.name.startswith("serve")]
    assert line.getMessage() == (
        f"GET {path} (request id rid) took longer than 0.2 s (--request-timeout): it was answered with 503, and its "
        "call of the application cancelled"
    )
    assert line.__dict__["event"] == "request_timed_out"


@pytest.mark.parametrize("path", ["/begun", "/events/named"])
def test_a_response_that_has_begun_is_cut_visibly(path: str, caplog: pytest.LogCaptureFixture) -> None:
    app = Waiting()
    with serving(app, "uvloop", request_timeout=RULES) as server:
        client = server.connect()
        client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        client.read_until(b"\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.read_to_end()
        server.until(lambda: app.ends == ["cancelled"])
        assert counts(server) == (1, 0, 0, 1)
    assert [record.__dict__["event"] for record in caplog.records if record.name.startswith("serve")] == [
        "request_timed_out"
    ]


@pytest.mark.parametrize("path", ["/slow", "/events"])
def test_what_has_more_time_or_is_an_event_stream_ends_by_itself(path: str) -> None:
    app = Waiting()
    with serving(app, "uvloop", request_timeout=RULES) as server:
        client = server.connect()
        client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert b"end" in client.read_to_end()
        assert counts(server) == (0, 0, 0, 0)


def test_a_body_that_does_not_end_in_time() -> None:
    """Its request is one that takes too long like any other."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "http.request":
            pass

    with serving(app, "uvloop", request_timeout=RULES) as server:
        client = server.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nbeginning")
        assert client.read_to_end().startswith(b"HTTP/1.1 503 ")


def http2(use: Callable[[Http2Server, Waiting], None]) -> None:
    app = Waiting()
    with serving2(app, "uvloop", request_timeout=RULES) as server:
        use(server, app)


def test_streams_of_http2_end_one_by_one() -> None:
    def use(server: Http2Server, app: Waiting) -> None:
        client = server.client()
        wait, begun, post = client.get(b"/wait"), client.get(b"/begun"), client.post(b"/wait")
        events, slow = client.get(b"/events"), client.get(b"/slow")
        assert (client.wait(wait).status, client.wait(wait).content) == (
            503,
            bytearray(b"The request took too long.\n"),
        )
        assert client.wait(begun).content == b"begun"
        assert client.answers[begun].reset is not None
        assert client.wait(post).status == 503
        assert client.wait(events).content.endswith(b"end")
        assert client.wait(slow).content == b"end"
        assert client.wait(client.get(b"/short")).content == b"short"
        server.until(lambda: app.ends.count("cancelled") == 3)
        assert counts(server) == (3, 2, 0, 1)
        assert client.goaways() == []

    http2(use)
