"""What one process has of the shared state, and what it has still to be sent: the hub's account of one copy.

Changes go out in batches, each the state's step from one number of changes to another: the process applies a batch as
a whole, so that it never has a later change without an earlier one. Usually a batch is one change. For a process that
does not read, changes gather, of each key the newest, and are the next batch. The first batch is the whole state; so is
the next one when more have gathered than there is state, which are deletions: an account stays small, whatever is
written while a process stands still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from serve_asgi.ipc.frames import pack_value

FRAME_SIZE: Final = 150_000
"""A frame is filled up to about so many bytes; an entry with the largest value is one by itself."""
MAX_CHANGES: Final = 500
"""At most so many entries in a frame: what a frame costs is bounded, however small they are."""
MIN_GATHERED: Final = 4096
"""So many changes may gather in any case; more if there are more keys."""
_AROUND: Final = 16
"""What an entry takes at most besides its key and value: the version and MessagePack's marks."""


class KeyChange(NamedTuple):
    """What a key has: its newest change."""

    key: str
    version: int
    value: bytes | None  # None: deleted


class MemberReplica:
    """The account of one process's copy. `seen` is how many changes it has said that it has applied."""

    __slots__ = ("_batch", "_entire", "_gathered", "_newest", "_renews", "_target", "_whole", "accused", "seen")

    def __init__(self, entire: Callable[[], Iterable[KeyChange]], changes: int) -> None:
        """A copy that is to get all of the state, which has had so many changes; `entire` tells what it is."""
        self.seen = -1
        self.accused = False
        """People have been told that it lags, and it has not caught up since."""
        self._entire = entire
        self._batch: deque[KeyChange] = deque()
        self._target = self._newest = changes
        self._gathered: dict[str, KeyChange] = {}
        self._whole = False  # the batch under way is the whole state
        self._renews = True  # the next one is

    def add(self, item: KeyChange, changes: int, keys: int) -> None:
        """The state has changed, and has had so many changes now; it has so many keys."""
        self._newest = changes
        if self._renews:
            return
        self._gathered.pop(item.key, None)  # so that the order is that of the newest changes
        self._gathered[item.key] = item
        if len(self._gathered) > max(MIN_GATHERED, 2 * keys):
            self.renew(changes)

    def renew(self, changes: int) -> None:
        """The next batch is the whole state, which has had so many changes."""
        self._newest, self._renews = changes, True
        self._gathered.clear()

    @property
    def waits(self) -> bool:
        """There is something to send."""
        return self._renews or bool(self._batch or self._gathered)

    def piece(self) -> tuple[dict[str, Any], bytes]:
        """Head and body of the next frame to send; only if one waits.

        The head has `seq`, how many changes are applied after the batch; `more`, if this is not its last frame; and
        `whole`, if the batch takes the place of everything before.
        """
        if not self._batch:
            self._whole, self._renews = self._renews, False
            self._batch.extend(self._entire() if self._whole else self._gathered.values())
            self._gathered.clear()
            self._target = self._newest
        items: list[KeyChange] = []
        room = FRAME_SIZE
        while self._batch and room > 0 and len(items) < MAX_CHANGES:
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
        return head, pack_value(items, "a batch")

    def to_state(self) -> list[Any]:
        """All of it, as MessagePack can hold it; `load` is the reverse."""
        batch, gathered = list(self._batch), list(self._gathered.values())
        return [self.seen, self._whole, self._renews, self._target, batch, self._newest, gathered]

    @classmethod
    def load(cls, state: list[Any], entire: Callable[[], Iterable[KeyChange]]) -> MemberReplica:
        """Raises LookupError, TypeError or ValueError for nonsense."""
        seen, whole, renews, target, batch, newest, gathered = state
        copy = cls(entire, target)
        copy.seen, copy._whole, copy._renews, copy._newest = seen, whole, renews, newest
        copy._batch.extend(KeyChange(*item) for item in batch)
        copy._gathered = {item[0]: KeyChange(*item) for item in gathered}
        return copy
