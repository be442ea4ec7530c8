"""The demo as its users see it: in a real browser over two reloads, and each of its answers by itself."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_websocket

from serve_asgi.demo import application as demo
from tests.browser import page
from tests.running import PATIENCE, RunningServer, connect, request, running

DEMO = ("serve_asgi.demo:asgi", "--workers", "4")
PICTURE = os.environ.get("DEMO_PICTURE")
"""Where to write the README's picture anew: DEMO_PICTURE=demo.png (there its colours are reduced to 256)."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of the demo; tests may reload it, and each asks for the generation it begins in."""
    with running(*DEMO, directory=tmp_path_factory.mktemp("demo")) as server:
        yield server
        assert server.stop() == 0


WITHOUT_SURVIVAL = """
from serve_asgi.demo import asgi as demo


async def asgi(scope, receive, send):
    scope.get("extensions", {}).pop("serve.survive", None)
    await demo(scope, receive, send)
"""


@pytest.fixture(scope="module")
def without_survival(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The same where no connection survives."""
    directory = tmp_path_factory.mktemp("without")
    (directory / "without.py").write_text(WITHOUT_SURVIVAL)
    with running("without:asgi", "--workers", "2", directory=directory) as server:
        yield server
        assert server.stop() == 0


def generation(server: RunningServer) -> int:
    with connect(server) as connection:
        return int(json.loads(request(connection, "/who")[1])["generation"])


class Events:
    """A client of /events that reads one connection to the end of its body."""

    def __init__(self, server: RunningServer, last: int | None = None, path: str = "/events") -> None:
        self._connection = http.client.HTTPConnection(*server.address(), timeout=PATIENCE)
        self._connection.request("GET", path, headers={} if last is None else {"Last-Event-ID": str(last)})
        self.answer = self._connection.getresponse()
        assert self.answer.getheader("content-type") == "text/event-stream"
        self.retry: int | None = None

    def __iter__(self) -> Iterator[dict[str, object]]:
        """Each event, until the body ends as it should (http.client raises IncompleteRead if it does not)."""
        number = None
        while line := self.answer.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            match name:
                case "id":
                    number = int(value)
                case "retry":
                    self.retry = int(value)
                case "data":
                    event = json.loads(value)
                    assert event["event"] == number
                    yield event

    def first(self) -> dict[str, object]:
        """The first event; the client leaves after it."""
        event = next(iter(self))
        self.close()
        return event

    def close(self) -> None:
        self.answer.close()
        self._connection.close()


def listen(client: ClientConnection, seen: list[dict[str, int]], server: RunningServer, sign: signal.Signals) -> int:
    """Add what a WebSocket brings to `seen`, send `sign` to the server after some; return its close code."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            seen.append(json.loads(client.recv(timeout=PATIENCE)))
            if len(seen) == 3:
                server.signal(sign)
    assert client.close_code is not None
    return client.close_code


@pytest.mark.needs("chromium")
def test_in_a_browser_two_reloads_change_the_generation_and_nothing_else(tmp_path: Path) -> None:
    with running(*DEMO, directory=tmp_path) as server, page(tmp_path / "profile") as browser:
        host, port = server.address()
        browser.look(1120, 860, "light")
        browser.open(f"http://{host}:{port}/")
        browser.wait_for("document.getElementById('live').textContent === 'live'")
        assert browser.text("command") == f"kill -HUP {server.pid}"
        assert browser.number("generation") == 1
        port_of_requests = browser.number("port")
        for number in (2, 3):
            enough = browser.number("stream-received") + (24 if PICTURE else 12)
            browser.wait_for(f"+document.getElementById('stream-received').textContent > {enough}")
            if number == 2:
                server.signal(signal.SIGHUP)
            else:
                browser.evaluate("document.getElementById('reload').click()")
            browser.wait_for(f"+document.getElementById('generation').textContent === {number}")
            for lane in ("requests", "stream", "socket"):
                kept = f"on one connection, {number} generations"
                browser.wait_for(f"document.getElementById('{lane}-kept').textContent === '{kept}'")
        before = {name: browser.number(name) for name in ("stream-received", "fetches")}
        for name, count in before.items():
            browser.wait_for(f"+document.getElementById('{name}').textContent > {count + (32 if PICTURE else 8)}")
        assert browser.number("port") == port_of_requests
        assert (browser.text("connections"), browser.text("spanned")) == ("1 connection", "3 generations")
        nothing = ("failed", "stream-missed", "stream-duplicated", "socket-missed", "socket-duplicated")
        assert {name: browser.number(name) for name in nothing} == dict.fromkeys(nothing, 0)
        assert server.status()["totals"]["survived"] == 4
        assert browser.evaluate("document.querySelectorAll('#generations li').length") == 3
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if PICTURE:
            browser.look(
                1120, browser.evaluate("Math.ceil(document.body.getBoundingClientRect().height)"), "light", 1.5
            )
            Path(PICTURE).write_bytes(browser.picture())
        browser.look(390, 800, "dark")
        browser.wait_for("document.documentElement.scrollWidth <= innerWidth")
        browser.open("about:blank")
        assert server.stop() == 0
        assert "error" not in server.log()


def test_the_page_is_whole_in_itself(server: RunningServer) -> None:
    connection = http.client.HTTPConnection(*server.address(), timeout=PATIENCE)
    connection.request("GET", "/")
    answer = connection.getresponse()
    page = answer.read().decode()
    assert (answer.status, answer.getheader("content-type")) == (200, "text/html; charset=utf-8")
    for outside in ("https:", "//cdn", "src=", "@import", "url("):
        assert outside not in page
    connection.request("HEAD", "/")
    answer = connection.getresponse()
    assert (answer.read(), answer.getheader("content-length")) == (b"", str(len(page.encode())))
    connection.close()


def test_who_answers(server: RunningServer) -> None:
    with connect(server) as connection:
        who = json.loads(request(connection, "/who")[1])
        assert who["listener"] == server.pid
        assert who["pid"] in server.worker_pids()
        assert who["slot"] in range(4)
        assert who["connection"] == connection.getsockname()[1]


def test_other_paths_and_methods_are_refused(server: RunningServer) -> None:
    with connect(server) as connection:
        assert request(connection, "/nothing")[0] == 404
        assert request(connection, "/who", body=b"x")[0] == 405
        assert request(connection, "/who")[0] == 200


def token_of(server: RunningServer) -> str:
    connection = http.client.HTTPConnection(*server.address(), timeout=PATIENCE)
    connection.request("GET", "/")
    page = connection.getresponse().read().decode()
    connection.close()
    return page.partition('name="reload-token" content="')[2].partition('"')[0]


def press(server: RunningServer, headers: dict[str, str]) -> tuple[int, str]:
    """The answer to the page's button, sent with these headers."""
    connection = http.client.HTTPConnection(*server.address(), timeout=PATIENCE)
    connection.request("POST", "/reload", headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_button_reloads_with_the_token_that_all_workers_know(server: RunningServer) -> None:
    before = generation(server)
    origin = "http://{}:{}".format(*server.address())
    headers = {"Origin": origin, "X-Reload-Token": token_of(server)}
    assert press(server, headers) == (202, "The new generation is starting\n")
    server.wait_until(lambda status: status["generation"] == before + 1)
    assert token_of(server) == headers["X-Reload-Token"]  # a page that was loaded before it still works


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"X-Reload-Token": "guessed"}, "token"),
        ({"X-Reload-Token": ""}, "token"),
        ({"Origin": "http://elsewhere.example"}, "page itself"),
        ({"Origin": "null"}, "page itself"),
        ({"Host": "elsewhere.example"}, "own machine"),
        ({"Host": "[::1"}, ""),
        ({"X-Forwarded-For": "192.0.2.1"}, "own machine"),
        ({"Via": "1.1 proxy"}, "own machine"),
    ],
)
def test_nobody_else_can_press_it(server: RunningServer, change: dict[str, str], says: str) -> None:
    before = generation(server)
    headers = {"Origin": "http://{}:{}".format(*server.address()), "X-Reload-Token": token_of(server), **change}
    status, text = press(server, headers)
    assert status in (400, 403)
    assert says in text
    assert generation(server) == before


def test_the_page_has_no_button_behind_a_proxy(server: RunningServer) -> None:
    connection = http.client.HTTPConnection(*server.address(), timeout=PATIENCE)
    connection.request("GET", "/", headers={"X-Forwarded-For": "192.0.2.1"})
    assert 'name="reload-token" content=""' in connection.getresponse().read().decode()
    connection.close()


def test_streams_go_on_over_reloads_on_the_same_connection(server: RunningServer) -> None:
    before = generation(server)
    host, port = server.address()
    seen: dict[str, list[dict[str, object]]] = {"stream": [], "socket": []}

    def read(lane: str, events: Iterator[dict[str, object]], until: int) -> None:
        while not seen[lane] or seen[lane][-1]["generation"] != until:
            seen[lane].append(next(events))

    stream = Events(server)
    with open_websocket(f"ws://{host}:{port}/socket") as socket:
        messages = (json.loads(socket.recv(timeout=PATIENCE)) for _ in itertools.count())
        lanes: dict[str, Iterator[dict[str, object]]] = {"stream": iter(stream), "socket": messages}
        for number in range(before, before + 3):
            if number > before:
                server.reload()
            for lane, events in lanes.items():
                read(lane, events, number)
    stream.close()
    for each in seen.values():
        assert len({event["connection"] for event in each}) == 1
        ids = [int(str(event["event"])) for event in each]
        assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_where_it_cannot_survive_a_stream_ends_well_and_goes_on_where_it_ended(without_survival: RunningServer) -> None:
    server = without_survival
    before = generation(server)
    seen = []
    first = Events(server)
    for event in first:
        seen.append(event)
        if len(seen) == 3:
            server.signal(signal.SIGHUP)
    first.close()
    assert first.retry == demo.RETRY_RELOAD
    assert {event["generation"] for event in seen} == {before}
    again = Events(server, last=int(str(seen[-1]["event"])))
    for event in again:
        seen.append(event)
        if not event["late"]:
            break
    again.close()
    assert seen[-1]["generation"] == before + 1
    numbers = [int(str(event["event"])) for event in seen]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.parametrize(("back", "late"), [(40, True), (0, False), (demo.MEMORY * 2, False), (-1000, False)])
def test_what_was_missed_is_sent_again_within_the_memory(server: RunningServer, back: int, late: bool) -> None:
    now = Events(server).first()["event"]
    assert isinstance(now, int)
    last = now - back
    for stream in (Events(server, last=last), Events(server, path=f"/events?after={last}")):
        event = stream.first()
        if late:
            assert (event["event"], event["late"]) == (last + 1, True)
        else:
            assert isinstance(event["event"], int)
            assert now < event["event"] <= now + 4 * PATIENCE


def test_where_it_cannot_survive_a_websocket_is_closed_with_1012(without_survival: RunningServer) -> None:
    server = without_survival
    host, port = server.address()
    before = generation(server)
    seen: list[dict[str, int]] = []
    with open_websocket(f"ws://{host}:{port}/socket") as client:
        client.send("of no interest")
        assert listen(client, seen, server, signal.SIGHUP) == demo.SERVICE_RESTART
    with open_websocket(f"ws://{host}:{port}/socket?after={seen[-1]['event']}") as client:
        seen.append(json.loads(client.recv(timeout=PATIENCE)))
    assert seen[-1]["event"] == seen[-2]["event"] + 1
    assert (seen[-2]["generation"], seen[-1]["generation"]) == (before, before + 1)


def test_a_client_that_leaves_is_noticed(server: RunningServer) -> None:
    stream = Events(server)
    next(iter(stream))
    server.wait_until(lambda status: sum(worker["in_flight"] for worker in status["workers"]) == 1)
    stream.close()
    server.wait_until(lambda status: sum(worker["in_flight"] for worker in status["workers"]) == 0)


def test_a_stopping_server_ends_its_streams_at_once(tmp_path: Path) -> None:
    with running("serve_asgi.demo:asgi", directory=tmp_path) as server:
        host, port = server.address()
        stream = Events(server)
        next(iter(stream))
        with open_websocket(f"ws://{host}:{port}/socket") as client:
            assert listen(client, [], server, signal.SIGTERM) == demo.GOING_AWAY
        list(stream)
        stream.close()
        assert stream.retry == demo.RETRY_OTHERWISE
        assert server.wait() == 0
        assert ", 0 requests cut" in server.log()


def test_under_a_mount_point(tmp_path: Path) -> None:
    with running("serve_asgi.demo:asgi", "--root-path", "/demo", directory=tmp_path) as server:
        with connect(server) as connection:
            assert request(connection, "/demo/who")[0] == 200
            assert request(connection, "/demo")[0] == 200
        assert server.stop() == 0


def test_it_runs_under_another_server_too() -> None:
    """Without this server's extension and without lifespan state."""

    async def ask() -> list[demo.Message]:
        sent: list[demo.Message] = []

        async def send(message: demo.Message) -> None:
            sent.append(message)

        async def receive() -> demo.Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope: demo.Scope = {
            "type": "http",
            "method": "GET",
            "path": "/who",
            "query_string": b"",
            "headers": [],
            "client": None,
        }
        await demo.asgi(scope, receive, send)
        with pytest.raises(ValueError, match="gopher"):
            await demo.asgi({"type": "gopher"}, receive, send)
        return sent

    sent = asyncio.run(ask())
    who = json.loads(sent[1]["body"])
    assert (sent[0]["status"], who["generation"], who["connection"]) == (200, 0, None)
