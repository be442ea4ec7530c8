"""How far a server has followed the stream of messages, also when its Redis or its store process is another one.

Messages are numbered from 1 on in each life of the data (an epoch). Data that were lost are another life, of which
everything was sent while this server was there: it is read from its beginning. After a fail-over the same life may go
on with less, and other messages under the same numbers: the newest of those that both have is looked for, and read
after. It asks nothing itself.
"""

from __future__ import annotations

import collections
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

REMEMBERED: Final = 10_000
"""The latest messages that are known again."""

Fields = Mapping[bytes, bytes]
StreamEntry = tuple[bytes, Fields]


class StreamPosition(NamedTuple):
    """A place in the stream of messages."""

    epoch: str
    number: int  # of the last message that was taken


NOWHERE: Final = StreamPosition("", 0)


def number_of(id: bytes) -> int:
    """The number in the id of an entry of the stream."""
    return int(id.partition(b"-")[0])


class FollowedMessages:
    """The place of one server."""

    def __init__(self, at: StreamPosition = NOWHERE) -> None:
        """`at` is where an earlier store process of this server was."""
        self.at = at
        self._marks: collections.deque[tuple[int, int]] = collections.deque(maxlen=REMEMBERED)

    def begin(self, epoch: str, last: int) -> bool:
        """The data are of this epoch, and `last` is the number of the latest message.

        Returns whether they have taken the place of others that were followed.
        """
        if epoch == self.at.epoch:
            return False
        replaced = self.at != NOWHERE
        self.at = StreamPosition(epoch, 0 if replaced else last)
        self._marks.clear()
        return replaced

    async def agree(self, entry_from: Callable[[int], Awaitable[list[StreamEntry]]]) -> int:
        """Go back to the newest message that the stream still has as it was; return how many it has lost.

        `entry_from` returns the first entry from this number on, if there is one.
        """
        gone = 0
        while self._marks:
            number, mark = self._marks[-1]
            found = await entry_from(number)
            if found and (number_of(found[0][0]) > number or _mark(found[0][1]) == mark):
                break  # it is there, or too old to be there
            self._marks.pop()
            self.at = self.at._replace(number=number - 1)
            gone += 1
        return gone

    def fits(self, fields: Fields) -> bool:
        """Whether a message is of the life that is followed."""
        return fields.get(b"e", self.at.epoch.encode()) == self.at.epoch.encode()

    def take(self, number: int, fields: Fields) -> int:
        """The next message; return how many were missed before it."""
        missed = number - self.at.number - 1
        self.at = self.at._replace(number=number)
        self._marks.append((number, _mark(fields)))
        return missed

    def cut(self, last: int) -> bool:
        """The stream ends at this number; return whether it is an earlier one than that which was taken last."""
        less = last < self.at.number
        if less:
            self.at = self.at._replace(number=last)
        return less


def _mark(fields: Fields) -> Any:
    """What a message is known by: its head has an id of its own."""
    return hash((fields[b"o"], fields[b"h"]))
