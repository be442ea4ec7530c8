"""The reload as users see it: what a client on a kept connection notices, and what an operator is told."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from serve_asgi.cli.control_client import RequestRefused
from tests.applications import info
from tests.running import RunningServer, answer, connect, request, running, state_of, until


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with an application in it."""
    (tmp_path / "app.py").write_text(info())
    return tmp_path


def told(connection: socket.socket, path: str = "/", body: bytes | None = None) -> dict[str, object]:
    """Who answers on this connection."""
    status, data = request(connection, path, body)
    assert status == 200, data
    answer: dict[str, object] = json.loads(data)
    return answer


def reload_to(server: RunningServer, version: str) -> None:
    """Reload new code, and wait until the old workers, with nothing in their hands, have handed over and left."""
    (server.directory / "app.py").write_text(info(version))
    server.reload()
    server.wait_until(lambda status: len(status["generations"]) == 1)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_kept_connections_see_new_code_and_nothing_else(project: Path, http: str, loop: str) -> None:
    with running("app:app", "--workers", "2", "--http", http, "--loop", loop, directory=project) as server:
        connections = [connect(server) for _ in range(20)]
        for connection in connections[:15]:
            assert told(connection)["version"] == "1"
        for generation in (2, 3, 4):
            reload_to(server, str(generation))
            for connection in connections:
                answer = told(connection, body=b"x" * 1000)
                assert (answer["version"], answer["generation"]) == (str(generation), generation)
                assert answer["size"] == 1000
        for connection in connections:
            connection.close()
        assert server.stop() == 0


def test_a_half_sent_head_travels(project: Path) -> None:
    with running("app:app", directory=project) as server, connect(server) as connection:
        told(connection)
        connection.sendall(b"GET /half HTTP/1.1\r\nho")
        reload_to(server, "2")
        connection.sendall(b"st: x\r\n\r\n")
        assert json.loads(answer(connection)[1])["version"] == "2"
        assert server.stop() == 0


def test_a_unix_socket_hands_over_too(project: Path) -> None:
    path = project / "app.sock"
    with running("app:app", directory=project, bind=f"unix:{path}") as server:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            assert told(connection)["version"] == "1"
            reload_to(server, "2")
            assert told(connection)["version"] == "2"
        assert server.stop() == 0
    assert not path.exists()


def test_an_abstract_socket_hands_over_too(project: Path) -> None:
    name = f"serve-test-{os.getpid()}"
    (project / "app.py").write_text(info().replace('"size": len(body)', '"size": scope["server"]'))
    with running("app:app", directory=project, bind=f"unix:@{name}") as server:
        assert server.status()["listening"] == [f"unix:@{name}"]
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"\0{name}")
            assert told(connection)["size"] == [f"@{name}", None]
            control_client.ask(server.control, "reload-listener")
            reload_to(server, "2")
            assert told(connection)["version"] == "2"
        assert not list(project.glob("@*"))
        assert server.stop() == 0


BROKEN = {
    "syntax": "def app(:\n",
    "import": "import a_module_that_is_not_there\n",
    "startup": info().replace(
        "event = await receive()\n", 'event = await receive()\n            raise RuntimeError("no database")\n'
    ),
    "exit": "import os\nos._exit(7)\n",
    "sys.exit": "import sys\nsys.exit(3)\n",
    "missing": "other = 1\n",
}


def test_bad_code_is_refused_with_its_traceback_and_the_old_serves_on(project: Path) -> None:
    """One kind after another in the same server, which the next one finds as it was."""
    wanted = {"syntax": "SyntaxError", "import": "a_module_that_is_not_there", "startup": "no database"}
    with running("app:app", "--workers", "2", directory=project) as server, connect(server) as connection:
        told(connection)
        for how, code in BROKEN.items():
            print(f"--- {how}", flush=True)
            (project / "app.py").write_text(code)
            with pytest.raises(RequestRefused, match="generation 1 serves on") as refused:
                server.reload()
            assert wanted.get(how, "") in str(refused.value) + refused.value.detail
            assert told(connection)["generation"] == 1
            server.wait_for_workers(2)
            assert {w["generation"] for w in server.workers()} == {1}
        reload_to(server, "2")
        assert told(connection)["version"] == "2"
        assert server.stop() == 0


def test_a_hanging_start_ends_at_its_timeout(project: Path) -> None:
    with running("app:app", "--startup-timeout", "5", directory=project) as server, connect(server) as connection:
        told(connection)
        (project / "app.py").write_text(
            info().replace(
                "event = await receive()\n",
                "event = await receive()\n            import asyncio; await asyncio.sleep(1000)\n",
                1,
            )
        )
        with pytest.raises(RequestRefused, match="--startup-timeout"):
            server.reload()
        assert told(connection)["generation"] == 1
        assert server.stop() == 0


def test_five_hundred_hups_in_a_row(project: Path) -> None:
    with running("app:app", "--workers", "2", directory=project) as server, connect(server) as connection:
        told(connection)
        for _ in range(500):
            server.signal(signal.SIGHUP)
        (project / "app.py").write_text(info("last"))
        server.reload()
        server.wait_for_workers(2)
        assert told(connection)["version"] == "last"
        assert server.status()["reloads"] <= 4
        assert server.stop() == 0


def test_the_link_is_followed_anew_for_each_generation(tmp_path: Path) -> None:
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "app.py").write_text(info(release))
    current = tmp_path / "current"
    current.symlink_to("1")
    with running("app:app", directory=current, environment={"PWD": str(current)}) as server:
        with connect(server) as connection:
            assert told(connection)["version"] == "1"
            os.replace(_link(tmp_path, "2"), current)
            os.kill(server.worker_pids()[0], signal.SIGKILL)  # its replacement is of the old release
            server.wait_for_workers(1)
            with connect(server) as another:
                assert told(another)["version"] == "1"
        with connect(server) as connection:
            server.reload()
            server.wait_for_workers(1)
            assert told(connection)["version"] == "2"
        assert server.stop() == 0


def _link(directory: Path, target: str) -> Path:
    link = directory / "next"
    link.symlink_to(target)
    return link


def test_the_environment_file_is_read_anew(project: Path) -> None:
    (project / "app.py").write_text(info().replace('"version": VERSION', '"version": os.environ["RELEASE"]'))
    (project / "env").write_text("RELEASE=one\n")
    with running("app:app", "--env-file", "env", directory=project) as server, connect(server) as connection:
        assert told(connection)["version"] == "one"
        (project / "env").write_text("RELEASE='two'\n")
        server.reload()
        server.wait_for_workers(1)
        assert told(connection)["version"] == "two"
        for text, line in (
            ("RELEASE='three\nX=1\n", 1),
            ("\nA=1\nRELEASE: three\n", 3),
            ("=three\n", 1),
            ("RELEASE\n", 1),
        ):
            (project / "env").write_text(text)
            with pytest.raises(RequestRefused, match=f"refused.*/env:{line}: ") as refused:
                server.reload()
            assert "three" not in str(refused.value) + server.log()
        (project / "env").unlink()
        with pytest.raises(RequestRefused, match="env"):
            server.reload()
        server.wait_for_workers(1)
        assert told(connection)["version"] == "two"
        assert server.stop() == 0


def test_nothing_is_left_behind(project: Path) -> None:
    with running("app:app", "--workers", "2", directory=project) as server:
        server.reload()
        server.wait_for_workers(2)
        fds = len(os.listdir(f"/proc/{server.pid}/fd"))
        for _ in range(5):
            server.reload()
        server.wait_for_workers(2)
        assert len(os.listdir(f"/proc/{server.pid}/fd")) == fds
        pids = server.worker_pids()
        assert len(pids) == 2
        assert not [pid for pid in pids if state_of(pid) == "Z"]
        assert server.stop() == 0
        assert not [pid for pid in pids if state_of(pid)]


def test_a_stream_finishes_in_its_worker_and_its_connection_travels_then(project: Path) -> None:
    (project / "app.py").write_text(
        info().replace(
            "    more = True\n",
            """    if scope["path"] == "/stream":
        import asyncio
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        from serve_asgi import retiring
        reason = await retiring.wait()
        assert retiring() and reason == "reload"
        await send({"type": "http.response.body", "body": b"world"})
        return
    more = True
""",
        )
    )
    with running("app:app", directory=project) as server, connect(server) as connection:
        results: list[tuple[int, bytes]] = []
        stream = threading.Thread(target=lambda: results.append(request(connection, "/stream")))
        stream.start()
        server.wait_until(lambda status: status["workers"][0]["in_flight"] == 1)
        reload_to(server, "2")
        stream.join(30)
        assert results == [(200, b"helloworld")]
        assert told(connection)["version"] == "2"
        assert server.stop() == 0


def test_every_process_runs_what_lies_on_the_disk_also_if_times_and_sizes_are_those_of_before(project: Path) -> None:
    """As rsync -t brings files of a build whose times are fixed."""

    def deploy(word: str) -> None:
        (project / "sub.py").write_text(f"VERSION = {word!r}\n")
        os.utime(project / "sub.py", (1, 1))

    def wait_for_line(line: str) -> None:
        until(lambda: line in (project / "told").read_text(), line)

    (project / "app.py").write_text(
        info()
        + "import contextlib, sub\nVERSION = sub.VERSION\n"
        + "def note(who): open('told', 'a').write(f'{who} {sub.VERSION}\\n')\n"
        + "@contextlib.asynccontextmanager\nasync def agent():\n    note('agent')\n    yield\n"
        + "def hook(event): note('hook')\n"
    )
    deploy("one")
    options = ("--agent", "app:agent", "--hook", "post_reload=app:hook")
    with running("app:app", *options, directory=project, environment={"PYTHONDONTWRITEBYTECODE": ""}) as server:
        for word in ("two", "six"):
            deploy(word)
            server.reload()
            with connect(server) as connection:
                assert told(connection)["version"] == word
            for who in ("agent", "hook"):
                wait_for_line(f"{who} {word}\n")
        assert server.stop() == 0
    assert (project / "told").read_text().count("one") == 1  # of the agent
