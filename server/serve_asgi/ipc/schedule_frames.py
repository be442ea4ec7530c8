"""Frames about schedules between a process and its hub: definitions, runs and requests.

member -> hub
    schedule.define  {name, …} body=rules of the time zone     it has this function (`ScheduleDefinition.to_head`)
    schedule.ended     {run, outcome, seconds, text} body=traceback   a run has ended
    schedule.overdue {run}                                 its time is over, and it continues
    schedule.request     {id, do, name}                        pause, resume, run, list, next -> reply
hub -> member
    schedule.run      {run, name, instant, attempt, kind, token}   run it
    schedule.withdraw {run}                                it is paused: do not start it
    schedule.lost     {run}                                its lease is lost
    schedule.reply   {id, ok, text} body
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from serve_asgi.ipc.untrusted_input import Count, Seconds, Sentence, Short

MAX_INTERVAL: Final = 366 * 86_400_000
"""Most milliseconds of `every`."""
Span = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTERVAL)]
"""Milliseconds."""


class RunKind(enum.Enum):
    """Why a run begins."""

    TICK = "tick"
    IMMEDIATE = "immediate"
    ASKED = "asked"  # `serve schedule run`, `schedule.run`


class RunOutcome(enum.Enum):
    """The outcome of a tick. From SKIPPED on the run did not begin."""

    RUNNING = "running"
    OK = "ok"
    FAILED = "failed"  # the function raised
    TIMEOUT = "timeout"
    CUT = "cut"  # its process retired, and it had not ended at the graceful timeout
    DIED = "died"  # its process died
    SKIPPED = "skipped"  # overlap
    PAUSED = "paused"
    MISSED = "missed"  # too late: the server was stopped, or had no process to run it
    REMOVED = "removed"  # the new code has no such schedule
    ELSEWHERE = "elsewhere"  # another server with the same state runs it


def reported_outcome(word: str) -> RunOutcome:
    """The outcome that a process reports; it may be of a later version."""
    return _REPORTED.get(word, RunOutcome.FAILED)


_REPORTED: Final = {
    each.value: each
    for each in (RunOutcome.OK, RunOutcome.FAILED, RunOutcome.TIMEOUT, RunOutcome.CUT, RunOutcome.PAUSED)
}
"""The outcomes that a process may report."""


class ScheduleDefineFrame(msgspec.Struct):
    """`schedule.define`; the body has the rules of the time zone."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    on: Short
    overlap: Short
    cron: Annotated[str, msgspec.Meta(max_length=1_000)] = ""
    every: Span = 0
    tz: Short = "UTC"
    immediate: bool = False
    timeout: Span = 0
    jitter: Span = 0
    retry: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0
    disabled: Annotated[str, msgspec.Meta(max_length=1_000)] = ""
    where: Annotated[str, msgspec.Meta(max_length=1_000)] = ""
    function: Annotated[str, msgspec.Meta(max_length=1_000)] = ""


class RunEndedFrame(msgspec.Struct):
    """`schedule.ended`; the body is a traceback."""

    run: Count
    outcome: Short
    seconds: Seconds
    text: Sentence


class RunOverdueFrame(msgspec.Struct):
    """`schedule.overdue`."""

    run: Count


class ScheduleRequestFrame(msgspec.Struct):
    """`schedule.request`."""

    id: Count
    do: Short
    name: Sentence


SCHEDULE_FRAMES: Final[Mapping[str, type]] = {
    "schedule.define": ScheduleDefineFrame,
    "schedule.ended": RunEndedFrame,
    "schedule.overdue": RunOverdueFrame,
    "schedule.request": ScheduleRequestFrame,
}
"""The kinds that a member may send, and the struct of each head."""
