"""The instants of a cron expression in a time zone.

An instant is a unix time in whole milliseconds. cronsim evaluates the expressions; its rules for daylight saving time
are those of Debian's cron. The rules of a time zone are the bytes of its file (RFC 9636). The process that defines a
schedule reads and checks them (`zone_rules`); the listener, which must not wait for a disk, reads no file.
"""

from __future__ import annotations

import datetime
import functools
import importlib.resources
import io
import zoneinfo
from pathlib import Path
from typing import Final

from cronsim import CronSim, CronSimError

from serve_asgi.errors import ScheduleError

HALF_HOUR: Final = 1_800_000
DAY: Final = 86_400_000
NICKNAMES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""What crontab(5) accepts besides the five fields."""


def checked_cron(expression: str, tz: str, rules: bytes) -> str:
    """The expression, checked, with nicknames written out. Raises ScheduleError if it is invalid or has no instant."""
    written = NICKNAMES.get(expression.strip().lower(), expression) if isinstance(expression, str) else expression
    try:
        found = next_instant(written, tz, rules, 0)
    except (CronSimError, AttributeError) as error:
        raise ScheduleError(
            f"cron is {expression!r}: {str(error).lower()}; the fields are minute, hour, day of month, month and day "
            'of week, such as "*/10 * * * *", or these with the seconds before them'
        ) from None
    if found is None:
        raise ScheduleError(f"cron is {expression!r}: no day matches")
    return " ".join(written.split())


def next_instant(expression: str, tz: str, rules: bytes, instant: int) -> int | None:
    """The first instant of the expression after `instant`, in a zone with these rules. Raises CronSimError."""
    zone = _zone(tz, rules)
    found = _cronsim(expression, zone, instant, instant)
    if found is None or _offset(zone, before := max(instant, found - 2 * DAY)) == _offset(zone, found):
        return found
    # cronsim steps through the hours of a day by 60 minutes. Where clocks change by half an hour (Australia/Lord_Howe)
    # it is in the middle of each hour from then on, so start it anew after the change.
    change = _change(zone, before, found)
    again = (_cronsim(expression, zone, change + step * HALF_HOUR - 1000, instant) for step in range(5))
    return min((other for other in again if other is not None), default=found)


def zone_rules(name: str) -> bytes:
    """The rules of a time zone (RFC 9636), from the system or the package tzdata; empty for UTC.

    Raises ScheduleError if there is no such zone. Reads files.
    """
    if name == "UTC":
        return b""
    try:
        zoneinfo.ZoneInfo(name)
        for place in zoneinfo.TZPATH:
            if (path := Path(place, name)).is_file():
                return path.read_bytes()
        return importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()
    except (zoneinfo.ZoneInfoNotFoundError, ImportError, OSError, ValueError, TypeError, AttributeError):
        raise ScheduleError(
            f'tz is {name!r}: this system knows no such time zone; write one such as "Europe/Berlin" '
            "(zoneinfo.available_timezones() has them), and install tzdata where there are none"
        ) from None


@functools.lru_cache(maxsize=256)
def _zone(name: str, rules: bytes) -> datetime.tzinfo:
    return zoneinfo.ZoneInfo.from_file(io.BytesIO(rules), key=name) if rules else datetime.UTC


def _cronsim(expression: str, zone: datetime.tzinfo, start: int, instant: int) -> int | None:
    """The first instant after `instant` that cronsim finds from `start` on.

    In the second of two equal hours it counts by the wall clock and goes back to the first, so what is not after
    `instant` is skipped.
    """
    for found in CronSim(expression, datetime.datetime.fromtimestamp(start // 1000, zone)):
        if (there := round(found.timestamp()) * 1000) > instant:
            return there
    return None


def _offset(zone: datetime.tzinfo, instant: int) -> datetime.timedelta | None:
    return datetime.datetime.fromtimestamp(instant / 1000, zone).utcoffset()


def _change(zone: datetime.tzinfo, before: int, after: int) -> int:
    """The instant, to the second, of a change of the zone's offset between these two."""
    old = _offset(zone, before)
    low, high = before // 1000, -(-after // 1000)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _offset(zone, middle * 1000) == old else (low, middle)
    return high * 1000
