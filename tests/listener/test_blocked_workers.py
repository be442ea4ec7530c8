"""Who is blamed for silence, and who is not: the decisions alone; real workers are blocked in tests/test_blocked.py."""

from __future__ import annotations

from serve_asgi.listener.blocked_workers import BEAT, SilenceDetector

PERIOD = 1.0
TIMEOUT = 10.0


def rounds(silence: SilenceDetector, start: float, end: float, heard: dict[int, float]) -> list[tuple[float, int]]:
    """Look once per period; who was found blocked, and when."""
    found = []
    now = start
    while now <= end:
        found += [(now, pid) for pid in silence.look(now, PERIOD, TIMEOUT, heard)]
        now += PERIOD
    return found


def test_a_worker_that_has_been_silent_for_the_timeout_is_found_once() -> None:
    silence = SilenceDetector()
    assert rounds(silence, 100.0, 200.0, {1: 104.0}) == [(104.0 + TIMEOUT + BEAT, 1)]


def test_one_that_beats_is_never_found() -> None:
    silence = SilenceDetector()
    for second in range(100, 200):
        assert silence.look(second, PERIOD, TIMEOUT, {1: second - 0.5}) == []


def test_each_is_judged_by_itself() -> None:
    silence = SilenceDetector()
    found = rounds(silence, 100.0, 120.0, {1: 100.0, 2: 105.0, 3: 120.0})
    assert found == [(111.0, 1), (116.0, 2)]


def test_what_stopped_the_listener_as_well_counts_for_nothing() -> None:
    """A suspended machine, a stopped control group: the listener's own look came late."""
    silence = SilenceDetector()
    assert rounds(silence, 100.0, 105.0, {1: 104.0}) == []
    assert rounds(silence, 1000.0, 1010.0, {1: 104.0}) == []  # it has had no chance to beat before
    assert rounds(silence, 1011.0, 1012.0, {1: 104.0}) == [(1011.0, 1)]  # now it had


def test_a_new_process_of_the_same_pid_is_judged_anew() -> None:
    silence = SilenceDetector()
    assert rounds(silence, 100.0, 111.0, {1: 100.0}) == [(111.0, 1)]
    assert silence.look(112.0, PERIOD, TIMEOUT, {}) == []
    assert rounds(silence, 113.0, 125.0, {1: 113.0}) == [(124.0, 1)]


def test_one_that_turned_again_may_be_found_again() -> None:
    silence = SilenceDetector()
    assert rounds(silence, 100.0, 111.0, {1: 100.0}) == [(111.0, 1)]
    silence.forget(1)
    assert rounds(silence, 112.0, 130.0, {1: 112.0}) == [(123.0, 1)]
