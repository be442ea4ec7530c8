"""One HTTP/2 client connection over the `h2` library: many requests at once, and no second attempt at any of them.

Owns one connection, in clear text with prior knowledge or over TLS by ALPN (RFC 9113 3.3, 3.2), and its streams. Rules:
every response is a future that ends as the response, or as a `Failure` with its cause; whatever the server does to a
stream but answer it wholly is a failure, also where RFC 9113 lets a client try again (6.8: streams above the last one
of a GOAWAY); nothing is opened again here. GOAWAY is taken out of what `h2` gets, since `h2` sends nothing after it,
though streams in progress go on. It knows nothing of ids and load kinds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, cast

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from loadtest import tls
from loadtest.connection import CONNECT_TIMEOUT, Failure, Response
from loadtest.http2_frames import FRAME_HEAD, FrameWriter, code_name, whole_frames
from loadtest.ledger import Cause, Left

Fields = Sequence[tuple[bytes, bytes]]

GOAWAY: Final = 7
ALL_STREAMS: Final = 2**31 - 1
"""The last stream of a GOAWAY that only announces another one (RFC 9113 6.8)."""
CONNECTION_WINDOW: Final = 1 << 20
OF_LATE: Final = 2.0
"""Seconds for which it is known of a request how long it has taken,"""
LATEST: Final = 64
"""and of how many."""


@dataclasses.dataclass(frozen=True, slots=True)
class Manner:
    """How a client speaks HTTP/2."""

    window: int = 65_535
    """Bytes of a response that may be on their way (SETTINGS_INITIAL_WINDOW_SIZE)."""
    take_after: float = 0.0
    """Seconds after which what has come is taken, and the windows are opened again."""
    cut: bool = False
    """What is sent goes out in pieces, cut anywhere, with pauses; a head often in several frames."""


class Stream:
    """One request and its response."""

    def __init__(self, connection: MultiplexedConnection, number: int, head: Fields) -> None:
        self.number = number
        """The stream's identifier."""
        self.target = b" ".join(dict(head).get(name, b"") for name in (b":method", b":path")).decode()
        self.sent = time.monotonic()
        self.response = Response()
        self.trailers: dict[bytes, bytes] = {}
        self.interim = 0
        """How many interim responses have come."""
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        """The whole response; raises Failure if there will be none."""
        self.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())  # somebody may not ask
        self.sent_end = False
        """Whether the whole request has been sent."""
        self.took: Callable[[bytes], None] | None = None
        """Takes the content as it comes, instead of the response; first, when the head has come, b""."""
        self.lasting = False
        """It is to survive reloads: how long it takes does not matter to its connection."""
        self.take_at = 0.0
        """What comes before this (monotonic, s) is taken then."""
        self._connection = connection

    async def send(self, data: bytes, *, end: bool) -> None:
        """Send some of the body as far as the windows let it; stops when the response, or the end, has come."""
        sent = 0
        while not self.answer.done():
            room = self._connection.room(self.number)
            if room or not data:
                piece = data[sent : sent + room]
                sent += len(piece)
                self._connection.send_data(self.number, piece, end=end and sent == len(data))
            if sent == len(data):
                return
            if not room:
                changes: list[asyncio.Future[Any]] = [self.answer, self._connection.changed()]
                await asyncio.wait(changes, return_when="FIRST_COMPLETED")

    def end(self, trailers: Fields) -> None:
        """Send the trailers, which end the request."""
        if not self.answer.done():
            self._connection.send_trailers(self.number, trailers)

    def reset(self) -> None:
        """RST_STREAM with CANCEL: the client wants no response any more."""
        self._connection.reset(self.number)

    def wait(self) -> float:
        """Seconds until what comes now is taken."""
        return max(0.0, self.take_at - time.monotonic())

    @property
    def begun(self) -> bool:
        """Whether some of the response has come."""
        return self.response.status != 0


class MultiplexedConnection(asyncio.Protocol):
    """A client connection with many requests at once.

    `left` is told once if the server ends the connection, or says by GOAWAY that it will, and the client has not asked
    for it: with the seconds that the longest request of late has taken, and the requests in progress in words.
    """

    def __init__(self, left: Callable[[Left, float, str], None], manner: Manner, random: Random) -> None:
        self._left = left
        self._manner = manner
        self._writer = FrameWriter(random, cut=manner.cut)
        settings = Settings(
            initial_values={SettingCodes.INITIAL_WINDOW_SIZE: manner.window, SettingCodes.ENABLE_PUSH: 0}
        )
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._h2.local_settings = settings
        self._incoming = bytearray()
        self._streams: dict[int, Stream] = {}
        self._ended: deque[tuple[float, float]] = deque(maxlen=LATEST)
        self._change: asyncio.Future[None] | None = None
        self._told = False  # `left` has been told
        self.number = 0
        """Whose turn it was to be opened in this run: 1 is the first."""
        self.ended: Cause | None = None
        """Why nothing comes here any more; None while the connection stands."""
        self.goaway: int | None = None
        """The last stream that the server says it will answer; None as long as it has sent no GOAWAY."""
        self.asked_to_close = False
        """The client has closed: an end is no reconnect."""
        self.unannounced = False
        """Over TLS: the server has ended the connection without close_notify."""
        self.oddities: list[str] = []
        """What a server must not do, besides what fails a request."""

    # what the caller does

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        left: Callable[[Left, float, str], None],
        client: tls.ClientTls | None = None,
        unix: Path | None = None,
        *,
        manner: Manner,
        random: Random,
    ) -> MultiplexedConnection:
        """Connect, to the socket `unix` if there is one, and shake hands if there is a TLS `client`; raises Failure.

        Over TLS, `client` must offer h2 alone.
        """
        connection = cls(left, manner, random)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if client is not None:
                    await tls.connect(host, port, connection, client)
                elif unix is not None:
                    await asyncio.get_running_loop().create_unix_connection(lambda: connection, str(unix))
                else:
                    await asyncio.get_running_loop().create_connection(lambda: connection, host, port)
        except ConnectionRefusedError as error:
            raise Failure(Cause.REFUSED, str(error)) from error
        except (OSError, TimeoutError) as error:
            raise Failure(Cause.CONNECT, str(error) or "timeout") from error
        return connection

    def begin(self, head: Fields, *, end: bool) -> Stream:
        """Send the head of a request, which has no body if it `end`s there. Raises Failure if that cannot be."""
        if not self.usable:
            raise Failure(self.ended or Cause.GOAWAY, "before the request was sent")
        stream = Stream(self, self._h2.get_next_available_stream_id(), head)
        self._streams[stream.number] = stream
        stream.sent_end = end
        self._h2.send_headers(stream.number, head, end_stream=end)
        self._flush()
        return stream

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self.ended is None and self.goaway is None

    @property
    def full(self) -> bool:
        """Whether the server allows no more requests at once (SETTINGS_MAX_CONCURRENT_STREAMS, RFC 9113 5.1.2)."""
        return self.usable and self._h2.open_outbound_streams >= self._h2.remote_settings.max_concurrent_streams

    @property
    def extended(self) -> bool:
        """Whether the server takes an extended CONNECT (RFC 8441 3)."""
        return self._h2.remote_settings.enable_connect_protocol == 1

    @property
    def open_streams(self) -> int:
        """Requests in progress."""
        return len(self._streams)

    def longest(self) -> float:
        """Seconds that the longest request has taken of those in progress, and of those that have ended of late. Those
        that are to survive do not count."""
        now = time.monotonic()
        ended = [duration for end, duration in self._ended if now - end < OF_LATE]
        ended += [now - stream.sent for stream in self._streams.values() if not stream.lasting]
        return max(ended, default=0.0)

    def in_progress(self) -> str:
        """The requests in progress, each with its age."""
        now = time.monotonic()
        return ", ".join(f"{stream.target} for {now - stream.sent:.3f} s" for stream in self._streams.values())

    def close(self) -> None:
        """The client goes: GOAWAY, then the end."""
        self.asked_to_close = True
        if self.ended is None:
            self.ended = Cause.EOF
            self._h2.close_connection()
            self._flush()
        self._writer.close()

    # what its streams do

    def room(self, stream: int) -> int:
        """How many bytes of a body may be sent now, in one frame."""
        return max(0, min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size))

    def changed(self) -> asyncio.Future[None]:
        """Done when the server has said something, or has ended the connection: there may be more room."""
        if self._change is None:
            self._change = asyncio.get_running_loop().create_future()
        return self._change

    def send_data(self, stream: int, data: bytes, *, end: bool) -> None:
        """One DATA frame."""
        self._streams[stream].sent_end = end
        self._h2.send_data(stream, data, end_stream=end)
        self._flush()

    def send_trailers(self, stream: int, trailers: Fields) -> None:
        """The last HEADERS frame of a request."""
        self._streams[stream].sent_end = True
        self._h2.send_headers(stream, trailers, end_stream=True)
        self._flush()

    def reset(self, stream: int) -> None:
        """Nothing of this stream matters any more."""
        if self._streams.pop(stream, None) is not None and self.ended is None:
            self._h2.reset_stream(stream, ErrorCodes.CANCEL)
            self._flush()
            self._has_changed()

    # what the loop does

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._writer.begin(cast(asyncio.Transport, transport))
        tls_object = transport.get_extra_info("ssl_object")
        if tls_object is not None and tls_object.selected_alpn_protocol() != "h2":
            self._end(Cause.WRONG, f"the server chose {tls_object.selected_alpn_protocol()} by ALPN")
            return
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self.ended is not None:
            return
        self._incoming += data
        try:
            for frame in whole_frames(self._incoming):
                if frame[3] == GOAWAY:
                    self._told_to_go(frame[FRAME_HEAD:])
                else:
                    for event in self._h2.receive_data(frame):
                        self._happened(event)
        except (ProtocolError, ValueError) as error:
            self.oddities.append(f"{type(error).__name__}: {error}")
            self._told = True
            self._end(Cause.WRONG, f"{type(error).__name__}: {error}")
            return
        self._flush()
        self._has_changed()

    def eof_received(self) -> bool:
        self._tell(Left.EOF)
        self._end(Cause.EOF)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell(Left.RESET if exc is not None else Left.EOF)
        self._end(Cause.RESET if exc is not None else Cause.EOF)

    # what TLS says besides

    def truncated(self) -> None:
        """The end of TCP without close_notify."""
        self.unannounced = True
        self._tell(Left.TRUNCATION)
        self._end(Cause.EOF, "no close_notify")

    def alerted(self, reason: str) -> None:
        """An alert, or a record that is wrong."""
        self._tell(Left.ALERT)
        self._end(Cause.TLS, reason)

    # ---- what the server says

    def _happened(self, event: events.Event) -> None:
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, events.DataReceived):
            if stream is None:
                pass
            elif stream.took is not None:
                stream.took(event.data or b"")
            else:
                stream.response.body += event.data or b""
            self._take(event, stream)
        elif stream is None:
            pass
        elif isinstance(event, events.ResponseReceived):
            fields = cast(Iterable[tuple[bytes, bytes]], event.headers or ())
            stream.response.headers = dict(fields)
            stream.response.status = int(stream.response.headers[b":status"])
            if stream.took is not None:
                stream.took(b"")
        elif isinstance(event, events.InformationalResponseReceived):
            stream.interim += 1
        elif isinstance(event, events.TrailersReceived):
            stream.trailers = dict(cast(Iterable[tuple[bytes, bytes]], event.headers or ()))
        elif isinstance(event, events.StreamEnded):
            stream.response.done = time.monotonic()
            self._finish(stream)
        elif isinstance(event, events.StreamReset):
            detail = f"{code_name(int(event.error_code or 0))}, {'after its head' if stream.begun else 'no response'}"
            self._fail(stream, Failure(Cause.STREAM_RESET, detail))

    def _take(self, event: events.DataReceived, stream: Stream | None) -> None:
        size, number = event.flow_controlled_length or 0, event.stream_id or 0
        after = self._manner.take_after if stream is None else max(self._manner.take_after, stream.wait())

        def take() -> None:
            if self.ended is None:
                self._h2.acknowledge_received_data(size, number)
                self._flush()

        if not size:
            return
        if after:
            asyncio.get_running_loop().call_later(after, take)
        else:
            self._h2.acknowledge_received_data(size, number)

    def _told_to_go(self, payload: bytes) -> None:
        last, code = int.from_bytes(payload[:4]) & ALL_STREAMS, int.from_bytes(payload[4:8])
        if code:
            self.oddities.append(f"GOAWAY with {code_name(code)} {payload[8:60]!r}")
        if self.goaway is not None and last > self.goaway:
            self.oddities.append("GOAWAY with a later last stream than the one before (RFC 9113 6.8)")
        self.goaway = last
        self._tell(Left.GOAWAY)
        for stream in [stream for number, stream in self._streams.items() if number > last]:
            failure = Failure(Cause.GOAWAY, f"stream {stream.number}, the last one is {last}, {code_name(code)}")
            self._fail(stream, failure)

    # ---- how streams and the connection end

    def _finish(self, stream: Stream) -> None:
        del self._streams[stream.number]
        if not stream.lasting:
            self._ended.append((stream.response.done, stream.response.done - stream.sent))
        if not stream.sent_end:  # the server wants no more of the request
            self._h2.reset_stream(stream.number, ErrorCodes.CANCEL)
        if not stream.answer.done():
            stream.answer.set_result(stream.response)

    def _fail(self, stream: Stream, failure: Failure) -> None:
        del self._streams[stream.number]
        if not stream.answer.done():
            stream.answer.set_exception(failure)

    def _has_changed(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)
        self._change = None

    def _end(self, cause: Cause, detail: str = "") -> None:
        self.ended = self.ended or cause
        self._has_changed()
        for stream in list(self._streams.values()):
            cut = Cause.TRUNCATED if stream.begun and cause is Cause.EOF else cause
            self._fail(stream, Failure(cut, f"{detail or cause.value}, {self.open_streams} streams were open"))
        self._writer.stop()
        self._writer.close()

    def _tell(self, left: Left) -> None:
        if self.asked_to_close or self._told:
            return
        self._told = True
        if left is not Left.GOAWAY:
            self.oddities.append(f"a connection of HTTP/2 ended without GOAWAY: {left.value}")
        self._left(left, self.longest(), self.in_progress())

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._writer.write(data)
