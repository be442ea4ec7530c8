"""How a connection closes after its last response: flush, shut down the write side, read to the end, close.

It owns the steps from the last written byte to the closed transport, and their deadline. Rule: closing never destroys a
response: close(2) with unread bytes from the client sends a reset, so the client is read until it ends its side too, up
to a limit in bytes and in time. It must not know requests.
"""

from __future__ import annotations

import math
from typing import Final

from serve_asgi.http.worker_context import WorkerContext
from serve_asgi.http.write_buffer import WriteBuffer

LINGER_TIME: Final = 2.0
"""How long (s) a client may take to end its side after the last response."""

LINGER_LIMIT: Final = 1 << 20
"""Bytes that are read from it meanwhile."""


class PoliteClose:
    """The end of one connection. The caller has flushed what was held, and reads on.

    It passes on what the transport says, and adopts `deadline` after each call.
    """

    __slots__ = ("_eof", "_left", "_output", "_worker", "deadline", "lingering")

    def __init__(self, worker: WorkerContext, output: WriteBuffer, eof: bool) -> None:
        """`eof`: the client has shut down its side."""
        self._worker = worker
        self._output = output
        self._eof = eof
        self._left = LINGER_LIMIT
        self.lingering = False
        """Everything is written and the write side shut down; reading until the client ends too."""
        self.deadline = math.inf

    def shut_down(self) -> None:
        """End the write side as soon as everything is written, then wait for the client's end."""
        transport = self._output.transport
        if self._eof:
            transport.close()
        else:
            try:
                transport.write_eof()  # once everything is written
            except OSError:  # asyncio's: the client has reset the connection, and the loop has not seen it yet
                transport.abort()
        if not transport.get_write_buffer_size():
            self.flushed()
        else:
            self._watch()
            transport.set_write_buffer_limits(0)

    def close(self) -> None:
        """Nothing is waited for but the writing."""
        self._watch()
        self._output.transport.close()

    def _watch(self) -> None:
        self._output.watch_client()
        self.deadline = self._worker.loop.time() + self._worker.config.write_timeout

    def flushed(self) -> None:
        """The kernel has taken everything."""
        transport = self._output.transport
        if self.lingering or transport.is_closing():
            return
        if self._eof:
            transport.close()
            return
        self.lingering = True
        self.deadline = self._worker.loop.time() + min(LINGER_TIME, self._worker.most_linger)

    def received(self, size: int) -> None:
        """The client still sends: it is read and dropped, up to a limit, so that it can read its last response."""
        if self.lingering:
            self._left -= size
            if self._left < 0:
                self._output.transport.close()

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline = math.inf
        if self.lingering:
            self._output.transport.close()
        elif self._output.stalled():
            self._output.transport.abort()
        else:
            self.deadline = self._worker.loop.time() + self._worker.config.write_timeout
