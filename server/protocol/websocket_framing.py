"""The framing of one open WebSocket (RFC 6455, RFC 7692): bytes in, messages out, and the reverse. Pure.

This is the seam in front of the WebSocket library: nothing else imports the library's protocol, so that another one can
take its place behind the methods here (docs/websocket-library.md says which was chosen and why).
Rules: pings are answered and a close frame is echoed by the framing itself, into `output`; after an `End` nothing more
comes out. The commonest frame (a whole, uncompressed message that came in one read) is read and written here directly,
which spares most of the cost; every other byte goes to the library. It must not know ASGI, sockets or time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

from websockets.exceptions import ProtocolError
from websockets.extensions import Extension
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, SERVER, Protocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # a build of the library without its C part
    from websockets.utils import apply_mask

# The library tells of each connection at INFO, which is the access log's business here.
LOGGER: Final = logging.getLogger("serve.websocket")
LOGGER.setLevel(logging.WARNING)

TEXT: Final = Opcode.TEXT
BINARY: Final = Opcode.BINARY
CONT: Final = Opcode.CONT
CLOSE: Final = Opcode.CLOSE

INVALID_TEXT: Final = 1007
FIN_TEXT: Final = 0x81
FIN_BINARY: Final = 0x82
MASKED: Final = 0x80


class End(NamedTuple):
    """The last event: the peer's close frame, or the failure that it was told of. Write the output, then shut down."""

    code: int
    """The peer's code (1005 if its frame had none), or the one that it was sent: 1002, 1007, 1009."""
    reason: str
    failed: bool
    """True if the peer broke the protocol or a limit."""


Event = str | bytes | End


class Framing:
    """One direction each of an open WebSocket, from the server's side."""

    __slots__ = ("_fast_limit", "_is_text", "_open", "_parts", "_plain", "_protocol", "output")

    def __init__(self, extensions: Sequence[Extension], max_size: int) -> None:
        """`max_size`: the largest incoming message in bytes, after decompression; a larger one ends with code 1009."""
        self._protocol = Protocol(SERVER, state=OPEN, max_size=max_size, logger=LOGGER)
        self._protocol.extensions = list(extensions)
        self._plain = not extensions
        self._fast_limit = max_size
        self._open = True
        """No close frame has been sent: the library's state, where it can be asked quickly."""
        self._parts: list[bytes | bytearray] | None = None
        """The fragments of a message whose last one has not come."""
        self._is_text = False
        self.output = b""
        """What the framing itself has to say (pongs, the close frame); whoever writes it empties it."""

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the client; return whole messages in order, at most one `End`, which is last."""
        events: list[Event] = []
        if self._parts is None and not self._protocol.reader.buffer and self._open:
            try:
                taken = self._receive_simple(data, events)
            except UnicodeDecodeError as error:
                events.append(self._invalid_text(error))
                return events
            if taken == len(data):
                return events
            if taken:
                data = data[taken:]
        protocol = self._protocol
        if protocol.eof_sent:  # ended: what still comes is nobody's
            return events
        protocol.receive_data(data)
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            try:
                event = self._event(frame)
            except UnicodeDecodeError as error:
                event = self._invalid_text(error)
            if event is not None:
                events.append(event)
                if type(event) is End:
                    break
        if protocol.parser_exc is not None and not (events and type(events[-1]) is End):
            sent = protocol.close_sent
            events.append(End(int(sent.code), sent.reason, True) if sent else End(1006, "", True))
        self._collect()
        return events

    def _receive_simple(self, data: bytes, events: list[Event]) -> int:
        """Read the frames at the start of `data` that are whole messages, masked, uncompressed and complete.

        Returns how many bytes that was; the first frame that is anything else is left to the library.
        Raises UnicodeDecodeError at a text that is not UTF-8.
        """
        size = len(data)
        position = 0
        while size - position >= 6:
            first = data[position]
            if first != FIN_TEXT and first != FIN_BINARY:
                break
            length = data[position + 1] - MASKED
            start = position + 6
            if length == 126:
                start += 2
                length = data[position + 2] << 8 | data[position + 3]
            elif length < 0 or length == 127:
                break
            end = start + length
            if end > size or length > self._fast_limit:
                break
            payload = apply_mask(data[start:end], data[start - 4 : start])
            events.append(payload.decode() if first == FIN_TEXT else payload)
            position = end
        return position

    def _event(self, frame: Frame) -> Event | None:
        """What a frame completes, if anything."""
        opcode = frame.opcode
        if opcode is CONT:
            assert self._parts is not None
            if frame.data:  # empty fragments cost nothing, however many there are
                self._parts.append(bytes(frame.data))
            if not frame.fin:
                return None
            whole = b"".join(self._parts)
            self._parts = None
            return whole.decode() if self._is_text else whole
        if opcode is TEXT or opcode is BINARY:
            if not frame.fin:
                self._parts = [bytes(frame.data)]
                self._is_text = opcode is TEXT
                return None
            return bytes(frame.data).decode() if opcode is TEXT else bytes(frame.data)
        if opcode is CLOSE:
            received = self._protocol.close_rcvd
            assert received is not None
            return End(int(received.code), received.reason, False)
        return None  # a ping, which the library has answered, or a pong

    def _invalid_text(self, error: UnicodeDecodeError) -> End:
        """Fail the connection over a text message that is not UTF-8 (RFC 6455 8.1)."""
        reason = f"{error.reason} at position {error.start}"
        self._protocol.fail(INVALID_TEXT, reason)
        self._collect()
        return End(INVALID_TEXT, reason, True)

    def _collect(self) -> None:
        """Gather what the library wants written."""
        self._open = self._protocol.close_sent is None
        if self._protocol.writes:
            self.output += b"".join(self._protocol.data_to_send())

    def text(self, text: str) -> bytes:
        """The frame of a text message. Raises UnicodeEncodeError for text that UTF-8 cannot carry (lone surrogates)."""
        return self._frame(FIN_TEXT, text.encode())

    def binary(self, data: bytes | bytearray | memoryview) -> bytes:
        """The frame of a binary message."""
        return self._frame(FIN_BINARY, bytes(data))

    def _frame(self, first: int, payload: bytes) -> bytes:
        if not self._plain:
            frame = Frame(TEXT if first == FIN_TEXT else BINARY, payload)
            return frame.serialize(mask=False, extensions=self._protocol.extensions)
        size = len(payload)  # RFC 6455 5.2; a server's frames are not masked
        if size < 126:
            return bytes((first, size)) + payload
        if size < 65536:
            return bytes((first, 126, size >> 8, size & 255)) + payload
        return bytes((first, 127)) + size.to_bytes(8, "big") + payload

    def ping(self, payload: bytes = b"") -> bytes:
        """A ping frame; at most 125 bytes of payload."""
        return Frame(Opcode.PING, payload).serialize(mask=False)

    def close(self, code: int, reason: str = "") -> bytes:
        """Our close frame. Frames of data may still come in until the peer's own close frame.

        Raises ValueError for a code that may not be sent (RFC 6455 7.4) or a reason of more than 123 bytes.
        """
        try:
            self._protocol.send_close(code, reason)
        except ProtocolError as error:
            raise ValueError(
                f"websocket.close: {error} (code {code}; codes are 1000 to 1003, 1007 to 1014 and 3000 to 4999, "
                "and a reason has at most 123 bytes)"
            ) from None
        self._collect()
        output, self.output = self.output, b""
        return output

    def fail(self, code: int, reason: str) -> bytes:
        """A close frame after which nothing that comes in is read (RFC 6455 7.1.7)."""
        self._protocol.fail(code, reason)
        self._collect()
        output, self.output = self.output, b""
        return output
