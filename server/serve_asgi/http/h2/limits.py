"""How much a client may ask of one HTTP/2 connection, and how fast it may send what brings nothing. Pure.

HTTP/2 has many frames that cost the server work and bring the application nothing: each is legal, each has its use, and
each has been used to flood servers. So what is bounded is how fast they come, beyond a share of what is useful: each
counts one, the count falls with time and with every useful frame, and where it is too high the connection ends with
GOAWAY, ENHANCE_YOUR_CALM. A connection may live for weeks: whoever pings once a second must never meet a bound. The
clock is given; every number is here, with its reason.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, NamedTuple

from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode

MAX_STREAMS: Final = 100
"""Requests in progress on a connection (SETTINGS_MAX_CONCURRENT_STREAMS): what RFC 9113 6.5.2 recommends as the least.
One counts until its application has returned, also where the client has reset it: who resets as fast as it asks
(CVE-2023-44487) never has more work under way than this. One more is refused with REFUSED_STREAM, which tells the
client that it may ask again."""

REQUESTS_AT_ONCE: Final = 32
"""Requests of one connection that a turn of the loop begins; the rest of what has come waits for the next turn. Without
this the 250 that a rapid reset gets through before it is cut would keep everybody else waiting for some 8 ms."""

STREAM_WINDOW: Final = 128 * 1024
"""Bytes of a request's body that are on their way or wait for the application. Twice the protocol's default, so that an
upload gets 4 MB/s at a round trip of 30 ms."""
CONNECTION_WINDOW: Final = 2 * MAX_STREAMS * STREAM_WINDOW
"""The same for all requests of a connection together. Bodies that nobody takes must not shut the others out, as four of
them would with the 512 KiB of four windows: half of this may be consumed and not granted again yet, and the other half
is the windows of all streams together. So what bounds the memory of a connection is the windows of its streams, 12.5
MiB of 100, as if each request had a connection of its own; with more streams (--h2-max-streams) it is this."""

MAX_CONTINUATIONS: Final = 32
"""CONTINUATION frames of one header block, beside those that its largest size takes. One of 64 KiB takes three; none of
them counts as a request, and nothing limits them otherwise (the CONTINUATION flood of 2024)."""
BOMB_RATIO: Final = 4
"""A head that unpacks to more than so many times the largest one ends the connection: no mistake makes that (an HPACK
bomb, CVE-2016-1544). One over the limit and below this is answered 431, as over HTTP/1.1."""
MAX_TABLE_SIZE: Final = 4096
"""Bytes of each header table, ours and the client's (RFC 7541 4.1): the protocol's default. The client cannot have it
larger, whatever it says: it is memory per connection."""
MAX_TABLE_UPDATES: Final = 2
"""Changes of the table's size in one header block (RFC 7541 4.2 needs no more)."""

MAX_HELD: Final = 64 * 1024
"""Bytes of frames that are held undecoded while the connection waits to leave for another worker."""
REMEMBERED: Final = 256
"""Streams of which it is known that this server has reset them, so that what still comes on them is ignored."""
MAX_GAPS: Final = 64
"""Ranges of stream numbers that the client has left out, and that are remembered."""
MAX_PRIORITY_UPDATES: Final = MAX_STREAMS
"""Streams that have not come yet and whose priority is remembered (RFC 9218 7.1)."""

CRUMB: Final = 256
"""A DATA frame with less of the body than this, because the window had no more, is a crumb."""


class Flood(NamedTuple):
    """How much of one kind may come: at once, per second, and for each useful frame."""

    name: str
    at_once: float
    per_second: float
    share: float


class FloodKind(enum.Enum):
    """What is counted."""

    RESETS = Flood("streams that were reset, or had to be", 200, 20, 1 / 4)
    """RST_STREAM of the client before its response was whole (CVE-2023-44487), and what makes this server send one: a
    malformed request, a frame on an ended stream, a window that overflows (CVE-2025-8671), more streams than allowed.
    A browser that leaves a page with many pictures resets some dozens at once. The useful frames are requests."""
    CONTROL = Flood("SETTINGS and PING frames", 100, 10, 1 / 4)
    """Each has to be answered (CVE-2019-9512, CVE-2019-9515). gRPC pings once per round trip while data flows."""
    IDLE = Flood("frames that bring nothing", 500, 50, 2)
    """Empty DATA, PRIORITY, PRIORITY_UPDATE, unknown types, and what comes on a stream that was reset (CVE-2019-9513,
    CVE-2019-9518). A browser sends one or two of these with each request."""
    WINDOW_UPDATES = Flood("WINDOW_UPDATE frames", 1000, 100, 4)
    """Some clients send one for the stream and one for the connection with each DATA frame that they take."""
    CRUMBS = Flood("windows of a few bytes", 500, 50, 0)
    """DATA frames that a window made tiny: each costs as much as a full one (CVE-2019-9511, CVE-2019-9517)."""


class FloodGauge:
    """The count of one kind on one connection."""

    __slots__ = ("_at_once", "_name", "_per_second", "_share", "_useful", "_when", "level")

    def __init__(self, kind: FloodKind) -> None:
        self._name, self._at_once, self._per_second, self._share = kind.value
        self._useful = 0
        self._when = 0.0
        self.level = 0.0

    def count(self, useful: int, now: float) -> None:
        """Count one: `useful` is the number of useful frames so far, `now` a monotonic time (s).

        Raises ConnectionFault if that was one too many.
        """
        fallen = (useful - self._useful) * self._share + (now - self._when) * self._per_second
        self._useful, self._when = useful, now
        self.level = level = max(0.0, self.level - fallen) + 1
        if level > self._at_once:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {self._name}")


class Floods:
    """All counts of one connection; a gauge is made when there is something to count."""

    __slots__ = ("_clock", "_gauges", "useful")

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: a monotonic time (s) that all processes of the machine share."""
        self._clock = clock
        self._gauges: dict[FloodKind, FloodGauge] = {}
        self.useful = 0
        """Requests, DATA frames with content, and DATA frames sent."""

    def count(self, kind: FloodKind, useful: int | None = None) -> None:
        """Count one of a kind. Raises ConnectionFault if that was one too many."""
        gauge = self._gauges.get(kind)
        if gauge is None:
            gauge = self._gauges[kind] = FloodGauge(kind)
        gauge.count(self.useful if useful is None else useful, self._clock())

    def levels(self) -> dict[str, float]:
        """What travels with the connection: nobody gets a fresh start from a reload."""
        return {kind.name: gauge.level for kind, gauge in self._gauges.items()}

    def restore(self, levels: dict[str, float], requests: int) -> None:
        """The reverse; `requests` is where their count, the useful frames of RESETS, goes on."""
        now = self._clock()
        for name, level in levels.items():
            kind = FloodKind[name]
            gauge = self._gauges[kind] = FloodGauge(kind)
            gauge.count(requests if kind is FloodKind.RESETS else 0, now)
            gauge.level = level
