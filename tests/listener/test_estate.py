"""What a listener passes on, and what a program that is to take it over finds out before."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from serve_asgi.config.sources import read
from serve_asgi.errors import UsageError
from serve_asgi.ipc.scoreboard import Scoreboard
from serve_asgi.listener import re_exec_resume as successor
from serve_asgi.listener import re_exec_state as estate
from serve_asgi.listener.generation_plan import resolve_config
from serve_asgi.listener.listener import Listener
from serve_asgi.logs import output


@pytest.fixture
def state() -> Iterator[dict[str, Any]]:
    """That of a server whose only worker has been decided on and not been started."""
    listener = Listener(resolve_config(read("app:app", {}, {}), os.getcwd()), [], None, [])
    supervisor = listener.supervisor
    supervisor.start(0.0)
    supervisor.processes.current, supervisor.processes.candidate = supervisor.candidate, None
    described, _ = estate.describe(listener, output.current(), [])
    yield described
    listener.children.scoreboard.close()
    listener._post.close()
    listener._events.close()


def check(state: dict[str, Any], magic: int = 0) -> None:
    board = Scoreboard.create(1, 1)
    if magic:
        board.words[0] = magic
    try:
        successor.check(estate.save(state), board.read_only())
    finally:
        board.close()


def test_what_is_understood_passes(state: dict[str, Any]) -> None:
    check(state)
    check({**state, "of a later version": 1})


def test_another_version_is_refused_with_a_sentence(state: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="restart the server"):
        check({**state, "version": 99})
    with pytest.raises(UsageError, match="version of the channel"):
        check({**state, "protocol": (9, 9)})


def test_what_would_fail_later_fails_now(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="scoreboard"):
        check(state, magic=1)
    with pytest.raises(LookupError):
        check({**state, "plans": {"1": {}}})
    with pytest.raises(ValueError, match="sctp"):
        check({**state, "listening": [{"kind": "sctp"}]})
    supervisor = json.loads(json.dumps(state["supervisor"]))
    supervisor["workers"][0]["state"] = "dancing"
    with pytest.raises(ValueError, match="dancing"):
        check({**state, "supervisor": supervisor})


def test_no_descriptor_is_left(state: dict[str, Any]) -> None:
    gc.collect()
    before = os.listdir("/proc/self/fd")
    check(state)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= len(before)
