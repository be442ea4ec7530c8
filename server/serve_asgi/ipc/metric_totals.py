"""Puts the memories of metrics of all processes together: sums over processes and generations.

Counters, histograms and summaries are summed over all memories, whether their writers live or not. A gauge is that of
the living processes, put together as its mode says: their sum, largest or smallest value, one for each process
(`worker`, with the slot as a label), or what was set last (`last`, by a process that has ended as well). It must not
know where the memories come from, nor how the result is written down.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from serve_asgi.ipc.metric_memory import MetricReader, MetricRecord
from serve_asgi.ipc.scoreboard import NO_SLOT

Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, dict[str, str], float]
"""A sample's name, labels and value."""
WORKER_LABEL: Final = "worker"
TOGETHER: Final[Mapping[str, Callable[[float, float], float]]] = {
    "sum": lambda a, b: a + b,
    "max": max,
    "min": min,
}
"""How a gauge's values are put together."""


@dataclasses.dataclass(frozen=True, slots=True)
class MetricFamily:
    """A metric with all its samples."""

    name: str
    kind: str
    help: str
    samples: list[Sample]


class MetricTotals:
    """All memories that a process can read."""

    def __init__(self, living: Callable[[], Mapping[int, int]]) -> None:
        """`living` returns the slot of each living process by its serial (`Scoreboard.living`)."""
        self._living = living
        self.readers: dict[int, MetricReader] = {}
        """The memories by number."""

    def add(self, number: int, fd: int) -> None:
        """Read the memory `fd` from here on; the descriptor is taken over. Raises OSError."""
        self.readers[number] = MetricReader(fd)

    def families(self) -> list[MetricFamily]:
        """All metrics, by name."""
        self._refresh()
        return families((each for reader in self.readers.values() for each in reader.by_name.values()), self._living())

    def family(self, name: str) -> MetricFamily | None:
        """One metric; None if no process has it."""
        self._refresh()
        found = self._records(name)
        return _family(name, found, self._living()) if found else None

    def _refresh(self) -> None:
        for reader in self.readers.values():
            reader.refresh()

    def _records(self, name: str) -> list[MetricRecord]:
        return [record for reader in self.readers.values() for record in reader.by_name.get(name, ())]


def families(records: Iterable[Iterable[MetricRecord]], living: Mapping[int, int]) -> list[MetricFamily]:
    """The metrics that these records are of, by name."""
    by_name: dict[str, list[MetricRecord]] = {}
    for each in itertools.chain.from_iterable(records):
        by_name.setdefault(each.key.name, []).append(each)
    return [_family(name, found, living) for name, found in sorted(by_name.items())]


def _family(name: str, records: list[MetricRecord], living: Mapping[int, int]) -> MetricFamily:
    """The metric `name`; what an earlier version of the code had of another kind under that name is left out."""
    latest = max(records, key=lambda record: record.life).key
    records = [record for record in records if record.key.kind == latest.kind]
    match latest.kind:
        case "gauge":
            samples = _gauge([record for record in records if record.key.mode == latest.mode], latest.mode, living)
        case "histogram":
            samples = _histogram(name, records)
        case _:
            samples = _sums(records)
    return MetricFamily(name, latest.kind, latest.help, samples)


def _counted(value: float) -> float:
    """A count as it may be; 0 for what no correct process could have written."""
    return value if 0 <= value < math.inf else 0.0


def _sums(records: Iterable[MetricRecord]) -> list[Sample]:
    sums: dict[tuple[str, Labels], float] = {}
    for record in records:
        (value,) = record.read()
        at = (record.key.sample, record.key.labels)
        sums[at] = sums.get(at, 0.0) + (value if at[0].endswith("_sum") else _counted(value))
    return [(sample, dict(labels), value) for (sample, labels), value in sums.items()]


def _histogram(name: str, records: Iterable[MetricRecord]) -> list[Sample]:
    """Buckets are counted apart in memory, and are cumulative from here on."""
    buckets: dict[Labels, dict[float, float]] = {}
    sums: dict[Labels, float] = {}
    written: dict[float, str] = {math.inf: "+Inf"}
    for record in records:
        key, values = record.key, record.read()
        if key.bounds:
            labels, counts = key.labels, list(zip((*key.bounds, math.inf), values, strict=False))
            sums[labels] = sums.get(labels, 0.0) + values[-1]
        else:
            bound = dict(key.labels).get("le")
            labels = tuple(label for label in key.labels if label[0] != "le")
            if bound is None:
                sums[labels] = sums.get(labels, 0.0) + values[0]
                continue
            counts = [(upper := _bound(bound), values[0])]
            written.setdefault(upper, bound)
        own = buckets.setdefault(labels, {})
        for upper, count in counts:
            own[upper] = own.get(upper, 0.0) + _counted(count)
    samples: list[Sample] = []
    for labels, own in buckets.items():
        so_far = 0.0
        for upper in sorted(own.keys() | {math.inf}):
            so_far += own.get(upper, 0.0)
            le = {"le": written.get(upper) or repr(upper)}
            samples.append((f"{name}_bucket", {**dict(labels), **le}, so_far))
        samples.append((f"{name}_count", dict(labels), so_far))
        samples.append((f"{name}_sum", dict(labels), sums.get(labels, 0.0)))
    return samples


def _bound(text: str) -> float:
    """The bound that a process wrote; infinity for what is none."""
    try:
        bound = float(text)
    except ValueError:
        return math.inf
    return math.inf if math.isnan(bound) else bound


def _gauge(records: Sequence[MetricRecord], mode: str, living: Mapping[int, int]) -> list[Sample]:
    if mode == "last":
        return _last(records)
    found: dict[Labels, float] = {}
    lives: dict[Labels, int] = {}
    for record in records:
        life, labels = record.life, record.key.labels
        if (slot := living.get(life)) is None:
            continue
        (value,) = record.read()
        if mode not in TOGETHER:  # one for each slot, of its newest process
            labels = (*labels, (_worker_label(labels), "agent" if slot == NO_SLOT else str(slot)))
            if life >= lives.get(labels, 0):
                found[labels], lives[labels] = value, life
        else:
            found[labels] = TOGETHER[mode](found[labels], value) if labels in found else value
    return _named(records, found)


def _last(records: Sequence[MetricRecord]) -> list[Sample]:
    latest: dict[Labels, tuple[float, float]] = {}
    for record in records:
        present = record.time, record.read()[0]
        if present > latest.get(record.key.labels, (-1.0, 0.0)):
            latest[record.key.labels] = present
    return _named(records, {labels: value for labels, (_, value) in latest.items()})


def _named(records: Sequence[MetricRecord], found: Mapping[Labels, float]) -> list[Sample]:
    return [(records[0].key.sample, dict(labels), value) for labels, value in found.items()]


def _worker_label(labels: Labels) -> str:
    """The label that the slot is told in."""
    return f"serve_{WORKER_LABEL}" if any(name == WORKER_LABEL for name, _ in labels) else WORKER_LABEL
