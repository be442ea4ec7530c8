"""Workers whose event loops do not turn, in real servers: who is told of and replaced, and what it costs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from tests.running import PATIENCE, RunningServer, answer, connect, request, running, until

APP = """
import asyncio, ctypes, json, os, pdb, threading, time

KEEPS_THE_LOCK = ctypes.PyDLL(None)


def count(seconds):
    # In C code that uses the processor for so long and keeps the interpreter lock.
    begun, numbers = time.thread_time(), 1_000_000
    sum(range(numbers))
    sum(range(int(numbers * seconds / (time.thread_time() - begun))))


def until(path):
    while not os.path.exists(path):
        time.sleep(0.02)


async def stream():
    await asyncio.Event().wait()
    yield b""


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    _, what, how = (scope["path"] + "/").split("/")[:3]
    if what == "sleep":
        time.sleep(float(how))
    elif what == "until":
        until(how)
    elif what == "pdb":
        ours, theirs = os.pipe()
        threading.Thread(target=lambda: (until(how), os.write(theirs, b"c\\n"))).start()
        pdb.Pdb(stdin=os.fdopen(ours), stdout=open(os.devnull, "w"), nosigint=True).set_trace()
        how = "over"
    elif what == "later":
        while not os.path.exists(how):
            await asyncio.sleep(0.02)
        time.sleep(2.5)
    elif what == "count":
        count(float(how))
    elif what == "keep":
        KEEPS_THE_LOCK.usleep(int(float(how) * 1e6))
    elif what == "thread":
        await asyncio.get_running_loop().run_in_executor(None, count, float(how))
    elif what == "stream":
        async for _ in stream():
            pass
    told = json.dumps({"pid": os.getpid()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]})
    await send({"type": "http.response.body", "body": told})
"""

WARN = ("--block-warning", "0.3", "--worker-timeout", "0")
REPLACE = ("--block-warning", "0", "--worker-timeout", "1", "--graceful-timeout", "2", "--shutdown-timeout", "0")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def ask(connection: socket.socket, path: str) -> None:
    """Send a request whose answer may come late."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())


def asked_stacks(server: RunningServer, timeout: float = 5.0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = control_client.ask(server.control, "stacks", timeout=timeout)["stacks"]["workers"]
    return found


def told_pid(connection: socket.socket) -> int:
    status, data = request(connection)
    assert status == 200
    return int(json.loads(data)["pid"])


def blocked_count(server: RunningServer) -> int:
    return sum(worker["blocked"] for worker in server.workers())


# What blocks is told


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_blocks_the_loop_is_logged_once_and_so_is_its_end(directory: Path, loop: str) -> None:
    with running("app:app", *WARN, "--loop", loop, directory=directory) as server, connect(server) as connection:
        ask(connection, "/sleep/1.5?secret=1")
        (warning,) = server.logged(r"warning: the event loop has been blocked.*?time.sleep\(float\(how\)\)")
        assert "(--block-warning 0.3)" in warning
        assert "GET /sleep/1.5\n" in warning  # and no query
        assert re.search(r'File ".*app.py", line \d+, in app\n', warning)
        assert "server/serve_asgi/worker" not in warning  # the application's frames alone
        assert answer(connection)[0] == 200
        server.logged(r"the event loop runs again after [12]\.\d s")
        assert server.log().count("has been blocked") == 1
        assert blocked_count(server) == 1


def test_code_that_keeps_the_interpreter_lock_is_told_of_when_it_gives_it_up(directory: Path) -> None:
    with running("app:app", *WARN, directory=directory) as server, connect(server) as connection:
        cases = (
            ("/count/2", "code that held the interpreter lock all the time", r"sum\(range\(int"),
            ("/keep/2", "it was stopped, got no processor time, or waited in code that held", r"usleep\(int"),
            ("/thread/2.5", "another thread ran code that held the interpreter lock", r"thread\.py"),
        )
        for number, (path, how, line) in enumerate(cases):
            server.logged("runs again", number)  # or the next blocking would be one with this
            assert request(connection, path)[0] == 200
            server.logged(f"warning: [^\n]*{re.escape(how)}.*?(?:{line})")


def test_a_process_that_was_stopped_says_so(directory: Path) -> None:
    with running("app:app", *WARN, directory=directory) as server:
        (pid,) = server.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(2.5)  # longer than what counts as standing still, behind the tick that is missing first
        os.kill(pid, signal.SIGCONT)
        server.logged("nothing has run in this process for [0-9.]+ s")


def test_a_debugger_is_no_block(directory: Path) -> None:
    with running("app:app", *WARN, directory=directory) as server, connect(server) as connection:
        ask(connection, "/pdb/over")
        server.logged("a debugger holds the event loop")
        (directory / "over").touch()
        assert answer(connection)[0] == 200
        server.logged("runs again")
        assert server.log().count("a debugger holds") == 1
        assert "blocked" not in server.log()
        assert blocked_count(server) == 0


def test_a_busy_loop_that_turns_is_not_told_of(directory: Path) -> None:
    """Many short blockings are none."""
    with running("app:app", "--block-warning", "0.5", directory=directory) as server, connect(server) as connection:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            assert request(connection, "/sleep/0.05")[0] == 200
        assert "blocked" not in server.log()


# A worker that is blocked for too long is replaced


def test_a_blocked_worker_is_replaced_and_loses_nothing(directory: Path) -> None:
    """The replacement serves first; once the loop turns again, the request is answered and connections travel."""
    release = directory / "go on"
    with running("app:app", *REPLACE, "--graceful-timeout", "20", directory=directory) as server:
        (before,) = server.worker_pids()
        with connect(server) as idle, connect(server) as connection:
            assert told_pid(idle) == before
            ask(connection, "/until/" + release.name.replace(" ", "%20"))
            server.logged(r"its event loop has been blocked.*?until\(how\)")
            server.wait_until(lambda status: sorted(w["state"] for w in status["workers"]) == ["retiring", "serving"])
            with connect(server) as another:
                after = told_pid(another)
            assert after != before
            assert {w["cause"] for w in server.workers("serving")} == {"blocked"}
            release.touch()
            assert answer(connection)[0] == 200
            server.wait_for_workers(1)
            assert [told_pid(idle), told_pid(connection)] == [after, after]
            assert server.status()["lost"] == 0


def test_those_that_stay_blocked_are_ended_and_what_that_cost_is_counted(directory: Path) -> None:
    """One blocks itself, one is stopped: both have replacements, and nobody waits for them any longer."""
    with running("app:app", *REPLACE, "--workers", "2", directory=directory) as server:
        before = server.worker_pids()
        with connect(server) as connection:
            blocked = told_pid(connection)
            ask(connection, "/until/never")
            (stopped,) = {*before} - {blocked}
            os.kill(stopped, signal.SIGSTOP)
            server.logged(r"(?=.*in until)(?=.*its process is stopped \(state T\))")
            with contextlib.suppress(OSError):
                assert connection.recv(1000) == b""  # cut at the graceful timeout
        server.wait_for_workers(2)
        assert not {*server.worker_pids()} & {*before}
        assert server.status()["lost"] == 1
        with connect(server) as connection:
            told_pid(connection)


def test_replacements_that_block_as_well_come_at_longer_and_longer_intervals(directory: Path) -> None:
    """No storm of processes: the slot backs off, the other one serves on."""
    blocks = "import asyncio\nasyncio.get_event_loop().call_later(0.5, until, 'never')\n"
    with running("app:app", *REPLACE, "--workers", "2", directory=directory) as server:
        (directory / "app.py").write_text(APP + blocks)
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        first, second = server.logged(r"will be replaced[^:]*:", 2)[:2]
        assert float(second.split()[-2]) > float(first.split()[-2])
        assert len(server.worker_pids()) <= 4
        with connect(server) as connection:
            told_pid(connection)


def test_a_worker_that_is_blocked_while_it_retires_is_killed_after_the_graceful_timeout(directory: Path) -> None:
    options = (*REPLACE, "--graceful-timeout", "20")
    with running("app:app", *options, directory=directory) as server, connect(server) as connection:
        ask(connection, "/later/retiring")
        server.wait_until(lambda status: status["workers"][0]["in_flight"] == 1)
        server.reload()
        (directory / "retiring").touch()
        assert answer(connection)[0] == 200
        server.wait_for_workers(1)
        assert server.status()["lost"] == 0
        assert "will be replaced" not in server.log()


def test_the_listeners_own_sleep_is_not_the_workers_fault(directory: Path) -> None:
    with running("app:app", *REPLACE, "--workers", "2", directory=directory) as server:
        pids = server.worker_pids()
        for pid in (server.pid, *pids):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3)  # longer than --worker-timeout and a heartbeat
        os.kill(server.pid, signal.SIGCONT)
        server.status()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        server.wait_until(lambda status: all(w["heard"] < 1.5 for w in status["workers"]))
        assert server.worker_pids() == pids
        assert "will be replaced" not in server.log()


# serve stacks


def test_stacks_of_workers_that_wait_block_and_stand_still(directory: Path) -> None:
    with (
        running("app:app", "--workers", "4", "--block-warning", "0", directory=directory) as server,
        contextlib.ExitStack() as connections,
    ):
        pids = {pid: connections.enter_context(held) for pid, held in one_connection_each(server).items()}
        streaming, blocked, keeping, stopped = pids
        ask(pids[streaming], "/stream")
        ask(pids[blocked], "/until/later")
        ask(pids[keeping], "/keep/60")
        os.kill(stopped, signal.SIGSTOP)
        server.wait_until(lambda status: sum(w["in_flight"] for w in status["workers"]) == 3)
        begun = time.monotonic()
        told = {worker["pid"]: worker for worker in asked_stacks(server, timeout=3.0)}
        assert time.monotonic() - begun < PATIENCE
        os.kill(stopped, signal.SIGCONT)
        assert {pid: worker["how"] for pid, worker in told.items()} == {
            streaming: "asked",
            blocked: "asked",
            keeping: "faulthandler",
            stopped: "none",
        }
        assert told[streaming]["threads"][0] == {"name": "event loop", "note": "waits for events", "stack": []}
        (task,) = told[streaming]["tasks"]
        assert task["request"] == "GET /stream"
        assert [line.rpartition(" in ")[2] for line in task["stack"] if line.startswith("File")][:2] == [
            "app",
            "stream",
        ]
        assert told[blocked]["threads"][0]["request"] == "GET /until/later"
        assert told[blocked]["threads"][0]["stack"][-1].strip() == "time.sleep(0.02)"
        assert [task["running"] for task in told[blocked]["tasks"]] == [True]
        assert "interpreter" in told[keeping]["reason"]
        assert [thread["name"] for thread in told[keeping]["threads"]] == ["event loop"]
        assert re.search(r"app.py\", line \d+ in app", told[keeping]["threads"][0]["stack"][-1])
        assert "state T" in told[stopped]["reason"]
        (directory / "later").touch()
        os.kill(keeping, signal.SIGKILL)
        server.wait_until(lambda status: [w["state"] for w in status["workers"]] == ["serving"] * 4)


def one_connection_each(server: RunningServer) -> dict[int, socket.socket]:
    """A connection at each worker, by the worker's PID."""
    found: dict[int, socket.socket] = {}
    count = len(server.worker_pids())
    while len(found) < count:
        connection = connect(server)
        pid = told_pid(connection)
        if pid in found:
            connection.close()
        else:
            found[pid] = connection
    return found


def test_stacks_of_a_worker_that_hangs_in_its_import(directory: Path) -> None:
    (directory / "slow.py").write_text(APP + "until('imported')\n")
    server = RunningServer("slow:app", directory=directory)
    try:
        until(lambda: _stacks_if_there(server), "the stack of the import")
        (directory / "imported").touch()
        server.ready()
    finally:
        server.close()


def _stacks_if_there(server: RunningServer) -> list[dict[str, Any]]:
    """Those that show where it hangs: before that it is still importing."""
    try:
        told = asked_stacks(server)
    except Exception:
        return []
    return [w for w in told if w["how"] == "asked" and any("in until" in line for line in w["threads"][0]["stack"])]


def test_no_worker_is_hurt_by_a_signal_that_it_cannot_take(directory: Path) -> None:
    """An application may take away the handler that faulthandler set: then the signal is not sent."""
    (directory / "bare.py").write_text(
        APP + "import faulthandler, signal\nfaulthandler.unregister(signal.SIGRTMIN + 9)\n"
    )
    with running("bare:app", "--block-warning", "0", directory=directory) as server, connect(server) as connection:
        ask(connection, "/keep/2")
        server.wait_until(lambda status: status["workers"][0]["in_flight"] == 1)
        (told,) = asked_stacks(server, timeout=1.0)
        assert told["how"] == "none"
        assert answer(connection)[0] == 200


def test_two_who_ask_at_the_same_time_are_both_answered(directory: Path) -> None:
    with running("app:app", "--workers", "2", directory=directory) as server:
        answers: list[list[dict[str, Any]]] = []
        threads = [threading.Thread(target=lambda: answers.append(asked_stacks(server))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [[worker["how"] for worker in each] for each in answers] == [["asked", "asked"]] * 4
