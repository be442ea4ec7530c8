"""Messages between the processes of a server: their frames, and what the hub's other events mean for them.

This component splits frames into messages (`serve_asgi.ipc.message_frames`), passes them and the changes of members on
to `serve_asgi.hub.messages.routing`, which decides, and sends the frames that are collected during an event when it has
been handled. It never decodes a payload.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub, HubComponent, Member, State
from serve_asgi.hub.messages.consumers import MemberState, SharedQueue
from serve_asgi.hub.messages.queues import BoundedQueue, Delivery, MessageStage, QueuedMessage
from serve_asgi.hub.messages.routing import MessageRouter
from serve_asgi.ipc.frames import MAX_PAYLOAD, ValidatedFrame
from serve_asgi.ipc.membership_frames import MemberPhase
from serve_asgi.ipc.message_frames import (
    DEAD_LETTER_TOPIC,
    MESSAGE_FRAMES,
    RESERVED,
    AckMode,
    MessageKind,
    split_bodies,
)
from serve_asgi.ipc.work_frames import WORK_FROM_STORE

_TO_ALL: Final = (-1, 0)
MAX_TOPICS: Final = 2_000
"""Topics for which one process may have consumers; `serve_asgi.app.message_receiver` allows half of that."""


class MessageBroker(HubComponent):
    """The hub's component for messages."""

    name = "messages"
    kinds = MESSAGE_FRAMES
    store_kinds: ClassVar[frozenset[str]] = frozenset({"store.sent", "store.unsent", "store.message", *WORK_FROM_STORE})

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.routing = MessageRouter(hub)

    def metrics(self) -> dict[str, float]:
        counts = self.routing.counts
        return {
            "messages_accepted_total": counts["accepted"],
            "messages_delivered_total": counts["given"],
            "messages_failed_total": counts["failed"],
            "messages_redelivered_total": counts["again"],
            "messages_dead_lettered_total": counts["dead"],
            "messages_lost_total": counts["lost"],
            "messages_waiting": self.routing.consumers.budget.deliveries,
        }

    def take(self, member: Member, frame: ValidatedFrame) -> None:
        routing, process, head = self.routing, self.routing.consumers.processes[member.id], frame.head
        match frame.kind:
            case "msg.send":
                origin = [member.role.value, member.slot, member.generation]
                for each, body in split_bodies(head.m, frame.body):
                    id, topic = each.id, each.topic
                    if each.size > MAX_PAYLOAD or topic.startswith(RESERVED):
                        raise ChannelError(f"a message of {each.size} bytes of topic {topic!r}")
                    if each.kind is MessageKind.ANY_IN_FLEET and each.ack_mode is AckMode.REPLY:
                        raise ChannelError("a call of the fleet")
                    routing.submit(
                        QueuedMessage(
                            id, member.id, origin, topic, body, each.kind, each.ack_mode, each.limit, each.slot
                        )
                    )
            case "msg.done":
                for done, body in split_bodies(head.m, frame.body):
                    routing.done(process, done.delivery, done.ok, body)
            case "msg.return":
                for number in reversed(head.m):  # each is put at the head of its queue
                    routing.returned(process, number)
                if head.all:
                    routing.dispatcher.returned_all(process)
            case "msg.topics":
                for topic, concurrency in head.topics.items():
                    if topic.startswith(RESERVED) and topic != DEAD_LETTER_TOPIC:
                        raise ChannelError(f"the topic {topic!r}, which is the server's own")
                    routing.subscribe(process, topic, concurrency)
                if len(process.consumers) > MAX_TOPICS and process.topic_count() > MAX_TOPICS:
                    raise ChannelError(f"more than {MAX_TOPICS} topics")
            case "msg.withdraw":
                routing.withdraw(head.m, member.id)
        self._settle()

    def take_from_store(self, frame: ValidatedFrame) -> None:
        head, fleet = frame.head, self.routing.fleet
        match frame.kind:
            case "store.sent":
                self.routing.confirmations.store_replied(head.id)
            case "store.unsent" if not fleet.has_posted(head.id):
                self.routing.confirmations.store_replied(head.id, head.text)
            case "store.posted" | "store.unsent" | "store.withdrawn" | "store.outcome":
                fleet.take_reply(frame)
            case "store.work":
                if head.topic.startswith(RESERVED) or head.ack is AckMode.REPLY:
                    raise ChannelError(f"work of topic {head.topic!r} with {head.ack!r}, which nobody can have sent")
                fleet.take(frame)
            case "store.topics":
                fleet.take_topics(head.topics, head.fresh)
            case "store.settled" | "store.unsettled":
                fleet.settled(head.id, frame.kind == "store.settled")
            case "store.message":
                if head.topic.startswith(RESERVED):
                    raise ChannelError(f"a message of topic {head.topic!r}, which is the server's own")
                slot = _TO_ALL[head.workers]
                message = QueuedMessage(
                    "", 0, list(head.origin), head.topic, frame.body, MessageKind.BROADCAST, AckMode.ACCEPTED, 1, slot
                )
                message.id, message.stage = head.message, MessageStage.SETTLED
                self.routing.submit(message)
        self._settle()

    def joined(self, member: Member) -> None:
        self.routing.joined(member)
        self._settle()

    def changed(self, member: Member, before: MemberPhase) -> None:
        process = self.routing.consumers.processes[member.id]
        if member.phase is MemberPhase.RETIRING:
            self.routing.starts_retiring(process)
        elif before is MemberPhase.RETIRING:
            self.routing.resumes(process)
        if before is MemberPhase.EXPECTED and member.up:
            self.routing.came_up(process)
        self.routing.dispatcher.dispatch_to_process(process)
        self.routing.update_topic_queues()
        self._settle()

    def left(self, member: Member) -> None:
        self.routing.left(member)
        self._settle()

    def room_available(self, member: Member) -> None:
        self.routing.dispatcher.dispatch_to_process(self.routing.consumers.processes[member.id])
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
        messages: dict[int, QueuedMessage] = {}

        def queue_state(queue: BoundedQueue) -> list[Any]:
            for delivery in (*queue.queued, *queue.overflow):
                messages[id(delivery.message)] = delivery.message
            return [[[id(c.message), c.attempt] for c in each] for each in (queue.queued, queue.overflow)]

        processes = []
        for member, process in routing.consumers.processes.items():
            consumers = [
                [consumer.topic, consumer.concurrency, queue_state(consumer.queue), consumer.awaited]
                for consumer in process.consumers.values()
            ]
            in_flight = []
            for number, (consumer, delivery) in process.in_flight.items():
                messages[id(delivery.message)] = delivery.message
                in_flight.append([number, consumer.topic, id(delivery.message), delivery.attempt])
            processes.append([member, consumers, in_flight, process.dropped, process.last_awaited])
        waiting = [
            [w.key, queue_state(w.queue)]
            for w in (*routing.consumers.topic_queues.values(), *routing.consumers.slot_queues.values())
        ]
        messages |= {id(message): message for message in routing.confirmations.waiting.values()}
        return {
            "sends": {str(ref): _message_to_state(message) for ref, message in messages.items()},
            "places": processes,
            "waiting": waiting,
            "retiring": [[slot, sorted(members)] for slot, members in routing.dispatcher.retiring.items()],
            "deliveries": routing.dispatcher.last_number,
            "counts": routing.counts,
            "overrun": routing.losses.to_state(),
            "fleet": routing.fleet.to_state(),
        }

    def load(self, state: State) -> None:
        routing = self.routing
        messages = {int(ref): _message_from_state(each) for ref, each in state["sends"].items()}
        routing.dispatcher.last_number = state["deliveries"]
        routing.dispatcher.retiring = {slot: set(members) for slot, members in state["retiring"]}
        routing.counts |= state["counts"]
        routing.losses.load(state.get("overrun", {}))
        if "fleet" in state:
            routing.fleet.load(state["fleet"])
        routing.confirmations.load(
            message for message in messages.values() if message.stage is not MessageStage.SETTLED
        )

        def fill(owner: Any, left: Any) -> None:
            queued, overflow = ([Delivery(messages[ref], attempt) for ref, attempt in each] for each in left)
            routing.restore(owner, queued, overflow)

        for member in self.hub.members.values():
            routing.consumers.processes[member.id] = MemberState(member)
        for member_id, consumers, in_flight, dropped, last in state["places"]:
            process = routing.consumers.processes[member_id]
            process.dropped, process.last_awaited = dict(dropped), last
            for topic, concurrency, *_ in consumers:
                routing.subscribe(process, topic, concurrency) if concurrency else process.consumer(
                    topic, routing.consumers.budget
                )
            for number, topic, ref, attempt in in_flight:
                routing.dispatcher.restore_in_flight(process, topic, number, Delivery(messages[ref], attempt))
            for topic, _, left, awaited in consumers:
                consumer = process.consumer(topic, routing.consumers.budget)
                fill(consumer, left)
                consumer.awaited = awaited
        for key, left in state["waiting"]:
            waiting = SharedQueue(key, routing.consumers.budget)
            if isinstance(key, str):
                routing.consumers.topic_queues[key] = waiting
            else:
                routing.consumers.slot_queues[key] = waiting
            fill(waiting, left)
        routing.out.flush()


def _message_to_state(message: QueuedMessage) -> list[Any]:
    return [
        *(
            message.id,
            message.sender,
            message.origin,
            message.topic,
            message.body,
            int(message.kind),
            int(message.ack_mode),
        ),
        *(message.limit, message.slot, message.subject, message.stage.value, message.receivers, message.pending),
        message.entry,
    ]


def _message_from_state(state: list[Any]) -> QueuedMessage:
    id, sender, origin, topic, body, kind, ack_mode, limit, slot, subject, stage, receivers, pending, *more = state
    message = QueuedMessage(
        id, sender, origin, topic, body, MessageKind(kind), AckMode(ack_mode), limit, slot, subject, MessageStage(stage)
    )
    message.receivers, message.pending = receivers, pending
    message.entry = more[0] if more else ""  # an older program knows none
    return message
