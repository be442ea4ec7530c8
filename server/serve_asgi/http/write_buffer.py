"""The write buffer of a connection: what is written in one turn of the loop goes out together.

It owns the bytes that are held back until the turn ends, and the client's back-pressure. Rules: bytes keep their order;
what is held is written when the response ends, when it is much, or in the loop's next turn, whichever comes first;
nothing waits for a timer. It must not know what the bytes mean, nor what happens to a client that does not read: its
owner tells it when the transport is full (`paused`) and when it is writable again (`wake_writers`).
"""

from __future__ import annotations

import asyncio
from typing import Final

from serve_asgi.http.client_socket import unacknowledged
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.http.write_batching import Holder

HOLD_LIMIT: Final = 65536
"""This many held bytes are written at once."""

LARGE: Final = 16384
"""A larger piece (bytes) is not copied together with others."""

_LARGE: Final = LARGE
_HOLD_LIMIT: Final = HOLD_LIMIT
_SERVING: Final = WorkerPhase.SERVING


class WriteBuffer(Holder):
    """What the responses of one connection are written through. `hold` is for bytes that others will follow, `write`
    for the last of them.
    """

    __slots__ = (
        "_held",
        "_held_size",
        "_unread",
        "_waiters",
        "batching",
        "file_left",
        "paused",
        "transport",
        "worker",
    )

    transport: asyncio.Transport
    """Set by the owner, once it has one."""

    def __init__(self, worker: WorkerContext) -> None:
        self.worker = worker
        self.paused = False
        """The transport takes no more for now: whoever writes waits in `writable`."""
        self.batching = False
        """Requests are being answered in a row, whose end writes what is held: `write` holds too."""
        self.file_left = 0
        """Bytes of a file that is being sent without the transport."""
        self._unread = 0
        self._waiters: list[asyncio.Future[bool]] = []
        self._held: list[bytes] = []
        self._held_size = 0

    def write(self, data: bytes) -> None:
        """Write what ends a response: with the others of this turn of the loop, or now, after what is held."""
        if self.batching:
            self.hold(data)
        elif self._held:
            self._held.append(data)
            self.flush()
        elif len(data) > _LARGE or self.worker.phase is not _SERVING:
            self.worker.sent += len(data)
            self.transport.write(data)
        else:
            self._held.append(data)
            self._held_size += len(data)
            self.worker.write_batch.add(self)

    def write_large(self, *pieces: bytes) -> None:
        """The same for what is too large to be copied, with the pieces before it: all of it goes out together."""
        if self._held:
            pieces = (b"".join(self._held), *pieces)
            self._held = []
            self._held_size = 0
        for piece in pieces:
            self.worker.sent += len(piece)
        if len(pieces) > 1 and self.worker.gathers_writes:
            self.transport.writelines(pieces)
        else:
            for piece in pieces:
                self.transport.write(piece)

    def hold(self, data: bytes) -> None:
        """Write soon, together with whatever else this turn of the loop brings."""
        size = len(data)
        if size > _LARGE:
            self.write_large(data)
            return
        if not self._held and not self.batching:
            self.worker.loop.call_soon(self.flush)
        self._held.append(data)
        self._held_size += size
        if self._held_size > _HOLD_LIMIT:
            self.flush()

    def hold_framed(self, before: bytes, data: bytes, after: bytes) -> None:
        """The same for `data` with what frames it; the three are copied once, when they are written."""
        size = len(before) + len(data) + len(after)
        if size > _LARGE:
            self.write_large(before, data, after)
            return
        if not self._held and not self.batching:
            self.worker.loop.call_soon(self.flush)
        self._held += (before, data, after)
        self._held_size += size
        if self._held_size > _HOLD_LIMIT:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        held = self._held
        if held:
            self._held = []
            self._held_size = 0
            data = held[0] if len(held) == 1 else b"".join(held)
            self.worker.sent += len(data)
            self.transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self.transport.is_closing()

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    def drop_held(self) -> None:
        """The connection has ended: nothing is written any more."""
        self._held = []
        self._held_size = 0

    # ---- a client that reads slowly

    def unwritten(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._held_size + self.file_left + self.transport.get_write_buffer_size()

    def unacknowledged(self) -> int:
        """Bytes that the client has not taken yet: decreases as long as it reads, however slowly."""
        return self._held_size + self.file_left + unacknowledged(self.transport)

    def watch_client(self) -> None:
        """Begin to watch whether the client takes what is written; ask `stalled`."""
        self._unread = self.unacknowledged()

    def stalled(self) -> bool:
        """Whether the client has taken nothing since this, or `watch_client`, was last asked."""
        unread, before = self.unacknowledged(), self._unread
        self._unread = unread
        return unread >= before

    def wake_writers(self, enough: bool = False) -> None:
        """Let those who wait in `writable` look again, or let them go on in any case if that is `enough`."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(enough)

    def release_writers(self) -> None:
        """Let those who wait in `writable` go on although the transport takes no more: they will not write more."""
        self.wake_writers(enough=True)

    async def writable(self) -> None:
        """Wait until the transport takes more, or is closed. Ends when the client reads, or at `write_timeout`."""
        while self.paused:
            waiter: asyncio.Future[bool] = self.worker.loop.create_future()
            self._waiters.append(waiter)
            if await waiter:
                return

    async def written(self) -> None:
        """Wait until the kernel has every byte, or the transport is closed. Ends as `writable` does."""
        self.flush()
        transport = self.transport
        while transport.get_write_buffer_size() and not transport.is_closing():
            transport.set_write_buffer_limits(0)
            if not self.paused:
                await asyncio.sleep(0)  # the transport writes at the end of the loop's turn
            await self.writable()
        if not transport.is_closing():
            transport.set_write_buffer_limits()
