"""Random histories of WebSockets over several lives: deploys, roll-backs and failures in any order, at any moment.

Whatever happens, each message is seen once and in order, or the connection has visibly ended; no call of the
application, no timer and no descriptor outlives its connection; and what nobody has spoiled is alive at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import time
from typing import Any, Final

import pytest

from serve_asgi.http import survival
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.dropped_messages import ClientDisconnected
from serve_asgi.ipc.scoreboard import Scoreboard
from tests.connection_server import LOOPS
from tests.rows import websockets_timed
from tests.websocket.lives import PATIENCE, Client, Courier, Told, Worker

SEEDS: Final = range(int(os.environ.get("LIVES", "25")))
"""Histories that a run of the tests goes through; each takes some 0.2 s."""
STEPS: Final = 60


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survival, "LEAST_LIFE", 0.0)


class History:
    """One connection, and all that happens to it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.told = Told()
        self.spoiled: list[str] = []
        """What entitles the connection to an end."""
        self.courier = Courier()
        self.scoreboard = Scoreboard.create(1, 1)
        self.workers: list[Worker] = []
        self.add_worker()
        self.sent = 0
        self.open_message = False
        self.pings = 0
        self.tamed = False
        self.left_behind: set[asyncio.Task[None]] = set()

    def add_worker(self) -> None:
        sizes = (16 << 20, 1 << 20)
        config: dict[str, Any] = {"survive_window": 0.0, "survive_timeout": 1.0, "ws_retire_window": 0.0}
        config["http"] = self.random.choice(("httptools", "h11"))
        config["ws_max_size"] = self.random.choice(sizes)
        config["ws_deflate"] = self.random.random() < 0.8 or not self.workers
        config["ws_retire"] = self.random.choice(("early", "late"))
        self.workers.append(Worker(self.app, self.scoreboard, self.courier, **config))

    def chance(self, share: float) -> bool:
        return not self.tamed and self.random.random() < share

    # ---- the application

    async def app(self, worker: Worker, scope: Any, receive: Any, send: Any) -> None:
        told = self.told
        told.lives += 1
        asks_late = self.chance(0.03)
        kept = None if asks_late else worker.survive(scope, version=told.lives)
        assert (await receive())["type"] == "websocket.connect"
        for _ in range(self.random.choice((0, 0, 1, 5))):
            await asyncio.sleep(0)
        await send({"type": "websocket.accept"})
        if asks_late:
            self.spoiled.append("asked late")  # its worker may have closed it before
            await asyncio.sleep(0)
            kept = worker.survive(scope)
        if kept is None:
            self.spoiled.append("asked when it was over")
            return
        if not kept.resumed:
            kept.state = {"received": 0, "sent": 0}
        state = kept.state
        if state != {"received": len(told.received), "sent": told.sent}:
            told.problems.append(f"life {told.lives} has {state}, after {len(told.received)} and {told.sent}")
        if kept.resumed and self.chance(0.02):
            self.spoiled.append("refused")
            kept.refuse("no")
        pushes = self.chance(0.3)
        lock, stop = asyncio.Lock(), False

        async def say() -> None:
            async with lock:
                size = self.random.choice((0, 10, 1000, 50_000))
                await send({"type": "websocket.send", "text": f"{told.sent + 1} " + "é" * size})
                told.sent += 1
                state["sent"] = told.sent

        async def push() -> None:
            with contextlib.suppress(ClientDisconnected):
                while not stop and not self.tamed:
                    await say()
                    await asyncio.sleep(0.001)

        pusher = asyncio.get_running_loop().create_task(push()) if pushes else None
        try:
            while (message := await receive())["type"] == "websocket.receive":
                number = int(message["text"].partition(" ")[0])
                told.received.append(number)
                state["received"] = number
                if self.random.random() < 0.7:
                    await say()
                if self.random.random() < 0.1:
                    await asyncio.sleep(0.001)
                if worker.retiring() and self.chance(0.2):
                    break  # by itself
            if message["type"] == "websocket.disconnect" and message["reason"] == "handed over":
                for _ in range(self.random.choice((0, 1, 3))):
                    await say()
                if self.random.random() < 0.2:
                    await send({"type": "websocket.close"})
        finally:
            stop = True
            async with lock:
                pass  # what it is sending is out, or is not
            if pusher is not None:
                await pusher
        if self.chance(0.02):
            self.spoiled.append("raised")
            raise ValueError("spoiled")
        if self.chance(0.02):
            self.spoiled.append("unfit")
            kept.state = {1}
        if self.chance(0.005):
            self.spoiled.append("hung")
            await asyncio.sleep(1.5)
        if self.random.random() < 0.3:
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: self.left_behind.add(loop.create_task(self.leftover(send))))

    async def leftover(self, send: Any) -> None:
        """A task that an application has left behind."""
        with contextlib.suppress(OSError, RuntimeError):
            for _ in range(200):
                await send({"type": "websocket.send", "text": "leftover"})
                await asyncio.sleep(0.001)

    # ---- what happens

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = _pair(self.random)
        client = Client(self.random.random() < 0.5)
        first = self.workers[0]
        connection: Any = Http1Connection(first.context)
        began = time.monotonic()
        await loop.connect_accepted_socket(lambda: connection, ours)
        if theirs.family == socket.AF_UNIX:
            await loop.create_unix_connection(lambda: client, sock=theirs)
        else:
            await loop.create_connection(lambda: client, sock=theirs)
        await asyncio.wait_for(client.opened.wait(), PATIENCE)
        opened = time.monotonic()
        for _ in range(STEPS):
            await self.step(client)
        closing = await self.settle(client)
        accepted, ended, duration = websockets_timed(*(worker.context.cells for worker in self.workers))
        assert (accepted, ended) == (1, 1)
        assert (closing - opened if closing else 0) <= duration <= time.monotonic() - began

    async def step(self, client: Client) -> None:
        worker, happens = self.workers[-1], self.random.random()
        if happens < 0.35:
            self.client_sends(client)
        elif happens < 0.40:
            self.client_pings(client)
        elif happens < 0.45:
            client.transport.pause_reading()
        elif happens < 0.50:
            client.transport.resume_reading()
        elif happens < 0.60:
            worker.retire()
        elif happens < 0.68:
            self.courier.offer()
            if self.random.random() < 0.5:
                await self.commit()
        elif happens < 0.75:
            await self.commit()
        elif happens < 0.78:
            self.courier.withdraw()
        elif happens < 0.80:
            self.courier.keep()
        elif happens < 0.83:
            self.courier.withdraw()
            worker.serve_again()
        elif happens < 0.85:
            worker.tick()
        elif happens < 0.853:
            self.spoiled.append("closed by its client")
            client.close()
        elif happens < 0.855:
            self.spoiled.append("ended by its client")
            client.end()
        elif happens < 0.857:
            self.spoiled.append("aborted by its client")
            client.transport.abort()
        elif happens < 0.859:
            self.spoiled.append("nobody takes it")
            self.courier.withdraw()
            worker.close()
        elif happens < 0.861:
            self.spoiled.append("cut")
            self.courier.withdraw()
            worker.cut()
        elif happens < 0.93:
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(self.random.choice((0.001, 0.005, 0.02)))

    async def commit(self) -> None:
        if self.courier.offered:
            self.add_worker()
            await self.courier.commit(self.workers[-1])

    def client_sends(self, client: Client) -> None:
        if not client.is_open():
            return
        if self.open_message:
            self.open_message = self.random.random() < 0.5
            client.protocol.send_continuation(os.urandom(2000).hex().encode(), fin=not self.open_message)
        else:
            self.sent += 1
            self.open_message = self.random.random() < 0.2
            text = f"{self.sent} " + "ä" * self.random.choice((0, 20, 3000, 100_000))
            client.protocol.send_text(text.encode(), fin=not self.open_message)
        client.flush(self.random if self.random.random() < 0.5 else None)

    def client_pings(self, client: Client) -> None:
        if client.is_open():
            self.pings += 1
            client.protocol.send_ping(b"%d" % self.pings)
            client.flush()

    # ---- the end

    async def settle(self, client: Client) -> float:
        """All goes well from here on: what was sent arrives, unless the connection has ended.

        Returns when it was closed in the end (CLOCK_MONOTONIC, s), or 0.0 if it was not open any more, or may not have
        been: where it could not go on, the worker may have ended it a moment before.
        """
        self.tamed = True
        if not client.transport.is_closing():
            client.transport.resume_reading()
        while self.open_message and client.is_open():
            self.client_sends(client)
        client.flush()
        end = asyncio.get_running_loop().time() + PATIENCE
        while not client.ended and not (self.spoiled and client.protocol.close_rcvd):
            if self.all_arrived(client) and self.resting():
                break
            if asyncio.get_running_loop().time() > end:
                raise AssertionError(f"stuck: {self.describe(client)}")
            await self.help_on()
        assert not self.told.problems, self.told.problems
        lived = not client.ended and client.protocol.close_rcvd is None
        assert lived or self.spoiled, f"ended by nobody: {self.describe(client)}"
        numbers = [int(text.partition(" ")[0]) for text in client.messages if text != "leftover"]
        assert len(numbers) == len(client.messages), "an ended life was heard"
        assert numbers == list(range(1, len(numbers) + 1)), numbers
        assert self.told.received == list(range(1, len(self.told.received) + 1)), self.told.received
        pongs = list(map(int, client.pongs))
        assert pongs == sorted(set(pongs)), pongs
        if lived:
            assert len(self.told.received) == self.sent
            assert len(numbers) == self.told.sent
        closing = time.monotonic() if lived and not self.spoiled else 0.0
        client.close()
        while not (client.ended and all(worker.is_empty() for worker in self.workers)):
            assert asyncio.get_running_loop().time() < end, f"not empty: {self.describe(client)}"
            await self.help_on()
        await asyncio.gather(*self.left_behind)
        return closing

    def all_arrived(self, client: Client) -> bool:
        """Whether nothing is under way: all messages, and the answer to the last ping."""
        told, pongs = self.told, client.pongs
        return (
            len(told.received) >= self.sent
            and len(client.messages) >= told.sent
            and (not self.pings or pongs[-1:] == [b"%d" % self.pings])
        )

    def resting(self) -> bool:
        return not self.courier.waiting and not self.courier.offered

    async def help_on(self) -> None:
        self.courier.offer()
        await self.commit()
        for worker in self.workers:
            if worker is not self.workers[-1] or worker.retiring():
                worker.retire()  # as a sender does a little later
        for worker in self.workers:
            worker.tick()
        await asyncio.sleep(0.001)

    def describe(self, client: Client) -> str:
        states = [getattr(each, "state", each) for worker in self.workers for each in worker.context.connections]
        return (
            f"{states} after {self.told.lives} lives; sent {self.sent}, received {len(self.told.received)}; "
            f"answered {self.told.sent}, got {len(client.messages)}; pings {self.pings}, pongs {client.pongs[-3:]}; "
            f"spoiled {self.spoiled}; {client.code()}; {client.ended}"
        )


def _pair(chosen: random.Random) -> tuple[socket.socket, socket.socket]:
    """The server's end and the client's, both not blocking."""
    if chosen.random() < 0.5:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.socket()
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            theirs.connect(listener.getsockname())
            ours, _ = listener.accept()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


async def _history(seed: int) -> None:
    problems: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context))
    history = History(seed)
    try:
        await history.run()
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, others
        timers = [each for each in getattr(loop, "_scheduled", ()) if not each.cancelled()]
        assert not [each for each in timers if "LifeEnd" in repr(each) or "PlannedClose" in repr(each)], timers
    finally:
        history.scoreboard.words.release()
        history.scoreboard.close()
    assert not problems, problems


def sockets() -> set[str]:
    """Those that this process has open, by their inodes (proc(5))."""
    found = set()
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{each}"))
    return {name for name in found if name.startswith("socket:")}


def run_history(seed: int, loop_name: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        runner.run(asyncio.sleep(0))  # the first loop of a process keeps descriptors
    before = sockets()
    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        runner.run(_history(seed))
    gc.collect()
    assert not sockets() - before, "a socket is left"


@pytest.mark.parametrize("loop_name", ["uvloop", "asyncio"])
def test_each_message_is_seen_once_or_the_connection_has_visibly_ended(loop_name: str) -> None:
    for seed in SEEDS:
        try:
            run_history(seed, loop_name)
        except BaseException as error:
            error.add_note(f"history {seed} on {loop_name}")
            raise
