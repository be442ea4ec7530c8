"""Binds the server's addresses, before any event loop runs; none listens yet.

TERM, INT or QUIT, which are blocked by then, end the wait for a port that is in use. The error names the process that
holds the port, if it can be found: /proc shows a user only the descriptors of its own processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

from serve_asgi.config.listen_addresses import TcpAddress, UnixAddress, addresses, parse_address
from serve_asgi.config.options import Config
from serve_asgi.errors import ServeError, UsageError
from serve_asgi.ipc.path_lock import InUseError
from serve_asgi.ipc.shut_out_clients import SocketKind
from serve_asgi.listener.inherited_sockets import from_descriptor, from_service_manager
from serve_asgi.listener.listening_sockets import ListeningSocket
from serve_asgi.listener.unix_socket import bind_unix

RETRY: Final = 0.1  # seconds between two attempts to bind
TRIES: Final = 16
"""Attempts to find a port that is free on every address of a host."""
PLAIN: Final = "http"
"""FileDescriptorName= of a systemd socket that is to be plain although the server speaks TLS (systemd.socket(5))."""
EVERY: Final = frozenset({"0.0.0.0", "::"})
ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


class StoppedError(ServeError):
    """A signal stopped the server before it had started; not an error."""

    exit_status = 0


def bind(config: Config) -> list[ListeningSocket]:
    """Bind every address that `config` and the service manager name; none listens yet.

    Waits up to `config.bind_timeout` seconds for ports in use. Removes LISTEN_* from the environment, so that no child
    sees them. Raises UsageError, which says what to do, and StoppedError if TERM, INT or QUIT ends the wait; nothing is
    left bound then.
    """
    made: list[ListeningSocket] = []
    deadline = time.monotonic() + config.bind_timeout
    try:
        tls = bool(config.tls_cert)
        made += [_inherited(passed, label, tls and name != PLAIN) for passed, label, name in from_service_manager()]
        made += [_inherited(from_descriptor(number), f"fd:{number}", tls) for number in config.fd]
        for address in addresses(config, inherited=bool(made)):
            made += _bind_until(deadline, address, config, made)
        _check_secure(config, made)
    except BaseException:
        for listening in made:
            listening.close()
        raise
    return made


def bind_admin(config: Config, others: list[ListeningSocket]) -> list[ListeningSocket]:
    """Bind the address of --admin, if there is one, besides `others`; it does not listen yet. Raises as `bind`."""
    if not config.admin:
        return []
    address = parse_address(config.admin)
    if isinstance(address, TcpAddress):
        address = dataclasses.replace(address, secure=False)
    return _bind_until(time.monotonic() + config.bind_timeout, address, config, others)


def _inherited(made: socket.socket, label: str, tls: bool) -> ListeningSocket:
    made.setblocking(False)
    kind = SocketKind.UNIX if made.family == socket.AF_UNIX else SocketKind.TCP
    return ListeningSocket(made, label, kind, owned=False, secure=tls and kind is SocketKind.TCP)


def _check_secure(config: Config, made: list[ListeningSocket]) -> None:
    """Refuse what would be asked for in vain. Raises UsageError."""
    if config.tls_cert and not any(each.secure for each in made):
        raise UsageError(
            "there is a certificate, and no address that speaks TLS: add one, such as --bind https://:8443, or leave "
            "--tls-cert out"
        )
    if config.https_redirect and not any(each.redirects for each in made):
        raise UsageError("--https-redirect has no plain address to redirect from: add one, such as --bind http://:8080")


def _bind_until(
    deadline: float, address: TcpAddress | UnixAddress, config: Config, others: list[ListeningSocket]
) -> list[ListeningSocket]:
    """Bind `address`, retrying while it is in use, until `deadline`."""
    attempt: Callable[[], list[ListeningSocket]]
    if isinstance(address, UnixAddress):
        unix = address

        def attempt() -> list[ListeningSocket]:
            made, identity, lock = bind_unix(unix, config)
            return [ListeningSocket(made, str(unix), SocketKind.UNIX, True, unix.path, identity, lock)]
    else:
        tcp, resolved = address, _resolve(address)
        if tcp.secure is None:
            tcp = dataclasses.replace(tcp, secure=bool(config.tls_cert))

        def attempt() -> list[ListeningSocket]:
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


def _same(address: TcpAddress | UnixAddress, other: ListeningSocket) -> bool:
    """Whether a socket that this server has already bound conflicts with `address`."""
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
    """One address that a host name resolves to."""

    family: socket.AddressFamily
    where: tuple[str, int] | tuple[str, int, int, int]


def _resolve(address: TcpAddress) -> list[_Resolved]:
    """All addresses of the host, without duplicates, in the resolver's order."""
    if not address.host:
        return [_Resolved(socket.AF_INET6, ("::", address.port))]
    if address.host.lower().removesuffix(".") == "localhost":  # RFC 6761, section 6.3, whatever /etc/hosts omits
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


def _bind_tcp(address: TcpAddress, resolved: list[_Resolved]) -> list[ListeningSocket]:
    """Bind every address that the host resolves to; with port 0, the same port on all of them."""
    for _ in range(TRIES - 1 if address.port == 0 and len(resolved) > 1 else 0):
        with contextlib.suppress(InUseError):  # the port that the kernel chose for the first is taken on the next
            return _bind_each(address, resolved)
    return _bind_each(address, resolved)


def _bind_each(address: TcpAddress, resolved: list[_Resolved]) -> list[ListeningSocket]:
    made: list[ListeningSocket] = []
    port = address.port
    unavailable: OSError | None = None
    try:
        for one in resolved:
            try:
                listening = _bind_one(one, port, bool(address.secure))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                unavailable = error  # such as ::1 of localhost where IPv6 is off: the others may work
                continue
            made.append(listening)
            port = listening.socket.getsockname()[1]
        if not made and not address.host:
            made.append(_bind_one(_Resolved(socket.AF_INET, ("0.0.0.0", port)), port, bool(address.secure)))
    except OSError as error:
        for listening in made:
            listening.close()
        raise _refused(address, error) from None
    if not made and unavailable is not None:
        raise _refused(address, unavailable)
    return made


def _bind_one(one: _Resolved, port: int, secure: bool) -> ListeningSocket:
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
    where = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
    return ListeningSocket(made, f"http{'s' if secure else ''}://{where}", SocketKind.TCP, secure=secure)


def _refused(address: TcpAddress, error: OSError) -> ServeError:
    """The kernel's error as a sentence with advice."""
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
            return UsageError(f"this machine does not support addresses such as {address.host}: use another one")
    return UsageError(f"cannot listen on {address}: {error.strerror}")


def holder_of_port(port: int) -> tuple[int, str] | None:
    """PID and name of a process that listens on TCP `port`, or None if it cannot be found (proc(5))."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not sockets:
        return None
    for entry in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError), os.scandir(f"/proc/{entry}/fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor.path) in sockets:
                        return entry, _name(entry)
    return None


def _listening_inodes(port: int) -> set[str]:
    wanted, inodes = f":{port:04X}", set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as lines:
            for line in lines:
                fields = line.split()
                if fields[3] == "0A" and fields[1].endswith(wanted):  # TCP_LISTEN
                    inodes.add(fields[9])
    return inodes


def _name(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()
