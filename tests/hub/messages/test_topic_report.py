"""What `serve messages` shows: topics, who handles them, and how much waits where."""

from __future__ import annotations

from serve_asgi.hub.messages import topic_report
from serve_asgi.hub.messages.topic_report import report
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.message_frames import MessageKind
from tests.hub.messages.table import AGENT, Table


def test_topics_with_their_consumers_and_what_waits() -> None:
    table = Table(agent=True)
    table.join(1, 0)
    table.join(2, 1)
    table.up(1, work=1, news=4)
    table.up(2, work=1)
    table.serve(1)
    table.serve(2)
    for _ in range(5):
        table.send(1, MessageKind.ANY_WORKER, "work")
    table.send(1, MessageKind.BROADCAST, "news")
    table.send(1, MessageKind.DIRECT, "hello", slot=-1)  # the agent will be there, and is not yet
    found = report(table.part)
    work, hello, news = (
        next((each for each in found["topics"] if each["topic"] == name), None) for name in ("work", "hello", "news")
    )
    assert found["topics"][0] is work
    assert work is not None
    assert news is not None
    assert hello is None  # nobody handles it
    assert (work["subscribers"], work["waiting"], work["in_flight"], work["delivered"]) == (2, 3, 2, 2)
    assert [(each["slot"], each["in_flight"], each["concurrency"]) for each in work["consumers"]] == [
        (0, 1, 1),
        (1, 1, 1),
    ]
    assert (news["subscribers"], news["waiting"], news["in_flight"]) == (1, 0, 1)
    assert found["slots"] == [{"slot": "agent", "waiting": 1}]
    assert found["waiting"] == 4
    assert found["counts"]["accepted"] == 7


def test_one_topic_and_bounds(monkeypatch: object) -> None:
    table = Table()
    table.join(AGENT, -1, Role.AGENT)
    table.up(AGENT, **{f"t{number}": 1 for number in range(20)})
    (only,) = report(table.part, "t7")["topics"]
    assert only["topic"] == "t7"
    assert [each["slot"] for each in only["consumers"]] == ["agent"]
    assert report(table.part, "unknown")["topics"] == []
    some = report(table.part, most=3)
    assert ([each["topic"] for each in some["topics"]], some["total"]) == (["t0", "t1", "t10"], 20)
    for id in range(1, topic_report.MOST_CONSUMERS + 5):
        table.join(id, id)
        table.up(id, t7=1)
    (only,) = report(table.part, "t7")["topics"]
    assert only["subscribers"] == topic_report.MOST_CONSUMERS + 5
    assert len(only["consumers"]) == topic_report.MOST_CONSUMERS
