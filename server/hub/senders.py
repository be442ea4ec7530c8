"""What the senders of messages are told: accepted, handled, answered or failed; each message's end once.

It owns the messages whose sender has something to be told yet, and does not know where messages are.
"""

from __future__ import annotations

from server.hub.lanes import Send, Stage, Want
from server.hub.places import Outgoing


class Senders:
    """Those of one hub."""

    def __init__(self, out: Outgoing, counts: dict[str, int]) -> None:
        self._out = out
        self._counts = counts
        self.waiting: dict[str, Send] = {}
        """Messages whose sender has something to be told yet, by their ids."""

    def expect(self, send: Send) -> None:
        """A message has come, and its sender waits unless there is none."""
        if send.stage is not Stage.SETTLED:
            self.waiting[send.id] = send

    def of(self, member: int) -> list[Send]:
        """What this member waits for."""
        return [send for send in self.waiting.values() if send.sender == member]

    def look_if_placed(self, send: Send) -> None:
        """Tell the sender if every copy has a place now."""
        if send.missing or send.stage is not Stage.OFFERED:
            return
        self._counts["accepted"] += 1
        self._out.tell(send.sender, [send.id, "a", send.copies])
        if send.want is Want.PLACE:
            self.settle(send)
        else:
            send.stage = Stage.ACCEPTED

    def answered(self, send: Send, ok: bool, body: bytes) -> None:
        """The handler of a call has ended; `body` is its answer, or what went wrong."""
        if send.stage is Stage.ACCEPTED:
            self._out.tell(send.sender, [send.id, "r" if ok else "x", None], body)
            self.settle(send)

    def handled(self, send: Send, attempt: int, role: str, slot: int, generation: int) -> None:
        """The handler of an acknowledged message has ended, in this process."""
        if send.stage is Stage.ACCEPTED:
            self._out.tell(send.sender, [send.id, "h", [attempt, role, slot, generation]])
            self.settle(send)

    def fail(self, send: Send, code: str, text: str) -> None:
        """Tell the sender that nothing comes of it any more."""
        if send.stage is not Stage.SETTLED:
            self._out.tell(send.sender, [send.id, "f", [code, text]])
            self.settle(send)

    def settle(self, send: Send) -> None:
        """Nothing is to be told any more, or nobody is there to be told."""
        send.stage = Stage.SETTLED
        self.waiting.pop(send.id, None)

    def store_answered(self, id: str, trouble: str = "") -> None:
        """The other servers get a broadcast, or do not."""
        send = self.waiting.get(id)
        if send is None:
            return
        send.missing -= 1
        if trouble:
            self.fail(send, "store", f"the other servers do not get it: {trouble}")
        else:
            self.look_if_placed(send)
