"""Ticks whose time the server has missed: which instants have come, and which of them it is too late to run.

It owns that rule, and knows instants alone: all are unix times in milliseconds. What becomes of the others is
`serve_asgi.hub.schedules.schedule_state`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from serve_asgi.hub.schedules.definition import ScheduleDefinition

TICK_GRACE: Final = 30_000
"""Milliseconds that a tick may begin late; after that it is missed."""
MISSED_REASON: Final = "the server did not run at that time, or its clock was set"
MAX_COUNTED: Final = 200
"""Instants of a cron expression that are counted one by one when the clock has passed many at once."""


class MissedTicks(NamedTuple):
    """Ticks in a row that were missed."""

    number: int
    first: int
    last: int
    text: str


def too_late(due: int, now: int) -> bool:
    """Whether a tick that was due at `due` is not to begin any more."""
    return now - due > TICK_GRACE


def count_missed(due: Sequence[int], now: int) -> int:
    """How many of the ticks that are due at these times, in order, are missed.

    The newest whose time has come can still run, and so can those whose time has not (jitter); the others are missed,
    since the clock went past more than one at once.
    """
    come = sum(each <= now for each in due)
    return come - 1 if come and not too_late(due[come - 1], now) else come


def instants_until(definition: ScheduleDefinition, first: int, now: int) -> tuple[list[int], int]:
    """The last instants of the schedule from `first` up to `now`, and how many came before them."""
    if definition.every:
        newest = now // definition.every * definition.every
        count = (newest - first) // definition.every + 1
        kept = min(count, MAX_COUNTED)
        return [newest - definition.every * back for back in range(kept - 1, -1, -1)], count - kept
    found: list[int] = []
    instant: int | None = first
    while instant is not None and instant <= now:
        found.append(instant)
        if len(found) == MAX_COUNTED:
            instant = max(instant, now - TICK_GRACE)  # those between are not counted: `at least`
        instant = definition.after(instant)
    return found, 0
