"""Binding the sockets that the server listens on, and giving them up without losing a client.

It owns every listening socket from bind to close; workers receive duplicates. Its rules:

- The port is taken at once and `listen()` comes when the first generation is ready. In between, connects are refused.
- SO_REUSEADDR is set for bind (connections in TIME_WAIT must not hinder a restart), cleared after it (with it, a
  second server could bind the port too while neither listens) and set again for listen (which would fail for
  TIME_WAIT otherwise).
- A socket that was inherited (--fd, LISTEN_FDS) belongs to the service manager: it is never shut out or removed.
- Waiting for a port happens before any event loop runs: TERM, INT and QUIT, which are blocked by then, end the wait.

It must not know of workers, generations or HTTP.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from serve_asgi.config.addresses import TcpAddress, UnixAddress, addresses, parse_address
from serve_asgi.config.options import Config
from serve_asgi.errors import ServeError, UsageError
from serve_asgi.ipc.listening_socket import Identity, SocketKind, arriving, let_in, shut_out, unlink_own
from serve_asgi.ipc.path_lock import InUseError, PathLock
from serve_asgi.listener.inherited_sockets import from_descriptor, from_service_manager
from serve_asgi.listener.port_holder import holder_of_port
from serve_asgi.listener.unix_socket import bind_unix

RETRY: Final = 0.1  # seconds between two tries to bind
TRIES: Final = 16
"""How many ports may turn out to be free on one address of a host and not on another."""
EVERY: Final = frozenset({"0.0.0.0", "::"})
ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


class StoppedError(ServeError):
    """A signal asked the server to stop before it had begun. Nobody's fault."""

    exit_status = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Listening:
    """A socket that the server listens on. It owns the socket; `close` gives it back."""

    socket: socket.socket
    name: str
    """What the operator is told: http://127.0.0.1:8000, http://[::1]:8000, unix:/run/app.sock, fd:3."""
    kind: SocketKind
    owned: bool = True
    """False for a socket that was inherited: the service manager keeps it and uses it again."""
    path: str = ""
    identity: Identity | None = None
    lock: PathLock | None = None

    def listen(self, backlog: int) -> None:
        """Begin to let clients in. Raises UsageError if another server listens on the port by now."""
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
        """What `from_state` needs in a program that takes this one's place; `descriptors` gets what must stay open."""
        descriptors.append(self.socket.fileno())
        return {
            "fd": self.socket.fileno(),
            "name": self.name,
            "kind": self.kind.value,
            "owned": self.owned,
            "path": self.path,
            "identity": self.identity,
            "lock": None if self.lock is None else self.lock.to_state(descriptors),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Listening:
        """The socket, which belongs to the caller from here on."""
        return cls(
            socket=socket.socket(fileno=state["fd"]),
            name=state["name"],
            kind=SocketKind(state["kind"]),
            owned=state["owned"],
            path=state["path"],
            identity=None if state["identity"] is None else (state["identity"][0], state["identity"][1]),
            lock=None if state["lock"] is None else PathLock.from_state(state["lock"]),
        )

    @staticmethod
    def examine(state: dict[str, Any]) -> None:
        """Raise ValueError or LookupError if it is of a kind that is not known here."""
        SocketKind(state["kind"])

    def describe(self) -> dict[str, Any]:
        """What a worker is told about its duplicate; JSON-compatible."""
        return {"name": self.name, "kind": self.kind.value, "owned": self.owned}

    def handshakes_under_way(self) -> bool:
        """Whether a client that was let in has not yet come through the queue: handshakes, and those not accepted.

        Always False for a unix socket, which has no handshake: accept from it until that fails.
        """
        return arriving(self.socket, self.kind) > 0

    def shut_out(self) -> None:
        """Let nobody new in, for all holders of the socket; those in the queue can still be accepted.

        An inherited socket stays open: its queue is served by whoever the service manager starts next.
        """
        if self.owned:
            shut_out(self.socket, self.kind, self.path, self.identity)

    def is_shut_down(self) -> bool:
        """Whether somebody who has a duplicate has called shutdown(2), which is for all of them."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def listen_again(self, backlog: int) -> None:
        """Let clients in after that. Raises UsageError, and OSError if the port belongs to somebody else by now."""
        if self.kind is SocketKind.UNIX:
            raise UsageError("a unix socket cannot listen again: restart the server")  # af_unix.c: it remains shut down
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.socket.bind(self.socket.getsockname())  # it has given back a port that the kernel had chosen
        except OSError as error:
            if error.errno != errno.EINVAL:  # it has kept its port
                raise
        self.listen(backlog)

    def let_in(self) -> bool:
        """Undo a `shut_out` that was not this process's; whether there was one. Raises UsageError if it is for good."""
        try:
            return self.owned and self.kind is SocketKind.TCP and let_in(self.socket)
        except PermissionError:
            raise UsageError("it has locked that (SO_LOCK_FILTER): restart the server") from None

    def close(self) -> None:
        """Close this process's copy, and remove the path of a unix socket if it is still ours.

        A port is free from here on, also if somebody has kept a duplicate: a library that has forked past Python.
        """
        if self.owned and self.identity is not None:
            unlink_own(self.path, self.identity)
        if self.owned and self.kind is SocketKind.TCP:
            with contextlib.suppress(OSError):  # ENOTCONN: it never listened
                self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        if self.lock is not None:
            self.lock.release()


def bind(config: Config) -> list[Listening]:
    """Take every address that `config` and the service manager name; none listens yet.

    Waits up to `config.bind_timeout` seconds for ports in use. Removes LISTEN_* from the environment, so that no
    child sees them. Raises UsageError, which says what to do, and StoppedError when TERM, INT or QUIT ends the wait;
    then nothing is left bound.
    """
    made: list[Listening] = []
    deadline = time.monotonic() + config.bind_timeout
    try:
        made += [_inherited(passed, label) for passed, label in from_service_manager()]
        made += [_inherited(from_descriptor(number), f"fd:{number}") for number in config.fd]
        for address in addresses(config, inherited=bool(made)):
            made += _bind_until(deadline, address, config, made)
    except BaseException:
        for listening in made:
            listening.close()
        raise
    return made


def bind_admin(config: Config, others: list[Listening]) -> list[Listening]:
    """Take the address of --admin, if there is one, beside the `others`; it does not listen yet. Raises as `bind`."""
    if not config.admin:
        return []
    return _bind_until(time.monotonic() + config.bind_timeout, parse_address(config.admin), config, others)


def _inherited(made: socket.socket, label: str) -> Listening:
    made.setblocking(False)
    return Listening(made, label, SocketKind.UNIX if made.family == socket.AF_UNIX else SocketKind.TCP, owned=False)


def _bind_until(
    deadline: float, address: TcpAddress | UnixAddress, config: Config, others: list[Listening]
) -> list[Listening]:
    """Bind `address`, again and again while it is in use, until `deadline`; then that is an error."""
    attempt: Callable[[], list[Listening]]
    if isinstance(address, UnixAddress):
        unix = address

        def attempt() -> list[Listening]:
            made, identity, lock = bind_unix(unix, config)
            return [Listening(made, str(unix), SocketKind.UNIX, True, unix.path, identity, lock)]
    else:
        tcp, resolved = address, _resolve(address)

        def attempt() -> list[Listening]:
            return _bind_tcp(tcp, resolved)

    while True:
        try:
            return attempt()
        except InUseError as busy:
            if any(_same(address, other) for other in others):
                raise UsageError(f"{address} was given twice, or another address covers it: leave one out") from None
            left = deadline - time.monotonic()
            if left <= 0:
                raise _in_use(address, busy) from None
            _wait(min(RETRY, left), address)


def _same(address: TcpAddress | UnixAddress, other: Listening) -> bool:
    """Whether a socket that this server has bound already stands in the way of `address`."""
    if isinstance(address, UnixAddress):
        return other.path == address.path
    if other.kind is not SocketKind.TCP or other.socket.getsockname()[1] != address.port:
        return False
    hosts = {str(resolved.where[0]) for resolved in _resolve(address)}
    return bool(hosts & EVERY) or other.socket.getsockname()[0] in hosts | EVERY


def _wait(seconds: float, address: TcpAddress | UnixAddress) -> None:
    """Sleep; TERM, INT or QUIT, which must be blocked, ends it with StoppedError."""
    received = signal.sigtimedwait(ENDING, seconds)
    if received is not None:
        name = signal.Signals(received.si_signo).name
        raise StoppedError(f"stopped by {name} while waiting for {address}")


def _in_use(address: TcpAddress | UnixAddress, busy: InUseError) -> UsageError:
    if isinstance(address, UnixAddress):
        who = f"the server with PID {busy.holder}" if busy.holder else "another server"
        return UsageError(f"{address} is in use by {who}: stop it, or choose another path")
    holder = holder_of_port(address.port)
    by = f" by {holder[1]} (PID {holder[0]})" if holder else ""
    return UsageError(
        f"port {address.port} of {address.host or 'this machine'} is in use{by}: stop it, or choose another"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Resolved:
    """One address that a host name stands for."""

    family: socket.AddressFamily
    where: tuple[str, int] | tuple[str, int, int, int]


def _resolve(address: TcpAddress) -> list[_Resolved]:
    """All addresses of the host, without doubles, in the resolver's order."""
    if not address.host:
        return [_Resolved(socket.AF_INET6, ("::", address.port))]
    if address.host.lower().removesuffix(".") == "localhost":  # RFC 6761, section 6.3, whatever /etc/hosts leaves out
        return [
            _Resolved(socket.AF_INET, ("127.0.0.1", address.port)),
            _Resolved(socket.AF_INET6, ("::1", address.port)),
        ]
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UsageError(
            f"the host {address.host!r} is unknown here: check its spelling, or write an IP address"
        ) from None
    unique = {(family, where): _Resolved(family, where) for family, _, _, _, where in found}  # type: ignore[arg-type]
    return list(unique.values())


def _bind_tcp(address: TcpAddress, resolved: list[_Resolved]) -> list[Listening]:
    """Bind every address that the host stands for; with port 0, the same port on all of them."""
    for _ in range(TRIES - 1 if address.port == 0 and len(resolved) > 1 else 0):
        with contextlib.suppress(InUseError):  # the port that the kernel chose for the first is another's on the next
            return _bind_each(address, resolved)
    return _bind_each(address, resolved)


def _bind_each(address: TcpAddress, resolved: list[_Resolved]) -> list[Listening]:
    made: list[Listening] = []
    port = address.port
    unavailable: OSError | None = None
    try:
        for one in resolved:
            try:
                listening = _bind_one(one, port)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                unavailable = error  # such as ::1 of localhost where IPv6 is off: the others may do
                continue
            made.append(listening)
            port = listening.socket.getsockname()[1]
        if not made and not address.host:
            made.append(_bind_one(_Resolved(socket.AF_INET, ("0.0.0.0", port)), port))
    except OSError as error:
        for listening in made:
            listening.close()
        raise _refused(address, error) from None
    if not made and unavailable is not None:
        raise _refused(address, unavailable)
    return made


def _bind_one(one: _Resolved, port: int) -> Listening:
    """A bound, non-blocking, close-on-exec socket. Raises OSError."""
    made = socket.socket(one.family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if one.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, one.where[0] != "::")
        made.bind((one.where[0], port, *one.where[2:]))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        made.setblocking(False)
        host, bound = made.getsockname()[:2]
    except BaseException:
        made.close()
        raise
    return Listening(made, f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}", SocketKind.TCP)


def _refused(address: TcpAddress, error: OSError) -> ServeError:
    """What the kernel's refusal means for a person."""
    match error.errno:
        case errno.EADDRINUSE:
            return InUseError()
        case errno.EACCES | errno.EPERM:
            return UsageError(
                f"this user may not listen on {address}: use a port from 1024 up, give it CAP_NET_BIND_SERVICE, "
                "or let the service manager pass the socket (--fd)"
            )
        case errno.EADDRNOTAVAIL:
            return UsageError(
                f"no interface of this machine has the address {address.host}: use one that it has, or :{address.port} "
                "for all of them"
            )
        case errno.EAFNOSUPPORT:
            return UsageError(f"this machine has no support for the kind of address {address.host} is: use another one")
    return UsageError(f"listening on {address} is not possible: {error.strerror}")
