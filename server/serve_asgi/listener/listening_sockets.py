"""The sockets that the server listens on: opened when the first generation is ready, kept open, closed at the stop.

It owns every listening socket from bind (`serve_asgi.listener.binding`) to close; workers receive duplicates. Rules:

- The port is bound at once and `listen()` follows when the first generation is ready. Until then connects are refused.
- SO_REUSEADDR is set for bind (connections in TIME_WAIT must not prevent a restart), cleared after it (with it, a
  second server could bind the port too while neither listens) and set again for listen (which would fail for
  TIME_WAIT otherwise).
- A socket that was inherited (--fd, LISTEN_FDS) belongs to the service manager: it is never shut out or removed.

It must not know of workers, generations or HTTP.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import select
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio

from serve_asgi.errors import ServeError, UsageError
from serve_asgi.ipc.path_lock import PathLock
from serve_asgi.ipc.shut_out_clients import Identity, SocketKind, arriving, let_in, shut_out, unlink_own
from serve_asgi.ipc.signals import LISTENER_SIGNALS
from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e

HANDSHAKE_TIME: Final = 1.0
"""Seconds for TCP handshakes under way to complete once new ones are kept out (the first retransmission)."""
LOOK_FOR_HANDSHAKES: Final = 0.01
"""Seconds between two checks for handshakes under way."""
LOOK: Final = 1.0
"""Seconds between two checks whether the sockets still listen: only the workers would get an event."""

log = logging.getLogger("serve")


@dataclasses.dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A socket that the server listens on. It owns the socket; `close` releases it."""

    socket: socket.socket
    name: str
    """Its name for the operator: http://127.0.0.1:8000, http://[::1]:8000, unix:/run/app.sock, fd:3."""
    kind: SocketKind
    owned: bool = True
    """False for a socket that was inherited: the service manager keeps it and uses it again."""
    path: str = ""
    identity: Identity | None = None
    lock: PathLock | None = None
    secure: bool = False
    """Whether it speaks TLS."""

    @property
    def redirects(self) -> bool:
        """Whether --https-redirect is for it: unix sockets are for proxies, which speak TLS themselves."""
        return self.kind is SocketKind.TCP and not self.secure

    def listen(self, backlog: int) -> None:
        """Start to listen. Raises UsageError if another server listens on the port by now."""
        if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return  # inherited, and the service manager chose its backlog
        if self.kind is SocketKind.TCP:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.socket.listen(backlog)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise UsageError(
                f"another program listens on {self.name} by now: stop it, or choose another port"
            ) from None

    def to_state(self, descriptors: list[int]) -> dict[str, Any]:
        """What `from_state` needs in a program that replaces this one; adds to `descriptors` those that must stay
        open."""
        descriptors.append(self.socket.fileno())
        return {
            "fd": self.socket.fileno(),
            "name": self.name,
            "kind": self.kind.value,
            "owned": self.owned,
            "path": self.path,
            "identity": self.identity,
            "lock": None if self.lock is None else self.lock.to_state(descriptors),
            **({"secure": True} if self.secure else {}),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ListeningSocket:
        """The socket, which belongs to the caller from here on."""
        return cls(
            socket=socket.socket(fileno=state["fd"]),
            name=state["name"],
            kind=SocketKind(state["kind"]),
            owned=state["owned"],
            path=state["path"],
            identity=None if state["identity"] is None else (state["identity"][0], state["identity"][1]),
            lock=None if state["lock"] is None else PathLock.from_state(state["lock"]),
            secure=state.get("secure", False),
        )

    @staticmethod
    def examine(state: dict[str, Any]) -> None:
        """Raise ValueError or LookupError if its kind is unknown."""
        SocketKind(state["kind"])

    def describe(self) -> dict[str, Any]:
        """What a worker needs to know about its duplicate; JSON-compatible."""
        return {"name": self.name, "kind": self.kind.value, "owned": self.owned}

    def handshakes_under_way(self) -> bool:
        """Whether clients are still in a handshake or in the accept queue.

        Always False for a unix socket, which has no handshake: accept from it until that fails.
        """
        return arriving(self.socket, self.kind) > 0

    def shut_out(self) -> None:
        """Keep new clients out, for all holders of the socket; those in the queue can still be accepted.

        An inherited socket stays open: whatever the service manager starts next serves its queue.
        """
        if self.owned:
            shut_out(self.socket, self.kind, self.path, self.identity)

    def is_shut_down(self) -> bool:
        """Whether a holder of a duplicate has called shutdown(2), which affects all of them."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def listen_again(self, backlog: int) -> None:
        """Listen again after that. Raises UsageError, and OSError if the port has been taken meanwhile."""
        if self.kind is SocketKind.UNIX:
            raise UsageError("a unix socket cannot listen again: restart the server")  # af_unix.c: it stays shut down
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.socket.bind(self.socket.getsockname())  # a port chosen by the kernel has been released
        except OSError as error:
            if error.errno != errno.EINVAL:  # it has kept its port
                raise
        self.listen(backlog)

    def let_in(self) -> bool:
        """Undo another process's `shut_out`; return whether there was one. Raises UsageError if it cannot be undone."""
        try:
            return self.owned and self.kind is SocketKind.TCP and let_in(self.socket)
        except PermissionError:
            raise UsageError("it has locked that (SO_LOCK_FILTER): restart the server") from None

    def close(self) -> None:
        """Close this process's copy, and remove the path of a unix socket if it is still ours.

        The port is free from here on, even if somebody has kept a duplicate, such as a library that forks behind
        Python's back.
        """
        if self.owned and self.identity is not None:
            unlink_own(self.path, self.identity)
        if self.owned and self.kind is SocketKind.TCP:
            with contextlib.suppress(OSError):  # ENOTCONN: it never listened
                self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        if self.lock is not None:
            self.lock.release()


def open_all(listening: Sequence[ListeningSocket], backlog: int) -> e.PortsOpened:
    """Call listen() on all; return the outcome."""
    try:
        for each in listening:
            each.listen(backlog)
    except (OSError, ServeError) as error:
        return e.PortsOpened(str(error))
    return e.PortsOpened()


async def shut_out_all(listening: Sequence[ListeningSocket]) -> e.ShutOutDone:
    """Keep new connections out, let handshakes under way complete, then return."""
    for each in listening:
        try:
            each.shut_out()
        except OSError as error:
            log.error("new connections to %s cannot be kept out before the stop: %s", each.name, error)
    with anyio.move_on_after(HANDSHAKE_TIME):
        while await anyio.to_thread.run_sync(_under_way, listening, abandon_on_cancel=True):
            await anyio.sleep(LOOK_FOR_HANDSHAKES)  # the kernel has no event for this
    return e.ShutOutDone()


def _under_way(listening: Sequence[ListeningSocket]) -> bool:
    """Whether any handshake is under way. Runs in a thread: the kernel walks through all connections."""
    signal.pthread_sigmask(signal.SIG_BLOCK, LISTENER_SIGNALS)  # they are for the main thread
    return any(each.owned and each.handshakes_under_way() for each in listening)


async def keep_open(
    listening: Sequence[ListeningSocket],
    backlog: Callable[[], int],
    is_open: Callable[[], bool],
    say: Callable[[actions.LogEvent], None],
) -> None:
    """Undo what a worker does to a shared listening socket by shutdown(2) or a filter, and report it."""
    given_up: set[str] = set()
    while True:
        await anyio.sleep(LOOK)
        for each in listening if is_open() else ():
            if each.name in given_up:
                continue
            try:
                if each.is_shut_down():
                    what, then = "shut it down for all", "it listens again, without the clients that were not accepted"
                    each.listen_again(backlog())
                else:
                    what, then = "kept new clients out of it", "clients can connect again"
                    if not each.let_in():
                        continue
            except (OSError, ServeError) as error:
                given_up.add(each.name)
                then = f"no client can connect any more: {error}"
            text = f"a process that has {each.name} as well, such as a worker, has {what}; {then}"
            say(actions.LogEvent(logging.ERROR, "socket_shut_down", text, "", {"address": each.name}))
