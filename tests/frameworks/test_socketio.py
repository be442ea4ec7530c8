"""Socket.IO: its client comes back by itself, over each transport, and every call is answered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.frameworks.driving import APPLICATIONS, reload, serving, url

pytestmark = pytest.mark.frameworks("socketio", "requests", "websocket")


@pytest.mark.parametrize("transports", [["websocket"], ["polling", "websocket"]])
def test_calls_before_and_after_a_reload(tmp_path: Path, transports: list[str]) -> None:
    with serving("socketio_app:app", tmp_path) as server:
        before = set(server.worker_pids())
        command = [sys.executable, str(APPLICATIONS / "socketio_client.py"), url(server), *transports]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            assert int(client.stdout.readline()) in before
            reload(server)
            client.stdin.write("go on\n")
            client.stdin.flush()
            assert int(client.stdout.readline()) not in before
            assert client.wait() == 0
