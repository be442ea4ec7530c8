"""Which ticks are granted, as a table: by a file, a PostgreSQL, and a Redis, which decides by these rules in Lua."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from serve_asgi.ipc.store_frames import GrantRefusal
from serve_asgi.store.schedule_leases import MAX_AHEAD, LeaseTable, TickGrant
from tests.store.stores import StoreProcess, store

NOW = 1_000_000.0


def test_a_tick_is_granted_once_and_time_goes_forward() -> None:
    leases = LeaseTable()
    first = leases.grant("report", NOW, "a", 10, False, NOW)
    assert isinstance(first, TickGrant)
    assert leases.grant("report", NOW, "b", 10, False, NOW) == (GrantRefusal.GRANTED, _any_text(first))
    assert isinstance(leases.grant("report", NOW - 1, "a", 10, False, NOW), tuple)
    assert leases.grant("report", NOW, "a", 10, False, NOW) == first  # asked again: the same grant
    second = leases.grant("report", NOW + 1, "b", 10, False, NOW)
    assert isinstance(second, TickGrant)
    assert second.token > first.token
    assert isinstance(leases.grant("other", NOW, "b", 10, False, NOW), TickGrant)


def test_a_clock_that_is_wrong_takes_no_ticks_of_the_future() -> None:
    leases = LeaseTable()
    found = leases.grant("report", NOW + MAX_AHEAD + 1, "a", 10, False, NOW)
    assert isinstance(found, tuple)
    assert found[0] is GrantRefusal.CLOCK
    assert isinstance(leases.grant("report", NOW, "b", 10, False, NOW), TickGrant)


def test_an_exclusive_tick_waits_for_the_run_before_it() -> None:
    leases = LeaseTable()
    first = leases.grant("report", NOW, "a", 10, True, NOW)
    assert isinstance(first, TickGrant)
    found = leases.grant("report", NOW + 5, "b", 10, True, NOW + 5)
    assert isinstance(found, tuple)
    assert found[0] is GrantRefusal.RUNNING
    leases.release("report", first.token)
    assert isinstance(leases.grant("report", NOW + 5, "b", 10, True, NOW + 5), TickGrant)


def test_a_lease_that_was_not_renewed_is_over() -> None:
    leases = LeaseTable()
    grant = leases.grant("report", NOW, "a", 10, True, NOW)
    assert isinstance(grant, TickGrant)
    assert leases.renew("report", grant.token, 10, NOW + 9)
    assert leases.renew("report", grant.token, 10, NOW + 18)
    assert not leases.renew("report", grant.token, 10, NOW + 28)
    assert not leases.renew("report", grant.token, 10, NOW + 28)
    assert isinstance(leases.grant("report", NOW + 28, "b", 10, True, NOW + 28), TickGrant)


def test_what_is_undone_was_never_granted() -> None:
    leases = LeaseTable()
    copied = leases.copy()
    assert isinstance(leases.grant("report", NOW, "a", 10, True, NOW), TickGrant)
    assert isinstance(copied.grant("report", NOW, "b", 10, True, NOW), TickGrant)


def test_a_file_grants_by_these_rules(tmp_path: Path) -> None:
    with store(tmp_path / "state.db") as process:
        process.up()
        _follow_the_rules(process)
    with store(tmp_path / "state.db") as process:
        process.up()
        assert process.grant("rules", 1.0).head["why"] == "granted"  # it remembers over a restart


@pytest.mark.once
def test_a_shared_store_grants_by_these_rules(url: str) -> None:
    with store(url) as process, store(url) as other:
        process.up(), other.up()
        _follow_the_rules(process)
        assert other.grant("rules", 1.0).head["why"] == "granted"


def _follow_the_rules(process: StoreProcess) -> None:
    now, before = time.time(), time.monotonic()
    first = process.grant("rules", now, exclusive=True)
    assert first.kind == "store.granted"
    assert before < first.head["renewed_until"] < time.monotonic() + 30
    again = process.grant("rules", now, exclusive=True)
    assert again.head["token"] == first.head["token"]
    assert process.grant("rules", now, holder="another").head["why"] == "granted"
    assert process.grant("rules", now - 0.5).head["why"] == "granted"
    assert process.grant("rules", now + 2 * MAX_AHEAD).head["why"] == "clock"
    assert process.grant("rules", now + 0.5, exclusive=True).head["why"] == "running"
    both = process.grant("rules", now + 0.25)
    assert both.head["token"] > first.head["token"]
    for token in (first.head["token"], both.head["token"]):
        process.send("store.renew", {"name": "rules", "token": token, "lease": 30})
        process.wait("store.renewed", token=token)
        process.send("store.release", {"name": "rules", "token": token})
        process.send("store.renew", {"name": "rules", "token": token, "lease": 30})
        process.wait("store.lost", token=token)
    last = process.grant("rules", now + 0.5, exclusive=True, lease=0.05)
    assert last.head["token"] > both.head["token"]
    while True:  # until the lease is over
        process.send("store.renew", {"name": "rules", "token": last.head["token"], "lease": 0.001})
        if process.wait("store.renewed", "store.lost").kind == "store.lost":
            break
    assert process.grant("rules", now + 0.75, exclusive=True).kind == "store.granted"


def _any_text(grant: TickGrant) -> str:
    return "this tick of report, or a later one, has been granted already"
