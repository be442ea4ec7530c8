"""Messages that come to nothing: dead letters (given up), and messages lost or dropped, as the log reports them.

A message is a dead letter after too many deliveries, or where nobody handles it. Each is logged (many at once share a
record), its sender is told, and it is delivered to a handler of dead letters, if there is one
(`messenger.on_dead_letter`). One that such a handler fails to handle is only logged. Lost and dropped messages are
counted and reported with their topics. Which messages are lost `serve_asgi.hub.messages.routing` decides.
"""

from __future__ import annotations

import collections
import logging
import math
from typing import Any, Final

from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.messages.confirmations import SenderConfirmations
from serve_asgi.hub.messages.consumers import NO_CONSUMER_GRACE, STARTING_TOPICS, Consumers, MemberState
from serve_asgi.hub.messages.dispatcher import Dispatcher
from serve_asgi.hub.messages.queues import Delivery, MessageStage, QueuedMessage
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.message_frames import DEAD_LETTER_TOPIC, AckMode, MessageKind

DEAD_LETTER_DELIVERIES: Final = 3
"""Most deliveries of a dead letter."""
MAX_SINGLE_RECORDS: Final = 100
"""Dead letters that are logged one by one within `NO_CONSUMER_GRACE`; further ones share one record."""
MAX_NAMED_TOPICS: Final = 10
"""Most topics that one record names."""


class DeadLetters:
    """The dead letters of one hub."""

    def __init__(
        self,
        hub: Hub,
        consumers: Consumers,
        dispatcher: Dispatcher,
        confirmations: SenderConfirmations,
        counts: dict[str, int],
    ) -> None:
        self._hub = hub
        self._consumers = consumers
        self._dispatcher = dispatcher
        self._confirmations = confirmations
        self._counts = counts
        self._recorded = 0  # since `_since`
        self._since = -math.inf
        self._unrecorded = collections.Counter[str]()
        """How many have not been logged one by one, by topic."""
        self.due = math.inf
        """When they are to be reported (the hub's clock)."""

    def is_due(self, delivery: Delivery) -> bool:
        """Whether it has been delivered as often as allowed."""
        return delivery.attempt >= delivery.message.limit

    def give_up(self, delivery: Delivery, why: str) -> str:
        """Log it, report it to its sender, and deliver it to a handler of dead letters, if there is one.

        Returns the sentence that says so.
        """
        message = delivery.message
        if message.topic == DEAD_LETTER_TOPIC and not delivery.attempt:
            return ""  # no handler of dead letters is left; the message itself has been logged
        topic, id, attempts = (message.topic, message.id, delivery.attempt)
        letter = topic != DEAD_LETTER_TOPIC
        if not letter and message.subject is not None:
            topic, id = message.subject[:2]
            why = f"the handler of dead letters failed: {why}"
        text = self._report(topic, id, attempts, why)
        self._confirmations.fail(message, "dead", text)
        if letter and self._consumers.has_consumer(DEAD_LETTER_TOPIC):
            subject = [topic, id, attempts, why]
            about_it = QueuedMessage(
                f"{id}!",
                0,
                message.origin,
                DEAD_LETTER_TOPIC,
                message.body,
                MessageKind.ANY_WORKER,
                AckMode.SUCCESS,
                DEAD_LETTER_DELIVERIES,
            )
            about_it.subject, about_it.stage = subject, MessageStage.SETTLED
            topic_queue = self._consumers.topic_queue(DEAD_LETTER_TOPIC)
            # if there is no room, nobody handles so many of them; it has been logged
            topic_queue.queue.put_if_room(Delivery(about_it))
            self._dispatcher.dispatch_topic_queue(topic_queue)
        return text

    def _report(self, topic: str, id: str, attempts: int, why: str) -> str:
        """Log it and return the sentence."""
        self._counts["dead"] += 1
        text = f"message {id} of topic {topic!r} was given up after {attempts} deliveries: {why}"
        now = self._hub.clock()
        if now >= self._since + NO_CONSUMER_GRACE:
            self._since, self._recorded = now, 0
        self._recorded += 1
        if self._recorded > MAX_SINGLE_RECORDS:
            self._unrecorded[topic] += 1
            self.due = min(self.due, now + NO_CONSUMER_GRACE)
            return text
        about: dict[str, Any] = {"topic": topic, "id": id, "attempts": attempts, "reason": why}
        self._hub.port.report(logging.ERROR, "message_dead_lettered", text, **about)
        return text

    def tick(self) -> None:
        """Report what is due."""
        if self._hub.clock() >= self.due:
            if self._unrecorded:
                count, topics = self._unrecorded.total(), sorted(self._unrecorded)[:MAX_NAMED_TOPICS]
                text = f"{count} more messages were given up (topics: {', '.join(topics)})"
                about: dict[str, Any] = {"topics": topics, "count": count}
                self._hub.port.report(logging.ERROR, "message_dead_lettered", text, **about)
                self._unrecorded.clear()
            self.due = math.inf


class LossReports:
    """The log records of messages that one hub has lost or dropped."""

    def __init__(self, hub: Hub, counts: dict[str, int]) -> None:
        self._hub = hub
        self._counts = counts
        self._overrun = collections.Counter[str]()
        """Broadcasts from other servers for which there was no room and that are not reported yet, by topic."""
        self.due = math.inf
        """When they are to be reported (the hub's clock)."""

    def lost(self, text: str, lost: collections.Counter[str], member: Member | None = None) -> None:
        """Report lost messages, counted by topic; `text` has a `{}` for their number, `member` is who had them."""
        count, topics = lost.total(), sorted(lost)[:MAX_NAMED_TOPICS]
        said = f"{text.format(f'{count} messages' if count > 1 else 'a message')} (topics: {', '.join(topics)})"
        self._counts["lost"] += count
        about = {} if member is None else _about(member)
        self._hub.port.report(logging.WARNING, "messages_lost", said, "", count=count, topics=topics, **about)

    def remote_dropped(self, topic: str) -> None:
        """There was no room for a broadcast from another server; several are reported together."""
        self._overrun[topic] += 1
        self.due = min(self.due, self._hub.clock() + NO_CONSUMER_GRACE)

    def tick(self) -> None:
        """Report what is due."""
        if self._hub.clock() >= self.due:
            if self._overrun:
                self.lost("{} from other servers came faster than they are handled", self._overrun)
                self._overrun.clear()
            self.due = math.inf

    def to_state(self) -> dict[str, int]:
        """What has not been reported yet, for a new program of the listener."""
        return dict(self._overrun)

    def load(self, state: dict[str, int]) -> None:
        """The reverse; it is reported after the usual delay."""
        if state:
            self._overrun.update(state)
            self.due = self._hub.clock() + NO_CONSUMER_GRACE

    def report_dropped(self, process: MemberState) -> None:
        """A process is up: report what was dropped while it started, of the topics that it handles."""
        for topic, count in process.dropped.items():
            handled = topic in process.consumers and process.consumers[topic].concurrency
            if handled or not topic:
                what = f"topic {topic!r}" if topic else f"more than {STARTING_TOPICS} topics, if it handles them,"
                text = f"{process.member} took long to start: {count} messages of {what} were dropped"
                about: dict[str, Any] = {"topic": topic, "count": count, **_about(process.member)}
                self._hub.port.report(logging.WARNING, "messages_dropped", text, **about)
        process.dropped.clear()


def _about(member: Member) -> dict[str, Any]:
    slot = {} if member.role is Role.AGENT else {"slot": member.slot}
    return {"generation": member.generation, **slot}
