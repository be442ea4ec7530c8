"""A process's end of its link, over a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import pytest
import uvloop

from serve_asgi.app.hub_link import Identity, LinkClosed
from serve_asgi.ipc.channel import pair
from serve_asgi.ipc.frames import Frame, decode, encode
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.worker.hub_socket import HubSocket

IDENTITY = Identity(Role.WORKER, 0, 1, 1)
PATIENCE = 20.0

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=request.param)


def joined() -> tuple[HubSocket, socket.socket, list[Frame]]:
    ours, theirs = pair()
    hub = HubSocket(ours, IDENTITY, asyncio.get_running_loop())
    taken: list[Frame] = []
    hub.link.on_frame("news", taken.append)
    return hub, theirs, taken


def test_frames_go_out_in_order_also_when_the_socket_is_full(runner: asyncio.Runner) -> None:
    async def main() -> None:
        hub, listener, _ = joined()
        listener.setblocking(False)
        for number in range(100):
            hub.link.send("count", {"n": number}, bytes(20_000))
        numbers: list[int] = []
        while len(numbers) < 100:
            try:
                numbers.append(decode(listener.recv(300_000)).head["n"])
            except BlockingIOError:
                await asyncio.sleep(0.001)
        assert numbers == list(range(100))
        await asyncio.wait_for(hub.flushed(), PATIENCE)
        hub.close()
        listener.close()

    with runner:
        runner.run(main())


def test_the_end_of_the_listener_closes_the_link(runner: asyncio.Runner) -> None:
    async def main() -> None:
        hub, listener, taken = joined()
        closed = asyncio.Event()
        hub.link.on_close(closed.set)
        listener.send(encode("news", {"n": 1}))
        listener.close()
        await asyncio.wait_for(closed.wait(), PATIENCE)
        assert [frame.head["n"] for frame in taken] == [1]
        with pytest.raises(LinkClosed):
            hub.link.send("count")
        await asyncio.wait_for(hub.flushed(), PATIENCE)
        hub.close()

    with runner:
        runner.run(main())


def test_catching_up_reads_until_it_has_what_is_wanted(runner: asyncio.Runner) -> None:
    async def main() -> None:
        hub, listener, taken = joined()
        listener.send(encode("news", {"n": 1}))
        later = threading.Timer(0.05, lambda: [listener.send(encode("news", {"n": n})) for n in (2, 3)])
        later.start()
        assert hub.catch_up(lambda: any(frame.head["n"] == 3 for frame in taken), PATIENCE)
        assert [frame.head["n"] for frame in taken] == [1, 2, 3]
        assert not hub.catch_up(lambda: len(taken) == 4, 0.01)  # it never comes: the wait ends
        listener.close()
        assert not hub.catch_up(lambda: len(taken) == 4, PATIENCE)  # and at once if it cannot come
        later.join()
        hub.close()

    with runner:
        runner.run(main())


def test_what_nobody_takes_and_what_cannot_be_taken_costs_nothing(
    runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        hub, listener, taken = joined()

        def refuse(frame: Frame) -> None:
            raise KeyError("missing")

        hub.link.on_frame("bad", refuse)
        for data in (encode("tomorrow's"), encode("bad"), b"nonsense", encode("news", {"n": 1})):
            listener.send(data)
        assert hub.catch_up(lambda: bool(taken), PATIENCE)
        hub.close()
        listener.close()

    with runner:
        runner.run(main())
    assert sum("could not be decoded" in record.getMessage() for record in caplog.records) == 2
