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
    """Sends changes to the members of one hub, and knows what each has applied."""

    def __init__(self, hub: Hub, whole_state: Callable[[], Iterable[KeyChange]]) -> None:
        """`whole_state` returns all that there is."""
        self._hub = hub
        self._whole_state = whole_state
        self._replicas: dict[int, MemberReplica] = {}
        self._unfinished: set[int] = set()  # members that are to be sent more by the next `send_more`
        self._last_laggard = -1  # the member that was behind at the last look

    def begin(self, member: Member, changes: int) -> None:
        """A member is linked, and gets the whole state, which has had so many changes."""
        replica = self._replicas[member.id] = MemberReplica(self._whole_state, changes)
        self._send_pending(member, replica)

    def forget(self, member: Member) -> None:
        """It is gone, or will apply nothing any more."""
        self._replicas.pop(member.id, None)
        self._unfinished.discard(member.id)

    def change(self, item: KeyChange, changes: int, keys: int) -> None:
        """The state has changed, and has had so many changes now; it has so many keys."""
        for id, replica in self._replicas.items():
            replica.add(item, changes, keys)
            self._send_pending(self._hub.members[id], replica)

    def resend(self, changes: int) -> None:
        """So much has changed that everybody gets the whole state."""
        for id, replica in self._replicas.items():
            replica.resend(changes)
            self._send_pending(self._hub.members[id], replica)

    def room_available(self, member: Member) -> None:
        """There is room again in what waits to be sent to it."""
        if (replica := self._replicas.get(member.id)) is not None:
            self._send_pending(member, replica)

    @property
    def unfinished(self) -> bool:
        """Whether `send_more` is to be called in the next turn of the loop."""
        return bool(self._unfinished)

    def send_more(self) -> None:
        """Send more to those that have not been sent all that there was room for."""
        for id in list(self._unfinished):
            self._send_pending(self._hub.members[id], self._replicas[id])

    def _send_pending(self, member: Member, replica: MemberReplica) -> None:
        for _ in range(FRAMES_PER_TURN):
            if not replica.has_pending or not self._hub.port.has_room(member.id):
                self._unfinished.discard(member.id)
                return
            self._hub.send(member, "state.changes", *replica.next_frame())
        self._unfinished.add(member.id)

    # ---- who has what

    def seen(self, member: Member, seq: int, changes: int) -> bool:
        """It says that it has applied `seq` of so many changes; False for one without a replica."""
        if (replica := self._replicas.get(member.id)) is None:
            return False
        replica.seen = max(replica.seen, seq)
        if replica.lag_reported and replica.seen >= changes:
            replica.lag_reported = False
        return True

    def has(self, member: Member, seq: int) -> bool:
        """Whether it has applied so many changes, or will never have to."""
        replica = self._replicas.get(member.id)
        return replica is None or replica.seen >= seq

    def is_anyone_behind(self, seq: int) -> bool:
        """Whether a live member has applied fewer."""
        replica = self._replicas.get(self._last_laggard)
        member = self._hub.members.get(self._last_laggard)
        if replica is not None and member is not None and replica.seen < seq and member.up:
            return True
        for member in self.lagging(seq):
            self._last_laggard = member.id
            return True
        return False

    def lagging(self, seq: int) -> Iterator[Member]:
        """The live members that have applied fewer."""
        for id, replica in self._replicas.items():
            if replica.seen < seq and self._hub.members[id].up:
                yield self._hub.members[id]

    def mark_reported(self, member: Member) -> bool:
        """Its lag is about to be logged; False if it has been since it last caught up."""
        replica = self._replicas[member.id]
        before, replica.lag_reported = replica.lag_reported, True
        return not before

    # ---- a new program of the listener

    def to_state(self) -> list[Any]:
        return [[id, replica.to_state()] for id, replica in self._replicas.items()]

    def load(self, state: list[Any]) -> None:
        """The reverse. Raises LookupError, TypeError or ValueError for nonsense."""
        self._replicas = {
            id: MemberReplica.load(replica, self._whole_state) for id, replica in state if id in self._hub.members
        }
        self._unfinished = set(self._replicas)


class MemberReplica:
    """The account of one process's replica. `seen` is how many changes it has said that it has applied."""

    __slots__ = (
        "_batch",
        "_gathered",
        "_newest",
        "_resends",
        "_target",
        "_whole",
        "_whole_state",
        "lag_reported",
        "seen",
    )

    def __init__(self, whole_state: Callable[[], Iterable[KeyChange]], changes: int) -> None:
        """A replica that is to get the whole state, which has had so many changes; `whole_state` returns it."""
        self.seen = -1
        self.lag_reported = False
        """It has been logged that it lags, and it has not caught up since."""
        self._whole_state = whole_state
        self._batch: deque[KeyChange] = deque()
        self._target = self._newest = changes
        self._gathered: dict[str, KeyChange] = {}
        self._whole = False  # the batch under way is the whole state
        self._resends = True  # the next one is

    def add(self, item: KeyChange, changes: int, keys: int) -> None:
        """The state has changed, and has had so many changes now; it has so many keys."""
        self._newest = changes
        if self._resends:
            return
        self._gathered.pop(item.key, None)  # so that the order is that of the newest changes
        self._gathered[item.key] = item
        if len(self._gathered) > max(MIN_GATHERED, 2 * keys):
            self.resend(changes)

    def resend(self, changes: int) -> None:
        """The next batch is the whole state, which has had so many changes."""
        self._newest, self._resends = changes, True
        self._gathered.clear()

    @property
    def has_pending(self) -> bool:
        """There is something to send."""
        return self._resends or bool(self._batch or self._gathered)

    def next_frame(self) -> tuple[dict[str, Any], bytes]:
        """Head and body of the next frame to send; only if one waits.

        The head has `seq`, how many changes are applied after the batch; `more`, if this is not its last frame; and
        `whole`, if the batch takes the place of everything before.
        """
        if not self._batch:
            self._whole, self._resends = self._resends, False
            self._batch.extend(self._whole_state() if self._whole else self._gathered.values())
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
        return [self.seen, self._whole, self._resends, self._target, batch, self._newest, gathered]

    @classmethod
    def load(cls, state: list[Any], whole_state: Callable[[], Iterable[KeyChange]]) -> MemberReplica:
        """Raises LookupError, TypeError or ValueError for nonsense."""
        seen, whole, resends, target, batch, newest, gathered = state
        replica = cls(whole_state, target)
        replica.seen, replica._whole, replica._resends, replica._newest = seen, whole, resends, newest
        replica._batch.extend(KeyChange(*item) for item in batch)
        replica._gathered = {item[0]: KeyChange(*item) for item in gathered}
        return replica
