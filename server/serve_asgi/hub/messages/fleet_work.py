"""Work of the fleet: what this hub hands to the store for any server, and what it takes from there.

It owns the conversation with the store (`serve_asgi.ipc.work_frames`). Work that is taken is queued and delivered as
that of this server alone; a delivery with an `entry` belongs to the store, which is told what has become of it. What is
to be delivered again is put back, so that the store alone counts deliveries, and any server may get it next. This hub
takes only as much as its workers can begin at once (credit); what it cannot handle after all, it puts back uncounted.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterator
from typing import Any, Final

from serve_asgi.hub.core import Hub, State
from serve_asgi.hub.messages.confirmations import SenderConfirmations
from serve_asgi.hub.messages.consumers import NO_CONSUMER_GRACE, Consumers, MemberState
from serve_asgi.hub.messages.dead_letters import DeadLetters, LossReports
from serve_asgi.hub.messages.dispatcher import Dispatcher
from serve_asgi.hub.messages.queues import Delivery, MessageStage, QueuedMessage
from serve_asgi.ipc.frames import ValidatedFrame
from serve_asgi.ipc.membership_frames import MemberPhase, Role
from serve_asgi.ipc.message_frames import MessageKind
from serve_asgi.ipc.work_frames import HELD_PER_FRAME, TOPICS_PER_FRAME, WorkOutcome

MAX_CREDIT: Final = 64
"""Most messages of one topic that the store may hand over at a time."""
SETTLE_AGAIN: Final = 1.0
"""Seconds until the store is told again what it may not have heard."""
NOT_SHARED: Final = (
    "this server shares no state with others: start it with --state redis://… or postgresql://…, or send with "
    'scope="server"'
)
NOBODY: Final = "no server of the fleet handles topic {!r}: see `messenger.on`"


class FleetWork:
    """The work of the fleet, as one hub sees it."""

    def __init__(
        self,
        hub: Hub,
        consumers: Consumers,
        dispatcher: Dispatcher,
        confirmations: SenderConfirmations,
        dead_letters: DeadLetters,
        losses: LossReports,
    ) -> None:
        self._hub = hub
        self._consumers = consumers
        self._dispatcher = dispatcher
        self._confirmations = confirmations
        self._dead_letters = dead_letters
        self._losses = losses
        self._topics: set[str] = set()
        """Those to which anybody has ever sent in the fleet."""
        self._told: set[str] = set()
        """Of these, what the store knows that this server handles."""
        self._credit: dict[str, int] = {}
        """What the store may still hand over, by topic."""
        self._held: dict[tuple[str, str], None] = {}
        """What has been taken and is not settled, by topic and entry."""
        self._settling: dict[int, dict[str, Any]] = {}
        """Frames `store.settle` that have no reply yet."""
        self._unsettled: set[int] = set()
        """Of these, which have to be sent again, since the store may not have got them."""
        self._settle_due = math.inf
        self._last_id = 0
        self._unhandled: dict[str, tuple[str, float]] = {}
        """Messages that nobody in the fleet handles: entry, and when they are taken back (the hub's clock)."""
        self._taking_back: set[str] = set()
        """Messages for which the store has not replied to `store.withdraw`."""
        self._regretted: dict[str, str] = {}
        """The topics of messages whose sender gave up before the store had replied."""

    # Sending

    def post(self, message: QueuedMessage) -> None:
        """Hand a message to the store, for any server."""
        if not self._hub.settings.shared:
            self._confirmations.fail(message, "nobody", NOT_SHARED)
            return
        message.pending += 1
        head = {
            "id": message.key,
            "message": message.id,
            "topic": message.topic,
            "ack": int(message.ack_mode),
            "limit": message.limit,
            "origin": message.origin,
        }
        self._hub.send_to_store("store.post", head, message.body)

    def withdraw(self, message: QueuedMessage) -> None:
        """Its sender gives up a message that has not been accepted: nobody is to get it, if that is still possible."""
        entry, _ = self._unhandled.pop(message.key, ("", 0.0))
        if entry:
            self._take_back(message.key, message.topic, entry)
        elif message.key not in self._taking_back:
            self._regretted[message.key] = message.topic

    def _take_back(self, key: str, topic: str, entry: str) -> None:
        self._taking_back.add(key)
        self._hub.send_to_store("store.withdraw", {"id": key, "topic": topic, "entry": entry})

    def has_posted(self, key: str) -> bool:
        """Whether the message with this key was handed to the store as work."""
        message = self._confirmations.waiting.get(key)
        return key in self._regretted or (message is not None and message.kind is MessageKind.ANY_IN_FLEET)

    def take_reply(self, frame: ValidatedFrame) -> None:
        """Handle a frame from the store about a message that this server has sent."""
        head = frame.head
        message = self._confirmations.waiting.get(head.id)
        match frame.kind:
            case "store.posted" if head.id in self._regretted:
                self._take_back(head.id, self._regretted.pop(head.id), head.entry)
            case "store.posted" if message is not None:
                if head.handlers:
                    self._confirmations.store_replied(head.id)
                else:
                    self._unhandled[head.id] = head.entry, self._hub.clock() + NO_CONSUMER_GRACE
            case "store.withdrawn" if message is not None and message.stage is MessageStage.OFFERED:
                if head.found:
                    self._confirmations.fail(message, "nobody", NOBODY.format(message.topic))
                else:  # some server came, and has taken it
                    self._confirmations.store_replied(head.id)
            case "store.unsent" if message is not None:
                text = f"it could not be handed to the fleet: {head.text}"
                self._confirmations.fail(message, "store", text)
            case "store.outcome" if message is not None:
                self._take_outcome(message, head.outcome, head.by, head.text)
        if frame.kind == "store.unsent":
            self._regretted.pop(head.id, None)
        elif frame.kind == "store.withdrawn":
            self._taking_back.discard(head.id)

    def _take_outcome(self, message: QueuedMessage, outcome: WorkOutcome, by: Any, text: str) -> None:
        self._unhandled.pop(message.key, None)
        if message.stage is MessageStage.OFFERED:  # the outcome came before the reply to `store.post`
            self._confirmations.store_replied(message.key)
        if outcome is WorkOutcome.HANDLED and by is not None:
            self._confirmations.handled(message, *by)
        else:
            self._confirmations.fail(message, "dead", text)

    # Taking

    def take_topics(self, topics: list[str], fresh: bool) -> None:
        """The store knows these topics; `fresh`: it knows nothing else any more."""
        if fresh:
            self._topics, self._told = set(), set()
            self._credit.clear()
            for held in _pieces(self._held, HELD_PER_FRAME):
                self._hub.send_to_store("store.held", {"m": [list(each) for each in held]})
            self._settle_again()
        self._topics.update(topics)

    def take(self, frame: ValidatedFrame) -> None:
        """Queue what the store hands over."""
        head = frame.head
        topic, key = head.topic, (head.topic, head.entry)
        self._credit[topic] = max(0, self._credit.get(topic, 0) - 1)
        if key in self._held:
            return
        self._held[key] = None
        origin = list(head.origin)
        message = QueuedMessage(
            head.message, 0, origin, topic, frame.body, MessageKind.ANY_WORKER, head.ack, head.limit
        )
        message.stage, message.entry = MessageStage.SETTLED, head.entry
        delivery = Delivery(message, head.attempt - 1)
        if delivery.attempt and not message.redelivers:
            self._losses.lost("a server ended with {} of the fleet's work", collections.Counter([topic]))
            self.lost(message)
        elif delivery.attempt and self._dead_letters.is_due(delivery):
            self.given_up(message, self._dead_letters.give_up(delivery, "the server that had it died"))
        else:
            topic_queue = self._consumers.topic_queue(topic)
            topic_queue.queue.put_over_limit(delivery)
            self._dispatcher.dispatch_topic_queue(topic_queue)

    # What becomes of it

    def handled(self, process: MemberState, delivery: Delivery) -> None:
        """The handler has ended, in this process."""
        member = process.member
        value = [delivery.attempt, member.role.value, member.slot, member.generation]
        self._settle(delivery.message, WorkOutcome.HANDLED, value)

    def put_back(self, delivery: Delivery) -> None:
        """Any server may have it next."""
        self._settle(delivery.message, WorkOutcome.AGAIN, delivery.attempt)

    def given_up(self, message: QueuedMessage, text: str) -> None:
        """It is a dead letter."""
        self._settle(message, WorkOutcome.DEAD, text)

    def lost(self, message: QueuedMessage) -> None:
        """It was not acknowledged, and its process has died."""
        self._settle(message, WorkOutcome.LOST, None)

    def _settle(self, message: QueuedMessage, outcome: WorkOutcome, value: Any) -> None:
        self._held.pop((message.topic, message.entry), None)
        self._last_id += 1
        head = {"id": self._last_id, "topic": message.topic, "entry": message.entry}
        self._settling[self._last_id] = head | {"outcome": outcome.value, "value": value}
        self._hub.send_to_store("store.settle", self._settling[self._last_id])

    def settled(self, id: int, ok: bool) -> None:
        """The store has replied to `store.settle`; if not `ok`, nobody knows whether it has been done."""
        if ok:
            self._settling.pop(id, None)
        elif id in self._settling:
            self._unsettled.add(id)
            self._settle_due = self._hub.clock() + SETTLE_AGAIN

    def _settle_again(self) -> None:
        again, self._unsettled, self._settle_due = self._unsettled, set(), math.inf
        for id in sorted(again):
            self._hub.send_to_store("store.settle", self._settling[id])

    # At the end of each event

    def settle(self) -> None:
        """Put back what no worker here can take, and let the store hand over what the workers have room for."""
        if not self._topics:
            return
        handles: dict[str, bool] = {}
        credit: dict[str, int] = {}
        for topic in self._topics:
            free = self._room(topic)
            if free is None:
                if self._consumers.has_consumer(topic):
                    continue  # a worker that starts may handle it
                self._put_back_queued(topic)
                if topic in self._told:
                    self._told.remove(topic)
                    handles[topic] = False
                continue
            if topic not in self._told:
                self._told.add(topic)
                handles[topic] = True
            before = self._credit.get(topic, 0)
            if free > before:
                credit[topic] = free - before
                self._credit[topic] = free
        for topics in _pieces(handles, TOPICS_PER_FRAME):
            self._hub.send_to_store("store.handles", {"topics": {topic: handles[topic] for topic in topics}})
        for topics in _pieces(credit, TOPICS_PER_FRAME):
            self._hub.send_to_store("store.credit", {"topics": {topic: credit[topic] for topic in topics}})

    def _room(self, topic: str) -> int | None:
        """How many more messages of a topic the workers could begin with now; None if none handles it."""
        free, handled = 0, False
        for consumer in self._consumers.of_topic(topic):
            member = consumer.process.member
            if member.role is Role.WORKER and member.phase is MemberPhase.SERVING:
                handled = True
                free += max(0, consumer.concurrency - consumer.in_flight)
        if not handled:
            return None
        waiting = self._consumers.topic_queues.get(topic)
        return max(0, min(free, MAX_CREDIT) - (0 if waiting is None else len(waiting.queue.queued)))

    def _put_back_queued(self, topic: str) -> None:
        """No worker of this server will take it."""
        waiting = self._consumers.topic_queues.get(topic)
        if waiting is not None:
            for delivery in waiting.queue.remove_queued(lambda message: bool(message.entry)):
                self.put_back(delivery)
            if not waiting.queue:
                self._consumers.discard(waiting)

    # Deadlines

    def deadline(self) -> float:
        """When `tick` has something to do (the hub's clock)."""
        return min(self._settle_due, *(due for _, due in self._unhandled.values()), math.inf)

    def tick(self) -> None:
        """Take back what nobody handles, and tell the store again what it may not have heard."""
        now = self._hub.clock()
        for key, (entry, due) in list(self._unhandled.items()):
            if now >= due:
                del self._unhandled[key]
                if (message := self._confirmations.waiting.get(key)) is not None:
                    self._take_back(key, message.topic, entry)
        if now >= self._settle_due:
            self._settle_again()

    # A new program of the listener

    def to_state(self) -> State:
        """What is taken and not settled, and what nobody handles; the rest the store asks for."""
        return {
            "held": [list(each) for each in self._held],
            "settling": list(self._settling.values()),
            "unsettled": sorted(self._unsettled),
            "last": self._last_id,
            "unhandled": [[key, entry] for key, (entry, _) in self._unhandled.items()],
            "regretted": dict(self._regretted),
            "taking_back": sorted(self._taking_back),
        }

    def load(self, state: State) -> None:
        """The reverse."""
        now = self._hub.clock()
        self._held = dict.fromkeys((topic, entry) for topic, entry in state["held"])
        self._settling = {head["id"]: head for head in state["settling"]}
        self._unsettled = set(state["unsettled"])
        self._last_id = state["last"]
        self._unhandled = {key: (entry, now + NO_CONSUMER_GRACE) for key, entry in state["unhandled"]}
        self._regretted = dict(state["regretted"])
        self._taking_back = set(state["taking_back"])


def _pieces(whole: Any, most: int) -> Iterator[list[Any]]:
    """What is in it, at most so much at a time."""
    rest = iter(whole)
    while piece := list(itertools.islice(rest, most)):
        yield piece
