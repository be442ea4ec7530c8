"""What the canary and the current generation have done since a trial began, added up from the scoreboard's rows."""

from __future__ import annotations

from collections.abc import Callable

from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.listener.children import Children
from serve_asgi.supervisor.canary_verdict import TrafficSample
from serve_asgi.supervisor.lifecycles import Generation


class CanarySamples:
    """Counts both sides of one trial after another."""

    def __init__(self, children: Children, current: Callable[[], Generation | None]) -> None:
        self._children = children
        self._current = current
        self._canary: Generation
        self._before: tuple[TrafficSample, TrafficSample]

    def begin(self, canary: Generation) -> None:
        """Count from now on."""
        self._canary = canary
        self._before = self._count(canary), self._count(self._current())

    def take(self) -> tuple[TrafficSample, TrafficSample]:
        """What the canary has done, and the current generation."""
        return self._count(self._canary) - self._before[0], self._count(self._current()) - self._before[1]

    def canary_errors(self) -> int:
        """The canary's failed requests alone."""
        return (self._count(self._canary) - self._before[0]).errors

    def _count(self, generation: Generation | None) -> TrafficSample:
        rows = [child.counts.words() for child in self._children if child.worker.generation is generation]
        return TrafficSample(sum(row[Cell.REQUESTS] for row in rows), sum(row[Cell.STATUS_5XX] for row in rows))
