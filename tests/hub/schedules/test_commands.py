"""What processes and people ask of schedules, and what the hub tells of them."""

from __future__ import annotations

from typing import Any

import pytest

from serve_asgi.hub.core import Member, MemberOrder
from serve_asgi.hub.schedules import scheduler as ticks
from serve_asgi.hub.schedules.definitions import RunsOn, ScheduleDefinition
from serve_asgi.ipc.frames import encode, unpack_value
from serve_asgi.ipc.membership_frames import Role
from tests.hub.schedules.table import BEGIN, Server

JOB = ScheduleDefinition("job", every=10_000)


@pytest.fixture
def server() -> Server:
    return Server()


def ask(server: Server, member: Member, do: str, name: str = "", id: int = 1) -> None:
    server.port.take(member.id)
    server.say(member, "schedule.request", {"id": id, "do": do, "name": name})


def answers(server: Server, member: Member) -> list[tuple[dict[str, Any], Any]]:
    return [(frame.head, unpack_value(frame.body)) for frame in server.port.take(member.id, "schedule.reply")]


def test_a_process_is_answered(server: Server) -> None:
    member, _ = server.switch(JOB)
    ask(server, member, "list", "job")
    ((head, found),) = answers(server, member)
    assert (head["ok"], found[0]["name"]) == (True, "job")
    ask(server, member, "pause", "job")
    ((head, _),) = answers(server, member)
    assert head == {"id": 1, "ok": True, "text": "job is paused"}


@pytest.mark.parametrize("do", ["run", "list", "next"])
def test_before_the_first_switch_there_is_nothing_to_ask_for(server: Server, do: str) -> None:
    starting = server.spawn(JOB, generation=1)
    ask(server, starting, do, "job")
    ((head, _),) = answers(server, starting)
    assert (head["ok"], "when it is ready" in head["text"]) == (False, True)
    assert "when it is ready" in server.ask("run", "job")[0][1]


def test_a_pause_may_come_before_the_first_switch(server: Server) -> None:
    starting = server.spawn(JOB, generation=1)
    ask(server, starting, "pause", "job")
    ((head, _),) = answers(server, starting)
    assert head["ok"]
    server.switch(JOB)
    server.go(20)
    assert server.given == []


def test_who_asks_for_a_run_is_answered_by_a_new_program_too(server: Server) -> None:
    member, _ = server.switch(JOB)
    ask(server, member, "run", "job")
    server.look()
    server.replace()
    server.ran(1)
    ((head, found),) = answers(server, member)
    assert head["ok"]
    assert found[0]["outcome"] == "ok"


def test_a_new_program_answers_nobody_with_the_run_of_another(server: Server) -> None:
    server.switch(JOB, ScheduleDefinition("other", every=10_000))
    gone = server.ask("run", "job")  # a command, whose connection ends with the program
    server.replace()
    answered = server.ask("run", "other")
    server.ran(1)
    assert (gone, answered) == ([], [])
    server.ran(2)
    ((ok, _, (entry,)),) = answered
    assert ok
    assert entry["outcome"] == "ok"


def test_who_has_gone_is_not_answered(server: Server) -> None:
    member, _ = server.switch(JOB, ScheduleDefinition("other", every=10_000))
    ask(server, member, "run", "job")
    server.look()
    server.hub.leave(member.id)
    server.look()
    assert answers(server, member) == []


def test_who_waits_for_the_store_and_goes_is_not_answered() -> None:
    server = Server(stored=True)
    server.hub.store_changed("")
    member, _ = server.switch(JOB)
    ask(server, member, "pause", "job")
    (frame,) = [frame for frame in server.port.to_store if frame.kind == "store.write"]
    server.hub.leave(member.id)
    head = {"id": frame.head["id"], "key": frame.head["key"], "version": 1}
    server.hub.take_from_store(encode("store.written", head, frame.body))
    assert answers(server, member) == []
    assert server.line("job").paused


def test_a_pause_that_cannot_be_written_is_not_in_force() -> None:
    server = Server(stored=True)
    server.hub.store_changed("")
    server.switch(JOB)
    server.hub.store_changed("the disk is full")
    ok, text, _ = server.ask("pause", "job")[0]
    assert not ok
    assert "the disk is full" in text
    assert not server.line("job").paused


def test_a_pause_of_another_server_is_in_force_here() -> None:
    server = Server(stored=True)
    server.hub.store_changed("")
    server.switch(JOB)
    for version, name in ((1, "job"), (2, "job"), (3, "unknown")):
        head = {"key": f"serve:schedule:{name}", "version": version}
        server.hub.take_from_store(encode("store.change", head, b"\x81\xa2by\xa5other"))
    assert server.line("job").paused == {"by": "other"}
    assert [event for event, *_ in server.port.records] == ["schedule_paused"]


def test_what_is_asked_for_while_the_store_is_asked_waits_its_turn() -> None:
    server = Server(stored=True)
    server.hub.store_changed("")
    server.switch(JOB)
    server.go(10)
    server.ask("run", "job")
    grants = [frame for frame in server.port.to_store if frame.kind == "store.grant"]
    assert [frame.head["name"] for frame in grants] == ["job"]
    server.store_says("store.taken", id=grants[0].head["id"], why="granted", text="")
    grants = [frame for frame in server.port.to_store if frame.kind == "store.grant"]
    assert [frame.head["name"] for frame in grants] == ["job", "job\tasked"]


@pytest.mark.parametrize(("refusals", "ahead"), [(0, 0), (1, 1), (2, 2), (6, 32), (7, None)])
def test_a_run_that_is_asked_for_where_the_clock_is_behind(refusals: int, ahead: int | None) -> None:
    """The store wants the instants of a name to grow."""
    server = Server(stored=True)
    server.hub.store_changed("")
    server.switch(JOB)
    server.ask("run", "job")
    for _ in range(refusals):
        asked = server.port.to_store[-1].head
        server.store_says("store.taken", id=asked["id"], why="granted", text="a later one has been granted")
    if ahead is None:
        assert server.given[0][1]["token"] is None
        return
    asked = server.port.to_store[-1].head
    assert asked["tick"] == BEGIN + ahead
    server.store_says("store.granted", id=asked["id"], token=9, renewed_until=server.clock + 30)
    assert (server.given[0][1]["instant"], server.given[0][1]["token"]) == (BEGIN * 1000, 9)


def test_a_lease_is_renewed_or_lost() -> None:
    server = Server(stored=True)
    server.hub.store_changed("")
    server.switch(JOB)
    server.go(10)
    server.store_says("store.granted", id=1, token=42, renewed_until=server.clock + 30)
    server.store_says("store.renewed", name="job", token=42, renewed_until=server.clock + 60)
    server.store_says("store.renewed", name="job", token=41, renewed_until=0.0)  # another one's
    server.go(45)
    assert not server.ticks.runs.active[1].lost
    server.store_says("store.lost", name="job", token=42, text="another server has it")
    assert server.ticks.runs.active[1].lost
    server.store_says("store.granted", id=77, token=1, renewed_until=0.0)  # nobody has asked


def test_without_an_agent_its_ticks_are_missed(server: Server) -> None:
    *_, agent = server.switch(ScheduleDefinition("job", every=60_000, on=RunsOn.AGENT), agent=True)
    server.hub.leave(agent.id)
    server.go(100)
    assert server.history("job") == [("missed", 1)]
    assert "no agent" in server.newest("job").text


def test_all_while_nobody_serves_waits(server: Server) -> None:
    definition = ScheduleDefinition("job", every=60_000, on=RunsOn.ALL)
    (worker,) = server.switch(definition, workers=1)
    server.hub.leave(worker.id)
    server.go(70)
    assert server.given == []
    server.hub.order(server.spawn(definition).id, MemberOrder.SERVE)
    server.look()
    assert len(server.given) == 1


def test_figures_only_grow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticks, "MAX_FORGOTTEN", 1)
    server.switch(JOB, ScheduleDefinition("gone", every=10_000), ScheduleDefinition("too", every=10_000))
    server.go(10)
    for run in (1, 2, 3):
        server.ran(run, "failed" if run == 2 else "ok")
    before = server.hub.metrics()
    assert (before["schedule_runs_total"], before["schedule_failures_total"]) == (3, 1)
    server.switch(JOB)
    assert len(server.ticks.schedules) == 2  # of those that are gone one is remembered
    server.replace()
    assert server.hub.metrics() == before


def test_one_that_breaks_later_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.switch(JOB, ScheduleDefinition("cron", cron="* * * * *"))
    monkeypatch.setattr("serve_asgi.hub.schedules.cron.CronSim", None)
    server.go(100)
    assert "cannot be computed" in server.ticks.commands.report("cron")[0]["disabled"]
    assert [event for event, *_ in server.port.records].count("schedule_refused") == 1
    assert server.ticks.commands.report("cron")[0]["state"] == "disabled"


def test_a_schedule_that_comes_after_the_switch_holds_at_once(server: Server) -> None:
    (member,) = server.switch(JOB, workers=1)
    late = ScheduleDefinition("late", every=10_000, immediate=True)
    server.say(member, "schedule.define", late.to_head())
    server.look()
    assert [head["name"] for _, head in server.given] == ["late"]
    stray = ScheduleDefinition("stray", every=10_000, on=RunsOn.AGENT)
    for _ in range(2):
        server.say(member, "schedule.define", stray.to_head())
    assert [event for event, *_ in server.port.records].count("schedule_unassigned") == 1
    assert "stray" not in server.ticks.schedules
    assert member.role is Role.WORKER


def test_a_later_version_may_say_what_this_one_does_not_know(server: Server) -> None:
    (member,) = server.switch(JOB, workers=1)
    server.say(member, "schedule.define", ScheduleDefinition("new", every=1000).to_head() | {"on": "moon"})
    (text,) = [text for event, text, _ in server.port.records if event == "schedule_refused"]
    assert "'new' of worker 0 of generation 1 is not understood" in text
    server.go(10)
    server.ran(1, "marvellous")
    assert server.history("job") == [("failed", 1)]


def named(function: str, on: RunsOn = RunsOn.ONE, where: str = "") -> ScheduleDefinition:
    return ScheduleDefinition(
        "job", every=10_000, on=on, function=function, where=where or function.split(":")[0] + ".py:1"
    )


@pytest.mark.parametrize(
    ("agents", "workers", "clash"),
    [
        (named("a:job"), named("b:job"), "a:job (a.py:1) of the agent and b:job (b.py:1) of worker 0"),
        (named("a:job", RunsOn.AGENT), named("b:job"), "a:job (a.py:1) of the agent and b:job (b.py:1) of worker 0"),
        (
            named("b:job", RunsOn.AGENT),
            named("b:jobs.<locals>.job", RunsOn.AGENT, "b.py:9"),
            "b:jobs.<locals>.job (b.py:9)",
        ),
        (named("b:job"), named("b:job", where="b.py:9"), ""),  # the file has been edited meanwhile
        (named("b:job"), named("package.b:job", where="b.py:1"), ""),  # it is imported by two names
        (named("b:job"), named("", where="c.py:1"), ""),  # told by an earlier version
    ],
)
def test_two_functions_of_one_name_keep_a_generation_from_serving(
    server: Server, agents: ScheduleDefinition, workers: ScheduleDefinition, clash: str
) -> None:
    server.switch(JOB)
    agent = server.spawn(agents, role=Role.AGENT, generation=2)
    assert server.hub.reason_not_ready(agent.id) == ""
    worker = server.spawn(workers, generation=2)
    for member in (agent, worker):
        text = server.hub.reason_not_ready(member.id)
        assert clash in text
        assert bool(clash) is text.startswith("two schedules have the name 'job': ")
    assert server.hub.reason_not_ready(server.spawn(JOB).id) == ""  # a replacement in the generation that serves


def test_a_name_may_move_with_a_reload_and_a_process_that_is_replaced_may_have_edited_code(server: Server) -> None:
    server.switch(named("a:job"))
    server.switch(named("b:job"))
    late = server.spawn(named("c:job"))
    assert server.hub.reason_not_ready(late.id) == ""
    server.go(10)
    assert len(server.given) == 1


def test_what_a_generation_that_never_served_told_is_forgotten(server: Server) -> None:
    server.switch(JOB)
    new = [server.spawn(named("a:job"), ScheduleDefinition("new", every=1000), generation=2) for _ in range(2)]
    assert server.ask("pause", "new")[0][0]
    for member in new:
        server.hub.leave(member.id)
    assert server.ask("resume", "new") == [(False, "there is no schedule 'new'; there are: job", None)]
