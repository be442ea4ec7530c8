"""Histories of a connection with the library `h2` as the client: it is the judge of every byte that the server says.

Both ends do whatever may be done next, in any order, and what is on the wire arrives in any pieces. At the end
everything that was sent has arrived, once and whole, no stream is left, and the windows are where they ought to be.
`python -m tests.http.h2.histories --count 100000` runs as many, each from a seed of its own, and twice: the connection
goes to other processes, or stays where it is, and nobody may see a difference.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from serve_asgi.http.h2 import header_encoder
from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.connection_value import export_connection, import_connection, unsent
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.events import StreamData, StreamEnd, StreamRequest, StreamReset
from serve_asgi.http.h2.limits import CONNECTION_WINDOW
from serve_asgi.http.h2.sending import MAX_FRAME
from serve_asgi.ipc.packets import check_http2_state
from tests.http.h2.peer import MAX_HEAD, Clock, accept_all

T = TypeVar("T")

PATHS = (b"/", b"/a", b"/items/1?x=y", b"/long" + b"x" * 100)
EXTRA = ((b"x-a", b"1"), (b"cookie", b"a=b"), (b"accept", b"*/*"), (b"x-b", b"v" * 300), (b"priority", b"u=1, i"))
BODY_SIZES = (0, 1, 5, 1000, 16384, 16385, 70_000)


class Choose(Protocol):
    """What decides how a history goes on."""

    def __call__(self, options: Sequence[T], /) -> T: ...


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

    def __init__(self, choose: Choose, client_settings: dict[Any, int], moving: bool = True) -> None:
        """`moving`: the connection goes to other processes; without it, the same happens without them."""
        self.choose = choose
        self.moving = moving
        self.comparable = True
        """What waits for a window loses its turn by a move: from then on the order of bodies is another one."""
        self.said: list[bytes] = []
        """By the server,"""
        self.happened: list[str] = []
        """and what it was told."""
        self.client = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding=None, validate_outbound_headers=False)
        )
        self.client.local_settings = h2.settings.Settings(client=True, initial_values=client_settings)
        self.client.initiate_connection()
        self.unsettled = True
        """The client has said settings that are not acknowledged."""
        self.clock = Clock()
        self.core = ConnectionCore(MAX_HEAD, accept_all, clock=self.clock)
        self.core.begin(MAX_HEAD)
        self.to_server = b""
        self.to_client = b""
        self.exchanges: dict[int, Exchange] = {}
        self.next_id = 1
        self.moves = 0
        self.moves_of_open_streams = 0

    # ---- the wire

    def flush(self) -> None:
        self.to_server += self.client.data_to_send()
        output = self.core.take_output(self.choose([1, 20_000, 1 << 30]))
        self.to_client += output
        self.said.append(output)
        assert self.core.lost is None, self.core.lost

    def carry(self, everything: bool = False) -> None:
        """Let some of what is on the wire arrive."""
        self.clock.now += 1  # no flood, however small the windows are
        self.flush()
        for to_server in (True, False):
            wire = self.to_server if to_server else self.to_client
            if not wire:
                continue
            size = len(wire) if everything else self.choose([1, 9, 50, 5000, 1 << 30])
            piece, wire = wire[:size], wire[size:]
            if to_server:
                self.to_server = wire
                self.served(self.core.receive(piece))
            else:
                self.to_client = wire
                self.got(self.client.receive_data(piece))

    def settle(self) -> None:
        """Let everything arrive, and what follows from it, unless tiny windows make a long story of that."""
        for _ in range(100):
            self.carry(everything=True)
            self.flush()
            if self.settled:
                return

    @property
    def settled(self) -> bool:
        """Whether nothing more happens by itself."""
        return not self.to_server and not self.to_client and not self.core.waiting

    def served(self, events: list[Any]) -> None:
        for event in events:
            self.happened.append(repr((event.stream_id, event.ended) if isinstance(event, StreamRequest) else event))
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
            elif isinstance(event, h2.events.SettingsAcknowledged):
                self.unsettled = False
            elif isinstance(event, h2.events.StreamReset):
                self.exchanges[event.stream_id].reset = True
            else:
                assert not isinstance(event, h2.events.ConnectionTerminated), event

    # ---- what the client may do

    def ask(self) -> None:
        if self.client.open_outbound_streams >= 50:
            return
        choose = self.choose
        extra = [field for field in EXTRA if choose((True, False))]
        more = choose((True, False))
        fields = [
            (b":method", b"POST" if more else b"GET"),
            (b":scheme", b"https"),
            (b":path", choose(PATHS)),
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
        exchange = self.choose(sending)
        stream_id = exchange.stream_id
        try:
            window = self.client.local_flow_control_window(stream_id)
        except h2.exceptions.ProtocolError:  # the server has reset it
            return
        size = min(self.choose(BODY_SIZES), window, self.client.max_outbound_frame_size)
        body = bytes((len(exchange.sent) & 0xFF,)) * size
        end = self.choose(["no", "with data", "with trailers"])
        if size or end == "with data":
            exchange.sent += body
            padding = self.choose([None, 0, 7]) if size + 8 <= min(window, 16384) else None
            self.client.send_data(stream_id, body, end_stream=end == "with data", pad_length=padding)
        if end == "with trailers":
            exchange.trailers = [(b"x-sum", b"%d" % len(exchange.sent))]
            self.client.send_headers(stream_id, exchange.trailers, end_stream=True)
        exchange.sending = end == "no"

    def give_up(self) -> None:
        """The client resets a stream."""
        candidates = [each for each in self.exchanges.values() if not each.reset and not each.got_end]
        if candidates:
            exchange = self.choose(candidates)
            self.client.reset_stream(exchange.stream_id, h2.errors.ErrorCodes.CANCEL)
            exchange.reset = True

    def say_something(self) -> None:
        what = self.choose(["ping", "wide open", "window", "table", "frame size"])
        if self.unsettled and what not in ("ping", "wide open"):
            return  # the library takes one acknowledgement for that of everything it has said
        if what == "ping":
            self.client.ping(b"12345678")
        elif what == "wide open":  # from now on only the windows of streams matter
            if self.client.inbound_flow_control_window < 1 << 24:
                self.client.increment_flow_control_window(1 << 24)
        elif what == "window":
            self.change({4: self.choose([0, 1, 100, 65535, 1 << 20])})
        elif what == "table":
            self.change({1: self.choose([0, 100, 4096, 65536])})
        else:
            self.change({5: self.choose([16384, 100_000])})

    def change(self, values: dict[Any, int]) -> None:
        self.client.update_settings(values)
        self.unsettled = True

    # ---- what the server may do

    def answer(self) -> None:
        ready = [each for each in self.exchanges.values() if each.request is not None and each.response < 2]
        if not ready:
            return
        exchange = self.choose(ready)
        core, stream_id = self.core, exchange.stream_id
        if not exchange.response:
            extra = [self.choose(EXTRA) for _ in range(self.choose((0, 1, 2, 3)))]
            head = [(b":status", b"200"), *extra]
            if self.choose((True, False)):
                exchange.answered = b"w" * self.choose(BODY_SIZES)
                core.send_response(stream_id, head, exchange.answered)
                exchange.response = 2
                core.done(stream_id)
                return
            core.send_head(stream_id, head, False)
            exchange.response = 1
        body = bytes((len(exchange.answered) & 0xFF,)) * self.choose(BODY_SIZES)
        end = self.choose(["no", "with data", "with trailers"])
        if not body and self.window_of(stream_id) < 0:
            return  # RFC 9113 6.9 allows an empty frame; the library does not take it where its window is negative
        exchange.answered += body
        core.send_data(stream_id, body, end == "with data")
        if end == "with trailers":
            exchange.response_trailers = [(b"x-sum", b"1")]
            core.send_trailers(stream_id, exchange.response_trailers)
        if end != "no":
            exchange.response = 2
            core.done(stream_id)

    def window_of(self, stream_id: int) -> int:
        stream = self.core.receiver.streams.by_id.get(stream_id)
        return 0 if stream is None else stream.send_window

    def take(self) -> None:
        for exchange in self.exchanges.values():
            if exchange.untaken:
                self.core.consumed(exchange.stream_id, exchange.untaken)
                exchange.untaken = 0

    def cut(self) -> None:
        """The server resets a stream."""
        candidates = [each for each in self.exchanges.values() if each.request is not None and not each.reset]
        if candidates:
            exchange = self.choose(candidates)
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
        if self.choose((True, False)):
            self.part()
        streams = self.core.receiver.streams.by_id
        going_on = [
            stream_id for stream_id in streams if self.exchanges[stream_id].whole and self.exchanges[stream_id].response
        ]
        may = len(going_on) == len(streams) and not any(stream.end_queued for stream in streams.values())
        if may and (self.core.resting or going_on) and not self.core.waiting:
            value, unread = export_connection(self.core, going_on)
            waits = {stream_id: unsent(self.core, stream_id) for stream_id in going_on}
            check_http2_state(value)
            self.moves += 1
            self.moves_of_open_streams += bool(going_on)
            self.comparable = self.comparable and not any(waits.values())
            if not self.moving:
                self.served(self.core.release())
                return
            self.core = ConnectionCore(MAX_HEAD, accept_all, clock=self.clock)
            import_connection(self.core, json.loads(json.dumps(value)))
            for stream_id, data in waits.items():
                self.core.send_data(stream_id, data, False)
            self.served(self.core.receive(unread))

    def part(self) -> None:
        """Let every stream come to where another process can go on with it, or to its end."""
        for stream_id in list(self.core.receiver.streams.by_id):
            exchange = self.exchanges[stream_id]
            if not exchange.whole:
                self.core.reset(stream_id, ErrorCode.CANCEL)
                self.core.done(stream_id)
                exchange.reset = True
            elif not exchange.response:
                self.core.send_head(stream_id, [(b":status", b"200")], False)
                exchange.response = 1
        while self.core.waiting:
            self.flush()

    # ---- the end

    def finish(self) -> None:
        """Let everything come to its end, and look."""
        if self.core.holding:
            self.served(self.core.release())
        self.settle()
        self.change({4: 1 << 20})
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
            if self.core.resting and self.settled:
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


STEPS = tuple(
    name
    for name, weight in (
        ("carry", 4), ("settle", 3), ("ask", 4), ("answer", 5), ("upload", 5), ("take", 2), ("give_up", 1), ("cut", 1),
        ("say_something", 2), ("hold", 1), ("move", 2),
    )
    for _ in range(weight)
)  # fmt: skip
FIRST_WINDOWS = (None, 0, 1, 1000, 65535, 1 << 20)
FIRST_TABLES = (None, 0, 200)


def settings_of(window: int | None, table: int | None) -> dict[int, int]:
    """The client's first settings."""
    return {key: value for key, value in ((4, window), (1, table)) if value is not None}


def run(seed: int, moving: bool = True) -> History:
    """One history."""
    chance = random.Random(seed)
    header_encoder._known.clear()
    history = History(chance.choice, settings_of(chance.choice(FIRST_WINDOWS), chance.choice(FIRST_TABLES)), moving)
    for _ in range(chance.choice((5, 20, 50, 100, 200))):
        getattr(history, chance.choice(STEPS))()
    history.finish()
    return history


def run_both(seed: int) -> History:
    """One history in several processes and the same one in one: nobody sees a difference."""
    moving, staying = run(seed), run(seed, moving=False)
    if staying.comparable:
        assert moving.happened == staying.happened
        assert b"".join(moving.said) == b"".join(staying.said)
        assert moving.moves == staying.moves
    return moving


def main() -> None:
    """Run them all; the seed of one that fails is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first; each next one has the next")
    options = parser.parse_args()
    began = time.monotonic()
    requests = moves = open_streams = 0
    for seed in range(options.seed, options.seed + options.count):
        try:
            history = run_both(seed)
        except BaseException:
            print(f"seed {seed}")
            raise
        requests += len(history.exchanges)
        moves += history.moves
        open_streams += history.moves_of_open_streams
    print(
        f"{options.count} histories, {requests} requests, {moves} moves, {open_streams} of them with open streams, "
        f"{time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
