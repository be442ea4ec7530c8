"""What children may not say, drawn from fixed seeds: it ends who says it, and the hub and the listener go on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgpack
import pytest

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub, HubSettings, MemberOrder
from serve_asgi.hub.create_hub import create_hub
from serve_asgi.ipc import packets
from serve_asgi.ipc.membership_frames import Role
from tests.fuzzing import grammar
from tests.fuzzing.fuzz_children import run
from tests.hub.port import RecordingPort

FRAMES = 3_000


class Server:
    """A hub whose members are replaced when they have said what they must not."""

    def __init__(self, *, stored: bool) -> None:
        self.now = 1000.0
        self.port = RecordingPort()
        self.hub: Hub = create_hub(
            self.port, HubSettings(agent=True, stored=stored), lambda: self.now, lambda: self.now
        )
        self.next = 1
        self.ended = 0
        for _ in range(4):
            self.add()

    def add(self) -> None:
        id, self.next = self.next, self.next + 1
        role = Role.AGENT if id % 4 == 0 else Role.WORKER
        self.hub.join(id, role, 1, -1 if role is Role.AGENT else id % 3)
        self.hub.linked(id)
        self.hub.order(id, MemberOrder.SERVE)

    def hear(self, member: int, data: bytes) -> None:
        try:
            self.hub.take(member, data)
        except ChannelError:
            self.ended += 1
            self.hub.leave(member)
            self.add()

    def go_on(self) -> None:
        self.now += 0.05
        self.hub.tick()
        self.hub.metrics()
        for sent in self.port.sent.values():
            sent.clear()
        self.port.to_store.clear()


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_members_say_the_hub_raises_nothing_else(seed: int, stored: bool) -> None:
    draw, server = random.Random(seed), Server(stored=stored)
    for number in range(FRAMES):
        member = draw.choice(list(server.hub.members))
        server.hear(member, grammar.link_frame(draw, member, 0.2))
        if number % 10 == 0:
            server.go_on()
    assert server.ended > FRAMES / 50
    msgpack.packb(server.hub.to_state())  # another program of the listener could go on with it


def test_whatever_a_store_says_the_hub_raises_nothing_else() -> None:
    draw, server = random.Random(3), Server(stored=True)
    server.hub.store_changed("")
    refused = 0
    for number in range(FRAMES):
        member = draw.choice(list(server.hub.members))
        server.hear(member, grammar.link_frame(draw, member, 0.05))
        try:
            server.hub.take_from_store(grammar.store_frame(draw, 0.3))
        except ChannelError:
            refused += 1
        if number % 10 == 0:
            server.go_on()
    assert refused > FRAMES / 50


def test_whatever_comes_over_a_channel_is_a_packet_or_refused() -> None:
    draw = random.Random(4)
    seen: dict[str, int] = {}
    for _ in range(FRAMES):
        for agent, known in ((False, packets.FROM_WORKER), (True, packets.FROM_AGENT)):
            made: Any = draw.choice(grammar.channel_packets(draw, agent=agent))()
            try:
                packet = known.decode(grammar.packet(draw, made, 0.5))
            except ChannelError:
                seen["refused"] = seen.get("refused", 0) + 1
            else:
                kind = "unknown" if packet is None else packets.tag(type(packet))
                seen[kind] = seen.get(kind, 0) + 1
    assert {"hello", "ready", "finished", "withdrawn", "entered", "refused", "unknown"} <= seen.keys()


def test_a_listener_lives_on(tmp_path: Path) -> None:
    """The fuzzer for some seconds; its long run is docs/measured/fuzzing.md's."""
    result = run(4.0, 5, tmp_path)
    assert not result.died
    assert not result.tracebacks, result.tracebacks[0]
    assert result.said > 100
