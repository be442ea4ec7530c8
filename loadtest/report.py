"""The table of a run, as text, and the run as JSON. Pure: it gets a `Result` and gives a string."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence

from loadtest import surviving
from loadtest.kinds import KINDS
from loadtest.ledger import percentile
from loadtest.result import Result
from loadtest.servers import parser

MIB = 1 << 20
PROMPT = {kind.name for kind in KINDS if kind.prompt}


def table(result: Result) -> str:
    """Everything that a run has found."""
    settings = result.settings
    seconds = result.ended - result.began
    title = (
        f"{settings.server} · {settings.workers} workers · "
        f"{parser(settings.server, settings.http)} · {settings.loop} · "
        f"{f'TLS {settings.tls} · ' if settings.tls else ''}{'HTTP/2 · ' if settings.http2 else ''}"
        f"{'unix socket · ' if settings.unix else ''}"
        f"{f'behind {settings.behind} · ' if settings.behind else ''}"
        f"{'' if settings.deflate is None else 'deflate · ' if settings.deflate else 'no deflate · '}"
        f"{len(result.reloads)} reloads in {seconds:.0f} s · {result.accounts.sent / seconds:.0f} requests/s"
    )
    lines = [title, "", *columns(kinds(result)), ""]
    if result.ledger.survivors:
        lines += [*columns(surviving.rows(result.ledger.survivors)), ""]
    lines.append(verdict(result))
    lines += [f"  lost: {count} {cause.value}" for cause, count in result.accounts.lost_by_cause.most_common()]
    lines += [f"  e.g. {example}" for example in examples(result)]
    if result.accounts.lost:
        lines.append(f"  of the lost ones, {result.accounts.lost_executed} had been executed")
    left = Counter(reconnect.left for reconnect in result.ledger.reconnects)
    lines += [f"  connections ended by the server: {count} by {how.value}" for how, count in left.most_common()]
    details = [reconnect for reconnect in result.ledger.reconnects if reconnect.detail]
    lines += [f"    e.g. {each.kind}, with {each.detail}" for each in details[:8]]
    if result.accounts.cancelled:
        lines.append(f"  streams reset by the client: {number(result.accounts.cancelled)}")
    if moved_on := result.ledger.moved_on:
        short = sum(kind.keep for name in moved_on for kind in KINDS if kind.name == name)
        what = f"  connections told GOAWAY beside a request that took longer than --h2-hold: {number(len(moved_on))}"
        lines.append(f"{what}, {number(short)} of them with kinds of short requests")
    if result.ledger.told_to_come_back:
        lines.append(f"  WebSockets told to come back (1001, 1012): {len(result.ledger.told_to_come_back)}")
    if result.tls is not None:
        done, offered, resumed = map(number, (result.tls.handshakes, result.tls.offered, result.tls.resumed))
        lines.append(f"  TLS {result.tls.version}: {done} handshakes, {offered} tickets offered, {resumed} accepted")
        if settings.renew:
            new, old = number(result.tls.shown_new), number(result.tls.shown_old)
            times = result.tls.renewals
            lines.append(f"  {times} certificates replaced: {new} handshakes showed the newest, {old} an older one")
    if took := sorted((each.answered - each.sent) * 1000 for each in result.reloads if each.answered):
        median, longest = percentile(took, 0.5), took[-1]
        lines.append(f"  {len(took)} roll-backs, done after {median:.1f} ms (median), {longest:.1f} ms at most")
    lines.append(measures(result))
    lines += [f"  problem: {problem}" for problem in result.problems]
    return "\n".join(lines)


def kinds(result: Result) -> list[list[str]]:
    """One row per kind of load, and the sum."""
    reconnects = Counter(reconnect.kind for reconnect in result.ledger.reconnects)
    used = {entry.kind for entry in result.ledger.entries}
    names = [kind.name for kind in KINDS if kind.name in used]
    rows = [["load", "sent", "answered", "lost", "reconnects", "p50 ms", "p99 ms", "p99.9 ms", "max ms"]]
    for name in names:
        mine = [entry for entry in result.ledger.entries if entry.kind == name]
        latencies = sorted(entry.latency * 1000 for entry in mine if entry.cause is None)
        lost = result.accounts.lost_by_kind[name]
        rows.append([name, *map(number, (len(mine), len(latencies), lost, reconnects[name])), *tail(latencies)])
    prompt = sorted(e.latency * 1000 for e in result.ledger.entries if e.cause is None and e.kind in PROMPT)
    accounts = result.accounts
    sums = (accounts.sent, accounts.answered, result.lost, result.reconnects)
    rows.append(["all (latency: prompt kinds)", *map(number, sums), *tail(prompt)])
    return rows


def tail(latencies: Sequence[float]) -> list[str]:
    """p50, p99, p99.9 and the largest of sorted latencies."""
    return [f"{percentile(latencies, share):.1f}" for share in (0.5, 0.99, 0.999, 1.0)]


def verdict(result: Result) -> str:
    """The sentence that matters."""
    done = sum(1 for reload in result.reloads if reload.complete)
    return (
        f"{number(result.lost)} lost, {number(result.duplicated)} duplicated, "
        f"{number(result.reconnects)} keep-alive reconnects, "
        f"{number(done)} of {number(len(result.reloads))} reloads complete: "
        + ("nothing was noticed" if result.spotless else "NOT SPOTLESS")
    )


def examples(result: Result) -> list[str]:
    """The first lost request of each kind and cause."""
    seen: dict[tuple[str, object], str] = {}
    for entry in result.accounts.lost:
        text = f"{entry.kind}: {entry.cause.value if entry.cause else ''} {entry.detail}".rstrip()
        at = f"{entry.done - result.began:.2f} s after the start, id {entry.number}"
        seen.setdefault((entry.kind, entry.cause), f"{text} ({at})")
    return list(seen.values())[:12]


def measures(result: Result) -> str:
    """What was counted around the load."""
    found = result.measures
    after = found.memory[1:]  # the first reload may load what later ones find there
    half = after[len(after) // 2 :]
    growth = (half[-1] - half[0]) / max(1, len(half) - 1) / 1024
    memory = " -> ".join(f"{size / MIB:.1f}" for size in (found.memory[0], after[0], half[0], after[-1]))
    return (
        f"  listener: descriptors {found.descriptors_before} -> {found.descriptors_after}, "
        f"exit status {found.exit_status}\n"
        f"  listener's memory: {memory} MiB at the start, after the first reload, half way, at the end; "
        f"{growth:+.1f} KiB per reload in the second half"
    )


def as_json(result: Result) -> str:
    """The run as a JSON document, without the single requests except for the lost ones."""
    accounts = result.accounts
    rows = kinds(result)
    return json.dumps(
        {
            "settings": dataclasses.asdict(result.settings),
            "seconds": result.ended - result.began,
            "sent": accounts.sent,
            "executed": accounts.executed,
            "answered": accounts.answered,
            "lost": result.lost,
            "lost_executed": accounts.lost_executed,
            "lost_by_cause": {cause.value: count for cause, count in accounts.lost_by_cause.items()},
            "lost_requests": [
                {"id": e.number, "kind": e.kind, "cause": e.cause and e.cause.value, "detail": e.detail}
                | {"sent": e.sent - result.began, "failed": e.done - result.began}
                for e in accounts.lost
            ],
            "duplicated": accounts.duplicated,
            "reconnects": result.reconnects,
            "reset_by_client": accounts.cancelled,
            "told_goaway_with_long_streams": len(result.ledger.moved_on),
            "tls": result.tls
            and {
                "version": result.tls.version,
                "handshakes": result.tls.handshakes,
                "tickets_offered": result.tls.offered,
                "tickets_accepted": result.tls.resumed,
                "certificates_replaced": result.tls.renewals,
                "newest_certificate_shown": result.tls.shown_new,
                "older_certificate_shown": result.tls.shown_old,
            },
            "told_to_come_back": len(result.ledger.told_to_come_back),
            "surviving": [
                dict(zip(surviving.HEAD, row, strict=True)) for row in surviving.rows(result.ledger.survivors)[1:]
            ],
            "kinds": [dict(zip(rows[0], row, strict=True)) for row in rows[1:]],
            "reloads": [
                {"sent": r.sent - result.began, "complete": r.complete - result.began if r.complete else None}
                | ({"answered": r.answered - result.began} if r.answered else {})
                for r in result.reloads
            ],
            "measures": dataclasses.asdict(result.measures),
            "problems": result.problems,
        },
        indent=1,
    )


def number(value: int) -> str:
    """With thousands separated."""
    return f"{value:,}"


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows of cells as aligned lines: the first column to the left, the others to the right, a rule under the head."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
