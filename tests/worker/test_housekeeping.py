"""Deadlines on a server on which nothing else happens, so that it does not look at all connections at every tick."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from tests.applications import info
from tests.running import connect, request, running

QUIET = 2.5
"""Seconds without any event, so that some ticks have found nothing to look at."""


def test_deadlines_hold_on_a_quiet_server(tmp_path: Path) -> None:
    (tmp_path / "quiet.py").write_text(info())
    options = ("--keep-alive", "4", "--head-timeout", "1", "--no-access-log")
    with running("quiet:app", *options, directory=tmp_path) as server:
        with connect(server) as kept, connect(server) as fresh:
            assert request(kept)[0] == 200
            time.sleep(QUIET)
            fresh.sendall(b"GET / HTTP/1.1\r\nho")  # a deadline that is sooner than all that were known
            assert fresh.recv(65536).startswith(b"HTTP/1.1 408 ")
            assert fresh.recv(65536) == b""
            assert kept.recv(65536) == b""  # and the one that had been known all the time
        server.wait_until(lambda status: status["workers"][0]["connections"] == 0)


def test_many_deadlines_at_the_same_moment_are_all_kept(tmp_path: Path) -> None:
    (tmp_path / "quiet.py").write_text(info())
    with running("quiet:app", "--head-timeout", "1", "--no-access-log", directory=tmp_path) as server:
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(connect(server)) for _ in range(100)]
            for connection in slow:
                connection.sendall(b"GET / HT")
            with connect(server) as connection:
                assert request(connection)[0] == 200
            for connection in slow:
                assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
                assert connection.recv(65536) == b""
        server.wait_until(lambda status: status["workers"][0]["connections"] == 0)
