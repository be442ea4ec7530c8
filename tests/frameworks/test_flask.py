"""Flask, as WSGI in threads (`--interface wsgi`)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest

from tests.frameworks.driving import client, reload_under_use, serving, stream_over_reload
from tests.running import RunningServer

pytestmark = pytest.mark.frameworks("flask", "a2wsgi", "httpx")
CONTENT = os.urandom(300_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("flask")
    (directory / "file.bin").write_bytes(CONTENT)
    with serving("flask_app:app", directory, "--interface", "wsgi") as server:
        yield server


def upload(asking: httpx.Client) -> int:
    told = asking.post("/upload", files={"file": ("a.bin", CONTENT)}).json()
    assert told == {"pid": told["pid"], "name": "a.bin", "size": len(CONTENT)}
    return int(told["pid"])


def home(asking: httpx.Client) -> int:
    told = asking.get("/").json()
    assert (told["root"], told["url"]) == ("", str(asking.base_url) + "/")
    return int(told["pid"])


def test_requests_over_a_reload(server: RunningServer) -> None:
    reload_under_use(server, upload, home)


def test_what_it_answers(server: RunningServer) -> None:
    with client(server) as asking:
        assert asking.post("/echo", content=CONTENT).content == CONTENT
        pieces = (CONTENT[i : i + 999] for i in range(0, 9990, 999))
        assert asking.post("/echo", content=pieces).content == CONTENT[:9990]
        assert asking.get("/file").content == CONTENT
        assert asking.get("/file", headers={"range": "bytes=5-9"}).content == CONTENT[5:10]
        assert asking.get("/fail").status_code == 500


def test_a_stream_over_a_reload(server: RunningServer) -> None:
    lines = stream_over_reload(server).splitlines()
    assert (lines[0], set(lines[1:-1]), lines[-1]) == ("begun /stream", {"on"}, "end")
