"""The worker process, from its first instruction to its exit.

How it begins is in `server.worker.beginning`, what it does in between in `server.worker.worker`.
"""

from __future__ import annotations

import sys

import anyio

from server.worker.beginning import Beginning
from server.worker.worker import Worker


def main() -> None:
    """Be the worker whose channel is the descriptor named on the command line; never returns."""
    begun = Beginning(
        "server.worker",
        lambda packet: (
            f"serve-w{packet['slot']}.{packet['generation']}",
            f"worker {packet['slot']}.{packet['generation']}",
        ),
    )
    loops = begun.move_in()
    worker = Worker(
        begun.config,
        begun.channel,
        begun.scoreboard,
        begun.packet,
        begun.sockets,
        loops,
        begun.watchdog,
        begun.link,
    )
    status = anyio.run(worker.run, backend_options={"loop_factory": loops})
    if worker.access_log is not None:
        worker.access_log.close()
    begun.guard.finish()
    sys.exit(status)
