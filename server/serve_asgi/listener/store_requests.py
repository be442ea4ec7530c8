"""What the hub has asked of the store and what of it is not answered: every question is answered once.

It owns the bounded queue of frames that wait for the process, and knows which of them the process has got. What does
not fit, and what nobody will answer any more, is refused in the process's place, in a turn of the loop of its own: the
asker may be still busy asking. It knows no process and no socket.
"""

from __future__ import annotations

import asyncio
import base64
import collections
from collections.abc import Callable
from typing import Any, Final

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.frames import Frame, ValidatedFrame, decode, encode
from serve_asgi.ipc.store_frames import StoreFailure
from serve_asgi.store import replies

QUEUED: Final = 20_000
QUEUED_BYTES: Final = 32 * 1024 * 1024
"""What waits for the process at most; more is refused (`Trouble.BUSY`)."""

_FAMILIES: Final = {
    **dict.fromkeys(("store.write", "store.written", "store.read", "store.value", "store.refused"), "state"),
    **dict.fromkeys(("store.send", "store.sent", "store.unsent"), "send"),
    **dict.fromkeys(("store.grant", "store.granted", "store.taken"), "grant"),
}
"""Questions and their answers; ids are unique within a family."""


class StoreRequests:
    """The requests that one store process has not answered yet, and the refusals of those that it cannot get."""

    def __init__(self, give: Callable[[bytes], None]) -> None:
        """`give` takes an answer to the hub."""
        self._give = give
        self._waiting: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._asked: dict[tuple[str, Any], Frame] = {}  # what has not been answered, in the order of asking
        self._given: set[tuple[str, Any]] = set()  # of these, what the process has got
        self._refusals: list[replies.StoreReply] = []

    # What comes from the hub

    def put(self, data: bytes) -> None:
        """Have a frame wait for the process, or refuse it."""
        frame = decode(data)
        if len(self._waiting) >= QUEUED or self._bytes + len(data) > QUEUED_BYTES:
            text = f"{len(self._waiting)} requests wait for the store already; try again later"
            self.refuse(frame, StoreFailure.BUSY, text)
            return
        if (key := _asked(frame)) is not None:
            self._asked[key] = frame._replace(body=b"")
        self._waiting.append(data)
        self._bytes += len(data)

    def put_order(self, data: bytes) -> None:
        """A frame of the listener's own, which nobody answers."""
        self._waiting.append(data)
        self._bytes += len(data)

    def refuse(self, frame: Frame, why: StoreFailure, text: str) -> None:
        """Answer in the process's place, in a later turn of the loop."""
        if (found := replies.failed(frame.kind, frame.head, why, text)) is not None:
            self._refusals.append(found)
            if len(self._refusals) == 1:
                asyncio.get_running_loop().call_soon(self.give_refusals)

    def give_refusals(self) -> None:
        """Now."""
        found, self._refusals = self._refusals, []
        for each in found:
            self._give(encode(*each))

    # What goes to the process, and comes back

    def first(self) -> bytes | None:
        """The frame that is next; None if nothing waits."""
        return self._waiting[0] if self._waiting else None

    def given(self) -> None:
        """The process has got the first one."""
        data = self._waiting.popleft()
        self._bytes -= len(data)
        if (key := _asked(decode(data))) is not None and key in self._asked:
            self._given.add(key)

    def answered(self, frame: ValidatedFrame) -> None:
        """The process has said something; perhaps it is an answer. Raises ChannelError if nobody has asked for it."""
        if (family := _FAMILIES.get(frame.kind)) is not None:
            key = (family, frame.head.id)
            if self._asked.pop(key, None) is None:
                raise ChannelError(f"an answer {frame.kind!r} that nobody waits for")
            self._given.discard(key)

    @property
    def under_way(self) -> bool:
        """The process has got what it has not answered."""
        return bool(self._given)

    def forsaken(self, text: str, *, another_comes: bool) -> None:
        """The process has ended; what it has not got waits on, if another one takes its place."""
        for key in list(self._asked):
            if key in self._given:
                self.refuse(self._asked.pop(key), StoreFailure.UNKNOWN, f"{text}: nobody knows whether it was done")
            elif not another_comes:
                self.refuse(self._asked.pop(key), StoreFailure.UNAVAILABLE, text)
        self._given.clear()
        if not another_comes:
            self._waiting.clear()
            self._bytes = 0
        self.give_refusals()  # each says more than what is said to all of them next

    # A new program of the listener

    def to_state(self) -> dict[str, Any]:
        """All of it, JSON-compatible."""
        return {
            "queue": [_as_text(data) for data in self._waiting],
            "refusals": [_as_text(encode(*each)) for each in self._refusals],
            "given": [_as_text(encode(*frame)) for key, frame in self._asked.items() if key in self._given],
        }

    def load(self, left: dict[str, Any]) -> None:
        """The reverse, of a mapping that may hold more. Raises LookupError, TypeError or ValueError for nonsense."""
        for text in left["given"]:
            frame = decode(base64.b64decode(text))
            if (key := _asked(frame)) is not None:
                self._asked[key] = frame
                self._given.add(key)
        for text in left["queue"]:
            data = base64.b64decode(text)
            self.put_order(data)
            if (key := _asked(frame := decode(data))) is not None:
                self._asked[key] = frame._replace(body=b"")
        self._refusals = [replies.StoreReply(*decode(base64.b64decode(text))) for text in left["refusals"]]


def _asked(frame: Frame) -> tuple[str, Any] | None:
    """What a question is known by until it is answered, and its answer; None for other frames."""
    family = _FAMILIES.get(frame.kind)
    return None if family is None else (family, frame.head["id"])


def _as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()
