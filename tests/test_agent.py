"""Agents of real servers: one at a time, over reloads, crashes, kills and the death of the listener."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from tests.running import PATIENCE, ROOT, RunningServer, connect, request, running, state_of

RELOADS = int(os.environ.get("AGENT_RELOADS", "3"))
"""20 for the figures in docs/guides/agent.md."""
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


def test_the_agent_comes_first_and_leaves_last(tmp_path: Path) -> None:
    write(tmp_path)
    with running("app:app", "--agent", "app:inside", "--workers", "2", directory=tmp_path) as server:
        assert ask(server)["present"]
        pid, version, here = ask(server)["agent"]
        assert (version, here) == ("1", True)
        assert pid in server.worker_pids()
        (row,) = server.status()["agents"]
        assert (row["slot"], row["state"], row["generation"]) == ("agent", "active", 1)
        assert row["rss"] > 0
        for word, shown in [("status", "agent    1 active"), ("stacks", "agent of generation 1: active")]:
            assert shown in command(server, word)
        assert server.stop() == 0
    order = noted(tmp_path, "prepare", "enter", "leave", "lifespan.startup", "lifespan.shutdown")
    both = ["lifespan.startup"] * 2
    assert order == ["prepare", "enter", *both, *["lifespan.shutdown"] * 2, "leave"]


def test_over_reloads_one_agent_is_active_and_the_gap_is_small(tmp_path: Path) -> None:
    write(tmp_path)
    open_files = []
    with running("app:app", "--agent", "app:beats", directory=tmp_path) as server:
        for number in range(RELOADS):
            write(tmp_path, str(number + 2))
            assert f"generation {number + 2} serves" in server.reload()
            assert ask(server)["agent"][1] == str(number + 2)
            server.wait_for_workers(1)
            open_files.append(len(os.listdir(f"/proc/{server.pid}/fd")))
        assert open_files[-1] <= open_files[0] + 1  # whoever asks for the status has one at times
        assert len(agents_of(server)) == 1
        assert not [pid for pid in server.worker_pids() if state_of(pid) == "Z"]
        assert server.stop() == 0
    found = gaps(tmp_path)
    assert len(found) == RELOADS
    print(f"gaps: {[round(gap * 1e3, 1) for gap in found]} ms, median {statistics.median(found) * 1e3:.1f} ms")
    entries = {entry.version: entry.at for entry in diary(tmp_path) if entry.what == "prepare"}
    entered = {entry.version: entry.at for entry in diary(tmp_path) if entry.what == "enter"}
    assert all(entries[version] < entered[version] for version in entered)


def test_a_reload_whose_agent_cannot_be_entered_fails_and_the_old_one_comes_back(tmp_path: Path) -> None:
    write(tmp_path)
    with running("app:app", "--agent", "app:inside", directory=tmp_path) as server:
        write(tmp_path, "2", "inside = fails_to_enter")
        with pytest.raises(control_client.RequestRefused, match="could not be entered") as refused:
            server.reload()
        assert "the door is shut" in refused.value.detail
        assert "server/" not in refused.value.detail  # the traceback is of the application's own code
        write(tmp_path, "1")  # it starts again from its own files, which a deploy in place has to put back
        server.wait_until(lambda status: agent_states(status) == ["active"])
        assert ask(server)["version"] == "1"
        assert server.status()["failed_reloads"] == 1
        assert [agent["cause"] for agent in server.status()["agents"]] == ["return"]
        assert server.stop() == 0
    assert noted(tmp_path, "enter", "leave", "tries") == ["enter", "leave", "tries", "enter", "leave"]


def test_new_code_that_cannot_be_prepared_harms_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "agents.py").write_text("from app import *")
    with running("app:app", "--agent", "agents:inside", directory=tmp_path) as server:
        for more, said in [
            ("raise ValueError('not today')", "ValueError: not today"),
            ("async def prepare():\n    raise ValueError('not prepared')", "ValueError: not prepared"),
            ("del inside", "has no attribute 'inside'"),
        ]:
            (tmp_path / "agents.py").write_text(f"from app import *\n{more}\n")
            with pytest.raises(control_client.RequestRefused) as refused:
                server.reload()
            assert said in f"{refused.value}\n{refused.value.detail}"
        server.wait_until(lambda status: agent_states(status) == ["active"])  # the new one has ended
        assert ask(server)["present"]
    assert noted(tmp_path, "enter", "leave").count("enter") == 1


def test_a_first_start_without_its_agent_is_none(tmp_path: Path) -> None:
    write(tmp_path)
    server = RunningServer("app:app", "--agent", "app:fails_to_enter", directory=tmp_path)
    try:
        assert server.wait() == 1
        assert "could not be entered" in server.log()
        assert "the door is shut" in server.log()
        assert not noted(tmp_path, "lifespan.startup")
    finally:
        server.close()


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


def test_agents_that_are_killed_at_any_moment_of_reloads_never_overlap(tmp_path: Path) -> None:
    write(tmp_path)
    chance = random.Random(5)
    killed: set[int] = set()
    with running("app:app", "--agent", "app:beats", directory=tmp_path) as server:
        for _ in range(KILLS):
            server.signal(signal.SIGHUP)
            time.sleep(chance.uniform(0.0, 1.0))  # any moment: none is to be awaited
            for pid in chance.sample(agents := agents_of(server), chance.randint(1, len(agents)) if agents else 0):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            assert ask(server, "/")["version"] == "1"
        server.wait_until(lambda _: killed.isdisjoint(server.worker_pids()))  # only then are the last deaths known
        server.wait_until(lambda status: not status["starting"] and agent_states(status) == ["active"], 2 * PATIENCE)
        assert ask(server)["agent"][2] is True
        assert len(server.workers("serving")) == 1
        assert server.stop() == 0
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


def test_an_agent_that_returns_stays_for_its_messages(tmp_path: Path) -> None:
    write(tmp_path)
    with running("app:app", "--agent", "app:returns", "--admin", "127.0.0.1:0", directory=tmp_path) as server:
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
        server.reload()
        assert ask(server)["agent"][2] is True
        assert server.stop() == 0
    assert noted(tmp_path, "enter") == ["enter"] * 2


def test_an_agent_that_does_not_finish_is_killed_and_the_reload_goes_on(tmp_path: Path) -> None:
    write(tmp_path)
    options = ("--agent", "app:hangs", "--agent-timeout", "0.5")
    with running("app:app", *options, directory=tmp_path) as server:
        assert "generation 2 serves" in server.reload()
        assert "had not finished after 0.5 s (--agent-timeout)" in server.log()
        assert agent_states(server.status()) == ["active"]
        assert server.stop() == 0
    assert len(gaps(tmp_path)) == 1


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


def test_who_reloads_is_told_that_the_agent_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path)
    with running("app:app", "--agent", "app:slow", "--agent-timeout", "60", directory=tmp_path) as server:
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            reloading = threads.submit(command, server, "reload")
            server.wait_until(lambda status: [g["state"] for g in status["generations"]] == ["current", "passing"])
            assert "generation 2 is ready; the agent changes" in command(server, "status")
            (tmp_path / "go").touch()
            lines = reloading.result().splitlines()
        steps = [
            "the agent of generation 2 is prepared",
            "the agent of generation 1 is to finish (reload)",
            "the agent of generation 1 has finished",
        ]
        assert [line for line in lines if line in steps] == steps
        assert server.stop() == 0


WITH_HANDLER = """
@messenger.on("hang")
async def hang(message):
    note("hanging")
    await asyncio.Event().wait()

@contextlib.asynccontextmanager
async def handles():
    await messenger.send_to_agent("hang")
    yield
    note("leave")
"""


def test_in_a_quick_stop_an_agent_is_left_in_order_although_a_handler_hangs(tmp_path: Path) -> None:
    write(tmp_path, more=WITH_HANDLER)
    with running("app:app", "--agent", "app:handles", "--agent-timeout", "60", directory=tmp_path) as server:
        wait_for(tmp_path, "hanging")
        server.signal(signal.SIGQUIT)
        assert server.wait() == 0
        assert "is killed" not in server.log()
    assert noted(tmp_path, "leave") == ["leave"]


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
    assert any("ended-before-it-had-answered" in entry.what for entry in diary(tmp_path))


HANDS_OUT = """
@messenger.on("errand")
async def errand(message):
    pass

async def hands_out():
    note("enter")
    try:
        while True:
            await messenger.send_to_any("errand", ack=True)
            note("beat")
    finally:
        note("leave")

@messenger.on("linger")
async def linger(message):
    await retiring.wait()
    await asyncio.sleep(0.2)
    note("lingered")

asks = app

async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/slow":
        note("slow")
        await retiring.wait()
        await messenger.send_to_agent("linger")
        await asyncio.sleep(1.5)  # a message waits for 1 s where nobody can take it
    await asks(scope, receive, send)
"""


def test_an_agent_that_hands_out_work_waits_for_the_end_of_a_stop(tmp_path: Path) -> None:
    write(tmp_path, more=HANDS_OUT)
    with running("app:app", "--agent", "app:hands_out", directory=tmp_path) as server:
        with contextlib.closing(connect(server)) as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(request, client, "/slow")
            wait_for(tmp_path, "slow")
            assert server.stop() == 0
            assert answer.result()[0] == 200
        assert "agent_failed" not in server.log()
        assert "Traceback" not in server.log()
    assert noted(tmp_path, "enter", "leave", "lingered") == ["enter", "leave", "lingered"]


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


def test_the_agent_comes_and_goes_with_the_configuration(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "serve.toml"
    file.write_text("")
    with running("app:app", "--config", str(file), directory=tmp_path) as server:
        assert server.status()["agents"] == []
        assert not ask(server, "/")["present"]
        file.write_text('agent = "app:inside"\n')
        server.reload()
        assert agent_states(server.status()) == ["active"]
        assert ask(server)["agent"][2] is True
        file.write_text('agent = "app:beats"\n')
        server.reload()
        wait_for(tmp_path, "beat")
        (lock,) = locks_of(agent_pid(server))
        file.write_text("")
        server.reload()
        assert server.status()["agents"] == []
        server.wait_until(lambda _: not lock.exists())
        file.write_text('agent = "app:no_such"\n')
        with pytest.raises(control_client.RequestRefused, match="no_such"):
            server.reload()
        server.wait_until(lambda _: not lock.exists())
        assert server.stop() == 0
    assert noted(tmp_path, "enter", "leave") == ["enter", "leave"] * 2
    assert len(gaps(tmp_path)) == 1


FINISHES_BADLY = """
async def finishes_badly():
    note("enter")
    try:
        await asyncio.Event().wait()
    finally:
        raise ValueError("the door is stuck")


@contextlib.asynccontextmanager
async def leaves_badly():
    note("enter")
    yield
    raise ValueError("the door is stuck")
"""


@pytest.mark.parametrize("name", ["finishes_badly", "leaves_badly"])
def test_what_goes_wrong_when_an_agent_finishes_is_logged(tmp_path: Path, name: str) -> None:
    write(tmp_path, more=FINISHES_BADLY)
    with running("app:app", "--agent", f"app:{name}", directory=tmp_path) as server:
        assert "generation 2 serves" in server.reload()
        assert f"the agent app:{name} did not finish cleanly: ValueError: the door is stuck" in server.log()
        assert "server/" not in server.log().partition("did not finish")[2].partition("has finished")[0]
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


ENTERS_LATE = """
class Late:
    async def __aenter__(self):
        note("enter")
        while not os.path.exists(os.path.dirname(__file__) + "/go"):
            time.sleep(0.01)

    async def __aexit__(self, kind, *_):
        note(f"left-{kind}")

late = Late()
"""


def test_one_that_is_told_to_finish_at_the_moment_when_it_is_entered_is_left_in_order(tmp_path: Path) -> None:
    write(tmp_path, more=ENTERS_LATE)
    server = RunningServer("app:app", "--agent", "app:late", "--block-warning", "0", directory=tmp_path)
    try:
        wait_for(tmp_path, "enter")
        server.signal(signal.SIGTERM)
        wait_for_log(server, "stopped before the first start was complete")
        (tmp_path / "go").touch()
        assert server.wait() == 0
    finally:
        print(server.log())
        server.close()
    assert diary(tmp_path)[-1].what == "left-None"


FORKS = """
@contextlib.asynccontextmanager
async def forks():
    note("enter")
    if (child := os.fork()) == 0:
        note("child")
        ours = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
        if os.fork() == 0:
            for each in ours:
                os.fstat(each)
            note("grandchild-has-all")
            os._exit(0)
        time.sleep(1000)
    yield
    note("leave")
    os.kill(child, 9)
"""


def test_descendants_of_an_agent_do_not_keep_its_lock_nor_lose_files_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, more=FORKS)
    with running("app:app", "--agent", "app:forks", directory=tmp_path) as server:
        wait_for(tmp_path, "grandchild-has-all")
        os.kill(agent_pid(server), signal.SIGKILL)  # and its child lives on
        wait_for(tmp_path, "enter", 2)
        assert ask(server)["agent"][2] is True
        assert "has not ended" not in server.log()
        assert server.stop() == 0
    for entry in diary(tmp_path):
        if entry.what == "child":
            with contextlib.suppress(ProcessLookupError):
                os.kill(entry.pid, signal.SIGKILL)


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


@contextlib.contextmanager
def killed_listener(directory: Path, bind: str, *options: str) -> Iterator[int]:
    """A server whose listener has been killed, and whose workers have ended; gives the PID of its agent."""
    server = RunningServer("app:app", *options, directory=directory, bind=bind).ready()
    pids = server.worker_pids()
    try:
        agent = agent_pid(server)
        server.process.kill()
        server.wait()
        wait_until_gone(*(pid for pid in pids if pid != agent))
        yield agent
    finally:
        print(server.log())
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.close()


def test_an_orphaned_agent_finishes_and_the_next_servers_waits_for_it(tmp_path: Path) -> None:
    write(tmp_path)
    bind = f"127.0.0.1:{free_port()}"
    options = ("--agent", "app:slow", "--agent-timeout", "60")
    with killed_listener(tmp_path, bind, *options) as orphan:
        server = RunningServer("app:app", *options, directory=tmp_path, bind=bind)
        try:
            wait_for_log(server, f"PID {orphan}, has not ended")
            (tmp_path / "go").touch()
            assert ask(server.ready())["agent"][0] != orphan
            assert server.stop() == 0
        finally:
            print(server.log())
            server.close()
    assert noted(tmp_path, "leave") == ["leave", "leave"]
    assert len(gaps(tmp_path)) == 1


def test_an_orphaned_agent_that_does_not_finish_ends_at_its_deadline(tmp_path: Path) -> None:
    write(tmp_path)
    bind = f"127.0.0.1:{free_port()}"
    options = ("--agent", "app:hangs", "--agent-timeout", "1")
    with (
        killed_listener(tmp_path, bind, *options) as orphan,
        running("app:app", *options, directory=tmp_path, bind=bind) as server,
    ):
        assert ask(server)["agent"][0] != orphan
        assert state_of(orphan) in ("", "Z")
        server.signal(signal.SIGQUIT)
        assert server.wait() == 0
    assert len(gaps(tmp_path)) == 1


def test_a_new_program_of_the_listener_goes_on_with_the_agent_that_there_is(tmp_path: Path) -> None:
    write(tmp_path)
    with running("app:app", "--agent", "app:beats", directory=tmp_path) as server:
        before = agent_pid(server)
        control_client.ask(control_client.find(control=str(server.control)), "reload-listener")
        assert agent_pid(server) == before
        assert agent_states(server.status()) == ["active"]
        server.reload()
        assert agent_pid(server) != before
        locks = [lock for pid in agents_of(server) for lock in locks_of(pid)]
        assert [lock.exists() for lock in locks] == [True]
        assert server.stop() == 0
        assert not locks[0].exists()
    assert len(gaps(tmp_path)) == 1


def test_old_workers_talk_to_the_new_agent(tmp_path: Path) -> None:
    write(tmp_path)
    with running("app:app", "--agent", "app:inside", directory=tmp_path) as server:
        host, port = server.address()
        slow = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        slow.putrequest("POST", "/ask")  # a request that has begun keeps its worker until it has been answered
        slow.putheader("content-length", "2")
        slow.endheaders(b"x")
        write(tmp_path, "2")
        server.reload()
        slow.send(b"y")
        told = json.loads(slow.getresponse().read())
        slow.close()
        assert told["version"] == "1"
        assert told["agent"][1] == "2"
        assert server.stop() == 0
