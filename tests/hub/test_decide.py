"""What one write does, as a table."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from serve_asgi.app.replica import Replica
from serve_asgi.hub.state.entries import Entries
from serve_asgi.hub.state.replica import Item
from serve_asgi.hub.state.write import MAX_KEY, OVERHEAD, Change, Code, Entry, Limits, Op, Refused, Write, decide, size
from serve_asgi.ipc.frames import Frame, packed, unpacked

LIMITS = Limits(value=100, total=1000 + OVERHEAD)
FIVE = Entry(7, packed(5, ""))
TEXT = Entry(7, packed("five", ""))


def done(write: Write, entry: Entry | None, used: int = 0) -> Change:
    outcome = decide(write, entry, LIMITS, used, 8)
    assert isinstance(outcome, Change), outcome
    return outcome


def refused(write: Write, entry: Entry | None, used: int = 0) -> Refused:
    outcome = decide(write, entry, LIMITS, used, 8)
    assert isinstance(outcome, Refused), outcome
    return outcome


@pytest.mark.parametrize(
    ("write", "entry", "value"),
    [
        (Write(Op.SET, "k", packed("new", "")), None, "new"),
        (Write(Op.SET, "k", packed("new", "")), FIVE, "new"),
        (Write(Op.SET, "k", packed("new", ""), version=7), FIVE, "new"),
        (Write(Op.INCR, "k", by=3), None, 3),
        (Write(Op.INCR, "k", by=-3), FIVE, 2),
        (Write(Op.INCR, "k", by=0), FIVE, 5),
        (Write(Op.INCR, "k", by=2**63 - 6), FIVE, 2**63 - 1),
        (Write(Op.CAS, "k", packed([1], ""), version=0), None, [1]),
        (Write(Op.CAS, "k", packed([1], ""), version=7), FIVE, [1]),
    ],
)
def test_what_is_written(write: Write, entry: Entry | None, value: Any) -> None:
    change = done(write, entry)
    assert change.key == "k"
    assert change.version == 8
    assert change.value is not None
    assert unpacked(change.value) == value
    assert change.grows == size("k", change.value) - (0 if entry is None else size("k", entry.value))


def test_what_is_deleted() -> None:
    assert done(Write(Op.DELETE, "k"), FIVE) == Change("k", 8, None, -size("k", FIVE.value))
    assert done(Write(Op.DELETE, "k", version=7), FIVE).value is None


@pytest.mark.parametrize(
    ("write", "entry", "code", "version"),
    [
        (Write(Op.SET, "", b"\xc0"), None, Code.KEY, 0),
        (Write(Op.SET, "ä" * MAX_KEY, b"\xc0"), None, Code.KEY, 0),
        (Write(Op.SET, "k", b"v" * 101), FIVE, Code.VALUE, 7),
        (Write(Op.SET, "k", b"v", version=6), FIVE, Code.CONFLICT, 7),
        (Write(Op.CAS, "k", b"v", version=0), FIVE, Code.CONFLICT, 7),
        (Write(Op.CAS, "k", b"v", version=7), None, Code.CONFLICT, 0),
        (Write(Op.DELETE, "k", version=6), FIVE, Code.CONFLICT, 7),
        (Write(Op.DELETE, "k"), None, Code.ABSENT, 0),
        (Write(Op.INCR, "k", by=1, version=1), FIVE, Code.CONFLICT, 7),
        (Write(Op.INCR, "k", by=1), TEXT, Code.TYPE, 7),
        (Write(Op.INCR, "k", by=1), Entry(7, packed(True, "")), Code.TYPE, 7),
        (Write(Op.INCR, "k", by=1), Entry(7, packed(1.0, "")), Code.TYPE, 7),
        (Write(Op.INCR, "k", by=1), Entry(7, b"\xc1"), Code.TYPE, 7),
        (Write(Op.INCR, "k", by=2**63 - 5), FIVE, Code.RANGE, 7),
        (Write(Op.INCR, "k", by=2**64), None, Code.RANGE, 0),
    ],
)
def test_what_is_refused(write: Write, entry: Entry | None, code: Code, version: int) -> None:
    found = refused(write, entry)
    assert (found.code, found.version) == (code, version)
    assert found.text


def test_a_conflict_tells_what_is_there() -> None:
    assert refused(Write(Op.CAS, "k", b"v", version=3), FIVE).value == FIVE.value


def test_the_whole_may_not_grow_beyond_its_limit_and_may_always_shrink() -> None:
    old = Entry(1, b"v" * 50)
    assert done(Write(Op.SET, "k", b"v" * 100), old, used=950 + OVERHEAD).grows == 50
    assert refused(Write(Op.SET, "k", b"v" * 100), old, used=951 + OVERHEAD).code is Code.FULL
    assert done(Write(Op.SET, "new", b"v"), None, used=996).grows == 4 + OVERHEAD
    assert refused(Write(Op.SET, "new", b"v"), None, used=997).code is Code.FULL
    assert done(Write(Op.SET, "k", b"v" * 50), old, used=5000).grows == 0  # the limit has been lowered
    assert done(Write(Op.SET, "k", b"v" * 40), old, used=5000).grows == -10


def test_an_entry_counts_as_what_it_costs_the_listener_and_a_worker() -> None:
    """Millions of tiny keys take no more memory than a few large values that count as much."""
    items = [Item(f"k{number}", number + 1000, packed(number, "")) for number in range(20_000)]

    def cost(fill: Callable[[], object]) -> float:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        filled = fill()
        after, _ = tracemalloc.get_traced_memory()
        assert filled is not None
        return after - before

    def entries() -> Entries:
        made = Entries()
        for item in items:
            key, version, value = f"{item.key}", item.version + 0, bytes(bytearray(item.value or b""))
            made.apply(Item(key, version, value))
        return made

    def replica() -> Replica:
        made = Replica()
        for start in range(0, len(items), 500):
            made.take(Frame("state.changes", {"seq": start}, packed(items[start : start + 500], "")))
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
        Write(Op.SET, "k", b"v"),
        Write(Op.CAS, "k", b"v", version=0),
        Write(Op.DELETE, "k", version=4),
        Write(Op.INCR, "k", by=-2),
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
