"""`run`: a script that serves until a signal, and leaves the process as it was."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

SCRIPT = """
import asyncio, signal, sys
import serve_asgi

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        if "hanging" in sys.argv:
            print("starting", flush=True)
            await asyncio.Event().wait()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("lifespan down", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/wait":
        print("waiting", flush=True)
        await asyncio.Event().wait()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": type(asyncio.get_running_loop()).__module__.encode()})

before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
serve_asgi.run(app, port=0, log_format="text", loop=sys.argv[1], graceful_timeout=30)
assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
print("went on")
"""


@contextmanager
def script(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(path), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"serving on (http://\S+)", line)
    assert found, line + process.stdout.read()
    return found[1]


def rest(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    text = process.stdout.read()
    process.wait()
    return text


@pytest.mark.parametrize(("loop", "number"), [("uvloop", signal.SIGTERM), ("asyncio", signal.SIGINT)])
def test_it_serves_until_a_signal(tmp_path: Path, loop: str, number: signal.Signals) -> None:
    with script(tmp_path, loop) as process:
        assert httpx.get(url(process)).text.partition(".")[0] == loop
        os.kill(process.pid, number)
        text = rest(process)
    assert process.returncode == 0
    assert "lifespan down" in text
    assert text.endswith("went on\n")
    assert "rror" not in text


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with script(tmp_path, "asyncio") as process:
        address = httpx.URL(url(process))
        client = socket.create_connection((address.host, address.port or 0))
        client.sendall(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        os.kill(process.pid, signal.SIGINT)
        while "stopping" not in (line := process.stdout.readline()):
            assert line
        os.kill(process.pid, signal.SIGINT)
        assert rest(process).endswith("went on\n")
        client.close()
    assert process.returncode == 0


def test_a_signal_ends_a_startup_that_hangs(tmp_path: Path) -> None:
    with script(tmp_path, "asyncio", "hanging") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting\n"
        os.kill(process.pid, signal.SIGTERM)
        assert rest(process).endswith("went on\n")
    assert process.returncode == 0


def test_within_a_running_loop_it_says_what_to_do() -> None:
    import asyncio

    import serve_asgi

    async def application(*_: object) -> None:
        """Is not called."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"async with serve_asgi\.Server"):
            serve_asgi.run(application)

    asyncio.run(main())
