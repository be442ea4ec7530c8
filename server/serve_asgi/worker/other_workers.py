"""The workers beside this one, as far as it can see them: their rows of the scoreboard, which it reads alone.

The listener makes them known: to one that begins to serve all that do already, and it to those of its generation. What
is not known here is done without, as where descriptors have run out: clients are spread less evenly then. It knows
nothing of what is made of the numbers, and believes none: a neighbour may write there what it likes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from serve_asgi.ipc.scoreboard import MOST_AT_ONCE, Cell, RowOwner, Scoreboard, mapped


class OtherWorkers:
    """This worker's row and those of the others."""

    __slots__ = ("_rows", "_scoreboard", "own")

    def __init__(self, scoreboard: Scoreboard, own: memoryview) -> None:
        """`own` is the row of this process."""
        self.own = own
        self._scoreboard = scoreboard
        self._rows: dict[int, tuple[int, memoryview]] = {}

    def add(self, index: int, serial: int, row: int) -> None:
        """The process `serial` has the place `index`; `row` is a descriptor of its row, and taken over."""
        self._forget_the_dead()
        with contextlib.suppress(OSError):  # EMFILE
            self._rows[index] = serial, mapped(row)

    def accepting(self, generation: int | None = None) -> list[int]:
        """How many connections each neighbour (of this generation) holds that accepts clients."""
        return [
            min(row[Cell.CONNECTIONS], MOST_AT_ONCE)
            for place, row in self._living()
            if row[Cell.ACCEPTS] and generation in (None, place[RowOwner.GENERATION])
        ]

    def idle(self) -> Iterator[tuple[int, int, int]]:
        """Of each neighbour its generation, its slot, and how many of its connections are idle."""
        for place, row in self._living():
            idle = row[Cell.CONNECTIONS] - row[Cell.WEBSOCKETS] - row[Cell.IN_FLIGHT]
            yield place[RowOwner.GENERATION], place[RowOwner.SLOT], min(max(0, idle), MOST_AT_ONCE)

    def _living(self) -> Iterator[tuple[memoryview, memoryview]]:
        """Each neighbour's place and its row."""
        for index, (serial, row) in self._rows.items():
            if self._scoreboard.serial(index) == serial:
                yield self._scoreboard.place(index), row

    def _forget_the_dead(self) -> None:
        for index in [each for each, (serial, _) in self._rows.items() if self._scoreboard.serial(each) != serial]:
            del self._rows[index]
