"""Binds TCP sockets to an address: every address that its host resolves to, on any platform.

It owns the errors as sentences. A socket that it returns is bound, does not block, is not inherited, and does not
listen yet; it is the caller's. It must not know what is done about an address that is in use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
from typing import Final

from serve_asgi.config.listen_addresses import TcpAddress
from serve_asgi.errors import InUseError, ServeError, UsageError

TRIES: Final = 16
"""Attempts to find a port that is free on every address of a host."""


@dataclasses.dataclass(frozen=True, slots=True)
class ResolvedAddress:
    """One address that a host name resolves to."""

    family: socket.AddressFamily
    where: tuple[str, int] | tuple[str, int, int, int]


def resolve(address: TcpAddress) -> list[ResolvedAddress]:
    """All addresses of the host, without duplicates, in the resolver's order. Raises UsageError for an unknown one."""
    if not address.host:
        return [ResolvedAddress(socket.AF_INET6, ("::", address.port))]
    if address.host.lower().removesuffix(".") == "localhost":  # RFC 6761, section 6.3, whatever /etc/hosts omits
        return [
            ResolvedAddress(socket.AF_INET, ("127.0.0.1", address.port)),
            ResolvedAddress(socket.AF_INET6, ("::1", address.port)),
        ]
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UsageError(
            f"the host {address.host!r} is unknown here: check its spelling, or write an IP address"
        ) from None
    unique = {(family, where): ResolvedAddress(family, where) for family, _, _, _, where in found}  # type: ignore[arg-type]
    return list(unique.values())


def bind_tcp(address: TcpAddress, resolved: list[ResolvedAddress]) -> list[socket.socket]:
    """Bind every address that the host resolves to; with port 0, the same port on all of them.

    Raises InUseError if the port is in use, UsageError for everything else.
    """
    for _ in range(TRIES - 1 if address.port == 0 and len(resolved) > 1 else 0):
        with contextlib.suppress(InUseError):  # the port that the kernel chose for the first is taken on the next
            return _bind_each(address, resolved)
    return _bind_each(address, resolved)


def url_of(listening: socket.socket, secure: bool) -> str:
    """The address that it is bound to, as a URL without a path."""
    host, port = listening.getsockname()[:2]
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"http{'s' if secure else ''}://{where}"


def _bind_each(address: TcpAddress, resolved: list[ResolvedAddress]) -> list[socket.socket]:
    made: list[socket.socket] = []
    port = address.port
    unavailable: OSError | None = None
    try:
        for one in resolved:
            try:
                listening = _bind_one(one, port)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                unavailable = error  # such as ::1 of localhost where IPv6 is off: the others may work
                continue
            made.append(listening)
            port = listening.getsockname()[1]
        if not made and not address.host:
            made.append(_bind_one(ResolvedAddress(socket.AF_INET, ("0.0.0.0", port)), port))
    except OSError as error:
        for listening in made:
            listening.close()
        raise _refused(address, error) from None
    if not made and unavailable is not None:
        raise _refused(address, unavailable)
    return made


def _bind_one(one: ResolvedAddress, port: int) -> socket.socket:
    """A bound, non-blocking, close-on-exec socket. Raises OSError."""
    made = socket.socket(one.family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two servers have the same port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if one.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, one.where[0] != "::")
        made.bind((one.where[0], port, *one.where[2:]))
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


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
