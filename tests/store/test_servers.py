"""Whole servers with a store: what users see when it, the listener or everything dies, and at the start."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from tests.running import PATIENCE, ROOT, RunningServer, connect, request, running, state_of
from tests.store.postgres import Postgres, own_place, own_postgres
from tests.store.stores import POSTGRES, REDIS, Redis, free_port, own_redis, scaled

pytestmark = pytest.mark.once

APP = "tests.store.application:app"


def ask(server: RunningServer, path: str) -> tuple[int, Any]:
    """One request on a connection of its own."""
    with connect(server) as connection:
        status, body = request(connection, path)
    return status, json.loads(body)


def has(server: RunningServer, path: str) -> Any:
    """What must go well."""
    status, found = ask(server, path)
    assert status == 200, found
    return found


def store_process(server: RunningServer) -> int:
    """Its PID, from the kernel: nobody is told."""
    for pid in server.worker_pids():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "serve-store":
                return pid
    raise AssertionError("there is no store process")


def wait_for_store(server: RunningServer) -> None:
    """Until the state can be written again."""
    server.wait_until(lambda status: not status["state_store"]["trouble"])


@pytest.fixture
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """`--state`, as a file, a Redis of the module's or a PostgreSQL."""
    if request.param == "file":
        return "state.db"
    if request.param == "postgres":
        return own_place(request.getfixturevalue("shared_postgres"))
    shared: Redis = request.getfixturevalue("shared_redis")
    return f"{shared.url}?prefix={tmp_path.name}"


each_kind = pytest.mark.parametrize(
    "kept",
    ["file", REDIS, POSTGRES],
    indirect=True,
)


@each_kind
def test_the_state_outlives_everything_in_order(tmp_path: Path, kept: str) -> None:
    with running(APP, "--state", kept, "--workers", "2", directory=tmp_path) as server:
        has(server, "/set/kept/yes")
        assert [has(server, "/incr/n") for _ in range(3)] == [1, 2, 3]
        server.reload()
        assert has(server, "/get/kept") == "yes"
        control_client.ask(server.control, "reload-listener")
        assert has(server, "/incr/n") == 4
        assert server.status()["state_store"]["trouble"] == ""
        assert server.stop() == 0
    with running(APP, "--state", kept, directory=tmp_path) as server:
        assert has(server, "/get/kept") == "yes"
        assert has(server, "/fresh/n") == 4


@each_kind
def test_kills_at_any_moment_lose_nothing_that_was_confirmed(tmp_path: Path, kept: str) -> None:
    """The store process, the listener, or all at once, while requests write. An increment that was answered is there;
    one that was not may be."""
    rng = random.Random(11)
    confirmed, asked = 0, 0
    for number in range(scaled(3)):
        victim = ("store", "listener", "all")[number % 3]
        with running(APP, "--state", kept, "--workers", "2", directory=tmp_path) as server:
            found = has(server, "/fresh/n") or 0
            assert confirmed <= found <= asked
            confirmed, asked, first = found, found, store_process(server)
            killer = threading.Timer(rng.uniform(0.0, 0.3), _kill, (server, victim))
            killer.start()
            with contextlib.suppress(OSError, AssertionError), connect(server) as connection:
                for _ in range(150):
                    asked += 1
                    status, body = request(connection, "/incr/n")
                    if status == 200:
                        confirmed += 1
                        assert confirmed <= json.loads(body) <= asked
                    else:
                        assert b"Unknown" in body or b"NotWritten" in body, body
            killer.join()
            if victim == "store":
                server.wait_until(lambda _, first=first: another_store(server, {first}))  # type: ignore[misc]
                wait_for_store(server)
                assert confirmed <= has(server, "/fresh/n") == has(server, "/get/n") <= asked
            server.process.kill()
            server.process.wait()  # its workers and its store leave by themselves, and the next store waits for that


def _kill(server: RunningServer, victim: str) -> None:
    pids = {"store": [store_process(server)], "listener": [server.pid]}.get(victim, [server.pid, *server.worker_pids()])
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_store_process_that_dies_is_replaced(tmp_path: Path) -> None:
    with running(APP, "--state", "state.db", "--workers", "2", directory=tmp_path) as server:
        has(server, "/set/kept/yes")
        pid = store_process(server)
        os.kill(pid, signal.SIGSTOP)
        answers: list[tuple[int, Any]] = []
        asker = threading.Thread(target=lambda: answers.append(ask(server, "/set/kept/no")))
        asker.start()
        server.wait_until(lambda _: state_of(pid) == "T")
        server.wait_until(lambda status: any(worker["in_flight"] for worker in status["workers"]))
        for _ in range(4):  # of each worker: the listener has long passed on what its application asks the store
            assert has(server, "/get/kept") == "yes"  # reading needs no store
            server.status()
        os.kill(pid, signal.SIGKILL)
        asker.join()
        assert answers[0][0] == 503
        assert "the store process ended (signal SIGKILL) before it had responded: nobody knows" in answers[0][1]
        wait_for_store(server)
        assert has(server, "/fresh/kept") == has(server, "/get/kept")
        has(server, "/set/kept/again")
        assert store_process(server) != pid
        assert server.log().count("the store process ended (signal SIGKILL)") == 1


def test_another_program_of_the_listener_interrupts_no_write(tmp_path: Path) -> None:
    """The process is taken over and replaced by one of the new release, while requests write: none fails."""
    with running(APP, "--state", "state.db", "--workers", "2", directory=tmp_path) as server:
        stop, wrong, count = threading.Event(), [], 0

        def write() -> None:
            nonlocal count
            with connect(server) as connection:
                while not stop.is_set():
                    status, body = request(connection, "/incr/n")
                    count += 1
                    if status != 200:
                        wrong.append(body)

        writer = threading.Thread(target=write)
        writer.start()
        before = {store_process(server)}
        for _ in range(2):
            control_client.ask(server.control, "reload-listener")
            server.wait_until(lambda _: another_store(server, before))
            before.add(store_process(server))
        stop.set()
        writer.join()
        assert wrong == []
        assert has(server, "/fresh/n") == count


def another_store(server: RunningServer, before: set[int]) -> bool:
    with contextlib.suppress(AssertionError):
        return store_process(server) not in before
    return False


@pytest.mark.needs("redis-server")
def test_another_program_of_the_listener_takes_over_what_is_away(tmp_path: Path) -> None:
    """Replaced while Redis is dead: it still knows that, and recovers."""
    with (
        own_redis(tmp_path / "redis", persistent=True) as kept,
        running(APP, "--state", kept.url, directory=tmp_path) as server,
    ):
        has(server, "/incr/n")
        kept.kill()
        server.wait_until(lambda status: bool(status["state_store"]["trouble"]))
        control_client.ask(server.control, "reload-listener")
        status, text = ask(server, "/incr/n")
        assert (status, "cannot be reached" in text) == (503, True)
        assert has(server, "/get/n") == 1
        kept.start()
        wait_for_store(server)
        assert has(server, "/incr/n") == 2


def test_a_second_server_on_the_file_is_refused(tmp_path: Path) -> None:
    with running(APP, "--state", "state.db", directory=tmp_path) as server:
        status, said = _start(tmp_path, "state.db")
        assert status == 2
        assert f"state.db is used by the server with PID {server.pid}: stop that one" in said
        has(server, "/incr/n")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("diary", "is not a state file of this server, and is left as it is"),
        ("nowhere/state.db", "there is no directory"),
        ("memcached://h", "names no known store"),
        (
            "redis://:hunter2@127.0.0.1:{port}/0?start=4",
            "the shared state cannot be read from redis://***@127.0.0.1:{port}/0?start=4: Redis at redis://***@127.0.0.1",
        ),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence(tmp_path: Path, state: str, says: str) -> None:
    (tmp_path / "diary").write_text("Dear diary")
    port = free_port()
    status, said = _start(tmp_path, state.format(port=port))
    assert status in (1, 2)
    assert says.format(port=port) in said
    assert "hunter2" not in said
    assert "Traceback" not in said
    assert (tmp_path / "diary").read_text() == "Dear diary"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_that_waits_for_its_state(tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        server = RunningServer(APP, "--state", f"redis://127.0.0.1:{silent.getsockname()[1]}/0", directory=tmp_path)
        try:
            silent.settimeout(PATIENCE)
            connection, _ = silent.accept()  # it waits
            server.signal(signal.SIGHUP)  # means nothing yet, and kills nobody
            server.signal(number)
            assert server.wait() == 0
            connection.close()
            assert not server.worker_pids()
        finally:
            server.close()


def test_a_file_that_cannot_be_written_is_told_to_the_caller(tmp_path: Path) -> None:
    with running(APP, "--state", "state.db", directory=tmp_path) as server:
        has(server, "/set/a/1")
        (tmp_path / "state.db").rename(tmp_path / "moved")
        status, text = ask(server, "/set/a/2")
        assert status == 503
        assert "the state could not be written to" in text
        assert has(server, "/get/a") == "1"
        os.kill(store_process(server), signal.SIGKILL)  # another process makes no new file
        server.wait_until(lambda status: "is gone: put it back" in status["state_store"]["trouble"])
        assert "is gone: put it back" in server.log()
        assert has(server, "/get/a") == "1"
        (tmp_path / "moved").rename(tmp_path / "state.db")
        wait_for_store(server)
        has(server, "/set/a/3")


def test_a_full_disk_is_told_to_the_operator_once_and_its_end_too(tmp_path: Path) -> None:
    """Files of the store process may not grow for a while. Health says yes; it ends without another write."""
    options = ("--state", "state.db")
    with running(APP, *options, directory=tmp_path) as server:
        has(server, f"/set/a/{'x' * 15_000}")
        pid = store_process(server)
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (16_384, resource.RLIM_INFINITY))
        for number in range(3):
            status, text = ask(server, f"/set/b/{'y' * (14_000 + number)}")
            assert (status, "the state could not be written to" in text) == (503, True)
        assert "the state could not be written to" in server.status()["state_store"]["trouble"]
        shown = subprocess.run(
            [sys.executable, "-m", "serve_asgi", "status", "--control", str(server.control)],
            capture_output=True,
            text=True,
        ).stdout
        assert "cannot be written, the state could not be written to" in shown
        with connect(server) as connection:
            assert request(connection, "/ping")[0] == 200
        assert has(server, "/fresh/a") == has(server, "/get/a")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        wait_for_store(server)
        has(server, "/set/b/z")
        told = [record["event"] for record in server.status()["recent"] if record["event"].startswith("store_")]
        assert told == ["store_connected", "store_write_refused", "store_connected"]
        assert server.log().count("the state could not be written to") == 1
        assert store_process(server) == pid


def test_the_end_waits_for_what_is_written(tmp_path: Path) -> None:
    """TERM under writes: the server ends in order, and what was answered is there."""
    with running(APP, "--state", "state.db", directory=tmp_path) as server:
        answered = 0
        threading.Timer(0.2, server.signal, (signal.SIGTERM,)).start()
        with contextlib.suppress(OSError, AssertionError), connect(server) as connection:
            while True:
                answered = json.loads(request(connection, "/incr/n")[1])
        assert server.wait() == 0
        assert not (tmp_path / "state.db-wal").exists()
    with running(APP, "--state", "state.db", directory=tmp_path) as server:
        assert has(server, "/get/n") >= answered


@pytest.mark.needs("redis-server")
def test_a_redis_that_comes_back_empty_to_another_store_process_gets_the_state_again(tmp_path: Path) -> None:
    """Nothing but the hub has it then; much of it, so that it travels in pieces."""
    with (
        own_redis(tmp_path / "redis") as server,
        running(APP, "--state", f"unix://{server.path}?timeout=1", directory=tmp_path) as one,
    ):
        for number in range(12):
            has(one, f"/set/k{number}/{'v' * 15_000}")
        assert has(one, "/incr/n") == 1
        server.kill()
        one.wait_until(lambda status: bool(status["state_store"]["trouble"]))
        os.kill(store_process(one), signal.SIGKILL)
        one.wait_until(lambda status: "SIGKILL" in status["state_store"]["trouble"])
        server.start()
        wait_for_store(one)
        assert has(one, "/get/n") == has(one, "/fresh/n") == 1
        assert has(one, "/fresh/k7") == has(one, "/get/k7") == "v" * 15_000
        assert has(one, "/incr/n") == 2
        assert "14 keys have been written to it again" in one.log()  # these 13, and the server's own for its deploys


@pytest.mark.needs("redis-server")
def test_two_servers_share_a_redis(tmp_path: Path) -> None:
    with own_redis(tmp_path / "redis", "--requirepass", "hunter2", persistent=True) as server:
        _share(tmp_path, server, f"unix://:hunter2@{server.path}?timeout=1")


@pytest.mark.needs("postgres", "initdb")
def test_two_servers_share_a_postgresql(tmp_path: Path) -> None:
    with own_postgres() as server:
        _share(tmp_path, server, f"{server.url.replace('serve@', 'serve:hunter2@')}&timeout=1")


def _share(directory: Path, server: Redis | Postgres, url: str) -> None:
    """State and broadcasts reach the workers of both; the server dies and comes back, and both go on by themselves."""
    with _two(directory, url, ("--workers", "2")) as (a, b):
        has(a, "/set/k/from-a")
        _eventually(lambda: has(b, "/get/k") == "from-a")
        assert has(b, "/fresh/k") == "from-a"
        assert [has(each, "/incr/n") for each in (a, b, a, b)] == [1, 2, 3, 4]
        _broadcast(a, b, "first")
        server.kill()
        for each in (a, b):
            each.wait_until(lambda status: bool(status["state_store"]["trouble"]))
            status, text = ask(each, "/incr/n")
            assert status == 503
            assert "cannot be reached" in text
            assert has(each, "/get/n") == 4
            assert ask(each, "/fresh/n")[0] == 503
        server.start()
        for each in (a, b):
            wait_for_store(each)
        assert [has(each, "/incr/n") for each in (a, b)] == [5, 6]
        _broadcast(b, a, "second")
        for each in (a, b):
            shown = [json.dumps(each.status()), each.log()]
            shown.append(json.dumps(control_client.ask(each.control, "config")))
            assert all("hunter2" not in text for text in shown)
        assert "***" in json.dumps(a.status())


def _broadcast(sender: RunningServer, other: RunningServer, text: str) -> None:
    """Every worker of both hears it once."""
    has(sender, f"/broadcast/{text}")
    for server in (sender, other):
        _eventually(lambda server=server: len(_heard(server, text)) == 2)
        assert set(_heard(server, text).values()) == {1}


def _heard(server: RunningServer, text: str) -> dict[int, int]:
    """How often each worker has heard it, by PID; as many connections as it takes."""
    found = {}
    for _ in range(8):
        told = has(server, "/heard")
        if text in told["heard"]:
            found[told["pid"]] = told["heard"].count(text)
    return found


def _eventually(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def _two(directory: Path, state: str, options: tuple[str, ...]) -> Iterator[tuple[RunningServer, RunningServer]]:
    environment = {"SERVE_STATE": state}  # not on the command line, which all users of the machine can see
    with (
        running(APP, *options, directory=directory, environment=environment) as a,
        running(APP, *options, directory=directory, environment=environment) as b,
    ):
        yield a, b


def _start(directory: Path, state: str) -> tuple[int, str]:
    """Start a server that cannot; its exit status and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "serve_asgi", APP, "--state", state, "--bind", "127.0.0.1:0", "--no-control-socket"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SERVE_LOG_FORMAT": "text"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
