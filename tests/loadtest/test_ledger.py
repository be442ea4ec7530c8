"""The accounts of the load test, as tables: what was sent, executed and answered, and the verdict."""

from __future__ import annotations

import pytest

from loadtest.ledger import Cause, Entry, Execution, Ledger, Left, parse_executions, percentile, settle

OLD, NEW = 100, 200  # pids


def answered(number: int, pid: int = OLD) -> Entry:
    return Entry(number, "keep-alive", sent=1.0, cause=None, done=1.5, pid=pid, generation=1)


def lost(number: int, cause: Cause = Cause.EOF) -> Entry:
    return Entry(number, "one-shot", sent=1.0, cause=cause, done=1.5)


def executed(number: int, pid: int = OLD) -> list[Execution]:
    return [Execution(True, number, pid, 1.1), Execution(False, number, pid, 1.4)]


def failed(number: int, pid: int = OLD) -> Entry:
    return Entry(number, "keep-alive", sent=1.0, cause=Cause.FAILED, done=1.5, pid=pid, generation=1)


NOTHING = {
    "failed": 0,
    "lost": 0,
    "lost_executed": 0,
    "duplicated": [],
    "phantom": [],
    "unexecuted": [],
    "unfinished": [],
    "mismatched": [],
}

CASES: dict[str, tuple[list[Entry], list[Execution], dict[str, object]]] = {
    "nothing at all": ([], [], {}),
    "sent, executed and answered": ([answered(1), answered(2)], executed(1) + executed(2), {}),
    "answered before it was seen to start": ([answered(1)], list(reversed(executed(1))), {}),
    "lost before the application saw it": ([lost(1)], [], {"lost": 1}),
    "lost after the application ran": ([lost(1)], executed(1), {"lost": 1, "lost_executed": 1}),
    "lost while the application ran": ([lost(1)], executed(1)[:1], {"lost": 1, "lost_executed": 1}),
    "executed twice by two workers": ([answered(1)], executed(1) + executed(1, NEW), {"duplicated": [1]}),
    "executed twice by one worker": ([answered(1)], executed(1) + executed(1), {"duplicated": [1]}),
    "lost, and executed twice": (
        [lost(1)],
        executed(1) + executed(1, NEW),
        {"lost": 1, "lost_executed": 1, "duplicated": [1]},
    ),
    "executed, never sent": ([answered(1)], executed(1) + executed(7), {"phantom": [7]}),
    "answered, never executed": ([answered(1)], [], {"unexecuted": [1]}),
    "answered, never ended": ([answered(1)], executed(1)[:1], {"unfinished": [1]}),
    "answered by another process": ([answered(1, NEW)], executed(1, OLD), {"mismatched": [1]}),
    "failed by a bad version": ([failed(1)], executed(1), {"failed": 1}),
    "failed by a bad version, and executed twice": (
        [failed(1)],
        executed(1) + executed(1, NEW),
        {"failed": 1, "duplicated": [1]},
    ),
    "failed by another process": ([failed(1, NEW)], executed(1, OLD), {"failed": 1, "mismatched": [1]}),
    "unsettled at the end": ([Entry(1, "stream", sent=1.0)], executed(1), {"lost": 1, "lost_executed": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_settle(case: str) -> None:
    entries, executions, found = CASES[case]
    accounts = settle(entries, executions)
    verdict = {name: getattr(accounts, name) for name in NOTHING} | {"lost": len(accounts.lost)}
    assert verdict == NOTHING | found
    assert accounts.sent == len(entries) == accounts.answered + accounts.failed + len(accounts.lost)


def test_losses_are_told_apart_by_cause_and_kind() -> None:
    accounts = settle([lost(1, Cause.REFUSED), lost(2, Cause.RESET), lost(3, Cause.RESET), answered(4)], executed(4))
    assert accounts.lost_by_cause == {Cause.RESET: 2, Cause.REFUSED: 1}
    assert accounts.lost_by_kind == {"one-shot": 3}


def test_a_ledger_counts_a_request_as_lost_until_it_is_answered() -> None:
    ledger = Ledger()
    first, second, third = (ledger.begin("keep-alive", now) for now in (1.0, 2.0, 3.0))
    ledger.answered(first, 1.25, OLD, 1)
    ledger.failed(second, 2.5, Cause.TRUNCATED, "3 of 5 chunks")
    assert [entry.number for entry in ledger.entries] == [1, 2, 3]
    assert [entry.cause for entry in ledger.entries] == [None, Cause.TRUNCATED, Cause.UNSETTLED]
    assert third.cause is Cause.UNSETTLED
    assert len(settle(ledger.entries, executed(1)).lost) == 2


def test_reconnects_are_no_losses() -> None:
    ledger = Ledger()
    ledger.reconnect("keep-alive", 1.0, Left.ANNOUNCED)
    assert settle(ledger.entries, []).lost == []
    assert len(ledger.reconnects) == 1


def test_latency_leaves_out_what_the_client_asked_for() -> None:
    entry = Entry(1, "slow upload", sent=10.0, planned=2.0, cause=None, done=12.5)
    assert entry.latency == pytest.approx(0.5)
    entry.planned = 3.0  # a timer that was early is no negative latency
    assert entry.latency == 0.0


def test_executions_are_read_from_the_applications_file() -> None:
    lines = b"S 12 100 1500000000\nE 12 100 1600000000\n"
    assert parse_executions(lines) == [Execution(True, 12, 100, 1.5), Execution(False, 12, 100, 1.6)]
    assert parse_executions(b"") == []


@pytest.mark.parametrize("damaged", [b"X 1 100 5\n", b"S 1 100\n", b"S one 100 5\n", b"S 1 100 5 6\n"])
def test_a_damaged_file_is_no_proof(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_executions(damaged)


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(0, 0.5, 0.0), (1, 0.99, 1.0), (100, 0.5, 50.0), (100, 0.99, 99.0), (100, 1.0, 100.0), (1000, 0.999, 999.0)],
)
def test_percentile(count: int, share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(1, count + 1)], share) == expected
