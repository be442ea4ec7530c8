"""`serve status` and `serve workers`: what the server is doing, as lines for people or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

from serve_asgi.cli import control_client
from serve_asgi.cli.canary_summary import failures, trial
from serve_asgi.cli.command import as_json, command, counted, memory, show, span
from serve_asgi.cli.deploys import outcome, requester
from serve_asgi.compiled_core import core
from serve_asgi.config.code_places import moved_link
from serve_asgi.ipc.health_verdict import HEALTHY, is_blocked

AGAIN: Final = {"crash": "after a crash", "recycle": "to replace one that was recycled or blocked"}
"""Why workers are started other than for a new generation (`serve_asgi.supervisor.lifecycles.Cause`)."""
STATES: Final = {"passing": "ready; the agent changes", "standby": "standing by for `serve rollback`"}
"""States of a generation that are shown under another name."""


def status(control: str, pid_file: str, as_json: bool) -> int:
    """Show what the server is doing: generations, workers, connections."""
    found = control_client.look(control_client.find(control, pid_file))
    show(json.dumps(found, indent=2) if as_json else "\n".join([*_server(found), "", *_workers(found)]))
    return 0


def workers(control: str, pid_file: str, as_json: bool) -> int:
    """Show what each worker is doing."""
    found = control_client.look(control_client.find(control, pid_file))
    show(json.dumps(found["workers"], indent=2) if as_json else "\n".join(_workers(found)))
    return 0


def health(found: dict[str, Any]) -> str:
    """What /healthz reports (`serve_asgi.ipc.health_verdict`), in words."""
    if found["draining"]:
        return f"draining for {span(found['draining']['since'])}, until {found['draining']['until']}"
    status = found.get("health", {}).get("status", HEALTHY)  # an earlier version's server does not say
    if status == "agent missing":
        return "unhealthy, since the agent is missing (--agent-required)"
    if status not in (HEALTHY, found["state"]):
        return f"unhealthy: {status}"
    if blocked := found.get("health", {}).get("blocked"):
        return f"healthy, but {blocked} of {counted(blocked + found['health']['workers'], 'worker')} blocked"
    return "healthy"


def state_of(worker: dict[str, Any]) -> str:
    """The state of a worker or an agent, or for how long its event loop has been blocked."""
    silent = worker.get("heard")
    state = str(worker["state"])
    return f"blocked {span(silent)}" if silent is not None and is_blocked(state, silent) else state


def core_of(found: dict[str, Any]) -> str:
    """What the workers run that have become ready, such as " (compiled core)"; "" if there are none."""
    told = {core(number) for each in found.get("workers", ()) if (number := each.get("compiled_modules")) is not None}
    return f" ({' and '.join(sorted(told))} core)" if told else ""


def agent_returned(found: dict[str, Any]) -> bool:
    """Whether the agent's function has returned."""
    return any(agent["state"] == "returned" for agent in found.get("agents", []))


def _server(found: dict[str, Any]) -> Iterator[str]:
    yield f"serve {found['server']}{core_of(found)}, PID {found['pid']}: {found['state']}, {health(found)}"
    yield f"{found['app']} on {', '.join(found['listening'])}, up for {span(found['uptime'])}"
    if found.get("admin"):
        yield f"metrics and a page on {', '.join(found['admin'])}"
    if state := found.get("state_store"):
        yield f"shared state in {state['place']}" + (
            f": cannot be written, {state['trouble']}" if state["trouble"] else ""
        )
    yield from _certificates(found.get("tls"))
    totals = found["totals"]
    reloads = f"{counted(found['reloads'], 'reload')}, {found['failed_reloads']} refused"
    yield f"generation {found['generation']}, {reloads}, {counted(totals['requests'], 'request')} completed"
    if (deploy := found.get("last_deploy")) and deploy["kind"] != "start":
        ago = span(max(0.0, time.time() - deploy["at"]))
        yield f"last deploy {ago} ago by {requester(deploy)}: {outcome(deploy)}"
    if found["starting"] is None and not found["reload_waiting"] and (moved := moved_link(found.get("places", {}))):
        yield str(moved)
    again = {cause: count for cause, count in found.get("starts", {}).items() if cause in AGAIN}
    if again:
        yield "workers replaced: " + ", ".join(f"{count} {AGAIN[cause]}" for cause, count in again.items())
    if found.get("lost"):
        yield f"{counted(found['lost'], 'request')} lost: cut, or in flight in a worker that died"
    for generation in found["generations"]:
        if generation["number"] not in (found["generation"], (found.get("canary") or {}).get("generation")):
            state = STATES.get(generation["state"], generation["state"])
            left = f" for another {span(max(0.0, left))}" if (left := generation.get("standby")) is not None else ""
            yield f"generation {generation['number']} is {state}{left}"
    if canary := found.get("canary"):
        yield "; ".join(filter(None, (trial(canary), failures(canary))))
    if found["reload_waiting"]:
        yield "a reload waits for its turn"
    if found["last_failure"]:
        yield f"the last reload was refused: {found['last_failure']}"
    for slot, trouble in found["degraded"].items():
        yield f"slot {slot} is empty: {trouble}"
    if found.get("agent_trouble"):
        yield f"there is no agent: {found['agent_trouble']}"
    if found.get("agent_elsewhere"):
        yield "the fleet's agent is on another server, or on none: this one has no lease for it (--agent-scope cluster)"
    if agent_returned(found):
        yield "the agent has returned: its process stays for its messages and schedules alone (docs/guides/agent.md)"


def _certificates(tls: dict[str, Any] | None) -> Iterator[str]:
    for each in tls["certificates"] if tls is not None else ():
        if each["kind"] != "CRL":
            names = ", ".join(each["names"][:3]) + (f" and {len(each['names']) - 3} more" * (len(each["names"]) > 3))
            yield f"certificate for {names} ({each['kind']}), {_until(each['not_after'])}"
    if tls is not None and tls["trouble"]:
        yield f"the files of certificates cannot be used as they are now: {tls['trouble']}"


def _until(end: float) -> str:
    """When a certificate ends (Unix time), in words."""
    left = end - time.time()
    day = time.strftime("%Y-%m-%d", time.gmtime(end))
    span = f"{left / 86400:.0f} days" if left > 86400 else f"{left / 3600:.0f} hours"
    return f"expires in {span}, on {day}" if left > 0 else f"expired on {day}"


def _workers(found: dict[str, Any]) -> Iterator[str]:
    row = "{:>5} {:>4} {:<13} {:>6} {:>6} {:>4} {:>9} {:>8} {:>8} {:>7}"
    yield row.format(*("slot", "gen", "state", "conns", "active", "ws", "requests", "memory", "cpu", "oldest"))
    for worker in sorted(found["workers"], key=lambda w: (w["generation"], w["slot"])):
        yield row.format(
            worker["slot"],
            worker["generation"],
            state_of(worker),
            worker["connections"],
            worker["in_flight"],
            worker["websockets"],
            worker["requests"],
            memory(worker["rss"]),
            span(worker.get("cpu", 0.0)),
            span(worker["oldest"]) if worker.get("oldest") is not None else "-",
        )
        if worker.get("recycling"):
            yield f"           to be replaced: {worker['recycling']}"
    for agent in found.get("agents", []):
        figures = (memory(agent["rss"]), span(agent["cpu"]))
        yield row.format("agent", agent["generation"], state_of(agent), *["-"] * 4, *figures, "-")
    for template in found.get("templates", []):
        yield row.format("", template["generation"], "template", *["-"] * 4, memory(template["rss"]), "-", "-")


COMMANDS: Final = {
    "status": command("status", status, as_json()),
    "workers": command("workers", workers, as_json()),
}
