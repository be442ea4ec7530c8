"""Who takes part, in which phase, and what becomes of frames: without sockets."""

from __future__ import annotations

import pytest

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub, HubComponent, HubSettings, Member, MemberOrder
from serve_asgi.hub.presence import PresenceBroadcast
from serve_asgi.ipc.frames import MAX_FRAME, Frame, NotSendable, decode, encode, pack_value, unpack_value
from serve_asgi.ipc.membership_frames import MemberPhase, Role
from tests.hub.port import RecordingPort


@pytest.fixture
def port() -> RecordingPort:
    return RecordingPort()


@pytest.fixture
def hub(port: RecordingPort) -> Hub:
    made = Hub(port, HubSettings())
    made.add(PresenceBroadcast(made))
    return made


def joined(hub: Hub, id: int, slot: int = 0, generation: int = 1, role: Role = Role.WORKER) -> Member:
    member = hub.join(id, role, generation, slot)
    hub.linked(id)
    return member


@pytest.mark.parametrize(
    ("order", "up", "phase"),
    [
        (MemberOrder.START, False, MemberPhase.EXPECTED),
        (MemberOrder.SERVE, False, MemberPhase.EXPECTED),  # its handlers are not known yet
        (MemberOrder.RETIRE, False, MemberPhase.RETIRING),
        (MemberOrder.START, True, MemberPhase.UP),
        (MemberOrder.SERVE, True, MemberPhase.SERVING),
        (MemberOrder.RETIRE, True, MemberPhase.RETIRING),
    ],
)
def test_a_phase_is_made_of_what_both_sides_said(order: MemberOrder, up: bool, phase: MemberPhase) -> None:
    assert Member(1, Role.WORKER, 1, 0, order, up).phase is phase


def test_a_part_hears_of_each_change_once(hub: Hub) -> None:
    heard: list[tuple[str, str]] = []

    class Listening(HubComponent):
        def changed(self, member: Member, before: MemberPhase) -> None:
            heard.append((before.value, member.phase.value))

    hub.add(Listening(hub))
    joined(hub, 1)
    hub.order(1, MemberOrder.SERVE)  # not up: nothing changes yet
    hub.take(1, encode("up"))
    hub.take(1, encode("up"))
    hub.order(1, MemberOrder.SERVE)
    hub.order(1, MemberOrder.RETIRE)
    assert heard == [("expected", "serving"), ("serving", "retiring")]


def test_everybody_is_told_who_is_there(hub: Hub, port: RecordingPort) -> None:
    joined(hub, 1)
    joined(hub, 2, slot=1)
    hub.take(1, encode("up"))
    assert [frame.head["members"] for frame in port.take(2, "present")][-1] == [[1, "worker", 1, 0, "up"]]
    hub.order(1, MemberOrder.SERVE)
    hub.leave(1)
    assert port.take(2, "present")[-1].head == {"ready": False, "members": []}
    hub.server_ready()
    hub.server_ready()
    assert [frame.head["ready"] for frame in port.take(2, "present")] == [True]


def test_who_retires_is_told_after_all_that_came_before(hub: Hub, port: RecordingPort) -> None:
    joined(hub, 1)
    hub.take(1, encode("up"))
    hub.order(1, MemberOrder.SERVE)
    hub.order(1, MemberOrder.RETIRE)
    assert [frame.kind for frame in port.take(1)][-2:] == ["retire", "present"]


def test_who_has_no_room_is_told_the_newest_later(hub: Hub, port: RecordingPort) -> None:
    joined(hub, 1)
    joined(hub, 2, slot=1)
    port.take(1)
    port.without_room.add(1)
    hub.take(2, encode("up"))
    hub.order(2, MemberOrder.SERVE)
    assert port.take(1) == []
    port.without_room.clear()
    hub.room_available(1)
    (told,) = port.take(1)
    assert told.head["members"] == [[2, "worker", 1, 1, "serving"]]


def test_a_new_program_knows_what_the_old_one_knew(hub: Hub, port: RecordingPort) -> None:
    joined(hub, 1)
    hub.take(1, encode("up"))
    hub.order(1, MemberOrder.SERVE)
    hub.server_ready()
    joined(hub, 2, role=Role.AGENT, slot=-1)
    left = unpack_value(pack_value(hub.to_state(), "state"))
    after = Hub(port, HubSettings())
    after.add(PresenceBroadcast(after))
    after.load(left)
    assert [(m.id, m.role, m.phase) for m in after.members.values()] == [
        (1, Role.WORKER, MemberPhase.SERVING),
        (2, Role.AGENT, MemberPhase.EXPECTED),
    ]
    assert after.ready
    port.take(1)
    after.order(1, MemberOrder.RETIRE)
    assert [frame.kind for frame in port.take(1)] == ["retire", "present"]


def test_a_kind_of_a_later_version_is_passed_over(hub: Hub) -> None:
    joined(hub, 1)
    hub.take(1, encode("tomorrow's", {"a": 1}))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x05ab", b"\x00\x01\xc1", b"\x00\x03\x92\x01\x80", b"\xff\xff"])
def test_what_is_no_frame_is_refused(hub: Hub, data: bytes) -> None:
    joined(hub, 1)
    with pytest.raises(ChannelError):
        hub.take(1, data)


def test_a_frame_travels_whole() -> None:
    body = bytes(range(256)) * 500
    assert decode(encode("kind", {"a": [1, None, "x"]}, body)) == Frame("kind", {"a": [1, None, "x"]}, body)
    with pytest.raises(ChannelError, match="too large"):
        encode("kind", {}, bytes(MAX_FRAME))
    with pytest.raises(ChannelError, match="too large"):
        encode("kind", {"long": "x" * 70_000})


@pytest.mark.parametrize("value", [None, True, -1, 2**63, 1.5, "ä", b"\x00\xff", [1, [2]], {"a": {"b": b""}}, {1: 2}])
def test_values_travel(value: object) -> None:
    assert unpack_value(pack_value(value, "it")) == value


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (object(), "it cannot be sent"),
        ({"a": {1, 2}}, "it cannot be sent"),
        (2**64, "it holds an integer of more than 64 bits"),
        ("\ud800", "it cannot be sent"),
    ],
)
def test_what_cannot_travel_is_said_so(value: object, sentence: str) -> None:
    with pytest.raises(NotSendable, match=sentence):
        pack_value(value, "it")


def test_what_holds_itself_cannot_travel() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(NotSendable):
        pack_value(value, "it")
