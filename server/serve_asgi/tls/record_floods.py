"""How many records without use a client may send on a TLS 1.3 connection. Pure.

An empty record, a KeyUpdate and an alert that changes nothing cost the server work and bring the application nothing,
and a record with a byte or two in it costs more than it brings. All of them are legal and each has its use, so that
what is bounded is their number: in a row, and in proportion to the others. (RFC 8446 leaves it to the implementation;
OpenSSL's bounds for a row are the same.)
"""

from __future__ import annotations

from typing import Final

from serve_asgi.tls.alerts import Alert
from serve_asgi.tls.record_protection import RecordError

MAX_IN_A_ROW: Final = 32
"""Empty records, KeyUpdates and warnings with no content between them."""
FREE_CONTROL_RECORDS: Final = 64
"""Empty records, KeyUpdates and warnings that a connection may have beyond its share."""
CONTROL_SHARE: Final = 16
"""One of so many records may be one of these. A KeyUpdate costs about as much as a short request."""
THIN: Final = 6
"""A record with less content is thin: nothing that is spoken here is that short, unless a client cuts what it says."""
FREE_THIN_RECORDS: Final = 1 << 18
"""Thin records that a connection may have beyond every second one. They are cheap, a tenth of a request each, and there
are clients that send a body byte by byte: some hundred thousand of them are less than a second of work."""


class RecordFloods:
    """The counts of one connection."""

    __slots__ = ("_control", "_in_a_row", "_row_ends", "_thin", "records_before")

    def __init__(self) -> None:
        self._control = 0
        self._thin = 0
        self._in_a_row = 0
        self._row_ends = -1
        self.records_before = 0
        """Records of earlier generations of keys, to which the sequence number is added."""

    def count_control(self, number: int) -> None:
        """The record with this number was one without content. Raises RecordError if that was one too many."""
        self._in_a_row = self._in_a_row + 1 if number == self._row_ends else 1
        self._row_ends = number + 1
        self._control += 1
        if self._in_a_row > MAX_IN_A_ROW:
            raise RecordError(
                Alert.UNEXPECTED_MESSAGE, f"the client sent {self._in_a_row} records without content in a row"
            )
        if self._control > FREE_CONTROL_RECORDS + (self.records_before + number) // CONTROL_SHARE:
            raise RecordError(Alert.UNEXPECTED_MESSAGE, f"the client sent {self._control} records without content")

    def count_thin(self, number: int) -> None:
        """The record with this number had little content. Raises RecordError if that was one too many."""
        self._thin += 1
        if self._thin > FREE_THIN_RECORDS + (self.records_before + number) // 2:
            raise RecordError(Alert.UNEXPECTED_MESSAGE, f"the client sent {self._thin} records of a few bytes")

    def new_generation(self, records: int) -> None:
        """The client's sequence number, which was at `records`, begins again at 0."""
        self.records_before += records
        if self._row_ends == records:
            self._row_ends = 0
