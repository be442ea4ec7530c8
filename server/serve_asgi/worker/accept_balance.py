"""Whom the kernel wakes for a new client: the workers of one server share their listening sockets evenly.

All workers wait for the same listening sockets. Left alone, the kernel wakes every one of them for each client, always
in the same order, so that the first ones get nearly everything and all pay. With EPOLLEXCLUSIVE (epoll_ctl(2)) it wakes
the first in line that is really waiting in epoll_wait(2) (a stopped or busy process is not, and is passed over), and a
worker that has accepted goes to the end of the line by registering the socket anew. So the workers take turns, one
wake-up per client, and nobody ever waits for one that does not answer.

It owns this worker's place in line: the registrations of the listening sockets in the loop's own epoll (one that is
nested does not count as waiting). Rules: the loop adds and removes the socket, as it believes; in between it is
registered anew with the same meaning. Where that cannot be done the loop's registration stands, and only evenness is
lost. A worker that holds noticeably fewer connections than the others, such as one that has just started, has a second
place in the line, by a duplicate of the socket, so that it gets two shares, and not all. (To wake it beside the first
in line instead makes the two race, and on a busy machine it may lose each time.) `WakeOrder` does not accept itself.
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
"""Seconds between two looks at the other workers while clients come."""
NOTICEABLE: Final = 8
"""Connections below the mean, besides a quarter of it, that make a worker hold noticeably fewer."""
TRIES: Final = 100
"""Turns of the loop until it must have added a socket to its epoll."""
IN_LINE: Final = select.EPOLLIN | select.EPOLLEXCLUSIVE

log = logging.getLogger("serve")


class LoopFactory:
    """Makes the event loop, and knows the epoll descriptor that it waits on: no loop tells."""

    def __init__(self, make: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._make = make
        self.epoll: int | None = None
        """Known once the loop is made, if at all. The loop owns the descriptor."""

    def __call__(self) -> asyncio.AbstractEventLoop:
        before = _epolls()
        loop = self._make()
        made = _epolls() - before
        self.epoll = made.pop() if len(made) == 1 else None
        return loop


class WakeOrder:
    """This worker's place among those that wait for the same listening sockets."""

    def __init__(self, loop: asyncio.AbstractEventLoop, epoll: int | None, others: OtherWorkers) -> None:
        """`epoll` is what `loop` waits on (None if that is not known), `others` who waits as well."""
        self._loop = loop
        self._epoll = None if epoll is None else select.epoll.fromfd(os.dup(epoll))  # which it closes
        self._others = others
        self._own = others.own
        self._watched: dict[socket.socket, Callable[[socket.socket], object]] = {}
        self._second: dict[socket.socket, socket.socket] = {}
        """The duplicates that stand in the line for the same listening sockets, while there are fewer connections."""
        self._turn: socket.socket | None = None  # the duplicate that has been woken
        self._fewer = False
        self._alone = True
        self._look_again = 0.0

    def join(self, listening: socket.socket, readable: Callable[[socket.socket], object]) -> None:
        """Have `readable(listening)` called whenever a client waits and it is this worker's turn."""
        self._own[Cell.ACCEPTS] = 1
        self._watched[listening] = readable
        self._look()
        self._loop.add_reader(listening.fileno(), readable, listening)
        self._settle(listening, TRIES)
        self._take_second_place(listening)

    def leave(self) -> list[socket.socket]:
        """Be woken no more; the sockets for which that could be.

        A client for whom this worker has been woken already may still be in the queue of one.
        """
        self._own[Cell.ACCEPTS] = 0
        watched = list(self._watched)
        for listening in watched:
            self.part(listening)
        return watched

    def part(self, listening: socket.socket) -> None:
        """Be woken no more by this one; the others stay as they are."""
        if self._watched.pop(listening, None) is not None:
            self._loop.remove_reader(listening.fileno())
        self._give_up_second_place(listening)

    def accepted(self, listening: socket.socket) -> None:
        """This worker has accepted a client: it goes to the end of the line."""
        if self._loop.time() >= self._look_again:
            self._look()
        if not self._alone:
            self._register(listening if self._turn is None else self._turn)
            self._take_second_place(listening)

    def descriptors(self) -> list[int]:
        """What is open here."""
        epolls = [] if self._epoll is None else [self._epoll.fileno()]
        return epolls + [second.fileno() for second in self._second.values()]

    def tick(self) -> None:
        """Once a second: look whether a client waits for whom another worker was woken that has not come since."""
        self._look()
        for listening, readable in list(self._watched.items()):
            readable(listening)

    def _settle(self, place: socket.socket, tries: int) -> None:
        """Replace the loop's registration, which it may make only when it waits next."""
        waits = place in self._watched or place in self._second.values()
        if waits and not self._register(place) and tries:
            self._loop.call_soon(self._settle, place, tries - 1)

    def _register(self, place: socket.socket) -> bool:
        """Go to the end of the line; False if the loop has not registered the socket yet."""
        if self._epoll is None or place.fileno() < 0:
            return True
        try:
            self._epoll.unregister(place)
        except FileNotFoundError:
            return False
        try:
            self._epoll.register(place, IN_LINE)
        except OSError as error:  # an old kernel, or something that only looks like one
            log.debug("the workers cannot take turns at accepting clients: %s", error, extra=about("wake_order_failed"))
            self._epoll.register(place, select.EPOLLIN)
            self._epoll = None
        return True

    def _look(self) -> None:
        """See who else accepts, and how many connections there are."""
        self._look_again = self._loop.time() + LOOK_AGAIN
        others, own = self._others.accepting(), self._own[Cell.CONNECTIONS]
        self._alone = not others
        self._fewer = own < (sum(others) + own) / (len(others) + 1) * 3 / 4 - NOTICEABLE
        if not self._fewer:
            for listening in list(self._second):
                self._give_up_second_place(listening)

    def _take_second_place(self, listening: socket.socket) -> None:
        """Stand in the line twice, if this worker holds fewer connections than the others."""
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
        """A client waits, and it is the second place's turn."""
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
    """The epoll descriptors of this process (proc_pid_fd(5)); none where that cannot be seen."""
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
