"""A server with an agent that keeps a diary, and what tests ask of both."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.running import PATIENCE, ROOT, RunningServer, connect, request, state_of

KILLS = int(os.environ.get("AGENT_KILLS", "5"))


APPLICATION = """
import asyncio, contextlib, json, os, time
from serve_asgi import agent as the_agent, retiring, messenger

VERSION = {version!r}
DIARY = os.open(os.path.dirname(__file__) + "/diary", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(what):
    # also whether the code is where it should be
    os.write(DIARY, f"{{time.monotonic():.6f}} {{os.getpid()}} {{VERSION}} {{what}} {{the_agent.here}}\\n".encode())


async def prepare():
    note("prepare")


@messenger.on("who")
def who(message):
    return [os.getpid(), VERSION, the_agent.here]


async def beats():
    note("enter")
    try:
        while True:
            note("beat")
            await asyncio.sleep(0.002)
    finally:
        note("leave")


async def slow():
    note("enter")
    try:
        await asyncio.Event().wait()
    finally:
        while not os.path.exists(os.path.dirname(__file__) + "/go"):
            note("beat")
            await asyncio.sleep(0.01)
        note("leave")


@contextlib.asynccontextmanager
async def inside():
    note("enter")
    yield
    note("leave")


async def returns():
    note("enter")


async def raises():
    note("enter")
    await messenger.ready()  # whoever raises before the server is ready lets it not start
    raise RuntimeError("this agent is no good")


async def hangs():
    note("enter")
    while True:
        try:
            note("beat")
            await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            note("hangs")


async def blocks():
    note("enter")
    await messenger.ready()
    if not os.path.exists(os.path.dirname(__file__) + "/blocked"):
        open(os.path.dirname(__file__) + "/blocked", "w").close()
        time.sleep(1000)
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def fails_to_enter():
    note("tries")
    raise RuntimeError("the door is shut")
    yield


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            note(event["type"])
            await send({{"type": event["type"] + ".complete"}})
            if event["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    told = {{"present": the_agent.present, "version": VERSION}}
    if scope["path"] == "/ask":
        told["agent"] = await the_agent.call("who", timeout=20)
    data = json.dumps(told).encode()
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]}})
    await send({{"type": "http.response.body", "body": data}})
{more}
"""


def write(directory: Path, version: str = "1", more: str = "") -> None:
    (directory / "app.py").write_text(APPLICATION.format(version=version, more=more))


@dataclasses.dataclass
class Entry:
    at: float
    pid: int
    version: str
    what: str
    here: bool


def diary(directory: Path) -> list[Entry]:
    """What was noted, in the order in which it was."""
    lines = (directory / "diary").read_text().splitlines()
    return [Entry(float(at), int(pid), v, what, here == "True") for at, pid, v, what, here in map(str.split, lines)]


def noted(directory: Path, *whats: str) -> list[str]:
    return [entry.what for entry in diary(directory) if entry.what in whats]


def gaps(directory: Path) -> list[float]:
    """Times (s) between the last thing that one agent did and the first that the next did; none is negative."""
    spans: dict[int, list[float]] = {}
    for entry in diary(directory):
        if entry.what in ("enter", "beat", "leave", "hangs"):
            assert entry.here
            spans.setdefault(entry.pid, []).append(entry.at)
    ordered = sorted(spans.values(), key=min)
    found = [min(after) - max(before) for before, after in itertools.pairwise(ordered)]
    assert all(gap >= 0 for gap in found), f"two agents at the same time: {found}"
    return found


def ask(server: RunningServer, path: str = "/ask") -> dict[str, Any]:
    with contextlib.closing(connect(server)) as client:
        status, content = request(client, path)
    assert status == 200
    told: dict[str, Any] = json.loads(content)
    return told


def agent_pid(server: RunningServer) -> int:
    pid: int = ask(server)["agent"][0]
    return pid


def agent_states(status: dict[str, Any]) -> list[str]:
    return [each["state"] for each in status["agents"]]


def wait_for(directory: Path, what: str, count: int = 1) -> None:
    """Wait until `what` has been noted so often."""
    deadline = time.monotonic() + PATIENCE
    while not (directory / "diary").exists() or len(noted(directory, what)) < count:
        assert time.monotonic() < deadline, f"{what} has not happened"
        time.sleep(0.01)


def agents_of(server: RunningServer) -> list[int]:
    """The PIDs of all agent processes, whatever their state."""
    found = []
    for pid in server.worker_pids():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().startswith("serve-agent"):
                found.append(pid)
    return found


def locks_of(pid: int) -> list[Path]:
    """The lock files that an agent has open."""
    found = [Path(os.readlink(each)) for each in Path(f"/proc/{pid}/fd").iterdir()]
    return [path for path in found if path.name.startswith("agent-")]


def command(server: RunningServer, *words: str) -> str:
    """What a command says."""
    done = subprocess.run(
        [sys.executable, "-m", "serve_asgi", *words, "--control", str(server.control)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_log(server: RunningServer, text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while text not in server.log():
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.02)


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(state_of(pid) not in ("", "Z") for pid in pids):
        assert time.monotonic() < deadline, f"{pids} have not ended"
        time.sleep(0.01)
