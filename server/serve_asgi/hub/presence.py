"""Presence: each process is told who takes part in the server, whenever that has changed."""

from __future__ import annotations

from serve_asgi.hub.core import Hub, HubComponent, Member, State
from serve_asgi.ipc.membership_frames import MemberPhase


class PresenceBroadcast(HubComponent):
    """Sends `present` {ready, members: [[id, role, generation, slot, phase], …]} to every linked member."""

    name = "presence"

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._told_ready = False
        self._linked: set[int] = set()
        self._behind: set[int] = set()
        """Members without room: they are told the newest when they have some, and nothing in between."""

    def linked(self, member: Member) -> None:
        self._linked.add(member.id)
        self._tell(member)

    def changed(self, member: Member, before: MemberPhase) -> None:
        if member.phase is MemberPhase.RETIRING:
            self.hub.send(member, "retire")
        self._tell_all()

    def left(self, member: Member) -> None:
        self._linked.discard(member.id)
        self._behind.discard(member.id)
        if member.phase is not MemberPhase.EXPECTED:
            self._tell_all()

    def room_available(self, member: Member) -> None:
        if member.id in self._behind:
            self._behind.discard(member.id)
            self._tell(member)

    def tick(self) -> None:
        if self.hub.ready and not self._told_ready:
            self._told_ready = True
            self._tell_all()

    def to_state(self) -> State:
        return {"linked": sorted(self._linked), "behind": sorted(self._behind), "told_ready": self._told_ready}

    def load(self, state: State) -> None:
        self._linked, self._behind = set(state["linked"]), set(state["behind"])
        self._told_ready = state["told_ready"]

    def _tell_all(self) -> None:
        for member in list(self.hub.members.values()):
            if member.id not in self._linked:
                continue
            if self.hub.port.has_room(member.id):
                self._tell(member)
            else:
                self._behind.add(member.id)

    def _tell(self, member: Member) -> None:
        there = [
            [each.id, each.role.value, each.generation, each.slot, each.phase.value]
            for each in self.hub.members.values()
            if each.phase is not MemberPhase.EXPECTED
        ]
        self.hub.send(member, "present", {"ready": self.hub.ready, "members": there})
