"""How many records without use a client may send on a TLS 1.3 connection. Pure, but for the clock.

An empty record, a KeyUpdate and an alert that changes nothing cost the server work and bring the application nothing,
and a record with a byte or two in it costs more than it brings. All of them are legal and each has its use, so that
what is bounded is how fast they come, beyond a share of the other records: each counts one, the count falls with every
useful record and with time, and the connection ends where it is too high. A connection may live for days, and whoever
sends a KeyUpdate a minute, an empty record now and then to hide its silence (RFC 8446 5.4), or each keystroke byte by
byte must never meet a bound. (RFC 8446 leaves it to the implementation; OpenSSL allows 32 in a row, whenever they
come.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from serve_asgi.tls.alerts import Alert
from serve_asgi.tls.record_protection import RecordError

CONTROL_RECORDS: Final = 64
"""Empty records, KeyUpdates and warnings that may come at once."""
CONTROL_SHARE: Final = 16
"""One of so many records may be one of these. A KeyUpdate costs about as much as a short request."""
CONTROL_RATE: Final = 10.0
"""And so many may come in a second."""
THIN: Final = 6
"""A record with less content is thin: nothing that is spoken here is that short, unless a client cuts what it says."""
THIN_RECORDS: Final = 1 << 22
"""Thin records that may come at once, beyond every second one. They are cheap, a quarter of a request each, and there
are clients that send a body byte by byte: this is a large one, and some ten seconds of work."""
THIN_RATE: Final = 10_000.0
"""And so many may come in a second: a fortieth of a core."""


class RecordFloods:
    """The counts of one connection."""

    __slots__ = ("_clock", "_control", "_thin", "records_before")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._control = Level(CONTROL_RECORDS, CONTROL_RATE, 1 / CONTROL_SHARE)
        self._thin = Level(THIN_RECORDS, THIN_RATE, 1 / 2)
        self.records_before = 0
        """Records of earlier generations of keys, to which the sequence number is added."""

    def count_control(self, number: int) -> None:
        """The record with this number was one without content. Raises RecordError if that was one too many."""
        if self._control.rises(self.records_before + number, self._clock()):
            raise RecordError(Alert.UNEXPECTED_MESSAGE, "the client sent too many records without content")

    def count_thin(self, number: int) -> None:
        """The record with this number had little content. Raises RecordError if that was one too many."""
        if self._thin.rises(self.records_before + number, self._clock()):
            raise RecordError(Alert.UNEXPECTED_MESSAGE, "the client sent too many records of a few bytes")

    def new_generation(self, records: int) -> None:
        """The client's sequence number, which was at `records`, begins again at 0."""
        self.records_before += records


class Level:
    """A count that falls with time and with the records that have come."""

    __slots__ = ("_full", "_per_record", "_per_second", "_record", "_when", "level")

    def __init__(self, full: float, per_second: float, per_record: float) -> None:
        self._full = full
        self._per_second = per_second
        self._per_record = per_record
        self._record = 0
        self._when = 0.0
        self.level = 0.0

    def rises(self, record: int, now: float) -> bool:
        """Count one, which is the record with this number; True if that is one too many."""
        fallen = (record - self._record) * self._per_record + (now - self._when) * self._per_second
        self._record, self._when = record, now
        self.level = max(0.0, self.level - fallen) + 1
        return self.level > self._full
