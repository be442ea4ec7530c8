"""The pytest plugin as its users have it: tests of theirs, run by pytest in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serve_asgi.pytest_plugin import server_command
from tests.applications import info
from tests.running import PATIENCE

IN_PROCESS = """
import contextlib
import http.client
import threading

import serve_asgi
from serve_asgi import messenger, schedule, shared

seen = []


@messenger.on("said")
async def said(message):
    seen.append(message.payload)


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    count = await shared.incr("visits")
    await messenger.broadcast("said", count)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(count).encode()})


def module(message):
    pass  # of a module, which may be imported within a test


def visit(server):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.request("GET", "/")
        return connection.getresponse().read()


def test_first(serve_app):
    one, other = serve_app(app), serve_app(app, http2=False)
    assert (visit(one), visit(other), visit(one)) == (b"1", b"2", b"3")
    assert one.url.startswith("http://127.0.0.1:") and one.url != other.url
    messenger.on("late", lambda message: None)
    messenger.on("module", module)


def test_each_test_begins_with_an_empty_hub(serve_app):
    assert visit(serve_app(app)) == b"1"
    assert set(messenger.receiver.registered()) == {"said", "module"}
    assert threading.active_count() < 10


def test_nothing_is_left():
    assert threading.active_count() == 1
    assert 1 in seen
"""

TIME = """
import asyncio
import datetime

import pytest

from serve_asgi import schedule, shared

ran = []


@schedule(cron="0 3 * * *", tz="Europe/Berlin")
async def nightly():
    await asyncio.sleep(0.01)
    ran.append(schedule.current_run().instant)


async def app(scope, receive, send):
    pass


def test_a_week(serve_app, serve_time):
    serve_app(app, lifespan="off")
    serve_time.advance_sync(days=7)
    assert len(ran) == 7
    assert {b - a for a, b in zip(ran, ran[1:])} <= {datetime.timedelta(hours=h) for h in (23, 24, 25)}


def test_in_the_loop_of_the_test(serve_time):
    async def it():
        hours = []

        @schedule(every="1h", name="hourly")
        async def hourly():
            hours.append(serve_time.now)

        await shared.set("a", 1)
        await serve_time.advance(hours=5)
        assert len(hours) == 5
        with pytest.raises(ValueError):
            await serve_time.advance(seconds=-1)

    asyncio.run(it())


def test_the_time_is_as_it_was_and_so_are_the_schedules(serve_time):
    assert abs(serve_time.now - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)
    assert set(schedule.registered()) == {"nightly"}
    assert "a" not in shared
"""

PROCESSES = """
import contextlib
import http.client

import pytest


def get(server):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()


def test_a_deploy(serve_command, tmp_path):
    (tmp_path / "app.py").write_text(APP.format(1))
    server = serve_command("app:app", "--workers", "2", "--keep-previous", "60")
    assert '"version": "1"' in get(server)
    (tmp_path / "app.py").write_text(APP.format(2))
    assert "generation 2" in server.reload()
    assert '"version": "2"' in get(server)
    (tmp_path / "app.py").write_text("1/0")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        server.reload()
    assert server.status()["generation"] == 2
    assert "generation 1" in server.rollback()
    assert server.stop() == 0
    assert "stopped" in server.log()


def test_one_that_does_not_start(serve_command, tmp_path):
    (tmp_path / "app.py").write_text("1/0")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        serve_command("app:app")
"""

NO_IMPORT = """
import sys


def test_nothing_of_the_server_is_imported():
    ours = {name for name in sys.modules if name.startswith("serve_asgi")}
    assert ours == {"serve_asgi", "serve_asgi.pytest_plugin", "serve_asgi.pytest_plugin.fixtures"}
"""


def run(directory: Path, text: str) -> None:
    """Run these tests; all must pass, and warnings are errors."""
    (directory / "test_theirs.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_theirs.py"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", [IN_PROCESS, TIME, NO_IMPORT], ids=["in_process", "time", "no_import"])
def test_in_process(tmp_path: Path, text: str) -> None:
    run(tmp_path, text)


def test_as_processes(tmp_path: Path) -> None:
    app = info("@@").replace("{", "{{").replace("}", "}}").replace("@@", "{}")
    run(tmp_path, f"APP = {app!r}\n{PROCESSES}")


ENDLESS = """
import asyncio


async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    await asyncio.Event().wait()
"""


def test_what_does_not_end_holds_no_test_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "app.py").write_text(ENDLESS)
    monkeypatch.setattr(server_command, "GRACE", 0.2)
    with server_command.ServerCommand("app:app", directory=tmp_path) as server:
        client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536)
    assert "quick stop" in capsys.readouterr().out
    client.close()
