"""The messages of a WebSocket that wait for its application, and who waits for them.

It owns their order, their weight, and what `receive` says after the last of them. It must not know frames, the
transport, nor when reading pauses.
"""

from __future__ import annotations

import asyncio

from serve_asgi.http.worker_context import Message

INCOMING_HIGH = 64 * 1024
"""Bytes of messages that wait for the application, above which reading pauses."""
INCOMING_LOW = 16 * 1024


class ReceiveQueue:
    """Of one connection."""

    __slots__ = ("behind", "disconnect", "queue", "size", "waiters")

    def __init__(self) -> None:
        self.queue: list[str | bytes] = []
        self.size = 0
        """What waits, as `serve_asgi.websocket.framing.weigh` has it."""
        self.behind = False
        """Bytes that have come are neither read as frames nor unpacked before the application asks for more."""
        self.waiters: list[asyncio.Future[None]] = []
        """Calls of `receive` that wait."""
        self.disconnect: Message | None = None
        """What `receive` returns once the messages before it are read; set when the connection stops being open."""

    def tell_disconnect(self, code: int, reason: str) -> None:
        """Let the application know, once, after the messages that came before."""
        if self.disconnect is None:
            self.disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self.wake()

    def end_life(self) -> None:
        """What waits is for the next life of the connection."""
        self.queue.clear()
        self.size = 0
        self.behind = False

    def wake(self) -> None:
        """Let `receive` look again."""
        wake(self.waiters)


def wake(waiters: list[asyncio.Future[None]]) -> None:
    """Let all of them go on, each once."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()


async def wait(loop: asyncio.AbstractEventLoop, waiters: list[asyncio.Future[None]]) -> None:
    """Wait until `wake` is called on the list; the wait ends with the connection at the latest."""
    waiter: asyncio.Future[None] = loop.create_future()
    waiters.append(waiter)
    try:
        await waiter
    except asyncio.CancelledError:
        if waiter in waiters:
            waiters.remove(waiter)
        raise
