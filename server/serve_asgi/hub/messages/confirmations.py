"""What the senders of messages are told: accepted, handled, answered or failed; each message's end once.

It owns the messages whose sender has something to be told yet, and does not know where messages are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from serve_asgi.errors import ChannelError
from serve_asgi.hub.messages.consumers import FrameBatcher
from serve_asgi.hub.messages.queues import DELIVERY_OVERHEAD, AckMode, MessageStage, QueuedMessage

MAX_UNACCEPTED: Final = 1_024
MAX_UNACCEPTED_BYTES: Final = 4 * 1024 * 1024 + MAX_UNACCEPTED * DELIVERY_OVERHEAD
"""Messages of one sender that have no place yet, and their payloads: four times the windows of
`serve_asgi.app.sending`, since what a sender that has given up takes back may be read later than what it has sent
since."""


class SenderConfirmations:
    """Those of one hub."""

    def __init__(self, out: FrameBatcher, counts: dict[str, int]) -> None:
        self._out = out
        self._counts = counts
        self.waiting: dict[str, QueuedMessage] = {}
        """Messages whose sender has something to be told yet, by their keys."""
        self._held_up: dict[int, list[int]] = {}  # by sender: messages that are not accepted, and their bytes

    def expect(self, send: QueuedMessage) -> None:
        """A message has come, and its sender waits unless there is none.

        Raises ChannelError if the sender has sent one of this id already.
        """
        if send.stage is not MessageStage.SETTLED:
            send.key = key = f"{send.sender}/{send.id}"
            if key in self.waiting:
                raise ChannelError(f"a second message {send.id!r}")
            self.waiting[key] = send

    def hold_up(self, send: QueuedMessage) -> None:
        """It could not be accepted at once. Raises ChannelError for a sender that heeds no window."""
        account = self._held_up.setdefault(send.sender, [0, 0])
        send.held_up = True
        account[0] += 1
        account[1] += len(send.body) + DELIVERY_OVERHEAD
        if account[0] > MAX_UNACCEPTED or account[1] > MAX_UNACCEPTED_BYTES:
            count, size = account
            raise ChannelError(f"{count} messages of {size} bytes that are not accepted yet: it ignores its window")

    def _goes_on(self, send: QueuedMessage) -> None:
        send.held_up = False
        account = self._held_up[send.sender]
        account[0] -= 1
        account[1] -= len(send.body) + DELIVERY_OVERHEAD

    def load(self, sends: Iterable[QueuedMessage]) -> None:
        """What another program of the listener has taken."""
        for send in sends:
            self.expect(send)
            if send.stage is MessageStage.OFFERED:
                self.hold_up(send)

    def left(self, member: int) -> None:
        """It sends nothing any more, and all that it has sent is settled."""
        self._held_up.pop(member, None)

    def of(self, member: int) -> list[QueuedMessage]:
        """What this member waits for."""
        return [send for send in self.waiting.values() if send.sender == member]

    def look_if_placed(self, send: QueuedMessage) -> None:
        """Tell the sender if every copy has a place now."""
        if send.missing or send.stage is not MessageStage.OFFERED:
            return
        self._counts["accepted"] += 1
        self._out.tell(send.sender, [send.id, "a", send.copies])
        if send.want is AckMode.PLACE:
            self.settle(send)
        else:
            if send.held_up:
                self._goes_on(send)
            send.stage = MessageStage.ACCEPTED

    def answered(self, send: QueuedMessage, ok: bool, body: bytes) -> None:
        """The handler of a call has ended; `body` is its answer, or what went wrong."""
        if send.stage is MessageStage.ACCEPTED:
            self._out.tell(send.sender, [send.id, "r" if ok else "x", None], body)
            self.settle(send)

    def handled(self, send: QueuedMessage, attempt: int, role: str, slot: int, generation: int) -> None:
        """The handler of an acknowledged message has ended, in this process."""
        if send.stage is MessageStage.ACCEPTED:
            self._out.tell(send.sender, [send.id, "h", [attempt, role, slot, generation]])
            self.settle(send)

    def fail(self, send: QueuedMessage, code: str, text: str) -> None:
        """Tell the sender that nothing comes of it any more."""
        if send.stage is not MessageStage.SETTLED:
            self._out.tell(send.sender, [send.id, "f", [code, text]])
            self.settle(send)

    def settle(self, send: QueuedMessage) -> None:
        """Nothing is to be told any more, or nobody is there to be told."""
        if send.held_up:
            self._goes_on(send)
        send.stage = MessageStage.SETTLED
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
