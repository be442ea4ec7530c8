"""What follows from what the watchdog sees, as a table; real loops are blocked in tests/test_blocked.py."""

from __future__ import annotations

import dataclasses
import os
import select
import time

import pytest

from serve_asgi.worker.blocked_loop_detection import TICK, Finding, LoopWatch, WakeTimer, WatchPhase

LIMIT = 1.0
ON_TIME = 0.0


@dataclasses.dataclass
class Case:
    phase: WatchPhase
    seen: dict[str, float | bool]
    said: Finding
    becomes: WatchPhase


AT = 100.0
"""When it is looked; the loop was asked a little before, where it was."""

CASES = {
    "the tick came, and there was nothing else": Case(
        WatchPhase.PARKED, {"turned": AT - 0.5, "idle": True, "quiet": True}, Finding.NOTHING, WatchPhase.PARKED
    ),
    "there was work before the tick": Case(
        WatchPhase.PARKED, {"turned": AT, "idle": True, "quiet": False}, Finding.NOTHING, WatchPhase.LOOKING
    ),
    "there is work": Case(
        WatchPhase.PARKED, {"turned": AT, "idle": False, "quiet": False}, Finding.ASK, WatchPhase.ASKED
    ),
    "the tick is overdue": Case(
        WatchPhase.PARKED,
        {"turned": AT - TICK - LIMIT / 2, "idle": False, "quiet": True},
        Finding.ASK,
        WatchPhase.ASKED,
    ),
    "the tick is overdue, but the loop waits for events": Case(
        WatchPhase.PARKED,
        {"turned": AT - TICK - LIMIT / 2, "idle": True, "quiet": True},
        Finding.NOTHING,
        WatchPhase.LOOKING,
    ),
    "the loop waits for events": Case(
        WatchPhase.LOOKING, {"turned": AT - 0.5, "idle": True, "quiet": False}, Finding.NOTHING, WatchPhase.LOOKING
    ),
    "nothing happens any more": Case(
        WatchPhase.LOOKING, {"turned": AT - 0.5, "idle": True, "quiet": True}, Finding.NOTHING, WatchPhase.PARKED
    ),
    "the loop is busy": Case(
        WatchPhase.LOOKING, {"turned": AT, "idle": False, "quiet": False}, Finding.ASK, WatchPhase.ASKED
    ),
    "it has not answered yet": Case(
        WatchPhase.ASKED, {"turned": AT - 1.5, "idle": False, "quiet": False}, Finding.NOTHING, WatchPhase.ASKED
    ),
    "it has answered": Case(
        WatchPhase.ASKED, {"turned": AT - 0.1, "idle": True, "quiet": False}, Finding.NOTHING, WatchPhase.LOOKING
    ),
    "it has answered and is busy again": Case(
        WatchPhase.ASKED, {"turned": AT - 0.1, "idle": False, "quiet": False}, Finding.ASK, WatchPhase.ASKED
    ),
    "it does not answer": Case(
        WatchPhase.ASKED,
        {"turned": AT - 2, "idle": False, "quiet": False, "asked": AT - LIMIT},
        Finding.BLOCKED,
        WatchPhase.BLOCKED,
    ),
    "it goes on not answering": Case(
        WatchPhase.BLOCKED,
        {"turned": AT - 9, "idle": False, "quiet": False, "late": 5.0},
        Finding.NOTHING,
        WatchPhase.BLOCKED,
    ),
    "it answers at last": Case(
        WatchPhase.BLOCKED, {"turned": AT, "idle": True, "quiet": False}, Finding.TURNS, WatchPhase.LOOKING
    ),
    "nothing of the process ran while the loop had work": Case(
        WatchPhase.LOOKING,
        {"turned": AT - 6, "idle": False, "quiet": False, "late": 5.0},
        Finding.BLOCKED,
        WatchPhase.BLOCKED,
    ),
    "nothing of the process ran in silence": Case(
        WatchPhase.PARKED,
        {"turned": AT - 6.5, "idle": True, "quiet": True, "late": 5.0},
        Finding.BLOCKED,
        WatchPhase.BLOCKED,
    ),
    "the look was late, but the loop has turned meanwhile": Case(
        WatchPhase.LOOKING,
        {"turned": AT - 1, "idle": True, "quiet": False, "late": 5.0},
        Finding.NOTHING,
        WatchPhase.LOOKING,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_look_finds_out(name: str) -> None:
    case = CASES[name]
    watch = LoopWatch(LIMIT, case.phase, asked=float(case.seen.get("asked", AT - 0.5)))
    said = watch.look(
        AT,
        float(case.seen["turned"]),
        bool(case.seen["idle"]),
        bool(case.seen["quiet"]),
        float(case.seen.get("late", ON_TIME)),
    )
    assert (said, watch.phase) == (case.said, case.becomes)


def test_how_long_it_was_blocked_is_told_from_the_question_on() -> None:
    watch = LoopWatch(LIMIT, WatchPhase.LOOKING)
    assert watch.look(100.0, 99.5, False, False, ON_TIME) is Finding.ASK
    assert watch.look(101.0, 99.5, False, False, ON_TIME) is Finding.BLOCKED
    assert watch.look(105.0, 104.5, True, False, ON_TIME) is Finding.TURNS
    assert watch.lasted == 4.5


def test_a_late_look_counts_from_when_it_was_due() -> None:
    watch = LoopWatch(LIMIT, WatchPhase.LOOKING)
    watch.look(100.0, 90.0, False, False, late=3.0)
    assert watch.asked == 97.0


def test_the_timer_wakes_at_its_last_time_only() -> None:
    timer = WakeTimer()
    assert timer.fd is not None
    timer.set(time.monotonic() + 0.01)
    timer.set(time.monotonic() + 100.0)
    assert select.select([timer.fd], [], [], 0.1)[0] == []
    timer.set(time.monotonic() + 0.01)
    assert select.select([timer.fd], [], [], 30.0)[0] == [timer.fd]
    os.close(timer.fd)
