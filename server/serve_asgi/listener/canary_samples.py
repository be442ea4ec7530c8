"""What a generation's workers have done, added up from the scoreboard's rows."""

from __future__ import annotations

from collections.abc import Iterable

from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.listener.child import Child
from serve_asgi.supervisor.canary_verdict import TrafficSample
from serve_asgi.supervisor.lifecycles import Generation


def sample_of(generation: Generation, children: Iterable[Child]) -> TrafficSample:
    """What the living workers of a generation have done since they were started."""
    rows = [child.counts.words() for child in children if child.worker.generation is generation]
    return TrafficSample(sum(row[Cell.REQUESTS] for row in rows), sum(row[Cell.STATUS_5XX] for row in rows))
