"""The processes of this server, as far as this one knows: `messenger.peers`, `messenger.presence`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Final

from serve_asgi.app.hub_link import Link, register
from serve_asgi.ipc.frames import Frame
from serve_asgi.ipc.membership_frames import Role


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """A process of this server."""

    id: int
    role: Role
    generation: int
    slot: int  # -1 for the agent
    phase: str  # up, serving or retiring (`serve_asgi.ipc.membership_frames.MemberPhase`)


class Presence:
    """The newest list of processes, and its changes."""

    def __init__(self) -> None:
        self.peers: tuple[Peer, ...] = ()
        self.ready = False
        """The server has become ready: its first generation serves."""
        self._changed = asyncio.Event()

    def bind(self, link: Link) -> None:
        self._changed = asyncio.Event()
        link.on_frame("present", self._take)

    def agent(self) -> Peer | None:
        """The active agent, if there is one."""
        return next((p for p in self.peers if p.role is Role.AGENT and p.phase == "serving"), None)

    async def change(self) -> None:
        """Wait until something changes."""
        await self._changed.wait()

    async def changes(self) -> AsyncIterator[tuple[Peer, ...]]:
        """The processes, now and after each change; changes in quick succession may be one."""
        seen: tuple[Peer, ...] | None = None
        while True:
            if seen != self.peers:
                seen = self.peers
                yield seen
            else:
                await self.change()

    def _take(self, frame: Frame) -> None:
        self.peers = tuple(Peer(id, Role(role), *rest) for id, role, *rest in frame.head["members"])
        self.ready = frame.head["ready"]
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


presence: Final = Presence()
register(presence)
