"""Whose DATA goes first: extensible priorities (RFC 9218). Pure.

It owns the reading of a priority (the header `priority` and the frame PRIORITY_UPDATE say the same), and the order in
which streams that have something to send get their turns. Rules (RFC 9218 10): a lower urgency number goes before a
higher one; at the same urgency what is not incremental goes one after another, in the order of the streams, and what is
incremental shares, a frame each in turn; where there are both, the first of the former has one share as well. Nobody
starves who has a window: a stream without one is not here. It must not know frames or windows.
"""

from __future__ import annotations

import re
from bisect import insort
from typing import Final, NamedTuple

from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode
from serve_asgi.http.h2.limits import MAX_PRIORITY_UPDATES
from serve_asgi.http.head_cache import CAPACITY

URGENCIES: Final = 8
_DEFAULT_URGENCY: Final = 3

# A dictionary of structured fields (RFC 9651 3.2), as far as its members matter: u=0 to u=7, i, i=?1, i=?0. Whatever
# else there is, is skipped; what cannot be read says nothing (RFC 9218 4).
_MEMBER: Final = re.compile(
    rb"[ \t]*([a-z*][a-z0-9_\-.*]*)"
    rb"(?:=("
    rb'\?[01]|-?[0-9]{1,15}(?:\.[0-9]{1,3})?|"(?:[ !#-\[\]-~]|\\["\\])*"|:[A-Za-z0-9+/=]*:'
    rb"|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*|\([^()]*\)"
    rb"))?"
    rb"(?:;[ ]*[a-z*][a-z0-9_\-.*]*(?:=[^,;]+)?)*[ \t]*"
)
_MAX_SIZE: Final = 256
"""Of a priority that is read; there is no sense in a longer one."""


class StreamPriority(NamedTuple):
    """RFC 9218 4."""

    urgency: int = _DEFAULT_URGENCY
    """0 (first) to 7 (last)."""
    incremental: bool = False
    """The client can use parts of it."""


DEFAULT_PRIORITY: Final = StreamPriority()
_known: dict[bytes, StreamPriority] = {b"": DEFAULT_PRIORITY}


def read_priority(value: bytes) -> StreamPriority:
    """The priority that a field value says; what is missing or cannot be read is the default (RFC 9218 4)."""
    priority = _known.get(value)
    if priority is None:
        priority = _read(value)
        if len(_known) >= CAPACITY:
            _known.clear()
        _known[value] = priority
    return priority


def _read(value: bytes) -> StreamPriority:
    urgency, incremental = _DEFAULT_URGENCY, False
    position, size = 0, len(value)
    if size > _MAX_SIZE:
        return DEFAULT_PRIORITY
    while position < size:
        member = _MEMBER.match(value, position)
        if member is None:
            return DEFAULT_PRIORITY
        name, said = member[1], member[2]
        if name == b"u":
            urgency = int(said) if said is not None and len(said) == 1 and b"0" <= said <= b"7" else _DEFAULT_URGENCY
        elif name == b"i":
            incremental = said in (None, b"?1")
        position = member.end()
        if position < size:
            if value[position] != 0x2C or position + 1 == size:  # a comma, and something behind it
                return DEFAULT_PRIORITY
            position += 1
    return StreamPriority(urgency, incremental)


def remember_early(early: dict[int, StreamPriority], stream_id: int, priority: StreamPriority, last: int) -> None:
    """Remember the priority of a stream that has not begun (RFC 9218 7.1); `last` is the highest that has.

    Raises ConnectionFault if there are too many.
    """
    early[stream_id] = priority
    if len(early) > MAX_PRIORITY_UPDATES:
        for left_out in [each for each in early if each <= last]:
            del early[left_out]
        if len(early) > MAX_PRIORITY_UPDATES:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many priorities of streams that do not come")


class _Level:
    """The streams of one urgency."""

    __slots__ = ("in_order", "sharing", "turn_of_order")

    def __init__(self) -> None:
        self.in_order: list[int] = []
        """Not incremental: in the order of the streams."""
        self.sharing: dict[int, None] = {}
        """Incremental: whose turn is next stands first."""
        self.turn_of_order = True
        """Where there are both: the turn is that of the first in order."""


class DataScheduler:
    """The streams of one connection that have DATA to send and a window to send it in."""

    __slots__ = ("_levels", "places")

    def __init__(self) -> None:
        self._levels: list[_Level | None] = [None] * URGENCIES
        self.places: dict[int, StreamPriority] = {}
        """Those streams, and where each stands."""

    def add(self, stream_id: int, priority: StreamPriority) -> None:
        """It has something to send; to be called again with a new priority, which is no new turn."""
        before = self.places.get(stream_id)
        if before == priority:
            return
        if before is not None:
            self.remove(stream_id)
        self.places[stream_id] = priority
        level = self._levels[priority.urgency]
        if level is None:
            level = self._levels[priority.urgency] = _Level()
        if priority.incremental:
            level.sharing[stream_id] = None
        else:
            insort(level.in_order, stream_id)

    def remove(self, stream_id: int) -> None:
        """It has nothing to send any more, or no window; it need not be there."""
        priority = self.places.pop(stream_id, None)
        if priority is not None:
            level = self._levels[priority.urgency]
            assert level is not None
            if priority.incremental:
                del level.sharing[stream_id]
            else:
                level.in_order.remove(stream_id)
            if not level.in_order and not level.sharing:
                level.turn_of_order = True

    def next(self) -> int:
        """Whose turn it is to send one frame. There must be somebody."""
        for level in self._levels:
            if level is None:
                continue
            if level.sharing and not (level.in_order and level.turn_of_order):
                level.turn_of_order = True
                stream_id = next(iter(level.sharing))
                del level.sharing[stream_id]  # behind the others
                level.sharing[stream_id] = None
                return stream_id
            if level.in_order:
                level.turn_of_order = False
                return level.in_order[0]
        raise AssertionError("nobody has anything to send")
