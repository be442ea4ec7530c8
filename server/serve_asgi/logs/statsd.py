"""Metrics for statsd under gunicorn's names: `gunicorn.requests`, `gunicorn.request.duration` and so on (--statsd).

A worker counts with the access log, or in its place, once for each request, and sends once per second, in datagrams
as large as a network takes. Nothing waits: what the socket does not take at once is lost, as is usual with statsd, and
nobody being there is no error. It knows nothing of protocols, processes or the listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from serve_asgi.config.listen_addresses import UnixAddress, parse_address
from serve_asgi.config.options import Config
from serve_asgi.logs.access_log import NOBODY, LoggedRequest, LoggedResponse, RequestLog
from serve_asgi.logs.server_log import about

if TYPE_CHECKING:
    from serve_asgi.ipc.peer_address import Address

PREFIX: Final = "gunicorn."
"""What all names begin with, after --statsd-prefix."""
MOST_IN_DATAGRAM: Final = 1432
"""Bytes: an Ethernet frame without the heads of IPv6 and UDP."""
MOST_TIMINGS: Final = 1000
"""Durations that are sent each second; of more requests a sample is sent, with its rate."""
LOOKUP_TIMEOUT: Final = 5.0
"""Seconds to look a host's name up."""
WEBSOCKETS: Final = ("ws", "wss")


class StatsdSocket:
    """Sends lines to one statsd server; not thread-safe."""

    def __init__(self, client: socket.socket, prefix: str) -> None:
        """Take over `client`, a connected, non-blocking datagram socket."""
        self._socket = client
        self._prefix = f"{prefix.rstrip('.')}.{PREFIX}" if prefix else PREFIX

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, lines: Iterable[str]) -> None:
        """Send these lines, each a name without what all begin with, a colon, a value and a type."""
        datagram = ""
        for line in lines:
            if datagram and len(datagram) + len(self._prefix) + len(line) >= MOST_IN_DATAGRAM:
                self._send(datagram)
                datagram = ""
            datagram += f"\n{self._prefix}{line}" if datagram else f"{self._prefix}{line}"
        if datagram:
            self._send(datagram)

    def _send(self, datagram: str) -> None:
        for _ in range(2):  # an error that was left by the datagram before (ECONNREFUSED, udp(7)) is not this one's
            try:
                self._socket.send(datagram.encode())
            except ConnectionRefusedError:
                continue
            except OSError:
                pass
            return

    def close(self) -> None:
        self._socket.close()


async def open_statsd(config: Config) -> StatsdSocket | None:
    """A socket to the server that `config` names; None if it names none, or it cannot be reached, which is logged."""
    if not config.statsd:
        return None
    address = parse_address(config.statsd)
    client: socket.socket | None = None
    try:
        if isinstance(address, UnixAddress):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            client.connect(address.where())
        else:
            lookup = asyncio.get_running_loop().getaddrinfo(
                address.host or "localhost", address.port, type=socket.SOCK_DGRAM
            )
            family, kind, protocol, _, where = (await asyncio.wait_for(lookup, LOOKUP_TIMEOUT))[0]
            client = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            client.connect(where)
    except OSError as error:  # a timeout as well
        if client is not None:
            client.close()
        text = "no metrics are sent to statsd at %s (--statsd): %s"
        reason = str(error) or "its name could not be looked up in time"
        logging.getLogger("serve").error(text, config.statsd, reason, extra=about("statsd_lost", reason=reason))
        return None
    return StatsdSocket(client, config.statsd_prefix)


class StatsdRequests:
    """Counts the requests of one worker, and has the access log, if there is one, record them as well."""

    def __init__(self, statsd: StatsdSocket, access_log: RequestLog | None) -> None:
        self._statsd = statsd
        self._access_log = access_log
        self._statuses: Counter[int] = Counter()
        self._timings: list[float] = []
        """Milliseconds."""
        self._timed = 0

    def record(
        self,
        client: Address,
        request: LoggedRequest,
        status: int,
        size: int,
        begun: float,
        response: LoggedResponse = NOBODY,
    ) -> None:
        """See RequestLog. The time that a WebSocket was open is no request's duration."""
        self._statuses[status] += 1
        if response.client_scheme() not in WEBSOCKETS:
            self._time((time.perf_counter() - begun) * 1e3)
        if self._access_log is not None:
            self._access_log.record(client, request, status, size, begun, response)

    def _time(self, milliseconds: float) -> None:
        """Keep it; of many, each is kept with the same probability."""
        self._timed += 1
        if len(self._timings) < MOST_TIMINGS:
            self._timings.append(milliseconds)
        elif (index := random.randrange(self._timed)) < MOST_TIMINGS:
            self._timings[index] = milliseconds

    def flush(self) -> None:
        """Send what has been counted since the last time."""
        if self._statuses:
            requests, statuses = self._statuses.total(), sorted(self._statuses.items())
            rate = f"|@{len(self._timings) / self._timed:.6f}" if self._timed > len(self._timings) else ""
            self._statsd.send(
                [
                    f"requests:{requests}|c",
                    *(f"request.status.{status}:{count}|c" for status, count in statuses),
                    *(f"request.duration:{timing:.3f}|ms{rate}" for timing in self._timings),
                ]
            )
            self._statuses.clear()
            self._timings.clear()
            self._timed = 0
        if self._access_log is not None:
            self._access_log.flush()

    def reopen(self) -> None:
        """See RequestLog."""
        if self._access_log is not None:
            self._access_log.reopen()

    def close(self) -> None:
        """See RequestLog."""
        self.flush()
        if self._access_log is not None:
            self._access_log.close()
        with contextlib.suppress(OSError):
            self._statsd.close()

    def descriptors(self) -> list[int]:
        """The socket's, which a forked child gives up."""
        return [self._statsd.fileno()]
