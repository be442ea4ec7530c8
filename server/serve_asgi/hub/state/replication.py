"""Replication of the shared state to the processes of this server: what each is sent, and which lag.

Changes are sent in batches. A process applies a batch as a whole, so that it never has a later change without an
earlier one. Usually a batch is one change. While a process does not read, changes gather (the newest of each key) and
form the next batch. The first batch is the whole state; so is a later one, if more changes have gathered than there
are entries, so that the account stays small whatever is written while a process is blocked. A large batch is sent over
several turns of the listener's loop. Nothing here knows about writes or requesters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from serve_asgi.hub.core import Hub, Member
from serve_asgi.ipc.frames import pack_value
from serve_asgi.ipc.state_frames import KeyChange

FRAMES_PER_TURN: Final = 4
"""Frames that are sent to one process in one turn of the listener's loop."""
FRAME_SIZE: Final = 150_000
"""Bytes up to which a frame is filled; an entry with a larger value is a frame by itself."""
MAX_CHANGES: Final = 500
"""Most entries in a frame, so that its cost is bounded however small they are."""
MIN_GATHERED: Final = 4096
"""Changes that may gather in any case; more may if there are more keys."""
_AROUND: Final = 16
"""Most bytes that an entry takes besides its key and value: the version and MessagePack's markers."""


class Replication:
    """Sends changes to the members of one hub, and tracks what each has applied."""

    def __init__(self, hub: Hub, whole_state: Callable[[], Iterable[KeyChange]]) -> None:
        """`whole_state` returns all entries."""
        self._hub = hub
        self._whole_state = whole_state
        self._replicas: dict[int, MemberReplica] = {}
        self._unfinished: set[int] = set()  # members for which `send_more` has more
        self._last_laggard = -1  # the member that lagged at the last look

    def begin(self, member: Member, changes: int) -> None:
        """A member is linked, and gets the whole state as of `changes`."""
        replica = self._replicas[member.id] = MemberReplica(self._whole_state, changes)
        self._send_pending(member, replica)

    def forget(self, member: Member) -> None:
        """A member is gone, or will not apply anything any more."""
        self._replicas.pop(member.id, None)
        self._unfinished.discard(member.id)

    def change(self, item: KeyChange, changes: int, keys: int) -> None:
        """The state has changed; it has had `changes` changes by now, and has `keys` keys."""
        for id, replica in self._replicas.items():
            replica.add(item, changes, keys)
            self._send_pending(self._hub.members[id], replica)

    def resend(self, changes: int) -> None:
        """So much has changed that every member gets the whole state."""
        for id, replica in self._replicas.items():
            replica.resend(changes)
            self._send_pending(self._hub.members[id], replica)

    def room_available(self, member: Member) -> None:
        """The member's send queue has room again."""
        if (replica := self._replicas.get(member.id)) is not None:
            self._send_pending(member, replica)

    @property
    def unfinished(self) -> bool:
        """Whether `send_more` has to be called in the next turn of the loop."""
        return bool(self._unfinished)

    def send_more(self) -> None:
        """Continue for members that the last turn has not sent everything."""
        for id in list(self._unfinished):
            self._send_pending(self._hub.members[id], self._replicas[id])

    def _send_pending(self, member: Member, replica: MemberReplica) -> None:
        for _ in range(FRAMES_PER_TURN):
            if not replica.has_pending or not self._hub.port.has_room(member.id):
                self._unfinished.discard(member.id)
                return
            self._hub.send(member, "state.changes", *replica.next_frame())
        self._unfinished.add(member.id)

    # ---- acknowledgements

    def seen(self, member: Member, seq: int, changes: int) -> bool:
        """A member reports that it has applied `seq` of `changes` changes; False if it has no replica."""
        if (replica := self._replicas.get(member.id)) is None:
            return False
        replica.seen = max(replica.seen, seq)
        if replica.lag_reported and replica.seen >= changes:
            replica.lag_reported = False
        return True

    def has(self, member: Member, seq: int) -> bool:
        """Whether a member has applied `seq` changes, or never has to."""
        replica = self._replicas.get(member.id)
        return replica is None or replica.seen >= seq

    def is_anyone_behind(self, seq: int) -> bool:
        """Whether a live member has applied fewer than `seq` changes."""
        replica = self._replicas.get(self._last_laggard)
        member = self._hub.members.get(self._last_laggard)
        if replica is not None and member is not None and replica.seen < seq and member.up:
            return True
        for member in self.lagging(seq):
            self._last_laggard = member.id
            return True
        return False

    def lagging(self, seq: int) -> Iterator[Member]:
        """The live members that have applied fewer than `seq` changes."""
        for id, replica in self._replicas.items():
            if replica.seen < seq and self._hub.members[id].up:
                yield self._hub.members[id]

    def mark_reported(self, member: Member) -> bool:
        """A member's lag is about to be logged; False if it has been logged since the member last caught up."""
        replica = self._replicas[member.id]
        before, replica.lag_reported = replica.lag_reported, True
        return not before

    # ---- a new program of the listener

    def to_state(self) -> list[Any]:
        return [[id, replica.to_state()] for id, replica in self._replicas.items()]

    def load(self, state: list[Any]) -> None:
        """The reverse. Raises LookupError, TypeError or ValueError if it is invalid."""
        self._replicas = {
            id: MemberReplica.load(replica, self._whole_state) for id, replica in state if id in self._hub.members
        }
        self._unfinished = set(self._replicas)


class MemberReplica:
    """The account of one process's replica. `seen` is the number of changes that it has reported as applied."""

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
        """A replica that gets the whole state first, as of `changes`; `whole_state` returns it."""
        self.seen = -1
        self.lag_reported = False
        """Its lag has been logged, and it has not caught up since."""
        self._whole_state = whole_state
        self._batch: deque[KeyChange] = deque()
        self._target = self._newest = changes
        self._gathered: dict[str, KeyChange] = {}
        self._whole = False  # the present batch is the whole state
        self._resends = True  # the next batch will be

    def add(self, item: KeyChange, changes: int, keys: int) -> None:
        """The state has changed; it has had `changes` changes by now, and has `keys` keys."""
        self._newest = changes
        if self._resends:
            return
        self._gathered.pop(item.key, None)  # keep the order of the newest changes
        self._gathered[item.key] = item
        if len(self._gathered) > max(MIN_GATHERED, 2 * keys):
            self.resend(changes)

    def resend(self, changes: int) -> None:
        """Make the next batch the whole state, as of `changes`."""
        self._newest, self._resends = changes, True
        self._gathered.clear()

    @property
    def has_pending(self) -> bool:
        """Whether there is something to send."""
        return self._resends or bool(self._batch or self._gathered)

    def next_frame(self) -> tuple[dict[str, Any], bytes]:
        """Head and body of the next frame; only if `has_pending`.

        The head has `seq`, the number of changes applied after the batch; `more`, if this is not its last frame; and
        `whole`, if the batch replaces everything before.
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
        """All of it; `load` is the reverse."""
        batch, gathered = list(self._batch), list(self._gathered.values())
        return [self.seen, self._whole, self._resends, self._target, batch, self._newest, gathered]

    @classmethod
    def load(cls, state: list[Any], whole_state: Callable[[], Iterable[KeyChange]]) -> MemberReplica:
        """The reverse. Raises LookupError, TypeError or ValueError if it is invalid."""
        seen, whole, resends, target, batch, newest, gathered = state
        replica = cls(whole_state, target)
        replica.seen, replica._whole, replica._resends, replica._newest = seen, whole, resends, newest
        replica._batch.extend(KeyChange(*item) for item in batch)
        replica._gathered = {item[0]: KeyChange(*item) for item in gathered}
        return replica
