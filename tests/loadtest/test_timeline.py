"""The arithmetic behind the picture of a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from loadtest.ledger import Cause, Entry, Execution, Ledger, settle
from loadtest.plot import beside
from loadtest.result import Measures, Reload, Result, Settings
from loadtest.timeline import generations, timeline

OLD, NEW = 100, 200
EXECUTIONS = [
    Execution(True, 1, OLD, 10.1),
    Execution(False, 1, OLD, 10.3),
    Execution(True, 2, NEW, 12.5),
    Execution(False, 2, NEW, 13.5),
    Execution(True, 3, OLD, 12.6),  # never ended
]
ENTRIES = [
    Entry(1, "keep-alive", sent=10.05, cause=None, done=10.35, pid=OLD),
    Entry(2, "stream", sent=12.45, cause=None, done=13.6, pid=NEW),
    Entry(3, "keep-alive", sent=12.55, cause=Cause.RESET, done=12.7),
]


def test_a_generation_is_the_number_of_hups_before_its_first_execution() -> None:
    assert generations(EXECUTIONS, hups=[12.0]) == {OLD: 0, NEW: 1}
    assert generations(EXECUTIONS, hups=[]) == {OLD: 0, NEW: 0}


def test_everything_falls_into_its_bin() -> None:
    line = timeline(ENTRIES, EXECUTIONS, [12.0], [12.7, 12.8], 10.0, 14.0, ["keep-alive"], bins=4)
    assert line.bin == 1.0
    assert line.answered == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert line.lost == [0, 0, 1, 0, 0]
    assert line.reconnects == [0, 0, 2, 0, 0]
    assert [[round(share, 6) for share in shares] for shares in line.in_flight] == [
        [0.2, 0, 0, 0, 0],
        [0, 0, 0.5, 0.5, 0],
    ]
    assert math.isclose(line.p99[0], 0.3)
    assert all(math.isnan(value) for value in line.p99[1:])  # a stream's latency is not the server's


def test_two_runs_are_drawn_beside_each_other(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = []
    for server, entries in (("serve", ENTRIES[:2]), ("gunicorn", ENTRIES)):  # without and with a loss
        ledger = Ledger()
        ledger.entries = entries
        accounts = settle(entries, EXECUTIONS)
        results.append(
            Result(
                Settings(server=server), ledger, accounts, EXECUTIONS, [Reload(12.0)], Measures(), [], None, 10.0, 14.0
            )
        )
    beside(results, tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
