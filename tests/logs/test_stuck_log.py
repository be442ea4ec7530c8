"""A stop and a reload while nobody reads the log: what cannot be written holds nobody up. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import PATIENCE, ROOT, RunningServer, connect, request

pytestmark = pytest.mark.once

APPLICATION = """
import os, sys
from serve_asgi.logs import stdio_guard

async def app(scope, receive, send):
    if scope["path"] == "/block":  # its own way to the log is made one that waits
        for stream in stdio_guard.current().streams:
            os.set_blocking(stream.read_end, True)
            os.set_blocking(stream.sink.fileno(), True)
    print("x" * 2000)
    print("y" * 2000, file=sys.stderr)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""
FULL = 1500
"""Requests after which pipe, buffers and what is in between hold no more."""


@pytest.mark.parametrize(
    ("how", "log", "path"),
    [
        ("term", "pipe", "/block"),
        ("term", "fifo", "/block"),
        ("int", "pipe", "/"),
        ("int", "fifo", "/"),
        ("command", "pipe", "/"),
        ("command", "fifo", "/block"),
        ("reload", "pipe", "/block"),
        ("reload", "fifo", "/"),
    ],
)
def test_a_stop_waits_for_no_reader_of_the_log(tmp_path: Path, how: str, log: str, path: str) -> None:
    """A worker that is stuck would be ended by the graceful timeout alone, which no test waits for."""
    (tmp_path / "app.py").write_text(APPLICATION)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    options = ("--log-file", str(fifo), "--access-log-file", str(fifo)) if log == "fifo" else ()
    # What the shell does: standard output and error are the pipe that nobody reads.
    wrapper = () if log == "fifo" else ("sh", "-c", f'exec "$@" > {fifo} 2>&1', "sh")
    server = RunningServer(
        "app:app",
        *("--workers", "2", "--lifespan", "off", "--graceful-timeout", "3600", *options),
        directory=tmp_path,
        wrapper=wrapper,
    )
    try:
        server.ready()
        with connect(server) as client:
            request(client, path)
            for number in range(FULL):
                assert request(client, f"/{number}/{'a' * 500}")[0] == 200
        with connect(server) as client:
            request(client, path)
        if how == "reload":
            server.reload()
            server.wait_until(lambda status: len(status["generations"]) == 1)
            assert server.stop() == 0
        elif how == "command":
            command = [sys.executable, "-m", "serve_asgi", "stop", "--control", str(server.control)]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            assert subprocess.run(command, env=environment, timeout=PATIENCE * 2, check=False).returncode == 0
            assert server.wait() == 0
        else:
            server.signal(signal.SIGTERM if how == "term" else signal.SIGINT)
            assert server.wait() == 0
    finally:
        server.close()
        os.close(reader)
