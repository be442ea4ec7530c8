"""Ticks that have come due, and which of them are missed: the server did not run then, or the clock was set forward.

It owns the rule by which a tick is too late to run. Times are unix times in milliseconds. What becomes of a tick is
`serve_asgi.hub.schedules.tick_decisions`' to decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from serve_asgi.hub.schedules.definitions import ScheduleDefinition
from serve_asgi.ipc.schedule_frames import RunKind

TICK_GRACE: Final = 30_000
"""Milliseconds that a tick may begin late; then it is missed."""
MISSED_REASON: Final = "the server did not run at that time, or its clock was set"
MAX_COUNTED: Final = 200
"""Instants of a cron expression that are counted one by one if the clock passes many at once."""


@dataclasses.dataclass(slots=True, eq=False)
class PendingTick:
    """A tick that has to be decided."""

    instant: int
    due: int  # `instant`, and the jitter
    kind: RunKind = RunKind.TICK
    slot: int = -1  # on="all": the slot that runs it; -1 until that is known
    attempt: int = 1
    token: int | None = None  # the store's, once it has granted this tick
    until: float = 0.0  # of the store's lease (the hub's clock)
    denied: bool = False  # it runs without a grant of the store
    unsettled: bool = False  # the store may have granted it, but could not reply
    ahead: int = 0  # ms that are added to the instant of a requested run for the store
    ask: int = 0  # the request that it comes from; 0 for none
    queued: bool = False  # it waits for an earlier run, as long as that takes

    def early(self, now: int) -> bool:
        """Whether it is too early; requested runs and retries do not wait for the clock, which may be set."""
        return self.due > now and self.kind is RunKind.TICK and self.attempt == 1

    def late(self, now: int) -> bool:
        """Whether it is missed; an unsettled one has to be settled first, so that no lease is left behind."""
        return too_late(self.due, now) and not self.queued and (self.token is not None or not self.unsettled)

    @classmethod
    def load(cls, told: dict[str, Any]) -> PendingTick:
        """The reverse of `to_plain`."""
        known = {field.name: told[field.name] for field in dataclasses.fields(cls) if field.name in told}
        return cls(**known | {"kind": RunKind(told["kind"])})


class MissedTicks(NamedTuple):
    """Ticks in a row that were missed."""

    number: int
    first: int
    last: int
    text: str


def too_late(due: int, now: int) -> bool:
    """Whether a tick that was due at `due` must not begin any more."""
    return now - due > TICK_GRACE


def count_missed(due: Sequence[int], now: int) -> int:
    """How many of the ticks that are due at these times, in order, are missed.

    The newest one that is due can still run, and so can those that are not due yet (jitter). The others are missed: the
    clock has passed more than one at once.
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
