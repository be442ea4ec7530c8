"""The agent process, from its first instruction to its exit; what it does in between is in `server.agent.process`."""

from __future__ import annotations

import sys

import anyio

from server.agent.lease import Lease
from server.agent.process import AgentProcess
from server.worker.beginning import Beginning


def main() -> None:
    """Be the agent whose channel is the descriptor named on the command line; never returns."""
    begun = Beginning(
        "server.agent",
        lambda packet: (f"serve-agent.{packet['generation']}", f"agent {packet['generation']}"),
    )
    try:
        lease = Lease(begun.packet["lock"])  # before the account is taken, which may not be allowed to
    except OSError as error:
        begun.refuse(f"the lock of the agent, {begun.packet['lock']}, cannot be opened: {error.strerror}")
    loops = begun.move_in()
    status = anyio.run(AgentProcess(begun, lease).run, backend_options={"loop_factory": loops})
    begun.guard.finish()
    sys.exit(status)
