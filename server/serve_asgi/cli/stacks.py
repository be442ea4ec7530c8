"""`serve stacks`: what every worker and the agent are doing right now, even with a blocked event loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from serve_asgi.cli import control_client
from serve_asgi.cli.command import as_json, command, seconds, show, span
from serve_asgi.cli.control_client import PATIENCE

TIMEOUT: Final = 5.0
"""Default of --timeout, in seconds."""
NAMED: Final = 3
"""Tasks that are named of those that are grouped."""


def stacks(control: str, pid_file: str, timeout: float, as_json: bool) -> int:
    """Show every worker's and the agent's Python stacks and running tasks, even of a blocked one.

    Exit status 0: every worker has reported. 1: some have not.
    """
    path = control_client.find(control, pid_file)
    found: dict[str, Any] = control_client.ask(path, "stacks", timeout=timeout, patience=timeout + PATIENCE)["stacks"]
    show(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))
    return 0 if all(worker["how"] != "none" for worker in found["workers"]) else 1


def lines(found: dict[str, Any]) -> Iterator[str]:
    """All of it as text; tasks that wait at the same place are grouped."""
    for number, worker in enumerate(found["workers"]):
        if number:
            yield ""
        yield from _worker(worker)


def _worker(worker: dict[str, Any]) -> Iterator[str]:
    who = "agent" if worker["slot"] == "agent" else f"worker {worker['slot']}"
    state = f"{who} of generation {worker['generation']}: {worker['state']}"
    if worker.get("blocked"):
        state += f", its event loop blocked for {span(worker['blocked'])}"
    yield state
    if worker["reason"]:
        yield f"  {worker['reason']}" + ("" if worker["threads"] else "; nothing is known about it")
    for thread in worker["threads"]:
        what = [thread["name"], thread.get("request", ""), thread.get("note", "")]
        yield from _place("  " + ", ".join(filter(None, what)), thread["stack"])
    for together in _gathered(worker["tasks"]):
        yield from _place(f"  {_tasks(together)}", together[0]["stack"])
    for kind in ("threads", "tasks"):
        left = worker.get(f"{kind}_total", 0) - len(worker[kind])
        if left > 0:
            yield f"  and {left} more {kind}"


def _place(head: str, stack: list[str]) -> Iterator[str]:
    yield head
    yield from (f"      {line}" for line in stack)


def _gathered(tasks: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Tasks grouped by place: the running one first, then the largest groups."""
    found: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for task in tasks:
        place = (task.get("running", False), task.get("awaits", ""), tuple(task["stack"]))
        found.setdefault(place, []).append(task)
    return sorted(found.values(), key=lambda each: (not each[0].get("running"), -len(each)))


def _tasks(together: list[dict[str, Any]]) -> str:
    first = together[0]
    if first.get("running"):
        does = "runs"
    else:
        does = f"waits for {first['awaits']}" if first.get("awaits") else "waits"
    if len(together) == 1:
        return f"{first['name']}, {first.get('request') or first['coro']}, {does}"
    named = [task.get("request") or task["coro"] for task in together]
    shown = ", ".join(dict.fromkeys(named[:NAMED]))
    more = ", …" if len(together) > NAMED else ""
    return f"{len(together)} tasks ({shown}{more}), each {does}"


COMMANDS: Final = {
    "stacks": command(
        "stacks", stacks, seconds("--timeout", "How long a worker may take to respond.", TIMEOUT), as_json()
    ),
}
