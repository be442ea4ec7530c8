"""This process's end of the link to the hub: frames are sent in order, and each kind of incoming frame has one handler.

There is one link per process and event loop. In a worker and in the agent it is made before the application is
imported, over a socket to the listener (`serve_asgi.worker.hub_socket`); elsewhere the first use makes one to a hub in
this process (`serve_asgi.app.local_mode`). `messenger`, `shared`, `schedule` and `agent` are bound to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar

from serve_asgi.errors import ChannelError, ServeError
from serve_asgi.ipc.frames import Frame, decode, encode
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.logs.server_log import about

log = logging.getLogger("serve")

T = TypeVar("T")


class NoLinkYet(ServeError):
    """The application is being imported in a template (--preload), which has no connection to other processes."""


class LinkClosed(ServeError):
    """The server's listener is gone: other processes cannot be reached any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Which process this is."""

    role: Role
    slot: int  # -1 for the agent
    generation: int
    member: int  # unique in the life of the server
    local: bool = False  # it runs alone, as its own hub


class Link:
    """One end. Its transport provides `transmit`, and calls `receive` and `close`."""

    stand_in = False
    """Its loop was started for threads (`serve_asgi.app.thread_loop`): any other loop replaces it."""

    def __init__(self, identity: Identity, loop: asyncio.AbstractEventLoop, transmit: Callable[[bytes], None]) -> None:
        """`transmit` sends an encoded frame and returns at once."""
        self.identity = identity
        self.loop = loop
        self.thread = threading.get_ident()
        """The one that the loop runs in: a link is made there."""
        self.closed = False
        self.process = os.getpid()
        """A child that the application forks inherits this, but is not a process of the server."""
        self._transmit = transmit
        self._handlers: dict[str, Callable[[Frame], None]] = {}
        self._on_close: list[Callable[[], None]] = []

    def on_frame(self, kind: str, handler: Callable[[Frame], None]) -> None:
        """Call `handler` with the frames of this kind; it must not run code of the application itself."""
        self._handlers[kind] = handler

    def on_close(self, do: Callable[[], None]) -> None:
        """Call `do` when the link closes, so that nobody waits for a reply any longer."""
        self._on_close.append(do)

    def send(self, kind: str, head: dict[str, Any] | None = None, body: bytes = b"") -> None:
        """Send a frame, in order. Raises LinkClosed."""
        if self.closed:
            raise LinkClosed("the listener of this server is gone: other processes cannot be reached any more")
        self._transmit(encode(kind, head, body))

    def receive(self, data: bytes) -> None:
        """For the transport: a frame has come."""
        try:
            frame = decode(data)
            handler = self._handlers.get(frame.kind)
            if handler is not None:
                handler(frame)
            else:
                log.debug("received a frame of unknown kind %r", frame.kind)
        except (LookupError, TypeError, ValueError, ChannelError) as error:
            log.error("a frame from the listener could not be decoded: %r", error, extra=about("frame_refused"))

    def let_go(self) -> None:
        """In a forked child: send and receive nothing any more."""
        self.closed = True

    def close(self) -> None:
        """For the transport: nothing can be received or sent any more."""
        if not self.closed:
            self.closed = True
            for do in self._on_close:
                do()


class LinkUser(Protocol):
    """Something that works over the link, such as `messenger`."""

    def bind(self, link: Link) -> None:
        """Use this link from now on, and send what was registered before. Called again for the link of another loop."""


_users: Final[list[LinkUser]] = []
_link: Link | None = None
_in_template = False
_lock: Final = threading.RLock()
"""Held while a link is made or a stand-in replaced, so that the first uses in several threads make one link."""
_imported_in: asyncio.AbstractEventLoop | None = None
"""The loop that ran when this was imported: under many servers, the one that will run the application."""
with contextlib.suppress(RuntimeError):
    _imported_in = asyncio.get_running_loop()


def register(part: LinkUser) -> None:
    """Bind `part` to the link, if there is one, and to every later one."""
    _users.append(part)
    if _link is not None:
        part.bind(_link)


def begin_template() -> None:
    """In a template, before the application is imported: there is no link, and none is made."""
    global _in_template
    _in_template = True


def is_template() -> bool:
    """Whether the application is being imported in a template."""
    return _in_template


def set_current(link: Link) -> None:
    """Make `link` the link of this process."""
    global _link, _in_template
    _link, _in_template = link, False
    for part in _users:
        part.bind(link)


def forget(link: Link) -> None:
    """The link is closed for good: the next use makes another one."""
    global _link
    if _link is link:
        _link = None


def current() -> Link:
    """The link of this process; if no server made one, one to a hub of its own in the running event loop.

    A loop that runs in another thread keeps its link. Raises RuntimeError if there is neither a link nor a running
    asyncio event loop, LinkClosed in a process that was forked from one of the server's, NoLinkYet in a template.
    """
    _check_not_template()
    if _link is not None:
        if not _link.identity.local:
            if _link.process != os.getpid():
                raise LinkClosed("this process was forked from a server process and is not one itself")
            return _link
        running = asyncio.get_running_loop()
        if _link.loop is running or (_is_running(_link) and not _link.stand_in):
            return _link
    from serve_asgi.app import local_mode as local

    loop = asyncio.get_running_loop()
    if _runs_one_call(loop):
        return link_for_thread()
    with _lock:
        before = _open_stand_in()
        if before is not None and _is_running(before):
            from serve_asgi.app import thread_loop as stand_in

            stand_in.stop()
        made = local.create_local_link(loop, before)
        set_current(made)
        made.begin()
    return made


def link_for_thread() -> Link:
    """The link for a thread that has no event loop of its own and may wait for that of the link.

    If no server made one, it is that of the loop for which the thread works, as far as known, or else of a loop that is
    started for it. Raises LinkClosed in a process that was forked from one of the server's, NoLinkYet in a template.
    """
    _check_not_template()
    if _link is not None and not _link.identity.local:
        return current()
    if _link is not None and _is_running(_link):
        return _link
    from serve_asgi.app import thread_loop as stand_in

    if (loop := stand_in.loop_of_this_thread(_imported_in)) is not None:
        return asyncio.run_coroutine_threadsafe(_current(), loop).result(stand_in.PATIENCE)
    with _lock:
        if _link is None or not _is_running(_link):
            stand_in.start(_open_stand_in())
        assert _link is not None
        return _link


async def run_on_link_loop(link: Link, coroutine: Coroutine[Any, Any, T]) -> T:
    """Await `coroutine` on the link's loop, from another one: a thread that has called `asyncio.run`."""
    try:
        asked = asyncio.run_coroutine_threadsafe(coroutine, link.loop)
    except RuntimeError:  # it is closed
        coroutine.close()
        raise LinkClosed("the event loop of this process has ended, and the process ends") from None
    return await asyncio.wrap_future(asked)


def _runs_one_call(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop runs one call of ours only (`asyncio.run(shared.incr("n"))`), and ends with it."""
    tasks = asyncio.all_tasks(loop)
    code = getattr(tasks.pop().get_coro(), "cr_code", None) if len(tasks) == 1 else None
    return code is not None and os.path.dirname(code.co_filename) == os.path.dirname(current.__code__.co_filename)


def _check_not_template() -> None:
    if _in_template:
        raise NoLinkYet(
            "with --preload the application is imported before its workers exist: messages, shared state and schedules "
            "cannot be used until then; use them in the lifespan, or in a function with @after_fork"
        )


async def _current() -> Link:
    return current()


def _open_stand_in() -> Link | None:
    """The stand-in link, also in a process forked from the one that made it: its state is taken over."""
    return _link if _link is not None and _link.stand_in and not _link.closed else None


def _is_running(link: Link) -> bool:
    """Whether the loop of a local link runs, in this process and not in the one from which this was forked."""
    return link.loop.is_running() and link.process == os.getpid()


def current_or_none() -> Link | None:
    """The link of this process, or None if none has been made."""
    return _link
