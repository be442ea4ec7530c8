"""The store process's end of the socket pair to the listener: it receives and sends frames, in order.

It owns the socket. The listener may read slowly: sending waits for room, which is the back-pressure on whoever makes
the replies.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any, Final

import anyio

from serve_asgi.ipc.frame_socket import make_room, receive
from serve_asgi.ipc.frames import Frame, decode, encode
from serve_asgi.store.replies import StoreReply

MAX_FRAMES: Final = 256
"""Most frames that are received at a time."""


class ListenerLink:
    """The link to the listener. One task may call `receive`, several may call `send`."""

    def __init__(self, end: socket.socket) -> None:
        """Take over the socket."""
        end.setblocking(False)
        make_room(end)
        self._socket = end
        self._sending = anyio.Lock()

    async def receive(self) -> list[Frame]:
        """Wait for frames; return all that are there, up to `MAX_FRAMES`.

        Raises EOFError when the listener is gone, ChannelError for an invalid frame.
        """
        while not (frames := self._receive_available()):
            await anyio.wait_readable(self._socket)
        return frames

    def _receive_available(self) -> list[Frame]:
        frames: list[Frame] = []
        while len(frames) < MAX_FRAMES:
            data = receive(self._socket)
            if data is None:
                break
            if not data:
                if frames:
                    break  # the end is read again next time
                raise EOFError
            frames.append(decode(data))
        return frames

    async def send(self, kind: str, head: dict[str, Any] | None = None, body: bytes = b"") -> None:
        """Send a frame. Raises BrokenPipeError or ConnectionResetError if the listener is gone."""
        data = encode(kind, head, body)
        async with self._sending:
            while True:
                try:
                    self._socket.send(data, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    await anyio.wait_writable(self._socket)
                else:
                    return

    async def send_all(self, found: Iterable[StoreReply]) -> None:
        """Send frames one after another; each is taken from the iterable when there is room for it."""
        for each in found:
            await self.send(*each)

    async def log(self, level: int, event: str, text: str, **more: Any) -> None:
        """Have the listener log an event (docs/reference/events.md)."""
        await self.send("store.say", {"level": level, "event": event, "text": text, "about": more})

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
