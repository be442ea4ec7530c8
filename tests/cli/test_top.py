"""`serve top`: a frame fits its terminal, figures are right, keys and windows are obeyed."""

from __future__ import annotations

import io
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from serve_asgi.cli.command import harmless
from serve_asgi.cli.top_charts import ChartColumn, bar, columns, marks, rounded_up
from serve_asgi.cli.top_history import fetch, read
from serve_asgi.cli.top_samples import TopSamples, percentile
from serve_asgi.cli.top_view import frame
from tests.applications import info
from tests.cli.serving import serve
from tests.cli.terminal import Terminal
from tests.running import PATIENCE, ROOT, RunningServer, connect, request, running, state_of

ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"
"""What switches a terminal to its other screen, and back (xterm's control sequences)."""

BOUNDS = [0.001, 0.01, 0.1]


def worker(slot: int, generation: int, second: int, **more: Any) -> dict[str, Any]:
    return {
        "slot": slot,
        "generation": generation,
        "state": "serving",
        "cause": "generation",
        "connections": 10 * slot,
        "in_flight": slot,
        "websockets": 1,
        "rss": 40 << 20,
        "requests": 100 * second * (slot + 1),
        "cpu": 0.5 * second,
        "handed_over": 3,
        "taken_over": 4,
        "lag": 0.001,
        "lag_worst": 0.2,
        "oldest": 12.0,
        "heard": 0.0,
        **more,
    }


def status(second: int, generation: int = 1, workers: int = 2, **more: Any) -> dict[str, Any]:
    """What a server might tell in each second of its life."""
    totals = {"requests": 300 * second, "status_5xx": second, "bytes_received": 2048 * second, "bytes_sent": 0}
    return {
        "app": "shop.web:application",
        "server": "0.1.0",
        "pid": 41,
        "state": "running",
        "uptime": float(second),
        "listening": ["http://127.0.0.1:8000"],
        "draining": None,
        "generation": generation,
        "starting": None,
        "reload_waiting": False,
        "reloads": generation - 1,
        "failed_reloads": 0,
        "size": workers,
        "lost": 0,
        "degraded": {},
        "generations": [{"number": generation, "state": "current", "size": workers}],
        "workers": [worker(slot, generation, second) for slot in range(workers)],
        "totals": {**totals, "cpu": 0, "handed_over": 5},
        "durations": {"bounds": BOUNDS, "counts": [100 * second, 100 * second, 0, 0]},
        "history": [
            {"at": 1.0, "outcome": "done", "generation": g, "seconds": g / 2} for g in range(2, generation + 1)
        ],
        "recent": [{"at": 1.0, "level": "info", "event": "x", "text": "something happened " * 20}] * 20,
        **more,
    }


def samples(statuses: list[dict[str, Any]]) -> TopSamples:
    taken = TopSamples()
    for each in statuses:
        taken.add(each)
    return taken


def drawn(taken: TopSamples, width: int, height: int | None) -> list[str]:
    console = Console(width=width, height=height or 100, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(frame(taken, width, height))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_first_bytes_of_streams_stand_beside_the_latency() -> None:
    def streams(*counts: int) -> dict[str, Any]:
        return {"streams": {"first_byte": {"bounds": BOUNDS, "counts": counts}}}

    taken = samples([status(n, **streams(0, 8 * (n > 10), 0, 0)) for n in range(10, 20)])
    assert taken.first_byte(0.5) == pytest.approx(BOUNDS[0] + (BOUNDS[1] - BOUNDS[0]) / 2)
    assert "streams begin in" in "\n".join(drawn(taken, 160, 40))
    assert "streams begin" not in "\n".join(drawn(samples([status(n) for n in range(10, 20)]), 160, 40))


def test_how_fast_websockets_open_stands_beside_the_requests() -> None:
    def websockets(*counts: int) -> dict[str, Any]:
        return {"websockets": {"accept": {"bounds": BOUNDS, "counts": counts}}}

    taken = samples([status(n, **websockets(0, 8 * (n > 10), 0, 0)) for n in range(10, 20)])
    assert taken.accept(0.5) == pytest.approx(BOUNDS[0] + (BOUNDS[1] - BOUNDS[0]) / 2)
    assert "WebSockets open in" in "\n".join(drawn(taken, 160, 40))
    assert "WebSockets" not in "\n".join(drawn(samples([status(n) for n in range(10, 20)]), 160, 40))


def test_rates_are_of_the_last_interval_and_know_a_new_process() -> None:
    taken = samples([status(10), status(12)])
    assert (taken.samples[-1].requests, taken.samples[-1].errors, taken.samples[-1].received) == (300.0, 1.0, 2048.0)
    assert taken.rates[1, 0].requests == 100.0
    assert taken.rates[1, 1].cpu == pytest.approx(0.5)
    taken.add(status(13, workers=2) | {"workers": [worker(0, 1, 0, requests=7, cpu=0.1)]})
    assert taken.rates[1, 0].requests == 7.0
    assert set(taken.rates) == {(1, 0)}


def test_a_server_that_was_started_again_begins_anew() -> None:
    taken = samples([status(10), status(11), status(3, pid=42)])
    assert not taken.samples
    taken.add(status(4, pid=42))
    assert taken.samples[-1].requests == 300.0


def test_percentiles_lie_within_their_bucket() -> None:
    assert percentile([0, 0, 0, 0], BOUNDS, 0.5) is None
    assert percentile([10, 0, 0, 0], BOUNDS, 0.5) == pytest.approx(0.0005)
    assert percentile([50, 50, 0, 0], BOUNDS, 0.99) == pytest.approx(0.001 + 0.009 * 49 / 50)
    assert percentile([0, 0, 0, 5], BOUNDS, 0.5) == 0.1
    assert samples([status(1), status(2)]).percentile(0.25) == pytest.approx(0.0005)


@pytest.mark.parametrize("height", [24, 30, 50])
@pytest.mark.parametrize("width", [60, 80, 100, 112, 140, 200])
@pytest.mark.parametrize("workers", [1, 4, 40])
def test_a_frame_fits_its_terminal(width: int, height: int, workers: int) -> None:
    taken = samples([status(second, 1 + second // 40, workers) for second in range(1, 130)])
    lines = drawn(taken, width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    assert "shop.web:application" in lines[0]
    if workers == 40 and height < 50:
        assert any(" more" in line for line in lines)


def test_a_frame_shows_reloads_as_marks_and_as_a_list() -> None:
    statuses = [status(second, 1 + second // 20) for second in range(1, 50)]
    for each in statuses[30:]:
        each["failed_reloads"] = 1
    lines = drawn(samples(statuses), 80, 40)
    below = next(line for line in lines if "▲2" in line)
    assert "✗" in below
    assert "▲3" in below
    assert any("✓ 3" in line for line in lines)
    assert any("1 refused" in line for line in lines)


def test_a_frame_shows_the_last_deploys_and_how_they_ended() -> None:
    deploys = [
        {"at": 3.0, "kind": "canary", "outcome": "trial", "generation": 8, "seconds": None},
        {"at": 2.0, "kind": "rollback", "outcome": "rolled_back", "generation": 5, "seconds": 0.004},
        {"at": 1.0, "kind": "reload", "outcome": "refused", "generation": None, "seconds": 0.2},
        {"at": 0.0, "kind": "start", "outcome": "started", "generation": 1, "seconds": 1.0},
    ]
    lines = drawn(samples([status(second) | {"deploys": deploys} for second in range(1, 9)]), 80, 40)
    for told in ("▸ 8 trial", "↩ 5 rolled back 4.0 ms", "✗ refused", "✓ 1"):
        assert any(told in line for line in lines)


def test_a_frame_shows_a_trial_in_a_line_of_its_own() -> None:
    canary = {"generation": 8, "state": "canary", "share": 0.1, "seconds_left": 42.0}
    canary |= {"canary": {"requests": 120, "errors": 3}, "current": {"requests": 1080, "errors": 1}}
    for height in (24, 40):
        lines = drawn(samples([status(1), status(2) | {"canary": canary, "starting": 8}]), 80, height)
        assert len(lines) <= height
        assert lines[2].rstrip() == (" ▸ generation 8 on trial, 10%, 42 s left: 3 of 120 failed, 1 of 1,080 beside it")


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"draining": {"since": 12.0, "until": "`serve drain --off`"}}, "draining for 12 s, until `serve drain --off`"),
        ({"degraded": {"1": "it died"}}, "slot 1 empty"),
        ({"state": "stopping"}, "stopping"),
        ({"starting": 2}, "reload: generation 2, 0 of 2 ready"),
        ({"reload_waiting": True}, "a reload waits"),
        ({"workers": [worker(0, 1, 2, heard=1.9)]}, "● serving"),
        ({"workers": [worker(0, 1, 2, heard=8.0)]}, "■ blocked"),
        ({"agents": [worker(0, 1, 2, state="active", heard=1.9) | {"slot": "agent"}]}, "● active"),
        ({"agents": [worker(0, 1, 2, state="active", heard=8.0) | {"slot": "agent"}]}, "■ blocked"),
        ({"agent_trouble": "it died"}, "● no agent"),
    ],
)
def test_a_frame_says_what_the_matter_is(more: dict[str, Any], shown: str) -> None:
    assert any(shown in line for line in drawn(samples([status(1), status(2) | more]), 80, 24))


def test_charts() -> None:
    assert [
        line.plain
        for line in columns([ChartColumn(8, "red"), ChartColumn(4, "red"), ChartColumn(0.01, "red")], 4, 2, 8)
    ] == [
        " █  ",
        " ██▁",
    ]
    with_line = [ChartColumn(2, "red", height, "blue") for height in (0, 2, 3.9, 4, 8, None)]
    assert [line.plain for line in columns(with_line, 6, 2, 8)] == ["   ▁▔ ", "▁─▔▄▄▄"]
    assert marks([(0, "▲12", ""), (1, "▲13", ""), (7, "▲14", "")], 8).plain == "▲12    ▲"
    assert [rounded_up(value, 10) for value in (0, 11, 31, 52, 999)] == [10, 15, 40, 60, 1000]
    assert bar(0.5, 3, "").plain == "━╸ "
    noise = random.Random(1)
    shown = [ChartColumn(noise.uniform(0, 9), "red", noise.uniform(0, 5), "blue") for _ in range(300)]
    assert all(len(line.plain) == 40 for line in columns(shown, 40, 5, 8))


def test_ten_minutes_fit_into_the_charts() -> None:
    taken = samples([status(second) for second in range(1, 202)])
    assert len(taken.samples) == 200
    assert taken.charted(30, whole=False) == list(taken.samples)[-30:]
    shown = taken.charted(30, whole=True)
    assert [round(sample.seconds) for sample in shown] == [4, *[7] * 28]  # the newest is whole
    assert {round(sample.requests) for sample in shown} == {300}
    assert taken.charted(300, whole=True) == list(taken.samples)
    assert taken.charted(0, whole=False) == []


def test_what_the_admin_process_has_seen_comes_first(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--admin", "127.0.0.1:0", directory=tmp_path) as server:
        address = server.status()["admin"]
        deadline = time.monotonic() + PATIENCE
        past = fetch(["unix:/nowhere", *address])
        while not any(sample.p99 for sample in past):  # durations are written once a second
            with connect(server) as connection:
                request(connection)  # the first one may come before the first sample begins
            time.sleep(0.05)
            past = fetch(address)
            assert time.monotonic() < deadline
        taken = samples([server.status()])
        taken.recall(past)
        assert taken.charted(600, whole=False) == past
        assert {sample.generation for sample in past} == {1}
        assert any(sample.requests for sample in past)
        assert server.stop() == 0
    assert fetch(address) == []  # nobody is there


@pytest.mark.parametrize("wrong", [[{}], [{"g": 1, "r": {}, "s": []}], [[1]], [{"g": "x"}]])
def test_an_answer_that_is_none_is_noticed(wrong: Any) -> None:
    with pytest.raises((KeyError, TypeError, IndexError, ValueError)):
        read(wrong)


def test_a_terminal_is_shown_nothing_that_it_obeys(server: RunningServer) -> None:
    found = server.status()
    found["app"] = found["recent"][-1]["text"] = "\x1b]0;title\7"
    assert "\x1b" not in "".join(drawn(samples([harmless(found)]), 80, 24))


def test_once_for_scripts(server: RunningServer) -> None:
    with connect(server) as connection:
        request(connection)
    for width in (20, 80, 300):
        done = serve(server, "top", "--once", "--interval", "0.2", COLUMNS=str(width))
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert max(map(len, lines)) <= width
        assert sum("● serving" in line for line in lines) == 2
        assert "\x1b" not in done.stdout
    done = serve(server, "top", "--once", "--interval", "0.1", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")


def test_live_with_keys_and_windows(server: RunningServer) -> None:
    """It redraws for another window at once, ends at q, and leaves the terminal as it found it."""
    now = server.status()["generation"]
    with Terminal(server, "top", "--interval", "0.2", columns=80) as terminal:
        before = terminal.settings()
        terminal.wait_for("2 workers")
        terminal.wait_for(f"generation {now}, ")
        server.reload()
        terminal.wait_for(f"generation {now + 1}, ")
        for columns in range(40, 131):
            terminal.resize(columns, 30)
        terminal.wait_for("latency: p50")
        terminal.hit("w")
        terminal.wait_for("one second a column")
        terminal.hit("q")
        assert terminal.wait() == 0
        assert terminal.settings() == before
    with Terminal(server, "top") as terminal:
        terminal.wait_for("2 workers")
        terminal.hit("\x03")
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.seen


def test_the_terminal_is_as_it_was_found_whatever_ends_it(server: RunningServer) -> None:
    """Ctrl-Z and TERM here; while the server does not answer, keys count as well."""
    with Terminal(server, "top", "--interval", "0.2") as terminal:
        before = terminal.settings()
        terminal.wait_for("2 workers")
        terminal.hit("\x1a")
        terminal.wait_until_shown(LEFT)
        wait_for_state(terminal.process.pid, "T")
        assert terminal.settings() == before
        terminal.seen = ""
        terminal.process.send_signal(signal.SIGCONT)
        terminal.wait_until_shown(ENTERED)
        terminal.wait_for("2 workers")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait() == 128 + signal.SIGTERM
        assert LEFT in terminal.seen
        assert terminal.settings() == before
    with Terminal(server, "top", "--interval", "0.2") as terminal:
        terminal.wait_for("2 workers")
        server.signal(signal.SIGSTOP)
        try:
            terminal.hit("q")
            assert terminal.wait() == 0
        finally:
            server.signal(signal.SIGCONT)


def wait_for_state(pid: int, letter: str) -> None:
    """Wait until the process is in this state (proc(5))."""
    deadline = time.monotonic() + PATIENCE
    while state_of(pid) != letter:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_is_started_again_is_found_again_and_one_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    """By its pid file, whatever its PID is by then."""
    (tmp_path / "app.py").write_text(info())
    arguments = ("--pid-file", str(tmp_path / "pid"))
    with running("app:app", *arguments, directory=tmp_path) as server:
        terminal = Terminal(None, "top", "--interval", "0.2", *arguments)
        with terminal:
            terminal.wait_for(f"PID {server.pid}")
            assert server.stop() == 0
            terminal.wait_for("gone for ")
            with running("app:app", *arguments, directory=tmp_path) as other:
                terminal.wait_for(f"PID {other.pid}")
                assert other.stop() == 0
            terminal.wait_for("serve: ")
            assert terminal.wait() == 2
            assert "is the server running?" in terminal.seen


def test_what_draws_is_not_loaded_by_what_serves() -> None:
    """`serve app:asgi` starts no slower and is no larger for it."""
    code = (
        "import sys, serve_asgi.cli.main, serve_asgi.listener.listener, serve_asgi.worker.__main__\n"
        "serve_asgi.cli.main._run_command()\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('rich', 'pygments')]\n"
        "own = [name for name in sys.modules if name.startswith('serve_asgi.cli.')]\n"
        "assert set(own) == {'serve_asgi.cli.main', 'serve_asgi.cli.command'}, own\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
