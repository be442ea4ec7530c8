"""The log's records of messages that were lost or dropped: counted, with their topics, and not too many at once.

What is lost `serve_asgi.hub.messages.routing` decides; dead letters are `serve_asgi.hub.messages.dead_letters`'.
"""

from __future__ import annotations

import collections
import logging
import math
from typing import Any, Final

from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.messages.consumers import NO_CONSUMER_GRACE, STARTING_TOPICS, MemberState
from serve_asgi.ipc.membership_frames import Role

MAX_NAMED_TOPICS: Final = 10
"""Topics that one record names, at most."""


class LossReports:
    """The log records of one hub's losses."""

    def __init__(self, hub: Hub, counts: dict[str, int]) -> None:
        self._hub = hub
        self._counts = counts
        self._overrun = collections.Counter[str]()
        """Broadcasts of other servers for which there was no room, by topic, not reported yet."""
        self.due = math.inf
        """When they are to be reported (the hub's clock)."""

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


def _about(member: Member) -> dict[str, Any]:
    slot = {} if member.role is Role.AGENT else {"slot": member.slot}
    return {"generation": member.generation, **slot}
