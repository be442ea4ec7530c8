"""What the comparison has found: figures, their medians, the table, and the whole as JSON and back. Pure."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from typing import Any

from loadtest.bench_report import SERVE
from loadtest.report import columns

RATE, COST = "rate", "cost"
P99_OF_OWN, P99_OF_SAME = "p99 of own", "p99 of same"
WORKER, TREE, IDLE = "worker", "tree", "idle"
START, START_CPU = "start", "start, CPU"
RELOAD, FIRST_OF_RELOAD, FAILED = "reload", "reload, first", "reload, failed"
CONNECTIONS, WORKERS = "connections", "workers"
MIB = 1 << 20
NONE = "–"


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One measurement."""

    what: str
    """RATE: requests/s; COST, CONNECTIONS, WORKERS: µs of CPU time per request; P99_*: ms; WORKER, TREE: bytes; IDLE:
    bytes per connection; START, START_CPU, RELOAD, FIRST_OF_RELOAD: s; FAILED: connections."""
    server: str
    value: float
    count: int = 0
    """CONNECTIONS, WORKERS: of how many. P99_*: of how many requests/s."""


@dataclasses.dataclass(slots=True)
class Findings:
    """A run."""

    settings: dict[str, Any]
    figures: list[Figure] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    """What could not be measured, or is in doubt, as sentences."""

    def add(self, what: str, server: str, value: float, count: int = 0) -> None:
        """A figure more."""
        self.figures.append(Figure(what, server, value, count))

    def servers(self) -> list[str]:
        """Those of the settings that have figures, in that order."""
        found = {figure.server for figure in self.figures}
        return [server for server in self.settings["servers"] if server in found]

    def median(self, what: str, server: str, count: int | None = None) -> float | None:
        """Over the rounds; None if there was none. Of every count, unless one is named."""
        values = [
            figure.value
            for figure in self.figures
            if figure.what == what and figure.server == server and count in (None, figure.count)
        ]
        return statistics.median(values) if values else None

    def line(self, what: str, server: str) -> list[tuple[int, float]]:
        """The medians by count, ascending."""
        counts = sorted({each.count for each in self.figures if each.what == what and each.server == server})
        return [(count, value) for count in counts if (value := self.median(what, server, count)) is not None]

    def document(self) -> str:
        """As JSON."""
        figures = [dataclasses.asdict(figure) for figure in self.figures]
        return json.dumps({"settings": self.settings, "figures": figures, "problems": self.problems}, indent=1)

    @classmethod
    def read(cls, document: str) -> Findings:
        """From JSON. Raises ValueError, KeyError, TypeError if it is not that of a run."""
        read = json.loads(document)
        return cls(read["settings"], [Figure(**figure) for figure in read["figures"]], read["problems"])


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A line of the table, and a panel of the picture."""

    what: str
    title: str
    """With the fields of the settings in braces."""
    shown: Callable[[float], str]
    factor: float = 1.0
    """From the figure's unit to the one shown."""
    most: bool = False
    """More is better."""

    def named(self, findings: Findings) -> str:
        """The title of this run."""
        return self.title.format(**findings.settings)

    def value(self, findings: Findings, server: str) -> float | None:
        """In the unit shown."""
        median = findings.median(self.what, server)
        return None if median is None else median * self.factor

    def best(self, findings: Findings) -> float | None:
        """Of all servers."""
        values = [value for server in findings.servers() if (value := self.value(findings, server)) is not None]
        return (max if self.most else min)(values, default=None)

    def cell(self, findings: Findings, server: str) -> str:
        """What stands in the table."""
        value = self.value(findings, server)
        return NONE if value is None else self.shown(value)


def whole(value: float) -> str:
    """12,345."""
    return f"{value:,.0f}"


def fine(value: float) -> str:
    """1.23, 12.3, 123: three digits say enough."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else whole(value)


ROWS = [
    Row(RATE, "requests/s, {workers} workers on 2 cores", whole, most=True),
    Row(P99_OF_OWN, "p99 at {share} % of that, ms", fine),
    Row(P99_OF_SAME, "p99 at {rate:,} requests/s, ms", fine),
    Row(WORKER, "a worker's memory, MiB", fine, 1 / MIB),
    Row(IDLE, "10,000 idle connections, MiB", fine, 10_000 / MIB),
    Row(START, "start to first response, s", fine),
    Row(RELOAD, "reload, s", fine),
]
"""The table of the README."""
BESIDES = [
    Row(COST, "µs CPU per request, saturated", fine),
    Row(TREE, "memory of all processes, MiB", fine, 1 / MIB),
    Row(START_CPU, "CPU time to the first response, s", fine),
    Row(FIRST_OF_RELOAD, "reload to its first response, s", fine),
    Row(FAILED, "connections failed meanwhile", whole),
]
"""What the page has besides."""


def cells(findings: Findings, rows: list[Row], bold: bool = False) -> list[list[str]]:
    """A table with a column for each server; `bold` marks the best of a row as Markdown does."""
    servers = findings.servers()
    table = [["", *(f"**{server}**" if bold and server == SERVE else server for server in servers)]]
    for row in rows:
        best = row.best(findings)
        line = [row.named(findings)]
        for server in servers:
            cell = row.cell(findings, server)
            is_best = best is not None and cell == row.shown(best)
            line.append(f"**{cell}**" if bold and is_best else cell)
        if any(cell != NONE for cell in line[1:]):
            table.append(line)
    return table


def scaling(findings: Findings, what: str, title: str) -> list[list[str]]:
    """µs per request by count, a column for each server."""
    servers = findings.servers()
    lines = {server: dict(findings.line(what, server)) for server in servers}
    counts = sorted({count for line in lines.values() for count in line})
    rows = [
        [whole(count), *(fine(lines[server][count]) if count in lines[server] else NONE for server in servers)]
        for count in counts
    ]
    return [[title, *servers], *rows] if rows else []


def tables(findings: Findings) -> list[list[list[str]]]:
    """Everything that was found."""
    made = [
        cells(findings, ROWS + BESIDES),
        scaling(findings, CONNECTIONS, "µs CPU per request, connections"),
        scaling(findings, WORKERS, "µs CPU per request, workers"),
    ]
    return [table for table in made if len(table) > 1]


def conditions(findings: Findings) -> str:
    """One line."""
    settings = findings.settings
    return (
        f"{settings['interpreter']} · {settings['version']} · cores {settings['cores']} · "
        f"medians of {settings['rounds']} rounds of {settings['seconds']} s, interleaved"
    )


def text(findings: Findings) -> str:
    """All tables, and what is in doubt."""
    lines = [conditions(findings), ""]
    for table in tables(findings):
        lines += [*columns(table), ""]
    return "\n".join([*lines, *findings.problems])


def markdown(findings: Findings) -> str:
    """The README's table, and those of the page."""
    made = [cells(findings, ROWS, bold=True), cells(findings, BESIDES), *tables(findings)[1:]]
    return "\n\n".join("\n".join(as_markdown(table)) for table in made if len(table) > 1)


def as_markdown(table: list[list[str]]) -> list[str]:
    """A table whose columns are aligned to the right, but for the first."""
    rule = "| --- |" + " ---: |" * (len(table[0]) - 1)
    lines = ["| " + " | ".join(row) + " |" for row in table]
    lines[0] = lines[0].replace("|  |", "| |")
    return [lines[0], rule, *lines[1:]]
