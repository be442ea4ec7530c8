"""This process's end of the hub: frames go out in order, and each kind that comes in has one taker.

One link per process and event loop. In a worker and in the agent it stands before the application is imported, over a
socket to the listener (`server.worker.hub_socket`); elsewhere the first use makes one to a hub of this process's own
(`server.app.local`). What an application imports (`messenger`, `shared`, `schedule`, `agent`) is bound to it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from server.errors import ChannelError, ServeError
from server.hub.frames import Frame, decode, encode
from server.hub.hub import Role
from server.logs import about

log = logging.getLogger("serve")


class LinkClosed(ServeError):
    """The server's listener is gone: nothing can be sent to other processes any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Which process this is."""

    role: Role
    slot: int  # -1 for the agent
    generation: int
    member: int  # its number in the life of the server
    local: bool = False  # it runs alone, as its own hub


class Link:
    """The end itself. Its transport gives it `transmit` and calls `receive` and `close`."""

    def __init__(self, identity: Identity, loop: asyncio.AbstractEventLoop, transmit: Callable[[bytes], None]) -> None:
        """`transmit` takes an encoded frame and returns at once."""
        self.identity = identity
        self.loop = loop
        self.closed = False
        self._transmit = transmit
        self._takers: dict[str, Callable[[Frame], None]] = {}
        self._at_close: list[Callable[[], None]] = []

    def take(self, kind: str, taker: Callable[[Frame], None]) -> None:
        """Have the frames of this kind taken by `taker`, which must not run code of the application itself."""
        self._takers[kind] = taker

    def at_close(self, do: Callable[[], None]) -> None:
        """Have `do` called when the link closes: who waits for an answer has to be told."""
        self._at_close.append(do)

    def send(self, kind: str, head: dict[str, Any] | None = None, body: bytes = b"") -> None:
        """Send a frame, after all that was sent before. Raises LinkClosed."""
        if self.closed:
            raise LinkClosed("the listener of this server is gone: other processes cannot be reached any more")
        self._transmit(encode(kind, head, body))

    def receive(self, data: bytes) -> None:
        """For the transport: a frame has come."""
        try:
            frame = decode(data)
            taker = self._takers.get(frame.kind)
            if taker is not None:
                taker(frame)
            else:
                log.debug("a frame of kind %r came, which this version does not know", frame.kind)
        except (LookupError, TypeError, ValueError, ChannelError) as error:
            log.error("a frame of the listener's could not be taken: %r", error, extra=about("frame_refused"))

    def close(self) -> None:
        """For the transport: nothing comes any more, and nothing can be sent."""
        if not self.closed:
            self.closed = True
            for do in self._at_close:
                do()


class Bound(Protocol):
    """Something of an application's that works over the link."""

    def bind(self, link: Link) -> None:
        """Use this link from here on; tell it what was registered before. Called again for another loop's link."""


_bound: Final[list[Bound]] = []
_link: Link | None = None


def register(part: Bound) -> None:
    """Have `part` bound to the link, now if there is one, and to each that comes."""
    _bound.append(part)
    if _link is not None:
        part.bind(_link)


def enter(link: Link) -> None:
    """This process's link is `link` from here on."""
    global _link
    _link = link
    for part in _bound:
        part.bind(link)


def current() -> Link:
    """The link of this process; where no server made one, to a hub of its own, in the running event loop.

    A loop that runs in another thread keeps its link. Raises RuntimeError where there is neither a link nor a running
    asyncio event loop.
    """
    if _link is not None:
        running = asyncio.get_running_loop() if _link.identity.local else None
        if running is None or _link.loop is running or _link.loop.is_running():
            return _link
    from server.app import local

    enter(local.link(asyncio.get_running_loop()))
    assert _link is not None
    return _link


def present() -> Link | None:
    """The link of this process if one stands, without making one."""
    return _link
