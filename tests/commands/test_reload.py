"""`serve reload`: what is told on the way, the outcome, and that it is the listener's and not this command's."""

from __future__ import annotations

import io
import json
import signal
import socket
import threading
from pathlib import Path

from rich.console import Console

from server.commands.reload import remains
from server.commands.reload_view import picture
from server.control_client import ask
from tests.applications import info
from tests.commands.serving import SLOW, begin, serve, start
from tests.commands.terminal import Terminal
from tests.running import PATIENCE, connect, request, running

BROKEN = "import missing_module\n"


def test_each_step_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--workers", "2", directory=tmp_path) as server:
        done = serve(server, "reload", "--drained")
        lines = done.stdout.splitlines()
        assert (done.returncode, done.stderr) == (0, "")
        assert lines[0] == "reload: generation 2 starts, 2 workers"
        assert sorted(lines[1:3]) == ["worker 0 of generation 2 is ready", "worker 1 of generation 2 is ready"]
        assert lines[3].startswith("generation 2 serves, 2 workers, after ")
        assert lines[-1] == "all older workers have ended; nothing was cut"
        assert server.stop() == 0


def test_it_returns_when_the_new_generation_serves_and_tells_what_still_drains(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SLOW)
    with running("app:app", directory=tmp_path) as server:
        with connect(server) as idle, begin(server, "/wait/3") as busy:
            request(idle)
            done = serve(server, "reload")
            assert done.returncode == 0
            assert "1 connection handed over; generation 1: 1 request still drains" in done.stdout
            drained = serve(server, "reload", "--drained", "--json")
            assert busy.recv(10) == b"ne"
            assert request(idle)[0] == 200
        records = [json.loads(line) for line in drained.stdout.splitlines()]
        assert drained.returncode == 0
        assert {"reload_started", "worker_ready", "reload_done"} <= {record["event"] for record in records}
        last = records[-1]
        assert (last["event"], last["ok"], last["generations"], last["requests"]) == ("outcome", True, [], 0)
        assert last["text"].startswith("generation 3 serves")
        assert server.stop() == 0


def test_a_refused_reload_brings_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", directory=tmp_path) as server:
        (tmp_path / "app.py").write_text(BROKEN)
        done = serve(server, "reload")
        assert done.returncode == 1
        assert "No module named 'missing_module'" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("serve: reload refused, generation 1 serves on")
        told = serve(server, "reload", "--json")
        outcome = json.loads(told.stdout.splitlines()[-1])
        assert (told.returncode, told.stderr) == (1, "")
        assert (outcome["event"], outcome["ok"]) == ("outcome", False)
        assert "No module named 'missing_module'" in outcome["detail"]
        assert server.stop() == 0


def test_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", directory=tmp_path) as server:
        done = serve(server, "reload", "--no-wait")
        assert (done.returncode, done.stdout) == (0, "reload asked for\n")
        server.wait_until(lambda status: status["generation"] == 2)
        assert server.stop() == 0


def test_an_interrupted_command_does_not_end_the_reload(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import time\ntime.sleep(1)\n" + info())
    with running("app:app", directory=tmp_path) as server:
        command = start(server, "reload")
        assert command.stdout is not None
        command.stdout.readline()
        command.send_signal(signal.SIGINT)
        _, complaint = command.communicate(timeout=PATIENCE)
        assert command.returncode == 130
        assert complaint == "serve: the reload goes on without this command; `serve status` tells its outcome\n"
        server.wait_until(lambda status: status["generation"] == 2)
        assert server.stop() == 0


def test_a_script_may_follow_with_nothing_but_a_socket(tmp_path: Path) -> None:
    """One that ends its own sending, as `nc -N` does, is still told everything."""
    (tmp_path / "app.py").write_text(info())
    with running("app:app", directory=tmp_path) as server:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(server.control))
            connection.sendall(b'{"version": 1, "command": "reload", "follow": true}\n')
            connection.shutdown(socket.SHUT_WR)
            lines = [json.loads(line) for line in connection.makefile("rb")]
        assert lines[0]["record"]["event"] == "reload_asked"
        assert lines[-1]["ok"] is True
        assert server.stop() == 0


def test_those_who_follow_and_leave_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", directory=tmp_path) as server:
        server.status()
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
        assert server.stop() == 0
        assert "Traceback" not in server.log()


def test_on_a_terminal_it_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--workers", "2", directory=tmp_path) as server:
        with Terminal(server, "reload", columns=80) as terminal:
            terminal.wait_for("2 serving")
            terminal.wait_for("generation 2 serves, 2 workers, after ")
            assert terminal.wait() == 0
        (tmp_path / "app.py").write_text(BROKEN)
        with Terminal(server, "reload", columns=80) as terminal:
            terminal.wait_for("No module named 'missing_module'")
            terminal.wait_for("serve: reload refused, generation 2 serves on")
            assert terminal.wait() == 1
        assert server.stop() == 0


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


def test_the_picture_after_the_switch() -> None:
    seen = {**STATUS, "generation": 8, "totals": {"handed_over": 108}}
    assert drawn(STATUS, seen)[-1] == (
        "8 connections handed over; generation 7: 4 requests still drain, the oldest for…"
    )
    assert remains(STATUS, seen).oldest == 12.5
