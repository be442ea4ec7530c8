"""`serve fleet`: the servers that share a Redis or PostgreSQL, and reloads over all of them.

It finds the store (--state, SERVE_STATE, the configuration file of this directory) and speaks to that alone, so that it
runs wherever the store can be reached. What the servers announce is `serve_asgi.cli.fleet_view`'s.
"""

from __future__ import annotations

import os
import socket
from typing import Final

import click

from serve_asgi.cli.command import CONTEXT, INTERRUPTED, as_json, complain, failed_as_json, seconds, tell, tell_outcome
from serve_asgi.config.invoker import invoker
from serve_asgi.errors import ServeError

NODE_TIMEOUT: Final = 900.0
"""Seconds that one server may take for its order."""


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
    from serve_asgi.cli import fleet_actions  # its packages are not there where the manual pages are made
    from serve_asgi.cli.fleet_operator import OperatorOptions

    try:
        url = fleet_actions.located(state, config)
        if do == "status":
            return fleet_actions.print_status(url, as_json)
        operator = f"{invoker()} on {socket.gethostname()} (PID {os.getpid()})"
        options = OperatorOptions(invoker(), operator, node_timeout, skip_silent, resume)
        text = fleet_actions.operate(do, url, options, as_json)
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
            seconds("--node-timeout", "How long one server may take for its order.", NODE_TIMEOUT),
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
