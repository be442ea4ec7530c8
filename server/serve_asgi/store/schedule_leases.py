"""Grants of ticks of schedules, and the leases of their runs: the pure decision, without a clock.

The rules are those of `serve_asgi.ipc.store_frames`; Redis decides by the same rules in Lua
(`serve_asgi.store.redis_scripts`).
"""

from __future__ import annotations

import dataclasses
from typing import Final

from serve_asgi.ipc.store_frames import LEASE_MARGIN, GrantRefusal

MAX_AHEAD: Final = 60.0
"""Seconds that a tick may lie ahead of the store's clock: once it is granted, no earlier tick ever is."""


@dataclasses.dataclass(frozen=True, slots=True)
class TickGrant:
    """The last grant of a schedule."""

    tick: float
    holder: str
    token: int


class LeaseTable:
    """The grants of one store. Times are unix times (s) of the store's clock."""

    def __init__(
        self,
        last: dict[str, TickGrant] | None = None,
        token: int = 0,
        until: dict[tuple[str, int], float] | None = None,
    ) -> None:
        self.last: dict[str, TickGrant] = last or {}
        self.token = token
        """The largest token so far."""
        self.until: dict[tuple[str, int], float] = until or {}
        """The leases, by name and token, and when each of them ends."""

    def grant(
        self, name: str, tick: float, holder: str, lease: float, exclusive: bool, now: float
    ) -> TickGrant | tuple[GrantRefusal, str]:
        """Grant a tick for `lease` seconds, or say why not."""
        before = self.last.get(name)
        if before is not None and tick <= before.tick:
            if (tick, holder) == (before.tick, before.holder):
                self.until[name, before.token] = now + lease
                return before
            return GrantRefusal.GRANTED, f"this tick of {name}, or a later one, has been granted already"
        if tick > now + MAX_AHEAD:
            return (
                GrantRefusal.CLOCK,
                f"the tick of {name} lies {tick - now:.0f} s ahead of the store's clock: set the clocks",
            )
        if exclusive and any(each == name and until > now for (each, _), until in self.until.items()):
            return GrantRefusal.RUNNING, f"a run of {name} has not ended"
        self.token = max(self.token + 1, int(now * 1_000_000))
        found = self.last[name] = TickGrant(tick, holder, self.token)
        self.until[name, self.token] = now + lease
        return found

    def copy(self) -> LeaseTable:
        """A copy, since what `grant` changes may have to be undone."""
        return LeaseTable(dict(self.last), self.token, dict(self.until))

    def renew(self, name: str, token: int, lease: float, now: float) -> bool:
        """Renew a lease; return False if it has expired."""
        if self.until.get((name, token), 0.0) <= now:
            self.until.pop((name, token), None)
            return False
        self.until[name, token] = now + lease
        return True

    def release(self, name: str, token: int) -> None:
        """A run has ended: give up its lease."""
        self.until.pop((name, token), None)


def lease_until(lease: float, began: float) -> float:
    """The time (s, monotonic) until which the holder of a lease that it asked for at `began` may rely on it."""
    return began + float(lease) * (1 - LEASE_MARGIN)
