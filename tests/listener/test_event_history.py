"""What has happened is told once, to all, in words that an operator can use."""

from __future__ import annotations

import logging

import pytest

from serve_asgi.listener.event_history import EventRecorder, Record
from serve_asgi.supervisor import actions


def test_all_are_told_the_same_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """The number of a process within its listener means nothing to anybody else; its PID does, while it has one."""
    recorder = EventRecorder({7: 4711}.get)
    told: list[tuple[str, Record]] = []
    recorder.recipients += [
        lambda record: told.append(("first", record)),
        lambda record: told.append(("second", record)),
    ]
    with caplog.at_level(logging.INFO, "serve"):
        for worker in (7, 8):
            recorder.record(
                actions.LogEvent(logging.WARNING, "worker_killed", "it is killed", "", {"worker": worker, "slot": 0})
            )
    assert [who for who, _ in told] == ["first", "second"] * 2
    assert told[0][1] is told[1][1]
    records = [record for who, record in told if who == "first"]
    assert [record.get("pid") for record in records] == [4711, None]
    for record in records:
        assert "worker" not in record
        assert (record["level"], record["event"], record["text"]) == ("warning", "worker_killed", "it is killed")
    assert caplog.messages == ["it is killed"] * 2
