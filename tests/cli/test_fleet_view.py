"""The servers of a fleet in order, with their names; who does not answer, is forgotten, or was started again."""

from __future__ import annotations

from typing import Any

from serve_asgi.cli import fleet_view
from serve_asgi.ipc.fleet_records import FORGET, SILENT, ServerRecord, encoded
from serve_asgi.store.fleet_access import FleetView, HeardServer

NOW = 1_000_000.0


def announced(name: str, since: float = 1.0, **more: Any) -> HeardServer:
    about: dict[str, Any] = {
        "host": "web1",
        "pid": 100,
        "directory": f"/srv/{name}",
        "app": "app:asgi",
        "version": "0.1.0",
        "state": "running",
        "health": "healthy",
        "generation": 3,
        "size": 4,
        "serving": 4,
        "up": 60.0,
    }
    return HeardServer(name, encoded(ServerRecord(**{**about, **more})), NOW - since, False)


def seen(*announced: HeardServer) -> list[fleet_view.FleetServer]:
    return fleet_view.servers(FleetView(NOW, list(announced), 0, b""))


def test_a_canary_comes_first_then_hosts_and_directories() -> None:
    found = seen(announced("b"), announced("a"), announced("c", canary=True), announced("d", host="db0"))
    assert [each.name for each in found] == ["c", "d", "a", "b"]
    assert [each.label for each in found] == ["web1:/srv/c", "db0:/srv/d", "web1:/srv/a", "web1:/srv/b"]


def test_two_servers_of_one_directory_are_told_apart_by_their_pids() -> None:
    found = seen(announced("a", pid=7), announced("b", pid=8, directory="/srv/a"))
    assert [each.label for each in found] == ["web1:/srv/a (PID 7)", "web1:/srv/a (PID 8)"]


def test_a_server_that_is_silent_is_named_and_later_forgotten() -> None:
    found = seen(announced("a"), announced("b", SILENT + 1, pid=9), announced("c", FORGET + 1))
    assert [(each.name, each.answers) for each in found] == [("a", True), ("b", False)]
    (line,) = fleet_view.silent(found)
    assert line.startswith("web1:/srv/b (PID 9) does not answer: it was last heard 16 s ago")
    assert fleet_view.summary(found) == "2 servers, 1 of them silent"
    rows = list(fleet_view.table(found))
    assert rows[0].split()[:4] == ["server", "pid", "gen", "state"]
    assert rows[2].split()[:5] == ["web1:/srv/b", "9", "3", "silent", "?"]


def test_a_link_that_leads_elsewhere_is_told_of_unless_a_reload_is_under_way() -> None:
    told = "/srv/current leads to /srv/4"
    found = seen(announced("a", moved_link=told), announced("b"), announced("c", moved_link=told, starting=4))
    assert list(fleet_view.moved_links(found)) == [f"web1:/srv/a: {told}"]


def test_a_server_that_was_killed_and_started_again_is_one() -> None:
    killed = announced("old", SILENT + 10, pid=1, directory="/srv")
    (found,) = seen(killed, announced("new", pid=2, directory="/srv", up=20.0))
    assert (found.name, found.label) == ("new", "web1:/srv")
    beside = announced("other", pid=3, directory="/srv", up=200.0)  # it ran there before: another instance
    assert [each.answers for each in seen(killed, beside)] == [False, True]


def test_what_is_no_record_is_passed_over() -> None:
    too_long = encoded(ServerRecord("x", 1, "/" * 4_000, "a", "1", "s", "h", 1, 1, 1, 1.0)) + b" " * 20_000
    for data in (b"", b"[]", b'{"host": 7}', b"\xff", too_long):
        assert seen(HeardServer("x", data, NOW, False)) == []
