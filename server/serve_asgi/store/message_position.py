"""The position of a server in the stream of messages, over changes of the store and of the store process.

Messages are numbered from 1 on in each life of the data (an epoch). If the data were lost, a new life begins, all of it
while this server was running: it is read from its beginning. After a fail-over the same life may go on with fewer
messages, and others under the same numbers: the newest message that both have is looked for, and reading continues
after it. Nothing is read or sent here.
"""

from __future__ import annotations

import collections
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

REMEMBERED: Final = 10_000
"""The latest messages, which are recognised after a fail-over."""

Fields = Mapping[bytes, bytes]
StreamEntry = tuple[bytes, Fields]


class StreamPosition(NamedTuple):
    """A position in the stream of messages."""

    epoch: str
    number: int  # of the last message that was read


NOWHERE: Final = StreamPosition("", 0)


def number_of(id: bytes) -> int:
    """The number in the id of an entry of the stream."""
    return int(id.partition(b"-")[0])


class FollowedMessages:
    """The position of one server."""

    def __init__(self, at: StreamPosition = NOWHERE) -> None:
        """`at` is where an earlier store process of this server was."""
        self.at = at
        self._marks: collections.deque[tuple[int, int]] = collections.deque(maxlen=REMEMBERED)

    def begin(self, epoch: str, last: int) -> bool:
        """The data have this epoch, and `last` is the number of the latest message.

        Returns whether they have replaced other data that were followed.
        """
        if epoch == self.at.epoch:
            return False
        replaced = self.at != NOWHERE
        self.at = StreamPosition(epoch, 0 if replaced else last)
        self._marks.clear()
        return replaced

    async def agree(self, entry_from: Callable[[int], Awaitable[list[StreamEntry]]]) -> int:
        """Go back to the newest message that is unchanged in the stream; return how many were lost.

        `entry_from` returns the first entry from this number on, if there is one.
        """
        gone = 0
        while self._marks:
            number, mark = self._marks[-1]
            found = await entry_from(number)
            if found and (number_of(found[0][0]) > number or _mark(found[0][1]) == mark):
                break  # it is there, or it would have been removed anyway
            self._marks.pop()
            self.at = self.at._replace(number=number - 1)
            gone += 1
        return gone

    def fits(self, fields: Fields) -> bool:
        """Whether a message belongs to the epoch that is followed."""
        return fields.get(b"e", self.at.epoch.encode()) == self.at.epoch.encode()

    def take(self, number: int, fields: Fields) -> int:
        """Take the next message; return how many before it were missed."""
        missed = number - self.at.number - 1
        self.at = self.at._replace(number=number)
        self._marks.append((number, _mark(fields)))
        return missed

    def cut(self, last: int) -> bool:
        """The stream ends at this number; return whether that is before the last message that was taken."""
        less = last < self.at.number
        if less:
            self.at = self.at._replace(number=last)
        return less


def _mark(fields: Fields) -> Any:
    """What identifies a message: its head contains a unique id."""
    return hash((fields[b"o"], fields[b"h"]))
