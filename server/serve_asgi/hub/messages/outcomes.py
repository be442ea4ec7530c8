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
"""Messages of one sender that have no place yet, and their payloads: four times the windows of
`serve_asgi.app.sending`, since what a sender that has given up takes back may be read later than what it has sent
since."""
MAX_NAMED_RECEIVERS: Final = 10
"""Processes that one error names, at most."""
MAX_SINGLE_RECORDS: Final = 100
"""Dead letters that get a record each within `NO_CONSUMER_GRACE`; further ones share one record with their count."""
MAX_NAMED_TOPICS: Final = 10
"""Topics that one record names, at most."""


class SenderConfirmations:
    """Those of one hub."""

    def __init__(self, out: FrameBatcher, counts: dict[str, int]) -> None:
        self._out = out
        self._counts = counts
        self.waiting: dict[str, QueuedMessage] = {}
        """Messages whose sender has something to be told yet, by their keys."""
        self._held_up: dict[int, list[int]] = {}  # by sender: messages that are not accepted, and their bytes

    def expect(self, send: QueuedMessage) -> None:
        """A message has come, and its sender waits unless there is none.

        Raises ChannelError if the sender has sent one of this id already.
        """
        if send.stage is not MessageStage.SETTLED:
            send.key = key = f"{send.sender}/{send.id}"
            if key in self.waiting:
                raise ChannelError(f"a second message {send.id!r}")
            self.waiting[key] = send

    def hold_up(self, send: QueuedMessage) -> None:
        """It could not be accepted at once. Raises ChannelError for a sender that ignores its window."""
        account = self._held_up.setdefault(send.sender, [0, 0])
        send.held_up = True
        account[0] += 1
        account[1] += len(send.body) + DELIVERY_OVERHEAD
        if account[0] > MAX_UNACCEPTED or account[1] > MAX_UNACCEPTED_BYTES:
            count, size = account
            raise ChannelError(f"{count} messages of {size} bytes that are not accepted yet: it ignores its window")

    def _goes_on(self, send: QueuedMessage) -> None:
        send.held_up = False
        account = self._held_up[send.sender]
        account[0] -= 1
        account[1] -= len(send.body) + DELIVERY_OVERHEAD

    def load(self, sends: Iterable[QueuedMessage]) -> None:
        """What another program of the listener has taken."""
        for send in sends:
            self.expect(send)
            if send.stage is MessageStage.OFFERED:
                self.hold_up(send)

    def left(self, member: int) -> None:
        """It sends nothing any more, and all that it has sent is settled."""
        self._held_up.pop(member, None)

    def of(self, member: int) -> list[QueuedMessage]:
        """What this member waits for."""
        return [send for send in self.waiting.values() if send.sender == member]

    def look_if_placed(self, send: QueuedMessage) -> None:
        """Tell the sender if every copy has a place now."""
        if send.missing or send.stage is not MessageStage.OFFERED:
            return
        self._counts["accepted"] += 1
        self._out.confirm(send.sender, [send.id, "a", send.copies])
        if send.want is AckMode.ACCEPTED:
            self.settle(send)
        else:
            if send.held_up:
                self._goes_on(send)
            send.stage = MessageStage.ACCEPTED

    def answered(self, send: QueuedMessage, ok: bool, body: bytes) -> None:
        """The handler of a call has ended; `body` is its answer, or what went wrong."""
        if send.stage is MessageStage.ACCEPTED:
            self._out.confirm(send.sender, [send.id, "r" if ok else "x", None], body)
            self.settle(send)

    def handled(self, send: QueuedMessage, attempt: int, role: str, slot: int, generation: int) -> None:
        """The handler of an acknowledged message has ended, in this process."""
        if send.stage is MessageStage.ACCEPTED:
            self._out.confirm(send.sender, [send.id, "h", [attempt, role, slot, generation]])
            self.settle(send)

    def fail(self, send: QueuedMessage, code: str, text: str) -> None:
        """Tell the sender that nothing comes of it any more."""
        if send.stage is not MessageStage.SETTLED:
            self._out.confirm(send.sender, [send.id, "f", [code, text]])
            self.settle(send)

    def settle(self, send: QueuedMessage) -> None:
        """Nothing is to be told any more, or nobody is there to be told."""
        if send.held_up:
            self._goes_on(send)
        send.stage = MessageStage.SETTLED
        self.waiting.pop(send.key, None)

    def store_answered(self, key: str, trouble: str = "") -> None:
        """The other servers get a broadcast, or do not."""
        send = self.waiting.get(key)
        if send is None:
            return
        send.missing -= 1
        if trouble:
            self.fail(send, "store", f"the other servers do not get it: {trouble}")
        else:
            self.look_if_placed(send)


class LossReports:
    """Those of one hub."""

    def __init__(self, hub: Hub, counts: dict[str, int]) -> None:
        self._hub = hub
        self._counts = counts
        self._overrun = collections.Counter[str]()
        """Copies from other servers that had no place, by topic, not reported yet."""
        self.due = math.inf
        """When they are to be reported (the hub's clock)."""
        self._told = 0  # dead letters since `_since`
        self._since = -math.inf
        self._untold = collections.Counter[str]()
        """Dead letters of which there were too many at once to tell of each, by topic."""

    def lost(self, text: str, lost: collections.Counter[str], member: Member | None = None) -> None:
        """Report messages, counted by topic; `text` has a place for how many, `member` is whose they were."""
        count, topics = lost.total(), sorted(lost)[:MAX_NAMED_TOPICS]
        said = f"{text.format(f'{count} messages' if count > 1 else 'a message')} (topics: {', '.join(topics)})"
        self._counts["lost"] += count
        about = {} if member is None else _about(member)
        self._hub.port.say(logging.WARNING, "messages_lost", said, "", count=count, topics=topics, **about)

    def overran(self, topic: str) -> None:
        """A copy from another server had no place; those of some time are reported together."""
        self._overrun[topic] += 1
        self.due = min(self.due, self._hub.clock() + NO_CONSUMER_GRACE)

    def tick(self) -> None:
        """Report what is due."""
        if self._hub.clock() >= self.due:
            if self._overrun:
                self.lost("{} from other servers came faster than they are handled", self._overrun)
                self._overrun.clear()
            if self._untold:
                count, topics = self._untold.total(), sorted(self._untold)[:MAX_NAMED_TOPICS]
                text = f"{count} more messages were given up (topics: {', '.join(topics)})"
                about: dict[str, Any] = {"topics": topics, "count": count}
                self._hub.port.say(logging.ERROR, "message_dead_lettered", text, **about)
                self._untold.clear()
            self.due = math.inf

    def to_state(self) -> dict[str, int]:
        """What is not reported yet, for a new program of the listener."""
        return dict(self._overrun)

    def load(self, state: dict[str, int]) -> None:
        """The reverse; it is reported after the time that is usual."""
        if state:
            self._overrun.update(state)
            self.due = self._hub.clock() + NO_CONSUMER_GRACE

    def not_kept(self, place: MemberState) -> None:
        """Report what a process that is up now handles and was not kept for it, and forget it."""
        for topic, count in place.not_kept.items():
            handled = topic in place.desks and place.desks[topic].concurrency
            if handled or not topic:
                what = f"topic {topic!r}" if topic else f"more than {STARTING_TOPICS} topics, if it handles them,"
                text = f"{place.member} took long to start: {count} messages of {what} were dropped"
                about: dict[str, Any] = {"topic": topic, "count": count, **_about(place.member)}
                self._hub.port.say(logging.WARNING, "messages_dropped", text, **about)
        place.not_kept.clear()

    def dead(self, topic: str, id: str, attempts: int, why: str) -> str:
        """Report a dead letter, and return what was said."""
        self._counts["dead"] += 1
        text = f"message {id} of topic {topic!r} was given up after {attempts} deliveries: {why}"
        now = self._hub.clock()
        if now >= self._since + NO_CONSUMER_GRACE:
            self._since, self._told = now, 0
        self._told += 1
        if self._told > MAX_SINGLE_RECORDS:
            self._untold[topic] += 1
            self.due = min(self.due, now + NO_CONSUMER_GRACE)
            return text
        about: dict[str, Any] = {"topic": topic, "id": id, "attempts": attempts, "reason": why}
        self._hub.port.say(logging.ERROR, "message_dead_lettered", text, **about)
        return text


def names_of(takers: list[str]) -> str:
    """Those who have not taken a message, some of them if they are many; nobody here: the other servers."""
    more = f" and {len(takers) - MAX_NAMED_RECEIVERS} others" if len(takers) > MAX_NAMED_RECEIVERS else ""
    return (", ".join(takers[:MAX_NAMED_RECEIVERS]) or "the other servers") + more


def described(owner: Consumer | SharedQueue) -> str:
    """What waits there, in an error's words."""
    if isinstance(owner, Consumer):
        return f"topic {owner.topic!r} as {owner}"
    return f"topic {owner.key!r}" if isinstance(owner.key, str) else f"what is sent to {owner}"


def _about(member: Member) -> dict[str, Any]:
    slot = {} if member.role is Role.AGENT else {"slot": member.slot}
    return {"generation": member.generation, **slot}
