"""A hub with the part of messages alone, and members that a test speaks for."""

from __future__ import annotations

import dataclasses
from typing import Any

from serve_asgi.hub.core import Hub, HubSettings, MemberOrder
from serve_asgi.hub.messages.broker import MessageBroker
from serve_asgi.ipc.frames import Frame, encode
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.message_frames import AckMode, MessageKind, split_entries
from tests.hub.port import RecordingPort

AGENT = 100


@dataclasses.dataclass(frozen=True)
class Given:
    """A message in a member's hands."""

    delivery: int
    topic: str
    id: str
    attempt: int
    subject: Any
    body: bytes


class Table:
    """`told` and `given` are what each member has been told and given, in order, since the start."""

    def __init__(self, agent: bool = False, shared: bool = False) -> None:
        self.now = 1000.0
        self.port = RecordingPort()
        self.settings = HubSettings(agent=agent, shared=shared, stored=shared)
        self.hub = self.fresh()
        self.told: dict[int, list[list[Any]]] = {}
        self.given: dict[int, list[Given]] = {}
        self.lasts: dict[int, int] = {}
        """After how many messages a member has been told that it has got all."""
        self.count = 0

    def fresh(self) -> Hub:
        hub = Hub(self.port, self.settings, clock=lambda: self.now)
        hub.add(MessageBroker(hub))
        return hub

    @property
    def part(self) -> MessageBroker:
        part = self.hub._components[0]
        assert isinstance(part, MessageBroker)
        return part

    def replace(self) -> None:
        """Another program of the listener takes over."""
        from serve_asgi.ipc.frames import pack_value, unpack_value

        state = unpack_value(pack_value(self.hub.to_state(), "the state"))
        self.hub = self.fresh()
        self.hub.load(state)

    # Members

    def join(self, id: int, slot: int = 0, role: Role = Role.WORKER, generation: int = 1) -> None:
        self.hub.join(id, role, generation, slot)
        self.hub.linked(id)
        self.told[id], self.given[id] = [], []

    def up(self, id: int, **topics: int) -> None:
        self.take(id, "msg.topics", {"topics": topics})
        self.take(id, "up", {})

    def serve(self, id: int) -> None:
        self.hub.order(id, MemberOrder.SERVE)
        self.collect()

    def retire(self, id: int) -> None:
        self.hub.order(id, MemberOrder.RETIRE)
        self.collect()

    def leave(self, id: int) -> None:
        self.hub.leave(id)
        self.collect()

    def worker(self, id: int, slot: int = 0, generation: int = 1, **topics: int) -> None:
        """One that serves and handles these topics, so many at a time."""
        self.join(id, slot, generation=generation)
        self.up(id, **topics)
        self.serve(id)

    # What they do

    def take(self, member: int, kind: str, head: dict[str, Any], body: bytes = b"") -> None:
        self.hub.take(member, encode(kind, head, body))
        self.collect()

    def send(
        self,
        member: int,
        kind: MessageKind,
        topic: str,
        body: bytes = b"",
        want: AckMode = AckMode.ACCEPTED,
        limit: int = 3,
        slot: int = -1,
    ) -> str:
        self.count += 1
        id = f"m{self.count}"
        self.take(member, "msg.send", {"m": [[id, int(kind), topic, int(want), limit, slot, len(body)]]}, body)
        return id

    def work(self, member: int, topic: str, want: AckMode = AckMode.HANDLED, limit: int = 3, body: bytes = b"") -> str:
        return self.send(member, MessageKind.ANY_WORKER, topic, body, want, limit, 0)

    def done(self, member: int, delivery: int, ok: bool = True, body: bytes = b"") -> None:
        self.take(member, "msg.done", {"m": [[delivery, ok, len(body)]]}, body)

    def back(self, member: int, *deliveries: int, all: bool = True) -> None:
        self.take(member, "msg.return", {"m": list(deliveries), "all": all})

    def withdraw(self, member: int, *ids: str) -> None:
        self.take(member, "msg.withdraw", {"m": list(ids)})

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.hub.deadline() <= self.now:
            self.hub.tick()
        self.collect()

    def collect(self) -> None:
        """Take up what the hub has sent."""
        for member in list(self.port.sent):
            for frame in self.port.take(member):
                self._take(member, frame)

    def _take(self, member: int, frame: Frame) -> None:
        if member not in self.told:
            return
        if frame.kind == "msg.last":
            self.lasts[member] = len(self.given[member])
            return
        for entry, body in split_entries(frame):
            if frame.kind == "msg.confirm":
                self.told[member].append([*entry[:3], body] if body else entry[:3])
            elif frame.kind == "msg.deliver":
                delivery, topic, id, attempt, _, _, _, subject, _ = entry
                self.given[member].append(Given(delivery, topic, id, attempt, subject, body))

    def ids(self, member: int) -> list[str]:
        return [each.id for each in self.given[member]]

    def events(self) -> list[str]:
        return [event for event, _, _ in self.port.records]
