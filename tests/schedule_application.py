"""An application whose schedules write each of their runs into a file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from serve_asgi.cli import control_client
from tests.running import PATIENCE, RunningServer

APPLICATION = """
import asyncio, os, time
from serve_asgi import schedule


def note(what):
    run = schedule.current_run()
    fd = os.open("runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    instant = round(run.instant.timestamp() * 1000)
    os.write(fd, f"{what} {run.name} {instant} {run.attempt} {run.kind} {os.getpid()} {run.token}\\n".encode())
    os.close(fd)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def agent():
    with open("agent", "w") as file:
        file.write(str(os.getpid()))
    await asyncio.Event().wait()

"""
"""It has no schedules; a test adds them. `note` is for them to call."""


@dataclasses.dataclass(frozen=True)
class Noted:
    """A line of the file."""

    what: str
    name: str
    instant: int  # milliseconds
    attempt: int
    kind: str
    pid: int
    token: str


def notes(directory: Path, name: str = "") -> list[Noted]:
    """What was written, all or of one schedule."""
    file = directory / "runs"
    lines = file.read_text().splitlines() if file.exists() else []
    found = []
    for line in lines:
        what, of, instant, attempt, kind, pid, token = line.split()
        found.append(Noted(what, of, int(instant), int(attempt), kind, int(pid), token))
    return [each for each in found if name in ("", each.name)]


def until(condition: Callable[[], object], what: str = "it is so") -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def report(server: RunningServer, name: str) -> dict[str, object]:
    """What the server tells about one schedule."""
    (found,) = control_client.ask(server.control, "schedules", name=name)["schedules"]
    assert isinstance(found, dict)
    return found


def outcomes(server: RunningServer, name: str) -> list[str]:
    """Of its history, the newest first."""
    history = report(server, name)["history"]
    assert isinstance(history, list)
    return [entry["outcome"] for entry in history]


def do(server: RunningServer, what: str, name: str) -> str:
    """`serve schedule`, in short. Raises control_client.RequestRefused."""
    return str(control_client.ask(server.control, "schedule", do=what, name=name)["text"])
