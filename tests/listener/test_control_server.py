"""The control socket under bad manners: whatever a peer does, the listener serves on and answers the next one."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from serve_asgi.errors import UsageError
from tests.applications import info
from tests.running import RunningServer, connect, request, running


def send(server: RunningServer, data: bytes, close: bool = False) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(server.control))
        connection.sendall(data)
        if close:
            return b""
        return connection.makefile("rb").readline()


def test_bad_requests_end_nothing(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", directory=tmp_path) as server:
        assert stat.S_IMODE(server.control.stat().st_mode) == 0o600
        for data in (b"", b"{", b'{"version": 1, "command": "reload"}\n'):
            send(server, data, close=True)
        for data in (b"nonsense\n", b"[]\n", b"{}\n", b'{"version": 2, "command": "status"}\n', b"\xff\xfe\n"):
            assert json.loads(send(server, data))["ok"] is False
        assert json.loads(send(server, b'{"version": 1, "command": "dance", "more": 1}\n'))["ok"] is False
        assert json.loads(send(server, b'{"version": 1, "command": "status", "new": 1}\n'))["ok"] is True
        with connect(server) as connection:
            assert request(connection)[0] == 200
        assert server.stop() == 0


def test_the_command_says_what_is_missing_and_chooses_no_server_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app.py").write_text(info())
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setattr("serve_asgi.ipc.control_protocol.runtime_directories", lambda: [tmp_path / "serve"])
    with pytest.raises(UsageError, match="no server was found"):
        control_client.find()
    with pytest.raises(UsageError, match="cannot be read"):
        control_client.find(pid_file=str(tmp_path / "none.pid"))
    with pytest.raises(UsageError, match="cannot be reached"):
        control_client.ask(tmp_path / "none.sock", "status")
    (tmp_path / "serve").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(tmp_path / "serve" / f"{os.getpid()}.sock"))
        living.listen()
        monkeypatch.setattr(control_client, "LOOK_TIME", 0.01)
        path = tmp_path / "serve" / f"{os.getpid()}.sock"
        sentence = rf"no server runs in this directory, .* PID {os.getpid()} \(it does not respond\): --control {path}$"
        with pytest.raises(UsageError, match=sentence):
            control_client.find()


def test_without_a_place_for_the_socket_the_server_serves(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    arguments = ("--control", str(tmp_path / "missing" / "control.sock"))
    with running("app:app", *arguments, directory=tmp_path) as server:
        assert "no control socket" in server.log()
        assert server.stop() == 0
