"""Announcements and orders of a fleet in each shared store: an order comes once, and one operator has the turn."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio
import pytest

from serve_asgi.ipc.frames import Frame
from serve_asgi.store.fleet_access import FleetAccess, FleetUnreachable, FleetView, fleet_at
from tests.store.stores import StoreProcess, store

T = TypeVar("T")


def with_fleet(url: str, do: Callable[[FleetAccess], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        async with fleet_at(url) as access:
            return await do(access)

    return anyio.run(run)


def look(url: str) -> FleetView:
    return with_fleet(url, lambda access: access.look())


def settled(server: StoreProcess) -> None:
    """Until what it was sent is done: its requests are carried out in order."""
    server.read("nothing")


def test_a_server_is_there_from_its_announcement_until_it_leaves(url: str) -> None:
    assert look(url)[1:] == ([], 0, b"")
    with store(url) as one, store(url) as two:
        one.up(), two.up()
        one.send("store.announce", {}, b"first")
        two.send("store.announce", {}, b"second")
        for each in (one, two):
            settled(each)
        view = look(url)
        assert {server.name: server.record for server in view.servers} == {one.name: b"first", two.name: b"second"}
        assert all(0 <= view.now - server.heard < 60 and not server.ordered for server in view.servers)
        one.send("store.announce", {}, b"later")
        two.send("store.leave", {})
        for each in (one, two):
            settled(each)
        assert [(server.name, server.record) for server in look(url).servers] == [(one.name, b"later")]


def test_an_order_wakes_its_server_and_comes_once(url: str) -> None:
    async def order(access: FleetAccess) -> None:
        assert await access.advance(0, b"document", one.name, b"do it")
        view = await access.look(one.name)
        assert (view.version, view.document) == (1, b"document")
        assert [(each.name, each.ordered) for each in view.servers] == [(one.name, True)]

    with store(url) as one, store(url) as two:
        for each in (one, two):
            each.up()
            each.send("store.announce", {}, b"here")
            settled(each)
        with_fleet(url, order)
        one.wait("store.bell")
        one.send("store.announce", {}, b"here")
        assert one.wait("store.order").body == b"do it"
        for each in (one, two):
            each.send("store.announce", {}, b"here")
            settled(each)
            assert not [frame for frame in each.said if frame.kind in ("store.order", "store.bell")]
        assert not any(each.ordered for each in look(url).servers)


def test_only_one_operator_writes_the_next_version(url: str) -> None:
    async def both(access: FleetAccess) -> None:
        assert await access.advance(0, b"one", one.name, b"first")
        assert not await access.advance(0, b"two", one.name, b"second")
        assert await access.advance(1, b"three", "nobody", b"lost")
        assert await access.advance(2, b"four")
        assert await access.advance(3, b"five", two.name, b"given")
        assert await access.advance(4, b"four", two.name)
        assert (await access.look()).document == b"four"

    with store(url) as one, store(url) as two:
        for each in (one, two):
            each.up()
            each.send("store.announce", {}, b"here")
            settled(each)
        with_fleet(url, both)
        for each in (one, two):
            each.send("store.announce", {}, b"here")
        assert one.wait("store.order") == Frame("store.order", {}, b"first")
        settled(two)
        assert not [frame for frame in two.said if frame.kind == "store.order"]


@pytest.mark.parametrize("absent", ["redis://127.0.0.1:1/0", "postgresql://127.0.0.1:1/none"])
def test_a_store_that_is_not_there_is_one_sentence(absent: str) -> None:
    with pytest.raises(FleetUnreachable, match="cannot be reached"):
        look(absent)
