"""The channel: packets and descriptors between the listener and one child, or between two workers.

It owns one end of a SOCK_SEQPACKET pair and is the only place that knows SCM_RIGHTS. SEQPACKET keeps a message and its
descriptors together and has an end: an empty receive means that the other end is closed. Received descriptors belong to
the caller of `receive`; sent ones stay the sender's, who may close them once `send` has returned. Waiting uses anyio,
so that a channel works on any loop; nothing here waits for more than one message.

The listener's end of a channel accepts no descriptors (`refuse_descriptors`) and returns packets undecoded, for
`serve_asgi.ipc.packets`: a child is not trusted. A child trusts the listener's packets.
"""

from __future__ import annotations

import array
import collections
import contextlib
import errno
import json
import os
import select
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

import anyio

from serve_asgi.errors import ChannelError

PROTOCOL: Final = (0, 1)
"""Version of the packets: the release's minor version. The first packet of a channel carries it."""
PROTOCOL_REACH: Final = 2
"""How many minor versions apart a listener and a worker may be (law 11)."""

MAX_PACKET: Final = 200_000
"""Bytes in one packet; the kernel's default socket buffer admits 212,960 (socket(7), wmem_default)."""
PAUSE: Final = 0.01
"""Seconds until the next attempt where the kernel has no event for it."""
MAX_DESCRIPTORS: Final = 253
"""Descriptors in one message (unix(7), SCM_MAX_FD)."""

SO_PASSRIGHTS: Final = 83
"""Socket option: whether a peer may send descriptors (Linux 6.16, include/uapi/asm-generic/socket.h)."""

_ROOM_WILL_COME: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS})

Packet = dict[str, Any]
"""A JSON object; its `type` says what it is. Unknown members are ignored, so that minor versions can add some."""


def speaks(version: object) -> bool:
    """Whether a peer with this protocol version is compatible."""
    match version:
        case [int(major), int(minor)]:
            return major == PROTOCOL[0] and abs(minor - PROTOCOL[1]) <= PROTOCOL_REACH
    return False


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected SOCK_SEQPACKET sockets, neither of them inheritable."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def close_descriptors(descriptors: Iterable[int]) -> None:
    """Close received descriptors that are not wanted."""
    for descriptor in descriptors:
        os.close(descriptor)


def refuse_descriptors(end: socket.socket) -> None:
    """Make the kernel reject descriptors from the peer, since closing one may block (SO_LINGER, socket(7)).

    Older kernels cannot: there they are closed because the receiver has no room for them.
    """
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)


def hung_up(end: socket.socket) -> bool:
    """Whether nothing more can come: an empty packet reads like the end."""
    poll = select.poll()
    poll.register(end, select.POLLRDHUP)
    return any(found & (select.POLLRDHUP | select.POLLHUP | select.POLLERR) for _, found in poll.poll(0))


class TruncatedDescriptors(ChannelError):
    """A packet arrived without its descriptors: this process has too many open files (EMFILE sets MSG_CTRUNC)."""

    def __init__(self, data: bytes) -> None:
        super().__init__("a packet arrived without its descriptors; raise the open-files limit (ulimit -Hn)")
        self.data = data

    @property
    def packet(self) -> Packet:
        """The packet itself, from a trusted peer."""
        packet: Packet = json.loads(self.data)
        return packet


class Channel:
    """One end of a channel. `receive` and `send` may be awaited by one task each at a time."""

    __slots__ = ("_room", "_socket")

    def __init__(self, end: socket.socket, descriptors: int = MAX_DESCRIPTORS) -> None:
        """Take over the socket `end`; `close` closes it. Up to `descriptors` may come with a packet."""
        end.setblocking(False)
        self._room = socket.CMSG_SPACE(descriptors * 4) if descriptors else 0
        if not descriptors:
            refuse_descriptors(end)
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def try_send(self, packet: Packet, descriptors: Sequence[int] = ()) -> bool:
        """Send at once; return False if the other end's queue is full (EAGAIN) or too many descriptors are in flight
        (ETOOMANYREFS).

        Raises BrokenPipeError or ConnectionResetError if the other end is gone, ChannelError if the packet is too
        large.
        """
        data = json.dumps(packet, separators=(",", ":")).encode()
        if len(data) > MAX_PACKET or len(descriptors) > MAX_DESCRIPTORS:
            raise ChannelError(f"a packet {packet['type']!r} of {len(data)} bytes is too large for a channel")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _ROOM_WILL_COME:
                return False
            raise
        return True

    async def send(self, packet: Packet, descriptors: Sequence[int] = ()) -> None:
        """Send, waiting for room; the caller sets the deadline. Raises as `try_send`."""
        while not self.try_send(packet, descriptors):
            await anyio.wait_writable(self._socket)
            if self.try_send(packet, descriptors):
                return
            await anyio.sleep(PAUSE)  # writable, and yet no room: ETOOMANYREFS, for which there is no event

    def try_receive(self) -> tuple[Packet, list[int]] | None:
        """The next packet and its descriptors, or None if there is none yet.

        For a trusted peer. Raises EOFError at the end of the channel and ChannelError for an invalid packet.
        """
        received = self.try_receive_data()
        if received is None:
            return None
        data, descriptors = received
        try:
            packet: Packet = json.loads(data)
            packet["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            close_descriptors(descriptors)
            raise ChannelError("a packet arrived that is not of this protocol") from None
        return packet, descriptors

    def try_receive_data(self) -> tuple[bytes, list[int]] | None:
        """The same, undecoded, for `serve_asgi.ipc.packets`.

        Raises EOFError at the end of the channel, and ChannelError for a packet of invalid size or with too many
        descriptors, all of which are closed.
        """
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(MAX_PACKET + 1, self._room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # The other end was closed with unread packets. The kernel reports that once, before what that end has sent.
            return self.try_receive_data()
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        if flags & socket.MSG_TRUNC:
            close_descriptors(descriptors)
            raise ChannelError("a packet arrived that is longer than this protocol allows")
        if not data and not flags & socket.MSG_CTRUNC:
            if not hung_up(self._socket):
                raise ChannelError("an empty packet")
            raise EOFError
        if flags & socket.MSG_CTRUNC:
            close_descriptors(descriptors)
            if not self._room:
                raise ChannelError("a packet with descriptors, which are not accepted")
            raise TruncatedDescriptors(data)
        return data, descriptors.tolist()

    async def receive(self) -> tuple[Packet, list[int]]:
        """Wait for the next packet. Raises as `try_receive`."""
        while (received := self.try_receive()) is None:
            await anyio.wait_readable(self._socket)
        return received

    async def receive_data(self) -> tuple[bytes, list[int]]:
        """Wait for the next packet, undecoded. Raises as `try_receive_data`."""
        while (received := self.try_receive_data()) is None:
            await anyio.wait_readable(self._socket)
        return received

    def detach(self) -> None:
        """Leave this end open until the process exits."""
        self._socket.detach()

    def close(self) -> None:
        """Close this end; the other one reads the end, and a task that waits here gets ClosedResourceError."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(RuntimeError):  # sniffio, if installed, finds no loop in a callback
                anyio.notify_closing(self._socket)
            self._socket.close()


class SendQueue:
    """Packets to be sent over a channel, in order, by a task, so that no caller has to wait."""

    __slots__ = ("_channel", "_closed", "_empty", "_news", "_packets")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._packets: collections.deque[tuple[Packet, Sequence[int], Sequence[int]]] = collections.deque()
        self._news = anyio.Event()
        self._empty = anyio.Event()
        self._closed = False

    def put(self, packet: Packet, lent: Sequence[int] = (), given: Sequence[int] = ()) -> None:
        """Queue a packet with descriptors: `lent` ones stay the caller's, `given` ones are closed once sent."""
        if self._closed:
            close_descriptors(given)
            return
        if self._try_now(packet, lent, given):
            return
        self._packets.append((packet, lent, given))
        self._news.set()

    def _try_now(self, packet: Packet, lent: Sequence[int], given: Sequence[int]) -> bool:
        """Send at once if the queue is empty, so that few descriptors are held at a time."""
        try:
            sent = not self._packets and self._channel.try_send(packet, [*lent, *given])
        except (OSError, ChannelError):
            return False  # `run` meets the same error and handles it
        if sent:
            close_descriptors(given)
        return sent

    def __len__(self) -> int:
        """How many packets are queued."""
        return len(self._packets)

    def try_send_now(self, packet: Packet) -> bool:
        """Send a packet now; return False if it would have to wait. Raises as `Channel.try_send`."""
        return not self._packets and self._channel.try_send(packet)

    def to_state(self, descriptors: list[int]) -> list[tuple[Packet, list[int], list[int]]]:
        """What has not been sent, for a program that replaces this one; adds the descriptors to `descriptors`."""
        waiting = [(packet, list(lent), list(given)) for packet, lent, given in self._packets]
        descriptors += [descriptor for _, _, given in waiting for descriptor in given]
        return waiting

    async def run(self) -> None:
        """Send what is queued, until it is closed or the other end is gone, which the reader notices."""
        try:
            while not self._closed:
                await self._news.wait()
                self._news = anyio.Event()
                while self._packets:
                    packet, lent, given = self._packets[0]
                    await self._channel.send(packet, [*lent, *given])
                    self._packets.popleft()
                    close_descriptors(given)
                self._empty.set()
                self._empty = anyio.Event()
        except (OSError, anyio.ClosedResourceError):  # EBADF: this end was closed just when there was room
            self.close()

    async def flushed(self) -> None:
        """Wait until all has been sent; the caller sets the deadline."""
        if self._packets:
            await self._empty.wait()

    def close(self) -> None:
        """Drop what has not been sent, close its `given` descriptors, and end `run`."""
        self._closed = True
        self._news.set()
        for _, _, given in self._packets:
            close_descriptors(given)
        self._packets.clear()
        self._empty.set()
