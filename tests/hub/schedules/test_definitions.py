"""What a schedule's instants are, above all where clocks are changed (tz database, RFC 9636; crontab(5), Debian)."""

from __future__ import annotations

import datetime
import zoneinfo
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from serve_asgi.errors import ScheduleError
from serve_asgi.hub.schedules import definitions as d
from serve_asgi.hub.schedules.cron import checked_cron, zone_rules
from serve_asgi.hub.schedules.definitions import OverlapPolicy, RunsOn, ScheduleDefinition
from serve_asgi.ipc.schedule_frames import MAX_INTERVAL

DAY = 86_400_000
CHANGES = {
    "Europe/Berlin": [(2026, 3, 28), (2026, 10, 24)],
    "America/New_York": [(2026, 3, 7), (2026, 10, 31)],
    "Australia/Lord_Howe": [(2026, 4, 3), (2026, 10, 2)],  # by half an hour
    "Africa/Cairo": [(2026, 4, 22), (2026, 10, 28)],  # at midnight
    "UTC": [(2026, 3, 28)],
}


def cron(expression: str, tz: str = "UTC") -> ScheduleDefinition:
    rules = zone_rules(tz)
    return ScheduleDefinition("x", cron=checked_cron(expression, tz, rules), tz=tz, rules=rules)


def between(definition: ScheduleDefinition, start: int, end: int) -> list[int]:
    found, instant = [], definition.after(start)
    while instant is not None and instant < end:
        found.append(instant)
        instant = definition.after(instant)
    return found


def at(year: int, month: int, day: int) -> int:
    return int(datetime.datetime(year, month, day, tzinfo=datetime.UTC).timestamp()) * 1000


def local(definition: ScheduleDefinition, day: tuple[int, int, int], days: int = 3) -> list[str]:
    """The instants of some days as wall clocks show them, with the offset from UTC."""
    zone = ZoneInfo(definition.tz)
    found = between(definition, at(*day), at(*day) + days * DAY)
    return [datetime.datetime.fromtimestamp(instant / 1000, zone).strftime("%d %H:%M%z") for instant in found]


@pytest.mark.parametrize(
    ("expression", "tz", "day", "days", "wanted"),
    [
        # the hour is left out: what would have run in it runs when it is over, once
        ("30 2 * * *", "Europe/Berlin", (2026, 3, 28), 3, ["28 02:30+0100", "29 03:00+0200", "30 02:30+0200"]),
        ("0,20,40 2 * * *", "Europe/Berlin", (2026, 3, 28), 1, ["28 02:00+0100", "28 02:20+0100", "28 02:40+0100"]),
        ("0,20,40 2 * * *", "Europe/Berlin", (2026, 3, 29), 1, ["29 03:00+0200"]),
        ("30 2 * * *", "America/New_York", (2026, 3, 8), 2, ["08 03:00-0400", "09 02:30-0400"]),
        ("15 2 * * *", "Australia/Lord_Howe", (2026, 10, 3), 2, ["04 02:30+1100", "05 02:15+1100"]),
        ("0 0 * * *", "Africa/Cairo", (2026, 4, 23), 2, ["24 01:00+0300", "25 00:00+0300"]),
        # the hour comes twice: the first one counts
        ("30 2 * * *", "Europe/Berlin", (2026, 10, 24), 3, ["24 02:30+0200", "25 02:30+0200", "26 02:30+0100"]),
        ("30 1 * * *", "America/New_York", (2026, 10, 31), 2, ["31 01:30-0400", "01 01:30-0400"]),
        ("45 1 * * *", "Australia/Lord_Howe", (2026, 4, 4), 2, ["05 01:45+1100", "06 01:45+1030"]),
        # an expression with * in minute or hour goes by what the clock shows, whenever it shows it
        ("0 * * * *", "Europe/Berlin", (2026, 3, 29), 1, None),
        ("*/30 2 * * *", "Europe/Berlin", (2026, 3, 29), 1, []),
        (
            "*/30 2 * * *",
            "Europe/Berlin",
            (2026, 10, 25),
            1,
            ["25 02:30+0200", "25 02:00+0100", "25 02:30+0100"],  # 02:00+0200 is the start itself
        ),
    ],
)
def test_gaps_and_folds(
    expression: str, tz: str, day: tuple[int, int, int], days: int, wanted: list[str] | None
) -> None:
    found = local(cron(expression, tz), day, days)
    if wanted is None:
        assert len(found) == 23  # no hour is lost or duplicated
    else:
        assert found == wanted


@pytest.mark.parametrize("tz", CHANGES)
@pytest.mark.parametrize(
    "expression", ["*/10 * * * *", "0 * * * *", "* 2 * * *", "*/15 1,2,3 * * *", "*/20 0 * * *", "5 */3 * * *"]
)
def test_wildcards_go_by_what_the_clock_shows(tz: str, expression: str) -> None:
    """Each minute of four days around a change, against what a clock shows in it."""
    fields, zone = CronSim(expression, datetime.datetime.now(datetime.UTC)), ZoneInfo(tz)
    for day in CHANGES[tz]:
        start = at(*day)
        minutes = range(start + 60_000, start + 4 * DAY, 60_000)
        shown = {minute: datetime.datetime.fromtimestamp(minute / 1000, zone) for minute in minutes}
        wanted = [m for m, clock in shown.items() if clock.minute in fields.minutes and clock.hour in fields.hours]
        assert between(cron(expression, tz), start, start + 4 * DAY) == wanted


@given(start=st.integers(0, 4_000_000_000_000), every=st.integers(d.MIN_INTERVAL, MAX_INTERVAL))
def test_every_counts_from_the_epoch(start: int, every: int) -> None:
    found = ScheduleDefinition("x", every=every).after(start)
    assert found is not None
    assert found % every == 0
    assert 0 < found - start <= every


@given(
    tz=st.sampled_from(sorted(CHANGES)),
    expression=st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 0 * * 1-5", "15 3 L * *", "*/5 * * * * *"]),
    start=st.integers(at(2026, 1, 1), at(2028, 1, 1)),
)
def test_instants_grow_and_do_not_depend_on_where_one_looks_from(tz: str, expression: str, start: int) -> None:
    definition = cron(expression, tz)
    first = definition.after(start)
    assert first is not None
    assert first > start
    assert definition.after(first - 1) == first
    assert (definition.after(first) or 0) > first


@pytest.mark.parametrize(
    ("text", "found"), [("10m", 600_000), ("1h30m", 5_400_000), ("0.5s", 500), ("250ms", 250), (2, 2000), (0.25, 250)]
)
def test_spans(text: str | float, found: int) -> None:
    assert d.milliseconds(text, "every") == found
    assert d.milliseconds(d.span(found), "every") == found
    assert d.milliseconds(datetime.timedelta(milliseconds=found), "every") == found


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: d.checked_every("10"), "write a number and its unit"),
        (lambda: d.checked_every("50ms"), "from 0.1s to"),
        (lambda: d.checked_every(True), "write a number"),
        (lambda: checked_cron("* * *", "UTC", b""), "wrong number of fields"),
        (lambda: checked_cron("61 * * * *", "UTC", b""), "bad minute"),
        (lambda: checked_cron("0 0 31 2 *", "UTC", b""), "bad day-of-month"),
        (lambda: checked_cron("0 0 */5 2 MON#5", "UTC", b""), "no day matches"),
        (lambda: checked_cron(5, "UTC", b""), "cron is 5"),  # type: ignore[arg-type]
        (lambda: zone_rules("Europe/Atlantis"), "knows no such time zone"),
        (lambda: zone_rules("../../etc/passwd"), "knows no such time zone"),
        (lambda: zone_rules(""), "knows no such time zone"),
    ],
)
def test_what_cannot_be_is_a_sentence(make: object, part: str) -> None:
    with pytest.raises(ScheduleError, match=part):
        make()  # type: ignore[operator]


def test_nicknames_are_written_out() -> None:
    assert cron("@daily").cron == "0 0 * * *"


def test_a_definition_travels() -> None:
    made = ScheduleDefinition(
        "x",
        cron="0 3 * * *",
        tz="Europe/Berlin",
        rules=zone_rules("Europe/Berlin"),
        on=RunsOn.AGENT,
        overlap=OverlapPolicy.QUEUE,
    )
    assert ScheduleDefinition.from_head(made.to_head() | {"later": 1}, made.rules) == made
    with pytest.raises(ValueError, match="without ticks"):
        ScheduleDefinition.from_head(ScheduleDefinition("x", every=5).to_head(), b"")


def test_a_disabled_one_has_no_ticks() -> None:
    assert ScheduleDefinition("x", every=1000, disabled="enabled is false").after(0) is None


def test_the_rules_of_zones_may_come_from_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoneinfo, "TZPATH", ())
    assert zone_rules("Europe/Berlin").startswith(b"TZif")  # RFC 9636, section 3.1
