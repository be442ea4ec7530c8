"""The replicas of the shared state in the processes of this server: what each is sent, and who is behind.

Changes go out in batches, each the state's step from one number of changes to another: the process applies a batch as
a whole, so that it never has a later change without an earlier one. Usually a batch is one change. For a process that
does not read, changes gather, of each key the newest, and are the next batch. The first batch is the whole state; so is
the next one when more have gathered than there is state, which are deletions: an account stays small, whatever is
written while a process stands still. Much of it is sent in several turns of the listener's loop. Nothing here knows of
writes and who asked for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from serve_asgi.hub.core import Hub, Member
from serve_asgi.ipc.frames import pack_value
from serve_asgi.ipc.state_frames import KeyChange

FRAMES_PER_TURN: Final = 4
"""So many frames are sent to one process before the listener's loop gets on with other things."""
FRAME_SIZE: Final = 150_000
"""A frame is filled up to about so many bytes; an entry with the largest value is one by itself."""
MAX_CHANGES: Final = 500
"""At most so many entries in a frame: what a frame costs is bounded, however small they are."""
MIN_GATHERED: Final = 4096
"""So many changes may gather in any case; more if there are more keys."""
_AROUND: Final = 16
"""What an entry takes at most besides its key and value: the version and MessagePack's marks."""


class Replication:
    """The copies of one hub's members."""

    def __init__(self, hub: Hub, entire: Callable[[], Iterable[KeyChange]]) -> None:
        """`entire` tells the whole state."""
        self._hub = hub
        self._entire = entire
        self._copies: dict[int, MemberReplica] = {}
        self._unfed: set[int] = set()  # members that are to be sent more at the next `go_on`
        self._laggard = -1  # the member that was behind when it was last looked at

    def begin(self, member: Member, changes: int) -> None:
        """A member is linked, and gets the whole state, which has had so many changes."""
        copy = self._copies[member.id] = MemberReplica(self._entire, changes)
        self._feed(member, copy)

    def forget(self, member: Member) -> None:
        """It is gone, or will apply nothing any more."""
        self._copies.pop(member.id, None)
        self._unfed.discard(member.id)

    def change(self, item: KeyChange, changes: int, keys: int) -> None:
        """The state has changed, and has had so many changes now; it has so many keys."""
        for id, copy in self._copies.items():
            copy.add(item, changes, keys)
            self._feed(self._hub.members[id], copy)

    def renew(self, changes: int) -> None:
        """So much has changed that everybody gets the whole state."""
        for id, copy in self._copies.items():
            copy.renew(changes)
            self._feed(self._hub.members[id], copy)

    def room(self, member: Member) -> None:
        """There is room again in what waits to be sent to it."""
        if (copy := self._copies.get(member.id)) is not None:
            self._feed(member, copy)

    @property
    def waits_for_turn(self) -> bool:
        """`go_on` is to be called in the next turn of the loop."""
        return bool(self._unfed)

    def go_on(self) -> None:
        """Send more to those who have not got all that there was room for."""
        for id in list(self._unfed):
            self._feed(self._hub.members[id], self._copies[id])

    def _feed(self, member: Member, copy: MemberReplica) -> None:
        for _ in range(FRAMES_PER_TURN):
            if not copy.waits or not self._hub.port.room(member.id):
                self._unfed.discard(member.id)
                return
            self._hub.send(member, "state.changes", *copy.piece())
        self._unfed.add(member.id)

    # ---- who has what

    def seen(self, member: Member, seq: int, changes: int) -> bool:
        """It says that it has applied `seq` of so many changes; False for one without a copy."""
        if (copy := self._copies.get(member.id)) is None:
            return False
        copy.seen = max(copy.seen, seq)
        if copy.accused and copy.seen >= changes:
            copy.accused = False
        return True

    def has(self, member: Member, seq: int) -> bool:
        """Whether it has applied so many changes, or will never have to."""
        copy = self._copies.get(member.id)
        return copy is None or copy.seen >= seq

    def behind(self, seq: int) -> bool:
        """Whether one who lives has applied less."""
        copy = self._copies.get(self._laggard)
        member = self._hub.members.get(self._laggard)
        if copy is not None and member is not None and copy.seen < seq and member.up:
            return True
        for member in self.behind_by(seq):
            self._laggard = member.id
            return True
        return False

    def behind_by(self, seq: int) -> Iterator[Member]:
        """Who lives and has applied less."""
        for id, copy in self._copies.items():
            if copy.seen < seq and self._hub.members[id].up:
                yield self._hub.members[id]

    def accuse(self, member: Member) -> bool:
        """People are to be told that it lags; False if they have been since it caught up last."""
        copy = self._copies[member.id]
        before, copy.accused = copy.accused, True
        return not before

    # ---- a new program of the listener

    def to_state(self) -> list[Any]:
        return [[id, copy.to_state()] for id, copy in self._copies.items()]

    def load(self, state: list[Any]) -> None:
        """The reverse. Raises LookupError, TypeError or ValueError for nonsense."""
        self._copies = {id: MemberReplica.load(copy, self._entire) for id, copy in state if id in self._hub.members}
        self._unfed = set(self._copies)


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
