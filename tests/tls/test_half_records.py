"""How long a TLS record may take that has begun to come: as long as a request's head takes without TLS."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator

import pytest

from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.tls.moved_session import MovedSession
from serve_asgi.tls.session import TlsSession
from serve_asgi.tls.transport import TlsTransport
from tests.http.memory import Host, MemoryTransport
from tests.tls.memory import Client, Contexts, OwnClient, client_context, open_session, shake_hands

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
FIRST, HEAD, IDLE = 100.0, 20.0, 75.0


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host("httptools", first_byte_timeout=FIRST, head_timeout=HEAD, keep_alive=IDLE)
    yield host
    host.close()


class Peer:
    """A connection in memory with its client; `client` may cut its records anywhere."""

    def __init__(
        self, host: Host, session: TlsSession, client: OwnClient, record: HandOverRecord | None = None
    ) -> None:
        self.host, self.session, self.client = host, session, client
        self.http = Http1Connection(host.worker, record)
        self.tls = TlsTransport(session, self.http)
        self.socket = MemoryTransport(host.loop, self.tls)
        self.tls.connection_made(self.socket)
        host.loop.settle()

    @classmethod
    def connect(cls, host: Host) -> Peer:
        return cls(host, *open_session(Contexts()))

    def send(self, data: bytes) -> None:
        self.tls.data_received(data)
        self.host.loop.settle()

    def ask(self) -> None:
        self.send(self.client.record(GET))
        assert self.left() == pytest.approx(IDLE + 1, abs=1)  # a little more than is advertised
        self.read()

    def left(self) -> float:
        """Seconds until the connection's deadline."""
        return self.http.deadline - self.host.loop.now

    def wait(self, seconds: float) -> None:
        self.host.loop.now += seconds
        if self.left() <= 0:
            self.http.expire()
            self.host.loop.settle()

    def read(self) -> bytes:
        data, self.socket.output = bytes(self.socket.output), bytearray()
        return b"".join(content for kind, content in self.client.open(data) if kind == 23)

    def move(self) -> Peer:
        descriptor, record = self.http.leave()
        os.close(descriptor)
        self.http.gone()
        self.host.loop.settle()
        record = HandOverRecord.from_json(json.loads(json.dumps(record.to_json())))
        assert record.tls is not None
        return Peer(self.host, TlsSession(None, MovedSession.from_json(record.tls)), self.client, record)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("moves", [True, False])
def test_its_time_is_that_of_a_head(host: Host, asked: bool, moves: bool) -> None:
    peer = Peer.connect(host)
    if asked:
        peer.ask()
    record = peer.client.record(GET[:10])
    peer.wait(3)
    peer.send(record[:1])
    assert peer.left() == HEAD
    for byte in record[1:-1]:
        peer.wait(0.1)
        peer.send(bytes((byte,)))
    left = HEAD - 0.1 * (len(record) - 2)
    assert peer.left() == pytest.approx(left)
    if moves:
        peer = peer.move()
        assert peer.left() == pytest.approx(left)
    peer.send(record[-1:])  # half a head, which began with the record
    assert peer.left() == pytest.approx(left)
    peer.wait(left)
    assert peer.read().startswith(b"HTTP/1.1 408 ")


def test_a_request_that_comes_in_pieces_is_served(host: Host) -> None:
    peer = Peer.connect(host)
    record = peer.client.record(GET)
    peer.send(record[:20])
    peer.wait(HEAD - 1)
    peer.send(record[20:])
    assert peer.read().startswith(b"HTTP/1.1 200 ")
    assert peer.left() > HEAD


def test_one_that_began_during_a_request_has_its_time_when_the_idle_time_is_over(host: Host) -> None:
    peer = Peer.connect(host)
    peer.send(peer.client.record(GET) + peer.client.record(GET)[:9])
    assert peer.read().startswith(b"HTTP/1.1 200 ")
    peer.wait(peer.left())
    assert peer.read() == b""
    assert peer.left() == HEAD
    peer.wait(HEAD)
    assert peer.read().startswith(b"HTTP/1.1 408 ")


def test_what_comes_to_nothing_does_not_prolong_the_connection_again_and_again(host: Host) -> None:
    """Empty records, in two pieces each: the first time that they take is all that they get."""
    peer = Peer.connect(host)
    peer.ask()
    end = host.loop.now + peer.left()
    for _ in range(3):
        empty = peer.client.record(b"")
        peer.send(empty[:7])
        peer.send(empty[7:])
        assert host.loop.now + peer.left() == end
        peer.wait(25)
    empty = peer.client.record(b"")
    peer.send(empty[:7])
    assert end < host.loop.now + peer.left() == host.loop.now + HEAD
    for _ in range(int(HEAD) - 1):
        peer.wait(1)
        following = peer.client.record(b"")
        peer.send(empty[7:] + following[:7])
        empty = following
    assert not peer.socket.ended
    peer.wait(1)
    assert peer.socket.ended


def test_tls_1_2_is_the_same(host: Host) -> None:
    session, client = TlsSession(Contexts()), Client(client_context(ssl.TLSVersion.TLSv1_2))
    shake_hands(session, client)
    http = Http1Connection(host.worker)
    tls = TlsTransport(session, http)
    tls.connection_made(MemoryTransport(host.loop, tls))
    record = client.send(GET)
    tls.data_received(record[:20])
    assert http.deadline - host.loop.now == HEAD
    host.loop.now += HEAD
    tls.data_received(record[20:])
    host.loop.settle()
    assert http.deadline - host.loop.now >= IDLE
    tls.close()
    host.loop.settle()
