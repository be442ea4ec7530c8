"""The memories that the application's metrics are counted in, of all processes of one server.

It owns their descriptors. A process that asks for one is lent it for its life; when it has been reaped, the memory is
kept, with what was counted in it, and the next process that asks is lent it: so the sums never go back, nothing has to
be added up here, and there are no more memories than processes have been alive at once, and a few. One that is more
than half full is not lent again as long as there are few of those, so that new code has room for its own time series,
however many an older one has left behind.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Final

from serve_asgi.ipc import metric_memory
from serve_asgi.ipc.scoreboard import read_only

MOST_FULL: Final = 16
"""Memories that are kept although they are more than half full, and lent to nobody."""


@dataclasses.dataclass(slots=True)
class MetricMemory:
    """A memory; the descriptor is ours."""

    number: int
    fd: int
    series: int
    owner: int = 0
    """The serial of the process that it is lent to, or 0."""

    @property
    def share(self) -> float:
        """How much of it is in use, as its writer says."""
        return metric_memory.used(self.fd) / os.fstat(self.fd).st_size

    def lent(self) -> int:
        """A descriptor for its writer; the caller's."""
        return os.dup(self.fd)

    def for_readers(self) -> int:
        """A read-only descriptor; the caller's."""
        return read_only(self.fd)


class MetricMemories:
    """All memories of one server."""

    def __init__(self) -> None:
        self.all: dict[int, MetricMemory] = {}
        """By number; one in which nothing was ever counted is given up with the process that it was lent to."""
        self._made = 0
        """How many there have been: the number of the next."""

    def lend(self, series: int, owner: int) -> tuple[MetricMemory, bool]:
        """A memory with room for `series` time series for the process with this serial; also whether it is new.

        Raises OSError.
        """
        free = [each for each in self.all.values() if not each.owner and each.series == series]
        spare = [(each.share, each.number, each) for each in free]
        found = min(spare, default=None)
        full = sum(share > 0.5 for share, _, _ in spare)
        if found is not None and (found[0] <= 0.5 or full > MOST_FULL):
            memory = found[2]
            memory.owner = owner
            return memory, False
        memory = MetricMemory(self._made, metric_memory.create(series), series, owner)
        self.all[memory.number] = memory
        self._made += 1
        return memory, True

    def take_back(self, owner: int) -> None:
        """The process has been reaped, or was never started: its memory may be lent to another."""
        for each in [each for each in self.all.values() if each.owner == owner]:
            each.owner = 0
            if not metric_memory.used(each.fd):
                os.close(self.all.pop(each.number).fd)

    def to_state(self, descriptors: list[int]) -> list[dict[str, Any]]:
        """What `take` needs in a program that replaces this one; adds to `descriptors` those that must stay open."""
        descriptors += [each.fd for each in self.all.values()]
        return [dataclasses.asdict(each) for each in self.all.values()]

    def take(self, state: list[dict[str, Any]]) -> None:
        """Take over the memories of an earlier program of this process."""
        self.all = {each["number"]: MetricMemory(**each) for each in state}
        self._made = max(self.all, default=-1) + 1
