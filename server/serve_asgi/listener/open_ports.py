"""Opening the ports once the first generation is ready, keeping them open, and shutting new connections out before the
stop.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from typing import Final

import anyio

from serve_asgi.errors import ServeError
from serve_asgi.ipc.signals import LISTENER_SIGNALS
from serve_asgi.listener.listening_sockets import Listening
from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e

HANDSHAKE_TIME: Final = 1.0
"""Seconds that a TCP handshake under way has to complete once new ones are kept out (the first retransmission)."""
LOOK_FOR_HANDSHAKES: Final = 0.01
"""Seconds between two looks at whether one is still under way."""
LOOK: Final = 1.0
"""Seconds between two looks at whether the sockets still listen: for that there is an event, but in the workers."""

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
        while await anyio.to_thread.run_sync(_under_way, listening, abandon_on_cancel=True):
            await anyio.sleep(LOOK_FOR_HANDSHAKES)  # the kernel has no event for this
    return e.ShutOutDone()


def _under_way(listening: Sequence[Listening]) -> bool:
    """Whether a client amid its handshake is waited for. In a thread: the kernel looks at all connections there are."""
    signal.pthread_sigmask(signal.SIG_BLOCK, LISTENER_SIGNALS)  # they are the main thread's
    return any(each.owned and each.handshakes_under_way() for each in listening)


async def keep_open(
    listening: Sequence[Listening],
    backlog: Callable[[], int],
    is_open: Callable[[], bool],
    say: Callable[[actions.LogEvent], None],
) -> None:
    """Undo what a worker does to a listening socket for all, by shutdown(2) or a filter, and tell of it."""
    given_up: set[str] = set()
    while True:
        await anyio.sleep(LOOK)
        for each in listening if is_open() else ():
            if each.name in given_up:
                continue
            try:
                if each.is_shut_down():
                    what, then = "shut it down for all", "it listens again, without the clients that were not accepted"
                    each.listen_again(backlog())
                else:
                    what, then = "kept new clients out of it", "clients can connect again"
                    if not each.let_in():
                        continue
            except (OSError, ServeError) as error:
                given_up.add(each.name)
                then = f"no client can connect any more: {error}"
            text = f"a process that has {each.name} as well, such as a worker, has {what}; {then}"
            say(actions.LogEvent(logging.ERROR, "socket_shut_down", text, "", {"address": each.name}))
