"""Commands typed against a running server, and an application that takes as long as it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.running import PATIENCE, ROOT, RunningServer, connect

SLOW = """
import asyncio, time


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    what, _, seconds = scope["path"][1:].partition("/")
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return await asyncio.sleep(3600)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"do", "more_body": True})
    if what == "block":
        await asyncio.sleep(0.05)  # what was sent leaves at the end of the loop's turn
        time.sleep(float(seconds))
    elif what == "wait":
        await asyncio.sleep(float(seconds))
    await send({"type": "http.response.body", "body": b"ne"})
"""
"""An `app` for which /wait/SECONDS takes so long and /block/SECONDS blocks the event loop for so long. The head and
half of the body come at once: the request is in progress then. A WebSocket stays open whatever its client does."""


HANDSHAKE = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
HANDSHAKE += "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
"""Of a WebSocket (RFC 6455, section 4.1)."""


def begin(server: RunningServer, path: str, more: str = "", until: bytes = b"\r\n\r\ndo") -> Any:
    """A connection with a request in progress, with `more` header lines, answered as far as `until`."""
    connection = connect(server)
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: test\r\n{more}\r\n".encode())
    connection.settimeout(PATIENCE)
    data = b""
    while until not in data:
        piece = connection.recv(65536)
        assert piece, f"closed after {data!r}"
        data += piece
    return connection


def environment(**more: str) -> dict[str, str]:
    """Of a person's shell, without what the tests' own surroundings have set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SERVE_") and k not in ("COLUMNS", "LINES")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def command(server: RunningServer | None, *arguments: str) -> list[str]:
    """The words of one command for `server`."""
    reach = ["--control", str(server.control)] if server is not None else []
    return [sys.executable, "-m", "serve_asgi", *arguments, *reach]


def serve(
    server: RunningServer | None, *arguments: str, cwd: Path = ROOT, **more: str
) -> subprocess.CompletedProcess[str]:
    """Type a command and wait for its end; `more` are variables of the environment."""
    return subprocess.run(
        command(server, *arguments),
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
    )


def start(server: RunningServer | None, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    """Type a command and go on; the caller waits for its end."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen(command(server, *arguments), cwd=ROOT, env=environment(), text=True, **pipes)
