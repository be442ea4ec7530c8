"""Which server is meant: the only one, that of a pid file, that of a socket; and who may speak to it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from serve_asgi.errors import UsageError
from tests.applications import info
from tests.cli.serving import environment, serve
from tests.cli.terminal import Terminal
from tests.running import PATIENCE, RunningServer, children, running

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user and to mount")


@contextlib.contextmanager
def unnamed(directory: Path, *arguments: str) -> Iterator[int]:
    """A server that was told nothing of where its control socket should be; gives its PID."""
    pid_file = directory / "serve.pid"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "serve_asgi",
            "app:app",
            "--bind",
            "127.0.0.1:0",
            "--pid-file",
            str(pid_file),
            *arguments,
        ],
        cwd=directory,
        env=environment(XDG_RUNTIME_DIR=str(directory)),
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not pid_file.exists():  # it is written when the server serves
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        yield process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        if process.poll() is None:
            pids = children(process.pid)
            process.kill()
            process.wait()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where servers are looked for: others may run on this machine."""
    (tmp_path / "app.py").write_text(info())
    monkeypatch.setattr("serve_asgi.cli.control_client._directories", lambda: [tmp_path / "serve"])
    return tmp_path


def test_by_itself_and_by_its_pid_file(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no server was found; .* its pid file .*`control` of its own"):
        control_client.find()
    with unnamed(runtime) as pid:
        path = runtime / "serve" / f"{pid}.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert control_client.find(pid_file=str(runtime / "serve.pid")) == path
        monkeypatch.chdir(runtime)
        assert control_client.find() == path
        done = serve(None, "status", "--pid-file", str(runtime / "serve.pid"))  # wherever its socket is
        assert f"PID {pid}: running, healthy" in done.stdout
    assert not path.exists()
    with pytest.raises(UsageError, match="cannot be read; is the server running"):
        control_client.find(pid_file=str(runtime / "serve.pid"))


def test_the_server_of_this_directory_is_meant_and_of_several_a_person_chooses(
    runtime: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runtime / "elsewhere").mkdir()
    (runtime / "current").symlink_to(".")
    (runtime / "linked").mkdir()
    (runtime / "linked" / "current").symlink_to("..")
    with running("app:app", "--chdir", "linked/current", directory=runtime) as other:
        (runtime / "serve").mkdir()
        for each in (server, other):
            (runtime / "serve" / f"{each.pid}.sock").symlink_to(each.control)
        for place in (runtime, runtime / "current", runtime / "linked"):
            monkeypatch.chdir(place)
            assert control_client.find().stem == str(other.pid)

        monkeypatch.chdir(runtime / "elsewhere")
        told = serve(None, "reload", "--no-wait", cwd=runtime / "elsewhere", XDG_RUNTIME_DIR=str(runtime))
        assert told.returncode == 2
        with pytest.raises(UsageError) as caught:
            control_client.find()
        assert str(caught.value).startswith(f"no server runs in this directory, {runtime}/elsewhere. Name the one")
        for each in (server, other):
            (host, port), path = each.address(), runtime / "serve" / f"{each.pid}.sock"
            assert f"PID {each.pid} (app:app on http://{host}:{port}" in str(caught.value)
            where = f"{each.directory}/linked/current" if each is other else each.directory
            assert f", in {where}): --control {path}" in str(caught.value)
            assert f"serve reload --no-wait --control {path}" in told.stderr
        assert other.status()["reloads"] == server.status()["reloads"] == 0

        with Terminal(None, "status", cwd=runtime / "elsewhere", XDG_RUNTIME_DIR=str(runtime)) as terminal:
            terminal.wait_for("Which one?")
            shown = re.search(rf"(\d+)  PID {other.pid} ", terminal.seen)
            assert shown, terminal.seen
            terminal.hit(f"{shown[1]}\n")
            terminal.wait_for(f"PID {other.pid}: running, healthy")
        assert other.stop() == 0
        with pytest.raises(UsageError, match="no server runs in this directory") as caught:
            control_client.find()  # one only, but somebody else's
        assert str(other.pid) not in str(caught.value)
        (runtime / "elsewhere").rmdir()
        with pytest.raises(UsageError, match="no server runs in this directory, which is gone"):
            control_client.find()


def test_a_pid_file_finds_the_socket_wherever_it_is(server: RunningServer) -> None:
    """Also beside a unix socket that the server serves on."""
    pid_file = str(server.directory / "pid")
    assert control_client.find(pid_file=pid_file) == server.control
    assert serve(None, "status", "--pid-file", pid_file).returncode == 0


def test_a_pid_file_that_is_wrong_is_a_sentence(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    (tmp_path / "pid").write_text(f"{done.pid}\n")
    told = serve(None, "status", "--pid-file", str(tmp_path / "pid"))
    assert (told.returncode, told.stdout) == (2, "")
    assert f"no process has the PID {done.pid}" in told.stderr
    (tmp_path / "pid").write_text(f"{os.getpid()}\n")
    told = serve(None, "status", "--pid-file", str(tmp_path / "pid"))
    assert f"the server with PID {os.getpid()} has no control socket that responds" in told.stderr


def test_a_socket_that_is_no_control_socket_is_a_sentence(server: RunningServer) -> None:
    told = serve(None, "status", "--control", f"{server.directory}/http.sock")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == ("serve: that is not a server's control socket; name it with --control\n")


@pytest.mark.parametrize("off", ["--no-control-socket", "--no-control"])
def test_without_a_control_socket(runtime: Path, off: str) -> None:
    with unnamed(runtime, off):
        assert not list(runtime.glob("serve/*.sock"))
        told = serve(None, "status", "--pid-file", str(runtime / "serve.pid"))
        assert (told.returncode, told.stdout) == (2, "")
        assert "has no control socket that responds" in told.stderr


@needs_root
def test_on_a_read_only_file_system_it_serves_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    (tmp_path / "fixed").mkdir()
    with running(
        "app:app",
        "--control",
        f"{tmp_path}/fixed/control.sock",
        directory=tmp_path,
        wrapper=("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none "$0" && exec "$@"', f"{tmp_path}/fixed"),
    ) as server:
        assert "no control socket: [Errno 30] Read-only file system" in server.log()
        assert server.stop() == 0


@needs_root
def test_other_users_are_not_answered(server: RunningServer) -> None:
    """They may not connect (0600), and are not answered where somebody has changed the mode (SO_PEERCRED)."""
    os.seteuid(NOBODY)
    try:
        with pytest.raises(UsageError, match=r"reached: Permission denied; .* belongs to user root: run this as root"):
            control_client.ask(server.control, "status")
    finally:
        os.seteuid(0)
    server.control.chmod(0o666)
    os.seteuid(NOBODY)  # the credentials at the time of connect(2) count (unix(7))
    try:
        with pytest.raises(control_client.ServerEnded):
            control_client.ask(server.control, "stop")
    finally:
        os.seteuid(0)
        server.control.chmod(0o600)
    assert server.status()["state"] == "running"


@needs_root
def test_what_another_user_answers_is_not_believed() -> None:
    """A socket in a place that others can write to may be anybody's."""
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as false:
        Path(place).chmod(0o777)
        path = Path(place, "control.sock")
        false.bind(str(path))
        path.chmod(0o666)
        os.seteuid(NOBODY - 1)  # the credentials at the time of listen(2) count
        try:
            false.listen()
            os.seteuid(0)
            os.seteuid(NOBODY)
            with pytest.raises(UsageError, match="belongs to another user's process"):
                control_client.ask(path, "status")
        finally:
            os.seteuid(0)


def test_in_the_places_of_services_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RuntimeDirectory= of a unit is known to the server by an environment that a person's shell has not."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    from serve_asgi.ipc import control_protocol

    (tmp_path / "serve").mkdir(mode=0o700)
    assert control_protocol.default_socket(5) == tmp_path / "serve" / "5.sock"
    assert control_protocol.private(tmp_path / "serve")
    (tmp_path / "serve").chmod(0o777)
    assert not control_protocol.private(tmp_path / "serve")


@needs_root
def test_root_finds_the_servers_of_services_with_users_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But believes no directory that anybody could have made, or can write to."""
    monkeypatch.setattr(control_client, "SERVICES", tmp_path)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    for place, owner in ((tmp_path, 0), (tmp_path / "serve", NOBODY), (tmp_path / "serve" / "serve", NOBODY)):
        place.mkdir(exist_ok=True)
        os.chown(place, owner, owner)
        place.chmod(0o755)
    for public in ("lock", "other"):
        (tmp_path / public / "serve").mkdir(parents=True)
        os.chown(tmp_path / public / "serve", NOBODY, NOBODY)
    (tmp_path / "lock").chmod(0o1777)  # anybody may make a directory there
    os.chown(tmp_path / "other", NOBODY - 1, NOBODY - 1)
    found = control_client._directories()
    assert {tmp_path / "serve", tmp_path / "serve" / "serve"} <= set(found)
    assert not {tmp_path / "lock" / "serve", tmp_path / "other" / "serve"} & set(found)
    (tmp_path / "serve" / "serve").chmod(0o777)
    assert tmp_path / "serve" / "serve" not in control_client._directories()
