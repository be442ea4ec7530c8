"""Agents of real servers over reloads: one at a time, the next one as soon as the previous one has ended."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from tests.agent_process.agent_server import (
    KILLS,
    agent_pid,
    agent_states,
    agents_of,
    ask,
    command,
    diary,
    gaps,
    locks_of,
    noted,
    wait_for,
    write,
)
from tests.running import PATIENCE, RunningServer, running, state_of

RELOADS = int(os.environ.get("AGENT_RELOADS", "3"))
"""20 for the figures in docs/guides/agent.md."""


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
