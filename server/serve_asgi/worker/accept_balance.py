"""Spreads new clients evenly: which of the workers that share listening sockets the kernel wakes.

All workers wait for the same listening sockets. By default the kernel wakes all of them for each client, always in the
same order, so that the first ones get nearly everything and all pay. With EPOLLEXCLUSIVE (epoll_ctl(2)) it wakes the
first in the wait queue that is really waiting in epoll_wait(2) (a stopped or busy process is not, and is skipped), and
a worker that has accepted goes to the end of the queue by registering the socket again. So the workers take turns, one
wake-up per client, and no client waits for an unresponsive worker.

It owns this worker's place in the queue: the registrations of the listening sockets in the loop's own epoll (a nested
one does not count as waiting). Rules: the loop adds and removes the socket as usual; in between it is registered again
with the same meaning. Where that is not possible the loop's registration stays, and only balance suffers. A worker that
holds noticeably fewer connections than the others, such as a new one, gets a second place in the queue through a
duplicate of the socket, and so two shares, not all. (Waking it along with the first in the queue would make the two
race, which it may always lose on a busy machine.) `WakeOrder` itself does not accept.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections.abc import Callable
from typing import Final

from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.server_log import about
from serve_asgi.worker.scoreboard_rows import OtherWorkers

LOOK_AGAIN: Final = 0.05
"""Seconds between two checks of the other workers while clients arrive."""
NOTICEABLE: Final = 8
"""A worker holds noticeably fewer connections if it is so many, and a quarter of the mean, below the mean."""
TRIES: Final = 100
"""Turns of the loop in which it must have added a socket to its epoll."""
IN_LINE: Final = select.EPOLLIN | select.EPOLLEXCLUSIVE

log = logging.getLogger("serve")


class LoopFactory:
    """Creates the event loop, and finds out the epoll descriptor that it waits on, which loops do not expose."""

    def __init__(self, make: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._make = make
        self.epoll: int | None = None
        """Known once the loop exists, if at all. The loop owns the descriptor."""

    def __call__(self) -> asyncio.AbstractEventLoop:
        before = _epolls()
        loop = self._make()
        made = _epolls() - before
        self.epoll = made.pop() if len(made) == 1 else None
        return loop


class WakeOrder:
    """This worker's place among the workers that wait for the same listening sockets."""

    def __init__(self, loop: asyncio.AbstractEventLoop, epoll: int | None, others: OtherWorkers) -> None:
        """`epoll` is what `loop` waits on (None if unknown), `others` are the other workers."""
        self._loop = loop
        self._epoll = None if epoll is None else select.epoll.fromfd(os.dup(epoll))  # closing it closes the duplicate
        self._others = others
        self._own = others.own
        self._watched: dict[socket.socket, Callable[[socket.socket], object]] = {}
        self._second: dict[socket.socket, socket.socket] = {}
        """The duplicates of listening sockets that are in the queue, while this worker holds fewer connections."""
        self._turn: socket.socket | None = None  # the duplicate that has been woken
        self._fewer = False
        self._alone = True
        self.evens_out = True
        """Whether to take a second place while this worker holds fewer connections: not one on trial."""
        self._look_again = 0.0

    def join(self, listening: socket.socket, readable: Callable[[socket.socket], object]) -> None:
        """Call `readable(listening)` whenever a client waits and it is this worker's turn."""
        self._own[Cell.ACCEPTS] = 1
        self._watched[listening] = readable
        self._look()
        self._loop.add_reader(listening.fileno(), readable, listening)
        self._settle(listening, TRIES)
        self._take_second_place(listening)

    def in_line(self) -> bool:
        """Whether this worker waits for clients."""
        return bool(self._watched)

    def leave(self) -> list[socket.socket]:
        """Leave the queues; return the sockets that were in them.

        A client that this worker has already been woken for may still be waiting there.
        """
        self._own[Cell.ACCEPTS] = 0
        watched = list(self._watched)
        for listening in watched:
            self.part(listening)
        return watched

    def part(self, listening: socket.socket) -> None:
        """Leave the queue of one socket only."""
        if self._watched.pop(listening, None) is not None:
            self._loop.remove_reader(listening.fileno())
        self._give_up_second_place(listening)

    def accepted(self, listening: socket.socket) -> None:
        """This worker has accepted a client: go to the end of the queue."""
        if self._loop.time() >= self._look_again:
            self._look()
        if not self._alone:
            self._register(listening if self._turn is None else self._turn)
            self._take_second_place(listening)

    def descriptors(self) -> list[int]:
        """The open descriptors."""
        epolls = [] if self._epoll is None else [self._epoll.fileno()]
        return epolls + [second.fileno() for second in self._second.values()]

    def tick(self) -> None:
        """Once a second: check for clients whose wake-up went to a worker that has not accepted since."""
        self._look()
        for listening, readable in list(self._watched.items()):
            readable(listening)

    def _settle(self, place: socket.socket, tries: int) -> None:
        """Replace the loop's registration, which may not happen before the loop waits again."""
        waits = place in self._watched or place in self._second.values()
        if waits and not self._register(place) and tries:
            self._loop.call_soon(self._settle, place, tries - 1)

    def _register(self, place: socket.socket) -> bool:
        """Go to the end of the queue; return False if the loop has not registered the socket yet."""
        if self._epoll is None or place.fileno() < 0:
            return True
        try:
            self._epoll.unregister(place)
        except FileNotFoundError:
            return False
        try:
            self._epoll.register(place, IN_LINE)
        except OSError as error:  # an old kernel, or an emulation
            log.debug("the workers cannot take turns at accepting clients: %s", error, extra=about("wake_order_failed"))
            self._epoll.register(place, select.EPOLLIN)
            self._epoll = None
        return True

    def _look(self) -> None:
        """Check how many connections the other workers hold."""
        self._look_again = self._loop.time() + LOOK_AGAIN
        others, own = self._others.accepting(), self._own[Cell.CONNECTIONS]
        self._alone = not others
        self._fewer = self.evens_out and own < (sum(others) + own) / (len(others) + 1) * 3 / 4 - NOTICEABLE
        if not self._fewer:
            for listening in list(self._second):
                self._give_up_second_place(listening)

    def _take_second_place(self, listening: socket.socket) -> None:
        """Take a second place in the queue, if this worker holds fewer connections than the others."""
        if not self._fewer or self._epoll is None or listening in self._second:
            return
        try:
            second = listening.dup()
        except OSError:  # no descriptor is left
            return
        self._second[listening] = second
        self._loop.add_reader(second.fileno(), self._second_turn, listening, second)
        self._settle(second, TRIES)

    def _second_turn(self, listening: socket.socket, second: socket.socket) -> None:
        """A client waits, and it is the turn of the second place."""
        readable = self._watched.get(listening)
        if readable is None:
            return
        self._turn = second
        try:
            readable(listening)
        finally:
            self._turn = None

    def _give_up_second_place(self, listening: socket.socket) -> None:
        if (second := self._second.pop(listening, None)) is not None:
            self._loop.remove_reader(second.fileno())
            second.close()


def _epolls() -> set[int]:
    """The epoll descriptors of this process (proc_pid_fd(5)); none where /proc is missing."""
    found = set()
    try:
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                    found.add(int(name))
            except OSError:
                continue  # the directory's own
    except OSError:
        pass
    return found
