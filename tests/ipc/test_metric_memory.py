"""Memories of metrics: what a writer leaves behind whatever happens to it, and how they are put together."""

from __future__ import annotations

import math
import os

import pytest

from serve_asgi.ipc import metric_memory
from serve_asgi.ipc.metric_memory import RECORD_WORDS, MemoryWord, MetricKey, MetricReader, MetricWriter
from serve_asgi.ipc.metric_totals import MetricTotals
from serve_asgi.ipc.scoreboard import NO_SLOT, Scoreboard

HITS = MetricKey("counter", "hits", "hits_total", (("path", 'a"\n'),), "Hits.")
TOOK = MetricKey("histogram", "took", "took", (), "Took.", "", (0.1, 1.0))


class Written:
    """A memory with its writer, and totals that read it."""

    def __init__(self, series: int = 100) -> None:
        self.fd = metric_memory.create(series)
        self.series = series
        self.writer = self.next()

    def next(self) -> MetricWriter:
        """The next process that is lent it."""
        self.writer = MetricWriter(os.dup(self.fd), self.series)
        return self.writer

    def add(self, key: MetricKey, life: int, *values: float) -> None:
        first = self.writer.record(key.encode(), key.cells, life)
        assert first is not None
        for index, value in enumerate(values):
            self.writer.values[first + index] += value


def totals(living: dict[int, int], *memories: Written) -> MetricTotals:
    found = MetricTotals(lambda: living)
    for number, each in enumerate(memories):
        found.add(number, os.dup(each.fd))
    return found


def samples(found: MetricTotals, name: str) -> list[tuple[str, dict[str, str], float]]:
    family = found.family(name)
    assert family is not None
    return family.samples


def test_counts_of_the_next_process_go_on_from_the_last_ones() -> None:
    one, other = Written(), Written()
    one.add(HITS, 1, 3)
    other.add(HITS, 2, 4)
    found = totals({2: 0}, one, other)
    assert samples(found, "hits") == [("hits_total", {"path": 'a"\n'}, 7)]
    one.next()
    one.add(HITS, 3, 5)
    assert samples(found, "hits") == [("hits_total", {"path": 'a"\n'}, 12)]
    assert one.writer.words[MemoryWord.SERIES] == 1


def test_a_histogram_is_cumulative_and_has_its_sum() -> None:
    one, other = Written(), Written()
    one.add(TOOK, 1, 1, 2, 3, 10.5)
    other.add(TOOK, 2, 1, 0, 0, 0.05)
    assert samples(totals({}, one, other), "took") == [
        ("took_bucket", {"le": "0.1"}, 2),
        ("took_bucket", {"le": "1.0"}, 4),
        ("took_bucket", {"le": "+Inf"}, 7),
        ("took_count", {}, 7),
        ("took_sum", {}, 10.55),
    ]


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        ("sum", [({}, 5.0)]),
        ("max", [({}, 3.0)]),
        ("min", [({}, 2.0)]),
        ("last", [({}, 9.0)]),
        ("worker", [({"worker": "0"}, 3.0), ({"worker": "agent"}, 2.0)]),
    ],
)
def test_a_gauge_is_that_of_living_processes_but_for_the_last_value(mode: str, shown: list[object]) -> None:
    memories = [Written() for _ in range(4)]
    key = MetricKey("gauge", "queue", "queue", (), "Queue.", mode)
    for life, (each, value) in enumerate(zip(memories, (3.0, 2.0, 9.0, 1.0), strict=True), start=1):
        each.add(key, life, value)
        each.writer.values[each.writer.found[key.encode()][0] - 1] = 100.0 if value == 9 else 5.0
    found = samples(totals({1: 0, 2: NO_SLOT}, *memories), "queue")
    assert [(labels, value) for _, labels, value in found] == shown


def test_of_two_processes_of_one_slot_the_newer_is_shown() -> None:
    old, new = Written(), Written()
    key = MetricKey("gauge", "queue", "queue", (("worker", "x"),), "Queue.", "worker")
    old.add(key, 1, 5)
    new.add(key, 2, 6)
    assert samples(totals({1: 0, 2: 0}, new, old), "queue") == [("queue", {"worker": "x", "serve_worker": "0"}, 6.0)]


def test_a_process_that_died_while_it_appended_leaves_a_whole_memory_behind() -> None:
    one = Written()
    one.add(HITS, 1, 3)
    end = one.writer.words[MemoryWord.USED]
    one.add(TOOK, 1, 1, 1, 1, 1)
    one.writer.words[MemoryWord.USED] = end  # it had not come to that
    assert totals({}, one).family("took") is None
    one.next()
    one.add(TOOK, 2)
    one.add(HITS, 2, 1)
    assert samples(totals({}, one), "hits")[0][2] == 4


def test_there_is_no_room_for_more_series_than_agreed() -> None:
    one = Written(series=10)
    for number in range(3):
        one.add(MetricKey("histogram", f"h{number}", f"h{number}", (), "", "", (1.0,)), 1)
    one.add(HITS, 1, 1)
    assert one.writer.record(TOOK.encode(), TOOK.cells, 1) is None
    assert one.writer.record(MetricKey("counter", "c", "c", (), "x" * 9000).encode(), 1, 1) is None
    reader = MetricReader(os.dup(one.fd))
    assert (reader.series, reader.refused) == (10, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"[" * 5000,
        b"\xff\xfe",
        b'["counter","a b","a b",[],"","",[]]',
        b'["counter","a","b",[],"","",[]]',
        b'["info","a","a",[],"","",[]]',
        b'["counter","a","a",[["x\\ny","1"]],"","",[]]',
        b'["counter","a","a",[],1,"",[]]',
        b'["gauge","a","a",[],"","all",[]]',
        b'["histogram","a","a",[],"","",[2,1]]',
        b'["histogram","a","a",[],"","",[1e999]]',
        b'["histogram","a","a",[],"","",[1,2]]',
        b'["counter","a","a",[],"","",[1]]',
    ],
)
def test_what_no_correct_process_could_have_written_is_left_out(data: bytes) -> None:
    one = Written()
    one.writer.record(data or b" ", 1, 1)
    one.add(HITS, 1, 1)
    assert [family.name for family in totals({}, one).families()] == ["hits"]


def test_lengths_that_lead_out_of_the_memory_end_the_reading() -> None:
    for word, value in ((0, 1 << 63), (0, 0), (1, 1 << 40), (1, 0), (0, 8000)):
        one = Written(series=10)
        one.add(HITS, 1, 1)
        one.add(TOOK, 1, 1)
        first = one.writer.found[TOOK.encode()][0]
        one.writer.words[first - RECORD_WORDS + word] = value
        one.writer.words[MemoryWord.USED] = (1 << 64) - 1
        assert [family.name for family in totals({}, one).families()] == ["hits"]
        one.next()
        one.add(HITS, 2, 1)


def test_counts_that_cannot_be_count_as_nothing() -> None:
    memories = [Written() for _ in range(4)]
    for each, value in zip(memories, (math.nan, -1.0, math.inf, 2.0), strict=True):
        each.add(HITS, 1, value)
        each.add(TOOK, 1, value, value, value, 1.0)
    found = totals({}, *memories)
    assert samples(found, "hits")[0][2] == 2
    assert samples(found, "took")[-2:] == [("took_count", {}, 6), ("took_sum", {}, 4)]


def test_a_metric_that_has_become_another_kind_is_what_the_newest_process_has() -> None:
    old, new = Written(), Written()
    old.add(HITS, 1, 5)
    new.add(MetricKey("gauge", "hits", "hits", (), "New.", "sum"), 2, 1)
    family = totals({1: 0, 2: 0}, old, new).family("hits")
    assert family is not None
    assert (family.kind, family.help, family.samples) == ("gauge", "New.", [("hits", {}, 1.0)])


def test_nobody_can_truncate_a_memory() -> None:
    fd = metric_memory.create(10)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_the_board_knows_who_lives() -> None:
    board = Scoreboard.create(rows=4, slots=2)
    board.enter(1, pid=10, generation=1, slot=7, serial=3)
    board.enter(3, pid=11, generation=1, slot=NO_SLOT, serial=9)
    assert board.living() == {3: 7, 9: NO_SLOT}
