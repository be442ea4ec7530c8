"""The decisions about a WebSocket's life as tables: transitions, pings, the moment of closing."""

from __future__ import annotations

import math

import pytest

from serve_asgi.config.options import Config
from serve_asgi.websocket.closing import RETIRE_MARGIN, closing_moment
from serve_asgi.websocket.keep_alive import KeepAlive, PingVerdict
from serve_asgi.websocket.states import TRANSITIONS, WebSocketState


def test_every_state_can_end_and_none_comes_back_but_between_two_lives() -> None:
    order = list(WebSocketState)
    back = {(WebSocketState.PARTED, WebSocketState.RESUMING), (WebSocketState.LEAVING, WebSocketState.PARTED)}
    assert set(TRANSITIONS) == set(WebSocketState)
    for state, following in TRANSITIONS.items():
        assert all(order.index(after) > order.index(state) or (state, after) in back for after in following)
        assert state is WebSocketState.CLOSED or WebSocketState.CLOSED in following


def test_pings_in_a_rhythm_while_the_client_answers() -> None:
    pulse = KeepAlive(Config(ws_ping_interval=20, ws_ping_timeout=5), 100)
    assert pulse.deadline == 120
    assert pulse.expire(120.5, deaf=False) is PingVerdict.PING
    assert pulse.deadline == 125.5
    pulse.heard = True
    assert pulse.expire(126, deaf=False) is PingVerdict.REST
    assert pulse.deadline == 140.5


@pytest.mark.parametrize(
    ("heard", "deaf", "pulse"), [(False, False, "dead"), (False, True, "rest"), (True, False, "rest")]
)
def test_what_silence_means(heard: bool, deaf: bool, pulse: str) -> None:
    keep_alive = KeepAlive(Config(ws_ping_interval=1, ws_ping_timeout=5), 100)
    keep_alive.heard = True  # before the ping does not count
    assert keep_alive.expire(101, deaf=False) is PingVerdict.PING
    keep_alive.heard = heard
    assert keep_alive.expire(106, deaf) is PingVerdict(pulse)
    if pulse == "rest":  # the timeout is longer than the interval: the next ping is overdue
        assert keep_alive.deadline == 106


def test_no_ping_while_it_would_have_to_wait() -> None:
    keep_alive = KeepAlive(Config(ws_ping_interval=10, ws_ping_timeout=5), 100)
    assert keep_alive.expire(110, deaf=False, mute=True) is PingVerdict.REST
    assert keep_alive.deadline == 120
    assert keep_alive.expire(120, deaf=False) is PingVerdict.PING
    assert (
        keep_alive.expire(125, deaf=False, mute=True) is PingVerdict.REST
    )  # it went out, and then the transport filled


def test_no_interval_means_no_pings() -> None:
    assert KeepAlive(Config(ws_ping_interval=0), 100).deadline == math.inf


@pytest.mark.parametrize(
    ("retire", "deadline", "earliest", "latest"),
    [
        ("early", 1030, 1000, 1005),
        ("early", math.inf, 1000, 1005),
        ("late", 1030, 1025, 1030 - RETIRE_MARGIN),
        ("late", 1003, 1000, 1003 - RETIRE_MARGIN),  # the graceful timeout is shorter than the window
        ("late", 1000, 1000, 1000),
        ("late", math.inf, math.inf, math.inf),
    ],
)
def test_closing_moment(retire: str, deadline: float, earliest: float, latest: float) -> None:
    config = Config(ws_retire=retire, ws_retire_window=5)
    assert closing_moment(config, 1000, deadline, 0.0) == earliest
    assert closing_moment(config, 1000, deadline, 1.0) == latest
    assert earliest <= closing_moment(config, 1000, deadline) <= latest
