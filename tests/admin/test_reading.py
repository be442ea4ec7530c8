"""Reading the scoreboard while it changes, and what is made of two readings."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.admin.metrics import connections_by_state
from serve_asgi.admin.samples import MetricSamples, by_generation
from serve_asgi.admin.scoreboard_totals import ScoreboardReading, read
from serve_asgi.admin.server_view import ServerView
from serve_asgi.ipc.latency_histogram import quantile
from serve_asgi.ipc.scoreboard import DURATION_BOUNDS, Cell, Header
from serve_asgi.ipc.sock_diag import accept_queues
from serve_asgi.listener.event_history import History
from serve_asgi.listener.status import admin_state
from serve_asgi.supervisor.supervisor import Supervisor
from tests.rows import Rows
from tests.running import PATIENCE
from tests.supervisor.shell import POLICY

BUCKETS = len(DURATION_BOUNDS) + 1
ABOUT: dict[str, Any] = {
    "version": "1",
    "pid": os.getpid(),
    "started": 0.0,
    "since": 0.0,
    "python": "3",
    "app": "a:b",
    "listening": [],
}

STATE = admin_state(Supervisor(POLICY), [], History(), {})


def worker(rows: Rows, row: int, slot: int, generation: int, requests: int) -> memoryview:
    cells = rows.enter(row, slot, generation)
    cells[Cell.REQUESTS], cells[Cell.CPU] = requests, 1
    return cells


def taken(rows: Rows) -> ScoreboardReading:
    reading = read(rows.board, rows.read)
    assert reading is not None
    return reading


def view_of(rows: Rows) -> ServerView:
    view = ServerView(rows.board, ABOUT, STATE)
    view._rows = rows.read
    return view


def test_no_count_is_seen_twice_or_missed_while_rows_are_folded() -> None:
    board = Rows(rows=4, slots=2)
    enough = threading.Event()
    lived = 0

    def live_and_die() -> None:
        nonlocal lived
        while not enough.is_set():
            worker(board, lived % 4, lived % 2, lived, 1000)
            board.fold(lived % 4)
            lived += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=live_and_die)
    deadline = time.monotonic() + PATIENCE
    last, readings = 0, 0
    try:
        thread.start()
        while readings < 100 and time.monotonic() < deadline:
            if (reading := read(board.board, dict(board.read))) is not None:
                assert reading.total[Cell.REQUESTS] >= last
                assert reading.total[Cell.REQUESTS] % 1000 == 0
                last, readings = reading.total[Cell.REQUESTS], readings + 1
    finally:
        enough.set()
        sys.setswitchinterval(interval)
        thread.join()
    assert readings
    assert taken(board).total[Cell.REQUESTS] == lived * 1000
    board.close()


def test_living_and_dead_are_added_up_by_slot() -> None:
    board = Rows(rows=3, slots=2)
    worker(board, 0, 0, 1, 10)
    board.fold(0)
    worker(board, 0, 0, 2, 5)
    worker(board, 1, 7, 2, 3)  # beyond the table: the last slot stands for it
    board.row(1)[Cell.CONNECTIONS] = 4
    reading = taken(board)
    assert {slot: words[Cell.REQUESTS] for slot, words in reading.slots.items()} == {0: 15, 1: 3}
    assert reading.total[Cell.REQUESTS] == 18
    assert (reading.gauge(Cell.CONNECTIONS), reading.total[Cell.CONNECTIONS]) == (4, 0)
    board.close()


def test_when_the_listener_was_stopped_amid_a_change_the_last_reading_stands() -> None:
    board = Rows(rows=1, slots=1)
    view = view_of(board)
    worker(board, 0, 0, 1, 10)
    first = view.reading()
    board.board.words[Header.FOLDS] += 1
    board.row(0)[Cell.REQUESTS] = 0
    assert view.reading() is first
    assert view_of(board).reading().total[Cell.REQUESTS] == 0
    board.close()


def test_requests_go_to_the_generation_that_answered_also_those_of_one_that_ended() -> None:
    board = Rows(rows=3, slots=1)
    worker(board, 0, 0, 1, 10)
    before = taken(board)
    board.row(0)[Cell.REQUESTS] = 12
    worker(board, 1, 0, 2, 5)
    assert by_generation(before, taken(board)) == {1: 2, 2: 5}
    before = taken(board)
    board.row(0)[Cell.REQUESTS] += 4
    board.fold(0)
    board.row(1)[Cell.REQUESTS] += 1
    assert by_generation(before, taken(board)) == {1: 4, 2: 1}
    board.close()


def test_every_open_connection_is_in_one_state() -> None:
    board = Rows(rows=3, slots=1)
    for row, (connections, sockets, in_flight) in enumerate([(10, 8, 5), (3, 0, 1), (0, 1, 1)]):
        worker(board, row, 0, 1, 0)
        cells = board.row(row)
        cells[Cell.CONNECTIONS], cells[Cell.WEBSOCKETS], cells[Cell.IN_FLIGHT] = connections, sockets, in_flight
    assert connections_by_state(taken(board)) == {"idle": 2, "active": 3, "websocket": 9}
    board.close()


def test_each_reload_is_told_once_whatever_the_clock_says() -> None:
    board = Rows(rows=1, slots=1)
    view = view_of(board)
    view.take({"type": "reloads", "reloads": [{"at": 1000.0, "outcome": "done"}]})
    view.take({"type": "happened", "record": {"at": 1000.0, "event": "reload_finished"}, "past": True})
    view.take({"type": "happened", "record": {"at": 500.0, "event": "reload_refused"}})  # the clock was set back
    assert [each["outcome"] for each in view.reloads] == ["done", "refused"]
    assert view.recorded == 2
    board.close()


def test_samples_are_kept_and_given_to_who_comes_later() -> None:
    board = Rows(rows=1, slots=1)
    samples = MetricSamples(view_of(board))
    worker(board, 0, 0, 1, 10)
    for _ in range(3):
        board.row(0)[Cell.REQUESTS] += 7
        samples.take()
    assert samples.taken == len(samples.kept) == 2
    assert [len(samples.since(number)) for number in (0, 1, 2)] == [2, 1, 0]
    assert samples.now()["totals"]["requests"] == 31
    board.close()


def test_what_workers_write_once_a_second_is_no_zigzag() -> None:
    board = Rows(rows=1, slots=1)
    samples = MetricSamples(view_of(board))
    cells = worker(board, 0, 0, 1, 0)
    for ticks in (1, 1, 1, 0, 2, 0, 2, 1):  # between two samples
        samples.take()
        cells[Cell.BYTES_SENT] += 1_000_000 * ticks
        cells[Cell.DURATION_0] += 10 * ticks
    assert [each["d"][0] is None or each["o"] == 0 for each in samples.kept] == [False] * 7
    board.close()


def test_samples_stay_in_order_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Rows(rows=1, slots=1)
    samples = MetricSamples(view_of(board))
    for now in (0.0, 100.0, 101.0, 100.5, 102.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        samples.take()
    assert [each["t"] for each in samples.kept] == [100.0, 100.5, 102.0]
    assert [each["t"] for each in samples.since(3)] == [102.0]
    board.close()


@pytest.mark.parametrize(
    ("counts", "share", "least", "most"),
    [
        ({}, 0.5, None, None),
        ({0: 10}, 0.5, 0.00005, 0.0001),
        ({3: 100}, 0.5, 0.0005, 0.001),
        ({3: 99, 12: 1}, 0.99, 0.0005, 0.001),
        ({3: 50, 12: 50}, 0.99, 0.5, 1.0),
        ({BUCKETS - 1: 1}, 0.5, 60.0, 60.0),
    ],
)
def test_quantiles(counts: dict[int, int], share: float, least: float | None, most: float | None) -> None:
    found = quantile(share, [counts.get(bucket, 0) for bucket in range(BUCKETS)])
    if least is None or most is None:
        assert found is None
    else:
        assert found is not None
        assert least <= found <= most


def test_accept_queues_of_both_kinds_are_known_by_inode(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=7) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        unix.listen(9)
        inodes = [os.fstat(each.fileno()).st_ino for each in (tcp, unix)]
        with socket.create_connection(tcp.getsockname()), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "socket"))
            assert accept_queues(frozenset(inodes)) == {inodes[0]: (1, 7), inodes[1]: (1, 9)}
        assert accept_queues(frozenset({1})) == {}
