"""What a member must not say: each of these ends it, before it has cost anything."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import msgpack
import pytest

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub, HubSettings, MemberOrder
from serve_asgi.hub.create_hub import create_hub
from serve_asgi.hub.messages.confirmations import MAX_UNACCEPTED
from serve_asgi.ipc.frames import encode
from serve_asgi.ipc.membership_frames import Role
from tests.hub.port import RecordingPort

DEFINED = {"name": "s", "on": "one", "overlap": "skip", "every": 1000}


@pytest.fixture
def hub() -> Hub:
    made = create_hub(RecordingPort(), HubSettings())
    for id in (1, 2):
        made.join(id, Role.WORKER, 1, id - 1)
        made.linked(id)
        made.take(id, encode("up"))
        made.order(id, MemberOrder.SERVE)
    return made


def message(id: str, body: bytes = b"", topic: str = "t", slot: int = 1) -> bytes:
    return encode("msg.send", {"m": [[id, 1, topic, 0, 1, slot, len(body)]]}, body)


def test_who_heeds_no_window_ends_while_little_is_held(hub: Hub) -> None:
    hub.take(2, encode("msg.topics", {"topics": {"t": 1}}))

    def flood() -> None:
        for number in range(100_000):
            hub.take(1, message(f"{number}", bytes(4_000)))

    tracemalloc.start()
    with pytest.raises(ChannelError, match="ignores its window"):
        flood()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20_000_000
    hub.leave(1)
    hub.take(2, message("2", topic="u", slot=0))  # another one's go on


def test_an_id_is_its_senders_own(hub: Hub) -> None:
    """Nobody is told what became of another's message, nor keeps another from being told."""
    hub.take(1, message("x"))
    hub.take(2, message("x"))
    with pytest.raises(ChannelError, match="second message"):
        hub.take(1, message("x"))


@pytest.mark.parametrize(
    ("kind", "head", "body"),
    [
        ("schedule.define", {**DEFINED, "jitter": "x" * 1_000}, b""),
        ("schedule.define", {**DEFINED, "jitter": [1] * 1_000}, b""),
        ("schedule.define", {**DEFINED, "jitter": -1}, b""),
        ("schedule.define", {**DEFINED, "retry": 10**9}, b""),
        ("schedule.define", {**DEFINED, "name": "x" * 201}, b""),
        ("schedule.define", {**DEFINED, "cron": "1," * 600 + "1 * * * *"}, b""),
        ("schedule.define", DEFINED, bytes(40_000)),
        ("state.seen", {"seq": 1}, b""),
        ("state.seen", {"seq": -1}, b""),
        ("state.seen", {"seq": 1.0}, b""),
        ("state.read", {"id": 1, "key": "k", "timeout": float("nan")}, b""),
        ("state.read", {"id": 1, "key": "k", "timeout": float("inf")}, b""),
        ("state.read", {"id": 2**60, "key": "k", "timeout": 1.0}, b""),
        ("state.write", {"id": 1, "op": "cas", "key": "k", "timeout": 1.0}, b"\1"),
        ("state.write", {"id": 1, "op": "drop", "key": "k", "timeout": 1.0}, b"\1"),
        ("msg.send", {"m": [["a", 1, "serve:dead", 0, 1, 1, 0]]}, b""),
        ("msg.send", {"m": [["a", 1, "t", 0, 1, 1, 140_000]]}, bytes(140_000)),
        ("msg.send", {"m": [["a", 9, "t", 0, 1, 1, 0]]}, b""),
        ("msg.topics", {"topics": {"t": -1}}, b""),
        ("msg.topics", {"topics": {f"t{n}": 1 for n in range(1_000)}}, b""),
        ("schedule.ended", {"run": 1, "outcome": "ok", "seconds": float("nan"), "text": ""}, b""),
        ("up", [], b""),
    ],
)
def test_what_is_of_no_schema_ends_its_sender(hub: Hub, kind: str, head: Any, body: bytes) -> None:
    with pytest.raises(ChannelError) as refused:
        hub.take(1, encode(kind, head, body) if head else b"\0\x04\x92\xa2up\x90")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\0", b"\0\0", b"\xff\xff", b"\0\x01\x91" * 1000, bytes(250_000)),
        struct.pack(">H", 60_000) + b"\x92\xa1x" + b"\x91" * 59_997,
        struct.pack(">H", 60_000) + b"\x92\xa2up\x81\xa1a" + b"\x91" * 59_993,
    ],
)
def test_what_is_no_frame_ends_its_sender(hub: Hub, data: bytes) -> None:
    with pytest.raises(ChannelError):
        hub.take(1, data)


def test_what_a_later_version_says_is_passed_over(hub: Hub) -> None:
    assert not hub.take(1, encode("later.kind", {"deep": [[[1]]]}))
    assert hub.take(1, encode("state.read", {"id": 1, "key": "k", "timeout": 1.0, "later": {"x": [1]}}))
    entry = ["a", 1, "t", 0, 1, 1, 0, "later"]
    assert hub.take(1, struct.pack(">H", len(packed := msgpack.packb(["msg.send", {"m": [entry]}]))) + packed)


def test_windows_leave_room_for_what_is_taken_back_late() -> None:
    from serve_asgi.app.message_sender import WINDOW

    assert MAX_UNACCEPTED >= 4 * WINDOW
