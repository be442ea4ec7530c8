"""The task in which an application answers a request.

It owns that the application's call begins at once, in a context of its own, and that the request counts as in flight
from then on. What runs in it is `serve_asgi.http.request_cycle`, which stays Python's own where this is compiled: its
frame is what stack dumps and debuggers find the request by.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from serve_asgi.http.request_cycle import run_cycle
from serve_asgi.http.request_receive import Request
from serve_asgi.http.response import Response
from serve_asgi.http.worker_context import WorkerContext
from serve_asgi.ipc.scoreboard import Cell

_Task: Final = asyncio.Task
_run_cycle: Final = run_cycle
_EAGER: Final = sys.version_info >= (3, 12)
_IN_FLIGHT: Final = int(Cell.IN_FLIGHT)


def call_application(worker: WorkerContext, request: Request, response: Response) -> asyncio.Task[None]:
    """Call the application with a request and its response. The task runs on, or has ended already."""
    context = worker.context.copy()
    worker.cells[_IN_FLIGHT] += 1  # until the end of run_cycle(); now, since a task that is not eager begins later
    cycle = _run_cycle(worker.app, request, response, request.scope)
    if _EAGER:
        task = _Task(cycle, loop=worker.loop, context=context, eager_start=True)  # type: ignore[call-arg,unused-ignore]
    else:
        task = worker.loop.create_task(cycle, context=context)
    if not task.done():
        request.task = task
        worker.tasks.add(task)
        task.add_done_callback(worker.tasks.discard)
    return task
