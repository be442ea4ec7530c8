"""Confirmations to senders: a message was accepted, handled, replied to, or failed.

It owns the messages whose sender still waits for a confirmation, and sends the last one of each message exactly once.
It does not know where messages are; `serve_asgi.hub.messages.routing` decides what happens to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from serve_asgi.errors import ChannelError
from serve_asgi.hub.messages.consumers import Consumer, SharedQueue
from serve_asgi.hub.messages.queues import DELIVERY_OVERHEAD, MessageStage, QueuedMessage
from serve_asgi.ipc.message_frames import AckMode, FrameBatcher

MAX_UNACCEPTED: Final = 1_024
MAX_UNACCEPTED_BYTES: Final = 4 * 1024 * 1024 + MAX_UNACCEPTED * DELIVERY_OVERHEAD
"""Messages of one sender that are not accepted yet, and the bytes of their payloads: four times the windows of
`serve_asgi.app.message_sender`, because the withdrawals of a sender may be read later than what it has sent since."""
MAX_NAMED_RECEIVERS: Final = 10
"""Most processes that one error names."""


class SenderConfirmations:
    """The confirmations of one hub."""

    def __init__(self, out: FrameBatcher, counts: dict[str, int]) -> None:
        self._out = out
        self._counts = counts
        self.waiting: dict[str, QueuedMessage] = {}
        """Messages whose sender still waits, by their keys."""
        self._unaccepted: dict[int, list[int]] = {}  # by sender: unaccepted messages, and their bytes

    def add(self, message: QueuedMessage) -> None:
        """Add a new message. Raises ChannelError if its sender already has one with this id."""
        if message.stage is not MessageStage.SETTLED:
            message.key = key = f"{message.sender}/{message.id}"
            if key in self.waiting:
                raise ChannelError(f"a second message {message.id!r}")
            self.waiting[key] = message

    def count_unaccepted(self, message: QueuedMessage) -> None:
        """It could not be accepted at once. Raises ChannelError for a sender that ignores its window."""
        account = self._unaccepted.setdefault(message.sender, [0, 0])
        message.unaccepted = True
        account[0] += 1
        account[1] += len(message.body) + DELIVERY_OVERHEAD
        if account[0] > MAX_UNACCEPTED or account[1] > MAX_UNACCEPTED_BYTES:
            count, size = account
            raise ChannelError(f"{count} messages of {size} bytes that are not accepted yet: it ignores its window")

    def _uncount(self, message: QueuedMessage) -> None:
        message.unaccepted = False
        account = self._unaccepted[message.sender]
        account[0] -= 1
        account[1] -= len(message.body) + DELIVERY_OVERHEAD

    def load(self, messages: Iterable[QueuedMessage]) -> None:
        """Restore the messages of an earlier program of the listener."""
        for message in messages:
            self.add(message)
            if message.stage is MessageStage.OFFERED:
                self.count_unaccepted(message)

    def left(self, member: int) -> None:
        """A member is gone, and all that it sent is settled."""
        self._unaccepted.pop(member, None)

    def of(self, member: int) -> list[QueuedMessage]:
        """The messages of this member that have not been settled."""
        return [message for message in self.waiting.values() if message.sender == member]

    def confirm_if_accepted(self, message: QueuedMessage) -> None:
        """Confirm that the message is accepted, if every delivery is queued by now."""
        if message.pending or message.stage is not MessageStage.OFFERED:
            return
        self._counts["accepted"] += 1
        self._out.confirm(message.sender, [message.id, "a", message.receivers])
        if message.ack_mode is AckMode.ACCEPTED:
            self.settle(message)
        else:
            if message.unaccepted:
                self._uncount(message)
            message.stage = MessageStage.ACCEPTED

    def replied(self, message: QueuedMessage, ok: bool, body: bytes) -> None:
        """The handler of a call has ended; `body` is its reply, or its error."""
        if message.stage is MessageStage.ACCEPTED:
            self._out.confirm(message.sender, [message.id, "r" if ok else "x", None], body)
            self.settle(message)

    def handled(self, message: QueuedMessage, attempt: int, role: str, slot: int, generation: int) -> None:
        """The handler of an acknowledged message has ended, in the process that is named."""
        if message.stage is MessageStage.ACCEPTED:
            self._out.confirm(message.sender, [message.id, "h", [attempt, role, slot, generation]])
            self.settle(message)

    def fail(self, message: QueuedMessage, code: str, text: str) -> None:
        """Report to the sender that the message has failed."""
        if message.stage is not MessageStage.SETTLED:
            self._out.confirm(message.sender, [message.id, "f", [code, text]])
            self.settle(message)

    def settle(self, message: QueuedMessage) -> None:
        """Its sender has its last confirmation, or is gone."""
        if message.unaccepted:
            self._uncount(message)
        message.stage = MessageStage.SETTLED
        self.waiting.pop(message.key, None)

    def store_replied(self, key: str, trouble: str = "") -> None:
        """The store has passed a broadcast on to the other servers, or says why not."""
        message = self.waiting.get(key)
        if message is None:
            return
        message.pending -= 1
        if trouble:
            self.fail(message, "store", f"the other servers do not get it: {trouble}")
        else:
            self.confirm_if_accepted(message)


def names_of(receivers: list[str]) -> str:
    """The receivers that had no room for a message, at most `MAX_NAMED_RECEIVERS`; none: the other servers."""
    more = f" and {len(receivers) - MAX_NAMED_RECEIVERS} others" if len(receivers) > MAX_NAMED_RECEIVERS else ""
    return (", ".join(receivers[:MAX_NAMED_RECEIVERS]) or "the other servers") + more


def described(owner: Consumer | SharedQueue) -> str:
    """What is queued there, as an error names it."""
    if isinstance(owner, Consumer):
        return f"topic {owner.topic!r} as {owner}"
    return f"topic {owner.key!r}" if isinstance(owner.key, str) else f"what is sent to {owner}"
