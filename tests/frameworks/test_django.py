"""Django's own ASGI handler, with channels for its WebSockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import websockets.sync.client
from websockets.exceptions import InvalidStatus

from tests.frameworks.driving import (
    client,
    reload,
    reload_under_use,
    serving,
    stream_over_reload,
    url,
    wait_for_note,
    websocket_over_reload,
)
from tests.running import PATIENCE, RunningServer, answer, connect

pytestmark = pytest.mark.frameworks("django", "channels", "httpx")
CONTENT = os.urandom(300_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("django")
    (directory / "file.bin").write_bytes(CONTENT)
    with serving("django_site.asgi:application", directory) as server:
        yield server


def upload(asking: httpx.Client) -> int:
    told = asking.post("/upload", files={"file": ("a.bin", CONTENT)}).json()
    assert told == {"pid": told["pid"], "name": "a.bin", "size": len(CONTENT)}
    return int(told["pid"])


def threaded(asking: httpx.Client) -> int:
    """The session is in a cookie, so that it outlives the worker."""
    before = int(asking.headers.get("x-seen", "0"))
    told = asking.get("/threaded").json()
    assert told == {"pid": told["pid"], "seen": before + 1, "client": "127.0.0.1"}
    asking.headers["x-seen"] = str(before + 1)
    return int(told["pid"])


def test_requests_over_a_reload(server: RunningServer) -> None:
    reload_under_use(server, upload, threaded)


def test_what_it_answers(server: RunningServer) -> None:
    with client(server) as asking:
        home = asking.get("/")
        assert (home.status_code, home.headers["x-stamp"]) == (200, "yes")
        assert asking.post("/echo", content=CONTENT).content == CONTENT
        assert (
            asking.post("/echo", content=(CONTENT[i : i + 999] for i in range(0, 9990, 999))).content == CONTENT[:9990]
        )
        file = asking.get("/file")
        assert (file.content, file.headers["content-length"]) == (CONTENT, str(len(CONTENT)))
        assert asking.head("/file").headers["content-length"] == str(len(CONTENT))
        assert asking.get("/fail").status_code == 500
        assert asking.get("/nowhere").status_code == 404


def test_wsgi_forked_from_a_template(tmp_path: Path) -> None:
    """Its database is used while it is imported, and again in each forked worker: no event loop runs then."""
    how = ("--interface", "wsgi", "--preload=strict", "--workers", "2")
    with serving("django_site.wsgi:application", tmp_path, *how) as server, client(server) as asking:
        assert asking.get("/").status_code == 200
        reload(server)
        assert asking.get("/").status_code == 200


def test_a_stream_over_a_reload(server: RunningServer) -> None:
    lines = stream_over_reload(server).splitlines()
    assert (lines[0], set(lines[1:-1]), lines[-1]) == ("begun", {"on"}, "end")


def test_a_client_that_shuts_down_its_side_has_its_answer(server: RunningServer) -> None:
    """Django gives a request up at http.disconnect, which is told a second later for that."""
    with connect(server) as half:
        half.sendall(b"GET /threaded HTTP/1.1\r\nhost: a\r\n\r\n")
        half.shutdown(socket.SHUT_WR)
        assert answer(half)[0] == 200


def test_a_view_is_cancelled_when_its_client_leaves(server: RunningServer) -> None:
    with connect(server) as leaving:
        leaving.sendall(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        wait_for_note(server, "slow begun")
    wait_for_note(server, "slow cancelled")
    with client(server) as asking, asking.stream("GET", "/stream") as response:
        assert next(response.iter_text()) == "begun\n"
    wait_for_note(server, "stream cancelled")


def test_a_consumer_over_a_reload(server: RunningServer) -> None:
    websocket_over_reload(server)
    wait_for_note(server, "left with 1012")
    wait_for_note(server, "left with 1000")


def test_a_group_and_a_refusal(server: RunningServer) -> None:
    address = url(server, "/echo", "ws")
    with (
        websockets.sync.client.connect(address, proxy=None, subprotocols=["chat"]) as one,  # type: ignore[list-item]
        websockets.sync.client.connect(address, proxy=None) as other,
    ):
        assert (one.subprotocol, other.subprotocol) == ("chat", None)
        other.send("hello")
        assert other.recv(PATIENCE) == "hello"
        one.send("to all")
        assert one.recv(PATIENCE) == other.recv(PATIENCE) == "for all"
    with pytest.raises(InvalidStatus) as refused:
        websockets.sync.client.connect(url(server, "/refused", "ws"), proxy=None)
    assert refused.value.response.status_code == 403


def test_nothing_but_the_failing_view_was_logged_as_an_error(server: RunningServer) -> None:
    """Runs last."""
    assert server.log().count("Traceback") == server.log().count("ValueError: as it must")
