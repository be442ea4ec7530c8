"""`python -m loadtest.compare_client PORT CONNECTIONS SECONDS [RATE SEED]`: GETs over connections that stand already.

First every connection is opened and has had one request answered; then a line is printed, and an empty line from stdin
starts the load. Without RATE each connection has always one request under way, and what is under way at the end is
waited for, so that the CPU time of the server between the two lines is that of the requests counted. With RATE it is an
open loop: requests fall due at random moments (a Poisson process of RATE per second), come what may, and the latency of
each counts from the moment at which it was due, so that a stall is not hidden by the requests that it kept from being
sent. Prints one line of JSON.

It works on bare sockets and epoll, since an event loop's timers are only good to a millisecond, and since whatever the
load generator does not use of a shared core is left to the server.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import random
import select
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from socket import socket

from loadtest.idle_client import REQUEST, hold

STEP = 10
"""µs: latencies are told as multiples of it."""
WARM_UP = 0.5
"""Seconds of a fixed rate that are not counted."""
PATIENCE = 10.0
"""Seconds that the last responses have."""
PATIENCE_AT_A_RATE = 2.0
"""The same where a server that does not keep up would leave ever more of them."""
STATUS, BODY = b"HTTP/1.1 200", b"Hello, World!"


@dataclasses.dataclass(slots=True, kw_only=True)
class Seen:
    """What a load generator saw; several are added up."""

    requests: int = 0
    """Answered. With a rate: of those that were due after the warm-up."""
    due: int = 0
    """With a rate: how many should have been answered."""
    seconds: float = 0.0
    errors: int = 0
    """Connections that were closed, or that have given a wrong response."""
    latencies: Counter[int] = dataclasses.field(default_factory=Counter)
    """How many took so many steps."""
    late: Counter[int] = dataclasses.field(default_factory=Counter)
    """How many requests the generator itself noticed so many steps after they were due."""

    def add(self, other: Seen) -> None:
        """The load of another process beside this one."""
        self.requests += other.requests
        self.due += other.due
        self.seconds = max(self.seconds, other.seconds)
        self.errors += other.errors
        self.latencies += other.latencies
        self.late += other.late

    def line(self) -> str:
        """As JSON."""
        return json.dumps({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    @classmethod
    def read(cls, line: str) -> Seen:
        """From JSON. Raises ValueError if there is none."""
        read = json.loads(line)
        for name in ("latencies", "late"):
            read[name] = Counter({int(steps): count for steps, count in read[name].items()})
        return cls(**read)


def percentile(counted: Counter[int], share: float) -> float:
    """ms within which `share` of what was counted in steps of µs is; 0 if nothing was."""
    left = share * counted.total()
    for steps in sorted(counted):
        left -= counted[steps]
        if left <= 0:
            return steps * STEP / 1000
    return 0.0


def moments(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests fall due, in seconds from the start: gaps of a Poisson process."""
    chance = random.Random(seed)
    found, at = [], 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        found.append(at)
    return found


class Sockets:
    """The connections, and what has come of a response that is not whole yet."""

    def __init__(self, opened: Sequence[socket]) -> None:
        self.epoll = select.epoll()
        self.opened = {each.fileno(): each for each in opened}
        self.parts: dict[int, bytes] = {}
        self.errors = 0
        for fd, each in self.opened.items():
            each.setblocking(False)
            self.epoll.register(fd, select.EPOLLIN)

    def answered(self, fd: int) -> bool:
        """Read; whether the response is whole now."""
        data = self.read(fd)
        if data.startswith(STATUS) and data.endswith(BODY):
            return True
        if not data:
            self.fail(fd)
            return False
        data = self.parts.pop(fd, b"") + data
        if not data.endswith(BODY):
            self.parts[fd] = data
            return False
        if data.startswith(STATUS):
            return True
        self.fail(fd)
        return False

    def read(self, fd: int) -> bytes:
        """What has come; nothing at the end, or at a reset."""
        try:
            return self.opened[fd].recv(4096)
        except OSError:
            return b""

    def fail(self, fd: int) -> None:
        """Give a connection up."""
        self.errors += 1
        self.epoll.unregister(fd)
        self.opened.pop(fd).close()

    def send(self, fd: int) -> bool:
        """A request; False if the connection is given up."""
        try:
            os.write(fd, REQUEST)
        except OSError:
            self.fail(fd)
            return False
        return True


def as_fast_as_they_come(sockets: Sockets, seconds: float) -> Seen:
    """Each connection sends its next request when it has its response."""
    begun = time.perf_counter()
    requests = 0
    under_way = sum(sockets.send(fd) for fd in list(sockets.opened))
    ending = False
    while under_way and (now := time.perf_counter()) - begun < seconds + PATIENCE:
        ending = ending or now - begun >= seconds
        errors = sockets.errors
        for fd, _ in sockets.epoll.poll(PATIENCE):
            if sockets.answered(fd):
                requests += 1
                if ending or not sockets.send(fd):
                    under_way -= 1
            elif sockets.errors != errors:
                under_way -= 1
                errors = sockets.errors
    took = time.perf_counter() - begun
    return Seen(requests=requests, seconds=took, errors=sockets.errors + under_way)


def at_a_rate(sockets: Sockets, due: Sequence[float], seconds: float) -> Seen:
    """Requests at these moments, each over a connection that is free; one that finds none free waits for one."""
    seen = Seen(seconds=seconds)
    free, waiting = deque(sockets.opened), deque[float]()
    started: dict[int, float] = {}
    position, epoll = 0, sockets.epoll
    begun = time.perf_counter()
    while True:
        now = time.perf_counter() - begun
        while position < len(due) and due[position] <= now:
            waiting.append(due[position])
            seen.late[round((now - due[position]) * 1e6 / STEP)] += 1
            position += 1
        while waiting and free:
            fd = free.popleft()
            started[fd] = waiting.popleft()
            if not sockets.send(fd):
                del started[fd]
        if (position == len(due) and not started and not waiting) or now > seconds + PATIENCE_AT_A_RATE:
            break
        pause = max(0.0, due[position] - now) if position < len(due) else PATIENCE_AT_A_RATE
        select.select([epoll], [], [], pause)  # to the microsecond, where epoll's own is to the millisecond
        for fd, _ in epoll.poll(0):
            if sockets.answered(fd):
                moment = started.pop(fd)
                if moment >= WARM_UP:
                    seen.latencies[round((time.perf_counter() - begun - moment) * 1e6 / STEP)] += 1
                free.append(fd)
            elif fd not in sockets.opened:
                started.pop(fd, None)
    seen.due = sum(moment >= WARM_UP for moment in due)
    seen.requests = seen.latencies.total()
    seen.errors = sockets.errors
    return seen


def main(port: int, connections: int, seconds: float, rate: float, seed: int) -> None:
    """Open, say so, wait for the word, load, tell."""
    sockets = Sockets(hold(port, connections, secure=False))
    due = moments(rate, seconds + WARM_UP, seed) if rate else []
    print("ready", flush=True)
    sys.stdin.readline()
    gc.disable()
    seen = at_a_rate(sockets, due, seconds + WARM_UP) if rate else as_fast_as_they_come(sockets, seconds)
    print(seen.line(), flush=True)


if __name__ == "__main__":
    _, port, connections, seconds, *rest = sys.argv
    rate, seed = (float(rest[0]), int(rest[1])) if rest else (0.0, 0)
    main(int(port), int(connections), float(seconds), rate, seed)
