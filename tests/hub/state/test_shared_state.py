"""The shared state's core: order, acknowledgements and deadlines, without sockets and processes."""

from __future__ import annotations

from typing import Any

import pytest

from serve_asgi.app.state_replica import StateReplica
from serve_asgi.hub.core import Hub, HubSettings, Member, MemberOrder
from serve_asgi.hub.create_hub import create_hub
from serve_asgi.hub.messages.broker import MessageBroker
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.hub.state.write_evaluation import OVERHEAD
from serve_asgi.ipc.frames import Frame, encode, pack_value, unpack_value
from serve_asgi.ipc.membership_frames import Role
from tests.hub.port import RecordingPort


class Fixture:
    """A hub with shared state, and what its members have of it."""

    def __init__(self, **settings: Any) -> None:
        self.now = 100.0
        self.port = RecordingPort()
        self.hub = Hub(self.port, HubSettings(**settings), lambda: self.now)
        self.state = SharedState(self.hub)
        self.hub.add(self.state)
        self.replicas: dict[int, StateReplica] = {}
        self.answers: dict[int, list[Frame]] = {}
        self.id = 0

    def join(self, id: int, slot: int = 0, generation: int = 1, *, up: bool = True, role: Role = Role.WORKER) -> None:
        self.hub.join(id, role, generation, slot)
        self.replicas[id], self.answers[id] = StateReplica(), []
        self.hub.linked(id)
        if up:
            self.catch_up(id)
            self.hub.order(id, MemberOrder.SERVE)
            self.hub.take(id, encode("up"))

    def receive(self, id: int) -> None:
        """The member reads what it was sent, and does not say so yet."""
        for frame in self.port.take(id):
            if frame.kind == "state.changes":
                self.replicas[id].take(frame)
            elif frame.kind in ("state.done", "state.failed"):
                self.answers[id].append(frame)

    def catch_up(self, *ids: int) -> None:
        """The members read, and acknowledge; then they read the answers."""
        for id in ids:
            self.receive(id)
            self.hub.take(id, encode("state.seen", {"seq": self.replicas[id].applied}))
        for id in ids:
            self.receive(id)

    def write(self, id: int, op: str, key: str, value: Any = None, timeout: float = 5.0, **more: Any) -> int:
        self.id += 1
        head = {"id": self.id, "op": op, "key": key, "timeout": timeout, **more}
        self.hub.take(id, encode("state.write", head, b"" if op in ("delete", "incr") else pack_value(value, "")))
        return self.id

    def has(self, id: int) -> dict[str, Any]:
        return {key: held.value for key, held in self.replicas[id].entries.items()}

    def from_store(self, kind: str, body: bytes = b"", **head: Any) -> None:
        self.hub.take_from_store(encode(kind, head, body))

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.hub.tick()


@pytest.fixture
def there() -> Fixture:
    made = Fixture()
    made.join(1, slot=0)
    made.join(2, slot=1)
    return made


def test_a_write_is_answered_when_all_have_it(there: Fixture) -> None:
    there.write(1, "set", "k", "v")
    there.catch_up(1)
    assert there.has(1) == {"k": "v"}
    assert there.answers[1] == []
    there.receive(2)
    assert there.answers[1] == []
    there.catch_up(2)
    there.receive(1)
    assert [(frame.kind, frame.head) for frame in there.answers[1]] == [("state.done", {"id": 1, "version": 1})]
    assert there.has(2) == {"k": "v"}
    assert there.port.applied == 1


def test_the_operations(there: Fixture) -> None:
    there.write(1, "incr", "n", by=5)
    there.write(2, "incr", "n", by=-2)
    there.write(1, "cas", "n", 9, version=1)
    there.write(2, "cas", "n", 9, version=2)
    there.write(1, "delete", "nothing")
    there.write(2, "delete", "n")
    there.catch_up(1, 2)
    there.receive(1)
    assert [(f.kind, f.head.get("version"), f.head.get("code")) for f in there.answers[1]] == [
        ("state.failed", 2, "conflict"),
        ("state.done", 1, None),
        ("state.done", 0, None),
    ]
    assert unpack_value(there.answers[1][0].body) == 3
    assert [(f.head["version"], f.body and unpack_value(f.body)) for f in there.answers[2]] == [
        (2, 3),
        (3, 9),
        (4, b""),
    ]
    assert there.has(1) == there.has(2) == {}


def test_who_lags_is_named_at_the_deadline_and_the_write_stands(there: Fixture) -> None:
    there.join(3, slot=2)
    there.write(1, "set", "k", "v", timeout=2.0)
    there.catch_up(1, 3)
    assert there.hub.deadline() == 102.0
    there.later(1.9)
    there.receive(1)
    assert there.answers[1] == []
    there.later(0.1)
    there.receive(1)
    (failed,) = there.answers[1]
    assert (failed.head["code"], failed.head["lagging"]) == ("lagging", [["worker", 1, 1]])
    assert failed.head["version"] == 1
    assert [(event, about["slot"]) for event, _, about in there.port.records] == [("replica_delayed", 1)]
    there.write(1, "set", "k", "w", timeout=2.0)
    there.catch_up(1, 3)
    there.later(2.0)
    assert len(there.port.records) == 1  # said once for as long as it lags
    there.catch_up(2)
    assert there.has(2) == there.has(1) == {"k": "w"}
    assert there.hub.deadline() == float("inf")


def test_the_dead_are_not_waited_for(there: Fixture) -> None:
    there.write(1, "set", "k", "v")
    there.catch_up(1)
    there.hub.leave(2)
    there.receive(1)
    assert [frame.kind for frame in there.answers[1]] == ["state.done"]
    there.write(1, "set", "k", "w")
    there.hub.leave(1)  # the writer: nobody to answer
    assert there.hub.deadline() == float("inf")


def test_who_has_said_that_it_ends_is_not_waited_for(there: Fixture) -> None:
    there.write(1, "set", "k", "v")
    there.write(2, "set", "l", "v")
    there.hub.take(2, encode("state.leave"))
    there.hub.take(2, encode("state.seen", {"seq": 1}))
    there.catch_up(1)
    assert [frame.kind for frame in there.answers[1]] == ["state.done"]
    there.receive(2)
    assert [frame.kind for frame in there.answers[2]] == ["state.done"]
    there.write(2, "set", "l", "w", timeout=0.0)
    there.hub.room_available(there.hub.members[2].id)
    there.later(0.0)
    there.receive(2)
    assert there.answers[2][-1].head["lagging"] == [["worker", 0, 1]]


def test_who_retires_is_waited_for(there: Fixture) -> None:
    there.hub.order(2, MemberOrder.RETIRE)
    there.write(1, "set", "k", "v")
    there.catch_up(1)
    assert there.answers[1] == []
    there.catch_up(2)
    there.receive(1)
    assert len(there.answers[1]) == 1


def test_who_starts_gets_everything_and_is_waited_for_once_it_is_up(there: Fixture) -> None:
    there.write(1, "set", "k", "v")
    there.catch_up(1, 2)
    there.join(3, slot=0, generation=2, up=False)
    there.write(1, "set", "k", "w")
    there.catch_up(1, 2)
    there.receive(1)
    assert len(there.answers[1]) == 2  # its import blocks it for as long as it likes
    there.write(1, "set", "k", "x")
    there.hub.take(3, encode("up"))
    there.catch_up(1, 2)
    there.receive(1)
    assert len(there.answers[1]) == 2
    there.catch_up(3)
    there.receive(1)
    assert len(there.answers[1]) == 3
    assert there.has(3) == {"k": "x"}


def test_who_is_told_to_leave_before_it_is_up_is_not_waited_for(there: Fixture) -> None:
    there.join(3, slot=1, generation=2, up=False)
    there.hub.order(3, MemberOrder.RETIRE)  # it is being imported, and says nothing for long
    there.write(1, "set", "k", "v")
    there.catch_up(1, 2)
    there.receive(1)
    assert [frame.kind for frame in there.answers[1]] == ["state.done"]


def test_a_writer_that_starts_reads_its_own_write(there: Fixture) -> None:
    there.join(3, up=False)
    there.write(3, "set", "k", "v")
    there.write(1, "set", "l", "v")
    there.catch_up(1, 2)
    there.receive(1)
    assert len(there.answers[1]) == 1  # others do not wait for it
    assert [frame.kind for frame in there.port.sent[3]] == ["state.limits", *["state.changes"] * 3]
    there.catch_up(3)
    assert len(there.answers[3]) == 1
    assert there.has(3) == {"k": "v", "l": "v"}


def test_who_does_not_read_is_sent_the_newest_of_each_key_in_one_step(there: Fixture) -> None:
    there.port.without_room.add(2)
    for number in range(10):
        there.write(1, "set", "a", number)
        there.write(1, "set", "b", number)
    there.write(1, "delete", "a")
    assert there.port.take(2) == []
    there.port.without_room.clear()
    there.hub.room_available(2)
    (frame,) = there.port.take(2)
    assert [(key, value and unpack_value(value)) for key, _, value in unpack_value(frame.body)] == [
        ("b", 9),
        ("a", None),
    ]
    assert frame.head == {"seq": 21}


def test_keys_that_come_and_go_while_a_process_stands_still_do_not_pile_up(there: Fixture) -> None:
    there.write(1, "set", "old", "v")
    there.catch_up(1, 2)
    there.port.without_room.add(2)
    there.write(1, "delete", "old")
    there.write(1, "set", "new", "v")
    for number in range(10_000):
        there.write(1, "set", f"k{number}", number, timeout=1.0)
        there.write(1, "delete", f"k{number}", timeout=1.0)
        there.catch_up(1)
        if number % 200 == 199:  # who writes waits no longer
            there.now += 2.0
            there.hub.tick()
    assert len(pack_value(there.state.to_state()["copies"], "")) < 200_000
    there.write(1, "set", "last", "v")
    left = unpack_value(pack_value(there.hub.to_state(), ""))
    for hub in (Fixture(), there):  # in another program of the listener as well
        if hub is not there:
            hub.hub.load(left)
            hub.replicas, hub.answers = {2: StateReplica()}, {2: []}
        hub.port.without_room.clear()
        hub.hub.room_available(2)
        hub.catch_up(2)
        assert hub.has(2) == {"new": "v", "last": "v"}
        assert hub.replicas[2].applied == 20_004
        hub.write(2, "delete", "new")
        hub.catch_up(2)
        assert hub.has(2) == {"last": "v"}


def test_a_batch_of_several_frames_is_applied_as_a_whole(there: Fixture) -> None:
    there.port.without_room.add(2)
    values = {f"k{number}": "v" * 60_000 for number in range(7)}
    for key, value in values.items():
        there.write(1, "set", key, value)
    there.port.without_room.clear()
    there.hub.room_available(2)
    frames = there.port.take(2)
    assert len(frames) == 4
    for frame in frames[:-1]:
        there.replicas[2].take(frame)
        assert there.has(2) == {}
        assert there.replicas[2].applied == 0
    there.replicas[2].take(frames[-1])
    assert there.has(2) == values
    assert there.replicas[2].applied == 7


def test_what_changes_while_a_batch_is_sent_comes_after_it(there: Fixture) -> None:
    class Narrow(RecordingPort):
        def send(self, member: int, data: bytes) -> None:
            super().send(member, data)
            if member == 2:
                self.without_room.add(2)

    there.port = there.hub.port = Narrow()
    there.port.without_room.add(2)
    there.write(1, "set", "a", "v" * 60_000)
    there.write(1, "set", "b", "v" * 60_000)
    there.write(1, "set", "c", "v" * 60_000)
    seen = []
    for number in range(4):
        there.write(1, "set", "c", number)
        there.port.without_room.discard(2)
        there.hub.room_available(2)
        there.receive(2)
        seen.append((there.replicas[2].applied, there.has(2).get("c")))
    assert seen[0] == (4, 0)  # the batch began with the newest that was known then
    assert seen[1] == (5, 1)
    assert seen[-1] == (7, 3)


def test_the_servers_own_keys_stay_in_the_hub(there: Fixture) -> None:
    heard: list[tuple[str, Any]] = []
    there.state.follow("serve:schedule:", lambda key, value: heard.append((key, value)))
    told: list[str] = []
    there.state.put("serve:schedule:a", {"paused": True}, told.append)
    there.state.put("serve:other", 1)
    assert there.state.value("serve:schedule:a") == {"paused": True}
    assert there.state.keys("serve:schedule:") == ["serve:schedule:a"]
    there.state.put("serve:schedule:a", None, told.append)
    there.state.put("serve:schedule:a", None, told.append)  # nothing to delete is no trouble
    assert there.state.value("serve:schedule:a") is None
    assert heard == [("serve:schedule:a", {"paused": True}), ("serve:schedule:a", None)]
    assert told == ["", "", ""]
    there.state.put("serve:x", "v" * 100_000, told.append)
    assert "--state-value-limit" in told[-1]
    there.state.put("serve:x", "v" * 100_000)  # nobody asks what became of it
    assert there.port.take(1) == []
    assert there.state.seq == 0
    there.write(1, "set", "serve:schedule:a", 1)
    there.receive(1)
    assert there.answers[1][0].head["code"] == "key"


def test_deadlines_that_have_been_met_are_forgotten(there: Fixture) -> None:
    for number in range(1000):
        there.write(1, "set", "k", number, timeout=1000.0 - number)
        there.catch_up(1, 2)
        there.receive(1)
    there.write(1, "set", "k", "v", timeout=2.0)
    assert len(there.answers[1]) == 1000
    assert there.hub.deadline() == 102.0
    assert len(there.state._pending._deadlines) < 100


def test_what_the_state_counts(there: Fixture) -> None:
    there.write(1, "set", "k", "v", timeout=0.0)
    there.later(0.0)
    found = {"state_keys": 1, "state_size_bytes": 3 + OVERHEAD, "state_changes_total": 1, "state_lagged_total": 1}
    assert there.hub.metrics() == found


def test_a_copy_that_is_sent_whole_once_more_tells_what_is_different() -> None:
    replica = StateReplica()
    for version in (1, 2):
        items = [["same", 1, b"\x01"], ["new" if version == 2 else "old", version, b"\x02"]]
        changed = replica.take(Frame("state.changes", {"seq": version, "whole": True}, pack_value(items, "")))
    assert [(item.key, item.value) for item in changed] == [("old", None), ("new", b"\x02")]
    assert {key: held.value for key, held in replica.entries.items()} == {"same": 1, "new": 2}


def test_reading_the_truth(there: Fixture) -> None:
    there.write(1, "set", "k", "v")
    there.hub.take(2, encode("state.read", {"id": 7, "key": "k", "timeout": 1.0}))
    there.hub.take(2, encode("state.read", {"id": 8, "key": "none", "timeout": 1.0}))
    there.receive(2)
    found = [(frame.head["id"], frame.head["version"], frame.body) for frame in there.answers[2]]
    assert found == [(7, 1, pack_value("v", "")), (8, 0, b"")]


def test_another_program_of_the_listener_goes_on(there: Fixture) -> None:
    there.write(1, "set", "k", "v")
    there.port.without_room.add(2)
    there.write(1, "set", "l", "v", timeout=3.0)
    there.write(2, "set", "m", "v")
    left = unpack_value(pack_value(there.hub.to_state(), ""))
    members = left["members"]
    there.hub.leave(2)
    other = Fixture()  # that knows the members of now: the dead one's are dropped
    left["members"] = there.hub.to_state()["members"]
    other.hub.load(left)
    assert list(other.state._replication._replicas) == [1]
    left["members"] = members
    new = Fixture()
    new.replicas, new.answers, new.now = there.replicas, there.answers, there.now
    new.port.sent = there.port.sent
    new.hub.load(left)
    assert new.port.applied == 3
    new.catch_up(1)
    new.hub.room_available(2)
    new.catch_up(2)
    new.receive(1)
    assert [frame.head["version"] for frame in new.answers[1]] == [1, 2]
    assert new.has(2) == {"k": "v", "l": "v", "m": "v"}
    new.write(2, "set", "k", "x")
    assert new.state._entries.used == there.state._entries.used


def test_messages_do_not_take_all_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that there is room for a process again, its messages would fill it, and its state would never come."""

    class Narrow(RecordingPort):
        def send(self, member: int, data: bytes) -> None:
            super().send(member, data)
            if len(self.sent[member]) >= 8:
                self.without_room.add(member)

    port = Narrow()
    hub = create_hub(port, HubSettings())
    for id in (1, 2):
        hub.join(id, Role.WORKER, 1, id - 1)
        hub.linked(id)
        hub.order(id, MemberOrder.SERVE)
        hub.take(id, encode("up"))
    port.without_room.add(2)
    hub.take(1, encode("state.write", {"id": 1, "op": "set", "key": "k", "timeout": 5.0}, b"\x01"))

    def fill(messages: MessageBroker, member: Member) -> None:
        for _ in range(8):
            port.send(member.id, encode("message"))

    monkeypatch.setattr(MessageBroker, "room_available", fill)
    port.without_room.clear()
    port.sent.clear()
    hub.room_available(2)
    assert port.take(2)[0].kind == "state.changes"


# With a store


@pytest.fixture
def stored() -> Fixture:
    made = Fixture(stored=True)
    made.from_store(
        "store.snapshot", pack_value([["old", 3, pack_value("o", "")], ["serve:x", 4, pack_value(1, "")]], "")
    )
    made.from_store("store.up", server="s", shared=True)
    made.join(1)
    return made


def test_the_store_has_the_last_word(stored: Fixture) -> None:
    assert stored.has(1) == {"old": "o"}
    assert stored.state.value("serve:x") == 1
    stored.write(1, "set", "k", "v")
    (asked,) = stored.port.to_store
    assert asked == Frame("store.write", {"id": asked.head["id"], "op": "set", "key": "k"}, pack_value("v", ""))
    assert stored.port.take(1, "state.changes") == []
    stored.from_store("store.change", pack_value("other", ""), key="l", version=9, deleted=False)
    stored.from_store("store.written", pack_value("v", ""), id=asked.head["id"], key="k", version=10, deleted=False)
    stored.catch_up(1)
    assert stored.has(1) == {"old": "o", "k": "v", "l": "other"}
    assert stored.answers[1][0].head == {"id": 1, "version": 10}


def test_what_the_store_tells_late_changes_nothing(stored: Fixture) -> None:
    stored.from_store("store.change", pack_value("new", ""), key="k", version=9, deleted=False)
    stored.from_store("store.change", pack_value("old", ""), key="k", version=8, deleted=False)
    stored.from_store("store.change", key="k", version=10, deleted=True)
    stored.from_store("store.change", pack_value("old", ""), key="k", version=9, deleted=False)
    stored.catch_up(1)
    assert stored.has(1) == {"old": "o"}
    assert stored.state.seq == 1 + 2  # the snapshot, and two changes


def test_only_so_many_deleted_keys_are_remembered(stored: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_asgi.hub.state.entries.MAX_TOMBSTONES", 2)
    for number in range(4):
        stored.from_store("store.change", b"\x01", key=f"k{number}", version=10 + number, deleted=False)
        stored.from_store("store.change", key=f"k{number}", version=20 + number, deleted=True)
    assert stored.state._store_changes._tombstones == {"k2": 22, "k3": 23}


def test_what_the_store_refuses(stored: Fixture) -> None:
    stored.write(1, "cas", "old", "v", version=1)
    stored.write(1, "delete", "none")
    first, second = (frame.head["id"] for frame in stored.port.to_store)
    stored.from_store("store.refused", pack_value("o", ""), id=first, code="conflict", text="it was written", version=3)
    stored.from_store("store.refused", id=second, code="absent", text="", version=0)
    stored.catch_up(1)
    assert [(f.kind, f.head["version"], f.body) for f in stored.answers[1]] == [
        ("state.failed", 3, pack_value("o", "")),
        ("state.done", 0, b""),
    ]


def test_the_loss_of_the_store_is_told_and_what_it_knows_afterwards_holds(stored: Fixture) -> None:
    stored.write(1, "set", "k", "v")
    told: list[str] = []
    stored.state.put("serve:y", 1, told.append)
    stored.from_store("store.down", text="Redis is away")
    stored.write(1, "set", "k", "v")
    stored.hub.take(1, encode("state.read", {"id": 9, "key": "k", "timeout": 1.0}))
    stored.receive(1)
    assert [frame.head["code"] for frame in stored.answers[1]] == ["unknown", "unavailable", "unavailable"]
    assert "Redis is away" in stored.answers[1][1].head["text"]
    assert "Redis is away" in told[0]
    stored.from_store("store.snapshot", pack_value([["k", 5, pack_value("v", "")]], ""))
    stored.from_store("store.up", server="s", shared=True)
    stored.catch_up(1)
    assert stored.has(1) == {"k": "v"}  # it stood after all; the others are gone
    assert stored.state.value("serve:x") is None
    stored.write(1, "set", "k", "w")
    assert len(stored.port.to_store) == 3


def test_a_snapshot_that_is_broken_off_leaves_nothing(stored: Fixture) -> None:
    """Redis is lost again in the middle of its snapshot, as before; a key of that piece is deleted meanwhile."""
    stored.from_store("store.down", text="Redis is away")
    stored.from_store("store.snapshot", pack_value([["deleted", 5, pack_value("v", "")]], ""), first=True)
    stored.from_store("store.down", text="Redis is away")
    stored.from_store("store.snapshot", pack_value([["k", 7, pack_value("v", "")]], ""), first=True)
    stored.from_store("store.snapshot", pack_value([["l", 8, pack_value("v", "")]], ""))
    stored.from_store("store.up", server="s", shared=True)
    stored.catch_up(1)
    assert stored.has(1) == {"k": "v", "l": "v"}


def test_much_that_has_changed_meanwhile_is_sent_as_the_whole_state(stored: Fixture) -> None:
    """One change after another to each process would hold the listener up: here those of a few thousand keys."""
    followed: list[tuple[str, Any]] = []
    stored.state.follow("serve:", lambda key, value: followed.append((key, value)))
    stored.join(2)
    stored.from_store("store.down", text="Redis is away")
    rows = [[f"k{number}", 10 + number, pack_value(number, "")] for number in range(5000)]
    stored.from_store("store.snapshot", pack_value([*rows, ["serve:y", 6000, pack_value(1, "")]], ""), first=True)
    stored.from_store("store.up", server="s", shared=True)
    assert sum(len(frames) for frames in stored.port.sent.values()) < 20
    assert stored.port.applied == stored.state.seq == 1 + 5001  # "old" is gone
    for _ in range(10):
        stored.hub.tick()
        stored.catch_up(1, 2)
    assert stored.has(1) == stored.has(2) == {f"k{number}": number for number in range(5000)}
    assert followed == [("serve:x", None), ("serve:y", 1)]
    stored.write(1, "set", "k0", "v")
    (asked,) = stored.port.to_store
    stored.from_store("store.written", pack_value("v", ""), id=asked.head["id"], key="k0", version=6001, deleted=False)
    stored.catch_up(1, 2)
    assert stored.has(2)["k0"] == "v"
    assert [frame.kind for frame in stored.answers[1]] == ["state.done"]


def test_much_that_has_other_values_with_the_same_versions_is_taken_over(stored: Fixture) -> None:
    """After a fail-over: another server may have written before this one was back."""
    for value in ("before", "after"):
        rows = [[f"k{number}", 10 + number, pack_value(value, "")] for number in range(3000)]
        stored.from_store("store.snapshot", pack_value(rows, ""), first=True)
        stored.from_store("store.up", server="s", shared=True)
        for _ in range(10):
            stored.hub.tick()
            stored.catch_up(1)
        assert set(stored.has(1).values()) == {value}


def test_an_answer_that_is_older_than_the_snapshot_brings_nothing_back(stored: Fixture) -> None:
    """The key has been deleted by another server, before the snapshot was taken."""
    stored.write(1, "set", "k", "v")
    number = stored.port.to_store[0].head["id"]
    stored.from_store("store.snapshot", pack_value([["l", 12, pack_value("v", "")]], ""), first=True)
    stored.from_store("store.up", server="s", shared=True)
    stored.from_store("store.written", pack_value("v", ""), id=number, key="k", version=10, deleted=False)
    stored.catch_up(1)
    assert stored.has(1) == {"l": "v"}
    assert stored.answers[1][0].head == {"id": 1, "version": 10}


def test_a_store_that_does_not_answer(stored: Fixture) -> None:
    stored.write(1, "set", "k", "v", timeout=1.0)
    stored.later(1.0)
    stored.receive(1)
    assert stored.answers[1][0].head["code"] == "unknown"
    number = stored.port.to_store[0].head["id"]
    stored.from_store("store.written", pack_value("v", ""), id=number, key="k", version=10, deleted=False)
    stored.catch_up(1)
    assert stored.has(1)["k"] == "v"
    assert len(stored.answers[1]) == 1


def test_the_truth_is_the_stores(stored: Fixture) -> None:
    stored.hub.take(1, encode("state.read", {"id": 9, "key": "old", "timeout": 1.0}))
    (asked,) = stored.port.to_store
    assert (asked.kind, asked.head["key"]) == ("store.read", "old")
    stored.from_store("store.value", pack_value("new", ""), id=asked.head["id"], key="old", version=20, exists=True)
    stored.receive(1)
    assert (stored.answers[1][0].head["version"], unpack_value(stored.answers[1][0].body)) == (20, "new")


def test_much_is_sent_in_several_turns(there: Fixture) -> None:
    for number in range(3000):
        there.write(1, "set", f"key{number}", number)
        there.catch_up(1, 2)
    there.join(3, slot=2, generation=2, up=False)
    sent = 0
    while there.hub.deadline() <= there.now:
        frames = there.port.take(3, "state.changes")
        sent += len(frames)
        assert len(frames) <= 4
        for frame in frames:
            there.replicas[3].take(frame)
        there.hub.tick()
    there.receive(3)
    assert sent >= 4
    assert there.has(3) == there.has(1)
    there.join(4, slot=3, generation=2, up=False)
    there.hub.leave(4)  # before it has got everything
    assert there.hub.deadline() == float("inf")
