"""The compression of one WebSocket's messages: permessage-deflate (RFC 7692), after its parameters are agreed. Pure.

It owns the two zlib streams. Rules: a stream is made when the first message needs it, so that a socket that only waits
holds none; nothing is unpacked beyond the room that the caller grants, and what it does not want yet stays packed, so
that a bomb costs its own bytes until somebody asks for it, and no more than a message of the largest size then; one
that does not end is refused as soon as it is too large nevertheless. What another process needs to go on from here is
remembered after `keep_window` alone. It must not know frames, sockets or how the parameters were negotiated.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from serve_asgi.websocket.deflate_window import between_blocks, stream_after, window_of

TAIL: Final = b"\x00\x00\xff\xff"
"""What ends a sync flush: taken off what is sent, put back to what comes (RFC 7692 7.2.1, 7.2.2)."""
MEMORY_LEVEL: Final = 5
"""zlib's `memLevel`: with the window of 4 KiB that the server asks for, 32 KiB for each stream that compresses."""
MAX_STREAMS: Final = 16
"""How many times a DEFLATE stream may end (BFINAL) within one message; each costs a new one of zlib's."""

WEIGHED_AT_ONCE: Final = 16_384
"""Bytes that are unpacked at a time only to be counted."""


class DecompressedTooLarge(Exception):
    """The message is larger than the caller has room for."""


class UndecodableMessage(Exception):
    """This is no DEFLATE stream."""


class _UnderWay:
    """A compressed message as it has come so far, for a connection that may be moved before the rest of it comes."""

    __slots__ = ("before", "begun", "most", "packed")

    def __init__(self, most: int, begun: bool) -> None:
        self.most = most
        self.begun = begun
        self.before: zlib._Decompress | None = None
        """The decompressor before its first byte."""
        self.packed: bytearray | None = None
        """Its bytes; None between two messages, and if they are not known or more than `most`."""

    def add(self, piece: bytes, stream: zlib._Decompress | None, at_once: bool) -> None:
        """A piece that `stream` reads next; `at_once`: to the end of the message, so that one in one piece is over."""
        if not self.begun:
            if at_once:
                return
            self.begun = True
            self.before = None if stream is None else stream.copy()
            self.packed = bytearray()
        if self.packed is not None:
            self.packed += piece
            if len(self.packed) > self.most:
                self.before = self.packed = None

    def over(self) -> None:
        self.begun = False
        self.before = self.packed = None


class Deflate:
    """Both directions of one connection, from the server's side. Window sizes are in bits (RFC 7692 7.1.2)."""

    __slots__ = (
        "_client_bits",
        "_client_takeover",
        "_compressor",
        "_decompressor",
        "_ended",
        "_scale",
        "_server_bits",
        "_server_takeover",
        "_under_way",
        "_weighed",
        "rest",
    )

    def __init__(self, server_bits: int, client_bits: int, server_takeover: bool, client_takeover: bool) -> None:
        """`…_takeover`: whether that side's next message may refer to what it has sent before (RFC 7692 7.1.1)."""
        self._server_bits = server_bits
        self._client_bits = max(client_bits, 9)  # zlib's 8 is a 9 for some who compress; a larger window reads all
        self._server_takeover = server_takeover
        self._client_takeover = client_takeover
        self._compressor: zlib._Compress | None = None
        self._decompressor: zlib._Decompress | None = None
        self.rest = bytearray()
        """What has come of a message and is still packed."""
        self._ended = 0
        """Streams that have ended within the message that is coming in."""
        self._scale: zlib._Decompress | None = None
        """Unpacks ahead what stays packed of a message without end, and keeps nothing of it."""
        self._weighed = 0
        self._under_way: _UnderWay | None = None
        """Of a connection that may be moved."""

    def compress(self, payload: bytes) -> bytes:
        """A whole message (RFC 7692 7.2.1)."""
        compressor = self._compressor
        if compressor is None:
            compressor = zlib.compressobj(wbits=-self._server_bits, memLevel=MEMORY_LEVEL)
            if self._server_takeover:
                self._compressor = compressor
        start = compressor.compress(payload)
        rest = compressor.flush(zlib.Z_SYNC_FLUSH)
        return start + rest[:-4] if start else rest[:-4]

    def inflate(self, piece: bytes, room: int, last: bool, most: int) -> bytes:
        """A piece of a message; `last` says that the message ends with it (RFC 7692 7.2.2).

        About `most` bytes are unpacked, and what is left then stays packed in `rest`, as does all that follows until
        `unpack` is called. Raises DecompressedTooLarge if it unpacks to more than `room` bytes,
        UndecodableMessage if it is not DEFLATE.
        """
        kept = self._under_way
        if kept is not None:
            kept.add(piece, self._decompressor, last and most > room)
        if last:
            piece += TAIL
        if self.rest or most <= 0:
            self.rest += piece
            data = b""
        else:
            data = self._inflate(piece, room, most)
            piece = bytes(self.rest)
        if not last:
            self._weigh(piece, room - len(data))
        elif not self.rest:
            self._over()
            if kept is not None:
                kept.over()
        return data

    def _weigh(self, piece: bytes, room: int) -> None:
        """Refuse a message that has not come to its end as soon as what stays packed of it comes to more than `room`.

        Each piece of such a message is unpacked twice: that is the price of holding it packed.
        """
        if not piece or (self._scale is not None and self._scale.eof):
            return  # after the end of a stream it is weighed when it is unpacked
        if self._scale is None:
            self._weighed = 0
            now = self._decompressor
            self._scale = zlib.decompressobj(-self._client_bits) if now is None else now.copy()
        try:
            while piece and not self._scale.eof:
                self._weighed += len(self._scale.decompress(piece, WEIGHED_AT_ONCE))
                piece = self._scale.unconsumed_tail
                if self._weighed > room:
                    raise DecompressedTooLarge
        except zlib.error as error:
            raise UndecodableMessage(str(error)) from None

    def unpack(self, room: int) -> bytes:
        """All that has stayed packed of a message that has come to its end. Raises as `inflate`."""
        rest, self.rest = self.rest, bytearray()
        data = self._inflate(bytes(rest), room, room + 1)
        self._over()
        if self._under_way is not None:
            self._under_way.over()
        return data

    def _inflate(self, piece: bytes, room: int, most: int) -> bytes:
        decompressor = self._decompressor
        if decompressor is None:
            decompressor = self._decompressor = zlib.decompressobj(-self._client_bits)
        most = min(most, room + 1)
        try:
            data = decompressor.decompress(piece, most)
            while decompressor.eof:  # a block with BFINAL set; another stream may follow (RFC 7692 7.2.3.4)
                piece = decompressor.unused_data
                decompressor = self._decompressor = self._next_stream()
                data += decompressor.decompress(piece, max(1, most - len(data)))
        except zlib.error as error:
            raise UndecodableMessage(str(error)) from None
        if len(data) > room:
            raise DecompressedTooLarge
        # Of a whole message the tail is not read before all has come out, so that this is empty only then.
        self.rest += decompressor.unconsumed_tail
        return data

    def _over(self) -> None:
        """The message has been unpacked to its end."""
        self._ended = 0
        self._scale = None
        if not self._client_takeover:
            self._decompressor = None

    def _next_stream(self) -> zlib._Decompress:
        """What reads on after a stream has ended; bounded, since each copies what is left of the piece."""
        self._ended += 1
        if self._ended > MAX_STREAMS:
            raise UndecodableMessage(f"more than {MAX_STREAMS} streams in one message")
        return zlib.decompressobj(-self._client_bits)

    # ---- for a connection that may be moved

    def keep_window(self, most: int, begun: bool = False) -> None:
        """From now on remember what `can_move`, `window` and `packed` tell; called again it changes nothing.

        `most`: bytes of a compressed message that are remembered until it has come to its end. `begun`: a piece of one
        has been inflated before, so that there is nothing to tell until that has come to its end.
        """
        if self._under_way is None:
            self._under_way = _UnderWay(most, begun)

    def can_move(self) -> bool:
        """Whether another `Deflate` can go on from here; if not, perhaps after the message that is coming in."""
        kept = self._under_way
        if kept is None or (kept.begun and kept.packed is None):
            return False
        stream = kept.before if kept.begun else self._decompressor
        return stream is None or between_blocks(stream)

    def moved(self) -> dict[str, int | bool]:
        """What `resumed` needs beside the window: JSON values."""
        return {
            "server_bits": self._server_bits,
            "client_bits": self._client_bits,
            "server_takeover": self._server_takeover,
            "client_takeover": self._client_takeover,
        }

    @property
    def window(self) -> bytes:
        """What the message that is coming in, or else the next one, may refer to: at most 32 KiB. If it `can_move`."""
        kept = self._under_way
        stream = kept.before if kept is not None and kept.begun else self._decompressor
        return b"" if stream is None else window_of(stream, self._client_bits)

    @property
    def packed(self) -> bytes:
        """What has come of the message that is coming in or waits to be unpacked. If it `can_move`."""
        kept = self._under_way
        return bytes(kept.packed) if kept is not None and kept.packed is not None else b""

    @classmethod
    def resumed(cls, values: Mapping[str, int | bool], window: bytes) -> Deflate:
        """One that goes on where that one was which told `values` (its `moved`) and `window`.

        What was `packed` has to come once more. What is compressed begins afresh, which every client reads: its own
        window does not end. Raises KeyError if a value is missing.
        """
        deflate = cls(
            int(values["server_bits"]),
            int(values["client_bits"]),
            bool(values["server_takeover"]),
            bool(values["client_takeover"]),
        )
        if window:
            deflate._decompressor = stream_after(window, deflate._client_bits)
        return deflate
