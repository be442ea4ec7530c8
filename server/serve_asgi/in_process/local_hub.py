"""The hub of a server in process: messages, shared state and schedules work as under `serve`, within this process.

All servers of one event loop share it, as all workers of a server do. The first one makes it, unless the program itself
has used `messenger`, `shared` or `schedule` before; then the program's goes on. Otherwise the last server ends it:
handlers and runs in progress are waited for, and nothing of it remains.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from serve_asgi.app import hub_link
from serve_asgi.app.background_work import work
from serve_asgi.app.local_mode import LocalLink, create_local_link
from serve_asgi.logs.server_log import about

TURNS: Final = 1.0
"""Seconds for the hub to take its own frames: they are delivered in the next turns of the loop."""

log = logging.getLogger("serve")


def join_hub(loop: asyncio.AbstractEventLoop) -> LocalLink | None:
    """Have a hub in this loop; return what `leave_hub` takes, or None if nothing needs to be left."""
    present = hub_link.current_or_none()
    if present is not None and not present.identity.local:
        return None  # a worker of `serve` itself, whose hub is the listener's
    if isinstance(present, LocalLink) and present.loop is loop and not present.closed and not present.stand_in:
        if not present.servers:
            return None
        present.servers += 1
        return present
    if present is not None and present.loop.is_running() and not present.stand_in:
        return None  # that of another thread's loop: calls from here go there
    before = present if present is not None and present.stand_in and not present.closed else None
    if before is not None:
        from serve_asgi.app import thread_loop

        thread_loop.stop()
    link = create_local_link(loop, before)
    hub_link.set_current(link)
    link.on_frame("retire", lambda _: work.retire())
    link.begin()
    link.servers = 1
    return link


async def leave_hub(link: LocalLink | None, patience: float) -> None:
    """The server ends, and the hub with it if no other one uses it; work in progress has `patience` seconds."""
    if link is None or link.closed:
        return
    link.servers -= 1
    if link.servers:
        return
    link.retire()
    try:
        async with asyncio.timeout(TURNS):
            await work.wait_retired()
        if work.tasks:
            await asyncio.wait(work.tasks, timeout=patience)
    except TimeoutError:
        pass
    if left := work.cancel():
        log.warning("cut %d message handlers and schedule runs that had not ended", left, extra=about("work_cut"))
    if work.tasks:
        await asyncio.wait(work.tasks, timeout=TURNS)
    link.end()
    work.begin_anew()
