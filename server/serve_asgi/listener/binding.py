"""Binds the server's addresses, before any event loop runs; none listens yet.

TERM, INT or QUIT, which are blocked by then, end the wait for a port that is in use. The error names the process that
holds the port, if it can be found: /proc shows a user only the descriptors of its own processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

from serve_asgi.config.listen_addresses import TcpAddress, UnixAddress, addresses, parse_address
from serve_asgi.config.options import Config
from serve_asgi.errors import InUseError, ServeError, UsageError
from serve_asgi.ipc.shut_out_clients import SocketKind
from serve_asgi.ipc.tcp_binding import bind_tcp, resolve, url_of
from serve_asgi.listener.inherited_sockets import from_descriptor, from_service_manager
from serve_asgi.listener.listening_sockets import ListeningSocket
from serve_asgi.listener.unix_socket import bind_unix

RETRY: Final = 0.1  # seconds between two attempts to bind
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
        tcp, resolved = address, resolve(address)
        if tcp.secure is None:
            tcp = dataclasses.replace(tcp, secure=bool(config.tls_cert))

        def attempt() -> list[ListeningSocket]:
            secure = bool(tcp.secure)
            return [
                ListeningSocket(made, url_of(made, secure), SocketKind.TCP, secure=secure)
                for made in bind_tcp(tcp, resolved)
            ]

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
    hosts = {str(resolved.where[0]) for resolved in resolve(address)}
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
