"""The accounts: what was sent, what was executed, what was answered, and what does not agree.

Pure: it knows no sockets, clock or processes. The clients write into a `Ledger` as they go; the executions are read
from the application's file afterwards; `settle` compares the two. Rule: an id that was sent and has no right and whole
answer is lost, whatever the excuse; there is no retry that could hide it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Iterable, Sequence

from loadtest.surviving import Survivor


class Cause(enum.Enum):
    """Why a request that was sent has no response."""

    REFUSED = "connect refused"
    CONNECT = "connect failed"  # reset or timed out before the connection stood
    RESET = "reset"
    EOF = "closed without response"
    TRUNCATED = "response cut short"
    TIMEOUT = "timeout"
    TLS = "TLS alert or wrong record"
    STATUS = "error status"
    WRONG = "wrong bytes"
    CLOSED = "WebSocket closed"  # by the server, with a message unanswered or with an abnormal code
    GOAWAY = "refused by GOAWAY"  # the stream is above its last one, or it came before the request could be sent
    STREAM_RESET = "stream reset by the server"
    CANCELLED = "reset by the client"  # on purpose, before the whole response: not lost
    FAILED = "failed by a bad version"  # on purpose, with the right id and body: not lost
    UNSETTLED = "unsettled at the end"


EXCUSED = (Cause.FAILED, Cause.CANCELLED)
"""What is neither answered nor lost."""


class Left(enum.Enum):
    """How the server ended a keep-alive connection that the client wanted to keep."""

    EOF = "EOF"
    RESET = "reset"
    ANNOUNCED = "Connection: close"
    TRUNCATION = "EOF without close_notify"
    ALERT = "TLS alert or wrong record"
    GOAWAY = "GOAWAY"


@dataclasses.dataclass(slots=True)
class Entry:
    """One id. Times are in seconds of one monotonic clock."""

    number: int
    kind: str
    sent: float
    planned: float = 0.0  # the part of the latency that the client itself asked for (drips, sleeps)
    cause: Cause | None = Cause.UNSETTLED  # None: answered
    detail: str = ""
    done: float = 0.0
    pid: int = 0
    generation: int = 0
    connection: int = 0  # on which it was sent, counted from 1; 0 for messages

    @property
    def latency(self) -> float:
        """Seconds from sending to the whole response, without what was planned."""
        return max(0.0, self.done - self.sent - self.planned)


@dataclasses.dataclass(frozen=True, slots=True)
class Reconnect:
    """A keep-alive connection that the server ended without having been asked to."""

    kind: str
    time: float
    left: Left
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Execution:
    """One line of the application's file."""

    started: bool  # else ended
    number: int
    pid: int
    time: float


class Ledger:
    """The clients' side of the accounts."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        """The entry of id n is at index n - 1."""
        self.reconnects: list[Reconnect] = []
        self.told_to_come_back: list[float] = []
        """When the server closed a WebSocket with 1001 or 1012 and nothing unanswered."""
        self.moved_on: list[str] = []
        """The kinds of the connections of HTTP/2 that were told GOAWAY because a request lasted longer than a reload
        waits for it."""
        self.survivors: list[Survivor] = []
        """Connections that are to survive."""
        self.connections = 0
        """Connections that were opened."""
        self.oddities: Counter[str] = Counter()
        """Other things that a server must not do, by description."""

    def begin(self, kind: str, now: float) -> Entry:
        """A new id: from here on it is sent."""
        entry = Entry(len(self.entries) + 1, kind, now)
        self.entries.append(entry)
        return entry

    def answered(self, entry: Entry, now: float, pid: int, generation: int) -> None:
        """The right and whole response has arrived."""
        entry.cause, entry.done, entry.pid, entry.generation = None, now, pid, generation

    def answered_badly(self, entry: Entry, now: float, pid: int, generation: int) -> None:
        """A bad version has answered with the error that it is made for."""
        entry.cause, entry.done, entry.pid, entry.generation = Cause.FAILED, now, pid, generation

    def cancelled(self, entry: Entry, now: float) -> None:
        """The client has reset the stream, before its response was whole."""
        entry.cause, entry.done = Cause.CANCELLED, now

    def failed(self, entry: Entry, now: float, cause: Cause, detail: str = "") -> None:
        """There will be no response."""
        entry.cause, entry.done, entry.detail = cause, now, detail

    def reconnect(self, kind: str, now: float, left: Left, detail: str = "") -> None:
        """The server ended a keep-alive connection."""
        self.reconnects.append(Reconnect(kind, now, left, detail))


@dataclasses.dataclass(frozen=True, slots=True)
class Accounts:
    """What `settle` found. Every number but the first five must be 0."""

    sent: int
    executed: int
    answered: int
    failed: int
    """Answered by a bad version with its error."""
    cancelled: int
    """Reset by the client before the response was whole."""
    lost: list[Entry]
    lost_executed: int
    """Of the lost ones: executed, but the response did not arrive."""
    duplicated: list[int]
    """Ids that were executed more than once."""
    phantom: list[int]
    """Ids that were executed and never sent."""
    unexecuted: list[int]
    """Ids that were answered and never executed."""
    unfinished: list[int]
    """Ids that were answered and whose execution never ended."""
    mismatched: list[int]
    """Ids that were answered by another process than the one that executed them."""

    @property
    def lost_by_cause(self) -> Counter[Cause]:
        """How many were lost for which cause."""
        return Counter(entry.cause for entry in self.lost if entry.cause is not None)

    @property
    def lost_by_kind(self) -> Counter[str]:
        """How many were lost of which kind of load."""
        return Counter(entry.kind for entry in self.lost)


def settle(entries: Sequence[Entry], executions: Iterable[Execution]) -> Accounts:
    """Compare what was sent and answered with what was executed."""
    starts: dict[int, list[int]] = {}
    ended: set[int] = set()
    for execution in executions:
        if execution.started:
            starts.setdefault(execution.number, []).append(execution.pid)
        else:
            ended.add(execution.number)
    lost = [entry for entry in entries if entry.cause is not None and entry.cause not in EXCUSED]
    answered = [entry for entry in entries if entry.cause is None or entry.cause is Cause.FAILED]
    failed = sum(entry.cause is Cause.FAILED for entry in entries)
    numbers = {entry.number for entry in entries}
    return Accounts(
        sent=len(entries),
        executed=len(starts),
        answered=len(answered) - failed,
        failed=failed,
        cancelled=sum(entry.cause is Cause.CANCELLED for entry in entries),
        lost=lost,
        lost_executed=sum(entry.number in starts for entry in lost),
        duplicated=[number for number, pids in starts.items() if len(pids) > 1],
        phantom=[number for number in starts if number not in numbers],
        unexecuted=[entry.number for entry in answered if entry.number not in starts],
        unfinished=[entry.number for entry in answered if entry.number in starts and entry.number not in ended],
        mismatched=[
            entry.number for entry in answered if entry.number in starts and entry.pid not in starts[entry.number]
        ],
    )


def parse_executions(data: bytes) -> list[Execution]:
    """The application's file. Raises ValueError for a line that is none: the file is the proof, so it must be whole."""
    executions = []
    for line in data.splitlines():
        phase, number, pid, nanoseconds = line.split()
        if phase not in (b"S", b"E"):
            raise ValueError(f"not a line of executions: {line!r}")
        executions.append(Execution(phase == b"S", int(number), int(pid), int(nanoseconds) / 1e9))
    return executions


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of the sorted `values` do not exceed; 0.0 if there are none."""
    if not values:
        return 0.0
    return values[min(len(values) - 1, max(0, -(-round(share * len(values) * 1_000_000) // 1_000_000) - 1))]
