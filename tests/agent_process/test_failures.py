"""Agents of real servers that are killed, raise, return or block: another one is started, and the workers serve on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process.agent_server import (
    agent_pid,
    agent_states,
    ask,
    command,
    diary,
    gaps,
    noted,
    wait_for,
    wait_for_log,
    write,
)
from tests.running import PATIENCE, RunningServer, connect, request, running, until


def test_an_agent_that_is_killed_is_started_again_and_the_workers_serve_on(tmp_path: Path) -> None:
    write(tmp_path)
    with running("app:app", "--agent", "app:beats", directory=tmp_path) as server:
        with contextlib.closing(connect(server)) as client:
            victim = agent_pid(server)
            os.kill(victim, signal.SIGKILL)
            # the worker is told: at once that nobody is there, and then who
            while json.loads(request(client, "/")[1])["present"]:
                pass
            told = json.loads(request(client, "/ask")[1])  # sent meanwhile: it waits for the new one
            assert told["agent"][0] != victim
        server.wait_until(lambda status: agent_states(status) == ["active"])
        assert len(server.workers("serving")) == 1
        assert "is lost; another is started now, the workers serve on" in server.log()
    gaps(tmp_path)


def test_an_agent_that_raises_comes_back_at_longer_and_longer_intervals(tmp_path: Path) -> None:
    write(tmp_path)
    with running("app:app", "--agent", "app:raises", directory=tmp_path) as server:
        server.wait_until(lambda status: "failed" in status["agent_trouble"])
        wait_for(tmp_path, "enter", 3)
        assert ask(server, "/")["version"] == "1"
        assert "RuntimeError: this agent is no good" in server.log()
        assert "another is started in 1 s" in server.log()
        assert server.stop() == 0
    gaps(tmp_path)


def seen_by_the_page(server: RunningServer) -> dict[str, Any]:
    """What the admin page is told first."""
    with urllib.request.urlopen(server.status()["admin"][0] + "/events", timeout=PATIENCE) as events:
        for line in events:
            if line.startswith(b"data: "):
                told: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                return told
    raise AssertionError("the page was told nothing")


def test_who_looks_at_a_server_without_its_agent_is_told_so(tmp_path: Path) -> None:
    write(tmp_path, more="async def comes_back():\n    note('enter')\n    await asyncio.Event().wait()")
    options = ("--agent", "app:comes_back", "--admin", "127.0.0.1:0")
    with running("app:app", *options, directory=tmp_path) as server:
        assert seen_by_the_page(server)["now"]["agent_missing"] is False
        assert "no agent" not in command(server, "top", "--once")
        write(tmp_path, more="async def comes_back():\n    raise ValueError")
        os.kill(agent_pid(server), signal.SIGKILL)
        wait_for_log(server, "could not be entered")
        deadline = time.monotonic() + PATIENCE
        while not (page := seen_by_the_page(server))["now"]["agent_missing"]:
            assert time.monotonic() < deadline, page
        assert "no agent" in command(server, "top", "--once", "--interval", "0.2")
        assert "there is no agent: the agent app:comes_back could not be entered" in command(server, "status")
        assert server.stop() == 0


def test_an_agent_that_a_reload_replaces_is_not_said_to_be_missing(tmp_path: Path) -> None:
    """While the old one finishes, which may take a while, no agent is active, and nothing is wrong."""
    write(tmp_path)
    options = ("--agent", "app:slow", "--agent-timeout", "60", "--agent-required", "--admin", "127.0.0.1:0")
    with running("app:app", *options, directory=tmp_path) as server:
        ask(server)
        server.signal(signal.SIGHUP)
        server.wait_until(lambda status: "finishing" in agent_states(status))
        until(lambda: "finishing" in [each["state"] for each in seen_by_the_page(server)["now"]["workers"]])
        assert "active" not in agent_states(server.status())
        assert seen_by_the_page(server)["now"]["agent_missing"] is False
        assert "no agent" not in command(server, "top", "--once", "--interval", "0.2")
        told = command(server, "status")
        assert "no agent" not in told
        assert "running, healthy" in told
        (tmp_path / "go").touch()
        server.wait_until(lambda status: agent_states(status) == ["active"])
        assert server.stop() == 0


def test_an_agent_that_returns_stays_for_its_messages(tmp_path: Path) -> None:
    write(tmp_path)
    hook = f"agent_returned=sh -c 'cat >> {tmp_path}/hooked'"
    options = ("--agent-required", "--hook", hook, "--admin", "127.0.0.1:0")
    with running("app:app", "--agent", "app:returns", *options, directory=tmp_path) as server:
        assert ask(server)["agent"][2] is True
        assert len(server.logged(r"warning: the agent of generation 1 has returned, and is not called again")) == 1
        assert agent_states(server.status()) == ["returned"]
        assert "the agent has returned" in command(server, "status")
        assert "returned" in command(server, "workers")
        assert "the agent has returned" in command(server, "top", "--once", "--interval", "0.2")
        deadline = time.monotonic() + PATIENCE
        while not (page := seen_by_the_page(server))["now"]["agent_returned"]:
            assert time.monotonic() < deadline, page
        assert page["now"]["agent_missing"] is False
        assert server.status()["agent_trouble"] == ""
        with contextlib.closing(connect(server)) as client:
            assert request(client, "/ping") == (503, b'{"status":"agent missing"}\n')
            assert request(client, "/ping?live")[0] == 200
        assert "unhealthy, since the agent is missing" in command(server, "status")
        server.reload()
        assert ask(server)["agent"][2] is True
        assert server.stop() == 0
    assert noted(tmp_path, "enter") == ["enter"] * 2
    assert [json.loads(line)["event"] for line in (tmp_path / "hooked").read_text().splitlines()] == [
        "agent_returned"
    ] * 2


def test_an_agent_that_returns_is_started_again_if_the_option_says_so(tmp_path: Path) -> None:
    write(tmp_path)
    options = ("--agent", "app:returns", "--agent-restart", "always")
    with running("app:app", *options, directory=tmp_path) as server:
        wait_for(tmp_path, "enter", 3)
        assert server.logged(r"has returned, and another is started now \(--agent-restart always\)")
        assert ask(server)["agent"][2] is True
        assert server.stop() == 0
    gaps(tmp_path)


FAILS_AMID = """
@messenger.on("who")
async def hangs_once(message):
    if "hanging" not in open(os.path.dirname(__file__) + "/diary").read():
        note("hanging")
        await asyncio.Event().wait()

async def fails_amid():
    note("enter")
    await messenger.ready()
    if "hanging" not in open(os.path.dirname(__file__) + "/diary").read():
        while "hanging" not in open(os.path.dirname(__file__) + "/diary").read():
            await asyncio.sleep(0.01)
        raise ValueError("amid")
    await asyncio.Event().wait()

asks = app

async def app(scope, receive, send):
    try:
        await asks(scope, receive, send)
    except Exception as error:
        note(str(error).replace(" ", "-"))
"""


def test_who_waits_for_an_agent_that_fails_hears_that_it_has_ended(tmp_path: Path) -> None:
    write(tmp_path, more=FAILS_AMID)
    with running("app:app", "--agent", "app:fails_amid", directory=tmp_path) as server:
        with contextlib.closing(connect(server)) as client:
            client.sendall(b"GET /ask HTTP/1.1\r\nhost: test\r\n\r\n")
            client.recv(65536)
        wait_for_log(server, "cut 1 message handlers")
        assert "handler of topic 'who' raised" not in server.log()
        server.wait_until(lambda status: agent_states(status) == ["active"])
        assert server.stop() == 0
    assert any("ended-before-it-had-replied" in entry.what for entry in diary(tmp_path))


def test_an_agent_whose_loop_is_blocked_makes_way_for_another(tmp_path: Path) -> None:
    write(tmp_path)
    options = ("--agent", "app:blocks", "--worker-timeout", "0.5", "--agent-timeout", "0.5")
    with running("app:app", *options, directory=tmp_path) as server:
        wait_for(tmp_path, "enter", 2)
        server.wait_until(lambda status: agent_states(status) == ["active"])
        assert "its event loop has been blocked" in server.log()
        assert "time.sleep(1000)" in server.log()  # the line that blocks it
        assert len(server.workers("serving")) == 1
        assert server.stop() == 0


STRANGE = """
class Strange(BaseException): pass
KIND = {kind}

async def prepare():
    if {place!r} == "prepare": raise KIND("so strange")

async def strange():
    if {place!r} == "enter": raise KIND("so strange")
    await messenger.ready()
    if {place!r} == "run": raise KIND("so strange")

if {place!r} == "import" and the_agent.here: raise KIND("so strange")
"""


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("KeyboardInterrupt", "import"),
        ("asyncio.CancelledError", "prepare"),
        ("Strange", "prepare"),
        ("SystemExit", "enter"),
        ("Strange", "run"),
    ],
)
def test_whatever_the_application_raises_is_told_as_its_own(tmp_path: Path, kind: str, place: str) -> None:
    write(tmp_path, more=STRANGE.format(kind=kind, place=place))
    server = RunningServer("app:app", "--agent", "app:strange", directory=tmp_path)
    try:
        if place == "run":
            wait_for_log(server.ready(), "is lost; another is started now")
            assert server.stop() == 0
        else:
            assert server.wait() == 1
        log = server.log()
        assert "so strange" in log
        assert f'File "{tmp_path}/app.py"' in log
        assert "server/" not in log  # none of this server's own frames
    finally:
        print(server.log())
        server.close()
