"""The run over time: pure arithmetic on what the ledger and the application's file hold, for the plot and the JSON."""

from __future__ import annotations

import bisect
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

from loadtest.ledger import Entry, Execution, percentile


@dataclasses.dataclass(slots=True)
class Timeline:
    """Lists of equal length, one item per bin; `by generation` lists hold one such list per generation."""

    bin: float
    """Width of a bin in s."""
    times: list[float]
    """The middle of each bin, in s since the beginning."""
    answered: list[list[float]]
    """Responses per second, by generation."""
    in_flight: list[list[float]]
    """Executions under way (mean over the bin), by generation."""
    p50: list[float]
    """Seconds; NaN where nothing was answered."""
    p99: list[float]
    lost: list[int]
    reconnects: list[int]


def generations(executions: Iterable[Execution], hups: Sequence[float]) -> dict[int, int]:
    """The generation of each pid: the number of HUPs that had been sent when it first executed something."""
    first: dict[int, float] = {}
    for execution in executions:
        first[execution.pid] = min(execution.time, first.get(execution.pid, execution.time))
    return {pid: bisect.bisect(hups, time) for pid, time in first.items()}


def timeline(
    entries: Sequence[Entry],
    executions: Sequence[Execution],
    hups: Sequence[float],
    reconnects: Iterable[float],
    began: float,
    ended: float,
    prompt: Iterable[str],
    bins: int = 200,
) -> Timeline:
    """Cut the run into `bins` bins (none shorter than 0.2 s)."""
    width = max(0.2, (ended - began) / bins)
    count = int((ended - began) / width) + 1
    of_pid = generations(executions, hups)
    last = max(of_pid.values(), default=0) + 1
    answered = [[0.0] * count for _ in range(last)]
    lost, reconnected = [0] * count, [0] * count
    latencies: list[list[float]] = [[] for _ in range(count)]
    kinds = set(prompt)

    def at(time: float) -> int:
        return min(count - 1, max(0, int((time - began) / width)))

    for entry in entries:
        index = at(entry.done or entry.sent)
        if entry.cause is not None:
            lost[index] += 1
            continue
        answered[of_pid.get(entry.pid, 0)][index] += 1 / width
        if entry.kind in kinds:
            latencies[index].append(entry.latency)
    for time in reconnects:
        reconnected[at(time)] += 1
    for values in latencies:
        values.sort()
    return Timeline(
        bin=width,
        times=[(index + 0.5) * width for index in range(count)],
        answered=answered,
        in_flight=in_flight(executions, of_pid, last, began, width, count),
        p50=[percentile(values, 0.5) if values else float("nan") for values in latencies],
        p99=[percentile(values, 0.99) if values else float("nan") for values in latencies],
        lost=lost,
        reconnects=reconnected,
    )


def in_flight(
    executions: Iterable[Execution], of_pid: dict[int, int], last: int, began: float, width: float, count: int
) -> list[list[float]]:
    """How many executions were under way in each bin on average, by generation; one that never ended counts as none."""
    open_since: dict[tuple[int, int], float] = {}
    busy: dict[int, list[float]] = defaultdict(lambda: [0.0] * count)
    for execution in sorted(executions, key=lambda execution: execution.time):
        key = (execution.number, execution.pid)
        if execution.started:
            open_since[key] = execution.time
        elif key in open_since:
            spread(busy[of_pid[execution.pid]], (open_since.pop(key) - began) / width, (execution.time - began) / width)
    return [busy[generation] for generation in range(last)]


def spread(bins: list[float], start: float, end: float) -> None:
    """Add to each bin the share of it that the span from `start` to `end` (in bins) covers."""
    for index in range(max(0, int(start)), min(len(bins) - 1, int(end)) + 1):
        bins[index] += max(0.0, min(end, index + 1) - max(start, index))
