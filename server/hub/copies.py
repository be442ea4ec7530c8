"""What one process has of the shared state, and what it has still to be sent: the hub's account of one copy.

Changes go out in batches, each the state's step from one number of changes to another: the process applies a batch as
a whole, so that it never has a later change without an earlier one. Usually a batch is one change. For a process that
does not read, changes gather, of each key the newest, and are the next batch; so its account stays smaller than the
state itself. The first batch is the whole state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from server.hub.frames import packed

PIECE: Final = 150_000
"""A frame is filled up to about so many bytes; an entry with the largest value is one by itself."""
ITEMS: Final = 500
"""At most so many entries in a frame: what a frame costs is bounded, however small they are."""
_AROUND: Final = 16
"""What an entry takes at most besides its key and value: the version and MessagePack's marks."""


class Item(NamedTuple):
    """What a key has: its newest change."""

    key: str
    version: int
    value: bytes | None  # None: deleted


class Copy:
    """The account of one process's copy. `seen` is how many changes it has said that it has applied."""

    __slots__ = ("_batch", "_gathered", "_newest", "_target", "_whole", "accused", "seen")

    def __init__(self, whole: Iterable[Item], changes: int) -> None:
        """A copy that is to get all of the state, which has had so many changes."""
        self.seen = -1
        self.accused = False
        """People have been told that it lags, and it has not caught up since."""
        self._batch = deque(whole)
        self._target = self._newest = changes
        self._gathered: dict[str, Item] = {}
        self._whole = True

    def add(self, item: Item, changes: int) -> None:
        """The state has changed, and has had so many changes now."""
        self._gathered.pop(item.key, None)  # so that the order is that of the newest changes
        self._gathered[item.key] = item
        self._newest = changes

    @property
    def waits(self) -> bool:
        """There is something to send."""
        return self._whole or bool(self._batch or self._gathered)

    def piece(self) -> tuple[dict[str, Any], bytes]:
        """Head and body of the next frame to send; only if one waits.

        The head has `seq`, how many changes are applied after the batch; `more`, if this is not its last frame; and
        `whole`, if the batch takes the place of everything before.
        """
        if not self._batch and not self._whole:
            self._batch.extend(self._gathered.values())
            self._gathered.clear()
            self._target = self._newest
        items: list[Item] = []
        room = PIECE
        while self._batch and room > 0 and len(items) < ITEMS:
            item = self._batch[0]
            room -= len(item.key.encode()) + len(item.value or b"") + _AROUND
            if items and room < 0:
                break
            items.append(item)
            self._batch.popleft()
        head: dict[str, Any] = {"seq": self._target}
        if self._whole:
            head["whole"] = True
        if self._batch:
            head["more"] = True
        else:
            self._whole = False
        return head, packed(items, "a batch")

    def to_state(self) -> list[Any]:
        """All of it, as MessagePack can hold it; `load` is the reverse."""
        return [self.seen, self._whole, self._target, list(self._batch), self._newest, list(self._gathered.values())]

    @classmethod
    def load(cls, state: list[Any]) -> Copy:
        """Raises LookupError, TypeError or ValueError for nonsense."""
        seen, whole, target, batch, newest, gathered = state
        copy = cls((Item(*item) for item in batch), target)
        copy.seen, copy._whole, copy._newest = seen, whole, newest
        copy._gathered = {item[0]: Item(*item) for item in gathered}
        return copy
