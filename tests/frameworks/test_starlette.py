"""Starlette, and what it does with middleware, background tasks and clients that leave."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import websockets.sync.client
from websockets.exceptions import InvalidStatus

from tests.frameworks.driving import client, reload, reload_under_use, serving, stream_over_reload, url, wait_for_note
from tests.frameworks.driving import websocket_over_reload as socket_over_reload
from tests.running import RunningServer, connect

pytestmark = pytest.mark.frameworks("starlette", "httpx", "sse_starlette", "multipart")
CONTENT = os.urandom(300_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("starlette")
    (directory / "file.bin").write_bytes(CONTENT)
    with serving("starlette_app:app", directory, "--workers", "2") as server:
        yield server


def home(asking: httpx.Client) -> int:
    told = asking.get("/").json()
    assert told == {"pid": told["pid"], "state": [42], "path": "/"}
    return int(told["pid"])


def upload(asking: httpx.Client) -> int:
    told = asking.post("/stamped/upload", files={"file": ("a.bin", CONTENT)}).json()
    assert told == {"pid": told["pid"], "name": "a.bin", "size": len(CONTENT)}
    return int(told["pid"])


def test_requests_over_a_reload(server: RunningServer) -> None:
    reload_under_use(server, home, upload)


def test_what_it_answers(server: RunningServer) -> None:
    with client(server) as asking:
        answer = asking.post("/stamped/echo", content=CONTENT)
        assert (answer.content, answer.headers["x-stamp"]) == (CONTENT, "yes")
        assert (
            asking.post("/echo", content=(CONTENT[i : i + 1000] for i in range(0, 9000, 1000))).content
            == CONTENT[:9000]
        )
        answer = asking.post("/zipped/echo", content=b"a" * 100_000)
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.content == b"a" * 100_000
        answer = asking.get("/file")
        assert (answer.content, answer.headers["content-length"]) == (CONTENT, str(len(CONTENT)))
        answer = asking.get("/stamped/file")
        assert (answer.content, answer.headers["content-length"]) == (CONTENT, str(len(CONTENT)))
        assert asking.get("/zipped/file").content == CONTENT  # as it is: Starlette compresses no file that it passes on
        answer = asking.get("/file", headers={"range": "bytes=1000-1999"})
        assert (answer.status_code, answer.content) == (206, CONTENT[1000:2000])
        answer = asking.head("/file")
        assert (answer.content, answer.headers["content-length"]) == (b"", str(len(CONTENT)))
        assert asking.get("/fail").status_code == 500
        assert asking.get("/nowhere").status_code == 404
        assert asking.get("/stamped/").status_code == 200
    assert "RuntimeError: as it must" in server.log()


@pytest.mark.parametrize("path", ["/stream", "/stamped/stream"])
def test_a_stream_over_a_reload(server: RunningServer, path: str) -> None:
    lines = stream_over_reload(server, path).splitlines()
    assert lines[0] == "begun"
    assert set(lines[1:-1]) == {"on"}
    assert lines[-1] == "end"


def test_server_sent_events_over_a_reload(server: RunningServer) -> None:
    events = stream_over_reload(server, "/events").replace("\r\n", "\n").strip().split("\n\n")
    pid = events[-1].removeprefix("event: end\ndata: ")
    assert int(pid) > 0
    assert events[:-1] == [f"id: {n}\nevent: tick\ndata: {pid}" for n in range(len(events) - 1)]


def test_a_websocket_over_a_reload(server: RunningServer) -> None:
    socket_over_reload(server)


def test_a_denied_websocket(server: RunningServer) -> None:
    with pytest.raises(InvalidStatus) as denied:
        websockets.sync.client.connect(url(server, "/denied", "ws"), proxy=None)
    assert (denied.value.response.status_code, denied.value.response.body) == (418, b"not you")


@pytest.mark.parametrize("path", ["", "/stamped"])
def test_a_background_task_outlives_its_worker(server: RunningServer, path: str) -> None:
    with client(server) as asking:
        assert asking.post(path + "/background", content=b"before" + path.encode()).status_code == 200
        reload(server)
    wait_for_note(server, "task before" + path)


@pytest.mark.parametrize("path", ["", "/stamped"])
def test_a_background_task_runs_though_its_client_has_left(server: RunningServer, path: str) -> None:
    """The response is sent to nobody, without an error, and what was to follow it follows."""
    wait = f"{path}/background?slow"
    with connect(server) as leaving:
        leaving.sendall(
            f"POST {wait} HTTP/1.1\r\nhost: a\r\ncontent-length: {4 + len(path)}\r\n\r\nleft{path}".encode()
        )
        wait_for_note(server, "slow request begun")
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # reset
    server.wait_until(lambda status: sum(worker["connections"] for worker in status["workers"]) == 0)
    (server.directory / "enough").touch()
    try:
        wait_for_note(server, "task left" + path)
    finally:
        (server.directory / "enough").unlink()
        (server.directory / "notes").unlink()


@pytest.mark.parametrize("path", ["", "/stamped"])
def test_a_stream_that_waits_ends_when_its_client_leaves(server: RunningServer, path: str) -> None:
    with client(server) as asking, asking.stream("GET", path + "/silent") as response:
        assert next(response.iter_text()) == "begun\n"
    wait_for_note(server, "silent stream ended")
    (server.directory / "notes").unlink()


def test_an_application_may_ask_whether_its_client_is_there(server: RunningServer) -> None:
    """Not behind a BaseHTTPMiddleware: there Starlette's own `is_disconnected` never says so, on any server."""
    with connect(server) as leaving:
        leaving.sendall(b"GET /poll HTTP/1.1\r\nhost: a\r\n\r\n")
        wait_for_note(server, "polls")
    wait_for_note(server, "saw the disconnect")
    (server.directory / "notes").unlink()


def test_half_an_upload_is_no_error_of_the_application(server: RunningServer) -> None:
    """Starlette raises ClientDisconnect where the content ends too early; nothing of it is logged."""
    for path in ("/upload", "/stamped/upload", "/echo"):
        with connect(server) as leaving:
            leaving.sendall(f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n".encode())
            leaving.sendall(b"content-type: multipart/form-data; boundary=b\r\n\r\n--b\r\n")
    server.wait_until(lambda status: sum(worker["in_flight"] for worker in status["workers"]) == 0)


def test_leaving_clients_leave_no_traceback(server: RunningServer) -> None:
    """Runs last: whatever the tests above have left, nothing but the failing route was logged as an error."""
    log = server.log()
    assert log.count("Traceback") == log.count("RuntimeError: as it must")


@pytest.mark.parametrize(
    ("path", "first", "last"), [("/stream", "begun\n", "end: reload\n"), ("/events", "data: tick", "data: reload")]
)
def test_endless_streams_end_with_their_worker(tmp_path: Path, path: str, first: str, last: str) -> None:
    """Neither is cut: each comes to its own end as soon as its worker retires."""
    with serving("endless_app:app", tmp_path) as server:
        with client(server) as asking, asking.stream("GET", path) as response:
            pieces = response.iter_text()
            received = next(pieces)
            server.signal(signal.SIGHUP)
            received += "".join(pieces)
        assert received.startswith(first)
        assert received.rstrip("\r\n").endswith(last.rstrip("\n"))
        server.wait_until(lambda status: len(status["generations"]) == 1)
        assert "0 requests cut" in server.log()
