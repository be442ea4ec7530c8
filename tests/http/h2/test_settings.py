"""SETTINGS: what the client says of itself (RFC 9113 6.5)."""

from __future__ import annotations

import pytest

from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode
from serve_asgi.http.h2.frames import settings_frame
from serve_asgi.http.h2.settings import ClientSettings, Setting, server_settings


def payload(values: dict[int, int]) -> bytes:
    return settings_frame(values)[9:]


def test_the_defaults() -> None:
    said = ClientSettings()
    assert (said.table_size, said.initial_window, said.max_frame_size) == (4096, 65535, 16384)
    assert said.priorities_in_frames


def test_what_is_said_twice_counts_as_it_was_said_last() -> None:
    said = ClientSettings()
    said.apply(payload({4: 1, 5: 20_000, 1: 0}) + payload({4: 2}))
    assert (said.table_size, said.initial_window, said.max_frame_size) == (0, 2, 20_000)


def test_the_edges() -> None:
    said = ClientSettings()
    said.apply(payload({4: 0x7FFFFFFF, 5: 0xFFFFFF, 1: 0xFFFFFFFF, 6: 0xFFFFFFFF, 3: 0}))
    said.apply(payload({4: 0, 5: 16384, 2: 1, 8: 0}))
    assert (said.initial_window, said.max_frame_size) == (0, 16384)


def test_priorities_of_frames_are_said_once() -> None:
    """RFC 9218 2.1: the first SETTINGS say it, the later ones the same or nothing."""
    said = ClientSettings()
    said.apply(payload({9: 1}))
    said.apply(payload({}))
    said.apply(payload({9: 1}))
    assert not said.priorities_in_frames
    with pytest.raises(ConnectionFault) as found:
        said.apply(payload({9: 0}))
    assert found.value.code is ErrorCode.PROTOCOL_ERROR


def test_they_travel() -> None:
    said, other = ClientSettings(), ClientSettings()
    said.apply(payload({9: 1, 4: 7}))
    other.restore(said.to_json())
    assert other.to_json() == said.to_json()
    with pytest.raises(ConnectionFault):
        other.apply(payload({9: 0}))


def test_what_the_server_says() -> None:
    assert server_settings(100, 1000, 2000) == {
        Setting.MAX_CONCURRENT_STREAMS: 100,
        Setting.INITIAL_WINDOW_SIZE: 1000,
        Setting.MAX_HEADER_LIST_SIZE: 2000,
        Setting.ENABLE_CONNECT_PROTOCOL: 1,
        Setting.NO_RFC7540_PRIORITIES: 1,
    }
