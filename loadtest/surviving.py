"""The accounts of connections that survive reloads: one `Survivor` for each, and what they come to.

Pure: it knows no sockets, clock or processes. Both sides number what they send, from 1. A number that is missing until
its side has said how many it has sent is lost; one that comes again is duplicated; one that comes after a later one is
out of order. The client's messages count in the main accounts as well (`loadtest.ledger`), where the application's file
tells what was received, and how often.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from statistics import median


class Numbers:
    """One direction of one connection: which numbers have come."""

    __slots__ = ("_missing", "duplicated", "last", "out_of_order")

    def __init__(self) -> None:
        self.last = 0
        """The largest that has come."""
        self.duplicated = 0
        self.out_of_order = 0
        self._missing: set[int] = set()

    @property
    def lost(self) -> int:
        """How many are missing."""
        return len(self._missing)

    @property
    def count(self) -> int:
        """How many different ones have come."""
        return self.last - len(self._missing)

    def saw(self, number: int) -> None:
        """This one has come."""
        if number > self.last:
            self._missing.update(range(self.last + 1, number))
            self.last = number
        elif number in self._missing:
            self._missing.remove(number)
            self.out_of_order += 1
        else:
            self.duplicated += 1

    def end(self, count: int) -> None:
        """The other side says how many it has sent."""
        if count > self.last:
            self._missing.update(range(self.last + 1, count + 1))
            self.last = count


@dataclasses.dataclass(slots=True)
class Survivor:
    """One connection that is to survive, as its client has seen it."""

    kind: str
    sent: int = 0
    """What the client has numbered and sent."""
    answers: Numbers = dataclasses.field(default_factory=Numbers)
    """The numbers of the answers to it."""
    received: Numbers = dataclasses.field(default_factory=Numbers)
    """What the application has numbered and sent."""
    lives: int = 0
    """Calls of the application that it has had, by the count in its state."""
    generations: set[int] = dataclasses.field(default_factory=set)
    """Of the processes that have served it."""
    pings: int = 0
    """Of the client that wait for their pong."""
    wrong: list[str] = dataclasses.field(default_factory=list)
    """Other content than expected, bad framing."""
    ended: str = ""
    """How the server has ended it, if it was not asked to: the client has to connect again."""

    def lived(self, life: int, generation: int) -> None:
        """Something has come from this life."""
        if life < self.lives:
            self.wrong.append(f"life {life} speaks after life {self.lives}")
        self.lives = max(life, self.lives)
        self.generations.add(generation)

    @property
    def lost(self) -> int:
        """In both directions."""
        return self.answers.lost + self.received.lost

    @property
    def duplicated(self) -> int:
        """In both directions."""
        return self.answers.duplicated + self.received.duplicated

    @property
    def out_of_order(self) -> int:
        """In both directions."""
        return self.answers.out_of_order + self.received.out_of_order


HEAD: Sequence[str] = (
    "surviving",
    "connections",
    "lives",
    "median",
    "most",
    "client sent",
    "server sent",
    "lost",
    "duplicated",
    "out of order",
    "wrong",
    "reconnects",
)


def row(name: str, survivors: Sequence[Survivor]) -> list[str]:
    """The sums over some connections, in the order of HEAD."""
    lives = [each.lives for each in survivors]
    numbers = (
        len(survivors),
        sum(lives),
        round(median(lives or [0])),
        max(lives, default=0),
        sum(each.sent for each in survivors),
        sum(each.received.count for each in survivors),
        sum(each.lost for each in survivors),
        sum(each.duplicated for each in survivors),
        sum(each.out_of_order for each in survivors),
        sum(len(each.wrong) for each in survivors),
        sum(bool(each.ended) for each in survivors),
    )
    return [name, *(f"{number:,}" for number in numbers)]


def rows(survivors: Iterable[Survivor]) -> list[list[str]]:
    """HEAD, and one row for each kind of connection."""
    by_kind: dict[str, list[Survivor]] = {}
    for each in survivors:
        by_kind.setdefault(each.kind, []).append(each)
    return [list(HEAD), *(row(kind, mine) for kind, mine in by_kind.items())]


def problems(survivors: Sequence[Survivor], reloads: int) -> list[str]:
    """Sentences about what must not be."""
    sums = {
        "numbers were lost": sum(each.lost for each in survivors),
        "numbers came twice": sum(each.duplicated for each in survivors),
        "numbers came out of order": sum(each.out_of_order for each in survivors),
        "pings had no pong": sum(each.pings for each in survivors if not each.ended),
    }
    found = [f"{count:,} {what} on connections that survive" for what, count in sums.items() if count]
    for each in survivors:
        found += [f"a {each.kind}, in life {each.lives}: {what}" for what in each.wrong[:3]]
        if each.ended:
            found.append(f"a {each.kind} was ended in life {each.lives}: {each.ended}")
    for kind in {each.kind for each in survivors}:
        if reloads and not any(each.lives > 1 for each in survivors if each.kind == kind):
            found.append(f"no {kind} has survived a reload")
    return found[:20] + ([f"and {len(found) - 20} more of the kind"] if len(found) > 20 else [])
