"""Histories against the library `h2` as the client: it is the judge of every byte that the server says.

Both ends do whatever may be done next, in any order, and what is on the wire arrives in any pieces. At the end
everything that was sent has arrived, once and whole, no stream is left, and the windows are where they ought to be.
"""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.connection_value import export_connection, import_connection
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.events import StreamData, StreamEnd, StreamRequest, StreamReset
from serve_asgi.http.h2.limits import CONNECTION_WINDOW
from serve_asgi.http.h2.sending import MAX_FRAME
from tests.http.h2.peer import MAX_HEAD, Clock, accept_all

PATHS = (b"/", b"/a", b"/items/1?x=y", b"/long" + b"x" * 100)
EXTRA = ((b"x-a", b"1"), (b"cookie", b"a=b"), (b"accept", b"*/*"), (b"x-b", b"v" * 300), (b"priority", b"u=1, i"))
BODY_SIZES = (0, 1, 5, 1000, 16384, 16385, 70_000)


class Exchange:
    """A request and its response, from both ends."""

    def __init__(self, stream_id: int, fields: list[tuple[bytes, bytes]], more: bool) -> None:
        self.stream_id = stream_id
        self.fields = fields
        self.sending = more
        """The client has not ended."""
        self.sent = b""
        self.trailers: list[tuple[bytes, bytes]] = []
        self.arrived = b""
        self.untaken = 0
        self.request: StreamRequest | None = None
        self.whole = False
        """The server has seen the request's end."""
        self.response = 0
        """0: nothing, 1: head, 2: ended (by the server's application)."""
        self.answered = b""
        self.response_trailers: list[tuple[bytes, bytes]] = []
        self.got_head = False
        self.got = b""
        self.got_trailers: list[tuple[bytes, bytes]] = []
        self.got_end = False
        self.reset = False
        """By either end."""


class History:
    """Both ends of one connection, and the wire between them."""

    def __init__(self, draw: Any, client_settings: dict[Any, int]) -> None:
        self.draw = draw
        self.client = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding=None, validate_outbound_headers=False)
        )
        self.client.local_settings = h2.settings.Settings(client=True, initial_values=client_settings)
        self.client.initiate_connection()
        self.core = ConnectionCore(MAX_HEAD, accept_all, clock=Clock())
        self.core.begin(MAX_HEAD)
        self.to_server = b""
        self.to_client = b""
        self.exchanges: dict[int, Exchange] = {}
        self.next_id = 1
        self.moves = 0

    # ---- the wire

    def flush(self) -> None:
        self.to_server += self.client.data_to_send()
        self.to_client += self.core.take_output(self.draw(st.sampled_from([1, 20_000, 1 << 30])))
        assert self.core.lost is None, self.core.lost

    def carry(self, everything: bool = False) -> None:
        """Let some of what is on the wire arrive."""
        self.flush()
        for to_server in (True, False):
            wire = self.to_server if to_server else self.to_client
            if not wire:
                continue
            size = len(wire) if everything else self.draw(st.sampled_from([1, 9, 50, 5000, 1 << 30]))
            piece, wire = wire[:size], wire[size:]
            if to_server:
                self.to_server = wire
                self.served(self.core.receive(piece))
            else:
                self.to_client = wire
                self.got(self.client.receive_data(piece))

    def settle(self) -> None:
        for _ in range(1000):
            self.carry(everything=True)
            self.flush()
            if not self.to_server and not self.to_client and not self.core.waiting:
                return
        raise AssertionError("the two never come to rest")

    def served(self, events: list[Any]) -> None:
        for event in events:
            exchange = self.exchanges[event.stream_id]
            if isinstance(event, StreamRequest):
                exchange.request = event
                exchange.whole = event.ended
                sent = [field for field in exchange.fields if field[0][:1] != b":"]
                assert event.head.headers == [(b"host", b"example.com"), *sent]
                assert event.head.target == dict(exchange.fields)[b":path"]
            elif isinstance(event, StreamData):
                exchange.arrived += event.data
                exchange.untaken += len(event.data)
            elif isinstance(event, StreamEnd):
                exchange.whole = True
                assert event.trailers == exchange.trailers
                assert exchange.arrived == exchange.sent
            else:
                assert isinstance(event, StreamReset), event
                assert not event.reason, event
                exchange.reset = True

    def got(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                exchange = self.exchanges[event.stream_id]
                exchange.got += event.data or b""
                if event.flow_controlled_length:
                    self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.ResponseReceived):
                self.exchanges[event.stream_id].got_head = True
            elif isinstance(event, h2.events.TrailersReceived):
                self.exchanges[event.stream_id].got_trailers = [
                    (bytes(name), bytes(value)) for name, value in event.headers
                ]
            elif isinstance(event, h2.events.StreamEnded):
                self.exchanges[event.stream_id].got_end = True
            elif isinstance(event, h2.events.StreamReset):
                self.exchanges[event.stream_id].reset = True
            else:
                assert not isinstance(event, h2.events.ConnectionTerminated), event

    # ---- what the client may do

    def ask(self) -> None:
        if self.client.open_outbound_streams >= 50:
            return
        draw = self.draw
        extra = draw(st.lists(st.sampled_from(EXTRA), max_size=4, unique_by=lambda field: field[0]))
        more = draw(st.booleans())
        fields = [
            (b":method", b"POST" if more else b"GET"),
            (b":scheme", b"https"),
            (b":path", draw(st.sampled_from(PATHS))),
            (b":authority", b"example.com"),
            *extra,
        ]
        stream_id, self.next_id = self.next_id, self.next_id + 2
        self.exchanges[stream_id] = Exchange(stream_id, fields, more)
        self.client.send_headers(stream_id, fields, end_stream=not more)

    def upload(self) -> None:
        sending = [each for each in self.exchanges.values() if each.sending and not each.reset]
        if not sending:
            return
        exchange = self.draw(st.sampled_from(sending))
        stream_id = exchange.stream_id
        try:
            window = self.client.local_flow_control_window(stream_id)
        except h2.exceptions.ProtocolError:  # the server has reset it
            return
        size = min(self.draw(st.sampled_from(BODY_SIZES)), window, self.client.max_outbound_frame_size)
        body = bytes((len(exchange.sent) & 0xFF,)) * size
        end = self.draw(st.sampled_from(["no", "with data", "with trailers"]))
        if size or end == "with data":
            exchange.sent += body
            padding = self.draw(st.sampled_from([None, 0, 7])) if size + 8 <= min(window, 16384) else None
            self.client.send_data(stream_id, body, end_stream=end == "with data", pad_length=padding)
        if end == "with trailers":
            exchange.trailers = [(b"x-sum", b"%d" % len(exchange.sent))]
            self.client.send_headers(stream_id, exchange.trailers, end_stream=True)
        exchange.sending = end == "no"

    def give_up(self) -> None:
        """The client resets a stream."""
        candidates = [each for each in self.exchanges.values() if not each.reset and not each.got_end]
        if candidates:
            exchange = self.draw(st.sampled_from(candidates))
            self.client.reset_stream(exchange.stream_id, h2.errors.ErrorCodes.CANCEL)
            exchange.reset = True

    def say_something(self) -> None:
        what = self.draw(st.sampled_from(["ping", "window", "table", "frame size"]))
        if what == "ping":
            self.client.ping(b"12345678")
        elif what == "window":
            self.client.update_settings({4: self.draw(st.sampled_from([0, 1, 100, 65535, 1 << 20]))})
        elif what == "table":
            self.client.update_settings({1: self.draw(st.sampled_from([0, 100, 4096, 65536]))})
        else:
            self.client.update_settings({5: self.draw(st.sampled_from([16384, 100_000]))})

    # ---- what the server may do

    def answer(self) -> None:
        ready = [each for each in self.exchanges.values() if each.request is not None and each.response < 2]
        if not ready:
            return
        exchange = self.draw(st.sampled_from(ready))
        core, stream_id = self.core, exchange.stream_id
        if not exchange.response:
            length = self.draw(st.lists(st.sampled_from(EXTRA), max_size=3))
            core.send_head(stream_id, [(b":status", b"200"), *length], False)
            exchange.response = 1
        body = bytes((len(exchange.answered) & 0xFF,)) * self.draw(st.sampled_from(BODY_SIZES))
        end = self.draw(st.sampled_from(["no", "with data", "with trailers"]))
        exchange.answered += body
        core.send_data(stream_id, body, end == "with data")
        if end == "with trailers":
            exchange.response_trailers = [(b"x-sum", b"1")]
            core.send_trailers(stream_id, exchange.response_trailers)
        if end != "no":
            exchange.response = 2
            core.done(stream_id)

    def take(self) -> None:
        for exchange in self.exchanges.values():
            if exchange.untaken:
                self.core.consumed(exchange.stream_id, exchange.untaken)
                exchange.untaken = 0

    def cut(self) -> None:
        """The server resets a stream."""
        candidates = [each for each in self.exchanges.values() if each.request is not None and not each.reset]
        if candidates:
            exchange = self.draw(st.sampled_from(candidates))
            self.core.reset(exchange.stream_id, ErrorCode.INTERNAL_ERROR)
            exchange.reset = True

    def hold(self) -> None:
        if self.core.holding:
            self.served(self.core.release())
        else:
            self.core.hold()

    def move(self) -> None:
        """To another process, if it can."""
        for exchange in self.exchanges.values():
            if exchange.reset:
                self.core.done(exchange.stream_id)
        self.flush()
        if self.core.resting and not self.core.waiting:
            value, unread = export_connection(self.core)
            self.core = ConnectionCore(MAX_HEAD, accept_all, clock=Clock())
            import_connection(self.core, value)
            self.moves += 1
            self.served(self.core.receive(unread))

    # ---- the end

    def finish(self) -> None:
        """Let everything come to its end, and look."""
        if self.core.holding:
            self.served(self.core.release())
        self.client.update_settings({4: 1 << 20})
        self.settle()
        for _ in range(100):
            for exchange in self.exchanges.values():
                if exchange.sending and not exchange.reset:
                    self.client.end_stream(exchange.stream_id)
                    exchange.sending = False
            self.take()
            self.settle()
            for exchange in self.exchanges.values():
                if exchange.request is not None and exchange.response < 2:
                    if not exchange.response:
                        self.core.send_head(exchange.stream_id, [(b":status", b"204")], True)
                    else:
                        self.core.send_data(exchange.stream_id, b"", True)
                    exchange.response = 2
                self.core.done(exchange.stream_id)
            self.settle()
            if self.core.resting:
                break
        assert self.core.resting
        for exchange in self.exchanges.values():
            if not exchange.reset:
                assert exchange.whole
                assert exchange.got_head
                assert exchange.got_end
                assert exchange.got == exchange.answered
                assert exchange.got_trailers == exchange.response_trailers
        window = self.core.receiver.streams.window
        assert window.waiting == 0
        assert window.left > CONNECTION_WINDOW // 2
        assert self.core.take_output() == b""
        assert MAX_FRAME == 16384


STEPS = (
    ("carry", 6), ("ask", 4), ("answer", 5), ("upload", 5), ("take", 2), ("give_up", 1), ("cut", 1),
    ("say_something", 1), ("hold", 1), ("move", 2),
)  # fmt: skip
STEP = st.sampled_from([name for name, weight in STEPS for _ in range(weight)])


@given(
    st.data(),
    st.lists(STEP, max_size=80),
    st.fixed_dictionaries(
        {}, optional={4: st.sampled_from([0, 1, 1000, 65535, 1 << 20]), 1: st.sampled_from([0, 200])}
    ),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_histories(data: st.DataObject, steps: list[str], client_settings: dict[int, int]) -> None:
    history = History(data.draw, client_settings)
    for step in steps:
        getattr(history, step)()
    history.finish()
