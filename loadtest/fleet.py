"""`python -m loadtest.fleet`: what many servers make of load on one Redis or PostgreSQL that they share.

The stores of `--servers` servers (`serve_asgi.store`, as a listener drives them, without the processes around them) are
connected to one Redis and one PostgreSQL of this program's own. What is measured is the processor time of that Redis or
PostgreSQL alone, per second: it does not depend on how busy this machine is otherwise. In each case every server does
what it would do, or one of them does what all of them then hear of. docs/guides/state-store.md has the table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from serve_asgi.config.state_location import PostgresAddress, RedisAddress, store_address
from serve_asgi.hub.agent_lease import ASK
from serve_asgi.hub.state.write_evaluation import StateLimits
from serve_asgi.ipc.channel import pair
from serve_asgi.ipc.fleet_records import BEAT, OrderKind, OrderOutcome, OrderState, ServerRecord, encoded
from serve_asgi.ipc.frames import encode, pack_value
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.postgres_state import PostgresState
from serve_asgi.store.redis_state import RedisState
from serve_asgi.store.shared_store import SharedStore, end_tasks
from tests.store.postgres import own_postgres
from tests.store.stores import own_redis

TICK: Final = os.sysconf("SC_CLK_TCK")
CONNECTING: Final = 20
"""Servers that connect at a time."""


class SimulatedServer:
    """The store of one server, and the listener's end of its link, which reads what comes and drops it."""

    def __init__(self, url: str, number: int) -> None:
        ours, theirs = pair()
        self._end = ours
        ours.setblocking(False)
        address, name, limits = store_address(url), f"{number:032x}", StateLimits(65_536, 16_777_216)
        link = ListenerLink(theirs)
        self._store: SharedStore = (
            RedisState(link, address, limits, name)
            if isinstance(address, RedisAddress)
            else PostgresState(link, _checked(address), limits, name)
        )
        self.up = asyncio.Event()
        self._ids = itertools.count(1)

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._end, self._read)
        try:
            await self._store.serve([])
        finally:
            loop.remove_reader(self._end)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self._end.recv(1 << 20):
                if b"store.up" in data[:100]:
                    self.up.set()

    def say(self, kind: str, body: bytes = b"", **head: Any) -> None:
        """A frame of the listener's."""
        with contextlib.suppress(BlockingIOError):
            self._end.send(encode(kind, {"id": next(self._ids), **head}, body), socket.MSG_NOSIGNAL)

    def grant(self, name: str) -> None:
        """Ask for a lease as every other server does: one gets it."""
        self.say("store.grant", name=name, tick=time.time(), lease=20.0, holder="x", exclusive=True)


def _checked(address: object) -> PostgresAddress:
    assert isinstance(address, PostgresAddress)
    return address


async def _idle(_: list[SimulatedServer], seconds: float) -> None:
    await asyncio.sleep(seconds)


async def _every(seconds: float, period: float, do: Callable[[], None]) -> None:
    ends = time.monotonic() + seconds
    while (now := time.monotonic()) < ends:
        do()
        await asyncio.sleep(max(0.0, period - (time.monotonic() - now)))


async def _announcements(servers: list[SimulatedServer], seconds: float) -> None:
    """`serve fleet`: each server announces itself every five seconds, spread over them (`BEAT`)."""
    record = ServerRecord(
        *("web-17.example.org", 4211, "/srv/shop/current", "shop.main:app", "0.1.0", "running", "healthy", 12, 4, 4),
        *(86_400.0, None, "elsewhere", "/srv/shop/releases/2027-03-14", True, True),
        OrderOutcome("0123456789ab.17", OrderKind.RELOAD, OrderState.DONE, "generation 12 serves", 12),
    )
    turns, body = itertools.cycle(servers), encoded(record)
    await _every(seconds, BEAT / len(servers), lambda: next(turns).say("store.announce", body))


async def _agents(servers: list[SimulatedServer], seconds: float) -> None:
    """`--agent-scope cluster`: each server asks every three seconds, spread over them."""
    turns = itertools.cycle(servers)
    await _every(seconds, ASK / len(servers), lambda: next(turns).grant("serve:agent"))


async def _ticks(servers: list[SimulatedServer], seconds: float) -> None:
    """A schedule with a tick per second: every server asks for each."""

    def tick() -> None:
        for server in servers:
            server.grant("each second")

    await _every(seconds, 1.0, tick)


async def _writes(servers: list[SimulatedServer], seconds: float) -> None:
    """One write per second, of which all hear."""
    value = pack_value("x" * 100, "a value")
    await _every(seconds, 1.0, lambda: servers[0].say("store.write", value, op="set", key="k"))


async def _broadcasts(servers: list[SimulatedServer], seconds: float) -> None:
    """One broadcast per second, which all get."""
    head = {"topic": "t", "workers": False, "origin": ["worker", 0, 1]}
    await _every(seconds, 1.0, lambda: servers[0].say("store.send", b"x" * 100, **head))


CASES: Final[dict[str, Callable[[list[SimulatedServer], float], Awaitable[None]]]] = {
    "connected and idle": _idle,
    "+ its place in the fleet": _announcements,
    "+ agent's lease": _agents,
    "+ a tick per second": _ticks,
    "+ a write per second": _writes,
    "+ a broadcast per second": _broadcasts,
}


def processor_seconds(pid: int) -> float:
    """What a process and its children, also those that have ended, have used."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    used = 0
    for each in [pid, *map(int, children)]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            used += sum(map(int, fields[11:15] if each == pid else fields[11:13]))
    return used / TICK


async def measure(url: str, pid: int, count: int, seconds: float) -> Iterator[tuple[str, float]]:
    """The processor time per second in each case."""
    servers = [SimulatedServer(url, number) for number in range(count)]
    tasks: set[asyncio.Task[None]] = set()
    try:
        for some in itertools.batched(servers, CONNECTING) if hasattr(itertools, "batched") else [servers]:
            tasks |= {asyncio.create_task(server.run()) for server in some}
            for server in some:
                await server.up.wait()
        found = []
        for name, case in CASES.items():
            await asyncio.sleep(1.0)
            before, began = processor_seconds(pid), time.monotonic()
            await case(servers, seconds)
            found.append((name, (processor_seconds(pid) - before) / (time.monotonic() - began)))
        return iter(found)
    finally:
        await end_tasks(tasks)


def main() -> None:
    """Print a table for each store."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.fleet", description=__doc__)
    parser.add_argument("--servers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each case (default: %(default)s)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, own_redis(Path(directory) / "redis") as redis:
        _print("Redis", f"{redis.url}?timeout=60", redis.pid, chosen)
    with own_postgres(connections=chosen.servers + 20) as postgres:
        _print("PostgreSQL", f"{postgres.url}&timeout=60", postgres.pid, chosen)


def _print(label: str, url: str, pid: int, chosen: argparse.Namespace) -> None:
    for name, used in asyncio.run(measure(url, pid, chosen.servers, chosen.seconds)):
        print(f"{label}, {chosen.servers} servers, {name}: {used * 100:.2f} % of a core", flush=True)


if __name__ == "__main__":
    main()
