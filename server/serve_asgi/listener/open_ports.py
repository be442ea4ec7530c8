"""Opening the ports once the first generation is ready, and shutting new connections out before the stop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import anyio

from serve_asgi.errors import ServeError
from serve_asgi.listener.listening_sockets import Listening
from serve_asgi.supervisor import events as e

HANDSHAKE_TIME: Final = 1.0
"""Seconds that a TCP handshake under way has to complete once new ones are kept out (the first retransmission)."""

log = logging.getLogger("serve")


def open_ports(listening: Sequence[Listening], backlog: int) -> e.PortsOpened:
    """Call listen() on all; say what came of it."""
    try:
        for each in listening:
            each.listen(backlog)
    except (OSError, ServeError) as error:
        return e.PortsOpened(str(error))
    return e.PortsOpened()


async def shut_out(listening: Sequence[Listening]) -> e.ShutOutDone:
    """Keep new connections out, give handshakes under way the time to complete, then say so."""
    for each in listening:
        try:
            each.shut_out()
        except OSError as error:
            log.error("new connections to %s cannot be kept out before the stop: %s", each.name, error)
    with anyio.move_on_after(HANDSHAKE_TIME):
        while any(each.owned and each.handshakes_under_way() for each in listening):
            await anyio.sleep(0.01)  # the kernel has no event for this
    return e.ShutOutDone()
