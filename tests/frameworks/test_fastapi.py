"""FastAPI: dependencies that yield, background tasks, streams, uploads, WebSockets, errors, lifespan state."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.frameworks.driving import (
    APPLICATIONS,
    client,
    reload,
    reload_under_use,
    serving,
    stream_over_reload,
    wait_for_note,
    websocket_over_reload,
)
from tests.running import RunningServer

pytestmark = pytest.mark.frameworks("fastapi", "httpx", "multipart")
CONTENT = os.urandom(200_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving("fastapi_app:app", tmp_path_factory.mktemp("fastapi")) as server:
        yield server


def items(asking: httpx.Client) -> int:
    told = asking.post("/items/7", json={"name": "tea", "price": 1.5}).json()
    assert told == {
        "pid": told["pid"],
        "number": 7,
        "item": {"name": "tea", "price": 1.5},
        "session": {"pool": "open", "open": True},
        "blocking": "blocking",
    }
    assert asking.post("/items/x", json={}).status_code == 422
    return int(told["pid"])


def upload(asking: httpx.Client) -> int:
    told = asking.post("/upload", files={"file": ("a.bin", CONTENT)}).json()
    assert told == {"pid": told["pid"], "name": "a.bin", "size": len(CONTENT)}
    return int(asking.get("/threaded").json()["pid"])


def test_requests_over_a_reload(server: RunningServer) -> None:
    reload_under_use(server, items, upload)
    notes = (server.directory / "notes").read_text().splitlines()
    assert notes.count("session closed") == 2 * notes.count("blocking session closed")  # the 422 has no second one
    assert (notes.count("started"), notes.count("stopped")) == (2, 1)


def test_background_tasks_outlive_their_worker(server: RunningServer) -> None:
    with client(server) as asking:
        for number in range(5):
            assert asking.post(f"/mail/{number}").status_code == 200
        reload(server)
    for number in range(5):
        wait_for_note(server, f"mail to {number}")
        wait_for_note(server, f"log of {number}")


def test_errors_and_the_dependencies_that_see_them(server: RunningServer) -> None:
    with client(server) as asking:
        assert asking.get("/fail/teapot").status_code == 418
        conflict = asking.get("/fail/http")
        assert (conflict.status_code, conflict.headers["x-why"]) == (409, "so")
        assert asking.get("/fail/value").status_code == 500
        wait_for_note(server, "session rolled back")
        assert asking.get("/openapi.json").json()["paths"]["/upload"]
    assert "ValueError: as it must" in server.log()


def test_the_test_client_needs_no_server(tmp_path: Path) -> None:
    """The application imports nothing of the server, and runs without it as it did."""
    code = "from fastapi.testclient import TestClient as C; from fastapi_app import app; assert C(app).get('/').json()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(APPLICATIONS)}, check=True)


def test_a_stream_over_a_reload(server: RunningServer) -> None:
    lines = stream_over_reload(server).splitlines()
    assert (lines[0], set(lines[1:-1]), lines[-1]) == ("begun True", {"on"}, "end True")


def test_a_websocket_over_a_reload(server: RunningServer) -> None:
    websocket_over_reload(server)
    wait_for_note(server, "left with 1012")
    wait_for_note(server, "left with 1000")
