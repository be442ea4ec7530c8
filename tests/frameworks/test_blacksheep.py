"""BlackSheep."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest

from tests.frameworks.driving import (
    client,
    reload_under_use,
    serving,
    stream_over_reload,
    wait_for_note,
    websocket_over_reload,
)
from tests.running import RunningServer

pytestmark = pytest.mark.frameworks("blacksheep", "httpx")
CONTENT = os.urandom(300_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving("blacksheep_app:app", tmp_path_factory.mktemp("blacksheep")) as server:
        yield server


def upload(asking: httpx.Client) -> int:
    told = asking.post("/", content=CONTENT).json()
    assert told == {"pid": told["pid"], "size": len(CONTENT)}
    return int(asking.get("/").json()["pid"])


def test_requests_over_a_reload(server: RunningServer) -> None:
    reload_under_use(server, upload, upload)
    wait_for_note(server, "stopped")


def test_what_it_answers(server: RunningServer) -> None:
    with client(server) as asking:
        assert asking.get("/large").content == b"x" * 1_000_000
        assert asking.get("/fail").status_code == 500
        assert asking.get("/nowhere").status_code == 404


def test_a_stream_over_a_reload(server: RunningServer) -> None:
    lines = stream_over_reload(server).splitlines()
    assert (lines[0], set(lines[1:-1]), lines[-1]) == ("begun", {"on"}, "end")


def test_a_websocket_over_a_reload(server: RunningServer) -> None:
    websocket_over_reload(server, binary=False)
    wait_for_note(server, "left with 1012")
    wait_for_note(server, "left with 1000")
