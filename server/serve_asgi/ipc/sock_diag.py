"""Queries the kernel about sockets by sock_diag(7): clients in accept queues, and handshakes under way.

The reply has only the requested sockets, whereas /proc/net/tcp lists every connection of the machine as text. Sockets
are identified by their inodes or their port, so that the caller (the admin process) needs no duplicate of them, which
would keep the server's port taken after its end. Where the kernel or a sandbox denies such a socket (systemd's
RestrictAddressFamilies without AF_NETLINK), nothing is known.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
SOCK_DIAG_BY_FAMILY: Final = 20  # linux/sock_diag.h
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
LISTENING: Final = 1 << 10  # TCP_LISTEN of tcp_states.h, used by unix sockets too
SYN_RECEIVED: Final = 1 << 3  # TCP_SYN_RECV
UDIAG_SHOW_RQLEN: Final = 0x10  # linux/unix_diag.h
UNIX_DIAG_RQLEN: Final = 4
ANY: Final = 0xFFFFFFFF
TIMEOUT: Final = 0.2
"""Seconds to wait for the kernel's reply, which is immediate."""

Queue = tuple[int, int]
"""Clients in the queue, and its limit."""


def accept_queues(wanted: frozenset[int]) -> dict[int, Queue]:
    """The accept queues of the listening sockets with these inodes; unknown ones are missing."""
    found: dict[int, Queue] = {}
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as asked:
            asked.settimeout(TIMEOUT)
            for family in (socket.AF_INET, socket.AF_INET6):
                if found.keys() < wanted:
                    of_all = _inet(asked, _inet_request(family, LISTENING))
                    found |= {inode: queue for inode, queue in of_all if inode in wanted}
            if found.keys() < wanted:
                request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, LISTENING, 0, UDIAG_SHOW_RQLEN, ANY, ANY)
                found |= {inode: queue for inode, queue in _unix(asked, request) if inode in wanted}
    except OSError:
        pass
    return found


def handshakes(port: int, families: Sequence[int]) -> int | None:
    """How many clients are in their handshake with the local TCP `port`; None if unknown.

    For each of the `families` (AF_INET, AF_INET6) the kernel walks over all connections of the machine, at some 100 ns
    each.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as asked:
            asked.settimeout(TIMEOUT)
            return sum(1 for each in families for _ in _dump(asked, _inet_request(each, SYN_RECEIVED, port)))
    except OSError:
        return None


def _inet_request(family: int, states: int, port: int = 0) -> bytes:
    """struct inet_diag_req_v2 of linux/inet_diag.h; 0 is any port."""
    return struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, states) + struct.pack(">H", port) + bytes(46)


def _inet(asked: socket.socket, request: bytes) -> Iterator[tuple[int, Queue]]:
    """struct inet_diag_msg of linux/inet_diag.h."""
    for message in _dump(asked, request):
        _, waiting, limit, _, inode = struct.unpack_from("=IIIII", message, 52)
        yield inode, (waiting, limit)


def _unix(asked: socket.socket, request: bytes) -> Iterator[tuple[int, Queue]]:
    """struct unix_diag_msg and struct unix_diag_rqlen of linux/unix_diag.h."""
    for message in _dump(asked, request):
        (inode,) = struct.unpack_from("=I", message, 4)
        rest = message[16:]
        while len(rest) >= 4:
            length, kind = struct.unpack_from("=HH", rest)
            if kind == UNIX_DIAG_RQLEN:
                waiting, limit = struct.unpack_from("=II", rest, 4)
                yield inode, (waiting, limit)
            rest = rest[(max(length, 4) + 3) & ~3 :]


def _dump(asked: socket.socket, request: bytes) -> Iterator[bytes]:
    """The messages of the kernel's reply (netlink(7)). Raises OSError."""
    header = struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    asked.send(header + request)
    while True:
        data = asked.recv(1 << 18)
        while len(data) >= 16:
            length, kind = struct.unpack_from("=IH", data)
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                raise OSError("the kernel does not support sock_diag(7)")
            yield data[16:length]
            data = data[(length + 3) & ~3 :]
