"""Litestar."""

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
from tests.running import RunningServer

pytestmark = pytest.mark.frameworks("litestar", "httpx")
CONTENT = os.urandom(300_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("litestar")
    (directory / "file.bin").write_bytes(CONTENT)
    with serving("litestar_app:app", directory) as server:
        yield server


def home(asking: httpx.Client) -> int:
    told = asking.get("/").json()
    assert told == {"pid": told["pid"], "pool": "open", "session": "session"}
    return int(asking.get("/threaded").json()["pid"])


def upload(asking: httpx.Client) -> int:
    told = asking.post("/upload", files={"file": ("a.bin", CONTENT)}).json()
    assert told == {"pid": told["pid"], "name": "a.bin", "size": len(CONTENT)}
    return int(told["pid"])


def test_requests_over_a_reload(server: RunningServer) -> None:
    reload_under_use(server, upload, upload)
    with client(server) as asking:
        home(asking)
    wait_for_note(server, "session closed")
    wait_for_note(server, "stopped")


def test_what_it_answers(server: RunningServer) -> None:
    with client(server) as asking:
        assert asking.get("/file").content == CONTENT
        assert asking.get("/events").text == "data: first\r\n\r\ndata: second\r\n\r\n"
        assert asking.get("/fail").status_code == 500
        assert asking.get("/nowhere").status_code == 404


def test_a_stream_over_a_reload(server: RunningServer) -> None:
    lines = stream_over_reload(server).splitlines()
    assert (lines[0], set(lines[1:-1]), lines[-1]) == ("begun", {"on"}, "end")


def test_a_background_task_outlives_its_worker(server: RunningServer) -> None:
    with client(server) as asking:
        assert asking.get("/background/one").status_code == 200
        reload(server)
    wait_for_note(server, "task one")


def test_a_websocket_over_a_reload(server: RunningServer) -> None:
    websocket_over_reload(server)
    wait_for_note(server, "left with 1012")
    wait_for_note(server, "left with 1000")
