"""What the senders of messages are told: accepted, handled, answered or failed; each message's end once.

It owns the messages whose sender has something to be told yet, and does not know where messages are.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Final

from server.errors import ChannelError
from server.hub.lanes import COPY_BYTES, Send, Stage, Want
from server.hub.places import Outgoing

MOST_OFFERED: Final = 1_024
MOST_OFFERED_BYTES: Final = 4 * 1024 * 1024 + MOST_OFFERED * COPY_BYTES
"""Messages of one sender that have no place yet, and their payloads: four times the windows of `server.app.sending`,
since what a sender that has given up takes back may be read later than what it has sent since."""


class Senders:
    """Those of one hub."""

    def __init__(self, out: Outgoing, counts: dict[str, int]) -> None:
        self._out = out
        self._counts = counts
        self.waiting: dict[str, Send] = {}
        """Messages whose sender has something to be told yet, by their keys."""
        self._offered: collections.Counter[int] = collections.Counter()
        self._offered_bytes: collections.Counter[int] = collections.Counter()

    def expect(self, send: Send) -> None:
        """A message has come, and its sender waits unless there is none.

        Raises ChannelError for a sender that heeds no window, or has sent one of this id already.
        """
        if send.stage is Stage.SETTLED:
            return
        if send.key in self.waiting:
            raise ChannelError(f"a second message {send.id!r}")
        self.waiting[send.key] = send
        if send.stage is Stage.OFFERED:
            self._count(send, 1)
            count, size = self._offered[send.sender], self._offered_bytes[send.sender]
            if count > MOST_OFFERED or size > MOST_OFFERED_BYTES:
                raise ChannelError(f"{count} messages of {size} bytes that are not accepted yet: it heeds no window")

    def _count(self, send: Send, sign: int) -> None:
        self._offered[send.sender] += sign
        self._offered_bytes[send.sender] += sign * (len(send.body) + COPY_BYTES)
        if not self._offered[send.sender]:
            del self._offered[send.sender], self._offered_bytes[send.sender]

    def load(self, sends: Iterable[Send]) -> None:
        """What another program of the listener has taken."""
        for send in sends:
            self.waiting[send.key] = send
            if send.stage is Stage.OFFERED:
                self._count(send, 1)

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
            self._count(send, -1)
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
        if send.stage is Stage.OFFERED and send.key in self.waiting:
            self._count(send, -1)
        send.stage = Stage.SETTLED
        self.waiting.pop(send.key, None)

    def store_answered(self, key: str, trouble: str = "") -> None:
        """The other servers get a broadcast, or do not."""
        send = self.waiting.get(key)
        if send is None:
            return
        send.missing -= 1
        if trouble:
            self.fail(send, "store", f"the other servers do not get it: {trouble}")
        else:
            self.look_if_placed(send)
