"""How many connections this worker accepts: limited by --max-connections and its open-files limit.

It owns the descriptor numbers from which on no client is accepted, and no connection taken over. Connections that are
handed over take precedence: while retiring workers still hold idle connections, this worker's share of them is kept
free, so that a flood of clients before a deploy does not make the deploy lose any.
"""

from __future__ import annotations

from typing import Final

from serve_asgi.http.worker_context import WorkerContext
from serve_asgi.ipc import open_files_limit as descriptors
from serve_asgi.worker.scoreboard_rows import OtherWorkers

AT_LEAST: Final = 16
"""Clients that are accepted whatever is still to be taken over, if the limit allows as many."""


class ConnectionLimit:
    """The limit of one worker."""

    def __init__(self, context: WorkerContext, others: OtherWorkers, generation: int, slot: int) -> None:
        """`generation` and `slot` are this worker's."""
        self._context = context
        self._others = others
        self._generation = generation
        self._slot = slot
        self._base = _lowest_free()
        self.mark = 0
        """A client whose descriptor has this number or a higher one is the last that is accepted for now."""
        self.taken_over_mark = 0
        """A hand-over that arrives with this number or a higher one is refused: another worker may have room."""
        self.limit = 0
        self.look()

    def look(self) -> None:
        """Update from the current limit and the connections still to be taken over. Once per second, and while
        paused."""
        self.limit = limit = descriptors.limit()
        kept = descriptors.reserve(limit)
        floor = min(self._base + AT_LEAST, limit - kept)
        self.mark = max(limit - kept - self._to_come(), floor, self._base)
        self.taken_over_mark = limit - kept // 2

    def for_clients(self, coming: int) -> bool:
        """Whether --max-connections allows one more client; `coming` are accepted, but not attached yet."""
        return self._context.has_room(coming)

    def again(self) -> bool:
        """Whether clients may be accepted again after the descriptors had run out."""
        self.look()
        return descriptors.available(self.mark)

    def for_taken_over(self, descriptor: int) -> bool:
        """Whether to keep a hand-over that has arrived as this descriptor."""
        return descriptor < self.taken_over_mark

    def _to_come(self) -> int:
        """This worker's share of the idle connections that the workers of other generations will hand over: older ones
        in a reload, the newer ones in a roll-back."""
        idle, takers = 0, 1
        for generation, slot, theirs in self._others.idle():
            if generation == self._generation and slot != self._slot:
                takers += 1
            else:  # also the one that this one replaces
                idle += theirs
        return -(-idle // takers)


def _lowest_free() -> int:
    try:
        return descriptors.lowest_free()
    except OSError:
        return descriptors.limit()
