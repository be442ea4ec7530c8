"""What a reload does about a changed configuration file, with real servers: in force, or refused and as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from serve_asgi.cli.control_client import RequestRefused
from tests.applications import info
from tests.running import ROOT, RunningServer, connect, request, running


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with an application in it."""
    (tmp_path / "app.py").write_text(info())
    return tmp_path


def write(server: RunningServer | Path, text: str) -> None:
    directory = server if isinstance(server, Path) else server.directory
    (directory / "serve.toml").write_text(text)


def reload(server: RunningServer) -> None:
    """Reload and wait until the old workers are gone."""
    server.reload()
    server.wait_until(lambda status: len(status["generations"]) == 1)


def refused(server: RunningServer) -> str:
    with pytest.raises(RequestRefused) as caught:
        server.reload()
    return str(caught.value)


def ask(server: RunningServer, path: str = "/", body: bytes | None = None) -> tuple[int, Any]:
    with connect(server) as connection:
        status, data = request(connection, path, body)
        return status, json.loads(data) if data.startswith(b"{") else data


def test_workers_limits_and_timeouts_are_in_force_after_the_switch(project: Path) -> None:
    write(project, "workers = 1\n")
    with running("app:app", directory=project) as server:
        assert ask(server, body=b"x" * 100)[0] == 200
        write(server, "workers = 3\nmax-body-size = 10\nkeep-alive = 7\nhealth-path = '/up'\ndrain-status = 410\n")
        reload(server)
        server.wait_for_workers(3)
        assert ask(server, body=b"x" * 100)[0] == 413
        with connect(server) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n")
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
        assert b"keep-alive: timeout=7\r\n" in head.lower()
        assert ask(server, "/up")[0] == 200
        server.signal(signal.SIGUSR2)
        server.wait_until(lambda status: bool(status["draining"]))
        assert ask(server, "/up")[0] == 410
        write(server, "workers = 2\n")
        reload(server)
        server.wait_for_workers(2)
        assert ask(server, body=b"x" * 100)[0] == 200
        assert server.stop() == 0


def test_the_graceful_timeout_of_a_generation_is_its_own(project: Path) -> None:
    """The listener's deadline and the worker's come from the same file: a stream is cut by the one it began under."""
    (project / "app.py").write_text(
        info().replace(
            "    more = True\n",
            """    if scope["path"] == "/stream":
        import asyncio
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        await asyncio.sleep(1000)
    more = True
""",
            1,
        )
    )
    write(project, "graceful-timeout = 1000\n")
    with running("app:app", directory=project) as server, connect(server) as stream:
        write(server, "graceful-timeout = 0.1\nshutdown-timeout = 1\n")
        reload(server)
        stream.sendall(b"GET /stream HTTP/1.1\r\nhost: t\r\n\r\n")
        assert stream.recv(100)
        reload(server)  # returns although the stream never ends
        while stream.recv(65536):
            pass
        assert server.stop() == 0


def test_logging_changes_in_the_listener_and_the_workers(project: Path) -> None:
    failing = info().replace(
        "    more = True\n", '    assert scope["path"] != "/fail", "on purpose"\n    more = True\n', 1
    )
    (project / "app.py").write_text(failing)
    write(project, "log-level = 'warning'\naccess-log = false\n")
    with running("app:app", directory=project) as server:
        assert ask(server, "/quiet")[0] == 200
        assert server.log() == ""
        write(server, "log-level = 'debug'\nlog-file = 'server.log'\naccess-log-file = 'access.log'\n")
        reload(server)
        assert ask(server, "/told")[0] == 200
        assert ask(server, "/fail")[0] == 500
        server.wait_until(lambda _: "/told" in (project / "access.log").read_text())
        assert "/quiet" not in (project / "access.log").read_text()
        log = (project / "server.log").read_text()
        assert f"listener[{server.pid}]" in log
        assert f"worker 0.2[{server.worker_pids()[0]}]" in log
        assert "on purpose" in log
        assert server.log() == ""
        write(server, "access-log = false\nlog-file = 'server.log'\n")
        reload(server)
        assert ask(server, "/quiet-again")[0] == 200
        assert server.stop() == 0
        assert "/quiet-again" not in (project / "access.log").read_text()
        assert "configuration: " in (project / "server.log").read_text()


def test_what_cannot_change_is_refused_and_all_stays_as_it_was(project: Path) -> None:
    write(project, "workers = 2\nbacklog = 100\n")
    with running("app:app", directory=project) as server, connect(server) as connection:
        request(connection)
        address, pids = server.address(), sorted(server.worker_pids())
        write(server, "workers = 3\nbacklog = 200\n")
        said = refused(server)
        assert said == (
            f"reload refused, generation 1 serves on: {project}/serve.toml:2: backlog would change from 100 to 200, "
            "which a reload cannot do: put it back, or restart the server"
        )
        assert said in server.log()
        command = [sys.executable, "-m", "serve_asgi", "reload", "--control", str(server.control)]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, said in done.stderr) == (1, True)
        assert (server.address(), sorted(server.worker_pids())) == (address, pids)
        server.signal(signal.SIGHUP)  # which nobody is told the outcome of
        server.wait_until(lambda status: status["failed_reloads"] == 3)
        assert json.loads(request(connection)[1])["generation"] == 1
        write(server, "workers = 3\nbacklog = 100\n")
        reload(server)
        server.wait_for_workers(3)
        assert server.stop() == 0


BROKEN = {
    "workers 3": "is not valid TOML",
    "workers = '3'": 'serve.toml:1: workers: "3" is text',
    "worker = 3": "did you mean 'workers'?",
    "log-file = '/proc/none'": "the log file /proc/none cannot be opened",
    "python = '/no/python'": "the interpreter /no/python cannot be run",
    "env-file = 'nowhere'": "the file nowhere cannot be read",
    "": "serve.toml is gone: put it back",
}


def test_a_broken_file_leaves_all_as_it_was(project: Path) -> None:
    write(project, "workers = 1\n")
    with running("app:app", directory=project) as server:
        (project / "app.py").write_text(info("2"))
        for text, sentence in BROKEN.items():
            if text:
                write(server, text)
            else:
                (project / "serve.toml").unlink()
            assert sentence in refused(server)
            assert ask(server)[1]["version"] == "1"
        assert len(server.workers("serving")) == 1
        write(server, "workers = 2\n")  # rolled back, or put right
        reload(server)
        server.wait_for_workers(2)
        assert ask(server)[1]["version"] == "2"
        assert server.stop() == 0


def test_a_refused_generation_does_not_leave_its_configuration_behind(project: Path) -> None:
    write(project, "workers = 1\nkeep-alive = 5\n")
    with running("app:app", directory=project) as server:
        (project / "app.py").write_text("raise RuntimeError\n")
        write(server, "workers = 3\nkeep-alive = 6\n")
        assert "generation 1 serves on" in refused(server)
        os.kill(server.worker_pids()[0], signal.SIGKILL)  # its replacement has what generation 1 has
        (project / "app.py").write_text(info())
        server.wait_until(lambda status: [w["state"] for w in status["workers"]] == ["serving"])
        server.signal(signal.SIGTTIN)
        server.wait_for_workers(2)
        with connect(server) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n")
            assert b"timeout=5" in connection.recv(65536)
        assert server.stop() == 0


def test_a_size_set_by_hand_outlives_reloads_that_do_not_change_it(project: Path) -> None:
    write(project, "workers = 1\n")
    with running("app:app", directory=project) as server:
        server.signal(signal.SIGTTIN)
        server.wait_for_workers(2)
        write(server, "workers = 1\nmax-requests = 1000\n")
        reload(server)
        server.wait_for_workers(2)
        write(server, "workers = 3\n")
        reload(server)
        server.wait_for_workers(3)
        assert server.stop() == 0


def test_command_line_and_environment_still_win_after_a_reload(project: Path) -> None:
    write(project, "workers = 1\nkeep-alive = 5\n")
    environment = {"SERVE_KEEP_ALIVE": "9"}
    with running("app:app", "--workers", "2", directory=project, environment=environment) as server:
        write(server, "workers = 3\nkeep-alive = 6\n")
        reload(server)
        server.wait_for_workers(2)
        with connect(server) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n")
            assert b"timeout=9" in connection.recv(65536)
        assert server.stop() == 0


def test_each_release_brings_its_own_file(tmp_path: Path) -> None:
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
        (tmp_path / number / "app.py").write_text(info(number))
        (tmp_path / number / "pyproject.toml").write_text(f"[tool.serve]\nworkers = {number}\n")
    current = tmp_path / "current"
    current.symlink_to("1")
    with running("app:app", directory=current, environment={"PWD": str(current)}) as server:
        server.wait_for_workers(1)
        for number in ("2", "1"):  # there and back
            (tmp_path / "next").symlink_to(number)
            os.replace(tmp_path / "next", current)
            reload(server)
            server.wait_for_workers(int(number))
            assert ask(server)[1]["version"] == number
        assert server.stop() == 0


def test_the_application_itself_may_change(project: Path) -> None:
    write(project, "app = 'app:app'\n")
    (project / "other.py").write_text(info("other"))
    with running("", directory=project) as server:
        assert ask(server)[1]["version"] == "1"
        write(server, "app = 'other:app'\n")
        reload(server)
        assert ask(server)[1]["version"] == "other"
        assert server.stop() == 0


def test_what_is_in_force_is_told_by_the_listener(project: Path) -> None:
    write(project, "workers = 1\npython = '" + sys.executable + "'\n")
    with running("app:app", directory=project) as server:
        write(server, "\nworkers = 2\npython = '" + sys.executable + "'\n")
        before = shown(server)
        assert (before["workers"]["value"], before["workers"]["place"]) == (1, f"{project}/serve.toml:1")
        assert before["control"]["source"] == "command line"
        assert before["bind"]["resolved"].startswith("http://127.0.0.1:")
        assert before["chdir"]["resolved"] == str(project)
        assert Path(before["python"]["resolved"]).samefile(sys.executable)
        reload(server)
        after = shown(server)
        assert (after["workers"]["value"], after["workers"]["place"]) == (2, f"{project}/serve.toml:2")
        assert "resolved" not in after["workers"]
        server.signal(signal.SIGTTIN)
        server.wait_for_workers(3)
        assert shown(server)["workers"]["resolved"] == "3, scaled by hand"
        assert server.stop() == 0


def shown(server: RunningServer) -> dict[str, Any]:
    """What `serve config` shows, by option."""
    return {row["name"]: row for row in control_client.ask(server.control, "config")["config"]["options"]}


def test_a_command_finds_the_server_by_the_file(project: Path) -> None:
    with running("app:app", "--pid-file", "serve.pid", directory=project) as server:
        for text in (
            f"control = '{server.control}'\n",
            "pid-file = 'serve.pid'\n",
            "pid-file = 'serve.pid'\ncontrol = 'gone'\n",
        ):
            write(server, text)
            command = [sys.executable, "-m", "serve_asgi", "status", "--json"]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            assert json.loads(done.stdout)["pid"] == server.pid
        assert server.stop() == 0


def test_the_longest_times_are_no_mistake(project: Path) -> None:
    """People write them for "never"."""
    write(project, "block-warning = 1e300\nworker-timeout = 1e300\nkeep-alive = 1e300\ngraceful-timeout = 1e300\n")
    with running("app:app", directory=project) as server:
        reload(server)
        assert ask(server)[0] == 200
        assert server.stop() == 0
        assert "Traceback" not in server.log()
