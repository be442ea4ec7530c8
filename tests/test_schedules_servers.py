"""Schedules in real servers: each tick once over reloads and deaths, and what becomes of runs that are cut."""

from __future__ import annotations

import collections
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from tests.running import PATIENCE, ROOT, RunningServer, running
from tests.schedule_application import APPLICATION, do, notes, outcomes, report, until

RELOADS = int(os.environ.get("SERVE_TEST_RELOADS", "2"))
KILLS = int(os.environ.get("SERVE_TEST_KILLS", "1"))


def write(directory: Path, schedules: str) -> None:
    (directory / "app.py").write_text(APPLICATION + schedules)


def settle(server: RunningServer, name: str) -> dict[str, Any]:
    """Pause it, wait until nothing of it runs, and return what the server tells."""
    do(server, "pause", name)
    until(lambda: not report(server, name)["runs"], "nothing runs any more")
    return report(server, name)


def kill_one(server: RunningServer, chance: random.Random) -> None:
    """Kill one of four workers, and wait until there are four again."""
    server.wait_for_workers(4)
    before = server.status()["starts"].get("crash", 0)
    os.kill(chance.choice(server.worker_pids()), signal.SIGKILL)
    server.wait_until(lambda status: status["starts"].get("crash", 0) > before)
    server.wait_for_workers(4)


@pytest.mark.timeout(120 + 30 * max(RELOADS, KILLS))
def test_each_tick_runs_once_over_reloads_and_kills(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
@schedule(every="0.2s", overlap="allow")
async def often():
    note("ran")

@schedule(every="0.5s", overlap="queue", retry=1)
async def slow():
    note("began")
    await asyncio.sleep(0.2)
    note("ended")
""",
    )
    with running("app:app", "--workers", "4", directory=tmp_path) as server:
        chance = random.Random(5)
        for number in range(max(RELOADS, KILLS)):
            if number < RELOADS:
                server.reload()
            if number < KILLS:
                kill_one(server, chance)
        for name, space in {"often": 200, "slow": 500}.items():
            told = settle(server, name)
            counts = collections.Counter(told["counts"])
            began = [(n.instant, n.attempt) for n in notes(tmp_path, name) if n.what in ("ran", "began")]
            assert len(began) == len(set(began))
            ticks = round(told["decided"] * 1000) // space - round(told["since"] * 1000) // space
            again = sum(attempt > 1 for _, attempt in began)
            assert sum(counts.values()) - again == ticks
            assert counts["ok"] <= len(began) <= counts["ok"] + counts["died"] + counts["cut"]
            assert counts["ok"] > 0
            assert not counts["cut"]


@pytest.mark.once
def test_who_runs_it(tmp_path: Path) -> None:
    """One worker, each worker, the agent; and with the start of the server, once."""
    write(
        tmp_path,
        """
@schedule(every="1s")
def one():
    note("ran")

@schedule(every="1s", on="all")
async def each():
    note("ran")

@schedule(every="1s", on="agent")
async def apart():
    note("ran")

@schedule(every="1h", immediate=True)
async def first():
    note("ran")
""",
    )
    with running("app:app", "--workers", "2", "--agent", "app:agent", directory=tmp_path) as server:
        until(lambda: len(notes(tmp_path, "apart")) >= 2 and len(notes(tmp_path, "each")) >= 4, "all have run")
        by_instant = collections.Counter(note.instant for note in notes(tmp_path, "each"))
        assert by_instant.most_common(1)[0][1] == 2
        workers = set(server.worker_pids()) - {int((tmp_path / "agent").read_text())}
        assert {note.pid for note in notes(tmp_path, "each")} == workers
        assert {note.pid for note in notes(tmp_path, "one")} <= workers
        assert {note.pid for note in notes(tmp_path, "apart")} == {int((tmp_path / "agent").read_text())}
        server.reload()
        before = len(notes(tmp_path, "apart"))
        until(lambda: len(notes(tmp_path, "apart")) > before, "the new agent has run one")
        assert [note.kind for note in notes(tmp_path, "first")] == ["immediate"]
        assert server.stop() == 0


def test_runs_that_are_cut_or_die_are_recorded_and_run_again_only_with_retry(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
@schedule(every="1h", retry=1)
async def again():
    note("began")
    if schedule.current_run().attempt == 1:
        await asyncio.sleep(3600)

@schedule(every="1h")
def thread():
    note("began")
    time.sleep(3600)
""",
    )
    with running("app:app", "--graceful-timeout", "1", directory=tmp_path) as server:
        asked = [
            control_client.ControlConversation(server.control, "schedule", do="run", name=n)
            for n in ("again", "thread")
        ]
        until(lambda: len(notes(tmp_path)) == 2, "both run")
        server.reload()
        (again, thread) = [conversation.receive(PATIENCE) for conversation in asked]
        assert again is not None
        assert again["ok"]  # the second attempt
        assert outcomes(server, "again") == ["ok", "cut"]
        assert thread is not None
        assert outcomes(server, "thread") == ["cut"]
        for conversation in asked:
            conversation.__exit__()
        asked_again = control_client.ControlConversation(server.control, "schedule", do="run", name="thread")
        until(lambda: len(notes(tmp_path, "thread")) == 2, "it runs")
        os.kill(notes(tmp_path, "thread")[-1].pid, signal.SIGKILL)
        answer = asked_again.receive(PATIENCE)
        assert answer is not None
        assert "died" in answer["text"]
        assert outcomes(server, "thread") == ["died", "cut"]
        assert len(notes(tmp_path, "thread")) == 2
        asked_again.__exit__()


def test_a_run_whose_worker_dies_while_it_retires_was_not_cut(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
@schedule(every="1h")
async def job():
    note("began")
    await asyncio.sleep(3600)
""",
    )
    with running("app:app", directory=tmp_path) as server:
        with control_client.ControlConversation(server.control, "schedule", do="run", name="job") as asked:
            until(lambda: notes(tmp_path), "it runs")
            server.reload()
            os.kill(notes(tmp_path)[0].pid, signal.SIGKILL)
            answer = asked.receive(PATIENCE)
        assert answer is not None
        assert outcomes(server, "job") == ["died"], answer


def failed_start(directory: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and output of a server that does not come to serve."""
    done = subprocess.run(
        [sys.executable, "-m", "serve_asgi", "app:app", "--bind", "127.0.0.1:0", "--no-control-socket", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return done.returncode, done.stderr + done.stdout


TWICE = """
@schedule(every="1s")
async def job(): ...

def other():
    @schedule(every="1s")
    async def job(): ...

other()
"""


@pytest.mark.once
@pytest.mark.parametrize(
    ("schedules", "part"),
    [
        (TWICE, r"two schedules have the name 'job': .*app\.py:\d+ and .*app\.py:\d+"),
        ('@schedule(cron="61 * * * *")\nasync def job(): ...', r"'job' \(.*app\.py:\d+\) cannot be: cron is '61"),
        ('@schedule(every="1s", tz="Nowhere")\nasync def job(): ...', r"app\.py:\d+\) cannot be: tz is 'Nowhere'"),
    ],
)
def test_a_schedule_that_cannot_be_is_a_start_error(tmp_path: Path, schedules: str, part: str) -> None:
    write(tmp_path, schedules)
    status, told = failed_start(tmp_path)
    assert status == 2
    assert re.search(part, told), told


@pytest.mark.once
def test_a_reload_with_one_that_cannot_be_is_refused_and_the_old_ones_go_on(tmp_path: Path) -> None:
    write(tmp_path, RUNS)
    with running("app:app", directory=tmp_path) as server:
        write(tmp_path, TWICE)
        with pytest.raises(control_client.RequestRefused, match="two schedules have the name"):
            server.reload()
        before = len(notes(tmp_path))
        until(lambda: len(notes(tmp_path)) > before, "it goes on")


JOB = """
from serve_asgi import schedule

@schedule(every="1h")
async def job(): ...

async def agent(): ...
"""
RUNS = '@schedule(every="0.2s")\nasync def job():\n    note("ran")\n'
LATE = "\nimport time\ntime.sleep(0.5)\n"


@pytest.mark.once
def test_two_functions_of_one_name_in_agent_and_workers_are_a_start_error(tmp_path: Path) -> None:
    """Also if each process knows one of them alone."""
    (tmp_path / "jobs.py").write_text(JOB)
    (tmp_path / "apart.py").write_text(JOB)
    write(tmp_path, "import jobs\n")
    status, told = failed_start(tmp_path, "--agent", "apart:agent")
    assert status == 2
    first, second = r"apart:job \(.*apart\.py:4\) of the agent", r"jobs:job \(.*jobs\.py:4\) of worker 0"
    assert re.search(f"two schedules have the name 'job': {first} and {second}; give one", told), told


@pytest.mark.once
def test_a_reload_that_brings_two_functions_of_one_name_is_refused(tmp_path: Path) -> None:
    """Whoever is ready last. One that both import is no second one, and a name may move from one process to another."""
    (tmp_path / "apart.py").write_text("import app\n" + JOB.replace("job", "other"))
    write(tmp_path, RUNS)
    with running("app:app", "--agent", "apart:agent", directory=tmp_path) as server:
        for late in ("agent", "worker"):
            (tmp_path / "apart.py").write_text(JOB + LATE * (late == "agent"))
            write(tmp_path, RUNS + LATE * (late == "worker"))
            with pytest.raises(
                control_client.RequestRefused, match=r"name 'job': .*app:job \(.*of worker 0"
            ) as refused:
                server.reload()
            assert "apart:job" in str(refused.value)
        before = len(notes(tmp_path))
        until(lambda: len(notes(tmp_path)) > before, "it goes on")
        moved = JOB.replace('"1h"', '"0.2s", on="agent"').replace("...", 'app.note("ran")', 1)
        (tmp_path / "apart.py").write_text("import app\n" + moved)
        write(tmp_path, "")
        server.reload()
        assert report(server, "job")["on"] == "agent"
        until(lambda: "the agent of generation 4" in str(report(server, "job")["history"]), "the agent runs it")


@pytest.mark.once
def test_the_environment(tmp_path: Path) -> None:
    write(tmp_path, '@schedule(every="1h", env="production")\nasync def job(): ...\n')
    with running("app:app", "--environment", "production", directory=tmp_path) as server:
        assert report(server, "job")["disabled"] == ""


@pytest.mark.once
def test_a_pause_is_in_force_at_once_over_reload_and_restart(tmp_path: Path) -> None:
    write(tmp_path, '@schedule(every="0.2s")\nasync def job():\n    note("ran")\n')
    options = ("app:app", "--workers", "2", "--state", "state")
    with running(*options, directory=tmp_path) as server:
        until(lambda: notes(tmp_path), "it runs")
        do(server, "pause", "job")
        before = len(notes(tmp_path))
        until(lambda: outcomes(server, "job")[0] == "paused")
        server.reload()
        assert report(server, "job")["paused"]
        assert server.stop() == 0
    assert len(notes(tmp_path)) <= before + 1  # a run that had been given
    with running(*options, directory=tmp_path) as server:
        until(lambda: outcomes(server, "job")[:1] == ["paused"])
        assert "ok" in outcomes(server, "job")  # of the server before
        before = len(notes(tmp_path))
        do(server, "resume", "job")
        until(lambda: len(notes(tmp_path)) > before, "it runs again")
        tokens = [int(note.token) for note in notes(tmp_path)]
        assert tokens == sorted(set(tokens))


@pytest.mark.once
@pytest.mark.parametrize("whole", [False, True])
def test_what_a_stopped_server_missed_is_reported(tmp_path: Path, whole: bool) -> None:
    write(tmp_path, RUNS)
    with running("app:app", directory=tmp_path) as server:
        until(lambda: notes(tmp_path), "it runs")
        pids = [server.pid, *(server.worker_pids() if whole else [])]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        stopped = max(note.instant for note in notes(tmp_path))
        until(lambda: time.time() * 1000 > stopped + 1500, "ticks have passed")
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)
        until(lambda: "missed" in outcomes(server, "job"), "they are recorded")
        assert "of the schedule 'job' missed" in server.log()
        told = settle(server, "job")
        ran = [note.instant for note in notes(tmp_path)]
        assert len(ran) == len(set(ran))
        ticks = round(told["decided"] * 1000) // 200 - round(told["since"] * 1000) // 200
        assert sum(told["counts"].values()) == ticks


def test_a_listener_that_is_replaced_goes_on(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
@schedule(every="0.2s", immediate=True)
async def job():
    note("ran")

@schedule(every="1h")
async def long():
    note("began")
    while not os.path.exists("enough"):
        await asyncio.sleep(0.02)
""",
    )
    with running("app:app", directory=tmp_path) as server:
        asked = control_client.ControlConversation(server.control, "schedule", do="run", name="long")
        until(lambda: notes(tmp_path, "long") and notes(tmp_path, "job"), "they run")
        do(server, "pause", "long")
        control_client.ask(server.control, "reload-listener")
        assert report(server, "long")["runs"] == 1
        assert report(server, "long")["paused"]
        (tmp_path / "enough").touch()
        until(lambda: outcomes(server, "long")[0] == "ok", "its end is recorded")
        told = settle(server, "job")
        ran = [(note.instant, note.kind) for note in notes(tmp_path, "job")]
        assert len(ran) == len(set(ran))
        assert [kind for _, kind in ran].count("immediate") == 1
        ticks = round(told["decided"] * 1000) // 200 - round(told["since"] * 1000) // 200
        assert sum(told["counts"].values()) == ticks + 1
        asked.__exit__()
