"""The scoreboard: one writer per row, and counts that outlive their process."""

from __future__ import annotations

import os

import pytest

from server.scoreboard import COUNTERS, DURATION_BOUNDS, Cell, Header, Scoreboard


def test_another_mapping_sees_what_is_written() -> None:
    mine = Scoreboard.create(rows=4, slots=2)
    other = Scoreboard(os.dup(mine.fd))
    mine.lame_duck = 123
    mine.row(3)[Cell.REQUESTS] += 7
    assert other.lame_duck == 123
    assert other.row(3)[Cell.REQUESTS] == 7
    assert (other.rows, other.slots) == (4, 2)
    other.close()
    mine.close()


def test_counters_are_folded_and_gauges_are_not() -> None:
    scoreboard = Scoreboard.create(rows=2, slots=2)
    for number in range(3):
        row = scoreboard.row(0)
        row[Cell.PID], row[Cell.CONNECTIONS], row[Cell.REQUESTS], row[Cell.ACCEPTS] = 42, 5, 10, 1
        assert scoreboard.total(Cell.REQUESTS) == 10 * (number + 1)
        scoreboard.fold(0, slot=7)  # beyond the table: the last slot stands for it
        assert not any(scoreboard.row(0))
    assert scoreboard.totals(1)[Cell.REQUESTS] == 30
    assert not any(word for cell, word in enumerate(scoreboard.totals(1)) if cell not in COUNTERS)
    scoreboard.close()


def test_durations_are_added_up_by_bucket() -> None:
    scoreboard = Scoreboard.create(rows=2, slots=1)
    for index in (0, 1, 2):  # two rows, and the totals of a slot
        scoreboard.row(index)[Cell.DURATION_0] = 1
        scoreboard.row(index)[Cell.DURATION_0 + len(DURATION_BOUNDS)] = 2
    durations = scoreboard.durations()
    assert (durations[0], durations[-1], sum(durations)) == (3, 6, 9)
    assert len(durations) == len(DURATION_BOUNDS) + 1
    scoreboard.close()


def test_a_column_is_the_same_word_of_every_row() -> None:
    scoreboard = Scoreboard.create(rows=3, slots=2)
    for number in range(3):
        scoreboard.row(number)[Cell.CONNECTIONS] = 10 + number
    scoreboard.totals(0)[Cell.CONNECTIONS] = 99  # no row
    assert scoreboard.column(Cell.CONNECTIONS).tolist() == [10, 11, 12]
    scoreboard.close()


def test_a_copy_is_not_taken_while_a_row_is_folded() -> None:
    scoreboard = Scoreboard.create(rows=1, slots=1)
    scoreboard.row(0)[Cell.REQUESTS] = 7
    copy = scoreboard.copied()
    scoreboard.fold(0, slot=0)
    again = scoreboard.copied()
    assert copy is not None
    assert again is not None
    assert sum(copy) < sum(again)  # the count of folds
    assert 7 in copy
    assert 7 in again
    scoreboard.words[Header.FOLDS] += 1
    assert scoreboard.copied() is None
    scoreboard.close()


def test_who_only_reads_cannot_write() -> None:
    scoreboard = Scoreboard.create(rows=1, slots=1)
    reader = Scoreboard(scoreboard.read_only(), writable=False)
    scoreboard.lame_duck = 5
    assert reader.lame_duck == 5
    with pytest.raises(TypeError, match="read-only"):
        reader.lame_duck = 6
    with pytest.raises(PermissionError):
        Scoreboard(os.dup(reader.fd))
    reader.close()
    scoreboard.close()


def test_other_memory_is_refused() -> None:
    descriptor = os.memfd_create("other")
    os.ftruncate(descriptor, 4096)
    with pytest.raises(ValueError, match="not a scoreboard"):
        Scoreboard(descriptor)
    os.close(descriptor)
