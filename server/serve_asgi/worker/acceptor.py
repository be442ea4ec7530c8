"""Accepts connections from the listening sockets and attaches protocols, and stops without losing one.

It owns this worker's duplicates of the listening sockets. The loops' own servers are not used: asyncio drops a
connection whose server is closed between accept and attach (python/cpython#109564), and a retiring worker must know
exactly when it has accepted for the last time. A connection counts as ours from accept(2) on.
`serve_asgi.worker.accept_balance` decides which worker is woken for a client; the consequence here: a worker that has
been woken and stops accepting must check the queues once more, since nobody else was woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import functools
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

from serve_asgi.ipc.channel import hung_up
from serve_asgi.ipc.peer_address import Address, unix_name
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.ipc.shut_out_clients import admit, filters_refused
from serve_asgi.logs.server_log import about
from serve_asgi.worker.accept_balance import WakeOrder
from serve_asgi.worker.connection_limit import ConnectionLimit

PAUSE: Final = 0.1
"""Seconds without accepting when there is no memory, or no room left (`serve_asgi.worker.connection_limit`)."""
WARN_EVERY: Final = 10.0
"""Seconds between two warnings that there are no descriptors, so that the log does not fill the disk as well."""
SHUT_DOWN: Final = -2
"""Instead of a descriptor: a unix socket that was shut out has no more clients, or a holder of a duplicate has called
shutdown(2)."""
LOOK_AGAIN: Final = 0.5
"""Seconds until that is checked again."""
EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPTED: Final = int(Cell.ACCEPTED)

log = logging.getLogger("serve")

Attempt = Coroutine[Any, Any, tuple[asyncio.Transport, asyncio.Protocol]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Listening:
    """What all connections of one listening socket have in common."""

    family: int
    protocol: int
    own_end: Address
    """The address that clients connect to; None if it varies and each connection has to be asked."""
    secure: bool
    """Whether it speaks TLS."""

    @classmethod
    def of(cls, listening: socket.socket, secure: bool) -> _Listening:
        name = listening.getsockname()
        own_end: Address = None
        if listening.family == socket.AF_UNIX:
            own_end = (unix_name(name), None) if name else None
        elif name[0] not in EVERYWHERE:
            own_end = (str(name[0]), int(name[1]))
        return cls(int(listening.family), listening.proto, own_end, secure)


class Acceptor:
    """Accepts connections and attaches a protocol to each."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: dict[socket.socket, bool],
        cells: memoryview,
        order: WakeOrder,
        limit: ConnectionLimit,
        make_protocol: Callable[[Address, Address, bool], asyncio.Protocol],
        attached: Callable[[asyncio.Protocol], None],
    ) -> None:
        """`sockets` are the listening ones, and whether each speaks TLS. While `limit` leaves no room, clients wait in
        the kernel's queue, for this worker or another.

        `make_protocol` gets the client's and the server's address as far as they are known without a system call, and
        whether the connection speaks TLS. `attached` is called with each protocol once it has its transport.
        """
        self._loop = loop
        self._sockets = list(sockets)
        self._cells = cells
        self._order = order
        self._limit = limit
        self._make_protocol = make_protocol
        self._attached = attached
        self._common = {listening: _Listening.of(listening, secure) for listening, secure in sockets.items()}
        self._attaching: dict[Attempt, socket.socket] = {}
        self._all_attached = asyncio.Event()
        self._pause: asyncio.TimerHandle | None = None
        self._short = False  # of descriptors or memory, when it last accepted
        self._next_warning = 0.0
        self._must_admit = filters_refused()
        self.accepting = False
        """Whether clients are accepted, or will be after a pause."""

    def start(self) -> None:
        """Start to accept, also again after `stand_by`."""
        self.accepting = True
        self._pause = None
        self._short = False
        self._limit.look()
        for listening in self._sockets:
            self._order.join(listening, self._readable)

    def stop(self, last_look: bool = True) -> None:
        """Stop accepting and close the duplicates; clients in the kernel's queue are left to the other workers.

        With `last_look` a client that this worker may already have been woken for is accepted; without it (when what is
        accepted would be cut) such a client waits until another worker's next tick.
        """
        self.stand_by(last_look)
        for listening in self._sockets:
            listening.close()
        self._sockets = []

    def stand_by(self, last_look: bool = True) -> None:
        """Stop accepting as `stop` does, and keep the duplicates: `start` may follow."""
        watched = self._order.leave()
        if last_look:
            for listening in watched:
                self._accept(listening)
        if self._pause is not None:
            self._pause.cancel()
        self.accepting = False

    def step_out(self) -> None:
        """Leave new clients to the other workers until `step_in`; one that this worker was woken for is accepted."""
        if self._pause is None:
            for listening in self._order.leave():
                self._accept(listening)

    def step_in(self) -> None:
        """Accept clients again, if it has stepped out."""
        if self._pause is None and not self._order.in_line():
            self.start()

    def accept_queued(self) -> bool:
        """Accept all clients in the kernel's queues, using the reserved descriptors, too; return False if they run
        out."""
        for listening in self._sockets:
            while self._accept(listening) >= 0:
                pass
            if self._short:
                return False
        return True

    async def settled(self) -> None:
        """Wait until every accepted connection has its protocol."""
        while self._attaching:
            self._all_attached.clear()
            await self._all_attached.wait()

    def descriptors(self) -> list[int]:
        """The open descriptors: the listening sockets and the clients that are being attached."""
        return [each.fileno() for each in (*self._sockets, *self._attaching.values())]

    def attach(self, client: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        """Attach a protocol to a connected socket, which is taken over."""
        attempt = self._loop.connect_accepted_socket(make_protocol, client)
        self._attaching[attempt] = client
        self._step(attempt, client)

    def _step(self, attempt: Attempt, client: socket.socket, waited: object = None) -> None:
        """Run the attempt to its end or its next wait, as a task would.

        A task takes 2.8 µs more per connection, 1.6 if it starts eagerly (uvloop, CPython 3.13; 17 µs in all), and
        would be cancelled by an application that cancels all tasks at its shutdown.
        """
        try:
            waits_for = attempt.send(None)
        except StopIteration as ended:
            self._end(attempt)
            self._attached(ended.value[1])
        except OSError as error:
            log.debug("a connection was lost before it was attached: %s", error, extra=about("connection_lost"))
            self._end(attempt)
            client.close()
        except Exception:
            log.exception("a connection could not be attached; it is closed", extra=about("internal_error"))
            self._end(attempt)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)  # see serve_asgi.http.client_socket
            client.close()
        else:
            waits_for._asyncio_future_blocking = False  # as a task would: see asyncio.Future.__await__
            waits_for.add_done_callback(functools.partial(self._step, attempt, client))

    def _end(self, attempt: Attempt) -> None:
        self._attaching.pop(attempt, None)
        if not self._attaching:
            self._all_attached.set()

    def _readable(self, listening: socket.socket) -> None:
        """A client waits, unless another worker was faster."""
        if not self._limit.for_clients(len(self._attaching)):
            self._rest()
        elif (taken := self._accept(listening)) >= 0:  # one: the loop reports it again at once if there are more
            if taken >= self._limit.mark:
                self._no_descriptors()
            elif self._limit.for_clients(len(self._attaching)):
                self._order.accepted(listening)
            else:
                self._rest()  # and do not get woken for the next client, whom nobody else would accept
        elif taken == SHUT_DOWN:  # the loop would keep reporting that
            self._order.part(listening)
            self._loop.call_later(LOOK_AGAIN, self._look_again, listening)

    def _look_again(self, listening: socket.socket) -> None:
        """The listener may have made it listen again (`serve_asgi.listener.listening_sockets`)."""
        if self.accepting and listening in self._sockets and self._pause is None:
            self._order.join(listening, self._readable)

    def _accept(self, listening: socket.socket) -> int:
        """Accept one connection; return its descriptor, or less than 0 if there is none, or none can be accepted
        now."""
        self._short = False
        try:
            descriptor: int
            descriptor, name = listening._accept()  # type: ignore[attr-defined]  # accept() repeats the system calls
        except (BlockingIOError, InterruptedError):  # also from a unix socket that has been shut down
            return SHUT_DOWN if listening.family == socket.AF_UNIX and hung_up(listening) else -1
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._short = True
                self._no_descriptors(error.strerror or str(error))
                return -1
            return SHUT_DOWN if error.errno == errno.EINVAL else 0
        common = self._common[listening]
        client = socket.socket(common.family, socket.SOCK_STREAM, common.protocol, descriptor)  # both loops unblock it
        self._cells[_ACCEPTED] += 1
        if self._must_admit:
            admit(client)
        peer = (name[0], name[1]) if isinstance(name, tuple) else None
        self.attach(client, functools.partial(self._make_protocol, peer, common.own_end, common.secure))
        return descriptor

    def _no_descriptors(self, error: str = "") -> None:
        """There are no descriptors for clients: the rest is reserved for what must not fail. Warn, but not often."""
        if self._pause is None and (now := self._loop.time()) >= self._next_warning:
            self._next_warning = now + WARN_EVERY
            what = (
                error or f"of {self._limit.limit} open files the rest is reserved for reloads, logs and the application"
            )
            log.warning(
                "cannot accept connections: %s; new clients wait; raise the open-files limit (ulimit -Hn)",
                what,
                extra=about("accept_failed"),
            )
        self._rest()

    def _rest(self) -> None:
        """Pause: clients wait in the kernel's queue, for this worker or another."""
        if self._pause is None:
            self._order.leave()
            self._pause = self._loop.call_later(PAUSE, self._rested)

    def _rested(self) -> None:
        if self._limit.for_clients(len(self._attaching)) and self._limit.again():
            self.start()
        else:
            self._pause = self._loop.call_later(PAUSE, self._rested)
