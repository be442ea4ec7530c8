"""Which connections of other workers one takes; HTTP/2 in a version, or a configuration, that has none."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from serve_asgi.config.options import Config
from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.connection_value import export_connection
from serve_asgi.http.hand_over_record import NOT_IDLE, HandOverRecord
from serve_asgi.ipc import packets
from serve_asgi.tls.moved_session import MovedSession
from serve_asgi.worker.connection_opening import ConnectionOpening
from tests.http.h2.peer import GET, OK, H2Peer

TLS = {**NOT_IDLE, "format": 1}


def state() -> dict[str, Any]:
    """Of an HTTP/2 connection that has a bit of everything."""
    peer = H2Peer()
    peer.send(frames.settings_frame({1: 2048, 4: 1000, 5: 20_000}), frames.window_update_frame(0, 77))
    for stream_id in (1, 7):
        peer.request(stream_id, [*GET, (b"x-a", b"1")])
        peer.core.send_head(stream_id, [*OK, (b"x-b", b"2")], stream_id == 1)
        peer.core.done(stream_id)
    peer.send(frames.reset_frame(7, 8), frames.frame(frames.PRIORITY_UPDATE, 0, 0, b"\0\0\0\x09u=1, i"))
    peer.said()
    exported, _ = export_connection(peer.core)
    plain: dict[str, Any] = json.loads(json.dumps(exported))
    return plain


def record(http2: dict[str, Any] | None, **more: Any) -> HandOverRecord:
    return HandOverRecord(b"\0\0", None, None, math.inf, 3, http2=http2, **more)


def over_the_wire(sent: HandOverRecord, **changed: Any) -> HandOverRecord:
    """As the other worker gets it; `changed` are members of the packet's record."""
    offer = {"type": "offer", "offer": 1, "record": {**sent.to_json(), **changed}}
    packet = packets.FROM_SENDER.decode(json.dumps(offer).encode())
    assert isinstance(packet, packets.Offer)
    return HandOverRecord.from_json(packets.members(packet.record))


def opening(**options: Any) -> ConnectionOpening:
    worker: Any = SimpleNamespace(config=Config(**options))
    return ConnectionOpening(worker, None)


@pytest.mark.parametrize("survives", [False, True])
@pytest.mark.parametrize("tls", [None, TLS])
def test_an_http2_connection_travels_whole(tls: dict[str, Any] | None, survives: bool) -> None:
    sent = record(state(), tls=tls, survives=survives)
    arrived = over_the_wire(sent)
    assert (arrived.http2, arrived.survives, arrived.leftover) == (sent.http2, survives, b"\0\0")
    assert (arrived.tls is None) is (tls is None)
    assert opening().understands(record(arrived.http2))
    assert "x-a" not in repr(arrived)


def test_a_version_that_knows_no_http2_refuses_it_as_tls_of_an_unknown_format() -> None:
    for survives in (False, True):
        values = record(state(), tls=TLS, survives=survives).to_json()
        del values["http2"]
        earlier = HandOverRecord.from_json(values)
        assert earlier.tls is not None
        assert not opening().understands(earlier)
        with pytest.raises(ValueError, match="format 0"):
            MovedSession.from_json(earlier.tls)


def test_where_http2_is_off_it_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert not opening(http2="off").understands(record(state()))
    assert opening(http2="off").understands(record(None))
    assert not caplog.records


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2},
        {"settings": [4096, 65535, 16384]},
        {"settings": [4096, 65535, 1, 1]},
        {"settings": [4096, 2**31, 16384, 1]},
        {"decoder": [4096, [["!", "é"]]]},
        {"decoder": [4096, [["YQ=="]]]},
        {"encoder": [4096, []]},
        {"send_window": 2**31},
        {"send_window": "1"},
        {"receive_window": [1, 2]},
        {"ended": {"last": 1}},
        {"floods": {"NONE": 1.0}},
        {"floods": {"RESETS": -1.0}},
        {"requests": None},
        {"priorities": [[1, 8, True]]},
        {"begun": "yes"},
    ],
)
def test_a_state_that_is_none_is_refused_and_the_pair_goes_on(
    wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    good = state()
    arrived = over_the_wire(record({**good, **wrong}))
    assert not opening().understands(arrived)
    assert "refused an HTTP/2 connection of another worker: " in caplog.text
    missing = over_the_wire(record({name: value for name, value in good.items() if name not in wrong}))
    assert not opening().understands(missing)
    assert opening().understands(over_the_wire(record({**good, "of a later version": [1]})))
