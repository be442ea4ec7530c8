"""The copies of the shared state that the processes of this server have: what each is sent, and who is behind.

It owns an account of each linked member (`serve_asgi.hub.state.replica`) and sends what waits as far as there is room,
much of it in several turns of the listener's loop. It knows nothing of writes and their askers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.state.replica import KeyChange, MemberReplica

FRAMES_PER_TURN: Final = 4
"""So many frames are sent to one process before the listener's loop gets on with other things."""


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
