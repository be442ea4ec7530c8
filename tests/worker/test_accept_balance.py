"""A worker's place in line: what it does to the loop's own epoll, and that it works without."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest

from serve_asgi.ipc.scoreboard import MOST_AT_ONCE, Cell
from serve_asgi.worker.accept_balance import LoopFactory, WakeOrder
from serve_asgi.worker.event_loop import loop_factory
from serve_asgi.worker.scoreboard_rows import OtherWorkers
from tests.rows import Rows, cells

PATIENCE = 20.0


@pytest.fixture(params=["asyncio", "uvloop"])
def loops(request: pytest.FixtureRequest) -> LoopFactory:
    return LoopFactory(loop_factory(request.param))


@pytest.fixture
def rows() -> Iterator[Rows]:
    made = Rows(rows=8, slots=2)
    yield made
    made.close()


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


async def accept_next(order: WakeOrder, listening: socket.socket) -> None:
    """Connect a client and have it accepted by whoever is woken for it."""
    came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def readable(woken: socket.socket) -> None:
        try:
            client, _ = woken.accept()
        except BlockingIOError:
            return
        client.close()
        order.accepted(woken)
        if not came.done():
            came.set_result(None)

    order.join(listening, readable)
    for _ in range(3):  # the loop has its turns, so that the socket is registered anew
        await asyncio.sleep(0)
    with socket.create_connection(listening.getsockname()):
        await asyncio.wait_for(came, PATIENCE)


def run(loops: LoopFactory, main: Callable[[], object]) -> None:
    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(main())  # type: ignore[arg-type]


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_clients_come_whether_or_not_the_epoll_is_known(
    known: bool, loops: LoopFactory, rows: Rows, listening: socket.socket
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert loops.epoll is not None
        others = OtherWorkers(rows.board, cells())
        order = WakeOrder(loop, loops.epoll if known else None, others)
        rows.enter(5, slot=1, generation=1)[Cell.ACCEPTS] = 1  # somebody else, so that there is a line
        serial, row = rows.read[5]
        others.add(5, serial, row.again())
        for _ in range(3):
            await accept_next(order, listening)
            assert others.own[Cell.ACCEPTS] == 1
            assert order.leave() == [listening]
            assert others.own[Cell.ACCEPTS] == 0
        assert order.leave() == []

    run(loops, main)


def test_who_has_left_is_not_woken(loops: LoopFactory, rows: Rows, listening: socket.socket) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        order = WakeOrder(loop, loops.epoll, OtherWorkers(rows.board, cells()))
        await accept_next(order, listening)
        order.leave()
        with socket.create_connection(listening.getsockname()):
            arrived = asyncio.Event()
            other = listening.dup()
            loop.add_reader(other.fileno(), arrived.set)
            await asyncio.wait_for(arrived.wait(), PATIENCE)
            loop.remove_reader(other.fileno())
            other.close()
            order.tick()
            listening.accept()[0].close()  # it is still there

    run(loops, main)


def test_a_tick_looks_into_the_queue(loops: LoopFactory, rows: Rows, listening: socket.socket) -> None:
    async def main() -> None:
        order = WakeOrder(asyncio.get_running_loop(), loops.epoll, OtherWorkers(rows.board, cells()))
        looked: list[socket.socket] = []
        order.join(listening, looked.append)
        order.tick()
        assert looked == [listening]
        order.leave()

    run(loops, main)


def test_neighbours_are_counted_while_they_live_and_accept(rows: Rows) -> None:
    others = OtherWorkers(rows.board, cells())
    for index in range(3):
        row = rows.enter(index, slot=index, generation=1)
        row[Cell.ACCEPTS], row[Cell.CONNECTIONS] = 1, 10 + index
        serial, read = rows.read[index]
        others.add(index, serial, read.again())
    assert others.accepting() == [10, 11, 12]
    rows.row(1)[Cell.ACCEPTS] = 0
    rows.row(2)[Cell.CONNECTIONS] = 2**64 - 1  # whatever it writes there
    rows.fold(0)
    assert others.accepting() == [MOST_AT_ONCE]
    rows.enter(0, slot=0, generation=1)[Cell.ACCEPTS] = 1  # another one, which has not been made known
    assert others.accepting() == [MOST_AT_ONCE]
