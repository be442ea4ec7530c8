"""What the bench has found: medians, ratios, and tables. Pure.

The figure to trust is CPU time per request, and of it the ratio to another server in the same run: absolute figures
drift with the machine. "Own" is what the server itself costs: CPU time per request, less the floor of that case (the
kernel and the loop), less the application called directly.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from typing import Any

from loadtest.bench_usage import ENOUGH_TICKS, TICK
from loadtest.report import columns

SERVE = "serve"
FLOOR = "floor"
CALLING = "floor+app"
"""The floor with the application called in it."""
AGAINST = "against"
LOGGED = "+log"
"""Behind a server's name: with its access log on."""
MIB = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one server did in one round of a case."""

    case: str
    server: str
    requests: int
    rate: float
    """Requests/s."""
    cpu: float
    """µs per request, of the whole process tree."""
    used: float
    """Seconds of CPU time in the round."""
    p50: float
    """ms"""
    p99: float
    """ms"""
    pss: int
    """Bytes, of the largest process: the worker."""
    errors: int


@dataclasses.dataclass(slots=True)
class Findings:
    """A run. `direct` is the µs of the application by itself, by case."""

    settings: dict[str, Any]
    rounds: list[Round]
    direct: dict[str, float]
    problems: list[str] = dataclasses.field(default_factory=list)
    """What could not be measured, as sentences."""

    def cases(self) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(found.case for found in self.rounds))

    def servers(self, case: str) -> list[str]:
        """Those that have finished at least one round of the case, in the order in which they were measured."""
        return list(dict.fromkeys(found.server for found in self.rounds if found.case == case))

    def median(self, case: str, server: str, what: Callable[[Round], float]) -> float:
        """Over the rounds. Raises statistics.StatisticsError if there was none."""
        return statistics.median(what(found) for found in self.rounds if found.case == case and found.server == server)

    def cpu(self, case: str, server: str) -> float:
        """Median µs per request."""
        return self.median(case, server, lambda found: found.cpu)

    def to(self, case: str, server: str, other: str | None) -> float | None:
        """What a request costs on one server as a multiple of another: the median over the rounds of the two."""
        pairs = [
            [found.cpu for found in self.rounds if (found.case, found.server) == (case, name)]
            for name in (server, other)
        ]
        return statistics.median(mine / theirs for mine, theirs in zip(*pairs, strict=False)) if all(pairs) else None

    def own(self, case: str, server: str) -> float | None:
        """Median µs per request less the floor and the application; None without a floor."""
        if FLOOR not in self.servers(case):
            return None
        return self.cpu(case, server) - self.cpu(case, FLOOR) - self.direct.get(case, 0.0)

    def best_peer(self, case: str) -> str | None:
        """The other server that costs least."""
        known = (SERVE, FLOOR, CALLING, AGAINST)
        peers = [server for server in self.servers(case) if server not in known and not server.endswith(LOGGED)]
        return min(peers, key=lambda server: self.cpu(case, server), default=None)

    def doubts(self) -> list[str]:
        """What makes a figure unsafe or missing: errors, and rounds too short for the clock of /proc."""
        sentences = list(self.problems)
        for case in self.cases():
            for server in self.servers(case):
                mine = [found for found in self.rounds if found.case == case and found.server == server]
                errors = sum(found.errors for found in mine)
                if errors:
                    sentences.append(f"{case}, {server}: {errors} errors, so its figures mean nothing.")
                if min(found.used for found in mine) < ENOUGH_TICKS * TICK:
                    sentences.append(f"{case}, {server}: a round used fewer than {ENOUGH_TICKS} ticks of CPU time.")
        return sentences


def digits(value: float | None) -> str:
    """A quotient with two digits, or a dash if there is none."""
    return "-" if value is None else f"{value:.2f}"


def ratio(value: float | None, to: float | None) -> str:
    """A quotient with two digits, or a dash where it says nothing."""
    return f"{value / to:.2f}" if value is not None and to is not None and value > 0 and to > 0 else "-"


def case_table(findings: Findings, case: str) -> list[str]:
    """One line per server."""
    best = findings.best_peer(case)
    rows = [[case, "µs CPU", "own µs", "requests/s", "p50 ms", "p99 ms", "PSS MiB", "to best peer", "own to best"]]
    for server in findings.servers(case):
        own = findings.own(case, server)
        rows.append(
            [
                server,
                f"{findings.cpu(case, server):.1f}",
                "-" if own is None or server == FLOOR else f"{own:.1f}",
                f"{findings.median(case, server, lambda found: found.rate):.0f}",
                f"{findings.median(case, server, lambda found: found.p50):.2f}",
                f"{findings.median(case, server, lambda found: found.p99):.2f}",
                f"{findings.median(case, server, lambda found: found.pss) / MIB:.1f}",
                digits(findings.to(case, server, best)),
                "-" if server == FLOOR else ratio(own, findings.own(case, best) if best else None),
            ]
        )
    lines = columns(rows)
    if case in findings.direct:
        lines.append(f"the application called directly: {findings.direct[case]:.1f} µs")
    return lines


def summary(findings: Findings) -> list[str]:
    """The ratios of this server to the best peer, case by case."""
    rows = [["CPU per request", "floor", "application", SERVE, "best peer", "", "ratio", "own ratio"]]
    if findings.settings.get("against"):
        rows[0].append("against / serve")
    for case in findings.cases():
        best = findings.best_peer(case)
        servers = findings.servers(case)
        mine = findings.cpu(case, SERVE) if SERVE in servers else None
        theirs = findings.cpu(case, best) if best else None
        row = [
            case,
            f"{findings.cpu(case, FLOOR):.1f}" if FLOOR in servers else "-",
            f"{findings.direct[case]:.1f}" if case in findings.direct else "-",
            "-" if mine is None else f"{mine:.1f}",
            "-" if theirs is None else f"{theirs:.1f}",
            best or "",
            digits(findings.to(case, SERVE, best)),
            ratio(findings.own(case, SERVE) if mine is not None else None, findings.own(case, best) if best else None),
        ]
        if len(rows[0]) > len(row):
            row.append(digits(findings.to(case, AGAINST, SERVE)))
        rows.append(row)
    return columns(rows)


def access_logs(findings: Findings) -> list[str]:
    """What an access log adds, where it was measured."""
    rows = [["access log", "server", "off", "on", "ratio"]]
    for case in findings.cases():
        servers = findings.servers(case)
        for logged in [server for server in servers if server.endswith(LOGGED)]:
            server = logged.removesuffix(LOGGED)
            if server in servers:
                off, on = findings.cpu(case, server), findings.cpu(case, logged)
                rows.append([case, server, f"{off:.1f}", f"{on:.1f}", ratio(on, off)])
    return ["", *columns(rows)] if len(rows) > 1 else []


def text(findings: Findings) -> str:
    """All tables."""
    settings = findings.settings
    title = (
        f"{settings['interpreter']} · one worker on core {settings['server_core']}, load on core "
        f"{settings['load_core']} · medians of {settings['rounds']} rounds of {settings['seconds']} s, "
        f"{'all servers together' if settings.get('together') else 'interleaved'}"
    )
    if any(name.endswith(LOGGED) for case in findings.cases() for name in findings.servers(case)):
        title += f" · {SERVE}'s access log: {settings.get('access_log_format', 'common')}"
    lines = [title, *(f"{name}: {core}" for name, core in settings.get("cores", {}).items()), ""]
    for case in findings.cases():
        lines += [*case_table(findings, case), ""]
    lines += [*summary(findings), *access_logs(findings), *findings.doubts()]
    return "\n".join(lines)


def document(findings: Findings) -> str:
    """All rounds as JSON."""
    rounds = [dataclasses.asdict(found) for found in findings.rounds]
    return json.dumps({"settings": findings.settings, "direct": findings.direct, "rounds": rounds}, indent=1)
