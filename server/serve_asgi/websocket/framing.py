"""The framing of one open WebSocket (RFC 6455 5 to 8, RFC 7692): bytes in, messages out, and the reverse. Pure.

It owns the reading of frames, the joining of fragments, and the verdict on what the client sends; what a frame looks
like is `serve_asgi.websocket.frames`'s.
Rules: bytes are judged as they come, so that what is wrong is refused at the first byte that shows it, also in the
middle of a frame (a text that is not UTF-8, a size over the limit, a reserved bit); what is held of a message is its
own bytes and no more, however small the pieces. What nobody has asked for yet stays as it came: frames are read while
there is room for their messages, and a compressed message is unpacked to a few times its size. Pings are answered into
`output`; after an `End` nothing more comes out. It must not know ASGI, sockets or time, nor how the handshake went.

docs/how-it-works/websocket-library.md says why this is not a library's.
"""

from __future__ import annotations

import sys
from codecs import utf_8_decode
from collections.abc import Iterable
from typing import Final, NamedTuple

from serve_asgi.websocket.compression import DecompressedTooLarge, Deflate, UndecodableMessage
from serve_asgi.websocket.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    FIN_BINARY,
    FIN_TEXT,
    MASKED,
    MAX_CONTROL,
    MAX_REASON,
    OPCODES,
    PING,
    PONG,
    RSV,
    RSV1,
    SHORT_BINARY,
    SHORT_TEXT,
    TEXT,
    client_head,
    close_frame,
    control_frame,
    data_frame,
    valid_code,
)

try:
    from websockets.speedups import apply_mask
except ImportError:  # a build of the library without its C part
    from websockets.utils import apply_mask

PROTOCOL_ERROR: Final = 1002
NO_CODE: Final = 1005
INVALID_TEXT: Final = 1007
TOO_LARGE: Final = 1009

SINGLE: Final = 6 + 125
"""The largest frame with a short head: a client's has six bytes."""


MESSAGE_COST: Final = 256
"""What a waiting message counts beside its content, so that empty ones are bounded as well."""
AHEAD: Final = 64 * 1024
"""Bytes to which a compressed message is unpacked before it is asked for,"""
AHEAD_RATIO: Final = 4
"""and for each byte that has come of it so many more; what it comes to beyond that stays packed."""
UNBOUNDED: Final = sys.maxsize
UNMASKED: Final = bytes(4)
"""The masking key that changes nothing."""


def weigh(message: str | bytes) -> int:
    """What a message that waits counts: what it takes of memory, up to the last few bytes."""
    if type(message) is str and not message.isascii():  # one character may have made all of them four bytes wide
        return 4 * len(message) + MESSAGE_COST
    return len(message) + MESSAGE_COST


class End(NamedTuple):
    """The last event: the client's close frame, or what it did wrong. Say `reply`, then shut down."""

    code: int
    """The client's code (1005 if its frame had none), or that of the failure: 1002, 1007, 1009."""
    reason: str
    failed: bool
    """True if the client broke the protocol or a limit."""
    reply: bytes
    """Our close frame; empty if one was sent before. It may wait for answers to the messages before."""


Event = str | bytes | End


def _packed(size: int) -> int:
    """More bytes than a message of `size` is ever packed into: far more than DEFLATE adds to what has no pattern."""
    return size + (size >> 3) + 1024


class _Violation(Exception):
    """The client has broken a rule. Ends the reading, and never leaves the module."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class MessageFraming:
    """Both directions of one open WebSocket, from the server's side."""

    __slots__ = (
        "_asked",
        "_close_sent",
        "_compressed",
        "_ended",
        "_fin",
        "_kind",
        "_left",
        "_mask",
        "_max_size",
        "_message",
        "_rest",
        "_resting",
        "_stuck",
        "_tail",
        "_wire",
        "behind",
        "deflate",
        "pongs",
        "room",
    )

    def __init__(self, deflate: Deflate | None, max_size: int) -> None:
        """`max_size`: the largest incoming message in bytes, after decompression; a larger one ends with code 1009."""
        self.deflate = deflate
        """What is agreed on of compression, if anything."""
        self._max_size = max_size
        self._close_sent = False
        self._ended = False
        self._resting = True
        """Nothing is under way: the next byte begins a frame, and that frame a message or a control frame."""
        self._rest = b""
        """The start of a frame of which too little has come to read it, or all that waits for room."""
        self.behind = False
        """Bytes that have come wait for room: call `receive` again when there is some, with no more bytes."""
        self.room = UNBOUNDED
        """What is left for messages in this call of `receive`; below 0 nothing more is read."""
        self._asked = True
        """Whether the next message of this call is wanted whatever it comes to."""
        self._stuck = False
        """A compressed message has come to its end, and is not unpacked before it is asked for."""
        self._wire = 0
        """Bytes that have come of a compressed message."""
        self._kind = 0
        """TEXT or BINARY of the message under way; 0 between two."""
        self._compressed = False
        self._message: bytearray | None = None
        """What has come of it; None until a piece does not finish it."""
        self._tail = b""
        """The bytes at the end of that which are the start of a character."""
        self._left = 0
        """Bytes of content to come of the data frame under way."""
        self._fin = False
        self._mask = b""
        """That frame's masking key, turned so that it fits the next byte."""
        self.pongs: list[bytes] = []
        """What `output` comes to."""

    # ---- what comes in

    def single(self, data: bytes) -> str | bytes | None:
        """The message, if `data` is exactly one small, whole, uncompressed one: the commonest read by far.

        None for anything else, which `receive` takes. Raises nothing: what is not UTF-8 is left to `receive` as well.
        """
        size = len(data)
        if not self._resting or not 6 <= size <= SINGLE or data[1] != size + (MASKED - 6):
            return None
        octets = data  # compiled, a pointer: cheap to slice, within what the length allows
        first = octets[0]
        if first == FIN_BINARY:
            return apply_mask(octets[6:size], octets[2:6])
        if first == FIN_TEXT:
            try:
                payload = apply_mask(octets[6:size], octets[2:6])
                return payload.decode()
            except UnicodeDecodeError:
                return None
        return None

    def receive(self, data: bytes, room: int = UNBOUNDED, asked: bool = True) -> list[Event]:
        """Take bytes from the client; return whole messages in order, at most one `End`, which is last.

        It stops when messages of more than `room` (as `weigh` has it) have come out; if somebody has `asked` for the
        first one, that one comes out whatever it weighs. What is left makes it `behind`.
        """
        events: list[Event] = []
        if self._ended:  # what still comes is nobody's
            return events
        self.room = room = 0 if asked and room < 0 else room
        self._asked = asked
        try:
            self._receive(data, events)
        except _Violation as wrong:
            events.append(self._failed(wrong.code, wrong.reason))
        except UnicodeDecodeError as wrong:
            events.append(self._failed(INVALID_TEXT, f"{wrong.reason} in a text"))
        except DecompressedTooLarge:
            events.append(self._failed(TOO_LARGE, self._limit()))
        except UndecodableMessage as wrong:
            events.append(self._failed(PROTOCOL_ERROR, f"cannot decompress: {wrong}"))
        if self._ended:
            self.behind = False
        return events

    @property
    def output(self) -> bytes:
        """The pongs that are to be written, each once."""
        if not self.pongs:
            return b""
        pongs, self.pongs = self.pongs, []
        return b"".join(pongs)

    def _receive(self, data: bytes, events: list[Event]) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        if self._stuck and self._asked:
            self._unpack(events)
        position = self._whole_messages(data, events) if not self._kind else 0
        size = len(data)
        while position < size and not self._ended:
            if self.room < 0 or self._stuck:
                self._rest = data[position:]
                break
            if self._left:
                end = min(size, position + self._left)
                self._content(data[position:end], events)
                position = end
                continue
            after = self._frame(data, position, events)
            if after < 0:
                self._rest = data[position:]
                break
            position = after
        self.behind = self._stuck or (self.room < 0 and bool(self._rest))
        self._resting = not self._kind and not self._rest and not self._ended

    def _whole_messages(self, data: bytes, events: list[Event]) -> int:
        """Read the frames at the start of `data` that are whole messages, uncompressed, with all their bytes there.

        Only spares time: `_frame` would read the same. Returns how many bytes that was.
        """
        octets = data  # as in `single`
        size = len(data)
        position = 0
        room = self.room
        while size - position >= 6 and room >= 0:
            first = octets[position]
            if first != FIN_TEXT and first != FIN_BINARY:
                break
            length = octets[position + 1] - MASKED
            start = position + 6
            if length == 126:
                start += 2
                length = octets[position + 2] << 8 | octets[position + 3]
                if length < 126:
                    break
            elif length < 0 or length == 127:
                break
            end = start + length
            if end > size or length > self._max_size:
                break
            payload = apply_mask(octets[start:end], octets[start - 4 : start])
            if first == FIN_TEXT:
                text = payload.decode()
                events.append(text)
                if len(text) != length:
                    length = 4 * len(text)  # as `weigh` has it
            else:
                events.append(payload)
            room -= length + MESSAGE_COST
            position = end
        self.room = room
        self._asked = self._asked and not position
        return position

    def _frame(self, data: bytes, start: int, events: list[Event]) -> int:
        """The frame that begins at `start`: its head, and the whole of it if it is a control frame (RFC 6455 5.2).

        Returns where to go on, or -1 if more bytes are needed.
        """
        have = len(data) - start
        if have < 2:
            return -1
        first, second = data[start], data[start + 1]
        opcode = first & 0x0F
        self._check_start(first, opcode, second)
        length = second & 0x7F
        if opcode >= CLOSE:
            after = start + 6 + length
            if have < 6 + length:
                return -1
            self._control(opcode, apply_mask(data[start + 6 : after], data[start + 2 : start + 6]), events)
            return after
        key = start + 2
        if length >= 126:
            key += 2 if length == 126 else 8
            if len(data) < key:
                return -1
            least, length = (126, 65536)[length - 126], int.from_bytes(data[start + 2 : key])
            if length < least or length >> 63:
                raise _Violation(PROTOCOL_ERROR, "frame length not in its shortest form")
        self._check_size(length, bool(first & RSV1) if opcode else self._compressed)
        if len(data) < key + 4:
            return -1
        if opcode:
            self._kind = opcode
            self._compressed = bool(first & RSV1)
        self._fin = first >= FIN
        self._left = length
        self._mask = data[key : key + 4]
        if not length:
            self._content(b"", events)
        return key + 4

    def _check_start(self, first: int, opcode: int, second: int) -> None:
        """The rules on the first two bytes of a frame."""
        if opcode not in OPCODES:
            raise _Violation(PROTOCOL_ERROR, f"reserved opcode {opcode}")
        reserved = first & RSV
        if reserved and (reserved != RSV1 or self.deflate is None or opcode not in (TEXT, BINARY)):
            raise _Violation(PROTOCOL_ERROR, "reserved bits set")
        if second < MASKED:  # RFC 6455 5.1
            raise _Violation(PROTOCOL_ERROR, "frame not masked")
        if opcode >= CLOSE:  # RFC 6455 5.5
            if first < FIN:
                raise _Violation(PROTOCOL_ERROR, "fragmented control frame")
            if second > MASKED | MAX_CONTROL:
                raise _Violation(PROTOCOL_ERROR, "control frame of more than 125 bytes")
        elif opcode == CONTINUATION:  # RFC 6455 5.4
            if not self._kind:
                raise _Violation(PROTOCOL_ERROR, "continuation of no message")
        elif self._kind:
            raise _Violation(PROTOCOL_ERROR, "message within another one")

    def _check_size(self, length: int, compressed: bool) -> None:
        """Refuse a frame by its announced length; what a compressed one comes to shows when it is unpacked."""
        room = self._max_size
        if compressed:
            room = _packed(room)
        elif self._message is not None:
            room -= len(self._message)
        if length > room:
            raise _Violation(TOO_LARGE, self._limit())

    def _limit(self) -> str:
        return f"message of more than {self._max_size} bytes"

    def _content(self, piece: bytes, events: list[Event]) -> None:
        """Content of the data frame under way: all that has come of it."""
        taken = len(piece)
        piece = apply_mask(piece, self._mask)
        self._left -= taken
        turn = taken & 3
        if turn:
            self._mask = self._mask[turn:] + self._mask[:turn]
        last = self._fin and not self._left
        message = self._message
        if self._compressed:
            piece = self._inflate(message, piece, last)
            if last and self._stuck:
                last = False
        if last:
            self._message_ends(message, piece, events)
            return
        if self._kind == TEXT:
            text = self._tail + piece
            _, whole = utf_8_decode(text, "strict", False)
            self._tail = text[whole:]
            if b"\xed\xa0" <= self._tail < b"\xee":  # a surrogate's start, which Python's decoder waits to judge
                raise _Violation(INVALID_TEXT, "surrogate in a text")
        if message is None:
            self._message = bytearray(piece)
        else:
            message += piece

    def _inflate(self, message: bytearray | None, piece: bytes, last: bool) -> bytes:
        """What a piece of a compressed message comes to, as far as it is unpacked now."""
        deflate = self.deflate
        assert deflate is not None
        room = self._max_size - (len(message) if message else 0)
        self._wire += len(piece)
        if last and self._asked:
            piece = deflate.inflate(piece, room, True, 0 if deflate.rest else UNBOUNDED)
            return piece + deflate.unpack(room) if deflate.rest else piece
        most = AHEAD + AHEAD_RATIO * self._wire - (self._max_size - room)
        piece = deflate.inflate(piece, room, last, most)
        if deflate.rest:
            self._stuck = last
            if len(deflate.rest) > _packed(self._max_size):
                raise DecompressedTooLarge
        return piece

    def _unpack(self, events: list[Event]) -> None:
        """The message that has stayed packed is asked for."""
        assert self.deflate is not None
        self._stuck = False
        message = self._message
        piece = self.deflate.unpack(self._max_size - (len(message) if message else 0))
        self._message_ends(message, piece, events)

    def _message_ends(self, message: bytearray | None, piece: bytes, events: list[Event]) -> None:
        whole: bytes | bytearray = piece
        if message is not None:
            message += piece
            whole = message
            self._message = None
        event = whole.decode() if self._kind == TEXT else bytes(whole)
        events.append(event)
        self.room -= weigh(event)
        self._asked = False
        self._kind = 0
        self._wire = 0
        self._tail = b""

    def _control(self, opcode: int, payload: bytes, events: list[Event]) -> None:
        """RFC 6455 5.5; a pong says nothing that the arrival of bytes does not."""
        if opcode == PING:
            self.pongs.append(control_frame(PONG, payload))
        elif opcode == CLOSE:
            events.append(self._closed(payload))

    def _closed(self, payload: bytes) -> End:
        """The client's close frame (RFC 6455 5.5.1, 7.1.5, 7.1.6), which is answered with the same."""
        code, reason = NO_CODE, ""
        if payload:
            code = int.from_bytes(payload[:2])
            if len(payload) == 1 or not valid_code(code):
                raise _Violation(PROTOCOL_ERROR, "close frame without a valid code")
            reason = payload[2:].decode()
        return self._end(code, reason, False, payload)

    def _failed(self, code: int, reason: str) -> End:
        """RFC 6455 7.1.7: the reason is for the person who looks for it at the other end."""
        return self._end(code, reason, True, code.to_bytes(2) + reason.encode()[:MAX_REASON])

    def _end(self, code: int, reason: str, failed: bool, payload: bytes) -> End:
        reply = b"" if self._close_sent else control_frame(CLOSE, payload)
        self._ended = self._close_sent = True
        self._resting = False
        self._message = None
        return End(code, reason, failed, reply)

    # ---- what goes out

    def text(self, text: str) -> bytes:
        """The frame of a text message. Raises UnicodeEncodeError for text that UTF-8 cannot carry (lone surrogates)."""
        payload = text.encode()
        if self.deflate is None and len(payload) < 126:
            return SHORT_TEXT[len(payload)] + payload
        return self._data(FIN_TEXT, payload)

    def binary(self, payload: bytes) -> bytes:
        """The frame of a binary message."""
        if self.deflate is None and len(payload) < 126:
            return SHORT_BINARY[len(payload)] + payload
        return self._data(FIN_BINARY, payload)

    def _data(self, first: int, payload: bytes) -> bytes:
        if self.deflate is not None:
            return data_frame(first | RSV1, self.deflate.compress(payload))
        return data_frame(first, payload)

    def close(self, code: int, reason: str = "") -> bytes:
        """Our close frame. Frames of data may still come in until the client's own close frame.

        Raises ValueError for a code that may not be sent (RFC 6455 7.4) or a reason of more than 123 bytes.
        """
        frame = close_frame(code, reason)
        self._close_sent = True
        return frame

    def fail(self, code: int, reason: str) -> bytes:
        """A close frame after which nothing that comes in is read (RFC 6455 7.1.7)."""
        return self._failed(code, reason).reply

    # ---- for a connection that may be moved to another process

    def keep(self) -> None:
        """From now on remember what it takes to move; called again it changes nothing.

        Nothing has to be remembered but of compressed messages, and of those what has come of one that is not whole.
        """
        if self.deflate is not None:
            begun = self._compressed and self._message is not None
            self.deflate.keep_window(_packed(self._max_size), begun)

    def can_move(self) -> bool:
        """Whether another framing can go on from here: neither side has closed, nothing has failed.

        With compression: not before `keep`, not in a message that began before it, nor in one that is packed into far
        more than it comes to; after the end of that message it can.
        """
        return not self._close_sent and (self.deflate is None or self.deflate.can_move())

    def unread(self, messages: Iterable[str | bytes]) -> bytes:
        """The client's frames that a new framing reads to the same result as this one would come to; if it `can_move`.

        `messages`: those that have come out of this one and that nobody has taken; they come first. The new framing
        has the same `max_size` and, if there is compression, `Deflate.resumed(deflate.moved(), deflate.window)`; one
        that may move again is told to `keep` before it reads. Nothing changes here. Pongs are not part of it: write
        `output` before.
        """
        frames: list[bytes] = []
        for message in messages:
            first, payload = (FIN_TEXT, message.encode()) if isinstance(message, str) else (FIN_BINARY, message)
            frames += (client_head(first, len(payload), UNMASKED), payload)
        if self._kind:  # what has come of the message under way, in one frame, and what it lacks of its last one
            first = self._kind | (FIN if self._stuck else 0)
            if self._compressed:
                assert self.deflate is not None
                first |= RSV1
                come = self.deflate.packed
            else:
                come = bytes(self._message or b"")
            frames += (client_head(first, len(come), UNMASKED), come)
            if self._left:
                frames.append(client_head(FIN if self._fin else CONTINUATION, self._left, self._mask))
        frames.append(self._rest)
        return b"".join(frames)
