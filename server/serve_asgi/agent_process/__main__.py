"""The agent process, from its first instruction to its exit; everything in between:
`serve_asgi.agent_process.process`."""

from __future__ import annotations

import gc
import logging
import sys

from serve_asgi.agent_process.agent_lock import AgentLock
from serve_asgi.agent_process.process import EXIT_TIME, AgentProcess
from serve_asgi.logs.exceptions import exc_info
from serve_asgi.logs.server_log import about
from serve_asgi.worker.bootstrap import Bootstrap, leave_within, read_arguments
from serve_asgi.worker.event_loop import run

log = logging.getLogger("serve")


def main() -> None:
    """Run the agent whose channel is the descriptor on the command line; never returns."""
    bootstrap = Bootstrap(
        read_arguments("serve_asgi.agent_process"),
        lambda packet: (f"serve-agent.{packet['generation']}", f"agent {packet['generation']}"),
    )
    try:
        lock = AgentLock(bootstrap.packet["lock"])  # before changing the user, who may not be allowed to
    except OSError as error:
        bootstrap.refuse(f"the lock of the agent, {bootstrap.packet['lock']}, cannot be opened: {error.strerror}")
    loops = bootstrap.move_in()
    try:
        status = run(AgentProcess(bootstrap, lock).run, loops)
    except BaseException as error:
        status = 1
        text = "the agent ends because of an internal error; please report this"
        log.error(text, exc_info=exc_info(error), extra=about("internal_error"))
        leave_within(EXIT_TIME, status)
    bootstrap.finish_output()
    bootstrap.let_go()
    # The next agent waits for the end of this process, most of which would be collecting garbage.
    gc.freeze()
    gc.disable()
    sys.exit(status)


if __name__ == "__main__":
    main()
