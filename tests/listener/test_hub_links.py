"""The links between the listener's hub and its children, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Coroutine, Mapping
from typing import Any, ClassVar

import msgspec

from serve_asgi.hub.core import Hub, HubComponent, HubSettings, Member, MemberOrder
from serve_asgi.ipc.frames import Frame, ValidatedFrame, decode, encode
from serve_asgi.ipc.membership_frames import MemberPhase
from serve_asgi.ipc.scoreboard import Header, Scoreboard
from serve_asgi.listener.hub_links import ROOM, HubLinks
from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import Policy, Worker, WorkerState
from serve_asgi.supervisor.supervisor import Supervisor

POLICY = Policy(2, 2, 3, 60.0, 30.0, 10.0, 0.0)
PATIENCE = 20.0


class Count(msgspec.Struct):
    """The head of a frame `count`."""

    n: int
    echo: bool = False


class Counting(HubComponent):
    """Takes `count` frames, and sends an `echo` back to the member that sent one with `echo`."""

    name = "counting"
    kinds: ClassVar[Mapping[str, type]] = {"count": Count}

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.taken: list[tuple[int, int]] = []
        self.phases: list[tuple[int, str]] = []
        self.rooms: list[int] = []
        self.enough = asyncio.Event()
        self.wanted = 0

    def take(self, member: Member, frame: ValidatedFrame) -> None:
        self.taken.append((member.id, frame.head.n))
        if frame.head.echo:
            self.hub.send(member, "echo", {"n": frame.head.n}, frame.body)
        if len(self.taken) >= self.wanted:
            self.enough.set()

    def changed(self, member: Member, before: MemberPhase) -> None:
        self.phases.append((member.id, member.phase.value))

    def room_available(self, member: Member) -> None:
        self.rooms.append(member.id)

    async def until(self, count: int) -> None:
        self.wanted = count
        if len(self.taken) < count:
            self.enough.clear()
            await asyncio.wait_for(self.enough.wait(), PATIENCE)


class Setting:
    """Links with a supervisor whose first workers are there, and what happened to them."""

    def __init__(self) -> None:
        self.board = Scoreboard.create(8, 4)
        self.broken: list[int] = []
        self.said: list[actions.LogEvent] = []
        self.links = HubLinks(
            HubSettings(), self.board, self.said.append, lambda member, why: self.broken.append(member)
        )
        self.part = Counting(self.links.hub)
        self.links.hub.add(self.part)
        self.supervisor = Supervisor(POLICY)
        self.supervisor.start(0.0)
        self.links.follow(self.supervisor)
        self.ends: dict[int, socket.socket] = {}

    def link(self, member: int) -> socket.socket:
        end = self.ends[member] = self.links.open(member)
        self.links.linked(member)
        return end

    def close(self) -> None:
        self.links.close()
        for end in self.ends.values():
            end.close()
        self.board.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def received(end: socket.socket) -> list[Frame]:
    """All that lies in the socket."""
    frames = []
    end.setblocking(False)
    try:
        while data := end.recv(300_000):
            frames.append(decode(data))
    except BlockingIOError:
        pass
    return frames


def test_frames_are_taken_in_order_and_other_things_get_their_turn() -> None:
    async def main() -> None:
        setting = Setting()
        setting.links.start()
        ends = [setting.link(member) for member in (1, 2)]
        turns = 0
        loop = asyncio.get_running_loop()

        def turn() -> None:
            nonlocal turns
            turns += 1
            loop.call_soon(turn)

        loop.call_soon(turn)
        for number in range(150):  # as many as a socket's buffer holds for sure
            for end in ends:
                end.send(encode("count", {"n": number}))
        await setting.part.until(300)
        for member in (1, 2):
            assert [n for id, n in setting.part.taken if id == member] == list(range(150))
        assert turns > 3  # they did not all come in one turn of the loop
        setting.close()

    run(main())


def test_what_has_no_room_waits_in_order_and_room_is_told() -> None:
    async def main() -> None:
        setting = Setting()
        setting.links.start()
        end = setting.link(1)
        hub, member = setting.links.hub, setting.links.hub.members[1]
        received(end)
        body = bytes(50_000)
        for number in range(ROOM + 20):
            hub.send(member, "echo", {"n": number}, body)
        assert not setting.links.has_room(1)
        assert setting.links.has_room(2)
        numbers: list[int] = []
        while len(numbers) < ROOM + 20:
            numbers += [frame.head["n"] for frame in received(end)]
            await asyncio.sleep(0)
        assert numbers == list(range(ROOM + 20))
        assert setting.part.rooms == [1]
        assert setting.links.has_room(1)
        setting.close()

    run(main())


def test_the_last_words_of_a_dead_process_are_taken_before_its_death() -> None:
    async def main() -> None:
        setting = Setting()
        setting.links.start()
        end = setting.link(1)
        for number in range(100):
            end.send(encode("count", {"n": number}))
        end.close()
        setting.links.read_rest(1)
        assert len(setting.part.taken) == 100
        del setting.supervisor.processes.workers[1]
        setting.links.follow(setting.supervisor)
        assert 1 not in setting.links.hub.members
        setting.links.send(1, encode("echo"))  # nobody is there: dropped
        setting.close()

    run(main())


def test_who_sends_nonsense_is_told_of_and_heard_no_more() -> None:
    async def main() -> None:
        setting = Setting()
        setting.links.start()
        end, other = setting.link(1), setting.link(2)
        end.send(b"\x00\x01nonsense")
        end.send(encode("count", {"n": 1}))
        other.send(encode("count", {"wrong": 1}))
        third = encode("count", {"n": 2})
        while len(setting.broken) < 2:
            await asyncio.sleep(0)
        assert sorted(setting.broken) == [1, 2]
        other.send(third)
        await asyncio.sleep(0)
        assert setting.part.taken == []
        setting.close()

    run(main())


def test_new_workers_serve_before_the_old_ones_retire() -> None:
    setting = Setting()
    supervisor, hub = setting.supervisor, setting.links.hub
    first = list(supervisor.workers.values())
    for member in hub.members:
        hub.take(member, encode("up"))
    serve(supervisor, first)
    setting.links.follow(supervisor)
    assert setting.part.phases == [(1, "up"), (2, "up"), (1, "serving"), (2, "serving")]
    assert hub.ready
    supervisor.handle(e.ReloadAsked(), 1.0)
    supervisor.handle(e.ReloadPrepared(POLICY), 1.0)
    setting.links.follow(supervisor)
    for member in (3, 4):
        hub.take(member, encode("up"))
    setting.part.phases.clear()
    serve(supervisor, [w for w in supervisor.workers.values() if w not in first])
    setting.links.follow(supervisor)
    assert setting.part.phases == [(3, "serving"), (4, "serving"), (1, "retiring"), (2, "retiring")]
    setting.close()


def serve(supervisor: Supervisor, workers: list[Worker]) -> None:
    for worker in workers:
        supervisor.handle(e.WorkerReady(worker), 1.0)
    supervisor.handle(e.PortsOpened(), 1.0)
    for worker in workers:
        supervisor.handle(e.WorkerAccepts(worker), 1.0)
    assert all(worker.state is WorkerState.SERVING for worker in workers)


def test_another_program_goes_on_with_the_links() -> None:
    async def before(setting: Setting) -> Any:
        setting.links.start()
        end = setting.link(1)
        setting.links.hub.take(1, encode("up"))
        received(end)
        member = setting.links.hub.members[1]
        for number in range(30):
            setting.links.hub.send(member, "echo", {"n": number}, bytes(50_000))
        end.send(encode("count", {"n": 7}))
        descriptors: list[int] = []
        state = json.loads(json.dumps(setting.links.to_state(descriptors)))
        for each in state["links"].values():
            each["fd"] = os.dup(each["fd"])  # as it would be kept over execve(2)
        setting.links.close()
        return state

    async def after(setting: Setting, state: Any) -> None:
        links = HubLinks(
            HubSettings(), setting.board, setting.said.append, lambda member, why: setting.broken.append(member)
        )
        part = Counting(links.hub)
        links.hub.add(part)
        links.load(state)
        links.start()
        await part.until(1)
        assert part.taken == [(1, 7)]
        assert links.hub.members[1].phase is MemberPhase.UP
        numbers: list[int] = []
        while len(numbers) < 30:
            numbers += [frame.head["n"] for frame in received(setting.ends[1])]
            await asyncio.sleep(0)
        assert numbers == list(range(30))
        links.hub.order(1, MemberOrder.SERVE)
        links.close()

    setting = Setting()
    state = asyncio.run(before(setting))
    asyncio.run(after(setting, state))
    setting.close()  # again: nothing is left to close but the ends


def test_what_is_published_is_in_the_scoreboard() -> None:
    setting = Setting()
    setting.links.publish(42)
    assert setting.board.words[Header.STATE] == 42
    setting.close()


def test_a_flood_of_one_member_keeps_no_other_from_being_heard() -> None:
    async def main() -> None:
        setting = Setting()
        setting.links.start()
        flooding, other = setting.link(1), setting.link(2)
        flooding.setblocking(False)
        loop = asyncio.get_running_loop()
        data = encode("count", {"n": 0})

        def flood() -> None:
            with contextlib.suppress(BlockingIOError):
                for _ in range(500):
                    flooding.send(data)
            loop.call_soon(flood)

        loop.call_soon(flood)
        await setting.part.until(500)
        other.send(encode("count", {"n": 1}))
        before = len(setting.part.taken)
        while not any(member == 2 for member, _ in setting.part.taken[before:]):
            assert len(setting.part.taken) < before + 5_000
            await asyncio.sleep(0)
        setting.close()

    run(main())
