"""What is announced: where the server can be reached, its pid file, and the service manager's part of it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from serve_asgi.listener.announcements import Announcements
from serve_asgi.listener.pid_file import PidFile


@pytest.mark.parametrize(("told", "lines"), [(False, 3), (True, 0)])
def test_where_the_server_can_be_reached_is_told_once(told: bool, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    """Not after a reload, and not by a program that has taken an earlier one's place."""
    announcements = Announcements(None, ["http://127.0.0.1:8000"], ["unix:/run/admin.sock"], "/ping", told=told)
    with caplog.at_level(logging.INFO, "serve"):
        for what in ("ready", "reloading", "ready"):
            announcements.announce(what, "")
    assert len(caplog.messages) == lines
    assert ("serving on http://127.0.0.1:8000" in caplog.messages) is not told


def test_a_pid_file_that_cannot_be_written_is_written_with_the_next_reload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pid_file = PidFile(str(tmp_path / "pid"))
    announcements = Announcements(pid_file, [], [], "", told=True)
    (tmp_path / "pid").mkdir()
    announcements.announce("ready", "")
    assert "the pid file cannot be written" in caplog.text
    (tmp_path / "pid").rmdir()
    announcements.announce("ready", "")
    assert (tmp_path / "pid").read_text().strip().isdigit()
    pid_file.remove()
