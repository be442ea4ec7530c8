"""The worker process, from its start to its exit, as a fresh interpreter or forked from a template.

Its start is in `serve_asgi.worker.bootstrap`, everything in between in `serve_asgi.worker.worker`.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from serve_asgi.logs.exceptions import exc_info
from serve_asgi.logs.server_log import about
from serve_asgi.worker.bootstrap import Bootstrap, StartArguments, leave_within
from serve_asgi.worker.event_loop import run
from serve_asgi.worker.worker import EXIT_TIME, WorkerProcess

if TYPE_CHECKING:
    from serve_asgi.http.worker_context import ASGIApplication

log = logging.getLogger("serve")


def main(arguments: StartArguments, application: ASGIApplication | None = None) -> None:
    """Run a worker; never returns. `application` is what a template has imported, if it was forked from one."""
    bootstrap = Bootstrap(
        arguments,
        lambda packet: (
            f"serve-w{packet['slot']}.{packet['generation']}",
            f"worker {packet['slot']}.{packet['generation']}",
        ),
    )
    loops = bootstrap.move_in()
    worker = WorkerProcess(
        bootstrap.config,
        bootstrap.channel,
        bootstrap.scoreboard,
        bootstrap.cells,
        bootstrap.packet,
        bootstrap.sockets,
        loops,
        bootstrap.watchdog,
        bootstrap.link,
        bootstrap.tls_material,
        bootstrap.secure,
        application,
    )
    bootstrap.tls_material = None  # the keys are to be in OpenSSL alone
    try:
        status = run(worker.run, loops)
    except BaseException as error:
        status = 1
        text = "the worker ends because of an internal error; please report this"
        log.error(text, exc_info=exc_info(error), extra=about("internal_error"))
        leave_within(EXIT_TIME, status)
    finally:  # every exit except a kill flushes the logs
        worker.flush_access_log()
        if worker.access_log is not None:
            worker.access_log.close()
        bootstrap.finish_output()
    bootstrap.let_go()
    sys.exit(status)
