"""The roll-back as users see it: the previous generation stands by, and serves again within a moment."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.reload import run
from loadtest.report import table
from loadtest.result import Settings
from serve_asgi.cli import control_client
from serve_asgi.cli.control_client import RequestRefused
from tests.certificates import Authority
from tests.running import PATIENCE, ROOT, RunningServer, request, running, state_of, until

APPLICATION = """
import asyncio, json, os
from serve_asgi import messenger, retiring, schedule

VERSION = {version!r}

def note(*words):
    fd = os.open("notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(map(str, (VERSION, *words, os.getpid()))) + "\\n").encode())
    os.close(fd)

async def work():
    while True:
        await retiring.over()
        note("background")
        await retiring.wait()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            note(kind)
            if kind == "lifespan.startup":
                task = asyncio.create_task(work())
            await send({{"type": kind + ".complete"}})
            if kind == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({{"type": "websocket.accept"}})
        await send({{"type": "websocket.send", "text": VERSION}})
        while (message := await receive())["type"] == "websocket.receive":
            await send({{"type": "websocket.send", "text": VERSION}})
        return
    if scope["path"] == "/stream":
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": b"begun\\n", "more_body": True}})
        reason = await retiring.wait()
        await send({{"type": "http.response.body", "body": reason.encode()}})
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(1000)
    if scope["path"] == "/send":
        await messenger.send_to_any("job", None, ack="success")
        for slot in range(2):
            await messenger.send_to(slot, "own", None)
    told = {{"version": VERSION, "pid": os.getpid(), "retiring": retiring()}}
    told["generation"] = scope["extensions"]["serve"]["generation"]
    data = json.dumps(told).encode()
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]}})
    await send({{"type": "http.response.body", "body": data}})

@messenger.on("job")
async def job(message):
    note("job")

@messenger.on("own")
async def own(message):
    note("own")

@messenger.on("news")
async def news(message):
    note("news")

@schedule(every="1s", name="tick")
async def tick():
    note("tick", round(schedule.current_run().instant.timestamp()))

async def agent():
    note("agent-begins")
    try:
        await retiring.wait()
    finally:
        note("agent-ends")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APPLICATION.format(version="1"))
    return tmp_path


def deploy(server: RunningServer, version: str) -> None:
    """Reload new code."""
    (server.directory / "app.py").write_text(APPLICATION.format(version=version))
    server.reload()


def stands_by(server: RunningServer) -> None:
    """Wait until the previous generation has nothing left to do."""
    server.wait_until(
        lambda status: (
            [g["state"] for g in status["generations"]].count("standby") == 1
            and not any(w["state"] in ("standing down", "retiring", "ending") for w in status["workers"])
        )
    )


def roll_back(server: RunningServer) -> str:
    return str(control_client.ask(server.control, "rollback")["text"])


def rolled_back(server: RunningServer, workers: int = 2) -> None:
    """Roll back, and wait until nothing else is left."""
    roll_back(server)
    server.wait_for_workers(workers)


def notes(server: RunningServer, what: str) -> list[list[str]]:
    """The lines that the application has written about something: version, word, …, PID."""
    lines = (server.directory / "notes").read_text().splitlines()
    return [line.split() for line in lines if line.split()[1] == what]


def told(connection: socket.socket) -> dict[str, object]:
    status, data = request(connection)
    assert status == 200
    found: dict[str, object] = json.loads(data)
    return found


def connect(server: RunningServer, context: ssl.SSLContext | None = None) -> socket.socket:
    plain = socket.create_connection(server.address(), timeout=PATIENCE)
    return plain if context is None else context.wrap_socket(plain, server_hostname="localhost")


KEEP = ("--keep-previous", "600", "--workers", "2")


@pytest.mark.parametrize("tls", [False, True])
def test_kept_connections_see_the_previous_code_again(project: Path, tls: bool) -> None:
    arguments, context = list(KEEP), None
    if tls:
        authority = Authority()
        cert, key = authority.server("localhost").write(project)
        arguments += ["--tls-cert", str(cert), "--tls-key", str(key)]
        context = authority.client_context()
    with running("app:app", *arguments, directory=project) as server:
        connections = [connect(server, context) for _ in range(10)]
        first = {told(each)["pid"] for each in connections}
        for version in ("2", "3"):
            deploy(server, version)
            stands_by(server)
            assert {told(each)["version"] for each in connections} == {version}
            assert not {told(each)["pid"] for each in connections} & first
            rolled_back(server)
            found = [told(each) for each in connections]
            assert {each["version"] for each in found} == {"1"}
            assert {each["pid"] for each in found} <= set(server.worker_pids())
            assert not any(each["retiring"] for each in found)
        assert {g["number"] for g in server.status()["generations"]} == {1}
        for each in connections:
            each.close()
        assert server.stop() == 0
        starts = [line[-1] for line in notes(server, "lifespan.startup")]
        ends = [line[-1] for line in notes(server, "lifespan.shutdown")]
        assert len(set(starts)) == 6
        assert sorted(starts) == sorted(ends)
        own = [line for line in notes(server, "background") if line[0] == "1"]
        assert len(own) == 2 * 3  # at the start, and after each roll-back


@pytest.mark.once
@pytest.mark.timeout(400)
def test_roll_backs_under_load_are_noticed_by_nobody() -> None:
    result = run(Settings(reloads=0, rollbacks=3, interval=0.2))
    outcome = (result.lost, result.duplicated, result.reconnects, result.problems)
    assert outcome == (0, 0, 0, []), table(result)
    assert sum(1 for each in result.reloads if each.answered) == 3


def test_streams_and_websockets_of_the_code_that_is_taken_back_end_as_in_a_reload(project: Path) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect as open_websocket

    with running("app:app", *KEEP, "--ws-retire", "early", "--ws-retire-window", "0", directory=project) as server:
        deploy(server, "2")
        stands_by(server)
        host, port = server.address()
        with connect(server) as stream, open_websocket(f"ws://{host}:{port}/") as websocket:
            stream.sendall(b"GET /stream HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
            data = b""
            while b"begun" not in data:
                data += stream.recv(1000)
            assert websocket.recv() == "2"
            roll_back(server)
            while piece := stream.recv(1000):
                data += piece
            assert b"rollback" in data
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(timeout=PATIENCE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        assert server.stop() == 0


@pytest.mark.once
def test_what_has_not_left_yet_stays_when_the_worker_is_called_back(project: Path) -> None:
    from websockets.sync.client import connect as open_websocket

    with running("app:app", *KEEP, directory=project) as server:
        host, port = server.address()
        with open_websocket(f"ws://{host}:{port}/") as websocket:  # closes late: its worker stands down meanwhile
            assert websocket.recv() == "1"
            deploy(server, "2")
            assert server.workers("standing down")
            rolled_back(server)
            websocket.send("still there?")
            assert websocket.recv(timeout=PATIENCE) == "1"
        deploy(server, "3")  # and it can stand by later
        stands_by(server)
        assert server.stop() == 0


def test_agent_schedules_and_messages_follow(project: Path) -> None:
    arguments = (*KEEP, "--agent", "app:agent")
    with running("app:app", *arguments, directory=project) as server, connect(server) as connection:

        def works(version: str) -> None:
            """The agent, a schedule and messages of this version, and of no other."""
            agents = [line[0] for line in notes(server, "agent-begins")]
            until(lambda: agents != [line[0] for line in notes(server, "agent-begins")] or agents[-1] == version)
            until(lambda: notes(server, "agent-begins")[-1][0] == version, "the agent of the version")
            before = {what: len(notes(server, what)) for what in ("tick", "job", "own")}
            assert request(connection, "/send")[0] == 200
            for what, count in (("job", 1), ("own", 2), ("tick", 3)):
                until(lambda what=what, count=count: len(notes(server, what)) >= before[what] + count)  # type: ignore[misc]
                assert {line[0] for line in notes(server, what)[before[what] + (what == "tick") :]} == {version}

        (project / "notes").touch()
        works("1")
        deploy(server, "2")
        stands_by(server)
        works("2")
        (project / "app.py").write_text(APPLICATION.format(version="1"))  # what the agent is started with
        roll_back(server)
        works("1")
        server.wait_for_workers(2)
        assert server.stop() == 0
    order = [line[1] for line in map(str.split, (project / "notes").read_text().splitlines()) if "agent" in line[1]]
    assert order == ["agent-begins", "agent-ends"] * 3, "never two at once"
    ticks = [line[2] for line in notes(server, "tick")]
    assert len(ticks) == len(set(ticks)), "each tick once"


@pytest.mark.once
def test_a_worker_killed_while_it_stands_by_is_replaced_after_the_roll_back(project: Path) -> None:
    with running("app:app", *KEEP, directory=project) as server:
        killed = server.worker_pids()[0]
        deploy(server, "2")
        stands_by(server)
        os.kill(killed, signal.SIGKILL)
        server.wait_until(lambda status: len(status["workers"]) == 3)
        (project / "app.py").write_text(APPLICATION.format(version="1"))
        rolled_back(server)
        assert {worker["generation"] for worker in server.workers()} == {1}
        assert server.status()["lost"] == 0
        assert server.stop() == 0


@pytest.mark.once
def test_a_worker_that_is_rolled_back_may_be_killed_at_that_moment(project: Path) -> None:
    with running("app:app", *KEEP, directory=project) as server:
        before = server.worker_pids()
        for version in ("2", "3", "4"):
            deploy(server, version)
            stands_by(server)
            (bad, *_) = [pid for pid in server.worker_pids() if pid not in before]
            os.kill(bad, signal.SIGKILL)
            rolled_back(server)
            with connect(server) as connection:
                assert told(connection)["version"] == "1"
        assert server.stop() == 0


@pytest.mark.once
def test_with_all_that_stand_by_stopped_the_bad_code_serves_on(project: Path) -> None:
    """Either the old or the new serves, never neither."""
    with running("app:app", *KEEP, directory=project) as server:
        old = server.worker_pids()
        deploy(server, "2")
        stands_by(server)
        for pid in old:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(RequestRefused, match="generation 2 serves on"):
            roll_back(server)
        with connect(server) as connection:
            assert told(connection)["version"] == "2"
        server.wait_for_workers(2)
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_the_standby(project: Path, number: signal.Signals) -> None:
    with running("app:app", *KEEP, directory=project) as server:
        deploy(server, "2")
        stands_by(server)
        pids = server.worker_pids()
        server.signal(number)
        assert server.wait() == 0
        assert not [pid for pid in pids if state_of(pid)]
        assert len(notes(server, "lifespan.shutdown")) == 4


@pytest.mark.once
def test_it_leaves_when_its_time_is_over_or_its_listener_dies(project: Path) -> None:
    with running("app:app", "--keep-previous", "1", "--workers", "2", directory=project) as server:
        deploy(server, "2")
        server.logged("retires after its standby: its time is over")
        server.wait_for_workers(2)
        with pytest.raises(RequestRefused, match="no previous generation stands by"):
            roll_back(server)
    with running("app:app", *KEEP, directory=project) as server:
        deploy(server, "3")
        stands_by(server)
        pids = server.worker_pids()
        server.process.kill()
        server.process.wait()
        until(lambda: not [pid for pid in pids if state_of(pid)])


@pytest.mark.once
def test_signals_scaling_and_a_new_listener_while_a_generation_stands_by(project: Path) -> None:
    with running("app:app", *KEEP, directory=project) as server, connect(server) as connection:
        first = told(connection)["pid"]
        deploy(server, "2")
        stands_by(server)
        left = next(g["standby"] for g in server.status()["generations"] if g["state"] == "standby")
        assert 0 < left <= 600
        server.signal(signal.SIGUSR2)
        server.wait_until(lambda status: status["draining"] is not None)
        control_client.ask(server.control, "reload-listener")
        control_client.ask(server.control, "scale", to=3)
        server.wait_until(lambda status: len(status["workers"]) == 5)
        assert told(connection)["version"] == "2"
        (project / "app.py").write_text(APPLICATION.format(version="1"))
        rolled_back(server, workers=3)
        assert server.status()["draining"] is None
        found = told(connection)
        assert (found["version"], found["generation"]) == ("1", 1)
        server.signal(signal.SIGHUP)
        server.wait_until(lambda status: status["generation"] == 3)
        rolled_back(server, workers=3)
        assert first in server.worker_pids()
        assert server.stop() == 0


@pytest.mark.once
def test_the_command_tells_the_truth(project: Path) -> None:
    def command(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "serve_asgi", "rollback", *arguments, "--control", str(server.control)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT / "server",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout.decode()

    with running("app:app", *KEEP, directory=project) as server:
        status, said = command()
        assert status == 1
        assert "roll-back refused, generation 1 serves on" in said
        deploy(server, "2")
        stands_by(server)
        status, said = command("--json")
        *records, outcome = map(json.loads, said.splitlines())
        assert (status, outcome["ok"]) == (0, True)
        assert {"rollback_started", "rollback_finished"} <= {record["event"] for record in records}
        server.wait_for_workers(2)
        assert command("--json")[0] == 1
        assert server.status()["history"][-1]["outcome"] == "rolled_back"
        assert server.stop() == 0


@pytest.mark.once
def test_a_request_that_never_ends_is_cut_at_the_graceful_timeout_and_the_worker_stands_by(project: Path) -> None:
    with running("app:app", *KEEP, "--graceful-timeout", "1", directory=project) as server, connect(server) as slow:
        slow.sendall(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n")
        server.wait_until(lambda status: any(worker["in_flight"] for worker in status["workers"]))
        deploy(server, "2")
        stands_by(server)
        assert slow.recv(1000) == b""
        assert len(server.workers("standby")) == 2
        rolled_back(server)
        with connect(server) as connection:
            assert told(connection)["version"] == "1"
        assert server.stop() == 0


@pytest.mark.once
def test_the_previous_releases_are_deployed_again_one_after_another(tmp_path: Path) -> None:
    link = tmp_path / "current"

    def release(version: str) -> None:
        """Make a release, if it is not there, and have the link point to it."""
        directory = tmp_path / version
        if not directory.exists():
            directory.mkdir()
            (directory / "app.py").write_text(APPLICATION.format(version=version))
        new = tmp_path / "new"
        new.symlink_to(directory)
        new.replace(link)

    release("1")
    with running("app:app", "--app-dir", str(link), directory=tmp_path) as server, connect(server) as connection:
        for version in ("2", "2", "3"):  # a reload of the same release leaves nothing to go back to
            release(version)
            server.reload()
        for version in ("2", "1"):
            assert "serves" in roll_back(server)
            server.wait_for_workers(1)
            assert told(connection)["version"] == version
            control_client.ask(server.control, "reload-listener")
        with pytest.raises(RequestRefused, match="no other release has served before"):
            roll_back(server)
        server.reload()  # the link still points to the newest
        server.wait_for_workers(1)
        assert told(connection)["version"] == "3"
        (tmp_path / "1").rename(tmp_path / "moved")
        with pytest.raises(RequestRefused, match=r"the previous release is gone: .*/1 does not exist"):
            roll_back(server)
        assert server.status()["last_failure"] == ""
        outcomes = [each["outcome"] for each in server.status()["history"]]
        assert outcomes == ["done"] * 3 + ["rolled_back"] * 2 + ["done"]
        kinds = [each["kind"] for each in control_client.ask(server.control, "deploys")["deploys"]]
        assert kinds[::-1][:7] == ["start", "reload", "reload", "reload", "rollback", "rollback", "rollback"]
        assert server.stop() == 0
