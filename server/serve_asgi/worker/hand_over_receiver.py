"""The receiver's side of the hand-over: takes the connections that a retiring worker offers.

The rules are in `serve_asgi.worker.hand_over_sender`. An offered connection is held and not read before commit. If the
pair ends before that, the listener is asked, which knows whether the sender withdrew or died. Descriptors are checked
to be connections, whatever the other worker claims.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from typing import Final

from serve_asgi.errors import ChannelError
from serve_asgi.http.hand_over_record import MOST_LEFTOVER, HandOverRecord
from serve_asgi.ipc import packets
from serve_asgi.ipc.packets import Packet
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.worker.hand_over_pair import PairEnd
from serve_asgi.worker.hand_over_sender import MAX_IN_FLIGHT

MOST_HELD: Final = 4 * MAX_IN_FLIGHT
"""Most offers of one sender that a receiver holds: a correct sender makes `MAX_IN_FLIGHT`."""


class HandOverReceiver:
    """The receiver's side. `arrived` gets each committed connection's socket and record."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        cells: memoryview,
        orphaned: Callable[[int], None],
        arrived: Callable[[socket.socket, HandOverRecord], None],
        has_room: Callable[[int], bool] = lambda _: True,
        understands: Callable[[HandOverRecord], bool] = lambda _: True,
    ) -> None:
        """`orphaned(pair)` asks the listener for a verdict on a pair that ended with uncommitted offers.

        A descriptor for which `has_room` returns False is refused, and so is a connection with which this worker could
        not go on (`understands`).
        """
        self._loop = loop
        self._cells = cells
        self._orphaned = orphaned
        self._arrived = arrived
        self._has_room = has_room
        self._understands = understands
        self._held: dict[int, dict[int, tuple[list[int], HandOverRecord]]] = {}
        self._pairs: dict[int, PairEnd] = {}
        self.refusing = False
        self._alone = False
        self.idle = asyncio.Event()
        self.idle.set()

    def add_sender(self, number: int, descriptor: int) -> None:
        """The listener has connected a sender over the pair `number`."""
        self._held[number] = {}
        self._pairs[number] = PairEnd(self._loop, number, descriptor, packets.FROM_SENDER, 2, self._offered)

    def refuse(self) -> None:
        """Refuse further offers; `idle` still waits for those that have been taken."""
        self.refusing = True

    def accept(self) -> None:
        """Take offers again, after the worker has stood by."""
        self.refusing = False

    def verdict(self, number: int, keep: bool) -> None:
        """Keep or drop the uncommitted offers of a pair, as the listener says."""
        for descriptors, record in self._held.pop(number, {}).values():
            if keep:
                self._attach(descriptors, record)
            else:
                _close(descriptors)
        self._note_idle()

    def expect_no_verdict(self) -> None:
        """The listener is dead: uncommitted offers stay their senders', since nobody can confirm that those are
        dead."""
        self._alone = True
        for number in [number for number in self._held if number not in self._pairs]:
            self.verdict(number, keep=False)

    def close(self) -> None:
        """Close all pairs and what is held."""
        for pair in self._pairs.values():
            pair.close()
        for held in self._held.values():
            for descriptors, _ in held.values():
                _close(descriptors)
        self._pairs.clear()
        self._held.clear()
        self.idle.set()

    def descriptors(self) -> list[int]:
        """The open descriptors: the pairs, and offered connections."""
        held = [each for offers in self._held.values() for descriptors, _ in offers.values() for each in descriptors]
        return held + [pair.channel.fileno() for pair in self._pairs.values()]

    def _offered(self, pair: PairEnd, packet: Packet | None, descriptors: list[int]) -> None:
        held = self._held[pair.number]
        match packet:
            case None:
                self._ended(pair)
            case packets.Offer(offer, record):
                if offer in held or len(held) >= MOST_HELD:
                    raise ChannelError(f"offer {offer} twice, or more than {MOST_HELD} offers")
                found = HandOverRecord.from_json(packets.members(record))
                takes = not self.refusing and descriptors and self._has_room(descriptors[0])
                if not takes or not self._understands(found):
                    _close(descriptors)
                    pair.say({"type": "refuse", "offer": offer, "not_understood": bool(takes)})
                    return
                _check(descriptors)
                held[offer] = (descriptors, found)
                self.idle.clear()
                pair.say({"type": "take", "offer": offer})
            case packets.Commit(offer) if offer in held:
                _close(descriptors)
                self._attach(*held.pop(offer))
                self._note_idle()
            case _:
                _close(descriptors)

    def _ended(self, pair: PairEnd) -> None:
        pair.close()
        del self._pairs[pair.number]
        if self._alone or pair.broken:
            self.verdict(pair.number, keep=False)
        elif self._held[pair.number]:
            self._orphaned(pair.number)
        else:
            del self._held[pair.number]

    def _attach(self, descriptors: list[int], record: HandOverRecord) -> None:
        if len(descriptors) > 1:
            record = record.with_leftover(_from_memory(descriptors[1]))
        client = socket.socket(fileno=descriptors[0])
        client.setblocking(False)
        self._cells[Cell.TAKEN_OVER] += 1
        self._arrived(client, record)

    def _note_idle(self) -> None:
        if not any(self._held.values()):
            self.idle.set()


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _check(descriptors: list[int]) -> None:
    """Raise ChannelError for anything but a connection and, perhaps, its leftover.

    A memfd is recognised by its seals (F_GET_SEALS, fcntl(2)): reading one never waits.
    """
    try:
        first = os.fstat(descriptors[0])
        if not stat.S_ISSOCK(first.st_mode):
            raise ChannelError("an offer of something that is not a socket")
        with socket.socket(fileno=os.dup(descriptors[0])) as found:
            stream = found.type == socket.SOCK_STREAM and found.family in _FAMILIES
            if not stream or found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ChannelError("an offer of a socket that is not a connection")
        if len(descriptors) > 1:
            fcntl.fcntl(descriptors[1], fcntl.F_GET_SEALS)
            if os.fstat(descriptors[1]).st_size > MOST_LEFTOVER:
                raise ChannelError("an offer with more leftover than any connection has")
    except OSError as error:
        raise ChannelError(f"an offer of something that is not a connection: {error}") from None


_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})


def _from_memory(descriptor: int) -> bytes:
    """The content of a memfd, which is then closed."""
    with open(descriptor, "rb") as memory:
        memory.seek(0)
        return memory.read(MOST_LEFTOVER)
