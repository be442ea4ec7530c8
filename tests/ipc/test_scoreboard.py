"""The scoreboard: one writer per row, whom nobody has to believe, and counts that outlive their process."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_asgi.admin.scoreboard_totals import read
from serve_asgi.ipc import scoreboard as scoreboard_module
from serve_asgi.ipc.scoreboard import (
    COUNTERS,
    LARGEST,
    MOST_AT_ONCE,
    NONSENSE,
    ROW_WORDS,
    WORD,
    Cell,
    Header,
    Row,
    RowOwner,
    Scoreboard,
    fitted,
    let_go,
    mapped,
    mapped_row,
)
from tests.rows import Rows

NOBODY = 65534


def test_another_mapping_sees_what_is_written() -> None:
    mine = Scoreboard.create(rows=4, slots=2)
    other = Scoreboard(mine.read_only())
    mine.draining_since = 123
    mine.enter(3, 7, 2, 1, 9)
    assert other.draining_since == 123
    assert (other.place(3)[RowOwner.PID], other.place(3)[RowOwner.GENERATION], other.place(3)[RowOwner.SLOT]) == (
        7,
        2,
        1,
    )
    assert (other.serial(3), other.serial(2)) == (9, 0)
    assert (other.rows, other.slots) == (4, 2)
    mine.close()


def test_counters_are_folded_and_gauges_are_not() -> None:
    rows = Rows(rows=2, slots=2)
    for number in range(3):
        cells = rows.enter(0, slot=7, generation=1)  # beyond the table: the last slot stands for it
        cells[Cell.CONNECTIONS], cells[Cell.REQUESTS], cells[Cell.ACCEPTS] = 5, 10, 1
        rows.fold(0)
        assert rows.board.totals(1)[Cell.REQUESTS] == 10 * (number + 1)
        assert not any(rows.board.place(0))
    assert not any(word for cell, word in enumerate(rows.board.totals(1)) if cell not in COUNTERS)
    rows.close()


def test_what_no_process_could_have_counted_counts_as_nothing() -> None:
    rows = Rows(rows=1, slots=1)
    cells = rows.enter(0, slot=0, generation=1)
    for cell in range(ROW_WORDS):
        cells[cell] = LARGEST
    cells[Cell.REQUESTS], cells[Cell.WEBSOCKETS] = 5, MOST_AT_ONCE + 1
    row = rows.read[0][1]
    assert sum(row.words()) == row.word(Cell.REQUESTS) == 5
    assert row.word(Cell.WEBSOCKETS) == row.word(Cell.RSS) == 0
    for _ in range(3):
        for cell in COUNTERS:
            cells[cell] = NONSENSE - 1
        rows.fold(0)
    rows.board.totals(0)[Cell.REQUESTS] = LARGEST - 1
    rows.fold(0)
    assert rows.board.totals(0)[Cell.REQUESTS] == LARGEST
    rows.close()


def test_a_copy_is_not_taken_while_a_row_is_folded() -> None:
    rows = Rows(rows=1, slots=1)
    rows.enter(0, slot=0, generation=1)[Cell.REQUESTS] = 7
    copied = rows.board.copied(rows.read)
    assert copied is not None
    assert (copied[1][0][Cell.REQUESTS], 7 in copied[0]) == (7, False)
    rows.fold(0)
    copied = rows.board.copied(rows.read)
    assert copied is not None
    assert (copied[1], 7 in copied[0]) == ({}, True)
    rows.board.words[Header.FOLDS] += 1
    assert rows.board.copied(rows.read) is None
    rows.close()


def test_a_row_says_nothing_of_whose_it_is() -> None:
    rows = Rows(rows=2, slots=1)
    cells = rows.enter(1, slot=0, generation=3)
    cells[Cell.PID], cells[Cell.GENERATION], cells[Cell.SLOT] = 1, 999, 999
    copied = rows.board.copied(rows.read)
    assert copied is not None
    assert copied[1][1][:3] == [101, 3, 0]
    rows.enter(1, slot=0, generation=4)
    assert rows.board.copied({1: (1, rows.read[1][1])}) is not None
    copied = rows.board.copied({1: (1, rows.read[1][1])})  # the reader does not know the new process yet
    assert copied is not None
    assert copied[1] == {}
    rows.close()


def test_who_only_reads_cannot_write() -> None:
    scoreboard = Scoreboard.create(rows=1, slots=1)
    descriptor = scoreboard.read_only()
    row, own = Row.create()
    for fd in (descriptor, row.fd):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError, match="Invalid argument"):
            os.ftruncate(fd, 0)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 0)
    reader = Scoreboard(descriptor)
    scoreboard.draining_since = 5
    assert reader.draining_since == 5
    with pytest.raises(TypeError, match="read-only"):
        reader.draining_since = 6
    cells = mapped(own, writable=True)
    cells[Cell.REQUESTS] = 3
    assert row.word(Cell.REQUESTS) == 3
    row.close()
    assert not any(row.words())
    scoreboard.close()


REOPEN = """
import os, sys
os.setuid(int(sys.argv[1]))
for fd in map(int, sys.argv[2:]):
    try:
        os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    except PermissionError:
        print("refused")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_cannot_open_them_anew_to_write() -> None:
    scoreboard = Scoreboard.create(rows=1, slots=1)
    board, (row, own) = scoreboard.read_only(), Row.create()
    command = [sys.executable, "-c", REOPEN, str(NOBODY), str(board), str(row.fd)]
    done = subprocess.run(command, pass_fds=(board, row.fd), capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "refused\n" * 2, done.stderr
    for fd in (board, own):
        os.close(fd)
    row.close()
    scoreboard.close()


def test_nobody_can_cut_the_memory_short_or_make_it_longer() -> None:
    scoreboard = Scoreboard.create(rows=1, slots=1)
    row, own = Row.create()
    for fd, size in ((own, ROW_WORDS * WORD), (scoreboard.fd, Path(f"/proc/self/fd/{scoreboard.fd}").stat().st_size)):
        for wanted in (0, size - 1, size + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, wanted)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert os.fstat(fd).st_size == size
    os.close(own)
    row.close()
    scoreboard.close()


def test_other_memory_is_refused() -> None:
    descriptor = os.memfd_create("other")
    os.ftruncate(descriptor, 4096)
    with pytest.raises(ValueError, match="not a scoreboard"):
        Scoreboard(descriptor)


EARLIER: int = Cell.HTTP2_CONNECTIONS
"""Words in the rows of a version that knows nothing of HTTP/2."""


@pytest.fixture
def earlier(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on this program makes rows and boards as an earlier version does; `undo` of the monkeypatch ends it."""
    return lambda: monkeypatch.setattr(scoreboard_module, "ROW_WORDS", EARLIER)


def test_a_row_of_an_earlier_version_takes_and_keeps_what_that_version_has(
    earlier: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier()
    row, fd = Row.create()
    monkeypatch.undo()
    cells = mapped_row(fd)  # a worker of this version below a listener of that one
    cells[Cell.REQUESTS], cells[Cell.SURVIVED], cells[Cell.HTTP2_GOAWAYS] = 3, 4, 5
    assert (cells[Cell.REQUESTS], cells[Cell.HTTP2_GOAWAYS], len(cells)) == (3, 5, ROW_WORDS)
    assert os.fstat(row.fd).st_size == EARLIER * WORD
    words = row.words()
    assert (words[Cell.REQUESTS], words[Cell.SURVIVED], words[Cell.HTTP2_GOAWAYS]) == (3, 4, 0)
    assert len(words) == ROW_WORDS
    let_go(cells)  # as in a forked child
    cells[Cell.REQUESTS] += 1
    assert (cells[Cell.REQUESTS], row.word(Cell.REQUESTS)) == (4, 3)
    row.close()


def test_totals_of_an_earlier_version_keep_what_that_version_has(
    earlier: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier()
    rows = Rows(rows=2, slots=2)
    cells = rows.enter(0, slot=0, generation=1)
    cells[Cell.REQUESTS], cells[Cell.SURVIVED] = 3, 4
    monkeypatch.undo()  # the listener's program is replaced, and starts a worker of its own version
    newer = rows.enter(1, slot=0, generation=2)
    newer[Cell.REQUESTS], newer[Cell.HTTP2_STREAMS] = 10, 20
    reading = read(rows.board, rows.read)
    assert reading is not None
    assert (reading.total[Cell.REQUESTS], reading.total[Cell.HTTP2_STREAMS]) == (13, 0)  # rather than 20 now, 0 later
    lasting = rows.board.lasting(list(newer))
    assert (lasting[Cell.REQUESTS], lasting[Cell.HTTP2_STREAMS], len(lasting)) == (10, 0, ROW_WORDS)
    rows.fold(0)
    rows.fold(1)
    totals = fitted(rows.board.totals(0).tolist())
    assert (totals[Cell.REQUESTS], totals[Cell.SURVIVED], totals[Cell.HTTP2_STREAMS]) == (13, 4, 0)
    reading = read(rows.board, {})
    assert reading is not None
    assert list(reading.slots) == [0]
    assert (reading.total[Cell.REQUESTS], reading.total[Cell.HTTP2_STREAMS]) == (13, 0)
    assert not any(rows.board.totals(1))
    rows.close()


def test_longer_rows_and_totals_of_a_later_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoreboard_module, "ROW_WORDS", ROW_WORDS + 32)
    rows = Rows(rows=1, slots=2)
    cells = rows.enter(0, slot=0, generation=1)
    cells[Cell.REQUESTS], cells[ROW_WORDS] = 3, 9
    monkeypatch.undo()
    for folded in (False, True):
        reading = read(rows.board, rows.read)
        assert reading is not None
        assert (reading.total[Cell.REQUESTS], len(reading.total)) == (3, ROW_WORDS)
        assert rows.board.lasting([1] * ROW_WORDS) == [1] * ROW_WORDS
        if not folded:
            rows.fold(0)
    rows.close()
