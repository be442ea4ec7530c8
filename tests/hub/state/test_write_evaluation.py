"""What one write does, as a table."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from serve_asgi.app.state_replica import StateReplica
from serve_asgi.hub.state.entries import StateEntries
from serve_asgi.hub.state.write_evaluation import (
    OVERHEAD,
    AcceptedWrite,
    RefusalCode,
    StateEntry,
    StateLimits,
    WriteRefusal,
    entry_size,
    evaluate_write,
)
from serve_asgi.ipc.frames import Frame, pack_value, unpack_value
from serve_asgi.ipc.state_frames import MAX_KEY, KeyChange, Write, WriteOp

LIMITS = StateLimits(value=100, total=1000 + OVERHEAD)
FIVE = StateEntry(7, pack_value(5, ""))
TEXT = StateEntry(7, pack_value("five", ""))


def done(write: Write, entry: StateEntry | None, used: int = 0) -> AcceptedWrite:
    outcome = evaluate_write(write, entry, LIMITS, used, 8)
    assert isinstance(outcome, AcceptedWrite), outcome
    return outcome


def refused(write: Write, entry: StateEntry | None, used: int = 0) -> WriteRefusal:
    outcome = evaluate_write(write, entry, LIMITS, used, 8)
    assert isinstance(outcome, WriteRefusal), outcome
    return outcome


@pytest.mark.parametrize(
    ("write", "entry", "value"),
    [
        (Write(WriteOp.SET, "k", pack_value("new", "")), None, "new"),
        (Write(WriteOp.SET, "k", pack_value("new", "")), FIVE, "new"),
        (Write(WriteOp.SET, "k", pack_value("new", ""), version=7), FIVE, "new"),
        (Write(WriteOp.INCR, "k", by=3), None, 3),
        (Write(WriteOp.INCR, "k", by=-3), FIVE, 2),
        (Write(WriteOp.INCR, "k", by=0), FIVE, 5),
        (Write(WriteOp.INCR, "k", by=2**63 - 6), FIVE, 2**63 - 1),
        (Write(WriteOp.CAS, "k", pack_value([1], ""), version=0), None, [1]),
        (Write(WriteOp.CAS, "k", pack_value([1], ""), version=7), FIVE, [1]),
    ],
)
def test_what_is_written(write: Write, entry: StateEntry | None, value: Any) -> None:
    change = done(write, entry)
    assert change.key == "k"
    assert change.version == 8
    assert change.value is not None
    assert unpack_value(change.value) == value
    assert change.grows == entry_size("k", change.value) - (0 if entry is None else entry_size("k", entry.value))


def test_what_is_deleted() -> None:
    assert done(Write(WriteOp.DELETE, "k"), FIVE) == AcceptedWrite("k", 8, None, -entry_size("k", FIVE.value))
    assert done(Write(WriteOp.DELETE, "k", version=7), FIVE).value is None


@pytest.mark.parametrize(
    ("write", "entry", "code", "version"),
    [
        (Write(WriteOp.SET, "", b"\xc0"), None, RefusalCode.KEY, 0),
        (Write(WriteOp.SET, "ä" * MAX_KEY, b"\xc0"), None, RefusalCode.KEY, 0),
        (Write(WriteOp.SET, "k", b"v" * 101), FIVE, RefusalCode.VALUE, 7),
        (Write(WriteOp.SET, "k", b"v", version=6), FIVE, RefusalCode.CONFLICT, 7),
        (Write(WriteOp.CAS, "k", b"v", version=0), FIVE, RefusalCode.CONFLICT, 7),
        (Write(WriteOp.CAS, "k", b"v", version=7), None, RefusalCode.CONFLICT, 0),
        (Write(WriteOp.DELETE, "k", version=6), FIVE, RefusalCode.CONFLICT, 7),
        (Write(WriteOp.DELETE, "k"), None, RefusalCode.ABSENT, 0),
        (Write(WriteOp.INCR, "k", by=1, version=1), FIVE, RefusalCode.CONFLICT, 7),
        (Write(WriteOp.INCR, "k", by=1), TEXT, RefusalCode.TYPE, 7),
        (Write(WriteOp.INCR, "k", by=1), StateEntry(7, pack_value(True, "")), RefusalCode.TYPE, 7),
        (Write(WriteOp.INCR, "k", by=1), StateEntry(7, pack_value(1.0, "")), RefusalCode.TYPE, 7),
        (Write(WriteOp.INCR, "k", by=1), StateEntry(7, b"\xc1"), RefusalCode.TYPE, 7),
        (Write(WriteOp.INCR, "k", by=2**63 - 5), FIVE, RefusalCode.RANGE, 7),
        (Write(WriteOp.INCR, "k", by=2**64), None, RefusalCode.RANGE, 0),
    ],
)
def test_what_is_refused(write: Write, entry: StateEntry | None, code: RefusalCode, version: int) -> None:
    found = refused(write, entry)
    assert (found.code, found.version) == (code, version)
    assert found.text


def test_a_conflict_tells_what_is_there() -> None:
    assert refused(Write(WriteOp.CAS, "k", b"v", version=3), FIVE).value == FIVE.value


def test_the_whole_may_not_grow_beyond_its_limit_and_may_always_shrink() -> None:
    old = StateEntry(1, b"v" * 50)
    assert done(Write(WriteOp.SET, "k", b"v" * 100), old, used=950 + OVERHEAD).grows == 50
    assert refused(Write(WriteOp.SET, "k", b"v" * 100), old, used=951 + OVERHEAD).code is RefusalCode.FULL
    assert done(Write(WriteOp.SET, "new", b"v"), None, used=996).grows == 4 + OVERHEAD
    assert refused(Write(WriteOp.SET, "new", b"v"), None, used=997).code is RefusalCode.FULL
    assert done(Write(WriteOp.SET, "k", b"v" * 50), old, used=5000).grows == 0  # the limit has been lowered
    assert done(Write(WriteOp.SET, "k", b"v" * 40), old, used=5000).grows == -10


def test_an_entry_counts_as_what_it_costs_the_listener_and_a_worker() -> None:
    """Millions of tiny keys take no more memory than a few large values that count as much."""
    items = [KeyChange(f"k{number}", number + 1000, pack_value(number, "")) for number in range(20_000)]

    def cost(fill: Callable[[], object]) -> float:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        filled = fill()
        after, _ = tracemalloc.get_traced_memory()
        assert filled is not None
        return after - before

    def entries() -> StateEntries:
        made = StateEntries()
        for item in items:
            key, version, value = f"{item.key}", item.version + 0, bytes(bytearray(item.value or b""))
            made.apply(KeyChange(key, version, value))
        return made

    def replica() -> StateReplica:
        made = StateReplica()
        for start in range(0, len(items), 500):
            made.take(Frame("state.changes", {"seq": start}, pack_value(items[start : start + 500], "")))
        return made

    counted = entries().used
    tracemalloc.start()
    try:
        assert 0.5 * counted < cost(entries) < 1.1 * counted
        assert 0.5 * counted < cost(replica) < 1.1 * counted
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "write",
    [
        Write(WriteOp.SET, "k", b"v"),
        Write(WriteOp.CAS, "k", b"v", version=0),
        Write(WriteOp.DELETE, "k", version=4),
        Write(WriteOp.INCR, "k", by=-2),
    ],
)
def test_a_write_travels(write: Write) -> None:
    assert Write.of(write.head(), write.value) == write


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"op": "set"},
        {"op": "smash", "key": "k"},
        {"op": "set", "key": 3},
        {"op": "cas", "key": "k"},
        {"op": "set", "key": "k", "version": "1"},
        {"op": "incr", "key": "k", "by": 1.5},
    ],
)
def test_nonsense_is_no_write(head: dict[str, Any]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError)):
        Write.of(head, b"")
