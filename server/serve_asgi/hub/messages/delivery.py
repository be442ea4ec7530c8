"""When messages are delivered: how much each process may have in flight, and the account of what it has.

It owns a delivery from the moment in which the message leaves its queue until the process has handled or returned it.
What comes of it then `serve_asgi.hub.messages.routing` decides.
"""

from __future__ import annotations

from serve_asgi.hub.core import Hub
from serve_asgi.hub.messages.consumers import IN_FLIGHT_BYTES, Consumer, Consumers, MemberState, SharedQueue
from serve_asgi.hub.messages.queues import DELIVERY_OVERHEAD, Delivery, MessageStage
from serve_asgi.ipc.member_frames import MemberPhase
from serve_asgi.ipc.message_frames import AckMode, FrameBatcher, MessageKind


class Dispatcher:
    """The deliveries of one hub."""

    def __init__(self, hub: Hub, there: Consumers, out: FrameBatcher, counts: dict[str, int]) -> None:
        self._hub = hub
        self._there = there
        self._out = out
        self._counts = counts
        self.deliveries = 0
        self.retiring: dict[int, set[int]] = {}
        """Members that retire and may give back what is for their slot, by slot; what follows waits for that."""

    def pump(self, owner: Consumer | SharedQueue) -> None:
        """Give what waits with `owner`, as far as it may be given."""
        if isinstance(owner, Consumer):
            self.pump_desk(owner)
        elif isinstance(owner.key, str):
            self.pump_pool(owner)

    def pump_desk(self, desk: Consumer) -> None:
        """Give what waits for one process, as far as it may have it."""
        placed = desk.lane.placed
        if not desk.concurrency:
            return
        while placed:
            send = placed[0].send
            if send.want is AckMode.REPLY and send.stage is MessageStage.SETTLED:
                desk.lane.take()  # its caller has gone
                continue
            phase = desk.place.member.phase
            if phase is MemberPhase.EXPECTED:
                return
            if send.kind is MessageKind.DIRECT and (
                phase is not MemberPhase.SERVING or desk.place.slot in self.retiring
            ):
                return
            if send.want is AckMode.REPLY and desk.held >= desk.concurrency:
                return  # in flight it would be begun even if the caller had gone
            if not desk.window_open or not self._hub.port.room(desk.place.member.id):
                return
            self._give(desk, desk.lane.take())

    def pump_pool(self, pool: SharedQueue) -> None:
        """Give work to workers that have a hand free."""
        assert isinstance(pool.key, str)
        placed = pool.lane.placed
        while placed:
            send = placed[0].send
            if send.want is AckMode.REPLY and send.stage is MessageStage.SETTLED:
                pool.lane.take()
                continue
            desk = self._there.free_desk(pool.key)
            if desk is None:
                return
            self._give(desk, pool.lane.take())
        if not pool.lane:
            self._there.forget(pool)

    def pump_topic(self, desk: Consumer) -> None:
        """A process has a hand free: give it what waits for it, or else work of the topic."""
        if desk.place.was_full and desk.place.bytes < IN_FLIGHT_BYTES // 2:
            desk.place.was_full = False
            self.pump_place(desk.place)
        self.pump_desk(desk)
        if (pool := self._there.pools.get(desk.topic)) is not None:
            self.pump_pool(pool)
        desk.place.tidy(desk)

    def pump_place(self, place: MemberState) -> None:
        """The process may get more than before."""
        for desk in list(place.desks.values()):
            self.pump_topic(desk)

    def _give(self, desk: Consumer, copy: Delivery) -> None:
        send = copy.send
        copy.attempt += 1
        self.deliveries += 1
        self._counts["given"] += 1
        self._into_hands(desk, self.deliveries, copy)
        entry = [self.deliveries, desk.topic, send.id, copy.attempt, int(send.kind), int(send.want), send.origin]
        self._out.deliver(desk.place.member.id, [*entry, send.subject], send.body)
        if desk.rest:
            self.rests(desk, desk.rest - 1)

    def _into_hands(self, desk: Consumer, delivery: int, copy: Delivery) -> None:
        desk.place.held[delivery] = (desk, copy)
        desk.held += 1
        size = len(copy.send.body)
        desk.bytes += size
        desk.place.bytes += size + DELIVERY_OVERHEAD

    def out_of_hands(self, place: MemberState, delivery: int) -> tuple[Consumer, Delivery]:
        """The process has it no more. Raises KeyError if it never had."""
        desk, copy = place.held.pop(delivery)
        desk.held -= 1
        size = len(copy.send.body)
        desk.bytes -= size
        place.bytes -= size + DELIVERY_OVERHEAD
        return desk, copy

    # A process that retires

    def retires(self, place: MemberState) -> None:
        """What it has in flight for its slot it may give back: what follows has to wait for that."""
        if any(copy.send.kind is MessageKind.DIRECT for _, copy in place.held.values()):
            self.retiring.setdefault(place.slot, set()).add(place.member.id)

    def count_rest(self, place: MemberState) -> None:
        """What waits for a process that retires now it gets, if it was ever up, and waits for."""
        for desk in place.desks.values():
            desk.rest = len(desk.lane.placed) if place.member.up else 0
        self._look_if_last(place)

    def rests(self, desk: Consumer, count: int) -> None:
        """Of what had its place before the process began to retire, so many wait here still."""
        desk.rest = count
        self._look_if_last(desk.place)

    def _look_if_last(self, place: MemberState) -> None:
        if not any(desk.rest for desk in place.desks.values()):
            place.last = self.deliveries
            self._out.last(place.member.id)

    def gave_back(self, place: MemberState) -> None:
        """A process that retires has given back all that it had not begun: its successor may get what follows."""
        slot = place.slot
        self.retiring.get(slot, set()).discard(place.member.id)
        if not self.retiring.get(slot):
            self.retiring.pop(slot, None)
            for other in self._there.places.values():
                if other.is_for(slot):
                    self.pump_place(other)

    # A new program of the listener

    def hold(self, place: MemberState, topic: str, delivery: int, copy: Delivery) -> None:
        """The process has had this in flight from before."""
        self._into_hands(place.desk(topic, self._there.budget), delivery, copy)
