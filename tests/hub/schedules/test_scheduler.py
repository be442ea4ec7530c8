"""Who runs which tick, and what becomes of those that nobody runs: without processes, with the test's own clocks."""

from __future__ import annotations

from typing import Any

import pytest

from serve_asgi.hub.core import MemberOrder
from serve_asgi.hub.schedules.definitions import OverlapPolicy, RunsOn, ScheduleDefinition
from serve_asgi.hub.schedules.missed_ticks import MAX_COUNTED
from serve_asgi.hub.schedules.schedule_state import HISTORY_LENGTH, MAX_QUEUED_TICKS
from serve_asgi.ipc.frames import encode, pack_value, unpack_value
from serve_asgi.ipc.membership_frames import Role
from tests.hub.schedules.table import BEGIN, Server


def every(seconds: float = 10, name: str = "job", **more: Any) -> ScheduleDefinition:
    return ScheduleDefinition(name, every=int(seconds * 1000), **more)


@pytest.fixture
def server() -> Server:
    return Server()


def instants(given: list[tuple[int, dict[str, Any]]]) -> list[float]:
    """Of runs, in seconds after the test began."""
    return [head["instant"] / 1000 - BEGIN for _, head in given]


def test_each_tick_goes_to_one_worker_and_they_take_turns(server: Server) -> None:
    first, second = server.switch(every(10))
    for _ in range(4):
        server.go(10)
        server.ran(server.given[-1][1]["run"])
    assert instants(server.given) == [10, 20, 30, 40]
    assert [member for member, _ in server.given] == [first.id, second.id] * 2
    assert server.history("job") == [("ok", 1)] * 4


def test_who_has_the_least_in_hand_gets_the_next(server: Server) -> None:
    busy, idle = server.switch(every(10, "long"), every(60, "short"))
    server.go(10)
    assert [member for member, _ in server.given] == [busy.id]
    server.go(50)
    assert server.given[-1][0] == idle.id


def test_all_means_each_worker_that_serves(server: Server) -> None:
    workers = server.switch(every(10, on=RunsOn.ALL), workers=3)
    starting = server.spawn(every(10, on=RunsOn.ALL), slot=3)
    server.go(10)
    assert sorted(member for member, _ in server.given) == [worker.id for worker in workers]
    assert starting.id not in dict(server.given)


def test_the_overlap_of_all_is_each_slots_own(server: Server) -> None:
    slow, quick = server.switch(every(10, on=RunsOn.ALL))
    server.go(10)
    server.ran(next(head["run"] for member, head in server.given if member == quick.id))
    server.go(10)
    assert [member for member, _ in server.given] == [slow.id, quick.id, quick.id]


def test_the_agent_runs_what_is_for_it(server: Server) -> None:
    *_, agent = server.switch(every(10, on=RunsOn.AGENT), agent=True)
    server.go(10)
    assert [member for member, _ in server.given] == [agent.id]


@pytest.mark.parametrize(
    ("on", "agent", "part"), [(RunsOn.AGENT, False, "there is none"), (RunsOn.AGENT, True, "does not import it")]
)
def test_one_that_nobody_could_run_is_told(server: Server, on: RunsOn, agent: bool, part: str) -> None:
    if agent:
        server.spawn(role=Role.AGENT, generation=1)
    server.switch(every(10, on=on))
    (text,) = [text for event, text, _ in server.port.records if event == "schedule_unassigned"]
    assert part in text


def test_one_that_only_the_agent_has_is_told(server: Server) -> None:
    server.spawn(every(10), role=Role.AGENT, generation=1)
    server.switch()
    assert [event for event, *_ in server.port.records] == ["schedule_unassigned"]


def test_two_of_one_name_in_workers_and_agent_are_told(server: Server) -> None:
    server.spawn(every(10, on=RunsOn.AGENT, where="jobs.py:1"), role=Role.AGENT, generation=1)
    server.switch(every(10, where="app.py:7"))
    (text,) = [text for event, text, _ in server.port.records if event == "schedule_refused"]
    assert "jobs.py:1" in text
    assert "app.py:7" in text


# ---- overlap


def test_skip(server: Server) -> None:
    server.switch(every(10))
    server.go(45)
    assert instants(server.given) == [10]
    server.ran(1)
    server.go(10)
    assert instants(server.given) == [10, 50]
    assert server.history("job") == [("ok", 1), ("skipped", 3), ("running", 1)]
    assert [event for event, *_ in server.port.records] == ["schedule_skipped"] * 3 + ["schedule_finished"]


def test_queue(server: Server) -> None:
    server.switch(every(10, overlap=OverlapPolicy.QUEUE))
    server.go(10 * (MAX_QUEUED_TICKS + 3))
    assert instants(server.given) == [10]
    assert server.history("job") == [("running", 1), ("skipped", 2)]
    for run in range(1, MAX_QUEUED_TICKS + 2):
        server.ran(run)
    assert instants(server.given) == [10.0 * n for n in range(1, MAX_QUEUED_TICKS + 2)]  # in order, none twice


def test_allow(server: Server) -> None:
    server.switch(every(10, overlap=OverlapPolicy.ALLOW))
    server.go(30)
    assert instants(server.given) == [10, 20, 30]


# ---- reloads, deaths


def test_from_the_switch_on_the_new_definitions_hold(server: Server) -> None:
    server.switch(every(10), every(10, "gone"))
    server.go(5)
    server.switch(every(7), every(10, "new"))
    server.go(10)
    left = BEGIN % 7
    assert [(head["name"], head["instant"] / 1000 - BEGIN) for _, head in server.given] == [
        ("job", 7 - left if 7 - left > 5 else 14 - left),
        ("new", 10),
    ]
    assert server.ask("run", "gone")[0][0] is False


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_a_tick_at_the_switch_runs_once(server: Server, late: float) -> None:
    """Whether the switch comes a moment before the hub has looked at the clock, or after."""
    server.switch(every(10))
    server.go(9.999)
    server.shift(0.001 + late)
    new = server.switch(every(10))
    server.go(9)
    assert instants(server.given) == [10]
    assert server.given[0][0] in [member.id for member in new]


@pytest.mark.parametrize("before", range(1, 12))
def test_a_tick_that_comes_due_between_two_looks_at_the_clock_is_not_lost(server: Server, before: int) -> None:
    """Each look takes a millisecond, and the tick comes due during the switch."""
    both = every(10), every(10, "other")
    server.switch(*both)
    server.go(5)
    server.shift(5 - before / 1000)

    def wall() -> float:
        server.wall += 0.001
        return server.wall

    server.hub.wall = wall
    server.switch(*both)
    server.hub.wall = lambda: server.wall
    server.go(1)
    assert sorted(head["name"] for _, head in server.given) == ["job", "other"]


def test_a_generation_that_never_serves_changes_nothing(server: Server) -> None:
    (worker,) = server.switch(every(10), workers=1)
    failed = server.spawn(every(3), slot=0, generation=2)
    server.go(10)
    server.hub.leave(failed.id)
    server.go(10)
    assert instants(server.given) == [10]
    assert server.history("job") == [("running", 1), ("skipped", 1)]
    assert server.given[0][0] == worker.id


def test_a_run_in_progress_outlives_the_switch(server: Server) -> None:
    (old,) = server.switch(every(10), workers=1)
    server.go(10)
    server.switch(every(10), workers=1)
    server.go(10)
    assert len(server.given) == 1  # the old worker still runs it: overlap="skip"
    server.ran(1)
    server.hub.leave(old.id)
    server.go(10)
    assert server.history("job") == [("ok", 1), ("skipped", 1), ("running", 1)]


@pytest.mark.parametrize(
    ("retiring", "killed", "outcome", "event"),
    [
        (False, False, "died", "schedule_aborted"),
        (False, True, "died", "schedule_aborted"),  # it was blocked
        (True, False, "died", "schedule_aborted"),
        (True, True, "cut", "schedule_cut"),
    ],
)
@pytest.mark.parametrize("retry", [0, 1])
def test_a_run_whose_process_ends_is_run_again_only_with_retry(
    server: Server, retiring: bool, killed: bool, outcome: str, event: str, retry: int
) -> None:
    server.switch(every(10, retry=retry))
    server.go(10)
    member = server.given[0][0]
    if retiring:
        server.hub.order(member, MemberOrder.RETIRE)
    server.hub.members[member].killed = killed
    server.hub.leave(member)
    server.look()
    assert server.port.records[-1][0] == event
    if not retry:
        assert server.history("job") == [(outcome, 1)]
        assert len(server.given) == 1
        return
    other, again = server.given[1]
    assert other != member
    assert (again["instant"], again["attempt"]) == (server.given[0][1]["instant"], 2)
    server.hub.leave(other)
    server.look()
    assert len(server.given) == 2
    assert server.history("job") == [(outcome, 1), ("died", 1)]


def test_a_run_that_fails_is_not_run_again(server: Server) -> None:
    server.switch(every(10, retry=3))
    server.go(10)
    server.ran(1, "failed")
    server.go(5)
    assert len(server.given) == 1
    assert server.port.records[-1][0] == "schedule_failed"


def test_a_tick_waits_for_a_worker_and_then_is_missed(server: Server) -> None:
    (worker,) = server.switch(every(10), workers=1)
    server.hub.leave(worker.id)
    server.go(35)
    assert server.history("job") == [("missed", 2)]
    server.hub.order(server.spawn(every(10)).id, MemberOrder.SERVE)
    server.look()
    assert instants(server.given) == [30]  # it is late, but not too late; those before it were overtaken
    server.ran(1)
    (worker,) = [m for m in server.hub.members.values() if m.order is MemberOrder.SERVE]
    server.hub.leave(worker.id)
    server.go(40)
    assert server.history("job")[-1] == ("missed", 3)
    assert "no worker" in next(text for event, text, _ in server.port.records if event == "schedule_missed")


def test_what_held_ticks_up_ends_in_no_burst() -> None:
    server = Server(stored=True)
    server.hub.store_changed("")
    server.switch(every(1, overlap=OverlapPolicy.ALLOW))
    server.hub.store_changed("the store is away")
    server.go(20.5)
    server.hub.store_changed("")
    server.look()
    (grant,) = [frame.head for frame in server.port.to_store if frame.kind == "store.grant"]
    assert grant["tick"] == BEGIN + 20
    assert server.history("job") == [("missed", 19)]


def test_a_worker_without_room_is_passed_over(server: Server) -> None:
    first, second = server.switch(every(10))
    server.port.without_room = {first.id, second.id}
    server.go(10)
    assert server.given == []
    server.port.without_room = {first.id}
    server.hub.room_available(second.id)
    server.look()
    assert [member for member, _ in server.given] == [second.id]


def test_what_a_stranger_says_of_a_run_is_passed_over(server: Server) -> None:
    first, second = server.switch(every(10))
    server.go(10)
    other = second if server.given[0][0] == first.id else first
    server.say(other, "schedule.ended", {"run": 1, "outcome": "ok", "text": "", "seconds": 0.1})
    server.say(other, "schedule.ended", {"run": 77, "outcome": "ok", "text": "", "seconds": 0.1})
    assert server.history("job") == [("running", 1)]


# ---- time


def test_what_came_due_while_the_server_stood_still_is_missed_but_for_the_newest(server: Server) -> None:
    server.switch(every(10))
    server.shift(65)
    server.look()
    assert instants(server.given) == [60]
    assert server.history("job") == [("missed", 5), ("running", 1)]
    event, _, about = server.port.records[0]
    assert (event, about["count"], about["first"] - BEGIN, about["last"] - BEGIN) == ("schedule_missed", 5, 10, 50)


def test_a_tick_that_is_too_late_is_missed(server: Server) -> None:
    server.switch(ScheduleDefinition("job", cron="0 * * * *"))
    server.shift(3600 - BEGIN % 3600 + 31)
    server.look()
    assert server.given == []
    assert server.history("job") == [("missed", 1)]


def test_years_that_the_clock_jumps_cost_no_time(server: Server) -> None:
    server.switch(every(0.1), ScheduleDefinition("cron", cron="* * * * * *"))
    server.wall += 50 * 366 * 86400
    server.go(1)
    assert {head["name"] for _, head in server.given} == {"job", "cron"}
    assert server.line("cron").counts["missed"] >= MAX_COUNTED - 1
    assert server.line("job").counts["missed"] > 50 * 366 * 863_000


def test_a_clock_that_is_set_back_doubles_nothing(server: Server) -> None:
    server.switch(every(10))
    server.go(20)
    server.ran(1)
    server.wall -= 15
    server.go(14)
    assert instants(server.given) == [10]
    assert "schedule_clock_set_back" in [event for event, *_ in server.port.records]
    server.go(12)
    assert instants(server.given) == [10, 30]


def test_what_is_asked_for_or_run_again_waits_for_no_clock(server: Server) -> None:
    (worker,) = server.switch(every(10, retry=1), workers=1)
    server.go(10)
    server.hub.leave(worker.id)
    server.ask("run", "job")
    server.wall -= 3600
    server.hub.order(server.spawn(every(10, retry=1)).id, MemberOrder.SERVE)
    server.go(1)
    assert [head["attempt"] for _, head in server.given] == [1, 2]
    server.ran(2)
    assert server.ask("run", "job") == []
    assert [head["kind"] for _, head in server.given] == ["tick", "tick", "asked"]


def test_jitter_is_within_its_bound_and_in_order(server: Server) -> None:
    server.switch(every(10, jitter=8000, overlap=OverlapPolicy.ALLOW))
    began = []
    for _ in range(3000):
        server.go(0.1)
        began += [server.wall - head["instant"] / 1000 for _, head in server.take_given()]
    assert len(began) in (29, 30)
    assert all(0 <= delay <= 8.2 for delay in began)
    assert max(began) - min(began) > 2
    assert instants(server.given) == [10.0 * n for n in range(1, len(began) + 1)]


def test_immediate_is_once_per_server_start(server: Server) -> None:
    server.switch(every(10, immediate=True))
    assert [head["kind"] for _, head in server.given] == ["immediate"]
    server.ran(1)
    server.switch(every(10, immediate=True), every(10, "new", immediate=True))
    server.replace()
    server.look()
    assert len(server.given) == 1


def test_the_history_is_bounded(server: Server) -> None:
    server.switch(every(1))
    for run in range(1, HISTORY_LENGTH + 20):
        server.go(1)
        server.ran(run)
    assert len(server.line("job").history) == HISTORY_LENGTH
    assert server.line("job").counts["ok"] == HISTORY_LENGTH + 19


# ---- pauses, and what is asked


def test_a_pause_is_in_force_until_resume_over_reloads(server: Server) -> None:
    server.switch(every(10))
    assert server.ask("pause", "job") == [(True, "job is paused", None)]
    server.go(25)
    server.switch(every(10))
    server.go(25)
    assert server.given == []
    assert server.history("job") == [("paused", 5)]
    assert server.ticks.commands.report("job")[0]["paused"]["by"] == "a test"
    assert "already" in server.ask("pause", "job")[0][1]
    server.ask("resume", "job")
    server.go(10)
    assert instants(server.given) == [60]
    assert [e for e, *_ in server.port.records if "paused" in e or "resumed" in e] == [
        "schedule_paused",
        "schedule_resumed",
    ]


def test_what_passed_by_during_a_pause_is_told_at_its_end(server: Server) -> None:
    server.switch(every(10))
    server.ask("pause", "job")
    server.go(25)
    server.ask("resume", "job")
    assert server.port.records[-1][1:] == (
        "the schedule 'job' is resumed; 2 ticks passed by without a run",
        {"name": "job", "ticks": 2},
    )
    server.ask("pause", "job")
    server.go(10)
    server.replace()
    server.ask("resume", "job")
    assert "resumed; 1 tick passed by" in server.port.records[-1][1]
    server.ask("pause", "job")
    server.ask("resume", "job")
    assert server.port.records[-1][1] == "the schedule 'job' is resumed; no tick passed by"


def test_a_run_that_has_not_begun_is_withdrawn_by_a_pause(server: Server) -> None:
    (member,) = server.switch(every(10), workers=1)
    server.go(10)
    (run,) = [head["run"] for _, head in server.given]
    server.ask("pause", "job")
    withdrawn = [frame.head for frame in server.port.sent[member.id] if frame.kind == "schedule.withdraw"]
    assert withdrawn == [{"run": run}]
    server.ran(run, "paused")
    server.go(10)
    assert server.history("job") == [("paused", 2)]
    assert server.line("job").counts == {"paused": 2}
    assert server.newest("job").began == 0
    assert "schedule_finished" not in [event for event, *_ in server.port.records]


def test_run_now_also_while_it_is_paused(server: Server) -> None:
    server.switch(every(10))
    server.ask("pause", "job")
    answer = server.ask("run", "job")
    assert answer == []
    server.ran(1)
    (ok, text, entries) = answer[0]
    assert ok
    assert "ok in worker 0 of generation 1" in text
    assert [entry["kind"] for entry in entries] == ["asked"]


def test_run_now_answers_when_all_have_ended(server: Server) -> None:
    server.switch(every(10, on=RunsOn.ALL))
    answer = server.ask("run", "job")
    server.ran(1)
    assert answer == []
    server.ran(2, "failed")
    assert answer[0][0] is False
    assert len(answer[0][2]) == 2


def test_run_now_says_if_one_runs_already(server: Server) -> None:
    server.switch(every(10))
    server.go(10)
    ok, text, _ = server.ask("run", "job")[0]
    assert not ok
    assert "had not ended" in text


@pytest.mark.parametrize(("name", "part"), [("jbo", "did you mean 'job'"), ("zzz", "there are: job")])
def test_who_names_none_is_told_which_there_are(server: Server, name: str, part: str) -> None:
    server.switch(every(10))
    assert part in server.ask("pause", name)[0][1]


def test_a_disabled_one_has_no_ticks_and_can_be_run(server: Server) -> None:
    server.switch(every(10, disabled="enabled is false", immediate=True))
    server.go(20)
    assert server.given == []
    server.ask("run", "job")
    assert len(server.given) == 1


# ---- a new program of the listener


def test_a_new_program_goes_on_where_the_old_one_was(server: Server) -> None:
    server.switch(every(10), every(10, "queued", overlap=OverlapPolicy.QUEUE), every(10, "paused"))
    server.ask("pause", "paused")
    server.go(20)
    server.replace()
    server.go(4)
    assert [(head["name"], head["instant"] / 1000 - BEGIN) for _, head in server.given] == [("job", 10), ("queued", 10)]
    server.ran(2)
    assert server.given[-1][1]["instant"] / 1000 - BEGIN == 20
    server.shift(17)
    server.look()
    assert server.history("job") == [("skipped", 1), ("running", 1), ("missed", 1), ("skipped", 1)]
    assert server.history("paused") == [("paused", 4)]


# ---- with a store


@pytest.fixture
def stored() -> Server:
    server = Server(stored=True)
    server.hub.store_changed("")
    return server


def test_the_store_is_asked_for_each_tick(stored: Server) -> None:
    stored.switch(every(10))
    stored.go(10)
    assert stored.given == []
    (frame,) = [frame for frame in stored.port.to_store if frame.kind == "store.grant"]
    assert (frame.head["name"], frame.head["tick"], frame.head["exclusive"]) == ("job", BEGIN + 10, True)
    stored.store_says("store.granted", id=frame.head["id"], token=42, renewed_until=stored.clock + 30)
    assert stored.given[0][1]["token"] == 42
    stored.go(15)
    assert "store.renew" in [frame.kind for frame in stored.port.to_store]
    stored.ran(1)
    assert stored.port.to_store[-1].kind == "store.release"


@pytest.mark.parametrize(
    ("why", "overlap", "history"),
    [
        ("granted", OverlapPolicy.SKIP, [("elsewhere", 1)]),
        ("running", OverlapPolicy.SKIP, [("skipped", 1)]),
        ("clock", OverlapPolicy.SKIP, [("missed", 1)]),
        ("running", OverlapPolicy.QUEUE, []),
        ("trouble", OverlapPolicy.SKIP, []),
    ],
)
def test_a_tick_that_the_store_does_not_grant(
    stored: Server, why: str, overlap: OverlapPolicy, history: list[tuple[str, int]]
) -> None:
    stored.switch(every(100, overlap=overlap))
    stored.go(100)
    stored.store_says("store.taken", id=1, why=why, text="because")
    assert stored.history("job") == history
    stored.go(2)
    again = [frame for frame in stored.port.to_store if frame.kind == "store.grant"][1:]
    assert bool(again) is not bool(history)


def test_without_the_store_a_tick_waits_and_then_is_missed(stored: Server) -> None:
    stored.switch(every(100))
    stored.hub.store_changed("the store is away")
    stored.go(125)
    assert stored.history("job") == []
    stored.go(10)
    assert stored.history("job") == [("missed", 1)]
    assert "the store is away" in stored.port.records[-1][1]


def test_a_tick_that_the_store_may_have_granted_is_settled(stored: Server) -> None:
    """A Redis that hung does what it was asked for when it goes on: the lease must not stand for a run that is not."""
    stored.switch(every(10))
    stored.go(30)
    assert stored.newest("job").text == "the store had not replied"
    stored.hub.store_changed("it hangs")
    stored.store_says("store.taken", id=1, why="trouble", text="it hangs")
    stored.go(40)
    assert stored.history("job") == [("missed", 5)]  # of those that came meanwhile, but for the newest
    stored.hub.store_changed("")
    stored.look()
    again = [frame.head for frame in stored.port.to_store if frame.kind == "store.grant"][-1]
    assert again["tick"] == BEGIN + 10
    stored.store_says("store.granted", id=again["id"], token=7, renewed_until=stored.clock + 30)
    assert [frame.head for frame in stored.port.to_store if frame.kind == "store.release"] == [
        {"name": "job", "token": 7}
    ]
    again = [frame.head for frame in stored.port.to_store if frame.kind == "store.grant"][-1]
    assert again["tick"] == BEGIN + 70
    stored.store_says("store.granted", id=again["id"], token=8, renewed_until=stored.clock + 30)
    assert instants(stored.given) == [70]
    assert stored.line("job").counts["missed"] == 6


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_cannot_be_written_holds_up_nobody(known: bool) -> None:
    server = Server(stored=True, shared=False)
    server.hub.store_changed("")
    server.switch(every(10))
    if known:
        server.hub.store_changed("the disk is full")
    server.go(10)
    if not known:
        server.store_says("store.taken", id=1, why="trouble", text="the disk is full")
        server.go(1)
    assert [head["token"] for _, head in server.given] == [None]


def test_a_lease_that_cannot_be_renewed_is_lost(stored: Server) -> None:
    stored.switch(every(100))
    stored.go(100)
    stored.store_says("store.granted", id=1, token=42, renewed_until=stored.clock + 30)
    stored.go(31)
    assert stored.port.records[-1][0] == "schedule_lease_lost"
    stored.ran(1)
    assert stored.history("job") == [("ok", 1)]


def test_what_was_asked_of_the_store_is_asked_again_by_a_new_program(stored: Server) -> None:
    stored.switch(every(100))
    stored.go(100)
    stored.replace()
    stored.hub.store_changed("")
    stored.go(1)
    first, second = [frame.head for frame in stored.port.to_store if frame.kind == "store.grant"]
    assert (first["name"], first["tick"], first["holder"]) == (second["name"], second["tick"], second["holder"])
    stored.store_says("store.granted", id=first["id"], token=1, renewed_until=stored.clock + 30)  # for the old program
    assert stored.given == []
    stored.store_says("store.granted", id=second["id"], token=1, renewed_until=stored.clock + 30)
    assert len(stored.given) == 1


def test_the_history_is_kept_in_the_store(stored: Server) -> None:
    stored.switch(every(10, on=RunsOn.ALL))
    stored.go(10)
    stored.ran(1)
    stored.ran(2, "failed")
    assert [frame for frame in stored.port.to_store if frame.kind == "store.write"] == []
    stored.go(6)
    (frame,) = [frame for frame in stored.port.to_store if frame.kind == "store.write"]
    stored.hub.take_from_store(
        encode("store.written", {"id": frame.head["id"], "key": frame.head["key"], "version": 1}, frame.body)
    )
    again = Server(stored=True)
    again.hub.take_from_store(
        encode("store.snapshot", {}, pack_value([["serve:history:job", 1, frame.body]], "a snapshot"))
    )
    again.hub.take_from_store(encode("store.up", {}))
    again.switch(every(10, on=RunsOn.ALL))
    (told,) = again.ticks.commands.report("job")
    assert [entry["outcome"] for entry in told["history"]] == ["failed", "ok"]
    (told,) = stored.ticks.commands.report("job")
    assert [entry["outcome"] for entry in told["history"]] == ["failed", "ok"]  # its own are not there twice


def test_ticks_without_a_run_are_kept_in_the_store(stored: Server) -> None:
    def written() -> list[list[tuple[str, int]]]:
        frames = [frame for frame in stored.port.to_store if frame.kind == "store.write"]
        stored.port.to_store.clear()
        kept = [unpack_value(frame.body) for frame in frames if "history" in frame.head["key"]]
        return [[(entry["outcome"], entry["count"]) for _, entry in each] for each in kept]

    workers = stored.switch(every(10, on=RunsOn.ALL))
    stored.ask("pause", "job")
    pause = stored.port.to_store.pop()
    stored.hub.take_from_store(
        encode("store.written", {"id": pause.head["id"], "key": pause.head["key"], "version": 1}, pause.body)
    )
    stored.go(16)
    assert written() == [[("paused", 1)]]
    stored.go(20)
    assert written() == []  # not for each of a row
    for worker in workers:
        stored.hub.leave(worker.id)
    assert written() == [[("paused", 3)]]


def test_what_an_earlier_program_had_not_written_of_the_history_the_next_one_writes(stored: Server) -> None:
    stored.switch(every(100, on=RunsOn.ALL))
    stored.go(100)
    stored.ran(1)
    stored.replace()
    stored.hub.store_changed("")
    stored.go(6)
    (frame,) = [frame for frame in stored.port.to_store if frame.kind == "store.write"]
    assert [entry["outcome"] for _, entry in unpack_value(frame.body)] == ["ok"]


def test_one_whose_instants_cannot_be_computed_harms_no_other(server: Server) -> None:
    server.switch(ScheduleDefinition("broken", cron="* * * * *", tz="X/Y", rules=b"no rules"), every(10))
    server.go(10)
    assert instants(server.given) == [10]
    assert "cannot be computed" in server.ticks.commands.report("broken")[0]["disabled"]
    server.ran(server.given[0][1]["run"])
    server.replace()
    server.go(10)
    assert instants(server.given) == [10, 20]
    assert "cannot be computed" in server.ticks.commands.report("broken")[0]["disabled"]


def test_after_a_roll_back_the_definitions_of_the_older_generation_are_in_force_again(server: Server) -> None:
    old = server.switch(every(10), every(10, "dropped"))
    new = server.switch(every(10), every(10, "added"))
    for member in old:
        server.hub.order(member.id, MemberOrder.SERVE)
    for member in new:
        server.hub.order(member.id, MemberOrder.RETIRE)
    server.look()
    server.replace()
    server.go(10)
    assert {head["name"] for _, head in server.take_given()} == {"job", "dropped"}
    assert {member for member, _ in server.given} <= {member.id for member in old}
    for member in new:
        server.hub.leave(member.id)
    assert not server.ticks.known("added") or server.ticks.schedules["added"].definition is None
