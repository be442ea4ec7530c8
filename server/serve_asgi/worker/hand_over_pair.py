"""One end of the pair of sockets over which two workers hand over connections.

The other worker is not trusted: its packets are decoded by `serve_asgi.ipc.packets`, and if it breaks the protocol the
pair is closed, and nothing else.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import socket
from collections.abc import Callable

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.channel import Channel, TruncatedDescriptors, close_descriptors
from serve_asgi.ipc.channel import Packet as Plain
from serve_asgi.ipc.packets import Packet
from serve_asgi.ipc.untrusted_input import Packets
from serve_asgi.logs.server_log import about

log = logging.getLogger("serve")


class PairEnd:
    """One end of a pair on the loop: packets in by callback, packets out in order, even when the kernel's buffer is
    full."""

    __slots__ = ("_loop", "_outgoing", "_taken", "_takes", "_writing", "broken", "channel", "number")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        number: int,
        descriptor: int,
        takes: Packets[Packet],
        descriptors: int,
        taken: Callable[[PairEnd, Packet | None, list[int]], None],
    ) -> None:
        """`taken` gets each packet, and None at the end; the pair owns `descriptor`.

        The other end may send the packets in `takes`, with so many `descriptors`. If `taken` raises, the pair is
        closed, too.
        """
        self._takes = takes
        self.broken = False
        self.number = number
        self.channel = Channel(socket.socket(fileno=descriptor), descriptors)
        self._loop = loop
        self._taken = taken
        self._outgoing: collections.deque[tuple[Plain, Callable[[], None] | None]] = collections.deque()
        self._writing = False
        loop.add_reader(descriptor, self._readable)

    @property
    def open(self) -> bool:
        return self.channel.fileno() >= 0

    def _readable(self) -> None:
        while self.open:
            try:
                received = self.channel.try_receive_data()
            except TruncatedDescriptors as error:
                received = error.data, []
            except (EOFError, OSError):
                self._taken(self, None, [])
                return
            except ChannelError as error:
                self._break(error, [])
                return
            if received is None:
                return
            data, descriptors = received
            try:
                if (packet := self._takes.decode(data)) is None:
                    close_descriptors(descriptors)
                else:
                    self._taken(self, packet, descriptors)
            except Exception as error:
                self._break(error, descriptors)
                return

    def _break(self, error: Exception, descriptors: list[int]) -> None:
        """The other worker has broken the protocol: close the pair, and nothing else."""
        close_descriptors(descriptors)
        unforeseen = None if isinstance(error, ChannelError) else error
        text = "another worker violated the hand-over protocol, and their pair is closed: %s"
        log.error(text, error, exc_info=unforeseen, extra=about("handover_broken", reason=str(error)))
        self.broken = True
        self._taken(self, None, [])

    def offer(self, packet: Plain, descriptors: list[int]) -> bool:
        """Send a packet with descriptors now; return False if the kernel has no room or the other end is gone."""
        if not self.open or self._outgoing:
            return False
        try:
            return self.channel.try_send(packet, descriptors)
        except OSError:
            return False

    def say(self, packet: Plain, sent: Callable[[], None] | None = None) -> None:
        """Send a packet, now or as soon as there is room, in order; `sent` is called once the kernel has it.

        If the other end is gone it is never called, and `taken` gets None.
        """
        self._outgoing.append((packet, sent))
        if not self._writing:
            self._write()

    def _write(self) -> None:
        try:
            while self._outgoing and self.open and self.channel.try_send(self._outgoing[0][0]):
                _, sent = self._outgoing.popleft()
                if sent is not None:
                    sent()
        except OSError:
            self._outgoing.clear()
        if self.open and bool(self._outgoing) != self._writing:
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(self.channel.fileno(), self._write)
            else:
                self._loop.remove_writer(self.channel.fileno())

    def close(self) -> None:
        if self.open:
            self._loop.remove_reader(self.channel.fileno())
            if self._writing:
                self._loop.remove_writer(self.channel.fileno())
            self.channel.close()
