"""`serve fleet`: the servers that share a Redis or PostgreSQL, and reloads over all of them.

It finds the store (--state, SERVE_STATE, the configuration file of this directory) and speaks to that alone, so that it
runs wherever the store can be reached. What the servers announce is `serve_asgi.cli.fleet_view`'s.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, Final

import anyio
import click
import msgspec

from serve_asgi.cli import fleet_view
from serve_asgi.cli.command import (
    CONTEXT,
    INTERRUPTED,
    as_json,
    complain,
    failed_as_json,
    seconds,
    show,
    tell,
    tell_outcome,
)
from serve_asgi.cli.fleet_operation import operation_from
from serve_asgi.cli.fleet_operator import LONGEST, FleetOperator, OperatorOptions
from serve_asgi.config import config_file
from serve_asgi.config.invoker import invoker
from serve_asgi.config.state_location import shown
from serve_asgi.errors import ServeError, StartError, UsageError
from serve_asgi.store.fleet_access import FleetUnreachable, fleet_at


def fleet(
    do: str,
    state: str,
    config: str,
    node_timeout: float,
    skip_silent: bool,
    resume: bool | None,
    as_json: bool,
) -> int:
    """Show the servers that share a store (--state of theirs), reload them one after another, or roll them back.

    status shows each server's generation and health, and names those that have not been heard for 15 seconds.

    reload has each server reload, one at a time, those with a canary first, and waits for each; it stops at the first
    one that refuses. Run again it goes on where it stopped; --restart begins anew with all servers. Nothing is done
    unless every server answers (or --skip-silent) and takes orders (--fleet-orders).

    rollback takes back what the latest reload over the fleet has reloaded, and nothing else.

    The store is the one that --state names, else that of SERVE_STATE, else that of the configuration file.

    Exit status 0: done. 1: not done, or not with all servers; the sentence says with which, and how to go on.
    """
    try:
        url = located(state, config)
        if do == "status":
            return anyio.run(_status, url, as_json)
        operator = f"{invoker()} on {socket.gethostname()} (PID {os.getpid()})"
        options = OperatorOptions(invoker(), operator, node_timeout, skip_silent, resume)
        text = anyio.run(_operate, do, url, options, as_json)
    except ServeError as error:
        if as_json:
            return failed_as_json(error)
        raise
    except KeyboardInterrupt:
        complain(
            "interrupted: the server that has its order goes on with it, no further one gets any; `serve fleet status` "
            f"shows how far it has come, `serve fleet {do}` goes on"
        )
        return INTERRUPTED
    if as_json:
        tell_outcome(True, text)
    else:
        tell(text)
    return 0


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
        lines += ["", *fleet_view.table(found), *([""] if any(not each.answers for each in found) else [])]
        lines += fleet_view.silent(found)
    else:
        lines.append("none has announced itself there: is it the --state of the servers, prefix and all?")
    if unreadable:
        lines += ["", unreadable]
    elif operation is not None:
        lines += ["", *operation.lines(view.now)]
    show("\n".join(lines))
    return 0


COMMANDS: Final = {
    "fleet": click.Command(
        "fleet",
        callback=fleet,
        help=fleet.__doc__,
        params=[
            click.Argument(["do"], type=click.Choice(["status", "reload", "rollback"])),
            click.Option(
                ["--state"], metavar="URL", default="", help="The Redis or PostgreSQL that the servers share."
            ),
            click.Option(["--config"], metavar="FILE", type=click.Path(), default="", help="A file that names it."),
            seconds("--node-timeout", "How long one server may take for its order.", LONGEST),
            click.Option(["--skip-silent"], is_flag=True, help="Leave out servers that do not answer."),
            click.Option(
                ["--resume/--restart"],
                default=None,
                help="Go on with a reload that has stopped, whenever that was; or begin anew with all servers.",
            ),
            as_json("Print it as JSON; of a reload or roll-back one object per step, the last one the outcome."),
        ],
        context_settings=CONTEXT,
    ),
}
