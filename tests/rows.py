"""A scoreboard and the rows of its processes, as a test plays them: the listener, the writers and a reader in one."""

from __future__ import annotations

from serve_asgi.ipc.scoreboard import (
    DURATION_BOUNDS,
    ROW_WORDS,
    WEBSOCKET_BOUNDS,
    WORD,
    Cell,
    Row,
    Scoreboard,
    mapped,
)


def cells() -> memoryview:
    """The row of one process that nobody reads."""
    return memoryview(bytearray(ROW_WORDS * WORD)).cast("Q")


class Rows:
    """Processes come with `enter` and go with `fold`; `read` is what a reader is given."""

    def __init__(self, rows: int, slots: int) -> None:
        self.board = Scoreboard.create(rows, slots)
        self.read: dict[int, tuple[int, Row]] = {}
        self._cells: dict[int, memoryview] = {}
        self._slots: dict[int, int] = {}
        self._entered = 0

    def enter(self, index: int, slot: int, generation: int) -> memoryview:
        """A process has begun; what it writes to."""
        self._entered += 1
        row, fd = Row.create()
        self.read[index] = self._entered, row
        self._cells[index], self._slots[index] = mapped(fd, writable=True), slot
        self.board.enter(index, 100 + index, generation, slot, self._entered)
        return self._cells[index]

    def row(self, index: int) -> memoryview:
        """What the process in this place writes to."""
        return self._cells[index]

    def fold(self, index: int) -> None:
        """It has been reaped. A reader does not know yet."""
        self.board.fold(index, self._slots[index], self.read[index][1].words())

    def close(self) -> None:
        for _, row in self.read.values():
            row.close()
        self.board.close()


def websockets_timed(*rows: memoryview) -> tuple[int, int, float]:
    """In the histograms of WebSockets: how many were accepted, how many have ended, and how long these lasted (s)."""
    accepted = slice(Cell.WEBSOCKET_ACCEPT_0, Cell.WEBSOCKET_ACCEPT_0 + len(DURATION_BOUNDS) + 1)
    ended = slice(Cell.WEBSOCKET_TIME_0, Cell.WEBSOCKET_TIME_0 + len(WEBSOCKET_BOUNDS) + 1)
    counts = [sum(sum(row[words]) for row in rows) for words in (accepted, ended)]
    return counts[0], counts[1], sum(row[Cell.WEBSOCKET_TIME_TOTAL] for row in rows) / 1e9
