"""What a schedule is, and which instants it has.

An instant is a unix time in whole milliseconds, so that every process and every machine means the same one. `every`
counts from the Unix epoch, cron expressions are `serve_asgi.hub.schedules.cron`'s. The rules of a time zone travel with
the definition. This module knows neither processes nor which schedule runs where.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import re
from typing import Any, Final

from serve_asgi.errors import ScheduleError
from serve_asgi.hub.schedules.cron import next_instant
from serve_asgi.ipc.schedule_frames import MAX_INTERVAL

MIN_INTERVAL: Final = 100
"""Milliseconds between two ticks at least: what is due more often is a loop, not a schedule."""
_UNITS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_SPAN: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhdw]))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")


class RunsOn(enum.Enum):
    """Who runs it."""

    ONE = "one"  # one worker, chosen by the server
    ALL = "all"  # each worker that serves
    AGENT = "agent"


class OverlapPolicy(enum.Enum):
    """What becomes of a tick while the run of another one has not ended."""

    SKIP = "skip"
    QUEUE = "queue"
    ALLOW = "allow"


@dataclasses.dataclass(frozen=True, slots=True)
class ScheduleDefinition:
    """One schedule as its function's decorator gave it. Times are in milliseconds."""

    name: str
    cron: str = ""  # or `every`
    every: int = 0
    tz: str = "UTC"
    rules: bytes = b""  # of the zone; none for UTC
    on: RunsOn = RunsOn.ONE
    immediate: bool = False  # runs once when the server has started, too
    overlap: OverlapPolicy = OverlapPolicy.SKIP
    timeout: int = 0  # of one run; 0 means none
    jitter: int = 0  # a tick begins up to so much later
    retry: int = 0  # how often a run that was cut, or whose process died, is run again
    disabled: str = ""  # why it has no ticks; "" if it has
    where: str = ""  # file and line of the function
    function: str = ""  # its module and qualified name; "" where an earlier version tells of it

    def after(self, instant: int) -> int | None:
        """The first instant after this one; None if there is none, which no definition that was checked comes to."""
        if self.disabled:
            return None
        if self.every:
            return instant // self.every * self.every + self.every
        return next_instant(self.cron, self.tz, self.rules, instant)

    def same_function(self, other: ScheduleDefinition) -> bool:
        """Whether both are of one function, as far as is known; its line may differ where a file has been edited."""
        return self.function == other.function or not (self.function and other.function) or self.where == other.where

    def timing(self) -> tuple[object, ...]:
        """What the instants depend on."""
        return self.cron, self.every, self.tz, self.rules, self.disabled

    def when(self) -> str:
        """When it runs, as a person writes it."""
        return f"every {span(self.every)}" if self.every else self.cron + (f" {self.tz}" if self.tz != "UTC" else "")

    def to_head(self) -> dict[str, Any]:
        """All but the rules, as a frame's head can hold it."""
        head = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del head["rules"]
        return head | {"on": self.on.value, "overlap": self.overlap.value}

    @classmethod
    def from_head(cls, head: dict[str, Any], rules: bytes) -> ScheduleDefinition:
        """The reverse; what a later version knows besides is passed over. Raises KeyError, TypeError or ValueError."""
        known = {field.name: head[field.name] for field in dataclasses.fields(cls) if field.name in head}
        made = cls(**known | {"rules": rules, "on": RunsOn(head["on"]), "overlap": OverlapPolicy(head["overlap"])})
        if not isinstance(made.name, str) or not (made.disabled or made.every >= MIN_INTERVAL or made.cron):
            raise ValueError("a definition without a name or without ticks")
        return made


def milliseconds(given: str | float | datetime.timedelta, what: str) -> int:
    """A time span: "10m", "1h30m", "500ms", a number of seconds or a timedelta. Raises ScheduleError."""
    if isinstance(given, datetime.timedelta):
        return round(given.total_seconds() * 1000)
    if isinstance(given, int | float) and not isinstance(given, bool):
        return round(given * 1000)
    if isinstance(given, str) and _SPAN.fullmatch(given.replace(" ", "")):
        return round(sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(given.replace(" ", ""))))
    raise ScheduleError(
        f'{what} is {given!r}: write a number and its unit (ms, s, m, h, d, w), such as "10m" or "1h30m"'
    )


def span(time: int) -> str:
    """Milliseconds as `milliseconds` reads them: 10m, 1h30m, 0.2s."""
    parts = []
    for unit in ("w", "d", "h", "m"):
        whole, time = divmod(time, _UNITS[unit])
        if whole:
            parts.append(f"{whole}{unit}")
    if time or not parts:
        parts.append(f"{time / 1000:g}s")
    return "".join(parts)


def checked_every(given: str | float | datetime.timedelta) -> int:
    """`every` in milliseconds. Raises ScheduleError."""
    every = milliseconds(given, "every")
    if not MIN_INTERVAL <= every <= MAX_INTERVAL:
        raise ScheduleError(f"every is {given!r}: it can be from {span(MIN_INTERVAL)} to {span(MAX_INTERVAL)}")
    return every
