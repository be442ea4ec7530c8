"""The small commands, the listener's patience while workers are blocked, help, and shells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from server.commands import MODULES, load
from server.commands.command import memory, span
from server.commands.config import value
from server.commands.stacks import lines
from server.control_client import ask
from tests.applications import info
from tests.commands.serving import SLOW, begin, environment, serve, start
from tests.running import PATIENCE, ROOT, RunningServer, running


def wait_for_blocked(server: RunningServer, count: int) -> None:
    """Wait until the event loops of so many workers turn no more."""
    deadline = time.monotonic() + PATIENCE
    while sum(w["blocked"] > 0 for w in ask(server.control, "stacks")["stacks"]["workers"]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_listener_answers_while_every_worker_is_blocked(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SLOW)
    with running("app:app", "--workers", "2", directory=tmp_path) as server, begin(server, "/block/60"):
        wait_for_blocked(server, 1)
        other = begin(server, "/block/60")
        wait_for_blocked(server, 2)
        done = serve(server, "stacks")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("time.sleep(float(seconds))") == 2
        assert done.stdout.count("event loop, GET /block/60") == 2
        assert "its event loop blocked for" in done.stdout
        found = json.loads(serve(server, "stacks", "--json").stdout)
        assert [worker["slot"] for worker in found["workers"]] == [0, 1]
        for command in ("status", "workers", "config"):
            assert serve(server, command).returncode == 0
        assert sum(worker["in_flight"] for worker in server.workers()) == 2  # and they still are
        other.close()


def test_scale(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SLOW)
    with running("app:app", directory=tmp_path) as server:
        done = serve(server, "scale", "3")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "workers: 1 -> 3\n3 workers serve\n"
        server.wait_for_workers(3)
        done = serve(server, "scale", "1")
        assert done.stdout.startswith("workers: 3 -> 1\n1 worker serves")
        server.wait_for_workers(1)
        assert serve(server, "scale", "0").returncode == 2
        (tmp_path / "app.py").write_text("import missing_module\n")
        refused = serve(server, "scale", "2")
        assert refused.returncode == 1
        assert "slot 1 cannot be filled, the server goes on trying: " in refused.stderr
        assert serve(server, "scale", "1", "--no-wait").stdout == "workers: 2 -> 1\n"
        assert server.stop() == 0


def test_status_and_workers(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--workers", "2", directory=tmp_path) as server:
        for command in ("status", "workers"):
            done = serve(server, command)
            assert (done.returncode, done.stderr) == (0, "")
            assert max(map(len, done.stdout.splitlines())) <= 80
            assert sum(" serving " in line for line in done.stdout.splitlines()) == 2
        host, port = server.address()
        lines = serve(server, "status").stdout.splitlines()
        assert lines[0].endswith(f"PID {server.pid}: running, healthy")
        assert lines[1].startswith(f"app:app on http://{host}:{port}, up for ")
        assert len(json.loads(serve(server, "workers", "--json").stdout)) == 2
        assert serve(server, "drain").stdout == "in lame duck until told off\n"
        assert "in lame duck for " in serve(server, "status").stdout
        assert serve(server, "drain", "--off").stdout == "lame duck is off\n"
        assert server.stop() == 0


def test_status_tells_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SLOW)
    with running("app:app", directory=tmp_path) as server:
        with begin(server, "/wait/60"):
            os.kill(server.worker_pids()[0], signal.SIGKILL)
            server.wait_until(lambda status: status["lost"] == 1 and status["starts"].get("crash") == 1)
        told = serve(server, "status").stdout.splitlines()
        assert "workers started again: 1 after a crash" in told
        assert "1 request lost: cut, or in the hands of a worker that died" in told
        assert server.stop() == 0


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", directory=tmp_path) as server:
        read_end, write_end = os.pipe()
        os.close(read_end)
        command = [sys.executable, "-m", "server", "status", "--json", "--control", str(server.control)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), stdout=write_end, stderr=subprocess.PIPE, check=False, timeout=60
        )
        os.close(write_end)
        assert done.stderr == b""
        assert server.stop() == 0


def test_an_interrupted_command_has_no_traceback(tmp_path: Path) -> None:
    """Here while it waits for a listener that does not answer."""
    (tmp_path / "app.py").write_text(info())
    with running("app:app", directory=tmp_path) as server:
        server.signal(signal.SIGSTOP)
        commands = [start(server, *words) for words in (["status"], ["drain"], ["scale", "2"], ["reload"], ["top"])]
        for command in commands:
            wait_for_socket(command.pid)
            command.send_signal(signal.SIGINT)
        for command in commands:
            told, complaint = command.communicate(timeout=PATIENCE)
            assert (command.returncode, told, complaint.strip()) == (130, "", "")
        server.signal(signal.SIGCONT)
        assert server.stop() == 0


def wait_for_socket(pid: int) -> None:
    """Wait until the process has opened a socket."""
    deadline = time.monotonic() + PATIENCE
    while not any(os.readlink(link).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_config_tells_each_value_and_its_place(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    (tmp_path / "serve.toml").write_text("keep-alive = 33\n")
    environment = {"SERVE_BACKLOG": "77"}
    with running("app:app", "--workers", "2", directory=tmp_path, environment=environment) as server:
        told = serve(server, "config").stdout.splitlines()
        assert told[0] == f"configuration file: {tmp_path}/serve.toml"
        rows = {line.split()[0]: " ".join(line.split()[1:]) for line in told if line.startswith("  ")}
        assert rows["workers"] == "2 (command line, --workers)"
        assert rows["backlog"] == "77 (environment, SERVE_BACKLOG)"
        assert rows["keep-alive"].startswith("33 (")
        assert "serve.toml" in rows["keep-alive"]
        assert rows["graceful-timeout"] == "30"
        found = json.loads(serve(server, "config", "--json").stdout)
        assert {"name", "value", "source", "place"} <= set(found["options"][0])
        assert server.stop() == 0


def test_log_files_are_opened_anew(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--log-file", str(tmp_path / "log"), directory=tmp_path) as server:
        (tmp_path / "log").rename(tmp_path / "log.1")
        done = serve(server, "logs-reopen")
        assert (done.returncode, done.stdout) == (0, "the log files are opened anew\n")
        assert serve(server, "reload").returncode == 0
        assert "generation 2 serves" in (tmp_path / "log").read_text()
        assert server.stop() == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_command_has_help_that_fits(name: str) -> None:
    done = serve(None, name, "--help", COLUMNS="80")
    assert done.returncode == 0
    assert f"Usage: serve {name} [OPTIONS]" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert load(name).get_short_help_str(100)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("serve re", {"reload"}),
        ("serve s", {"stop", "scale", "status", "stacks"}),
        ("serve stop --d", {"--delay"}),
        ("serve app:asgi --graceful", {"--graceful-timeout"}),
    ],
)
def test_shells_complete(words: str, expected: set[str]) -> None:
    number = str(len(words.split()) - 1)
    done = serve(None, _SERVE_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=number)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected


def test_stacks_of_many_tasks_are_told_together() -> None:
    place = ['File "app.py", line 3, in app', "  await read()"]
    tasks = [
        {"name": f"Task-{n}", "coro": "run", "stack": place, "request": f"GET /{n}", "awaits": "Future"}
        for n in range(5)
    ]
    alone = {"name": "Task-9", "coro": "tidy", "stack": [], "running": True}
    worker = {"slot": 0, "generation": 3, "state": "serving", "reason": "", "blocked": 2.0, "how": "asked"}
    worker |= {"threads": [], "threads_total": 2, "tasks": [*tasks, alone], "tasks_total": 9}
    assert list(lines({"workers": [worker]})) == [
        "worker 0 of generation 3: serving, its event loop blocked for 2.0 s",
        "  Task-9, tidy, runs",
        "  5 tasks (GET /0, GET /1, GET /2, …), each waits for Future",
        '      File "app.py", line 3, in app',
        "        await read()",
        "  and 2 more threads",
        "  and 3 more tasks",
    ]
    gone = worker | {"reason": "its process is stopped (state T)", "threads": [], "tasks": [], "how": "none"}
    assert list(lines({"workers": [gone]}))[1] == "  its process is stopped (state T); nothing is known of it"


def test_numbers_as_people_write_them() -> None:
    assert [span(time) for time in (0.04, 9.94, 59, 200, 3720, 90000)] == [
        "0.0 s",
        "9.9 s",
        "59 s",
        "3m20s",
        "1h02m",
        "1d",
    ]
    assert [memory(size) for size in (5, 4096, 34 << 20, 3 << 30)] == ["5 B", "4 KiB", "34 MiB", "3.0 GiB"]
    options: tuple[dict[str, Any], ...] = (
        {"value": []},
        {"value": True},
        {"value": 2.5},
        {"value": "", "resolved": "/srv"},
    )
    assert [value(option) for option in options] == ["-", "on", "2.5", "- = /srv"]
