"""Which worker hands connections over to which, and what happens to offers whose sender has died.

A receiver that finds a pair closed without a commit cannot decide by itself: the sender may have withdrawn (and reads
the connection again) or be dead (and never will). Only the listener knows, from which comes first: the sender's
withdrawal, which it sends before it reads again, or its death. Until one of them is known there is no verdict.
"""

from __future__ import annotations

import dataclasses
import enum

from serve_asgi.supervisor.actions import Action, TellVerdict
from serve_asgi.supervisor.lifecycles import Worker


class PairFate(enum.Enum):
    """What is known of the sender's side of a pair."""

    OPEN = "open"
    WITHDRAWN = "withdrawn"
    ORPHANED = "orphaned"  # the sender died without a withdrawal


@dataclasses.dataclass(slots=True)
class HandOverPair:
    sender: Worker
    receiver: Worker
    fate: PairFate = PairFate.OPEN
    asked: bool = False  # the receiver is waiting for the verdict


class HandOverPairs:
    """All pairs whose receiver is alive."""

    __slots__ = ("all", "next")

    def __init__(self) -> None:
        self.all: dict[int, HandOverPair] = {}
        self.next = 1

    def connect(self, sender: Worker, receiver: Worker) -> int:
        """Add a pair and return its number."""
        number = self.next
        self.next += 1
        self.all[number] = HandOverPair(sender, receiver)
        return number

    def connected(self, sender: Worker, receiver: Worker) -> bool:
        """Whether there is an open pair from `sender` to `receiver`."""
        return any(p.sender is sender and p.receiver is receiver and p.fate is PairFate.OPEN for p in self.all.values())

    def withdrawn(self, worker: Worker, number: int) -> list[Action]:
        """The sender `worker` has withdrawn what it offered over the pair."""
        pair = self.all.get(number)
        if pair is None or pair.sender is not worker or pair.fate is not PairFate.OPEN:
            return []
        pair.fate = PairFate.WITHDRAWN
        return self._verdict(number, pair)

    def took_back(self, worker: Worker) -> list[Action]:
        """The sender `worker`, which is alive, has given up all its pairs, whatever it had offered."""
        mine = [(number, pair) for number, pair in self.all.items() if pair.sender is worker]
        return [action for number, pair in mine for action in self.withdrawn(pair.sender, number)]

    def closed(self, worker: Worker) -> None:
        """The receiver `worker`, which is alive, has closed all its pairs and holds no offer."""
        for number in [number for number, pair in self.all.items() if pair.receiver is worker]:
            del self.all[number]

    def lost(self, worker: Worker, number: int) -> Worker | None:
        """An end of the pair has not reached `worker`, so nothing was offered over it; return its sender, if it was
        open."""
        pair = self.all.get(number)
        if pair is None or worker not in (pair.sender, pair.receiver) or pair.asked or pair.fate is not PairFate.OPEN:
            return None
        del self.all[number]
        return pair.sender

    def orphaned(self, worker: Worker, number: int) -> list[Action]:
        """The receiver `worker` asks what to do with the pair's uncommitted offers."""
        pair = self.all.get(number)
        if pair is None or pair.receiver is not worker:
            return [TellVerdict(worker, number, keep=False)]
        pair.asked = True
        return self._verdict(number, pair)

    def died(self, worker: Worker) -> list[Action]:
        """A worker has been reaped: its pairs as a sender are orphaned, those as a receiver are gone."""
        actions: list[Action] = []
        for number, pair in list(self.all.items()):
            if pair.receiver is worker:
                del self.all[number]
            elif pair.sender is worker and pair.fate is PairFate.OPEN:
                pair.fate = PairFate.ORPHANED
                actions += self._verdict(number, pair)
        return actions

    def _verdict(self, number: int, pair: HandOverPair) -> list[Action]:
        if not pair.asked or pair.fate is PairFate.OPEN:
            return []
        del self.all[number]
        return [TellVerdict(pair.receiver, number, keep=pair.fate is PairFate.ORPHANED)]
