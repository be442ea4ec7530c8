"""Offer, take, commit: what becomes of a connection at every step at which either side can fail."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import resource
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.ipc.channel import pair
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.worker.event_loop import loop_factory
from serve_asgi.worker.hand_over_receiver import HandOverReceiver
from serve_asgi.worker.hand_over_sender import MAX_IN_FLIGHT, HandOverSender
from tests.rows import cells

LOOPS = ["asyncio", "uvloop"]
closing = contextlib.ExitStack()
"""Everything that the running test has opened."""


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a coroutine on each kind of loop."""

    def runner(main: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            with closing:
                await asyncio.wait_for(main, 20)

        with asyncio.Runner(loop_factory=loop_factory(request.param)) as loop:
            loop.run(bounded())

    return runner


class Connection:
    """A connection over a real socket; `client` is the other end."""

    def __init__(self, leftover: bytes = b"") -> None:
        self.client, self.socket = map(closing.enter_context, socket.socketpair())
        self.leftover = leftover
        self.events: list[str] = []
        self.remained = 0
        self.refused = False

    def can_leave(self) -> bool:
        return not self.events or self.events[-1] == "stay"

    def leave(self) -> tuple[int, HandOverRecord]:
        duplicate = os.dup(self.socket.fileno())
        self.events.append("leave")
        return duplicate, HandOverRecord(self.leftover, ("::1", 5), None, math.inf, 3)

    def stay(self) -> None:
        self.events.append("stay")

    def refused_for_good(self) -> None:
        self.refused = True

    def remain(self) -> None:
        self.remained += 1

    def gone(self) -> None:
        self.events.append("gone")
        self.socket.close()


@dataclasses.dataclass
class Side:
    """One receiving worker."""

    receiver: HandOverReceiver
    arrived: list[tuple[socket.socket, HandOverRecord]]
    orphaned: list[int]
    end: int

    def take_part(self, number: int = 1) -> None:
        self.receiver.add_sender(number, self.end)
        self.end = -1

    def close(self) -> None:
        self.receiver.close()
        if self.end >= 0:
            os.close(self.end)
        for arrived, _ in self.arrived:
            arrived.close()


class World:
    """A sender, its row, and receivers that may be made to misbehave."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.rows = [cells()]
        closing.callback(self.close)
        self.withdrawn: list[int] = []
        self.again = 0
        self.listener_hears = True
        self.sender = HandOverSender(self.loop, self.rows[0], self._withdraw, self._go_again)
        self.pairs = 0
        self.sides: list[Side] = []

    def close(self) -> None:
        self.sender.close()
        for side in self.sides:
            side.close()

    def _withdraw(self, number: int) -> bool:
        if self.listener_hears:
            self.withdrawn.append(number)
        return self.listener_hears

    def _go_again(self) -> None:
        self.again += 1

    def receiver(self, understands: Callable[[HandOverRecord], bool] = lambda _: True) -> Side:
        ours, theirs = pair()
        self.pairs += 1
        arrived: list[tuple[socket.socket, HandOverRecord]] = []
        orphaned: list[int] = []
        self.rows.append(row := cells())
        row[Cell.HEARTBEAT] = time.monotonic_ns()
        receiver = HandOverReceiver(
            self.loop, row, orphaned.append, lambda s, r: arrived.append((s, r)), understands=understands
        )
        self.sender.add_receiver(self.pairs, ours.detach(), row)
        self.sides.append(Side(receiver, arrived, orphaned, theirs.detach()))
        return self.sides[-1]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_hundreds_travel_with_what_was_read(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        world = World()
        side = world.receiver()
        side.take_part()
        connections = [Connection(b"GET / HT" if n % 2 else b"") for n in range(400)]
        for connection in connections:
            world.sender.hand_over(connection)
        await until(lambda: len(side.arrived) == 400)
        assert all(connection.events == ["leave", "gone"] for connection in connections)
        assert sorted(r.leftover for _, r in side.arrived) == [b""] * 200 + [b"GET / HT"] * 200
        assert side.arrived[0][1].requests == 3
        for (arrived, _), connection in zip(side.arrived, connections, strict=True):
            connection.client.send(b"x")
            assert arrived.recv(1) == b"x"
        assert world.rows[0][Cell.HANDED_OVER] == 400
        assert world.rows[1][Cell.TAKEN_OVER] == 400
        assert world.sender.idle.is_set()

    run(main())


def test_a_long_leftover_travels(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        world = World()
        side = world.receiver()
        side.take_part()
        leftover = os.urandom(300_000)
        world.sender.hand_over(Connection(leftover))
        await until(lambda: bool(side.arrived))
        assert side.arrived[0][1].leftover == leftover

    run(main())


def test_a_refused_connection_goes_to_another(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        world = World()
        first, second = world.receiver(), world.receiver()
        first.take_part()
        first.receiver.refuse()
        second.take_part(2)
        world.rows[2][Cell.CONNECTIONS] = 10  # so that the first is asked first
        connection = Connection()
        world.sender.hand_over(connection)
        await until(lambda: bool(second.arrived))
        assert connection.events == ["leave", "stay", "leave", "gone"]

    run(main())


def test_a_connection_goes_to_a_worker_that_understands_it(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        world = World()
        first, second = world.receiver(lambda record: record.leftover != b"new"), world.receiver()
        first.take_part()
        second.take_part(2)
        world.rows[2][Cell.CONNECTIONS] = 10  # so that the first is asked first
        connection = Connection(b"new")
        world.sender.hand_over(connection)
        await until(lambda: bool(second.arrived))
        assert connection.events == ["leave", "stay", "leave", "gone"]

    run(main())


def test_a_connection_that_is_not_understood_stays_alone(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    """The receiver that could not go on with it takes the others; it is not asked about this one again."""

    async def main() -> None:
        world = World()
        asked: list[bytes] = []

        def understands(record: HandOverRecord) -> bool:
            asked.append(record.leftover)
            return record.leftover != b"new"

        side = world.receiver(understands)
        side.take_part()
        connection, others = Connection(b"new"), [Connection(b"known") for _ in range(3)]
        world.sender.hand_over(connection)
        await until(lambda: bool(connection.remained))
        assert connection.events == ["leave", "stay"]
        for each in others:
            world.sender.hand_over(each)
        await until(lambda: len(side.arrived) == 3)
        assert (connection.refused, connection.remained) == (True, 1)
        assert not any(each.refused for each in others)
        world.sender.hand_over(connection)
        assert connection.remained == 2
        assert asked == [b"new", *[b"known"] * 3]

    run(main())


def test_a_connection_that_nobody_takes_stays(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        world = World()
        side = world.receiver()
        side.take_part()
        side.receiver.refuse()
        connection = Connection()
        world.sender.hand_over(connection)
        await until(lambda: bool(connection.remained))
        assert (connection.events, connection.refused) == (["leave", "stay"], False)
        await until(lambda: bool(world.again))  # it is tried again, and taken this time
        side.receiver.refusing = False
        world.sender.hand_over(connection)
        await until(lambda: bool(side.arrived))

    run(main())


def test_a_receiver_whose_loop_is_blocked_is_offered_nothing(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def main() -> None:
        world = World()
        world.receiver()
        world.rows[1][Cell.HEARTBEAT] -= int(10e9)
        connection = Connection()
        world.sender.hand_over(connection)
        assert connection.events == []
        assert connection.remained
        await until(lambda: bool(world.again))

    run(main())


def test_the_end_of_the_receiver_gives_back_what_was_not_committed(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def main() -> None:
        world = World()
        side = world.receiver()
        connection = Connection()
        world.sender.hand_over(connection)
        assert connection.events == ["leave"]
        os.close(side.end)
        side.end = -1
        await until(lambda: bool(connection.remained))
        assert connection.events == ["leave", "stay"]

    run(main())


def test_a_stopped_receiver_is_withdrawn_from_and_drops_what_it_finds_later(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def main() -> None:
        world = World()
        side = world.receiver()
        connection = Connection()
        world.sender.hand_over(connection)  # the receiver does not read: it is stopped
        await until(lambda: bool(connection.remained))
        assert world.withdrawn == [1]
        assert connection.events == ["leave", "stay"]
        side.take_part()  # it goes on: finds the offer, the end of the pair, and no commit
        await until(lambda: bool(side.orphaned))
        assert not side.arrived
        side.receiver.verdict(1, keep=False)
        connection.client.send(b"x")
        assert connection.socket.recv(1) == b"x"
        assert not side.arrived

    run(main())


def test_the_connections_of_a_sender_that_died_are_kept(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        world = World()
        side = world.receiver()
        connection = Connection()
        world.sender.hand_over(connection)
        world.sender.close()  # as by its death: no commit, no withdrawal
        side.take_part()
        await until(lambda: bool(side.orphaned))
        assert not side.arrived
        side.receiver.verdict(1, keep=True)
        (arrived, _) = side.arrived[0]
        connection.client.send(b"x")
        assert arrived.recv(1) == b"x"

    run(main())


def test_a_receiver_out_of_descriptors_refuses(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        world = World()
        side = world.receiver()
        connection = Connection()
        world.sender.hand_over(connection)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        side.take_part()
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            await until(lambda: bool(connection.remained))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert connection.events == ["leave", "stay"]
        assert not side.arrived

    run(main())


def test_give_up_brings_everything_back(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        world = World()
        world.receiver()
        connections = [Connection() for _ in range(MAX_IN_FLIGHT + 10)]
        for connection in connections:
            world.sender.hand_over(connection)
        world.sender.give_up()
        assert world.withdrawn == [1]
        assert all(connection.can_leave() and connection.remained for connection in connections)

    run(main())


@pytest.mark.parametrize("leftover", [b"", b"x" * 100_000], ids=["short", "long"])
@pytest.mark.parametrize("spare", [0, 1])
def test_a_sender_out_of_descriptors_tries_again(
    run: Callable[[Coroutine[Any, Any, None]], None], leftover: bytes, spare: int
) -> None:
    """It needs one or two for an offer; until it has them the connection is served here."""

    async def main() -> None:
        world = World()
        side = world.receiver()
        side.take_part()
        connection = Connection(leftover)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = os.dup(0)
        os.close(highest)  # the next free number; all below are in use
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + spare, hard))
        try:
            world.sender.hand_over(connection)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: len(side.arrived) == 1)
        assert connection.events[-2:] == ["leave", "gone"]
        assert side.arrived[0][1].leftover == leftover

    run(main())


def test_nothing_is_read_again_before_the_listener_has_been_told(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    """Or else, if the sender died later, the receiver would be told to keep a connection that had been read."""

    async def main() -> None:
        world = World()
        world.receiver()
        connection = Connection()
        world.sender.hand_over(connection)
        world.listener_hears = False
        world.sender.give_up()
        assert connection.events == ["leave"]
        world.listener_hears = True
        await until(lambda: bool(world.withdrawn))
        assert connection.events == ["leave", "stay"]

    run(main())
