"""The agent process, from its first instruction to its exit; in between is `server.agent_process.agent`."""

from __future__ import annotations

import gc
import sys

import anyio

from server.agent_process.agent import AgentProcess
from server.agent_process.lease import Lease
from server.worker.beginning import Beginning


def main() -> None:
    """Be the agent whose channel is the descriptor named on the command line; never returns."""
    begun = Beginning(
        "server.agent_process",
        lambda packet: (f"serve-agent.{packet['generation']}", f"agent {packet['generation']}"),
    )
    try:
        lease = Lease(begun.packet["lock"])  # before the account is taken, which may not be allowed to
    except OSError as error:
        begun.refuse(f"the lock of the agent, {begun.packet['lock']}, cannot be opened: {error.strerror}")
    loops = begun.move_in()
    status = anyio.run(AgentProcess(begun, lease).run, backend_options={"loop_factory": loops})
    begun.guard.finish()
    # The next agent waits for the end of this process: looking for cyclic garbage that ends anyway takes most of it.
    gc.freeze()
    gc.disable()
    sys.exit(status)
