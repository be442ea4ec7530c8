"""What people and senders are told of messages: accepted, handled, replied to or failed, and in the log what was lost.

It owns the messages whose sender has still to be told something, each message's end once, and what is collected for the
records of losses. Where messages are it does not know; what is lost `serve_asgi.hub.messages.routing` decides.
"""

from __future__ import annotations

import collections
import logging
import math
from collections.abc import Iterable
from typing import Any, Final

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.messages.consumers import NO_CONSUMER_GRACE, STARTING_TOPICS, Consumer, MemberState, SharedQueue
from serve_asgi.hub.messages.queues import DELIVERY_OVERHEAD, MessageStage, QueuedMessage
from serve_asgi.ipc.member_frames import Role
from serve_asgi.ipc.message_frames import AckMode, FrameBatcher

MAX_UNACCEPTED: Final = 1_024
MAX_UNACCEPTED_BYTES: Final = 4 * 1024 * 1024 + MAX_UNACCEPTED * DELIVERY_OVERHEAD
"""Messages of one sender that are not accepted yet, and their payloads: four times the windows of
`serve_asgi.app.sending`, since the withdrawals of a sender that has given up may be read later than what it has sent
since."""
MAX_NAMED_RECEIVERS: Final = 10
"""Processes that one error names, at most."""
MAX_SINGLE_RECORDS: Final = 100
"""Dead letters that get a record each within `NO_CONSUMER_GRACE`; further ones share one record with their count."""
MAX_NAMED_TOPICS: Final = 10
"""Topics that one record names, at most."""


class SenderConfirmations:
    """What the senders of one hub are told of their messages."""

    def __init__(self, out: FrameBatcher, counts: dict[str, int]) -> None:
        self._out = out
        self._counts = counts
        self.waiting: dict[str, QueuedMessage] = {}
        """Messages whose sender has still to be told something, by their keys."""
        self._unaccepted: dict[int, list[int]] = {}  # by sender: messages that are not accepted, and their bytes

    def add(self, message: QueuedMessage) -> None:
        """A message has come, and its sender waits unless there is none.

        Raises ChannelError if the sender has sent one of this id already.
        """
        if message.stage is not MessageStage.SETTLED:
            message.key = key = f"{message.sender}/{message.id}"
            if key in self.waiting:
                raise ChannelError(f"a second message {message.id!r}")
            self.waiting[key] = message

    def count_unaccepted(self, message: QueuedMessage) -> None:
        """It could not be accepted at once. Raises ChannelError for a sender that ignores its window."""
        account = self._unaccepted.setdefault(message.sender, [0, 0])
        message.unaccepted = True
        account[0] += 1
        account[1] += len(message.body) + DELIVERY_OVERHEAD
        if account[0] > MAX_UNACCEPTED or account[1] > MAX_UNACCEPTED_BYTES:
            count, size = account
            raise ChannelError(f"{count} messages of {size} bytes that are not accepted yet: it ignores its window")

    def _uncount(self, message: QueuedMessage) -> None:
        message.unaccepted = False
        account = self._unaccepted[message.sender]
        account[0] -= 1
        account[1] -= len(message.body) + DELIVERY_OVERHEAD

    def load(self, messages: Iterable[QueuedMessage]) -> None:
        """Restore those of the listener's program before this one."""
        for message in messages:
            self.add(message)
            if message.stage is MessageStage.OFFERED:
                self.count_unaccepted(message)

    def left(self, member: int) -> None:
        """It has gone, and all that it sent is settled."""
        self._unaccepted.pop(member, None)

    def of(self, member: int) -> list[QueuedMessage]:
        """The messages that this member waits for."""
        return [message for message in self.waiting.values() if message.sender == member]

    def confirm_if_accepted(self, message: QueuedMessage) -> None:
        """Tell the sender if every delivery is queued now."""
        if message.pending or message.stage is not MessageStage.OFFERED:
            return
        self._counts["accepted"] += 1
        self._out.confirm(message.sender, [message.id, "a", message.receivers])
        if message.ack_mode is AckMode.ACCEPTED:
            self.settle(message)
        else:
            if message.unaccepted:
                self._uncount(message)
            message.stage = MessageStage.ACCEPTED

    def replied(self, message: QueuedMessage, ok: bool, body: bytes) -> None:
        """The handler of a call has ended; `body` is its reply, or what went wrong."""
        if message.stage is MessageStage.ACCEPTED:
            self._out.confirm(message.sender, [message.id, "r" if ok else "x", None], body)
            self.settle(message)

    def handled(self, message: QueuedMessage, attempt: int, role: str, slot: int, generation: int) -> None:
        """The handler of an acknowledged message has ended, in this process."""
        if message.stage is MessageStage.ACCEPTED:
            self._out.confirm(message.sender, [message.id, "h", [attempt, role, slot, generation]])
            self.settle(message)

    def fail(self, message: QueuedMessage, code: str, text: str) -> None:
        """Tell the sender that nothing will come of it."""
        if message.stage is not MessageStage.SETTLED:
            self._out.confirm(message.sender, [message.id, "f", [code, text]])
            self.settle(message)

    def settle(self, message: QueuedMessage) -> None:
        """Its sender has been told the last, or is gone."""
        if message.unaccepted:
            self._uncount(message)
        message.stage = MessageStage.SETTLED
        self.waiting.pop(message.key, None)

    def store_replied(self, key: str, trouble: str = "") -> None:
        """The other servers get a broadcast, or do not."""
        message = self.waiting.get(key)
        if message is None:
            return
        message.pending -= 1
        if trouble:
            self.fail(message, "store", f"the other servers do not get it: {trouble}")
        else:
            self.confirm_if_accepted(message)


class LossReports:
    """The log records of one hub's losses."""

    def __init__(self, hub: Hub, counts: dict[str, int]) -> None:
        self._hub = hub
        self._counts = counts
        self._overrun = collections.Counter[str]()
        """Broadcasts of other servers for which there was no room, by topic, not reported yet."""
        self.due = math.inf
        """When they are to be reported (the hub's clock)."""
        self._recorded = 0  # dead letters since `_since`
        self._since = -math.inf
        self._unrecorded = collections.Counter[str]()
        """Dead letters of which there were too many at once for a record each, by topic."""

    def lost(self, text: str, lost: collections.Counter[str], member: Member | None = None) -> None:
        """Report messages, counted by topic; `text` has a `{}` for how many, `member` is the one that had them."""
        count, topics = lost.total(), sorted(lost)[:MAX_NAMED_TOPICS]
        said = f"{text.format(f'{count} messages' if count > 1 else 'a message')} (topics: {', '.join(topics)})"
        self._counts["lost"] += count
        about = {} if member is None else _about(member)
        self._hub.port.report(logging.WARNING, "messages_lost", said, "", count=count, topics=topics, **about)

    def remote_dropped(self, topic: str) -> None:
        """There was no room for a broadcast of another server; those of some time are reported together."""
        self._overrun[topic] += 1
        self.due = min(self.due, self._hub.clock() + NO_CONSUMER_GRACE)

    def tick(self) -> None:
        """Report what is due."""
        if self._hub.clock() >= self.due:
            if self._overrun:
                self.lost("{} from other servers came faster than they are handled", self._overrun)
                self._overrun.clear()
            if self._unrecorded:
                count, topics = self._unrecorded.total(), sorted(self._unrecorded)[:MAX_NAMED_TOPICS]
                text = f"{count} more messages were given up (topics: {', '.join(topics)})"
                about: dict[str, Any] = {"topics": topics, "count": count}
                self._hub.port.report(logging.ERROR, "message_dead_lettered", text, **about)
                self._unrecorded.clear()
            self.due = math.inf

    def to_state(self) -> dict[str, int]:
        """What is not reported yet, for a new program of the listener."""
        return dict(self._overrun)

    def load(self, state: dict[str, int]) -> None:
        """The reverse; it is reported after the usual time."""
        if state:
            self._overrun.update(state)
            self.due = self._hub.clock() + NO_CONSUMER_GRACE

    def report_dropped(self, process: MemberState) -> None:
        """Report what was dropped while a process started, of the topics that it handles, now that it is up."""
        for topic, count in process.dropped.items():
            handled = topic in process.consumers and process.consumers[topic].concurrency
            if handled or not topic:
                what = f"topic {topic!r}" if topic else f"more than {STARTING_TOPICS} topics, if it handles them,"
                text = f"{process.member} took long to start: {count} messages of {what} were dropped"
                about: dict[str, Any] = {"topic": topic, "count": count, **_about(process.member)}
                self._hub.port.report(logging.WARNING, "messages_dropped", text, **about)
        process.dropped.clear()

    def dead(self, topic: str, id: str, attempts: int, why: str) -> str:
        """Report a dead letter, and return the sentence."""
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


def names_of(receivers: list[str]) -> str:
    """Those who had no room for a message, some of them if they are many; nobody here: the other servers."""
    more = f" and {len(receivers) - MAX_NAMED_RECEIVERS} others" if len(receivers) > MAX_NAMED_RECEIVERS else ""
    return (", ".join(receivers[:MAX_NAMED_RECEIVERS]) or "the other servers") + more


def described(owner: Consumer | SharedQueue) -> str:
    """What is queued there, in the words of an error."""
    if isinstance(owner, Consumer):
        return f"topic {owner.topic!r} as {owner}"
    return f"topic {owner.key!r}" if isinstance(owner.key, str) else f"what is sent to {owner}"


def _about(member: Member) -> dict[str, Any]:
    slot = {} if member.role is Role.AGENT else {"slot": member.slot}
    return {"generation": member.generation, **slot}
