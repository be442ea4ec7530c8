"""docs/guides/http2.md says what the code does: each limit with its number."""

from __future__ import annotations

import re

import pytest

from serve_asgi.config.options import Config
from serve_asgi.http.h2 import frames, limits, settings
from serve_asgi.http.h2.limits import FloodKind
from tests.running import ROOT

PAGE = (ROOT / "docs" / "guides" / "http2.md").read_text()
DEFAULTS = Config()
TIMES = {0.25: "fourth ", 2: ", two", 4: ", four", 0: "–"}


def row(beginning: str) -> list[str]:
    """The cells behind the first one of the row that begins so."""
    (found,) = re.findall(rf"^\| {re.escape(beginning)}.*$", PAGE, re.MULTILINE)
    return [cell.strip() for cell in str(found).strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("beginning", "value"),
    [
        ("requests at once", limits.MAX_STREAMS),
        ("requests at once", DEFAULTS.h2_max_streams),
        ("requests that begin in one turn", limits.REQUESTS_AT_ONCE),
        ("a request's fields", DEFAULTS.max_head_size),
        ("… of a bomb", limits.BOMB_RATIO),
        ("window of a request's body", limits.STREAM_WINDOW),
        ("window of all bodies", limits.CONNECTION_WINDOW),
        ("a frame", frames.LEAST_MAX_FRAME_SIZE),
        ("header table", limits.MAX_TABLE_SIZE),
        ("changes of its size", limits.MAX_TABLE_UPDATES),
        ("CONTINUATION frames", limits.MAX_CONTINUATIONS),
        ("settings in one frame", settings.MAX_SETTINGS),
        ("bytes held back", limits.MAX_HELD),
        ("a client that takes nothing", DEFAULTS.write_timeout),
    ],
)
def test_each_limit_has_its_number(beginning: str, value: float) -> None:
    assert re.match(rf"{value:,g}\b" if value < 1000 else rf"{value:,}\b", row(beginning)[0])


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        ("streams that were reset", FloodKind.RESETS),
        ("SETTINGS and PING", FloodKind.CONTROL),
        ("empty DATA", FloodKind.IDLE),
        ("WINDOW_UPDATE", FloodKind.WINDOW_UPDATES),
        (f"DATA of less than {limits.CRUMB} bytes", FloodKind.CRUMBS),
    ],
)
def test_each_flood_has_its_numbers(beginning: str, kind: FloodKind) -> None:
    at_once, each_second, share = row(beginning)
    assert (at_once, each_second) == (f"{kind.value.at_once:,}", f"{kind.value.per_second:,}")
    assert TIMES[kind.value.share] in share


def test_what_bodies_hold_that_nobody_reads() -> None:
    """No stream waits for the connection's window, though half of it is not granted again yet."""
    held = limits.MAX_STREAMS * limits.STREAM_WINDOW
    assert held * 2 <= limits.CONNECTION_WINDOW
    assert f"at most {held / 2**20:g} MiB of memory for a connection with {limits.MAX_STREAMS} requests" in PAGE
    assert f"wide enough that {limits.MAX_STREAMS} uploads" in PAGE


def test_the_time_that_frames_are_held() -> None:
    assert f"`--h2-hold` ({DEFAULTS.h2_hold:g} s)" in PAGE
