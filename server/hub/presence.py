"""Who is there: every member is told whenever that changes, and when the server is ready."""

from __future__ import annotations

from server.hub.hub import Hub, Member, Part, Phase


class Presence(Part):
    """Sends `present` {ready, members: [[id, role, generation, slot, phase], …]} to every linked member."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._told_ready = False
        self._linked: set[int] = set()

    def linked(self, member: Member) -> None:
        self._linked.add(member.id)
        self._tell(member)

    def changed(self, member: Member, before: Phase) -> None:
        if member.phase is Phase.RETIRING:
            self.hub.send(member, "retire")
        self._tell_all()

    def left(self, member: Member) -> None:
        self._linked.discard(member.id)
        if member.phase is not Phase.EXPECTED:
            self._tell_all()

    def tick(self) -> None:
        if self.hub.ready and not self._told_ready:
            self._told_ready = True
            self._tell_all()

    def to_state(self) -> dict[str, object]:
        return {"linked": sorted(self._linked), "told_ready": self._told_ready}

    def load(self, state: dict[str, object]) -> None:
        linked = state["linked"]
        assert isinstance(linked, list)
        self._linked, self._told_ready = set(linked), bool(state["told_ready"])

    def _tell_all(self) -> None:
        for member in list(self.hub.members.values()):
            if member.id in self._linked:
                self._tell(member)

    def _tell(self, member: Member) -> None:
        there = [
            [each.id, each.role.value, each.generation, each.slot, each.phase.value]
            for each in self.hub.members.values()
            if each.phase is not Phase.EXPECTED
        ]
        self.hub.send(member, "present", {"ready": self.hub.ready, "members": there})
