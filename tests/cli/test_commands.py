"""The small commands, the listener's patience while workers are blocked, help, and shells."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import MODULES, load
from serve_asgi.cli.command import memory, span
from serve_asgi.cli.config import value
from serve_asgi.cli.control_client import ask
from serve_asgi.cli.stacks import lines
from tests.cli.serving import SLOW, begin, serve, start
from tests.running import PATIENCE, RunningServer, running, until


def wait_for_blocked(server: RunningServer, count: int) -> None:
    """Wait until the event loops of so many workers turn no more."""
    until(lambda: sum(w["blocked"] > 0 for w in ask(server.control, "stacks")["stacks"]["workers"]) >= count)


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


def test_scale(server: RunningServer) -> None:
    done = serve(server, "scale", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "workers: 2 -> 3\n3 workers serve\n"
    server.wait_for_workers(3)
    done = serve(server, "scale", "1")
    assert done.stdout.startswith("workers: 3 -> 1\n1 worker serves")
    server.wait_for_workers(1)
    assert serve(server, "scale", "0").returncode == 2
    (server.directory / "app.py").write_text("import missing_module\n")
    refused = serve(server, "scale", "2")
    assert refused.returncode == 1
    assert "slot 1 cannot be filled, the server keeps trying: " in refused.stderr
    assert serve(server, "scale", "1", "--no-wait").stdout == "workers: 2 -> 1\n"
    server.wait_for_workers(1)


def test_status_and_workers(server: RunningServer) -> None:
    for command in ("status", "workers"):
        done = serve(server, command)
        assert (done.returncode, done.stderr) == (0, "")
        assert sum(" serving " in line for line in done.stdout.splitlines()) == 2
    assert max(map(len, done.stdout.splitlines())) <= 80
    host, port = server.address()
    lines = serve(server, "status").stdout.splitlines()
    assert lines[0].endswith(f"PID {server.pid}: running, healthy")
    assert lines[1].startswith(f"app:app on http://{host}:{port}, ")
    assert len(json.loads(serve(server, "workers", "--json").stdout)) == 2
    assert serve(server, "drain").stdout == "draining until `serve drain --off`\n"
    assert "draining for " in serve(server, "status").stdout
    assert serve(server, "drain", "--off").stdout == "drain ended\n"


def test_no_pid_but_the_listeners_is_told(server: RunningServer) -> None:
    """Law 10 of docs/how-it-works/design.md. Stacks and records do:
    who looks into a worker with gdb or py-spy needs it."""
    told = server.status() | {"config": ask(server.control, "config")["config"]}
    assert told.pop("pid") == server.pid
    assert '"pid": ' not in json.dumps({name: each for name, each in told.items() if name != "config"})
    assert not set(server.worker_pids()) & {each for each in numbers(told) if each > 1000}
    stacks = json.loads(serve(server, "stacks", "--json").stdout)
    assert {worker["pid"] for worker in stacks["workers"]} == set(server.worker_pids())


def numbers(told: object) -> Iterator[int]:
    """All whole numbers in a structure."""
    if isinstance(told, dict | list):
        for each in told.values() if isinstance(told, dict) else told:
            yield from numbers(each)
    elif isinstance(told, int):
        yield told


def test_status_tells_what_went_wrong(server: RunningServer) -> None:
    lost, crashes = server.status()["lost"], server.status()["starts"].get("crash", 0)
    with begin(server, "/wait/60"):
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        server.wait_until(lambda s: s["lost"] == lost + 1 and s["starts"].get("crash", 0) >= crashes + 2)
    told = serve(server, "status").stdout.splitlines()
    assert any(re.fullmatch(r"workers replaced: \d+ after a crash", line) for line in told)
    requests = "1 request" if lost == 0 else f"{lost + 1} requests"
    assert f"{requests} lost: cut, or in flight in a worker that died" in told


def test_output_that_cannot_be_written(server: RunningServer) -> None:
    """A reader that leaves is no error; a full disk is a sentence."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open("/dev/full", "w") as full, open(write_end, "w") as closed:
        left, stuck = (start(server, "status", "--json", stdout=file) for file in (closed, full))
        assert left.communicate(timeout=PATIENCE)[1] == ""
        assert left.returncode == 0
        complaint = stuck.communicate(timeout=PATIENCE)[1]
    assert complaint == "serve: standard output cannot be written to: No space left on device\n"
    assert stuck.returncode == 1


def test_an_answer_of_another_version_is_a_sentence(tmp_path: Path) -> None:
    """Such as one that lacks what this command shows."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "control"))
        other.listen()
        for given, expected in (
            ({"ok": True, "status": {"server": "9"}}, "the server's response lacks 'pid': it is another version"),
            ({"ok": False, "text": "this server does not know the command 'status'"}, "does not know the command"),
        ):
            command = start(None, "status", "--control", str(tmp_path / "control"))
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(json.dumps({"version": 1, **given}).encode() + b"\n")
                told, complaint = command.communicate(timeout=PATIENCE)
            assert (command.returncode, told) == (1, "")
            assert expected in complaint
            assert "Traceback" not in complaint


def test_an_interrupted_command_has_no_traceback(server: RunningServer) -> None:
    """Here while it waits for a listener that does not answer."""
    server.signal(signal.SIGSTOP)
    try:
        commands = [start(server, *words) for words in (["status"], ["reload"], ["top"])]
        for command in commands:
            wait_for_socket(command.pid)
            command.send_signal(signal.SIGINT)
        for command in commands:
            told, complaint = command.communicate(timeout=PATIENCE)
            assert (command.returncode, told, complaint.strip()) == (130, "", "")
    finally:
        server.signal(signal.SIGCONT)


def wait_for_socket(pid: int) -> None:
    """Wait until the process has opened a socket."""
    until(lambda: any(is_socket(link) for link in Path(f"/proc/{pid}/fd").iterdir()), f"a socket of {pid}")


def is_socket(link: Path) -> bool:
    """Whether a descriptor is one; it may have been closed meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(link).startswith("socket:")
    return False


def test_config_tells_each_value_and_its_place(server: RunningServer) -> None:
    told = serve(server, "config").stdout.splitlines()
    assert told[0] == f"configuration file: {server.directory}/serve.toml"
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in told if line.startswith("  ")}
    assert rows["workers"].endswith("(command line, --workers)")
    assert rows["backlog"] == "77 (environment, SERVE_BACKLOG)"
    assert rows["keep-alive"].startswith("33 (")
    assert "serve.toml" in rows["keep-alive"]
    assert rows["graceful-timeout"] == "30"
    found = json.loads(serve(server, "config", "--json").stdout)
    assert {"name", "value", "source", "place"} <= set(found["options"][0])


def test_log_files_are_opened_anew(server: RunningServer) -> None:
    (server.directory / "log").rename(server.directory / "log.1")
    done = serve(server, "logs-reopen")
    assert (done.returncode, done.stdout) == (0, "the log files are being reopened\n")
    server.reload()
    assert f"generation {server.status()['generation']} serves" in (server.directory / "log").read_text()
    (server.directory / "log").rename(server.directory / "log.2")
    (server.directory / "log").mkdir()  # as what logrotate has created for somebody else
    done = serve(server, "logs-reopen")
    (server.directory / "log").rmdir()
    assert done.returncode == 1
    assert f"the log file {server.directory}/log cannot be reopened: Is a directory; the old one" in done.stderr
    assert serve(server, "logs-reopen").returncode == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_command_has_help_that_fits(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    load(name).main(["--help"], prog_name=f"serve {name}", standalone_mode=False)
    told = capsys.readouterr().out
    assert f"Usage: serve {name} [OPTIONS]" in told
    assert max(map(len, told.splitlines())) <= 80
    assert load(name).get_short_help_str(100)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("serve re", {"reload"}),
        ("serve s", {"stop", "scale", "status", "stacks", "schedule", "schedules", "shared"}),
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
    assert list(lines({"workers": [gone]}))[1] == "  its process is stopped (state T); nothing is known about it"


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
