"""What is said of messages that nobody handles: the records of the log, and their counts.

It owns what is collected for a record; what is lost `serve_asgi.hub.messages.routing` decides.
"""

from __future__ import annotations

import collections
import logging
import math
from typing import Any, Final

from serve_asgi.hub.core import Hub, Member, Role
from serve_asgi.hub.messages.candidates import NO_CONSUMER_GRACE
from serve_asgi.hub.messages.consumers import STARTING_TOPICS, Consumer, MemberState, SharedQueue

MAX_NAMED_RECEIVERS: Final = 10
"""Processes that one error names, at most."""
MAX_SINGLE_RECORDS: Final = 100
"""Dead letters that get a record each within `NO_CONSUMER_GRACE`; further ones share one record with their count."""
MAX_NAMED_TOPICS: Final = 10
"""Topics that one record names, at most."""


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
