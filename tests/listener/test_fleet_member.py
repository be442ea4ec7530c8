"""A server of a fleet: when it announces itself, and which orders it carries out, once."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from serve_asgi.ipc.fleet_records import FleetOrder, OrderKind, OrderState, ServerRecord, encoded, record_from
from serve_asgi.ipc.frames import ValidatedFrame, decode
from serve_asgi.listener.fleet_member import FleetMember
from serve_asgi.supervisor import actions

RECORD = ("web", 1, "/srv", "app:asgi", "1", "running", "healthy", 6, 1, 1, 60.0)


class Harness:
    """A member, what it has sent and logged, and a server that does what the test says."""

    def __init__(self, left: dict[str, Any] | None = None) -> None:
        self.sent: list[ServerRecord | None] = []
        self.logged: list[actions.LogEvent] = []
        self.done: list[tuple[OrderKind, str, int | None]] = []
        self.allowed = True
        self.broken = False
        self.outcome: tuple[bool, str, int] = (True, "done", 7)
        self.hold: anyio.Event | None = None
        self.news = anyio.Event()
        self.member = FleetMember(
            self._describe, self._send, lambda: self.allowed, self._carry_out, self.logged.append, left
        )

    def _send(self, data: bytes) -> None:
        frame = decode(data)
        self.sent.append(record_from(frame.body) if frame.kind == "store.announce" else None)
        self.news.set()
        self.news = anyio.Event()

    def _describe(self) -> ServerRecord:
        if self.broken and not self.done:
            raise RuntimeError("oh no")
        return ServerRecord(*RECORD)

    async def _carry_out(self, kind: OrderKind, who: str, of: int | None) -> tuple[bool, str, int]:
        self.done.append((kind, who, of))
        if self.broken:
            raise RuntimeError("oh no")
        if self.hold is not None:
            await self.hold.wait()
        return self.outcome

    def order(self, id: str, kind: OrderKind = OrderKind.RELOAD, of: str = "") -> None:
        self.member.took(ValidatedFrame("store.order", None, encoded(FleetOrder(id, kind, "alice", of))))

    async def announced(self, id: str, state: OrderState) -> ServerRecord:
        """Wait until the latest order is announced like this."""
        while True:
            latest = self.sent[-1] if self.sent else None
            order = None if latest is None else latest.order
            if latest is not None and order is not None and (order.id, order.state) == (id, state):
                return latest
            await self.news.wait()


def run(do: Callable[[Harness], Coroutine[Any, Any, None]], left: dict[str, Any] | None = None) -> Harness:
    async def main() -> Harness:
        harness = Harness(left)
        async with anyio.create_task_group() as tasks:
            harness.member.tasks = tasks
            tasks.start_soon(harness.member.run)
            with anyio.fail_after(30):
                await do(harness)
            tasks.cancel_scope.cancel()
        return harness

    return anyio.run(main)


def test_an_order_is_carried_out_once_and_its_outcome_announced() -> None:
    async def do(harness: Harness) -> None:
        harness.hold = anyio.Event()
        harness.order("x.1")
        await harness.announced("x.1", OrderState.RUNNING)
        assert harness.member.busy
        harness.order("x.1")
        harness.hold.set()
        found = await harness.announced("x.1", OrderState.DONE)
        assert found.order is not None
        assert (found.order.text, found.order.generation) == ("done", 7)
        harness.order("x.1")
        assert not harness.member.busy
        harness.outcome = (False, "no", 6)
        harness.order("x.2")
        await harness.announced("x.2", OrderState.REFUSED)

    assert run(do).done == [(OrderKind.RELOAD, "alice", None)] * 2


def test_without_fleet_orders_each_is_refused() -> None:
    async def do(harness: Harness) -> None:
        harness.allowed = False
        harness.order("x.1")
        found = await harness.announced("x.1", OrderState.REFUSED)
        assert found.order is not None
        assert "--fleet-orders" in found.order.text

    found = run(do)
    assert found.done == []
    assert [each.event for each in found.logged] == ["fleet_order_refused"]


def test_what_is_no_order_is_refused_and_logged() -> None:
    async def do(harness: Harness) -> None:
        for body in (b"", b"[]", b'{"id": 1}', json.dumps({"id": "x", "kind": "rm -rf"}).encode(), b"x" * 20_000):
            harness.member.took(ValidatedFrame("store.order", None, body))

    found = run(do)
    assert found.done == []
    assert [each.event for each in found.logged] == ["fleet_order_refused"] * 5


def test_a_roll_back_takes_back_the_reload_that_it_names_and_nothing_else() -> None:
    async def do(harness: Harness) -> None:
        async def roll_back(id: str, of: str) -> str:
            harness.order(id, OrderKind.ROLLBACK, of)
            found = await harness.announced(id, OrderState.DONE)
            assert found.order is not None
            return found.order.text

        assert "nothing to take back" in await roll_back("x.0", "x.1")
        harness.outcome = (False, "refused", 6)
        harness.order("x.1")
        await harness.announced("x.1", OrderState.REFUSED)
        assert "nothing to take back (refused)" in await roll_back("x.2", "x.1")
        harness.outcome = (True, "done", 7)
        harness.order("x.3")
        await harness.announced("x.3", OrderState.DONE)
        assert "nothing to take back" in await roll_back("x.4", "x.1")
        harness.done.clear()
        assert await roll_back("x.5", "x.3") == "done"
        assert "nothing to take back" in await roll_back("x.6", "x.3")
        assert harness.done == [(OrderKind.ROLLBACK, "alice", 7)]
        harness.hold = anyio.Event()
        harness.order("x.7")
        await harness.announced("x.7", OrderState.RUNNING)
        harness.order("x.8", OrderKind.ROLLBACK, "x.7")
        await harness.announced("x.8", OrderState.RUNNING)
        harness.hold.set()
        await harness.announced("x.8", OrderState.DONE)
        assert harness.done[1:] == [(OrderKind.RELOAD, "alice", None), (OrderKind.ROLLBACK, "alice", None)]

    run(do)


def test_orders_are_known_to_the_next_program_of_the_listener() -> None:
    async def first(harness: Harness) -> None:
        harness.order("x.1")
        await harness.announced("x.1", OrderState.DONE)

    async def second(harness: Harness) -> None:
        harness.order("x.1")
        await harness.announced("x.1", OrderState.DONE)
        harness.order("x.2", OrderKind.ROLLBACK, "x.1")
        await harness.announced("x.2", OrderState.DONE)
        harness.member.leave()
        assert harness.sent[-1] is None

    left = json.loads(json.dumps(run(first).member.to_state()))
    assert run(second, left).done == [(OrderKind.ROLLBACK, "alice", 7)]


def test_a_mistake_of_the_servers_own_ends_nothing() -> None:
    async def do(harness: Harness) -> None:
        harness.broken = True
        harness.member.changed()
        harness.order("x.1")
        found = await harness.announced("x.1", OrderState.REFUSED)
        assert found.order is not None
        assert found.order.text == "it failed: RuntimeError('oh no')"
        assert not harness.member.busy

    run(do)
