"""WSGI through a2wsgi (`--interface wsgi`): what PEP 3333 asks; and ASGI 2."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.frameworks.driving import APPLICATIONS, client, reload_under_use, serving, stream_over_reload, wait_for_note
from tests.running import PATIENCE, RunningServer, connect

pytestmark = pytest.mark.frameworks("a2wsgi", "httpx")
CONTENT = os.urandom(300_000)
THREADS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    arguments = ("--interface", "wsgi", "--wsgi-threads", str(THREADS))
    with serving("wsgi_app:app", tmp_path_factory.mktemp("wsgi"), *arguments) as server:
        yield server


def read(asking: httpx.Client) -> int:
    told = asking.post("/read", content=CONTENT).json()
    assert told == {"pid": told["pid"], "sizes": [50_000] * 6}
    return int(told["pid"])


def chunked(asking: httpx.Client) -> int:
    told = asking.post("/read", content=(CONTENT[i : i + 777] for i in range(0, 77_700, 777))).json()
    assert told == {"pid": told["pid"], "sizes": [50_000, 27_700]}
    return int(told["pid"])


def test_requests_over_a_reload(server: RunningServer) -> None:
    reload_under_use(server, read, chunked)


def test_a_stream_over_a_reload(server: RunningServer) -> None:
    lines = stream_over_reload(server).splitlines()
    assert (lines[0], set(lines[1:-1]), lines[-1]) == ("begun", {"on"}, "end")
    wait_for_note(server, "closed")


def test_the_environ(server: RunningServer) -> None:
    with client(server) as asking:
        fields = {"x-a": "1", "content-type": "a/b", "x_a": "forged", "proxy": "forged"}
        environ = asking.get("/environ/%C3%A9%ff%2F?q=%20a", headers=fields).json()
    host, port = server.address()
    expected = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/environ/é\xff/".encode("utf-8", "ignore").decode("latin-1").replace("Ã¿", "\xff"),
        "QUERY_STRING": "q=%20a",
        "CONTENT_TYPE": "a/b",
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": f"{host}:{port}",
        "HTTP_X_A": "1",
        "wsgi.version": [1, 0],
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }
    assert {name: environ.get(name) for name in expected} == expected
    assert not {"HTTP_PROXY", "CONTENT_LENGTH", "HTTP_CONTENT_TYPE"} & set(environ)


@pytest.mark.parametrize("path", ["/mounted/environ", "/environ"])
def test_a_mounted_application(tmp_path: Path, path: str) -> None:
    """Whether the proxy in front has taken the mount point off or not."""
    socket_path = tmp_path / "s"
    arguments = ("--interface", "wsgi", "--root-path", "/mounted")
    with serving("wsgi_app:app", tmp_path, *arguments, bind=f"unix:{socket_path}"):
        transport = httpx.HTTPTransport(uds=str(socket_path))
        with httpx.Client(transport=transport, base_url="http://example.org:81", trust_env=False) as asking:
            environ = asking.get(path).json()
    found = {name: environ[name] for name in ("SCRIPT_NAME", "PATH_INFO", "SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR")}
    assert found == {
        "SCRIPT_NAME": "/mounted",
        "PATH_INFO": "/environ",
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "81",
        "REMOTE_ADDR": "",
    }


def test_what_it_answers(server: RunningServer) -> None:
    with client(server) as asking:
        assert asking.get("/write").text == "one two three"
        assert asking.get("/large").content == b"x" * 6_553_600
        assert asking.post("/lines", content=b"one\ntwo three\nfour\nfive").json() == [
            "one\n",
            "two",
            " three\n",
            ["four\n", "five"],
        ]
        empty = asking.get("/empty")
        assert (empty.status_code, empty.content) == (204, b"")
        head = asking.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        replaced = asking.get("/replaced")
        assert (replaced.status_code, replaced.text) == (503, "replaced")
        assert "x-first" not in replaced.headers
        with pytest.raises(httpx.RemoteProtocolError):
            asking.get("/too-late")
        assert asking.get("/fail").status_code == 500
        assert asking.get("/silent").status_code == 500
        assert asking.get("/errors").status_code == 404
    log = server.log()
    assert "ValueError: too late" in log
    assert "ValueError: before" in log
    assert "without calling start_response" in log
    assert "\na line for wsgi.errors\n" in log


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["list", "tuple", "generator"])
def test_the_length_of_one_piece_is_said(server: RunningServer, method: str, kind: str) -> None:
    """PEP 3333, "Handling the Content-Length Header"."""
    lengths: list[str | None] = []
    with client(server) as asking:
        for count in (0, 1, 2):
            answer = asking.request(method, f"/pieces/{count}", headers={"X-Kind": kind})
            assert answer.content == (b"piece" * count if method == "GET" else b"")
            lengths.append(answer.headers.get("content-length"))
            assert ("transfer-encoding" in answer.headers) is (method == "GET" and lengths[-1] is None)
        not_modified = asking.request(method, "/pieces/1?304")
        assert (not_modified.status_code, "content-length" in not_modified.headers) == (304, False)
    one = "5" if kind != "generator" else None
    assert lengths == ["0" if method == "GET" else None, one, None]


def test_head_of_an_endless_answer_ends_it(server: RunningServer) -> None:
    with client(server) as asking:
        assert asking.head("/endless").status_code == 200
        assert asking.get("/").status_code == 200
    wait_for_note(server, "the endless one is closed")


def test_threads_are_bounded_and_the_loop_is_free(server: RunningServer) -> None:
    """More requests than threads: those wait, the health path does not, and all are answered."""
    answers: list[str] = []

    def wait() -> None:
        with client(server) as asking:
            answers.append(asking.get("/wait").text)

    waiting = [threading.Thread(target=wait) for _ in range(THREADS + 2)]
    for thread in waiting:
        thread.start()
    server.wait_until(lambda status: sum(worker["in_flight"] for worker in status["workers"]) == THREADS + 2)
    for number in range(THREADS):
        wait_for_note(server, f"waiting in WSGI_{number}")
    with client(server) as asking:
        assert asking.get("/ping").status_code == 200
    assert (server.directory / "notes").read_text().count("waiting in") == THREADS
    (server.directory / "enough").touch()
    for thread in waiting:
        thread.join(PATIENCE)
    (server.directory / "enough").unlink()
    assert answers == ["waited"] * (THREADS + 2)


def test_half_an_upload_is_not_taken_for_the_whole(server: RunningServer) -> None:
    with connect(server) as leaving:
        leaving.sendall(b"POST /half HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc")
    wait_for_note(server, "half: ConnectionError")


def test_a_stream_ends_when_its_client_leaves(server: RunningServer) -> None:
    (server.directory / "notes").unlink(missing_ok=True)
    with client(server) as asking, asking.stream("GET", "/stream") as response:
        assert next(response.iter_text()).startswith("begun")
    wait_for_note(server, "closed")
    server.wait_until(lambda status: sum(worker["in_flight"] for worker in status["workers"]) == 0)


def refused(app: str, directory: Path, *arguments: str) -> str:
    """What a server says that does not start."""
    server = RunningServer(app, "--app-dir", str(APPLICATIONS), *arguments, directory=directory)
    try:
        assert server.wait() == 2
        return server.log()
    finally:
        server.close()


def test_what_is_said_of_the_wrong_interface(tmp_path: Path) -> None:
    assert "add --interface wsgi" in refused("wsgi_app:app", tmp_path)
    assert "leave --interface wsgi out" in refused("wsgi_app:asgi_app", tmp_path, "--interface", "wsgi")


def test_a2wsgi_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a2wsgi.py").write_text("raise ImportError")
    (tmp_path / "app.py").write_text("def app(environ, start_response): ...")
    said = refused("app:app", tmp_path, "--interface", "wsgi", "--app-dir", str(tmp_path))
    assert "needs the package a2wsgi: pip install 'serve-asgi[wsgi]'" in said


def test_asgi2(tmp_path: Path) -> None:
    with serving("wsgi_app:asgi2_app", tmp_path, "--interface", "asgi2") as server, client(server) as asking:
        assert asking.get("/").text == "two calls"
