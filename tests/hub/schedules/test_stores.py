"""Two servers and one store: whose clocks differ, and whose store forgets (a fail-over)."""

from __future__ import annotations

import collections
import copy
import itertools
from typing import Any

import pytest

from serve_asgi.hub.schedules.definitions import OverlapPolicy, ScheduleDefinition
from serve_asgi.store.schedule_leases import LeaseTable
from tests.hub.schedules.table import BEGIN, Server


class Together:
    """Servers whose clocks differ by `apart` seconds, and the store, which goes by the first one's."""

    def __init__(self, *definitions: ScheduleDefinition, apart: float) -> None:
        self.servers = [Server(stored=True), Server(stored=True)]
        self.leases = LeaseTable()
        self.answered = [0, 0]
        self.given: list[tuple[float, int, dict[str, Any]]] = []
        self.servers[1].wall += apart
        self.servers[1].ticks.seed = 2
        for server in self.servers:
            server.hub.store_changed("")
            server.switch(*definitions)

    def answer(self) -> None:
        for number, server in enumerate(self.servers):
            frames = server.port.to_store[self.answered[number] :]
            self.answered[number] = len(server.port.to_store)
            for frame in frames:
                self._one(server, frame.kind, frame.head)

    def _one(self, server: Server, kind: str, head: dict[str, Any]) -> None:
        now = self.servers[0].wall
        if kind == "store.grant":
            asked = (head["name"], head["tick"], head["holder"], head["lease"], head["exclusive"])
            found = self.leases.grant(*asked, now)
            if isinstance(found, tuple):
                server.store_says("store.taken", id=head["id"], why=found[0].value, text=found[1])
            else:
                until = server.clock + head["lease"]
                server.store_says("store.granted", id=head["id"], token=found.token, renewed_until=until)
        elif kind == "store.renew":
            assert self.leases.renew(head["name"], head["token"], head["lease"], now)
            server.store_says("store.renewed", token=head["token"], renewed_until=server.clock + head["lease"])
        elif kind == "store.release":
            self.leases.release(head["name"], head["token"])

    def go(self, seconds: float, *, finish: bool = True) -> None:
        """Let time pass for all; runs end at once, if they are to."""
        for _ in range(round(seconds * 10)):
            for number, server in enumerate(self.servers):
                server.go(0.1)
                self.answer()
                for _, head in server.take_given():
                    self.given.append((self.servers[0].wall, number, head))
                    if finish:
                        server.ran(head["run"])
                        self.answer()

    def ticks(self) -> list[float]:
        return [round(head["instant"] / 1000 - BEGIN, 3) for _, _, head in self.given]


@pytest.mark.parametrize("apart", [0.0, 0.3, 7.0, -7.0, 40.0])
def test_each_tick_runs_once_however_far_clocks_are_apart(apart: float) -> None:
    both = Together(ScheduleDefinition("job", every=2000), apart=apart)
    both.go(60.5)
    found = both.ticks()
    assert len(found) == len(set(found))
    assert found == sorted(found)
    # none is left out, but for those within the difference when the server that is ahead comes, once
    gaps = [after - before for before, after in itertools.pairwise(found)]
    assert sum(gap != 2.0 for gap in gaps) <= 1
    assert max(gaps) <= 2.0 + abs(apart)
    assert len(found) >= 29
    tokens = [head["token"] for _, _, head in both.given]
    assert tokens == sorted(set(tokens))
    if apart == 0:
        assert len(found) == 30
        counts = collections.Counter(outcome for server in both.servers for outcome, _ in server.history("job"))
        assert counts["ok"] == 30


def test_a_clock_that_is_far_ahead_is_granted_nothing() -> None:
    both = Together(ScheduleDefinition("job", every=2000), apart=100)
    both.go(20.5)
    assert {number for _, number, _ in both.given} == {0}
    assert ("missed", 10) in both.servers[1].history("job")


def test_overlap_holds_over_both() -> None:
    both = Together(ScheduleDefinition("job", every=2000), apart=0)
    both.go(10.5, finish=False)
    assert len(both.given) == 1
    assert sum(server.line("job").counts["skipped"] for server in both.servers) == 8  # each server notes its own
    both = Together(ScheduleDefinition("job", every=2000, overlap=OverlapPolicy.ALLOW), apart=0)
    both.go(10.5, finish=False)
    assert both.ticks() == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("long", [9.5, 75.5])
def test_ticks_that_wait_for_a_run_on_another_server_run_in_order(long: float) -> None:
    """Ten of them; none is passed over because a later one was faster, or missed because it waited."""
    both = Together(ScheduleDefinition("job", every=2000, overlap=OverlapPolicy.QUEUE), apart=0)
    both.go(long, finish=False)
    ((_, number, head),) = both.given
    both.servers[number].ran(head["run"])
    both.go(10)
    waited = [float(each) for each in range(2, min(round(long), 22) + 1, 2)]
    assert both.ticks()[: len(waited)] == waited
    assert both.ticks()[-1] == (long + 10) // 2 * 2
    for server in both.servers:
        counts = server.line("job").counts
        assert counts["missed"] == 0
        assert counts["skipped"] == max(0, int(long / 2) - 11)
    assert not any(server.line("job").waiting for server in both.servers)


def test_a_name_may_be_like_what_the_store_is_asked_about() -> None:
    server = Server(stored=True)
    server.hub.store_changed("")
    named = (ScheduleDefinition(name, every=2000) for name in ("job asked", "job immediate"))
    server.switch(ScheduleDefinition("job", every=60_000, immediate=True), *named)
    grant = next(frame.head for frame in server.port.to_store if frame.kind == "store.grant")
    server.store_says("store.granted", id=grant["id"], token=1, renewed_until=server.clock + 30)
    server.ran(1)
    server.ask("run", "job")
    server.go(2)
    asked = [frame.head["name"] for frame in server.port.to_store if frame.kind == "store.grant"]
    assert len(asked) == len(set(asked)) == 4


def test_a_store_that_forgets_may_grant_a_tick_again_with_a_larger_token() -> None:
    """A fail-over to a replica that did not have the last write."""
    both = Together(ScheduleDefinition("job", every=10_000), apart=0.05)
    both.go(9)
    replica = copy.deepcopy(both.leases)
    both.go(1)
    assert both.ticks() == [10]
    both.leases = replica
    both.leases.token += 1_000_000  # it goes by its own clock
    both.go(10)
    assert both.ticks()[-1] == 20
    tokens = [head["token"] for _, _, head in both.given]
    assert tokens == sorted(set(tokens))
