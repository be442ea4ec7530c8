"""The admin process: what it survives, and whom it cannot hold up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from serve_asgi.cli import control_client
from tests.admin.scraping import ADMIN, admin_address, fetch, status_page, value, wait_for
from tests.admin.test_metrics import admin_process, workers_of
from tests.applications import info
from tests.running import PATIENCE, ROOT, connect, request, running, state_of, until


def test_while_the_listener_is_stopped_the_metrics_go_on(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", *ADMIN, directory=tmp_path) as server, connect(server) as connection:
        address = admin_address(server)
        server.signal(signal.SIGSTOP)
        try:
            assert request(connection)[0] == 200
            wait_for(address, lambda metrics: value(metrics, "serve_requests_total") == 1)
            assert fetch(address, "/-/healthy")[0] == 200
        finally:
            server.signal(signal.SIGCONT)
        assert server.stop() == 0


def test_one_that_dies_is_replaced_and_knows_what_happened_before(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", *ADMIN, directory=tmp_path) as server:
        address, first = admin_address(server), admin_process(server)
        server.reload()
        os.kill(first, signal.SIGKILL)
        metrics = wait_for(address, lambda metrics: value(metrics, "serve_reloads_total", outcome="done") == 1)
        assert value(metrics, "serve_worker_restarts_total", cause="crash") == 0
        assert value(metrics, "serve_last_reload_duration_seconds") > 0
        assert admin_process(server) != first
        assert "the admin process ended (signal SIGKILL)" in server.log()
        assert [each["outcome"] for each in status_page(address)["reloads"]] == ["done"]
        assert server.stop() == 0


def test_a_stopped_one_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", *ADMIN, directory=tmp_path) as server, connect(server) as connection:
        stopped = admin_process(server)
        os.kill(stopped, signal.SIGSTOP)
        for _ in range(2):
            server.reload()
            assert request(connection)[0] == 200
        control_client.ask(server.control, "reload-listener")
        assert fetch(admin_address(server))[0] == 200
        assert server.stop() == 0
        assert state_of(stopped) == ""


def test_it_ends_when_the_listener_dies(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", *ADMIN, directory=tmp_path) as server:
        address, process = admin_address(server), admin_process(server)
        with socket.create_connection(address, timeout=PATIENCE) as reader:
            reader.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            while b"event: hello" not in reader.recv(65536):
                pass
            server.signal(signal.SIGKILL)
            while reader.recv(65536):  # the stream ends as it should, and its connection with it
                pass
        until(lambda: state_of(process) in ("", "Z"), "the end of the admin process")


def test_a_reload_that_is_refused_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", *ADMIN, directory=tmp_path) as server:
        address = admin_address(server)
        (tmp_path / "app.py").write_text("import nothing_of_this_name")
        server.signal(signal.SIGHUP)
        metrics = wait_for(address, lambda metrics: value(metrics, "serve_reloads_total", outcome="refused") == 1)
        assert value(metrics, "serve_deploys_total", outcome="started") == 1
        wait_for(address, lambda metrics: value(metrics, "serve_deploys_total", outcome="refused") == 1)
        assert value(metrics, "serve_last_reload_successful") == 0
        assert value(metrics, "serve_generation") == 1
        with socket.create_connection(address, timeout=PATIENCE) as reader:
            reader.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            told = b""
            while b"nothing_of_this_name" not in told:
                told += reader.recv(65536)
        (tmp_path / "app.py").write_text(info())
        server.reload()
        wait_for(address, lambda metrics: value(metrics, "serve_last_reload_successful") == 1)
        assert server.stop() == 0


SOCKETS = """
import asyncio
http = app

async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return await http(scope, receive, send)
    await send({"type": "websocket.accept"})
    await asyncio.Event().wait()
"""
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def test_a_slot_whose_workers_die_is_told_as_degraded_until_one_serves(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info() + SOCKETS)
    with running("app:app", *ADMIN, directory=tmp_path) as server:
        address = admin_address(server)
        first = workers_of(server)[0]
        with connect(server) as client:
            client.sendall(HANDSHAKE)
            assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
            os.kill(first, signal.SIGKILL)  # replaced at once, and the next one only after a while
            wait_for(address, lambda metrics: value(metrics, "serve_requests_lost_total") == 1)
        server.wait_until(lambda status: first not in server.worker_pids() and status["workers"] != [])
        server.wait_for_workers(1)
        os.kill(workers_of(server)[0], signal.SIGKILL)
        wait_for(address, lambda metrics: value(metrics, "serve_slot_degraded", slot="0") == 1)
        metrics = wait_for(address, lambda metrics: value(metrics, "serve_worker_restarts_total", cause="crash") == 2)
        metrics = wait_for(address, lambda metrics: value(metrics, "serve_slot_degraded", slot="0") == 0)
        assert value(metrics, "serve_workers", state="serving") == 1
        assert server.stop() == 0


def test_a_taken_address_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = ["-m", "serve_asgi", "app:app", "--no-control-socket", "--bind", "127.0.0.1:0", "--bind-timeout", "0"]
        ended = subprocess.run(
            [sys.executable, *command, "--admin", f"127.0.0.1:{port}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert ended.returncode == 2
    assert f"port {port} of 127.0.0.1 is in use" in ended.stderr


def test_an_address_that_others_can_reach_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--admin", "0.0.0.0:0", directory=tmp_path) as server:
        assert "asks for no password and can be reached from other machines" in server.log()
        assert server.stop() == 0
