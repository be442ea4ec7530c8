"""Messages between the processes of a server: the frames, and what the hub's other events mean for them.

`serve_asgi.hub.messages.routing` decides; this component takes the frames apart (`serve_asgi.ipc.message_frames`),
passes on what becomes of the members, and flushes what was collected when an event has been dealt with. Payloads are
never looked into.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub, HubComponent, Member, State
from serve_asgi.hub.messages.consumers import MemberState, SharedQueue
from serve_asgi.hub.messages.queues import BoundedQueue, Delivery, MessageStage, QueuedMessage
from serve_asgi.hub.messages.routing import MessageRouter
from serve_asgi.ipc.frames import MAX_PAYLOAD, ValidatedFrame
from serve_asgi.ipc.member_frames import MemberPhase
from serve_asgi.ipc.message_frames import (
    DEAD_LETTER_TOPIC,
    MESSAGE_FRAMES,
    RESERVED,
    AckMode,
    MessageKind,
    split_bodies,
)

_TO_ALL: Final = (-1, 0)
MAX_TOPICS: Final = 2_000
"""Topics that one process may have desks for; `serve_asgi.app.receiving` lets it handle half of that."""


class MessageBroker(HubComponent):
    """The part of the hub that messages are."""

    name = "messages"
    kinds = MESSAGE_FRAMES
    store_kinds: ClassVar[frozenset[str]] = frozenset({"store.sent", "store.unsent", "store.message"})

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.routing = MessageRouter(hub)

    def figures(self) -> dict[str, float]:
        counts = self.routing.counts
        return {
            "messages_accepted_total": counts["accepted"],
            "messages_delivered_total": counts["given"],
            "messages_failed_total": counts["failed"],
            "messages_redelivered_total": counts["again"],
            "messages_dead_lettered_total": counts["dead"],
            "messages_lost_total": counts["lost"],
            "messages_waiting": self.routing.there.budget.copies,
        }

    def take(self, member: Member, frame: ValidatedFrame) -> None:
        routing, place, head = self.routing, self.routing.there.places[member.id], frame.head
        match frame.kind:
            case "msg.send":
                origin = [member.role.value, member.slot, member.generation]
                for each, body in split_bodies(head.m, frame.body):
                    id, topic = each.id, each.topic
                    if each.size > MAX_PAYLOAD or topic.startswith(RESERVED):
                        raise ChannelError(f"a message of {each.size} bytes of topic {topic!r}")
                    routing.offer(
                        QueuedMessage(id, member.id, origin, topic, body, each.kind, each.want, each.limit, each.slot)
                    )
            case "msg.done":
                for done, body in split_bodies(head.m, frame.body):
                    routing.done(place, done.delivery, done.ok, body)
            case "msg.return":
                for delivery in reversed(head.m):  # each is put before the others again
                    routing.back(place, delivery)
                if head.all:
                    routing.giving.gave_back(place)
            case "msg.topics":
                for topic, concurrency in head.topics.items():
                    if topic.startswith(RESERVED) and topic != DEAD_LETTER_TOPIC:
                        raise ChannelError(f"the topic {topic!r}, which is the server's own")
                    routing.handles(place, topic, concurrency)
                if len(place.desks) > MAX_TOPICS and place.handled() > MAX_TOPICS:
                    raise ChannelError(f"more than {MAX_TOPICS} topics")
            case "msg.withdraw":
                routing.withdraw(head.m, member.id)
        self._settle()

    def take_from_store(self, frame: ValidatedFrame) -> None:
        head = frame.head
        match frame.kind:
            case "store.sent":
                self.routing.senders.store_answered(head.id)
            case "store.unsent":
                self.routing.senders.store_answered(head.id, head.text)
            case "store.message":
                if head.topic.startswith(RESERVED):
                    raise ChannelError(f"a message of topic {head.topic!r}, which is the server's own")
                slot = _TO_ALL[head.workers]
                send = QueuedMessage(
                    "", 0, list(head.origin), head.topic, frame.body, MessageKind.BROADCAST, AckMode.ACCEPTED, 1, slot
                )
                send.id, send.stage = head.message, MessageStage.SETTLED
                self.routing.offer(send)
        self._settle()

    def joined(self, member: Member) -> None:
        self.routing.joined(member)
        self._settle()

    def changed(self, member: Member, before: MemberPhase) -> None:
        place = self.routing.there.places[member.id]
        if member.phase is MemberPhase.RETIRING:
            self.routing.retires(place)
        if before is MemberPhase.EXPECTED and member.up:
            self.routing.came_up(place)
        self.routing.giving.pump_place(place)
        self.routing.review()
        self._settle()

    def left(self, member: Member) -> None:
        self.routing.left(member)
        self._settle()

    def room(self, member: Member) -> None:
        self.routing.giving.pump_place(self.routing.there.places[member.id])
        self._settle()

    def deadline(self) -> float:
        return self.routing.deadline()

    def tick(self) -> None:
        self.routing.tick()
        self._settle()

    def _settle(self) -> None:
        self.routing.settle()
        self.routing.out.flush()

    # A new program of the listener

    def to_state(self) -> State:
        routing = self.routing
        sends: dict[int, QueuedMessage] = {}

        def copies(lane: BoundedQueue) -> list[Any]:
            for copy in (*lane.placed, *lane.offered):
                sends[id(copy.send)] = copy.send
            return [[[id(c.send), c.attempt] for c in each] for each in (lane.placed, lane.offered)]

        places = []
        for member, place in routing.there.places.items():
            desks = [[desk.topic, desk.concurrency, copies(desk.lane), desk.rest] for desk in place.desks.values()]
            held = []
            for delivery, (desk, copy) in place.held.items():
                sends[id(copy.send)] = copy.send
                held.append([delivery, desk.topic, id(copy.send), copy.attempt])
            places.append([member, desks, held, place.not_kept, place.last])
        waiting = [[w.key, copies(w.lane)] for w in (*routing.there.pools.values(), *routing.there.vacant.values())]
        sends |= {id(send): send for send in routing.senders.waiting.values()}
        return {
            "sends": {str(number): _send_to_state(send) for number, send in sends.items()},
            "places": places,
            "waiting": waiting,
            "retiring": [[slot, sorted(members)] for slot, members in routing.giving.retiring.items()],
            "deliveries": routing.giving.deliveries,
            "counts": routing.counts,
            "overrun": routing.losses.to_state(),
        }

    def load(self, state: State) -> None:
        routing = self.routing
        sends = {int(number): _send_from_state(each) for number, each in state["sends"].items()}
        routing.giving.deliveries = state["deliveries"]
        routing.giving.retiring = {slot: set(members) for slot, members in state["retiring"]}
        routing.counts |= state["counts"]
        routing.losses.load(state.get("overrun", {}))
        routing.senders.load(send for send in sends.values() if send.stage is not MessageStage.SETTLED)

        def fill(owner: Any, left: Any) -> None:
            placed, offered = ([Delivery(sends[number], attempt) for number, attempt in each] for each in left)
            routing.restore(owner, placed, offered)

        for member in self.hub.members.values():
            routing.there.places[member.id] = MemberState(member)
        for member_id, desks, held, not_kept, last in state["places"]:
            place = routing.there.places[member_id]
            place.not_kept, place.last = dict(not_kept), last
            for topic, concurrency, *_ in desks:
                routing.handles(place, topic, concurrency) if concurrency else place.desk(topic, routing.there.budget)
            for delivery, topic, number, attempt in held:
                routing.giving.hold(place, topic, delivery, Delivery(sends[number], attempt))
            for topic, _, left, rest in desks:
                desk = place.desk(topic, routing.there.budget)
                fill(desk, left)
                desk.rest = rest
        for key, left in state["waiting"]:
            waiting = SharedQueue(key, routing.there.budget)
            if isinstance(key, str):
                routing.there.pools[key] = waiting
            else:
                routing.there.vacant[key] = waiting
            fill(waiting, left)
        routing.out.flush()


def _send_to_state(send: QueuedMessage) -> list[Any]:
    return [
        *(send.id, send.sender, send.origin, send.topic, send.body, int(send.kind), int(send.want)),
        *(send.limit, send.slot, send.subject, send.stage.value, send.copies, send.missing),
    ]


def _send_from_state(state: list[Any]) -> QueuedMessage:
    id, sender, origin, topic, body, kind, want, limit, slot, subject, stage, copies, missing = state
    send = QueuedMessage(
        id, sender, origin, topic, body, MessageKind(kind), AckMode(want), limit, slot, subject, MessageStage(stage)
    )
    send.copies, send.missing = copies, missing
    return send
