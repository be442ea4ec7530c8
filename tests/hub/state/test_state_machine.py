"""The shared state under whatever can happen: it is the same everywhere, and what is answered is everywhere."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve_asgi.app.state_replica import StateReplica
from serve_asgi.hub.core import Hub, HubSettings, Member, MemberOrder
from serve_asgi.hub.state import replication, shared_state
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.hub.state.write_evaluation import (
    OVERHEAD,
    AcceptedWrite,
    StateEntry,
    StateLimits,
    entry_size,
    evaluate_write,
)
from serve_asgi.ipc.frames import decode, encode, pack_value, unpack_value
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.state_frames import Write
from tests.hub.port import RecordingPort

EXAMPLES = int(os.environ.get("SERVE_TEST_EXAMPLES", "40"))
KEYS = ["a", "b", "c"]
WRITES = st.tuples(st.sampled_from(["set", "cas", "incr", "delete"]), st.sampled_from(KEYS), st.integers(0, 5))
LIMITS = StateLimits(64, 200 + 3 * OVERHEAD)
PIECE = replication.FRAME_SIZE
FRAMES_AT_ONCE = replication.FRAMES_PER_TURN
MANY = shared_state.RESEND_ABOVE


class WatchingPort(RecordingPort):
    """Looks at every answer at the moment at which the hub gives it; `budget` is for how many frames there is room."""

    machine: SharedStateMachine

    def __init__(self) -> None:
        super().__init__()
        self.budget: dict[int, int] = {}

    def has_room(self, member: int) -> bool:
        return self.budget.get(member, 1) > 0

    def send(self, member: int, data: bytes) -> None:
        super().send(member, data)
        frame = decode(data)
        if member in self.budget:
            self.budget[member] -= frame.kind == "state.changes"
        if frame.kind in ("state.done", "state.failed"):
            self.machine.answered(member, frame.head["id"], frame.kind == "state.done")


class SharedStateMachine(RuleBasedStateMachine):
    """Members read when the rules say so; `history` is what the state was after each number of changes."""

    stored = False
    members = Bundle("members")

    @initialize()
    def begin(self) -> None:
        replication.FRAMES_PER_TURN = 2  # type: ignore[misc]
        shared_state.RESEND_ABOVE = 2  # type: ignore[misc]
        replication.FRAME_SIZE = 40  # type: ignore[misc]  # bytes: so that a batch may be several frames
        self.now = 0.0
        self.next = 1
        self.replicas: dict[int, StateReplica] = {}
        self.asked: dict[int, tuple[int, int]] = {}  # by id: who, and how many changes there were after it
        self.history: dict[int, dict[str, Any]] = {0: {}}
        self.entries: dict[str, StateEntry] = {}  # of the store, if there is one
        self.version = 0
        self.port = WatchingPort()
        self.port.machine = self
        self.make_hub()

    def make_hub(self) -> None:
        self.hub = Hub(
            self.port,
            HubSettings(stored=self.stored, value_limit=LIMITS.value, state_limit=LIMITS.total),
            lambda: self.now,
        )
        self.state = SharedState(self.hub)
        self.hub.add(self.state)
        if self.stored:
            self.hub.store_problem = ""

    def remember(self) -> None:
        """Called after everything that may have changed the state by one step."""
        there = {key: unpack_value(value or b"") for key, _, value in self.state._entries}
        assert self.history.setdefault(self.state.seq, there) == there

    def living(self) -> list[Member]:
        return list(self.hub.members.values())

    def answered(self, member: int, id: int, done: bool) -> None:
        who, seq = self.asked.pop(id)
        assert who == member
        if done and not self.stored:
            for each in self.living():
                if each.up or each.id == member:  # what was told to retire before it was up never runs a request
                    assert self.replicas[each.id].applied >= seq, f"{each} has not what was answered"

    # What happens

    @rule(target=members, agent=st.booleans(), serves=st.booleans())
    def join(self, agent: bool, serves: bool) -> int:
        id, self.next = self.next, self.next + 1
        self.hub.join(id, Role.AGENT if agent else Role.WORKER, 1, -1 if agent else id)
        self.replicas[id] = StateReplica()
        self.hub.linked(id)
        if serves:
            self.read(id, 1000, True)
            self.go_on(id, MemberOrder.SERVE, True)
        return id

    @rule(id=members, order=st.sampled_from(MemberOrder), up=st.booleans())
    def go_on(self, id: int, order: MemberOrder, up: bool) -> None:
        if id in self.hub.members:
            self.hub.order(id, order)
            if up and self.replicas[id].whole:
                self.hub.take(id, encode("up"))

    @rule(id=members)
    def die(self, id: int) -> None:
        if id in self.hub.members:
            self.asked = {number: ask for number, ask in self.asked.items() if ask[0] != id}
            self.hub.leave(id)
            self.replicas.pop(id)
            self.port.sent.pop(id, None)
            self.port.budget.pop(id, None)

    @rule(id=members, writes=st.lists(WRITES, min_size=1, max_size=4), timeout=st.sampled_from([0.0, 1.0, 5.0]))
    def write(self, id: int, writes: list[tuple[str, str, int]], timeout: float) -> None:
        if id not in self.hub.members:
            return
        for op, key, number in writes:
            held = self.replicas[id].entries.get(key)
            head = {"id": self.next, "op": op, "key": key, "timeout": timeout, "by": number}
            if op == "cas":
                head["version"] = 0 if held is None else held.version
            self.asked[self.next] = id, self.state.seq  # if it is answered at once, it has changed nothing
            self.next += 1
            body = pack_value(number if number % 2 else "x" * 7 * number, "") if op in ("set", "cas") else b""
            self.hub.take(id, encode("state.write", head, body))
            if head["id"] in self.asked:
                self.asked[head["id"]] = id, self.state.seq
            self.remember()

    @rule(id=members, count=st.sampled_from([1, 2, 1000]), says_so=st.booleans())
    def read(self, id: int, count: int, says_so: bool) -> None:
        """The member reads some of what was sent to it."""
        if id not in self.hub.members:
            return
        frames, self.port.sent[id] = self.port.sent[id][:count], self.port.sent[id][count:]
        replica = self.replicas[id]
        for frame in frames:
            if frame.kind == "state.changes":
                replica.take(frame)
                self.look_at(replica)
        if says_so and replica.whole:
            self.hub.take(id, encode("state.seen", {"seq": replica.applied}))

    @rule(id=members, frames=st.sampled_from([0, 1, 2, 1000]))
    def have_room(self, id: int, frames: int) -> None:
        if id in self.hub.members:
            self.port.budget[id] = frames
            if frames:
                self.hub.room_available(id)

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tick()

    def tick(self) -> None:
        for _ in range(100):
            self.hub.tick()
            if self.hub.deadline() > self.now:
                return
        raise AssertionError("there is no end to it")

    @rule()
    def replace_the_listeners_program(self) -> None:
        left = unpack_value(pack_value(self.hub.to_state(), ""))
        self.make_hub()
        self.hub.load(left)
        self.remember()

    # What holds

    def look_at(self, replica: StateReplica) -> None:
        if replica.whole:
            there = {key: held.value for key, held in replica.entries.items()}
            assert there == self.history[replica.applied]

    @invariant()
    def published(self) -> None:
        assert self.port.applied == self.state.seq
        assert self.state._entries.used <= LIMITS.total

    def teardown(self) -> None:
        replication.FRAMES_PER_TURN = FRAMES_AT_ONCE  # type: ignore[misc]
        shared_state.RESEND_ABOVE = MANY  # type: ignore[misc]
        replication.FRAME_SIZE = PIECE  # type: ignore[misc]
        if not hasattr(self, "hub"):
            return
        self.settle()
        for member in self.living():
            replica = self.replicas[member.id]
            assert replica.whole
            assert {key: held.value for key, held in replica.entries.items()} == self.history[self.state.seq]
        assert self.asked == {}
        assert self.hub.deadline() == float("inf")

    def settle(self) -> None:
        for id in list(self.hub.members):
            self.have_room(id, 10**6)
        self.tick()
        for id in list(self.hub.members):
            self.read(id, 10**6, True)


class StoredMachine(SharedStateMachine):
    """The same, with a store that answers when the rules say so, and that other servers write to as well."""

    stored = True

    def perform(self, write: Write, number: int | None) -> None:
        """The store decides; `number` is None if another server asks."""
        used = sum(entry_size(key, entry.value) for key, entry in self.entries.items())
        outcome = evaluate_write(write, self.entries.get(write.key), LIMITS, used, self.version + 1)
        if isinstance(outcome, AcceptedWrite):
            self.version = outcome.version
            if outcome.value is None:
                del self.entries[write.key]
            else:
                self.entries[write.key] = StateEntry(outcome.version, outcome.value)
            head = {"key": write.key, "version": outcome.version, "deleted": outcome.value is None}
            if number is None:
                self.tell("store.change", head, outcome.value or b"")
            else:
                self.tell("store.written", {**head, "id": number}, outcome.value or b"")
        elif number is not None:
            head = {"id": number, "code": outcome.code.value, "text": outcome.text, "version": outcome.version}
            self.tell("store.refused", head, outcome.value)

    def tell(self, kind: str, head: dict[str, Any], body: bytes = b"") -> None:
        self.hub.take_from_store(encode(kind, head, body))
        self.remember()

    @precondition(lambda self: self.port.to_store)
    @rule(count=st.integers(1, 3))
    def answer(self, count: int) -> None:
        asked, self.port.to_store = self.port.to_store[:count], self.port.to_store[count:]
        for frame in asked:
            self.perform(Write.of(frame.head, frame.body), frame.head["id"])

    @rule(write=WRITES)
    def hear_of_another_servers(self, write: tuple[str, str, int]) -> None:
        op, key, number = write
        head = {"op": op, "key": key, "by": number, "version": None if op != "cas" else 0}
        self.perform(Write.of(head, pack_value(number, "")), None)

    @rule(writes=st.lists(WRITES, max_size=3), applied=st.integers(0, 2))
    def lose_the_store(self, writes: list[tuple[str, str, int]], applied: int) -> None:
        """What is under way may have been written or not; others go on writing meanwhile."""
        self.tell("store.down", {"text": "it is away"})
        asked, self.port.to_store = self.port.to_store, []
        hub, self.hub = self.hub, Hub(RecordingPort(), HubSettings())  # which hears nothing of this
        shared, self.state = self.state, SharedState(self.hub)
        history, self.history = self.history, {}
        self.hub.add(self.state)
        for frame in asked[:applied]:
            self.perform(Write.of(frame.head, frame.body), None)
        for op, key, number in writes:
            head = {"op": op, "key": key, "by": number, "version": 0 if op == "cas" else None}
            self.perform(Write.of(head, pack_value(number, "")), None)
        self.hub, self.state, self.history = hub, shared, history
        for key, entry in self.entries.items():
            self.tell("store.snapshot", {}, pack_value([[key, *entry]], ""))
        self.hub.take_from_store(encode("store.up", {"server": "s", "shared": True}))
        self.remember()

    def look_at(self, replica: StateReplica) -> None:
        if replica.applied in self.history:
            super().look_at(replica)

    def settle(self) -> None:
        while self.port.to_store:
            self.answer(100)
        super().settle()
        assert {k: e.value for k, e in self.entries.items()} == {key: value for key, _, value in self.state._entries}


SharedStateMachine.TestCase.settings = StoredMachine.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSharedState = SharedStateMachine.TestCase
TestStoredState = StoredMachine.TestCase
