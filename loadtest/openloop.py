"""Requests at a fixed rate, come what may: each has a scheduled moment, and its latency counts from there.

So a stalled server cannot slow the client down and thereby hide the requests that would have suffered (coordinated
omission). The moments come from a timerfd, since the timers of event loops are only good to a millisecond.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from collections import deque

from loadtest.client import Load, check
from loadtest.connection import Connection, Failure, Response
from loadtest.kinds import post

BODY = b"x" * 100
LEAVE_TIMEOUT = 10.0
KIND = "open loop"


class Ticks:
    """A timerfd (timerfd_create(2)) on CLOCK_MONOTONIC that ticks `rate` times a second."""

    def __init__(self, rate: float) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        self.period = round(1e9 / rate)
        first = time.monotonic_ns() + 50_000_000
        times = struct.pack("qqqq", *divmod(self.period, 10**9), *divmod(first, 10**9))  # struct itimerspec
        if self.fd < 0 or libc.timerfd_settime(self.fd, 1, times, None) != 0:  # 1: TFD_TIMER_ABSTIME
            raise OSError(ctypes.get_errno(), "timerfd")
        self._next = first

    def due(self) -> list[float]:
        """The scheduled moments (monotonic, s) that have come since the last call."""
        try:
            count = int.from_bytes(os.read(self.fd, 8), "little")
        except BlockingIOError:
            return []
        moments = [(self._next + index * self.period) / 1e9 for index in range(count)]
        self._next += count * self.period
        return moments

    def close(self) -> None:
        """Stop ticking."""
        os.close(self.fd)


class OpenLoop:
    """A bounded number of keep-alive connections, used in turn; a request that finds none free waits for one."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._free: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._openings: set[asyncio.Task[None]] = set()
        self._busy = 0
        self.latencies: list[float] = []
        """Seconds from the scheduled moment to the whole response, of what was answered."""
        self.lost = 0
        self.pids: deque[int] = deque(maxlen=200)
        """Who gave the last responses."""

    async def open(self, connections: int) -> None:
        """Open the connections. Raises Failure."""
        for _ in range(connections):
            self._free.append(await self._load.connect(KIND))

    async def run(self, rate: float, seconds: float) -> None:
        """Send at `rate` for so long, and wait for what is still under way."""
        self.latencies = []
        loop = asyncio.get_running_loop()
        ticks = Ticks(rate)
        loop.add_reader(ticks.fd, self._tick, ticks)
        try:
            await asyncio.sleep(seconds)
        finally:
            loop.remove_reader(ticks.fd)
            ticks.close()
        deadline = time.monotonic() + LEAVE_TIMEOUT
        while (self._busy or self._waiting) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self.lost += self._busy + len(self._waiting)

    def close(self) -> None:
        """Leave."""
        for connection in self._free:
            connection.close()

    def _tick(self, ticks: Ticks) -> None:
        for moment in ticks.due():
            self._waiting.append(moment)
        self._pump()

    def _pump(self) -> None:
        while self._waiting and self._free:
            connection = self._free.popleft()
            if not connection.usable:
                self._replace(connection)
                continue
            moment = self._waiting.popleft()
            entry = self._load.ledger.begin(KIND, moment)
            request = post(entry.number, BODY)
            answer = connection.expect()
            self._busy += 1

            def done(
                future: asyncio.Future[Response],
                connection: Connection = connection,
                number: int = entry.number,
                expected: bytes = request.answer,
                moment: float = moment,
            ) -> None:
                self._done(future, connection, number, expected, moment)

            answer.add_done_callback(done)
            connection.write(request.pieces[0][1])

    def _done(
        self, answer: asyncio.Future[Response], connection: Connection, number: int, expected: bytes, moment: float
    ) -> None:
        self._busy -= 1
        try:
            response = answer.result()
            pid, _ = check(response, number, expected)
        except Failure:
            self.lost += 1
        else:
            self.latencies.append(response.done - moment)
            self.pids.append(pid)
        if connection.usable:
            self._free.append(connection)
        else:
            self._replace(connection)
        self._pump()

    def _replace(self, connection: Connection) -> None:
        connection.close()
        task = asyncio.ensure_future(self._reopen())
        self._openings.add(task)
        task.add_done_callback(self._openings.discard)

    async def _reopen(self) -> None:
        try:
            self._free.append(await self._load.connect(KIND))
        except Failure:
            self.lost += 1
        self._pump()
