"""Slow clients disturb nobody: `python -m loadtest.slow_clients` in short, and the long one's arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.slow_clients import IDLE, LIMIT, Outcome, Round, Settings, document, plot, run, table
from loadtest.slow_holder import OF_TLS, frame

ROUNDS = 2
TRIES = 5


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kinds", "tls"), [(Settings().kinds, False), (tuple(OF_TLS), True)])
def test_hundreds_of_slow_clients_of_any_kind_disturb_nobody(kinds: tuple[str, ...], tls: bool) -> None:
    """A kind is held to idle connections of the same run, and to the calmest rounds of both: what else runs on the
    machine only adds. Kinds that it added to come again.
    """
    slow = kinds
    for _ in range(TRIES):
        outcome = run(Settings(count=200, rate=300.0, rounds=ROUNDS, seconds=0.7, kinds=slow, tls=tls))
        assert set(outcome.kinds()) == {IDLE, *slow}
        assert not any(found.ended for found in outcome.rounds), "a limit was reached while it was measured"
        assert outcome.lost == 0
        slow = tuple(kind for kind in slow if outcome.ratio(kind, min) > LIMIT)
        if not slow:
            break
    assert not slow, table(outcome)


@pytest.fixture
def outcome() -> Outcome:
    costs = {IDLE: (1.0, 9.0, 2.0), "head": (3.0, 4.0, 50.0), "body": (4.5, 5.0, 4.1)}
    rounds = [Round(kind=kind, p50=0.5, p99=p99, ended=7) for kind, found in costs.items() for p99 in found]
    return Outcome(Settings(count=10), rounds)


def test_medians_are_compared_with_those_of_idle_connections(outcome: Outcome) -> None:
    assert outcome.ratio("head") == 2.0
    assert outcome.ratio("body") == 2.25
    assert outcome.ratio("body", min) == 4.1
    assert [line.split()[-2:] for line in table(outcome).splitlines()[4:7]] == [
        ["1.00", "7"],
        ["2.00", "7"],
        ["2.25", "7"],
    ]


def test_more_than_twice_and_lost_requests_are_bad(outcome: Outcome) -> None:
    assert not outcome.good()
    outcome.rounds = [found for found in outcome.rounds if found.kind != "body"]
    assert outcome.good()
    outcome.lost = 1
    assert not outcome.good()


def test_it_is_written_and_drawn(outcome: Outcome, tmp_path: Path) -> None:
    assert len(json.loads(document(outcome))["rounds"]) == 9
    pytest.importorskip("matplotlib")
    plot(outcome, tmp_path / "slow.png")
    assert (tmp_path / "slow.png").read_bytes().startswith(b"\x89PNG")


def test_frames_are_masked_text() -> None:
    data = frame(b"0 x")
    assert (data[0], data[1], len(data)) == (0x81, 0x83, 9)
    assert bytes(byte ^ data[2 + i % 4] for i, byte in enumerate(data[6:])) == b"0 x"
