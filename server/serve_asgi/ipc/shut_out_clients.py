"""Keeps new clients out of a listening socket without resetting any that the kernel has accepted.

Closing a listening socket resets what is still in its queue, even if it was accepted empty before: a handshake may
complete in between (5 of some thousands, measured). So new clients are kept out first, and those already in are then
accepted:

- TCP: a classic BPF filter on the socket drops segments with SYN set. Handshakes under way still complete, since their
  last segment carries no SYN. Connections inherit the filter, which never matches again. A client that is kept out gets
  no reply and repeats its SYN; it reaches the next server on that port, or is refused once the last copy of the socket
  is closed. Some kernels keep filters from unprivileged users. There IP_MINTTL has the same effect: a listening socket
  drops segments that have passed any router (no common system sends with a TTL of 255), the last segment of a handshake
  under way is not checked for its TTL (tcp_v4_rcv), and the resulting connection inherits the limit, which `admit`
  removes; what it was sent meanwhile is retransmitted.
- unix: `shutdown(SHUT_RD)` on the listening socket makes further connects fail with ECONNREFUSED; those that are queued
  are still accepted, and then accept fails with EINVAL (unix_stream_connect of af_unix.c decides both under one lock).

Listener and workers both use this, since either may be the last one alive; everything may be repeated. It knows nothing
of configuration or processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import socket
import struct
from typing import Final

from serve_asgi.ipc import sock_diag

SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
SO_DETACH_FILTER: Final = 27
IP_MINTTL: Final = 21  # linux/in.h
IPV6_MINHOPCOUNT: Final = 73  # linux/in6.h
UNREACHABLE_TTL: Final = 255
SYN_RECV: Final = "03"  # tcp_states.h, as /proc/net/tcp writes it
TCP_INFO_UNACKED: Final = (
    24  # offset of tcpi_unacked in struct tcp_info; of a listening socket, the length of its queue
)

Identity = tuple[int, int]
"""Device and inode of a unix socket's path."""


class SocketKind(enum.StrEnum):
    """The kinds of listening sockets."""

    TCP = "tcp"
    UNIX = "unix"


class _Instruction(ctypes.Structure):
    """struct sock_filter of linux/filter.h."""

    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


# The data that the filter sees begins with the TCP header; its byte 13 holds the flags (RFC 9293, section 3.1).
DROP_SYN: Final = (
    (0x30, 0, 0, 13),  # ldb [13]
    (0x45, 0, 1, 0x02),  # jset #0x02 (SYN), else skip one
    (0x06, 0, 0, 0),  # ret 0: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # ret: keep all of it
)


def shut_out(listening: socket.socket, kind: SocketKind, path: str = "", identity: Identity | None = None) -> None:
    """Keep new clients out; those already in can still be accepted.

    The path of a unix socket is removed as well if it still has the `identity` taken after it was bound. Without one it
    stays: it refuses connections, and the next server replaces it. Raises OSError if the kernel refuses.
    """
    if kind is SocketKind.UNIX:
        if identity is not None:
            unlink_own(path, identity)
        with contextlib.suppress(OSError):  # ENOTCONN: it never listened
            listening.shutdown(socket.SHUT_RD)
        return
    try:
        _drop_syn(listening)
    except PermissionError:
        _demand_ttl(listening, UNREACHABLE_TTL)


def filters_refused() -> bool:
    """Whether the kernel denies this process filters, so that connections may need `admit`."""
    with socket.socket() as probe:
        try:
            _drop_syn(probe)
        except PermissionError:
            return True
    return False


def let_in(listening: socket.socket) -> bool:
    """Undo `shut_out` of a TCP socket, by whatever process; return whether there was anything to undo.

    Raises PermissionError for a locked filter (SO_LOCK_FILTER, socket(7)), which cannot be removed.
    """
    undone = False
    try:
        listening.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        undone = True
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    demands = [listening.getsockopt(socket.IPPROTO_IP, IP_MINTTL)]
    if listening.family == socket.AF_INET6:
        demands.append(listening.getsockopt(socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT))
    if any(demands):
        _demand_ttl(listening, 0)
        undone = True
    return undone


def admit(client: socket.socket) -> None:
    """Remove the limit from a connection that was accepted from a socket after `shut_out`."""
    if client.family != socket.AF_UNIX:
        _demand_ttl(client, 0)


def _drop_syn(listening: socket.socket) -> None:
    program = (_Instruction * len(DROP_SYN))(*(_Instruction(*line) for line in DROP_SYN))
    # struct sock_fprog: the length, padding, a pointer.
    listening.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(DROP_SYN), ctypes.addressof(program))
    )


def _demand_ttl(sock: socket.socket, least: int) -> None:
    """Drop segments whose TTL or hop limit is below `least` (ip(7), ipv6(7)); a dual-stack socket has both."""
    sock.setsockopt(socket.IPPROTO_IP, IP_MINTTL, least)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT, least)


def arriving(listening: socket.socket, kind: SocketKind) -> int:
    """How many clients of a TCP socket are in the accept queue or in their handshake (exact after `shut_out`).

    Always 0 for a unix socket: accept from it until that fails, which is exact after `shut_out`.
    """
    if kind is SocketKind.UNIX:
        return 0
    information = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_UNACKED + 4)
    queued: int = struct.unpack_from("I", information, TCP_INFO_UNACKED)[0]
    port = listening.getsockname()[1]
    v6 = listening.family == socket.AF_INET6  # and perhaps IPv4 as well
    under_way = sock_diag.handshakes(port, (socket.AF_INET, socket.AF_INET6) if v6 else (socket.AF_INET,))
    return queued + (_handshakes_of_proc(port) if under_way is None else under_way)


def _handshakes_of_proc(port: int) -> int:
    """The same from the tables of this network namespace (proc(5)), at some microseconds per connection."""
    wanted = f":{port:04X}"
    count = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as lines:
            for line in lines:
                fields = line.split(None, 4)
                count += fields[3] == SYN_RECV and fields[1].endswith(wanted)
    return count


def unlink_own(path: str, identity: Identity) -> None:
    """Remove `path` if it is still the file with this `identity`; another's is left alone."""
    with contextlib.suppress(OSError):
        status = os.stat(path, follow_symlinks=False)
        if (status.st_dev, status.st_ino) == identity:
            os.unlink(path)
