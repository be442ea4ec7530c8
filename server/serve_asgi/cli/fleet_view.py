"""The servers of a fleet as `serve fleet` shows them: read from the store, put in order, named, as a table or as JSON.

Whether a server answers is judged by the store's clock alone. A record that is silent counts as gone when a server of
the same host and directory was started after it had last been heard: it was started again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from serve_asgi.cli.command import counted, span
from serve_asgi.ipc.fleet_records import FORGET, SILENT, ServerRecord, record_from
from serve_asgi.store.fleet_access import FleetView

WIDEST: Final = 48
"""Most columns of a server's name."""


@dataclasses.dataclass(frozen=True, slots=True)
class FleetServer:
    """One server, as it has last announced itself."""

    name: str
    label: str
    """Host and directory, and the PID if that alone does not tell which server it is."""
    record: ServerRecord
    since: float
    """Seconds since it was last heard."""
    ordered: bool
    """Whether an order waits that it has not taken."""

    @property
    def answers(self) -> bool:
        return self.since <= SILENT

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        shown = msgspec.to_builtins(self.record)
        return {"server": self.label, "answers": self.answers, "heard": round(self.since, 3), **shown}


def servers(view: FleetView) -> list[FleetServer]:
    """Those that are not forgotten: canaries first, then by host and directory."""
    read = [
        (each, record, max(0.0, view.now - each.heard)) for each in view.servers if (record := record_from(each.record))
    ]
    known = [(each, record, since) for each, record, since in read if since <= FORGET]
    starts: dict[tuple[str, str], float] = {}
    for each, record, since in known:
        if since <= SILENT:
            starts[_place(record)] = max(starts.get(_place(record), 0.0), each.heard - record.up)
    left = [one for one in known if one[2] <= SILENT or starts.get(_place(one[1]), 0.0) < one[0].heard]
    left.sort(key=lambda each: (not each[1].canary, *_place(each[1]), each[1].pid))
    places = [_place(record) for _, record, _ in left]
    return [
        FleetServer(each.name, _label(record, alone=places.count(_place(record)) == 1), record, since, each.ordered)
        for each, record, since in left
    ]


def _place(record: ServerRecord) -> tuple[str, str]:
    return record.host, record.directory


def _label(record: ServerRecord, *, alone: bool) -> str:
    return f"{record.host}:{record.directory}" + ("" if alone else f" (PID {record.pid})")


def silent(found: Sequence[FleetServer]) -> Iterator[str]:
    """A line for each server that does not answer."""
    for each in found:
        if not each.answers:
            yield (
                f"{each.label} (PID {each.record.pid}) does not answer: it was last heard {span(each.since)} ago. It "
                f"was killed or stopped, or cannot reach the store; it is forgotten after {FORGET / 60:.0f} minutes"
            )


def moved_links(found: Sequence[FleetServer]) -> Iterator[str]:
    """A line for each server that would start another release than the one that serves."""
    for each in found:
        if each.answers and each.record.moved_link and each.record.starting is None:
            yield f"{each.label}: {each.record.moved_link}"


def table(found: Sequence[FleetServer]) -> Iterator[str]:
    """What is printed: a row for each server."""
    widest = min(WIDEST, max((len(each.label) for each in found), default=0))
    row = "{:<{widest}}  {:>7}  {:>3}  {:<9}  {:<13}  {:>7}  {:<9}  {:<6}  {:>8}  {}"
    columns = ("server", "pid", "gen", "state", "health", "workers", "agent", "orders", "heard", "release")
    yield row.format(*columns, widest=widest).rstrip()
    for each in found:
        record = each.record
        yield row.format(
            each.label,
            record.pid,
            record.generation,
            _state(each),
            record.health if each.answers else "?",
            f"{record.serving}/{record.size}",
            record.agent or "-",
            "taken" if record.takes_orders else "no",
            span(each.since),
            os.path.basename(record.release) or "-",
            widest=widest,
        ).rstrip()


def _state(server: FleetServer) -> str:
    if not server.answers:
        return "silent"
    if server.record.starting is not None:
        return "reloading"
    return server.record.state


def summary(found: Sequence[FleetServer]) -> str:
    """How many there are, and how many do not answer."""
    mute = sum(not each.answers for each in found)
    return counted(len(found), "server") + (f", {mute} of them silent" if mute else "")
