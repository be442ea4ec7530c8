"""An operation over a fleet that exists in memory: each server, and the store between them, does what the test says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from serve_asgi.cli import fleet_operator
from serve_asgi.cli.fleet import NODE_TIMEOUT
from serve_asgi.cli.fleet_operation import FleetOperation, FleetPhase, FleetStepState, operation_from
from serve_asgi.cli.fleet_operator import FleetOperator, OperatorOptions
from serve_asgi.errors import StartError
from serve_asgi.ipc.fleet_records import (
    FleetOrder,
    OrderKind,
    OrderOutcome,
    OrderState,
    ServerRecord,
    encoded,
    order_from,
)
from serve_asgi.store.fleet_access import FleetAccess, FleetUnreachable, FleetView, HeardServer


@dataclasses.dataclass
class Simulated:
    """One server: what it does with an order, and how long ago it was heard."""

    name: str
    takes: bool = True
    does: OrderState | None = OrderState.DONE  # None: it never ends it
    since: float = 1.0
    orders: list[FleetOrder] = dataclasses.field(default_factory=list)
    outcome: OrderOutcome | None = None
    allowed: bool = True
    canary: bool = False
    moved_link: str = ""

    def ordered(self, order: FleetOrder) -> None:
        self.orders.append(order)
        if self.takes:
            self.outcome = OrderOutcome(order.id, order.kind, self.does or OrderState.RUNNING, "because", 7)

    def heard(self, now: float) -> HeardServer:
        record = ServerRecord(
            *("web", 1, f"/srv/{self.name}", "app:asgi", "1", "running", "healthy", 6, 1, 1, 60.0),
            canary=self.canary,
            takes_orders=self.allowed,
            order=self.outcome,
            moved_link=self.moved_link,
        )
        return HeardServer(self.name, encoded(record), now - self.since, False)


class SimulatedStore(FleetAccess):
    """The store; its clock is one second later at each look."""

    def __init__(self, *servers: Simulated) -> None:
        self.servers = list(servers)
        self.now = 1_000_000.0
        self.version, self.document = 0, b""
        self.withdrawn: list[str] = []
        self.faults: list[str] = []
        """Where it does not answer, one after another: to a look, before an advance, or after it."""
        self.when: Callable[[FleetOrder], object] = lambda _: None
        """Called with each order before its server gets it."""

    async def look(self, name: str = "") -> FleetView:
        self._fail("look")
        self.now += 1.0
        await anyio.lowlevel.checkpoint()
        found = [each.heard(self.now) for each in self.servers if name in ("", each.name)]
        return FleetView(self.now, found, self.version, self.document)

    async def advance(self, version: int, document: bytes, name: str = "", order: bytes = b"") -> bool:
        await anyio.lowlevel.checkpoint()
        self._fail("advance")
        if version != self.version:
            return False
        self.version, self.document = version + 1, document
        if name and not order:
            self.withdrawn.append(name)
        elif name:
            self.when(order_from(order))
            for each in self.servers:
                if each.name == name:
                    each.ordered(order_from(order))
        self._fail("answer")
        return True

    def _fail(self, where: str) -> None:
        if self.faults and self.faults[0] == where:
            del self.faults[0]
            raise FleetUnreachable("the store did not answer in time")

    def operation(self) -> FleetOperation:
        found = operation_from(self.document)
        assert found is not None
        return found

    def states(self) -> list[str]:
        return [step.state.value for step in self.operation().steps]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_operator, "LOOK", 0.0)
    monkeypatch.setattr(fleet_operator, "TAKE", 0.05)


def operator(store: SimulatedStore, said: list[str] | None = None, **options: Any) -> FleetOperator:
    return FleetOperator(
        store,
        OperatorOptions(**{"who": "alice", "operator": "alice on desk", "node_timeout": NODE_TIMEOUT, **options}),
        lambda event, text, server: None if said is None else said.append(text),
    )


def reload(store: SimulatedStore, said: list[str] | None = None, **options: Any) -> str:
    return anyio.run(operator(store, said, **options).reload)


def rollback(store: SimulatedStore, said: list[str] | None = None, **options: Any) -> str:
    return anyio.run(operator(store, said, **options).rollback)


def fleet(**more: Any) -> tuple[SimulatedStore, Simulated, Simulated, Simulated]:
    a, b, c = Simulated("a"), Simulated("b", **more), Simulated("c")
    return SimulatedStore(a, b, c), a, b, c


def test_each_server_has_its_turn_a_canary_first() -> None:
    store, a, b, c = fleet(canary=True)
    turns: list[str] = []
    store.when = lambda order: turns.append(store.states()[0])
    assert reload(store) == "3 servers reloaded"
    assert [step.name for step in store.operation().steps] == ["b", "a", "c"]
    assert turns == ["ordered", "reloaded", "reloaded"]
    assert [len(each.orders) for each in (a, b, c)] == [1, 1, 1]
    assert store.operation().phase is FleetPhase.DONE
    assert not store.operation().has_turn(store.now)
    assert "done; 3 of 3 servers reloaded" in next(store.operation().lines(store.now))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (
            {"does": OrderState.REFUSED},
            "web:/srv/b: because. 1 of 3 servers reloaded (web:/srv/a); `serve fleet",
        ),
        ({"takes": False}, "web:/srv/b has not taken its order within 0.05 s"),
        ({"does": None}, "web:/srv/b has not ended its reload within 0.1 s (--node-timeout); it goes on with it"),
    ],
)
def test_it_stops_at_the_first_that_does_not_do_it_and_goes_on_from_there(more: dict[str, Any], why: str) -> None:
    store, a, b, c = fleet(**more)
    with pytest.raises(StartError) as caught:
        reload(store, node_timeout=0.1)
    assert why in str(caught.value)
    assert (len(a.orders), len(b.orders), len(c.orders)) == (1, 1, 0)
    assert store.withdrawn == ([] if b.takes else ["b"])
    assert store.operation().phase is FleetPhase.STOPPED
    assert "web:/srv/b" in next(store.operation().lines(store.now))

    under_way, b.takes, b.does = b.does is None, True, OrderState.DONE
    if under_way:
        b.outcome = OrderOutcome(b.orders[0].id, OrderKind.RELOAD, OrderState.DONE, "", 7)
    said: list[str] = []
    assert reload(store, said) == "3 servers reloaded"
    assert said[0] == "going on with the reload that alice began: 1 of 3 servers reloaded (web:/srv/a)"
    assert (len(a.orders), len(b.orders), len(c.orders)) == (1, 1 if under_way else 2, 1)
    assert len({order.id for order in b.orders}) == len(b.orders)


@pytest.mark.parametrize("faults", [["look"], ["look", "look", "look"], ["advance"], ["answer"], ["answer", "look"]])
def test_a_store_that_does_not_answer_for_a_moment_stops_nothing(faults: list[str]) -> None:
    store, a, b, c = fleet()
    store.when = lambda _: store.faults.extend(faults) if store.states()[1] == "ordered" else None
    assert reload(store) == "3 servers reloaded"
    assert not store.faults
    assert [len(each.orders) for each in (a, b, c)] == [1, 1, 1]


def test_a_store_that_stays_away_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_operator, "PATIENCE", 0.05)
    store, _, b, c = fleet()
    store.when = lambda _: store.faults.extend(["look"] * 1_000_000) if store.states()[1] == "ordered" else None
    with pytest.raises(FleetUnreachable, match="did not answer in time"):
        reload(store)
    assert (len(b.orders), len(c.orders)) == (1, 0)


def test_a_server_that_falls_silent_while_it_reloads_is_named() -> None:
    store, _, b, _ = fleet(does=None)
    store.when = lambda _: setattr(b, "since", 20.0) if b.orders == [] and store.states()[1] == "ordered" else None
    with pytest.raises(StartError, match="web:/srv/b does not answer any more: it was last heard 20 s ago"):
        reload(store)


@pytest.mark.parametrize("skip", [False, True])
def test_one_that_is_silent_before_its_turn_stops_it_unless_it_is_to_be_left_out(skip: bool) -> None:
    store, _, b, c = fleet()
    store.when = lambda _: setattr(b, "since", 20.0)
    if skip:
        assert reload(store, skip_silent=True) == "2 servers reloaded; not reloaded, since silent: web:/srv/b"
        return
    with pytest.raises(StartError, match="web:/srv/b does not answer: it was last heard 20 s ago"):
        reload(store)
    assert (b.orders, c.orders) == ([], [])


def test_one_that_leaves_is_passed_over_and_one_that_leaves_with_an_order_is_named() -> None:
    store, a, b, _ = fleet()
    store.when = lambda _: store.servers.remove(b) if b in store.servers else None
    assert reload(store) == "2 servers reloaded; web:/srv/b left the fleet meanwhile"

    store, a, b, _ = fleet()
    store.when = lambda _: store.servers.remove(a)
    with pytest.raises(StartError, match="web:/srv/a has left the fleet before it had carried out its order"):
        reload(store)


def test_nothing_is_done_unless_all_answer_and_take_orders() -> None:
    store, a, b, c = fleet(allowed=False)
    with pytest.raises(StartError, match="nothing was done, since web:/srv/b would take no order"):
        reload(store)
    b.allowed, b.since = True, 20.0
    with pytest.raises(StartError, match="nothing was done, since web:/srv/b has not been heard for 20 s"):
        reload(store)
    said: list[str] = []
    assert reload(store, said, skip_silent=True) == "2 servers reloaded"
    assert said[0] == "web:/srv/b: left out, it has not been heard for 20 s"
    a.since = c.since = 20.0
    with pytest.raises(StartError, match="no server of the fleet answers"):
        reload(store, skip_silent=True)
    with pytest.raises(StartError, match="no server has announced itself there"):
        reload(SimulatedStore())


def test_an_unfinished_reload_is_gone_on_with_or_begun_anew() -> None:
    store, a, b, _ = fleet(does=OrderState.REFUSED)
    with pytest.raises(StartError):
        reload(store)
    b.does = OrderState.DONE
    store.now += 4_000
    with pytest.raises(StartError, match=r"unfinished for 1h.*--resume goes on with it, --restart begins anew"):
        reload(store)
    assert reload(store, resume=True) == "3 servers reloaded"
    assert len(a.orders) == 1
    with pytest.raises(StartError, match="there is nothing to go on with"):
        reload(store, resume=True)
    b.does = OrderState.REFUSED
    with pytest.raises(StartError):
        reload(store)
    b.does = OrderState.DONE
    assert reload(store, resume=False) == "3 servers reloaded"
    assert len(a.orders) == 3


def test_a_roll_back_takes_back_in_reverse_what_was_reloaded() -> None:
    store, a, _, c = fleet()
    with pytest.raises(StartError, match="there is nothing to take back"):
        rollback(store)
    c.does = OrderState.REFUSED
    with pytest.raises(StartError):
        reload(store)
    said: list[str] = []
    assert rollback(store, said) == "2 of 3 servers taken back (web:/srv/a, web:/srv/b)"
    assert [each.split()[0] for each in said] == ["web:/srv/b:", "web:/srv/b:", "web:/srv/a:", "web:/srv/a:"]
    assert [order.of for order in a.orders] == ["", a.orders[0].id]
    assert len(c.orders) == 1
    assert store.states() == ["taken back", "taken back", "refused"]
    with pytest.raises(StartError, match="there is nothing to take back"):
        rollback(store)
    c.does = OrderState.DONE
    assert reload(store) == "3 servers reloaded"


def test_a_roll_back_goes_on_to_the_others_and_names_those_that_it_could_not_take_back() -> None:
    store, a, b, c = fleet()
    reload(store)
    b.does, c.since = OrderState.REFUSED, 20.0
    with pytest.raises(StartError) as caught:
        rollback(store)
    assert "1 of 3 servers taken back (web:/srv/a); not taken back: web:/srv/b, web:/srv/c" in str(caught.value)
    assert store.states() == ["taken back", "kept", "kept"]
    assert store.withdrawn == ["c", "b"]
    assert "its roll-back is unfinished" in next(store.operation().lines(store.now))
    with pytest.raises(StartError, match="the roll-back of the reload by alice is unfinished"):
        reload(store)
    store.servers.remove(c)
    b.does = OrderState.DONE
    assert rollback(store) == "2 of 3 servers taken back (web:/srv/a, web:/srv/b)"
    assert store.states() == ["taken back", "taken back", "left"]
    assert len(a.orders) == 2


def test_two_operators_do_not_both_give_orders() -> None:
    store, a, b, _ = fleet(does=None)

    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(expect, operator(store).reload, "another operator has gone on with this operation")
            while not b.orders:
                await anyio.lowlevel.checkpoint()
            with pytest.raises(StartError, match="alice on desk carries out an operation over this fleet"):
                await operator(store).reload()
            assert "alice on desk carries it out" in next(store.operation().lines(store.now))
            found = store.operation()
            found.until = 0.0  # the first one's turn has ended, as if it had stood still
            store.document, store.version = found.encoded(), store.version + 1
            assert "its operator has gone" in next(found.lines(store.now))
            b.outcome = OrderOutcome(b.orders[0].id, OrderKind.RELOAD, OrderState.DONE, "", 7)

    async def expect(do: Callable[[], Coroutine[Any, Any, str]], why: str) -> None:
        with pytest.raises(StartError, match=why):
            await do()

    anyio.run(both)
    assert reload(store) == "3 servers reloaded"
    assert [len(each.orders) for each in (a, b)] == [1, 1]


def test_the_turn_is_renewed_and_ends_with_an_interruption() -> None:
    store, _, b, _ = fleet(does=None)

    async def interrupted() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(operator(store).reload)
            while not b.orders:
                await anyio.lowlevel.checkpoint()
            until = store.operation().until
            while store.operation().until <= until:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    anyio.run(interrupted)
    assert store.operation().phase is FleetPhase.STOPPED
    assert store.operation().steps[1].state is FleetStepState.ORDERED
    assert "its command was interrupted" in next(store.operation().lines(store.now))


def test_an_operation_that_cannot_be_read_is_replaced_only_if_that_is_meant() -> None:
    store, *_ = fleet()
    store.document = b'{"id": 7}'
    with pytest.raises(StartError, match=r"cannot be read.*begun by another version"):
        reload(store)
    assert reload(store, resume=False) == "3 servers reloaded"


def test_a_link_that_leads_elsewhere_is_told_of_where_the_operation_stops_and_is_taken_back() -> None:
    store, a, b, _ = fleet(does=OrderState.REFUSED)
    a.moved_link = b.moved_link = "/srv/current leads to /srv/4"
    with pytest.raises(StartError, match=r"stopped: web:/srv/b: because\. /srv/current leads to /srv/4\. 1 of 3"):
        reload(store)
    said: list[str] = []
    rollback(store, said)
    assert said == ["web:/srv/a: roll back", "web:/srv/a: generation 7 serves again. /srv/current leads to /srv/4"]
