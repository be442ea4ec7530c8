"""The strict HTTP/2 client against a server that says exactly what each test wants: every way to fail has its cause."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from random import Random
from zlib import crc32

import h2.events
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from loadtest.app import TRAILER
from loadtest.client import Load
from loadtest.http2_client import Http2Client, StreamRequest
from loadtest.http2_connection import ALL_STREAMS, Manner
from loadtest.http2_kinds import download, get, post
from loadtest.ledger import Cause, Ledger, Left
from tests.running import PATIENCE

BODY = download(1, Random(1), 100)
Make = Callable[[int], StreamRequest]
Act = Callable[["Peer", int, int, bytes], None]
"""What to do with a whole request: its connection (1, 2, …), its stream, its id, the answer that it wants."""


class Peer:
    """The server's side of one connection."""

    def __init__(self, number: int, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.core = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.writer = writer
        self.resets: list[int] = []
        self.ended = False

    def head(self, stream: int, number: int, status: bytes = b"200", end: bool = False) -> None:
        fields = [(b":status", status), (b"x-id", b"%d" % number), (b"x-pid", b"7"), (b"x-generation", b"1")]
        self.core.send_headers(stream, fields, end_stream=end)

    def answer(self, stream: int, number: int, body: bytes) -> None:
        self.head(stream, number)
        self.core.send_data(stream, body, end_stream=True)

    def goaway(self, last: int, code: int = 0) -> None:
        """Not by `h2`, which says nothing after it."""
        self.flush()
        self.writer.write(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())

    def flush(self) -> None:
        if not self.ended:
            self.writer.write(self.core.data_to_send())

    def end(self) -> None:
        """Not by closing, which would be a reset if something of the client was not read."""
        self.flush()
        self.ended = True
        self.writer.write_eof()


@dataclasses.dataclass
class Outcome:
    """What the client has written down, and the connections that the server saw."""

    ledger: Ledger
    peers: list[Peer]

    @property
    def causes(self) -> list[Cause | None]:
        return [entry.cause for entry in self.ledger.entries]

    @property
    def left(self) -> list[Left]:
        return [reconnect.left for reconnect in self.ledger.reconnects]


Exchanges = Callable[[Http2Client], Awaitable[None]]


def exchange(act: Act, exchanges: Exchanges, *, keep: bool = True, manner: Manner | None = None) -> Outcome:
    """Run the exchanges against a server that does `act` for each whole request."""

    async def main() -> Outcome:
        peers: list[Peer] = []
        handlers = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            handlers.add(task)
            peer = Peer(len(peers) + 1, writer)
            peers.append(peer)
            with contextlib.suppress(OSError):
                await serve(peer, reader, act)
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        ledger = Ledger()
        client = Http2Client(Load(host, port, ledger), "HTTP/2", keep, Random(1), manner or Manner())
        async with asyncio.timeout(PATIENCE):
            await exchanges(client)
            client.leave()
            await asyncio.gather(*handlers)
        server.close()
        await server.wait_closed()
        return Outcome(ledger, peers)

    return asyncio.run(main())


async def serve(peer: Peer, reader: asyncio.StreamReader, act: Act) -> None:
    """Read to the end; `act` gets the id and the right answer of each request, once it is whole."""
    peer.core.initiate_connection()
    peer.flush()
    paths: dict[int, bytes] = {}
    while data := await reader.read(65536):
        for event in peer.core.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                paths[event.stream_id] = dict(event.headers)[b":path"]
            elif isinstance(event, h2.events.DataReceived):
                peer.core.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                peer.resets.append(event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                number = int(paths[event.stream_id].partition(b"id=")[2].partition(b"&")[0])
                act(peer, event.stream_id, number, b"%d" % number)
        peer.flush()


def asking(number: int) -> StreamRequest:
    """A request whose answer is its id."""
    return dataclasses.replace(post(number, Random(number)), answer=b"%d" % number)


def one(client: Http2Client) -> Awaitable[None]:
    return client.exchange(asking)


async def two(client: Http2Client) -> None:
    await client.exchange(asking)
    await client.exchange(asking)


async def four_at_once(client: Http2Client) -> None:
    await asyncio.gather(*(client.exchange(asking) for _ in range(4)))


def reset_bare(peer: Peer, stream: int, number: int, answer: bytes) -> None:
    peer.core.reset_stream(stream, ErrorCodes.REFUSED_STREAM)


def reset_halfway(peer: Peer, stream: int, number: int, answer: bytes) -> None:
    peer.head(stream, number)
    peer.core.reset_stream(stream, ErrorCodes.NO_ERROR)


def end_bare(peer: Peer, stream: int, number: int, answer: bytes) -> None:
    peer.end()


def end_halfway(peer: Peer, stream: int, number: int, answer: bytes) -> None:
    peer.head(stream, number)
    peer.core.send_data(stream, answer)
    peer.end()


def refuse_by_goaway(peer: Peer, stream: int, number: int, answer: bytes) -> None:
    peer.goaway(stream - 1)


def fail(peer: Peer, stream: int, number: int, answer: bytes) -> None:
    peer.head(stream, number, b"503", end=True)


def answer_another(peer: Peer, stream: int, number: int, answer: bytes) -> None:
    peer.answer(stream, number + 1, answer)


def answer_wrongly(peer: Peer, stream: int, number: int, answer: bytes) -> None:
    peer.answer(stream, number, answer + b"!")


def speak_no_http2(peer: Peer, stream: int, number: int, answer: bytes) -> None:
    peer.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def answer_rightly(peer: Peer, stream: int, number: int, answer: bytes) -> None:
    peer.answer(stream, number, answer)


FAILURES: dict[str, tuple[Act, Cause]] = {
    "resets the stream": (reset_bare, Cause.STREAM_RESET),
    "resets the stream after some of the response": (reset_halfway, Cause.STREAM_RESET),
    "closes without a word": (end_bare, Cause.EOF),
    "ends in the body": (end_halfway, Cause.TRUNCATED),
    "refuses by GOAWAY": (refuse_by_goaway, Cause.GOAWAY),
    "answers 503": (fail, Cause.STATUS),
    "answers another request": (answer_another, Cause.WRONG),
    "answers other bytes": (answer_wrongly, Cause.WRONG),
    "speaks another protocol": (speak_no_http2, Cause.WRONG),
}


@pytest.mark.parametrize("case", FAILURES)
def test_each_failure_has_its_cause_and_is_not_retried(case: str) -> None:
    act, cause = FAILURES[case]
    outcome = exchange(act, one)
    assert outcome.causes == [cause]
    assert len(outcome.peers) == 1


@pytest.mark.parametrize("cut", [False, True])
def test_right_answers_on_one_connection(cut: bool) -> None:
    """Also if what the client sends comes in pieces, and heads in several frames."""
    outcome = exchange(answer_rightly, four_at_once, manner=Manner(cut=cut))
    assert (outcome.causes, outcome.left, len(outcome.peers)) == ([None] * 4, [], 1)
    assert not outcome.ledger.oddities


def test_no_more_requests_at_once_than_the_server_allows() -> None:
    most = 0

    def act(peer: Peer, stream: int, number: int, answer: bytes) -> None:
        nonlocal most
        most = max(most, peer.core.open_inbound_streams)
        if number == 1:
            peer.core.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        peer.answer(stream, number, answer)

    async def one_and_then_four(client: Http2Client) -> None:
        await client.exchange(asking)
        await four_at_once(client)

    outcome = exchange(act, one_and_then_four)
    assert (outcome.causes, len(outcome.peers), most) == ([None] * 5, 1, 1)


def test_one_stream_that_is_reset_hurts_no_other() -> None:
    def act(peer: Peer, stream: int, number: int, answer: bytes) -> None:
        (reset_bare if number == 2 else answer_rightly)(peer, stream, number, answer)

    assert exchange(act, four_at_once).causes == [None, Cause.STREAM_RESET, None, None]


def leave_in_two_steps(peer: Peer, stream: int, number: int, answer: bytes) -> None:
    """As RFC 9113 6.8 describes it; the response comes last."""
    if number == 1:
        peer.goaway(ALL_STREAMS)
        peer.goaway(stream)
    peer.answer(stream, number, answer)


def test_after_goaway_a_stream_ends_where_it_is_and_the_next_one_is_sent_elsewhere() -> None:
    outcome = exchange(leave_in_two_steps, two)
    assert (outcome.causes, outcome.left, len(outcome.peers)) == ([None, None], [Left.GOAWAY], 2)
    assert not outcome.ledger.oddities


def test_who_has_long_streams_may_be_told_goaway() -> None:
    outcome = exchange(leave_in_two_steps, two, keep=False)
    assert (outcome.causes, outcome.left, len(outcome.ledger.moved_on)) == ([None, None], [], 1)


def test_who_has_short_requests_may_be_told_goaway_beside_one_that_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.client.H2_HOLD", 0.0)
    outcome = exchange(leave_in_two_steps, two)
    assert (outcome.causes, outcome.left, outcome.ledger.moved_on) == ([None, None], [], ["HTTP/2"])


def test_an_end_without_goaway_is_odd() -> None:
    def act(peer: Peer, stream: int, number: int, answer: bytes) -> None:
        peer.answer(stream, number, answer)
        peer.end()

    async def until_noticed(client: Http2Client) -> None:
        await client.exchange(asking)
        while not client._connection or client._connection.ended is None:
            await asyncio.sleep(0)

    outcome = exchange(act, until_noticed)
    assert (outcome.causes, outcome.left) == ([None], [Left.EOF])
    assert sum(outcome.ledger.oddities.values()) == 1


@pytest.mark.parametrize(
    "told",
    [[(ALL_STREAMS, ErrorCodes.ENHANCE_YOUR_CALM)], [(1, 0), (3, 0)]],
    ids=["an error code", "a last stream that grows"],
)
def test_an_odd_goaway_is_noted(told: list[tuple[int, int]]) -> None:
    def act(peer: Peer, stream: int, number: int, answer: bytes) -> None:
        for last, code in told:
            peer.goaway(last, code)
        peer.answer(stream, number, answer)

    outcome = exchange(act, one)
    assert outcome.causes == [None]
    assert sum(outcome.ledger.oddities.values()) == 1


def test_what_the_client_resets_is_not_lost() -> None:
    def act(peer: Peer, stream: int, number: int, answer: bytes) -> None:
        if number > 1:
            peer.answer(stream, number, answer)

    async def break_off(client: Http2Client) -> None:
        await client.exchange(lambda number: get(number, Random(1), reset_after=0.01))
        await client.exchange(asking)

    outcome = exchange(act, break_off)
    assert (outcome.causes, outcome.left) == ([Cause.CANCELLED, None], [])
    assert [peer.resets for peer in outcome.peers] == [[1]]


def test_an_upload_waits_for_its_windows_and_ends_with_trailers() -> None:
    def make(number: int) -> StreamRequest:
        request = asking(number)
        head = [field for field in request.head if field[0] != b"content-length"]
        pieces = [(0.0, b"x" * 100_000), (0.001, b"y" * 100_000)]
        return dataclasses.replace(request, head=head, pieces=pieces, trailers=[(b"x-last", b"1")])

    assert exchange(answer_rightly, lambda client: client.exchange(make)).causes == [None]


@pytest.mark.parametrize(
    ("trailers", "cause"),
    [([], Cause.WRONG), ([(TRAILER, b"00000000")], Cause.WRONG), ([(TRAILER, b"%08x" % crc32(BODY.answer))], None)],
)
def test_trailers_are_checked(trailers: list[tuple[bytes, bytes]], cause: Cause | None) -> None:
    def act(peer: Peer, stream: int, number: int, answer: bytes) -> None:
        fields = [(b":status", b"200"), (b"x-id", b"1"), (b"x-pid", b"7"), (b"x-generation", b"1")]
        peer.core.send_headers(stream, [*fields, (b"trailer", TRAILER)])
        peer.core.send_data(stream, BODY.answer, end_stream=not trailers)
        if trailers:
            peer.core.send_headers(stream, trailers, end_stream=True)

    assert exchange(act, lambda client: client.exchange(lambda _: BODY)).causes == [cause]
