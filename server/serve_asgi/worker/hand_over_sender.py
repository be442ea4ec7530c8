"""The sender's side of the hand-over: passes idle client connections to serving workers, with offer, take and commit.

Both sides (the other is `serve_asgi.worker.hand_over_receiver`) run in the worker's loop over SEQPACKET pairs created
by the listener; connections travel by SCM_RIGHTS. The rules (docs/how-it-works/design.md, "The hand-over"): the sender
has stopped reading; the receiver reads nothing before commit; the sender keeps its copy until commit is sent. Before
that it may withdraw: it tells the listener first, then closes the pair, and only then reads again. A receiver that
finds a pair closed with uncommitted offers asks the listener, which knows whether the sender withdrew or died. So a
connection never has two readers.

The other worker is not trusted: its packets are decoded by `serve_asgi.ipc.packets`, and if it breaks these rules the
pair is closed, and nothing else.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import math
import os
import time
from collections.abc import Callable
from typing import Final, Protocol

from serve_asgi.errors import ChannelError
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.ipc import packets
from serve_asgi.ipc.packets import Packet
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.server_log import about
from serve_asgi.worker.hand_over_pair import PairEnd

MAX_IN_FLIGHT: Final = 64
"""Unanswered offers at one time: an unprivileged user with RLIMIT_NOFILE 1024 gets ETOOMANYREFS after 1,040."""
TAKE_TIMEOUT: Final = 0.5
"""Seconds for a receiver to take or refuse an offer; then the pair is withdrawn and others are tried."""
LONG_LEFTOVER: Final = 64 * 1024
"""Bytes of leftover from which on a memfd is used, since one SEQPACKET message holds at most 212,960 bytes."""
STALE_HEARTBEAT: Final = 2.5
"""Seconds after which a receiver that has not ticked (once a second) is offered nothing: its loop is blocked."""
AGAIN: Final = 0.5
"""Seconds until connections that nobody could take are tried again; they are served here meanwhile."""
RETRY: Final = 0.05
"""Seconds until an offer that the kernel had no room for is retried, if no reply comes before."""

log = logging.getLogger("serve")


class MovableConnection(Protocol):
    """A connection that can be handed over."""

    def can_leave(self) -> bool: ...
    def leave(self) -> tuple[int, HandOverRecord]: ...
    def stay(self) -> None: ...
    def refused_for_good(self) -> None: ...
    def remain(self) -> None: ...
    def gone(self) -> None: ...


class ReceivingWorker:
    """The sender's view of a worker that takes connections."""

    __slots__ = ("cells", "full", "not_understood", "offers", "pair", "taken")

    def __init__(self, pair: PairEnd, cells: memoryview) -> None:
        self.pair = pair
        self.cells = cells
        self.offers: dict[int, tuple[MovableConnection, float]] = {}
        self.taken: set[int] = set()  # of these: the commit is being sent
        self.full = False  # it has refused; it is tried again only if there is nobody else
        self.not_understood: set[MovableConnection] = set()  # with these it cannot go on: never offered to it again

    def load(self) -> int:
        return self.cells[Cell.CONNECTIONS] + len(self.offers)

    def ticking(self, now: float) -> bool:
        return now - self.cells[Cell.HEARTBEAT] / 1e9 < STALE_HEARTBEAT


class HandOverSender:
    """The sender's side. `hand_over` takes an idle connection; one that nobody can take now stays and is served
    here."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        cells: memoryview,
        withdraw: Callable[[int], bool],
        again: Callable[[], None],
    ) -> None:
        """`withdraw(pair)` tells the listener, and returns False if that is not possible now.

        `again` has all idle connections handed over once more, after some had to stay.
        """
        self._loop = loop
        self._cells = cells
        self._withdraw = withdraw
        self._again = again
        self._again_at = math.inf
        self._receivers: list[ReceivingWorker] = []
        self._queue: collections.deque[MovableConnection] = collections.deque()
        self._next_offer = 1
        self._timer: asyncio.TimerHandle | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    def add_receiver(self, number: int, descriptor: int, cells: memoryview) -> None:
        """The listener has connected a receiver over the pair `number`."""
        self._receivers.append(
            ReceivingWorker(PairEnd(self._loop, number, descriptor, packets.FROM_RECEIVER, 0, self._answered), cells)
        )
        self._pump()

    def has_receivers(self) -> bool:
        """Whether there are receivers."""
        return bool(self._receivers)

    def received(self) -> int:
        """The connections that the receivers have, and have been offered."""
        return sum(receiver.load() for receiver in self._receivers)

    def served(self) -> int:
        """The requests that the receivers have answered."""
        return sum(receiver.cells[Cell.REQUESTS] for receiver in self._receivers)

    def can_go(self) -> bool:
        """Whether a receiver would take a connection now."""
        return self._choose() is not None

    def hand_over(self, connection: MovableConnection) -> None:
        """Hand over an idle connection as soon as possible."""
        self._queue.append(connection)
        self._pump()

    def give_up(self) -> None:
        """Withdraw from all receivers, because they leave as well; every connection comes back.

        If the listener cannot be told now, the connections may not be read: the withdrawal follows when it can.
        """
        for receiver in list(self._receivers):
            if not receiver.offers or self._withdraw(receiver.pair.number):
                self._drop(receiver)

    def close(self) -> None:
        """Close all pairs; nothing is in flight any more, or the process is exiting."""
        for receiver in self._receivers:
            receiver.pair.close()
        self._receivers = []
        self._again_at = math.inf
        if self._timer is not None:
            self._timer.cancel()

    def descriptors(self) -> list[int]:
        """The open descriptors."""
        return [receiver.pair.channel.fileno() for receiver in self._receivers]

    def _in_flight(self) -> int:
        return sum(len(receiver.offers) for receiver in self._receivers)

    def _pump(self) -> None:
        """Make offers, as far as the kernel and the receivers allow."""
        while self._queue and self._in_flight() < MAX_IN_FLIGHT:
            connection = self._queue.popleft()
            if not connection.can_leave():
                continue  # a request arrived or the client left before its turn; it will call again
            receiver = self._choose(connection)
            if receiver is None:
                self._keep(connection)
            elif not self._offer(receiver, connection):
                self._queue.appendleft(connection)
                self._wake_at(self._loop.time() + RETRY)
                break
        if self._queue or self._in_flight():
            self.idle.clear()
        else:
            self.idle.set()

    def _choose(self, connection: MovableConnection | None = None) -> ReceivingWorker | None:
        """The least loaded receiver that has not refused, or not this connection, and whose loop runs."""
        now = time.monotonic()
        return min(
            (
                each
                for each in self._receivers
                if each.pair.open and not each.full and connection not in each.not_understood and each.ticking(now)
            ),
            key=ReceivingWorker.load,
            default=None,
        )

    def _keep(self, connection: MovableConnection) -> None:
        """Nobody can take it now: serve it here, and try again a little later if there are receivers that may."""
        receivers = [each for each in self._receivers if each.pair.open]
        refused = bool(receivers) and all(connection in each.not_understood for each in receivers)
        if refused:  # by one generation, with one configuration: nor will those that are still to be connected
            connection.refused_for_good()
        connection.remain()
        if receivers and not refused and self._again_at == math.inf:
            self._again_at = self._loop.time() + AGAIN
            self._wake_at(self._again_at)

    def _offer(self, receiver: ReceivingWorker, connection: MovableConnection) -> bool:
        try:
            descriptor, record = connection.leave()
        except OSError:  # no descriptor left for the duplicate: try later
            return False
        descriptors = [descriptor]
        values = record.to_json()
        offer = self._next_offer
        self._next_offer += 1
        try:
            if len(record.leftover) > LONG_LEFTOVER:
                values["leftover"] = ""
                descriptors.append(_in_memory(record.leftover))
            sent = receiver.pair.offer({"type": "offer", "offer": offer, "record": values}, descriptors)
        except OSError:  # likewise for the memfd
            sent = False
        finally:
            for each in descriptors:
                os.close(each)
        if not sent:
            connection.stay()
            return False
        now = self._loop.time()
        receiver.offers[offer] = (connection, now)
        self._wake_at(now + TAKE_TIMEOUT)
        return True

    def _answered(self, pair: PairEnd, packet: Packet | None, descriptors: list[int]) -> None:
        receiver = next((each for each in self._receivers if each.pair is pair), None)
        if receiver is None:
            return
        if packet is None:
            self._drop(receiver)
            return
        match packet:
            case packets.Take(offer) if offer in receiver.offers and offer not in receiver.taken:
                receiver.taken.add(offer)
                pair.say({"type": "commit", "offer": offer}, lambda: self._committed(receiver, offer))
            case packets.Refuse(offer, not_understood) if offer in receiver.offers and offer not in receiver.taken:
                connection, _ = receiver.offers.pop(offer)
                if not_understood:
                    receiver.not_understood.add(connection)
                else:
                    receiver.full = True
                self._come_back(connection)
            case packets.Take(offer) | packets.Refuse(offer):
                raise ChannelError(f"a reply to offer {offer}, which it has not got, or has replied to")
        self._pump()

    def _committed(self, receiver: ReceivingWorker, offer: int) -> None:
        """The kernel has the commit: the receiver will read it even if we die now, so close our copy."""
        connection, _ = receiver.offers.pop(offer)
        receiver.taken.discard(offer)
        connection.gone()
        self._cells[Cell.HANDED_OVER] += 1

    def _drop(self, receiver: ReceivingWorker) -> None:
        """The receiver is gone or withdrawn from: what it had not taken stays ours and is offered elsewhere."""
        self._receivers.remove(receiver)
        receiver.pair.close()
        offers = list(receiver.offers.values())
        receiver.offers.clear()
        receiver.taken.clear()
        for connection, _ in offers:
            self._come_back(connection)
        self._pump()

    def _come_back(self, connection: MovableConnection) -> None:
        """An offer failed: offer the connection to another receiver, or keep it if there is none."""
        connection.stay()
        self._queue.append(connection)

    def _wake_at(self, when: float) -> None:
        if self._timer is None or self._timer.cancelled() or self._timer.when() > when:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(when, self._woken)

    def _woken(self) -> None:
        self._timer = None
        now = self._loop.time()
        for receiver in list(self._receivers):
            if any(now - since >= TAKE_TIMEOUT for _, since in receiver.offers.values()):
                count = len(receiver.offers)
                if not self._withdraw(receiver.pair.number):
                    self._wake_at(now + RETRY)
                    break
                log.warning(
                    "a worker did not take %d connections within %g s; withdrawn",
                    count,
                    TAKE_TIMEOUT,
                    extra=about("handover_withdrawn", connections=count),
                )
                self._drop(receiver)
        if now >= self._again_at:
            self._again_at = math.inf
            for receiver in self._receivers:
                receiver.full = False
            self._again()
        oldest = min((since for r in self._receivers for _, since in r.offers.values()), default=math.inf)
        if (wake := min(oldest + TAKE_TIMEOUT, self._again_at)) < math.inf:
            self._wake_at(max(wake, now + RETRY))
        self._pump()


def _in_memory(data: bytes) -> int:
    """A memfd (memfd_create(2)) that holds `data`; the caller owns it."""
    descriptor = os.memfd_create("serve-leftover", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as memory:
        memory.write(data)
    return descriptor
