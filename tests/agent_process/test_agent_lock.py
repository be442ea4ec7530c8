"""The agent's lock with real servers: over the death of the listener, its re-exec, and forks of the agent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.agent_process.agent_lock import clear_away, lock_path, remove_unused
from serve_asgi.cli import control_client
from tests.agent_process.agent_server import (
    agent_pid,
    agent_states,
    agents_of,
    ask,
    diary,
    free_port,
    gaps,
    locks_of,
    noted,
    wait_for,
    wait_for_log,
    wait_until_gone,
    write,
)
from tests.running import ROOT, RunningServer, running, state_of

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


def test_the_lock_file_of_a_server_that_was_killed_is_removed_by_the_next_start(tmp_path: Path) -> None:
    write(tmp_path)
    environment = {"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": str(tmp_path)}

    def locks() -> list[Path]:
        return list((tmp_path / "serve").glob("agent-*.lock"))

    with running("app:app", "--agent", "app:beats", directory=tmp_path, environment=environment) as server:
        pids = [server.pid, *server.worker_pids()]
        ask(server)
        (living,) = locks()
        with running("app:app", directory=tmp_path, environment=environment) as other:  # which has no agent
            assert locks() == [living]
            assert other.stop() == 0
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        server.wait()
        wait_until_gone(*pids)
        assert locks() == [living]
        with running("app:app", directory=tmp_path, environment=environment) as following:
            assert locks() == []
            assert following.stop() == 0


HOLDER = """
import sys
from serve_asgi.agent_process.agent_lock import AgentLock
lock = AgentLock(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_a_lock_file_is_not_removed_while_a_process_has_it_open_that_has_not_taken_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prepared agent, perhaps of another server: a lock on a removed file would exclude nobody."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = Path(lock_path(["127.0.0.1:1"]))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}/server"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        clear_away(["127.0.0.1:1"])
        assert path not in remove_unused()
        assert path.exists()
        holder.communicate()
    (path.parent / "agent-directory.lock").mkdir()  # whatever that is
    assert path in remove_unused()
    assert [each.name for each in path.parent.iterdir()] == ["agent-directory.lock"]
