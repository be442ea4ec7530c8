"""A flood of messages holds up no signal: USR2 is handled about as soon as by a listener with nothing else to do.

How long it took is read from the scoreboard: the listener writes there when the lame duck began.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from server import control_client
from server.scoreboard import Header
from tests.running import RunningServer, connect, request, running

pytestmark = pytest.mark.once

SIGNALS = int(os.environ.get("SERVE_TEST_SIGNALS", "50"))
"""In each state; the whole test has 200."""
ATTEMPTS = 6
"""What else the machine does may hold up one single signal of a run; if the listener does, it is so in every run."""


class LameDuckWord:
    """The listener's word for when the lame duck began, read in its memory file (proc(5), fd)."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        for entry in Path(f"/proc/{server.pid}/fd").iterdir():
            if "serve-scoreboard" in os.readlink(entry):
                self.fd = os.open(entry, os.O_RDONLY)
                return
        raise AssertionError("the listener has no scoreboard")

    def read(self) -> int:
        return int.from_bytes(os.pread(self.fd, 8, Header.LAME_DUCK * 8), "little")

    def delay(self) -> float:
        """Send USR2 and return how long it took the listener to deal with it, in seconds."""
        assert self.read() == 0
        sent = time.monotonic_ns()
        self.server.signal(signal.SIGUSR2)
        deadline = time.monotonic() + 10
        while not (began := self.read()):
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        control_client.ask(self.server.control, "drain", off=True)
        while self.read():
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        return (began - sent) / 1e9


def measure(server: RunningServer, word: LameDuckWord) -> dict[str, list[float]]:
    """The delays of signals in both states, in turn, since the machine is not the same all the time; sorted."""
    delays: dict[str, list[float]] = {"flood": [], "calm": []}
    with connect(server) as connection:
        for _ in range(10):
            for state, found in delays.items():
                assert request(connection, f"/{state}")[0] == 200
                for _ in range(SIGNALS // 10):
                    time.sleep(random.random() * 0.01)
                    found.append(word.delay())
    for state, found in delays.items():
        found.sort()
        print(
            state, f"median {1000 * found[len(found) // 2]:.2f} ms, the worst", [f"{d * 1000:.2f}" for d in found[-5:]]
        )
    return delays


def test_signals_are_handled_under_a_flood(tmp_path: Path) -> None:
    record = tmp_path / "record"
    with running(
        "tests.messenger_application:app", "--workers", "2", directory=tmp_path, environment={"RECORD": str(record)}
    ) as server:
        word = LameDuckWord(server)
        for _ in range(ATTEMPTS):
            delays = measure(server, word)
            median, worst = (
                delays["flood"][at] / delays["calm"][at] for at in (len(delays["calm"]) // 2, len(delays["calm"]) - 1)
            )
            print(f"ratio of the medians {median:.2f}, of the worst {worst:.2f}")
            if max(median, worst) <= 3:
                break
        else:
            pytest.fail(f"under a flood signals are handled {median:.1f} (median), {worst:.1f} (worst) times as late")
        os.close(word.fd)
        assert server.stop() == 0
    flooded = [int(line.split()[1]) for line in record.read_text().splitlines() if line.startswith("flooded")]
    print(f"{max(flooded)} messages of one worker")
    assert max(flooded) > 10 * SIGNALS
