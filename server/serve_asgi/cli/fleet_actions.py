"""What `serve fleet` does once its arguments are read: it speaks to the store, and prints what comes of it."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import anyio
import msgspec

from serve_asgi.cli import fleet_view
from serve_asgi.cli.command import show, tell
from serve_asgi.cli.fleet_operation import operation_from
from serve_asgi.cli.fleet_operator import FleetOperator, OperatorOptions
from serve_asgi.config import config_file
from serve_asgi.config.state_location import shown
from serve_asgi.errors import StartError, UsageError
from serve_asgi.store.fleet_access import FleetUnreachable, fleet_at


def print_status(state: str, as_json: bool) -> int:
    """Print the servers and the latest operation. Raises ServeError."""
    return anyio.run(_status, state, as_json)


def operate(do: str, state: str, options: OperatorOptions, as_json: bool) -> str:
    """Reload the servers one after another, or roll them back; return the outcome's sentence. Raises ServeError."""
    return anyio.run(_operate, do, state, options, as_json)


async def _operate(do: str, state: str, options: OperatorOptions, as_json: bool) -> str:
    def say(event: str, text: str, server: str) -> None:
        if as_json:
            tell(json.dumps({"at": round(time.time(), 3), "event": event, "text": text, "server": server}))
        else:
            tell(text)

    async with fleet_at(state) as access:
        operator = FleetOperator(access, options, say)
        try:
            return await (operator.reload() if do == "reload" else operator.rollback())
        except FleetUnreachable as error:
            raise FleetUnreachable(
                f"{error}. A server that has its order goes on with it, and `serve fleet {do}` once the store is back"
            ) from None


def located(state: str, config: str) -> str:
    """The URL of the store. Raises UsageError if there is none."""
    if found := state or os.environ.get("SERVE_STATE", ""):
        return found
    file = config_file.load(config or os.environ.get("SERVE_CONFIG", ""), os.getcwd())
    if file is not None and "state" in file.entries:
        return str(file.entries["state"].value)
    raise UsageError(
        "which fleet? Name the store that its servers share with --state redis://HOST:PORT/DB (or postgresql://…), "
        "SERVE_STATE, or a configuration file that has it (--config FILE)"
    )


async def _status(state: str, as_json: bool) -> int:
    async with fleet_at(state) as access:
        view = await access.look()
    found, operation, unreadable = fleet_view.servers(view), None, ""
    try:
        operation = operation_from(view.document)
    except StartError as error:
        unreadable = str(error)
    if as_json:
        about: dict[str, Any] = {
            "state": shown(state),
            "servers": [each.as_json() for each in found],
            "operation": operation and {**msgspec.to_builtins(operation), "has_operator": operation.has_turn(view.now)},
        }
        show(json.dumps(about, indent=2))
        return 0
    lines = [f"fleet of {shown(state)}: {fleet_view.summary(found)}"]
    if found:
        notes = [*fleet_view.silent(found), *fleet_view.moved_links(found)]
        lines += ["", *fleet_view.table(found), *([""] if notes else []), *notes]
    else:
        lines.append("none has announced itself there: is it the --state of the servers, prefix and all?")
    if unreadable:
        lines += ["", unreadable]
    elif operation is not None:
        lines += ["", *operation.lines(view.now)]
    show("\n".join(lines))
    return 0
