"""`serve reload`: what is told on the way, the outcome, and that it is the listener's and not this command's."""

from __future__ import annotations

import io
import json
import signal
import socket
import threading
from pathlib import Path

import pytest
from rich.console import Console

from serve_asgi.cli import reload_progress
from serve_asgi.cli.command import harmless
from serve_asgi.cli.control_client import ask
from serve_asgi.cli.reload_live_view import picture
from serve_asgi.cli.reload_progress import remains
from tests.cli.serving import SLOW, begin, serve, start
from tests.cli.terminal import Terminal
from tests.running import PATIENCE, RunningServer, connect, request

BROKEN = "import missing_module\n"


def test_each_step_is_a_line(server: RunningServer) -> None:
    after = server.status()["generation"] + 1
    done = serve(server, "reload", "--retired")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0] == f"reload: generation {after} starts, 2 workers"
    ready = [f"worker {slot} of generation {after} is ready" for slot in range(2)]
    assert sorted(lines[1:3]) == ready
    assert lines[3].startswith(f"generation {after} serves, 2 workers, after ")
    assert lines[-1] == "all older workers have ended; nothing was cut"


def test_it_returns_when_the_new_generation_serves_and_tells_what_still_finishes(server: RunningServer) -> None:
    now = server.status()["generation"]
    with connect(server) as idle, begin(server, "/wait/6") as busy:
        request(idle)
        done = serve(server, "reload")
        assert done.returncode == 0
        assert f"1 connection handed over; generation {now} is finishing 1 request" in done.stdout
        retired = serve(server, "reload", "--retired", "--json")
        assert busy.recv(10) == b"ne"
        assert request(idle)[0] == 200
    records = [json.loads(line) for line in retired.stdout.splitlines()]
    assert retired.returncode == 0
    assert {"reload_started", "worker_ready", "reload_finished"} <= {record["event"] for record in records}
    last = records[-1]
    assert (last["event"], last["ok"], last["generations"], last["requests"]) == ("outcome", True, [], 0)
    assert last["text"].startswith(f"generation {now + 2} serves")


def test_a_refused_reload_brings_the_traceback_and_nothing_that_a_terminal_obeys(server: RunningServer) -> None:
    now = server.status()["generation"]
    (server.directory / "app.py").write_text(BROKEN)
    done = serve(server, "reload")
    assert done.returncode == 1
    assert "No module named 'missing_module'" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"serve: reload refused, generation {now} serves on")
    (server.directory / "app.py").write_text("raise ValueError('\\33]0;title\\7 \\x9b2J \\u202e')\n")
    told = serve(server, "reload", "--json")
    outcome = json.loads(told.stdout.splitlines()[-1])
    assert (told.returncode, told.stderr) == (1, "")
    assert (outcome["event"], outcome["ok"]) == ("outcome", False)
    assert "ValueError: " in outcome["detail"]
    assert not set(serve(server, "reload").stderr) & {"\x1b", "\7", "\x9b", "\u202e"}


def test_what_a_terminal_obeys_is_shown() -> None:
    told = {"text": "\x1b]0;title\7 \x9b2J\u202e", "lines": ["a\tb\n", 3, None]}
    assert harmless(told) == {"text": r"\x1b]0;title\x07 \x9b2J\u202e", "lines": ["a\tb\n", 3, None]}


@pytest.mark.parametrize("leaves", [True, False])
def test_the_exit_status_is_the_truth_also_where_nothing_can_be_written(server: RunningServer, leaves: bool) -> None:
    """The reader of a pipe has left; the disk is full. The command follows the reload to its outcome."""
    now = server.status()["generation"]
    with open("/dev/full", "w") as full:
        command = start(server, "reload", **({} if leaves else {"stdout": full}))
    if leaves:
        assert command.stdout is not None
        command.stdout.close()
        command.stdout = None
    _, complaint = command.communicate(timeout=PATIENCE)
    assert command.returncode == 0
    assert complaint.count("\n") == (0 if leaves else 1)
    assert leaves or complaint.startswith("serve: standard output cannot be written to: No space left on device; ")
    assert server.status()["generation"] > now


def test_without_a_server_the_last_line_is_the_outcome_as_well(tmp_path: Path) -> None:
    for command in ("reload", "stop"):
        done = serve(None, command, "--json", "--control", str(tmp_path / "none"))
        assert (done.returncode, json.loads(done.stdout)["ok"], json.loads(done.stdout)["event"]) == (
            2,
            False,
            "outcome",
        )


def test_without_waiting(server: RunningServer) -> None:
    now = server.status()["generation"]
    done = serve(server, "reload", "--no-wait")
    assert (done.returncode, done.stdout) == (0, "reload requested\n")
    server.wait_until(lambda status: status["generation"] == now + 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_does_not_end_the_reload(server: RunningServer, number: signal.Signals) -> None:
    now = server.status()["generation"]
    (server.directory / "app.py").write_text("import time\ntime.sleep(1)\n" + SLOW)
    command = start(server, "reload")
    assert command.stdout is not None
    command.stdout.readline()
    command.send_signal(number)
    _, complaint = command.communicate(timeout=PATIENCE)
    assert command.returncode == 128 + number
    if number is signal.SIGINT:
        assert complaint == "serve: the reload continues without this command; `serve status` shows its outcome\n"
    server.wait_until(lambda status: status["generation"] == now + 1)


def test_a_script_may_follow_with_nothing_but_a_socket(server: RunningServer) -> None:
    """One that ends its own sending, as `nc -N` does, is still told everything."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(server.control))
        connection.sendall(b'{"version": 1, "command": "reload", "follow": true}\n')
        connection.shutdown(socket.SHUT_WR)
        lines = [json.loads(line) for line in connection.makefile("rb")]
    assert lines[0]["record"]["event"] == "reload_requested"
    assert lines[-1]["ok"] is True


def test_those_who_follow_and_leave_are_forgotten(server: RunningServer) -> None:
    held = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
    for turn in range(20):
        following = [socket.socket(socket.AF_UNIX) for _ in range(10)]
        for connection in following:
            connection.connect(str(server.control))
            connection.sendall(b'{"version": 1, "command": "follow"}\n')
        asked = threading.Thread(target=ask, args=(server.control, "drain"), kwargs={"off": bool(turn % 2)})
        asked.start()  # so that there is something to tell while they leave
        for connection in following:
            connection.close()
        asked.join()
    server.wait_until(lambda _: len(list(Path(f"/proc/{server.pid}/fd").iterdir())) <= held + 1)
    assert "Traceback" not in server.log()


def test_on_a_terminal_it_is_drawn(server: RunningServer) -> None:
    now = server.status()["generation"]
    with Terminal(server, "reload", columns=80) as terminal:
        terminal.wait_for("2 serving")
        terminal.wait_for(f"generation {now + 1} serves, 2 workers, after ")
        assert terminal.wait() == 0
    (server.directory / "app.py").write_text(BROKEN)
    with Terminal(server, "reload", columns=80) as terminal:
        terminal.wait_for("No module named 'missing_module'")
        terminal.wait_for(f"serve: reload refused, generation {now + 1} serves on")
        assert terminal.wait() == 1


STATUS = {
    "app": "shop.web:application",
    "pid": 41,
    "generation": 7,
    "size": 4,
    "lost": 0,
    "generations": [{"number": 7, "state": "current", "size": 4}, {"number": 8, "state": "starting", "size": 4}],
    "workers": [
        *({"generation": 7, "slot": slot, "state": "serving", "connections": 3, "in_flight": 1} for slot in range(4)),
        *({"generation": 8, "slot": slot, "state": "ready", "connections": 0, "in_flight": 0} for slot in range(2)),
        {"generation": 8, "slot": 2, "state": "starting", "connections": 0, "in_flight": 0},
    ],
    "totals": {"handed_over": 100},
}
for worker in STATUS["workers"]:  # type: ignore[attr-defined]
    worker |= {"websockets": 0, "oldest": 12.5}


def drawn(before: dict[str, object], seen: dict[str, object], note: str = "") -> list[str]:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(picture(before, seen, 1.25, note, 80))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_picture_before_the_switch() -> None:
    assert drawn(STATUS, STATUS, "worker 1 of generation 8 is ready") == [
        "reload of shop.web:application, PID 41" + " " * 37 + "1.2 s",
        "generation 8  ●●◐·  1 waiting, 1 importing, 2 ready",
        "generation 7  ●●●●  4 serving",
        "worker 1 of generation 8 is ready",
    ]


def test_the_picture_while_the_agent_changes() -> None:
    passing = {"number": 8, "state": "passing", "size": 4}
    agents = [{"generation": 7, "state": "finishing"}, {"generation": 8, "state": "prepared"}]
    seen = {**STATUS, "generations": [STATUS["generations"][0], passing], "agents": agents}  # type: ignore[index]
    assert drawn(STATUS, seen)[1:3] == [
        "generation 8  ●●◐·  1 waiting, 1 importing, 2 ready, agent prepared",
        "generation 7  ●●●●  4 serving, agent finishing",
    ]


def test_the_picture_after_the_switch() -> None:
    seen = {**STATUS, "generation": 8, "totals": {"handed_over": 108}}
    assert drawn(STATUS, seen)[-1] == (
        "8 connections handed over; generation 7 is finishing 4 requests, the oldest for…"
    )
    assert remains(STATUS, seen).oldest == 12.5


TRIAL = {
    "generation": 8,
    "state": "canary",
    "share": 0.1,
    "seconds_left": 45.0,
    "canary": {"requests": 120, "errors": 3},
    "current": {"requests": 1080, "errors": 1},
}
"""As in the status, a quarter of its time over."""


def test_the_picture_of_a_trial() -> None:
    trial = {"number": 8, "state": "canary", "size": 4}
    seen = {**STATUS, "generations": [STATUS["generations"][0], trial], "canary": TRIAL}  # type: ignore[index]
    seen |= {"last_deploy": {"trial": {"seconds": 60.0}}}
    assert drawn(STATUS, seen, "a note")[3:] == [
        "generation 8 is on trial with 10% of the traffic, 45 s left",
        "━" * 40,
        "              requests  failed  share",
        "generation 8       120       3   2.5%",
        "generation 7     1,080       1   0.1%",
    ]
    starting = {"generation": 8, "state": "starting canary", "share": 0.0, "seconds_left": None}
    assert drawn(STATUS, {**seen, "canary": starting})[3:] == ["generation 8 starts as a canary"]
    held = {**TRIAL, "state": "held", "seconds_left": None, "canary": {"requests": 0, "errors": 0}}
    assert drawn(STATUS, {**seen, "canary": held})[3:6] == [
        "generation 8 is held at 10%: `serve promote` or `serve rollback`",
        "              requests  failed  share",
        "generation 8         0       0      -",
    ]


def test_what_is_left_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A reload that took longer than the pause between two looks told it twice, line after line."""
    monkeypatch.setattr(reload_progress, "LOOK", 0.0)
    totals = {"handed_over": 0}
    before = {"generation": 1, "totals": totals}
    worker = {"generation": 1, "in_flight": 0, "websockets": 0}
    status = {"generation": 2, "totals": totals, "workers": [worker]}
    show = reload_progress.ReloadLines(before)
    show.seen(status)
    show.left(remains(before, status))
    assert capsys.readouterr().out == "generation 1 ends\n"


def test_what_stands_by_has_nothing_left_to_do_and_what_is_rolled_back_has() -> None:
    workers = [
        {**worker, "state": "standby", "in_flight": 0} if worker["generation"] == 7 else {**worker, "state": "serving"}
        for worker in STATUS["workers"]  # type: ignore[attr-defined]
    ]
    kept = {"number": 7, "state": "standby", "size": 4, "standby": 12.0}
    seen = {**STATUS, "generation": 8, "starting": None, "workers": workers, "generations": [kept]}
    left = remains(STATUS, seen)
    assert left.text() == "generation 7 stands by; nothing was cut"
    assert "generation 7  ●●●●  4 standing by" in drawn(STATUS, seen)
    again = remains(seen, {**STATUS, "generation": 7, "starting": None})
    assert again.generations == (8,)
    assert again.text() == "generation 8 ends"
