"""What `serve top` shows, computed from successive statuses of the server: rates, percentiles, marks.

Pure: it knows neither sockets nor terminals. Times are the server's own (its uptime), so that a late status does not
distort rates.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Final

KEPT: Final = 600
"""Samples kept: more than any terminal has columns."""
WINDOW: Final = 10
"""Samples that percentiles are taken over, since there may be few requests in one second."""

Status = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class TopSample:
    """One interval between two statuses."""

    seconds: float
    generation: int
    requests: float
    """Per second, like all of the following."""
    errors: float
    """5xx responses."""
    received: float
    sent: float
    """In bytes."""
    cpu: float
    """Seconds of CPU time, of all workers."""
    durations: tuple[int, ...]
    """Requests of this interval by the buckets of `durations.bounds`, and one for all that took longer; empty in the
    samples of the admin process."""
    p50: float | None
    p99: float | None
    """Seconds; None if no request has completed."""
    switched: bool
    """A new generation came into service in this interval."""
    refused: bool
    """A reload was refused in this interval."""
    first_bytes: tuple[int, ...] = ()
    """As `durations`, of the time to the first byte of streams that ended."""
    accepts: tuple[int, ...] = ()
    """As `durations`, of the time until WebSockets were accepted."""


@dataclasses.dataclass(slots=True)
class WorkerRate:
    """What one worker did in the last interval."""

    requests: float = 0.0
    cpu: float = 0.0
    ticked: float = 0.0
    """When (uptime, s) the worker last wrote its CPU time."""


NO_CONNECTIONS: Final = {"requests": 0, "in_flight": 0, "connections": 0, "websockets": 0, "oldest": None}


class TopSamples:
    """The statuses seen so far. `add` each new one."""

    def __init__(self) -> None:
        self.status: Status = {}
        """The last status."""
        self.samples: collections.deque[TopSample] = collections.deque(maxlen=KEPT)
        self.rates: dict[tuple[int, int | str], WorkerRate] = {}
        """By generation and slot ("agent" for an agent)."""
        self.first: Status = {}
        self.gone = 0.0
        """Seconds since the server last responded, if it is being searched for."""

    def add(self, status: Status) -> None:
        """Add a status; one from the same moment, or from another server or listener, starts over."""
        before, self.status = self.status, status
        self.gone = 0.0
        same = before and all(status[name] == before[name] for name in ("pid", "server"))
        if not same or status["uptime"] <= before["uptime"]:
            self.first = status
            self.samples.clear()
            self.rates.clear()
            return
        seconds = status["uptime"] - before["uptime"]
        self._rate_workers(before, status, seconds)
        now, then = status["totals"], before["totals"]

        def rate(name: str) -> float:
            return float(max(0, now.get(name, 0) - then.get(name, 0)) / seconds)

        counts = zip(status["durations"]["counts"], before["durations"]["counts"], strict=True)
        durations = tuple(max(0, after - earlier) for after, earlier in counts)

        def made(kind: str, name: str) -> tuple[int, ...]:
            both = zip(_counts(status, kind, name), _counts(before, kind, name), strict=True)
            return tuple(max(0, after - earlier) for after, earlier in both)

        self.samples.append(
            TopSample(
                seconds=seconds,
                generation=status["generation"],
                requests=rate("requests"),
                errors=rate("status_5xx"),
                received=rate("bytes_received"),
                sent=rate("bytes_sent"),
                cpu=sum(worker.cpu for worker in self.rates.values()),
                durations=durations,
                p50=percentile(durations, self.bounds, 0.5),
                p99=percentile(durations, self.bounds, 0.99),
                switched=status["generation"] != before["generation"],
                refused=status["failed_reloads"] != before["failed_reloads"],
                first_bytes=made("streams", "first_byte"),
                accepts=made("websockets", "accept"),
            )
        )

    def _rate_workers(self, before: Status, status: Status, seconds: float) -> None:
        old = {(w["generation"], w["slot"]): w for w in processes(before)}
        rates = {}
        for worker in processes(status):
            key = (worker["generation"], worker["slot"])
            was = old.get(key)
            rate = self.rates.get(key, WorkerRate())
            if was is None or was["requests"] > worker["requests"]:  # a new process
                was, rate = {"requests": 0, "cpu": 0.0}, WorkerRate()
            ticked = status["uptime"] - (worker["heard"] or 0.0)
            cpu = rate.cpu
            if ticked > rate.ticked + 0.1:  # it has written its CPU time meanwhile
                since = ticked - rate.ticked if rate.ticked else max(seconds, 1.0)
                cpu = max(0.0, worker["cpu"] - was["cpu"]) / since
            rates[key] = WorkerRate((worker["requests"] - was["requests"]) / seconds, cpu, ticked)
        self.rates = rates

    def recall(self, past: Iterable[TopSample]) -> None:
        """Begin with what others have seen before the first status."""
        self.samples.extendleft(reversed(list(past)[-KEPT:]))

    # What is shown

    @property
    def bounds(self) -> Sequence[float]:
        """The bounds (s) of the buckets of durations."""
        bounds: Sequence[float] = self.status["durations"]["bounds"]
        return bounds

    def percentile(self, share: float, samples: int = WINDOW) -> float | None:
        """The time (s) within which this share of the last requests completed; None if there were none."""
        last = [sample.durations for sample in itertools.islice(reversed(self.samples), samples) if sample.durations]
        return percentile([sum(column) for column in zip(*last, strict=True)], self.bounds, share)

    def charted(self, columns: int, *, whole: bool) -> list[TopSample]:
        """What `columns` columns of a chart show: the last samples, or (`whole`) all of them, several in one column."""
        kept = list(self.samples)
        if not whole or len(kept) <= columns:
            return kept[-columns:] if columns else []
        each = -(-len(kept) // columns)
        first = len(kept) % each  # the newest column is always a full one
        starts = [*([0] if first else []), *range(first, len(kept), each)]
        return [joined(kept[start:end]) for start, end in itertools.pairwise([*starts, len(kept)])]

    def first_byte(self, share: float) -> float | None:
        """The time (s) to the first byte of this share of the last streams; None if none has ended."""
        return self._of_all([sample.first_bytes for sample in self.samples], share)

    def accept(self, share: float) -> float | None:
        """The time (s) until this share of the last WebSockets were accepted; None if there was none."""
        return self._of_all([sample.accepts for sample in self.samples], share)

    def _of_all(self, counts: Sequence[tuple[int, ...]], share: float) -> float | None:
        last = [each for each in counts if each]
        return percentile([sum(column) for column in zip(*last, strict=True)], self.bounds, share)

    def summed(self, name: str) -> int:
        """The sum of a gauge over all workers."""
        return sum(worker[name] for worker in self.status["workers"])

    def oldest(self) -> float | None:
        """Seconds that the oldest request in progress has taken so far."""
        return _longest(worker.get("oldest") for worker in self.status["workers"])

    def lag(self) -> float | None:
        """The worst delay (s) of any worker's event loop in the last ten seconds."""
        return _longest(worker.get("lag_worst") for worker in self.status["workers"])


def joined(samples: Sequence[TopSample]) -> TopSample:
    """Successive samples as one: mean rates, the median of the medians, the worst of the 99th percentiles."""
    seconds = sum(sample.seconds for sample in samples)

    def mean(name: str) -> float:
        return sum(float(getattr(sample, name)) * sample.seconds for sample in samples) / seconds

    rates: dict[str, Any] = {name: mean(name) for name in ("requests", "errors", "received", "sent", "cpu")}

    p50s = [sample.p50 for sample in samples if sample.p50 is not None]
    return TopSample(
        seconds=seconds,
        generation=samples[-1].generation,
        **rates,
        durations=(),
        p50=statistics.median(p50s) if p50s else None,
        p99=_longest(sample.p99 for sample in samples),
        switched=any(sample.switched for sample in samples),
        refused=any(sample.refused for sample in samples),
    )


def processes(status: Status) -> list[dict[str, Any]]:
    """The workers, the newest generation first, and the agent after them, which has no connections."""
    workers = sorted(status["workers"], key=lambda worker: (-worker["generation"], worker["slot"]))
    return [*workers, *({**NO_CONNECTIONS, **agent} for agent in status.get("agents", []))]


def _counts(status: Status, kind: str, name: str) -> Sequence[int]:
    """The counts of a histogram of streams or WebSockets; an earlier version's status may have none."""
    empty = [0] * len(status["durations"]["counts"])
    counts: Sequence[int] = status[kind][name]["counts"] if kind in status else empty
    return counts


def _longest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def percentile(counts: Sequence[int], bounds: Sequence[float], share: float) -> float | None:
    """The percentile, assuming a uniform distribution within its bucket; the last bound if it is beyond that."""
    total = sum(counts)
    if not total:
        return None
    wanted, seen, low = share * total, 0, 0.0
    for count, high in zip(counts, bounds, strict=False):
        if count and seen + count >= wanted:
            return low + (high - low) * (wanted - seen) / count
        seen += count
        low = high
    return bounds[-1]
