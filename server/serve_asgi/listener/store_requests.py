"""The hub's requests to the store that have no reply yet: every request gets exactly one.

It owns the bounded queue of frames for the process, and knows which of them the process has been sent. Requests that do
not fit, and those that nobody will reply to, are refused on the process's behalf, in a later turn of the loop, since
the caller may not be ready for the reply. It knows no process and no socket.
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
"""Most bytes that are queued for the process; more is refused (`StoreFailure.BUSY`)."""

_FAMILIES: Final = {
    **dict.fromkeys(("store.write", "store.written", "store.read", "store.value", "store.refused"), "state"),
    **dict.fromkeys(("store.send", "store.sent", "store.unsent", "store.post", "store.posted"), "send"),
    **dict.fromkeys(("store.withdraw", "store.withdrawn"), "withdraw"),
    **dict.fromkeys(("store.settle", "store.settled", "store.unsettled"), "settle"),
    **dict.fromkeys(("store.grant", "store.granted", "store.taken"), "grant"),
}
"""Requests and their replies; ids are unique within a family."""


class StoreRequests:
    """The pending requests of one store process, and the refusals of those that it cannot get."""

    def __init__(self, give: Callable[[bytes], None]) -> None:
        """`give` takes a reply for the hub."""
        self._give = give
        self._waiting: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._asked: dict[tuple[str, Any], Frame] = {}  # pending requests, in order
        self._given: set[tuple[str, Any]] = set()  # of these, what the process has been sent
        self._refusals: list[replies.StoreReply] = []

    # From the hub

    def put(self, data: bytes) -> None:
        """Queue a frame for the process, or refuse it."""
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
        """Queue a frame of the listener's own, which gets no reply."""
        self._waiting.append(data)
        self._bytes += len(data)

    def refuse(self, frame: Frame, why: StoreFailure, text: str) -> None:
        """Reply on the process's behalf, in a later turn of the loop."""
        if (found := replies.failed(frame.kind, frame.head, why, text)) is not None:
            self._refusals.append(found)
            if len(self._refusals) == 1:
                asyncio.get_running_loop().call_soon(self.give_refusals)

    def give_refusals(self) -> None:
        """Send the refusals now."""
        found, self._refusals = self._refusals, []
        for each in found:
            self._give(encode(*each))

    # To the process, and back

    def first(self) -> bytes | None:
        """The next frame to send; None if there is none."""
        return self._waiting[0] if self._waiting else None

    def given(self) -> None:
        """The first frame has been sent."""
        data = self._waiting.popleft()
        self._bytes -= len(data)
        if (key := _asked(decode(data))) is not None and key in self._asked:
            self._given.add(key)

    def answered(self, frame: ValidatedFrame) -> None:
        """Take a frame from the process, which may be a reply. Raises ChannelError if it replies to no request."""
        if (family := _FAMILIES.get(frame.kind)) is not None:
            key = (family, frame.head.id)
            if self._asked.pop(key, None) is None:
                raise ChannelError(f"a reply {frame.kind!r} to no request")
            self._given.discard(key)

    @property
    def under_way(self) -> bool:
        """Whether the process has been sent requests that it has not replied to."""
        return bool(self._given)

    def forsaken(self, text: str, *, another_comes: bool) -> None:
        """The process has ended; requests that it was not sent keep waiting if another one replaces it."""
        for key in list(self._asked):
            if key in self._given:
                self.refuse(self._asked.pop(key), StoreFailure.UNKNOWN, f"{text}: nobody knows whether it was done")
            elif not another_comes:
                self.refuse(self._asked.pop(key), StoreFailure.UNAVAILABLE, text)
        self._given.clear()
        if not another_comes:
            self._waiting.clear()
            self._bytes = 0
        self.give_refusals()  # each is more specific than what all of them are told next

    # Re-exec

    def to_state(self) -> dict[str, Any]:
        """All of it, JSON-compatible."""
        return {
            "queue": [_as_text(data) for data in self._waiting],
            "refusals": [_as_text(encode(*each)) for each in self._refusals],
            "given": [_as_text(encode(*frame)) for key, frame in self._asked.items() if key in self._given],
        }

    def load(self, left: dict[str, Any]) -> None:
        """The reverse; ignores other members. Raises LookupError, TypeError or ValueError if `left` is invalid."""
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
    """The key of a request and of its reply; None for other frames."""
    family = _FAMILIES.get(frame.kind)
    return None if family is None else (family, frame.head["id"])


def _as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()
