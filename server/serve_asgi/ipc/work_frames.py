"""The protocol between a hub and its store process for work of the fleet: `send_to_any(…, scope="cluster")`.

The fleet are the servers that share a store. Each topic has one queue in it, from which the store takes as much as the
hub has room for. What is taken stays in the queue until it is settled, and belongs to its server as long as that
server's store process says so in time (`lease` of `--state`); then it is put back, for any server.

hub -> store
    store.post     {id, message, topic, ack, limit, origin} body   -> posted | unsent
    store.withdraw {id, topic, entry}         take it back, if no server has taken it; -> withdrawn
    store.settle   {id, topic, entry, outcome, value}              `WorkOutcome`; -> settled | unsettled
    store.handles  {topics: {topic: bool}}    whether this server handles a topic; no reply, as for what follows
    store.credit   {topics: {topic: count}}   so many more messages may be taken
    store.held     {m: [[topic, entry], …]}   what an earlier store process of this server has taken

store -> hub
    store.topics   {topics, fresh?}           the topics of the fleet, in parts; `fresh`: a new session, whose store
                                              process knows nothing of what this server handles and has room for
    store.posted   {id, entry, handlers}      it is queued; so many servers handle its topic
    store.withdrawn {id, found}
    store.work     {topic, entry, message, attempt, ack, limit, origin} body
    store.settled  {id}
    store.unsettled {id}                      nobody knows whether it is; the hub asks again
    store.outcome  {id, outcome, by?, text?}  of what this hub has posted, if it is acknowledged; `id` is that of post,
                                              `by` or `text` the outcome's value

`ack` is an `AckMode`, `attempt` is 1 for the first delivery. To settle what is not there any more, or belongs to
another server by now, changes nothing: that server's outcome counts.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from serve_asgi.ipc.message_frames import AckMode, Topic
from serve_asgi.ipc.untrusted_input import Count, Sentence, Short

TOPICS_PER_FRAME: Final = 100
HELD_PER_FRAME: Final = 200
QUEUED: Final = 10_000
"""Most messages in the queue of one topic."""
QUEUED_BYTES: Final = 64 * 1024 * 1024
"""Most bytes of their payloads."""


class WorkOutcome(enum.Enum):
    """What has become of work; the values are sent as `outcome`, each with a `value`."""

    HANDLED = "handled"  # [attempt, role, slot, generation]: the handler has ended
    DEAD = "dead"  # a sentence: it has been given up
    AGAIN = "again"  # how often it has been delivered: it is put back
    LOST = "lost"  # None: it is not acknowledged, and went with its process


class WorkTopicsFrame(msgspec.Struct):
    """`store.topics`."""

    topics: Annotated[list[Topic], msgspec.Meta(max_length=TOPICS_PER_FRAME)]
    fresh: bool = False


class WorkPostedFrame(msgspec.Struct):
    """`store.posted`."""

    id: Short
    entry: Short
    handlers: Count


class WorkWithdrawnFrame(msgspec.Struct):
    """`store.withdrawn`."""

    id: Short
    found: bool


class WorkFrame(msgspec.Struct):
    """`store.work`; the body is the payload."""

    topic: Topic
    entry: Short
    message: Short
    attempt: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
    ack: AckMode
    limit: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
    origin: tuple[Short, int, int]


class WorkSettledFrame(msgspec.Struct):
    """`store.settled`, `store.unsettled`."""

    id: Count


class WorkOutcomeFrame(msgspec.Struct):
    """`store.outcome`."""

    id: Short
    outcome: WorkOutcome
    by: tuple[Count, Short, int, int] | None = None  # no union with `text`: msgspec 0.22 mixes up their bounds
    text: Sentence = ""


WORK_FROM_STORE: Final[Mapping[str, type]] = {
    "store.topics": WorkTopicsFrame,
    "store.posted": WorkPostedFrame,
    "store.withdrawn": WorkWithdrawnFrame,
    "store.work": WorkFrame,
    "store.settled": WorkSettledFrame,
    "store.unsettled": WorkSettledFrame,
    "store.outcome": WorkOutcomeFrame,
}
WORK_REQUESTS: Final = frozenset({"store.post", "store.withdraw", "store.settle"})
"""Frames to the store that get a reply."""
WORK_NOTES: Final = frozenset({"store.handles", "store.credit", "store.held"})
"""Frames to the store that get none."""
