"""A flood of messages holds up no signal: USR2 is handled about as soon as by a listener with nothing else to do.

How long it took is read from the scoreboard: the listener writes there when the drain began. The time that it waited
for a processor meanwhile (proc(5), schedstat) is taken off: who works all the time waits for others where an idle
process is let in at once, which is the machine's affair. What is left is held to an idle listener while the same
workers compute and while they do nothing: the median, and the mean of the slowest tenth, in one run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from statistics import mean, median
from typing import Final

import pytest

from serve_asgi.cli import control_client
from serve_asgi.ipc.scoreboard import Header
from tests.running import RunningServer, connect, request, running

pytestmark = pytest.mark.once

SIGNALS = int(os.environ.get("SERVE_TEST_SIGNALS", "50"))
"""In each state; the whole test has 200."""


class DrainFlag:
    """The listener's word for when the drain began, read in its memory file (proc(5), fd)."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        for entry in Path(f"/proc/{server.pid}/fd").iterdir():
            if "serve-scoreboard" in os.readlink(entry):
                self.fd = os.open(entry, os.O_RDONLY)
                return
        raise AssertionError("the listener has no scoreboard")

    def read(self) -> int:
        return int.from_bytes(os.pread(self.fd, 8, Header.DRAINING_SINCE * 8), "little")

    def delay(self) -> float:
        """Send USR2 and return how long it took the listener to deal with it, waiting apart, in seconds."""
        assert self.read() == 0
        sent, (ran, waited) = time.monotonic_ns(), self.schedule()
        self.server.signal(signal.SIGUSR2)
        deadline = time.monotonic() + 10
        while not (began := self.read()):
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        ran, waited = (after - before for after, before in zip(self.schedule(), (ran, waited), strict=True))
        control_client.ask(self.server.control, "drain", off=True)
        while self.read():
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        taken = began - sent  # and it ran or waited for some more until that was seen
        return max(taken - waited, min(taken, ran)) / 1e9

    def schedule(self) -> tuple[int, int]:
        """Nanoseconds for which the listener has run, and waited for a processor."""
        ran, waited, _ = Path(f"/proc/{self.server.pid}/schedstat").read_text().split()
        return int(ran), int(waited)


STATES: Final = {"flood": ["/flood"], "computing": ["/computing"], "quiet": []}
"""What the workers are asked for; the listener has frames to forward in the first state alone."""


def measure(server: RunningServer, word: DrainFlag) -> dict[str, list[float]]:
    """The delays of signals in all states, in turn, since the machine is not the same all the time; sorted."""
    delays: dict[str, list[float]] = {state: [] for state in STATES}
    with connect(server) as connection:
        for _ in range(10):
            for state, paths in STATES.items():
                for path in paths:
                    assert request(connection, path)[0] == 200
                for _ in range(SIGNALS // 10):
                    time.sleep(random.random() * 0.01)
                    delays[state].append(word.delay())
                assert request(connection, "/calm")[0] == 200
    for state, found in delays.items():
        found.sort()
        last = [f"{delay * 1000:.2f}" for delay in found[-5:]]
        print(f"{state}: median {1000 * median(found):.2f} ms, the worst {', '.join(last)}")
    return delays


def slowed(delays: dict[str, list[float]]) -> tuple[float, float]:
    """How many times as late signals are under a flood as where the listener is idle: the median, the slowest tenth."""

    def slowest(found: list[float]) -> float:
        return mean(found[-SIGNALS // 10 :])

    idle = [delays["computing"], delays["quiet"]]
    middle = median(delays["flood"]) / max(map(median, idle))
    slow = slowest(delays["flood"]) / max(map(slowest, idle))
    print(f"flood to idle: median {middle:.2f}, slowest tenth {slow:.2f}")
    return middle, slow


def test_signals_are_handled_under_a_flood(tmp_path: Path) -> None:
    record = tmp_path / "record"
    with running(
        "tests.messenger_application:app", "--workers", "2", directory=tmp_path, environment={"RECORD": str(record)}
    ) as server:
        word = DrainFlag(server)
        assert max(slowed(measure(server, word))) <= 3
        os.close(word.fd)
        assert server.stop() == 0
    lines = [line.split() for line in record.read_text().splitlines() if line.startswith("flooded")]
    flooded = {pid: int(count) for _, count, pid in lines}  # of each worker at the end
    print(f"{sum(flooded.values())} messages, {len(flooded)} workers")
    assert sum(flooded.values()) > 5 * SIGNALS
