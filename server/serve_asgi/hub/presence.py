"""Presence: every process is sent the list of members whenever it changes."""

from __future__ import annotations

from serve_asgi.hub.core import Hub, HubComponent, Member, State
from serve_asgi.ipc.membership_frames import MemberPhase


class PresenceBroadcast(HubComponent):
    """Sends `present` {ready, members: [[id, role, generation, slot, phase], …]} to every linked member."""

    name = "presence"

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._ready_sent = False
        self._linked: set[int] = set()
        self._behind: set[int] = set()
        """Members whose send queue is full: they get the newest list once there is room, and none in between."""

    def linked(self, member: Member) -> None:
        self._linked.add(member.id)
        self._send_list(member)

    def changed(self, member: Member, before: MemberPhase) -> None:
        if member.phase is MemberPhase.RETIRING:
            self.hub.send(member, "retire")
        elif before is MemberPhase.RETIRING:
            self.hub.send(member, "resume")
        self._send_to_all()

    def left(self, member: Member) -> None:
        self._linked.discard(member.id)
        self._behind.discard(member.id)
        if member.phase is not MemberPhase.EXPECTED:
            self._send_to_all()

    def room_available(self, member: Member) -> None:
        if member.id in self._behind:
            self._behind.discard(member.id)
            self._send_list(member)

    def tick(self) -> None:
        if self.hub.ready and not self._ready_sent:
            self._ready_sent = True
            self._send_to_all()

    def to_state(self) -> State:
        return {"linked": sorted(self._linked), "behind": sorted(self._behind), "told_ready": self._ready_sent}

    def load(self, state: State) -> None:
        self._linked, self._behind = set(state["linked"]), set(state["behind"])
        self._ready_sent = state["told_ready"]

    def _send_to_all(self) -> None:
        for member in list(self.hub.members.values()):
            if member.id not in self._linked:
                continue
            if self.hub.port.has_room(member.id):
                self._send_list(member)
            else:
                self._behind.add(member.id)

    def _send_list(self, member: Member) -> None:
        there = [
            [each.id, each.role.value, each.generation, each.slot, each.phase.value]
            for each in self.hub.members.values()
            if each.phase is not MemberPhase.EXPECTED
        ]
        self.hub.send(member, "present", {"ready": self.hub.ready, "members": there})
