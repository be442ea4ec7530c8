"""Quart."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest

from tests.frameworks.driving import (
    client,
    reload,
    reload_under_use,
    serving,
    stream_over_reload,
    wait_for_note,
    websocket_over_reload,
)
from tests.running import RunningServer, connect

pytestmark = pytest.mark.frameworks("quart", "httpx")
CONTENT = os.urandom(300_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("quart")
    (directory / "file.bin").write_bytes(CONTENT)
    with serving("quart_app:app", directory) as server:
        yield server


def upload(asking: httpx.Client) -> int:
    told = asking.post("/upload", files={"file": ("a.bin", CONTENT)}).json()
    assert told == {"pid": told["pid"], "name": "a.bin", "size": len(CONTENT)}
    return int(told["pid"])


def pieces(asking: httpx.Client) -> int:
    told = asking.post("/pieces", content=(CONTENT[i : i + 777] for i in range(0, 77_700, 777))).json()
    assert told == {"pid": told["pid"], "size": 77_700}
    return int(asking.get("/threaded").json()["pid"])


def test_requests_over_a_reload(server: RunningServer) -> None:
    reload_under_use(server, upload, pieces)
    wait_for_note(server, "stopped")


def test_what_it_answers(server: RunningServer) -> None:
    with client(server) as asking:
        assert asking.get("/file").content == CONTENT
        assert asking.get("/file", headers={"range": "bytes=5-9"}).content == CONTENT[5:10]
        assert asking.get("/fail").status_code == 500
        assert asking.get("/nowhere").status_code == 404


def test_a_stream_over_a_reload(server: RunningServer) -> None:
    lines = stream_over_reload(server).splitlines()
    assert (lines[0], set(lines[1:-1]), lines[-1]) == ("begun", {"on"}, "end")


def test_background_tasks_end_before_their_worker(server: RunningServer) -> None:
    with client(server) as asking:
        assert asking.get("/background/one").status_code == 200
        reload(server)
    wait_for_note(server, "task one")


def test_a_view_is_cancelled_when_its_client_leaves(server: RunningServer) -> None:
    with connect(server) as leaving:
        leaving.sendall(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        wait_for_note(server, "slow begun")
    wait_for_note(server, "slow cancelled")


def test_a_websocket_over_a_reload(server: RunningServer) -> None:
    websocket_over_reload(server)
    wait_for_note(server, "left")
