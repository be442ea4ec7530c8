"""The listener's program is replaced under use: same process, same workers, same sockets; a failure changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loadtest.reload import run
from loadtest.report import table
from loadtest.result import Settings
from serve_asgi.cli import control_client
from serve_asgi.cli.process_handle import ProcessHandle
from serve_asgi.cli.stop import ServerStop
from serve_asgi.ipc.signals import LISTENER_SIGNALS
from tests.applications import info
from tests.running import PATIENCE, ROOT, RunningServer, connect, request, running

MEANT = sum(1 << (number - 1) for number in LISTENER_SIGNALS)
"""As proc(5) writes sets of signals."""


def replace(server: RunningServer) -> str:
    """Have the program replaced; what the new one says."""
    path = control_client.find(control=str(server.control))
    text: str = control_client.ask(path, "reload-listener")["text"]
    return text


def same(status: dict[str, Any]) -> dict[str, Any]:
    """What must not change."""
    workers = [{name: worker[name] for name in ("slot", "generation", "state")} for worker in status["workers"]]
    names = ("pid", "generation", "reloads", "failed_reloads", "listening", "draining", "size", "state")
    kept = {name: status[name] for name in names if name != "draining"}
    return {**kept, "workers": workers, "drains": bool(status["draining"]), "requests": status["totals"]["requests"]}


def test_everything_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    options = ("--workers", "2", "--pid-file", "pid", "--bind", f"unix:{tmp_path}/app.sock", "--bind", "127.0.0.1:0")
    command = [sys.executable, "-X", "whatever", "-um", "serve_asgi"]
    with running("app:app", *options, directory=tmp_path, bind="", command=command) as server:
        server.signal(signal.SIGHUP)
        server.wait_until(lambda status: status["reloads"] == 1)
        server.wait_for_workers(2)
        server.signal(signal.SIGUSR2)
        with socket.socket(socket.AF_UNIX) as kept:
            kept.connect(f"{tmp_path}/app.sock")
            assert request(kept)[0] == 200
            before = same(server.wait_until(lambda status: status["draining"] is not None))
            workers = server.worker_pids()
            descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
            for _ in range(3):
                assert "the listener runs serve" in replace(server)
            assert same(server.status()) == before
            told = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
            assert told.count("-X") == told.count("whatever") == told.count("-u") == 1
            assert server.worker_pids() == workers
            assert len(os.listdir(f"/proc/{server.pid}/fd")) == descriptors
            assert request(kept)[0] == 200
        assert (tmp_path / "pid").read_text() == f"{server.pid}\n"
        server.signal(signal.SIGHUP)  # it still knows what each signal means, and how to start workers
        after = server.wait_until(lambda status: status["reloads"] == 2)
        assert (after["generation"], after["draining"]) == (3, None)
        assert server.stop() == 0
        assert not (tmp_path / "pid").exists()
        assert not (tmp_path / "app.sock").exists()
        assert server.log().count("the listener runs serve") == 3


def until_replaced(server: RunningServer, victim: int) -> None:
    server.wait_until(lambda status: status["size"] >= 2 and victim not in server.worker_pids())


def test_what_comes_in_the_middle_is_not_lost(tmp_path: Path) -> None:
    """Signals and a death while programs change: each is handled, in whichever program."""
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--workers", "2", directory=tmp_path) as server:
        for number in range(3):
            path = control_client.find(control=str(server.control))
            with control_client.ControlConversation(path, "reload-listener") as conversation:
                for moment in range(20):
                    time.sleep(0.01)  # spread over the check, the change of programs and what comes after
                    if moment == 5 * number:
                        victim = server.worker_pids()[0]
                        with contextlib.suppress(ProcessLookupError):  # it has retired in this moment
                            os.kill(victim, signal.SIGKILL)
                    server.signal(signal.SIGTTIN)
                    server.signal(signal.SIGTTOU)
                assert conversation.outcome()["ok"]
            server.signal(signal.SIGTTIN)
            until_replaced(server, victim)
        server.wait_until(lambda status: all(worker["state"] == "serving" for worker in status["workers"]))
        with connect(server) as connection:
            assert request(connection)[0] == 200


def masks(pid: int) -> list[int]:
    """The signals that each thread of a process has blocked (proc(5)), the main thread's first."""
    tasks = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name))
    return [int(re.search(r"SigBlk:\s*([0-9a-f]+)", (task / "status").read_text())[1], 16) for task in tasks]  # type: ignore[index]


def test_no_other_thread_takes_a_signal(tmp_path: Path) -> None:
    """One that is taken there just before programs change would be lost with the thread."""
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--workers", "1", directory=tmp_path) as server:
        replace(server)
        server.reload()
        main, *others = masks(server.pid)
        assert main == 0
        assert others
        for signals in others:
            assert signals & MEANT == MEANT


def begun(server: RunningServer) -> socket.socket:
    """A control connection with half a request on it: the server is not at rest until the other half has come."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(server.control))
    connection.sendall(b'{"version":1,')
    return connection


def test_whoever_is_being_answered_gets_the_answer_first(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--workers", "1", directory=tmp_path) as server:
        with (
            begun(server) as other,
            control_client.ControlConversation(server.control, "reload-listener") as conversation,
        ):
            assert conversation.receive(1.0) is None
            other.sendall(b'"command":"status"}\n')
            assert json.loads(other.makefile().readline())["status"]["pid"] == server.pid
            assert "the listener runs serve" in conversation.outcome()["text"]
        with begun(server), control_client.ControlConversation(server.control, "reload-listener") as conversation:
            assert conversation.receive(1.0) is None
            server.signal(signal.SIGTERM)
            with pytest.raises(control_client.RequestRefused, match="stopping"):
                conversation.outcome()
        assert server.wait() == 0


@pytest.mark.once
def test_it_waits_for_hooks_and_no_longer(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    (tmp_path / "hook").write_text("#!/bin/sh\ntouch running\nuntil [ -e go ]; do sleep 0.01; done\n")
    (tmp_path / "hook").chmod(0o755)
    with running("app:app", "--hook", f"drain_started={tmp_path}/hook", directory=tmp_path) as server:
        server.signal(signal.SIGUSR2)
        server.wait_until(lambda _: (tmp_path / "running").exists())
        with control_client.ControlConversation(server.control, "reload-listener") as conversation:
            assert conversation.receive(1.0) is None
            (tmp_path / "go").touch()
            assert conversation.outcome(PATIENCE)["ok"]


@pytest.mark.once
def test_files_are_watched_again(tmp_path: Path) -> None:
    """And what has changed while nobody watched is not missed."""
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--reload", directory=tmp_path) as server:
        replace(server)
        (tmp_path / "app.py").write_text(info("2"))
        server.wait_until(lambda status: status["reloads"] >= 1)
        with connect(server) as connection:
            assert version_of(connection) == "2"
        assert "Traceback" not in server.log()


@pytest.mark.once
def test_a_log_file_that_cannot_be_opened_any_more_is_found_out_before(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    (tmp_path / "logs").mkdir()
    with running("app:app", "--log-file", "logs/log", directory=tmp_path) as server:
        (tmp_path / "logs").rename(tmp_path / "elsewhere")
        with pytest.raises(control_client.RequestRefused, match="log file"):
            replace(server)
        (tmp_path / "elsewhere").rename(tmp_path / "logs")
        assert "the listener runs serve" in replace(server)
        assert "in place of" in (tmp_path / "logs" / "log").read_text()


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.3, 0.45])
def test_a_stop_in_the_middle_is_a_stop(tmp_path: Path, delay: float) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--workers", "1", directory=tmp_path) as server:
        path = control_client.find(control=str(server.control))
        with control_client.ControlConversation(path, "reload-listener"):
            time.sleep(delay)  # no event tells where in the change it falls: any place will do
            server.signal(signal.SIGTERM)
            assert server.wait() == 0


def test_who_stops_a_server_whose_program_changes_just_before_hears_its_last_word(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--workers", "1", directory=tmp_path) as server:
        path = control_client.find(control=str(server.control))
        with control_client.ControlConversation(path, "follow") as following:
            process = ProcessHandle(following.pid)
            stopping = ServerStop(path, following, process, control_client.look(path), as_json=True)
            replace(server)
            assert stopping.run(0.0, None) == 0
            assert stopping.cut == 0
            process.close()
        assert server.wait() == 0


def test_words_in_the_pipe_are_not_lost(tmp_path: Path) -> None:
    """Output goes through a pipe that the listener empties: what is in it while programs change comes out as well."""
    (tmp_path / "app.py").write_text(
        "import asyncio, sys, threading, time\n"
        "def talk():\n"
        "    for number in range(3000):\n"
        "        print('line', number, flush=True)\n"
        "        time.sleep(0.001)\n"
        "threading.Thread(target=talk, daemon=True).start()\n" + info()
    )
    with running("app:app", "--workers", "1", directory=tmp_path) as server:
        for _ in range(3):
            replace(server)
        server.wait_until(lambda _: "line 2999" in server.log())
        lines = [line for line in server.log().splitlines() if line.startswith("line ")]
        assert lines == [f"line {number}" for number in range(3000)]


@pytest.mark.once
@pytest.mark.parametrize("fault", ["it does not run", "it has no such module", "it is no program", "it is gone"])
def test_a_program_that_cannot_take_over_is_refused_and_nothing_changes(tmp_path: Path, fault: str) -> None:
    (tmp_path / "app.py").write_text(info())
    release = tmp_path / "releases" / "1"
    make_environment(release / "env")
    (tmp_path / "current").symlink_to(release)
    with running("app:app", directory=tmp_path, command=[str(tmp_path / "current/env/bin/serve")]) as server:
        before = same(server.status())
        broken = tmp_path / "releases" / "2" / "env" / "bin"
        broken.mkdir(parents=True)
        if fault == "it does not run":
            (broken / "python").write_text(
                f"#!/bin/sh\ncd {tmp_path}\ntouch asked\nuntil [ -e go ]; do sleep 0.01; done\n"
                "echo no room left >&2\nexit 3\n"
            )
        elif fault == "it has no such module":
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", broken.parent], check=True)
        elif fault == "it is no program":
            (broken / "python").write_bytes(b"\x7fELF nonsense")
        if (broken / "python").exists() and fault != "it has no such module":
            (broken / "python").chmod(0o755)
        point(tmp_path / "current", broken.parent.parent)
        with control_client.ControlConversation(server.control, "reload-listener") as conversation:
            if fault == "it does not run":  # whatever happens meanwhile, its word is waited for
                server.wait_until(lambda _: (tmp_path / "asked").exists())
                for number, size in ((signal.SIGTTIN, 2), (signal.SIGTTOU, 1)):
                    server.signal(number)
                    server.wait_until(lambda status, size=size: status["size"] == size)  # type: ignore[misc]
                    server.wait_for_workers(size)
                (tmp_path / "go").touch()
            with pytest.raises(control_client.RequestRefused) as refused:
                conversation.outcome()
        assert "was not replaced" in str(refused.value) or "cannot be run" in str(refused.value), refused.value
        assert same(server.status()) == before
        point(tmp_path / "current", release)
        assert "the listener runs serve" in replace(server)


def test_a_stop_while_the_new_program_is_asked_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    release = tmp_path / "releases" / "1"
    make_environment(release / "env")
    (tmp_path / "current").symlink_to(release)
    with running("app:app", directory=tmp_path, command=[str(tmp_path / "current/env/bin/serve")]) as server:
        slow = tmp_path / "releases" / "2" / "env" / "bin"
        slow.mkdir(parents=True)
        (slow / "python").write_text(
            f"#!/bin/sh\ncd {tmp_path}\necho $$ >asking\nmv asking asked\nread forever <never\n"
        )
        (slow / "python").chmod(0o755)
        os.mkfifo(tmp_path / "never")
        point(tmp_path / "current", slow.parent.parent)
        with control_client.ControlConversation(server.control, "reload-listener") as conversation:
            server.wait_until(lambda _: (tmp_path / "asked").exists())
            server.signal(signal.SIGTERM)
            with pytest.raises(control_client.RequestRefused, match="the server is stopping"):
                conversation.outcome(PATIENCE)
        assert server.wait() == 0
        assert not Path("/proc", (tmp_path / "asked").read_text().strip()).exists()


def admins(server: RunningServer) -> set[int]:
    """The admin processes that live."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in server.worker_pids()}
    return {pid for pid, command in commands.items() if b"serve_asgi.admin" in command}


def version_of(connection: socket.socket) -> str:
    version: str = json.loads(request(connection)[1])["version"]
    return version


VERSIONED = "python{}.{}".format(*sys.version_info)
"""What pip may write into the first line of a script; an environment of another Python has no such name."""


def make_environment(place: Path) -> None:
    """A virtual environment as a release has one, with this server in it; its packages are those of the test's."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (packages,) = place.glob("lib/python3*/site-packages")
    own = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "tests.pth").write_text("\n".join([*own, str(ROOT / "server")]) + "\n")
    script = place / "bin" / "serve"
    script.write_text(f"#!{place}/bin/{VERSIONED}\nfrom serve_asgi.__main__ import main\nmain()\n")
    script.chmod(0o755)


def point(link: Path, target: Path) -> None:
    """Let the link name another release, in one step."""
    fresh = link.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(target)
    fresh.rename(link)


@pytest.mark.once
def test_the_new_release_is_found_through_the_link_and_the_old_one_may_go(tmp_path: Path) -> None:
    """Code and environment of a release are the new ones after a reload; the listener's too after its own."""
    for number in ("1", "2", "3"):
        release = tmp_path / "releases" / number
        make_environment(release / "env")
        (release / "app.py").write_text(info(number) + f"\nimport sys\nassert sys.prefix == {str(release / 'env')!r}\n")
    for number in ("2", "3"):
        programs = tmp_path / "releases" / number / "env" / "bin"
        base = (programs / "python").resolve()
        for name in ("python", VERSIONED):
            (programs / name).unlink()
        (programs / "python").symlink_to(base)
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "releases" / "1")
    options = ("--app-dir", str(current), "--workers", "2", "--admin", "127.0.0.1:0")
    serve = str(current / "env/bin/serve")
    with running("app:app", *options, directory=tmp_path, command=[serve]) as server, connect(server) as connection:
        assert version_of(connection) == "1"
        shown = subprocess.run(
            [serve, "config", "--json", "--control", str(server.control)], capture_output=True, text=True, check=True
        )
        assert str(tmp_path / "releases/1/env/bin/python") in shown.stdout
        for number, removed in (("2", None), ("3", "1"), ("2", None), ("3", None)):
            point(current, tmp_path / "releases" / number)
            server.reload()
            server.wait_for_workers(2)
            assert version_of(connection) == number
            if removed is not None:  # what the listener was started from
                subprocess.run(["rm", "-r", tmp_path / "releases" / removed], check=True)
        (first,) = admins(server)
        os.kill(first, signal.SIGKILL)
        server.wait_until(lambda _: bool(admins(server) - {first}))  # it does not need what it came from, either
        with begun(server), control_client.ControlConversation(server.control, "reload-listener") as conversation:
            assert conversation.receive(1.0) is None  # checked by now
            point(current, tmp_path / "releases" / "2")
            with pytest.raises(control_client.RequestRefused, match="another release has become current"):
                conversation.outcome()
        point(current, tmp_path / "releases" / "3")
        assert str(current / "env/bin/python") in replace(server)
        assert version_of(connection) == "3"
        point(current, tmp_path / "releases" / "2")  # the new program follows the link as the old one did
        server.reload()
        server.wait_for_workers(2)
        assert version_of(connection) == "2"


@pytest.mark.once
@pytest.mark.timeout(300)
def test_nobody_under_load_notices() -> None:
    result = run(Settings(reloads=3, interval=0.1, workers=2, listener=True))
    assert (result.lost, result.duplicated, result.reconnects, result.problems) == (0, 0, 0, []), table(result)
