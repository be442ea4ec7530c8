"""Accepts the clients of a server in process, and stops without losing one that it has accepted.

Loops that wait for descriptors (every one on Unix) say when a client waits, and it is accepted here: asyncio's own
server drops a connection if it is closed between accept and attach (python/cpython#109564). Other loops (the default on
Windows) accept by themselves. It must not know what a connection does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

from serve_asgi.ipc.peer_address import Address
from serve_asgi.logs.server_log import about
from serve_asgi.worker.event_loop import hidden_task

PAUSE: Final = 0.1
"""Seconds without accepting when there are no descriptors, no memory or no room left (--max-connections)."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = logging.getLogger("serve")

MakeProtocol = Callable[[Address, Address, bool], asyncio.Protocol]


class ClientAcceptor:
    """Accepts clients and attaches a protocol to each."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: dict[socket.socket, bool],
        make_protocol: MakeProtocol,
        has_room: Callable[[int], bool],
        accepted: Callable[[], None],
    ) -> None:
        """`sockets` listen, and are the caller's; each with whether it speaks TLS.

        `make_protocol` gets the client's address if it is known, None for this end's, and whether the connection
        speaks TLS. `has_room` is asked with the number of clients that are accepted and not attached yet. `accepted` is
        called for each client.
        """
        self._loop = loop
        self._sockets = sockets
        self._make_protocol = make_protocol
        self._has_room = has_room
        self._accepted = accepted
        self._attaching: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.AbstractServer] = []  # of a loop that accepts by itself
        self._pause: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to accept."""
        try:
            self._watch()
        except NotImplementedError:
            for listening, secure in self._sockets.items():
                self._servers.append(await self._loop.create_server(lambda s=secure: self._made(s), sock=listening))  # type: ignore[misc]

    def stop(self) -> None:
        """Accept no more: who waits in the kernel's queue is accepted first. Closing the sockets is the caller's."""
        for server in self._servers:
            server.close()
        if not self._servers:
            for listening in self._sockets:
                self._loop.remove_reader(listening.fileno())
                while self._accept(listening):
                    pass
        self._rest_no_more()

    async def settled(self) -> None:
        """Wait until every client that was accepted has its protocol."""
        while self._attaching:
            await asyncio.wait(self._attaching)

    def _watch(self) -> None:
        self._pause = None
        for listening in self._sockets:
            self._loop.add_reader(listening.fileno(), self._readable, listening)

    def _readable(self, listening: socket.socket) -> None:
        """A client waits."""
        if not self._has_room(len(self._attaching)):
            self._rest()
        else:
            self._accept(listening)  # one: the loop reports it again at once if there are more

    def _accept(self, listening: socket.socket) -> bool:
        """Accept one client; False if there is none, or none can be accepted now."""
        try:
            client, name = listening.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _EXHAUSTED:
                log.warning("cannot accept connections: %s", error.strerror, extra=about("accept_failed"))
                self._rest()
                return False
            return True  # this client has gone already
        client.setblocking(False)
        peer: Address = (name[0], name[1]) if isinstance(name, tuple) else None
        secure = self._sockets[listening]
        self._accepted()
        task = hidden_task(self._attach(client, lambda: self._make_protocol(peer, None, secure)))
        self._attaching.add(task)
        task.add_done_callback(self._attaching.discard)
        return True

    async def _attach(self, client: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        try:
            await self._loop.connect_accepted_socket(make, client)
        except OSError as error:
            log.debug("a connection was lost before it was attached: %s", error, extra=about("connection_lost"))
            client.close()
        except Exception:
            log.exception("a connection could not be attached; it is closed", extra=about("internal_error"))
            client.close()

    def _made(self, secure: bool) -> asyncio.Protocol:
        """The protocol of a client that the loop has accepted."""
        self._accepted()
        return self._make_protocol(None, None, secure)

    def _rest_no_more(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _rest(self) -> None:
        """Pause: clients wait in the kernel's queue."""
        if self._pause is None:
            for listening in self._sockets:
                with contextlib.suppress(ValueError):
                    self._loop.remove_reader(listening.fileno())
            self._pause = self._loop.call_later(PAUSE, self._watch)
