"""The PROXY protocol: its grammar, who may speak it, what comes of it, and a hand-over in the middle of it."""

from __future__ import annotations

import ast
import asyncio
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_asgi.http.client_socket import is_readable
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.connection_states import ConnectionState
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.proxy_protocol import (
    MAX_BLOCK,
    SIGNATURE,
    MalformedProxyHeader,
    ProxyHeader,
    ProxySource,
    crc32c,
    parse,
)
from serve_asgi.http.proxy_protocol_connection import Balancers, ProxyConnection
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerPhase
from serve_asgi.ipc.peer_address import Address
from serve_asgi.ipc.scoreboard import Cell
from tests.connection_server import LOOPS
from tests.http.http_server import GET, Client, HttpServer, respond

CLIENT, SERVER = ("192.0.2.1", 56324), ("198.51.100.2", 443)
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"


def block(
    command: int = 0x21, family: int = 0x11, addresses: bytes | None = None, vectors: bytes = b"", length: int = -1
) -> bytes:
    """A header of version 2."""
    if addresses is None:
        addresses = ends(CLIENT, SERVER)
    rest = addresses + vectors
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length < 0 else length) + rest


def ends(client: tuple[str, int], server: tuple[str, int]) -> bytes:
    packed = [ipaddress.ip_address(host).packed for host, _ in (client, server)]
    return b"".join(packed) + struct.pack("!HH", client[1], server[1])


def vector(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_sum(vectors: bytes = b"", sum_: int | None = None) -> bytes:
    """A header whose last vector is its checksum."""
    header = block(vectors=vectors + vector(3, bytes(4)))
    return header[:-4] + struct.pack("!I", crc32c(header) if sum_ is None else sum_)


def named(size: int, client: Address = CLIENT, server: Address = SERVER, secure: bool = False) -> ProxyHeader:
    return ProxyHeader(size, ProxySource.CLIENT, client, server, secure)


SIX = ("2001:db8::1", 1), ("2001:db8::2", 65535)
WORST = b"PROXY UNKNOWN " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n"
TLS = vector(0x20, b"\x01" + bytes(4) + vector(0x21, b"TLSv1.3"))
PLAIN = vector(0x20, b"\x00" + bytes(4))
VALID = {
    "TCP4": (LINE, named(len(LINE))),
    "TCP4, extremes": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        named(56, ("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ),
    "TCP4, port 0": (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", named(32, ("0.0.0.0", 0), ("0.0.0.0", 0))),
    "TCP6": (b"PROXY TCP6 2001:DB8::1 2001:db8::2 1 65535\r\n", named(44, *SIX)),
    "TCP6, mapped": (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", named(37, ("192.0.2.1", 1), ("::1", 2))),
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", ProxyHeader(15, ProxySource.UNNAMED, None, None, False)),
    "UNKNOWN, more": (b"PROXY UNKNOWN what ever\r\n", ProxyHeader(25, ProxySource.UNNAMED, None, None, False)),
    "UNKNOWN, longest": (WORST, ProxyHeader(107, ProxySource.UNNAMED, None, None, False)),
    "TCP over IPv4": (block(), named(28)),
    "UDP over IPv4": (block(family=0x12), named(28)),
    "TCP over IPv6": (block(family=0x21, addresses=ends(*SIX)), named(52, *SIX)),
    "UDP over IPv6": (block(family=0x22, addresses=ends(*SIX)), named(52, *SIX)),
    "unix": (block(family=0x31, addresses=bytes(216)), ProxyHeader(232, ProxySource.UNNAMED, None, None, False)),
    "unix datagrams": (
        block(family=0x32, addresses=bytes(216)),
        ProxyHeader(232, ProxySource.UNNAMED, None, None, False),
    ),
    "unspecified": (block(family=0, addresses=b""), ProxyHeader(16, ProxySource.UNNAMED, None, None, False)),
    "unspecified, more": (
        block(family=0, addresses=b"x" * 9),
        ProxyHeader(25, ProxySource.UNNAMED, None, None, False),
    ),
    "no transport": (block(family=0x10, addresses=b""), ProxyHeader(16, ProxySource.UNNAMED, None, None, False)),
    "no family": (block(family=0x01, addresses=b""), ProxyHeader(16, ProxySource.UNNAMED, None, None, False)),
    "LOCAL": (block(0x20, 0, b""), ProxyHeader(16, ProxySource.LOCAL, None, None, False)),
    "LOCAL, more": (block(0x20, 0xFF, b"x" * 7), ProxyHeader(23, ProxySource.LOCAL, None, None, False)),
    "vectors": (block(vectors=vector(4, b"") + vector(0xEA, b"vpce")), named(38)),
    "TLS": (block(vectors=TLS), named(28 + len(TLS), secure=True)),
    "no TLS": (block(vectors=PLAIN), named(28 + len(PLAIN))),
    "unix with TLS": (
        block(family=0x31, addresses=bytes(216), vectors=TLS),
        ProxyHeader(232 + len(TLS), ProxySource.UNNAMED, None, None, True),
    ),
    "checksum": (with_sum(vector(4, b"pad")), named(28 + 6 + 7)),
    "longest": (block(vectors=vector(4, bytes(MAX_BLOCK - 15))), named(16 + MAX_BLOCK)),
}
MALFORMED = {
    "HTTP": GET,
    "HTTP that begins alike": b"PROPFIND / HTTP/1.1\r\n",
    "HTTP with the method PROXY": b"PROXY / HTTP/1.1\r\n",
    "TLS": b"\x16\x03\x01\x02\x00",
    "lower case": b"proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
    "two spaces": b"PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
    "a tab": b"PROXY\tTCP4 1.1.1.1 1.1.1.1 1 1\r\n",
    "another family": b"PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n",
    "UDP": b"PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n",
    "glued UNKNOWN": b"PROXY UNKNOWN!\r\n",
    "nothing": b"PROXY \r\n",
    "too few": b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n",
    "too many": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1\r\n",
    "a space at the end": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n",
    "IPv6 in TCP4": b"PROXY TCP4 ::1 ::1 1 1\r\n",
    "IPv4 in TCP6": b"PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n",
    "a leading zero": b"PROXY TCP4 01.1.1.1 1.1.1.1 1 1\r\n",
    "a large number": b"PROXY TCP4 1.1.1.256 1.1.1.1 1 1\r\n",
    "three numbers": b"PROXY TCP4 1.1.1 1.1.1.1 1 1\r\n",
    "two double colons": b"PROXY TCP6 1::2::3 ::1 1 1\r\n",
    "a zone": b"PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n",
    "brackets": b"PROXY TCP6 [::1] ::1 1 1\r\n",
    "a port with a leading zero": b"PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n",
    "a large port": b"PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n",
    "a negative port": b"PROXY TCP4 1.1.1.1 1.1.1.1 -1 1\r\n",
    "bare LF": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n",
    "bare CR": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\rGET",
    "CR in UNKNOWN": b"PROXY UNKNOWN a\rb\r\n",
    "endless": b"PROXY UNKNOWN " + b"x" * 93,
    "a byte too long": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "a wrong signature": SIGNATURE[:-1] + b"\r",
    "HTTP after empty lines": b"\r\n\r\nGET / HTTP/1.1\r\n",
    "version 1 in a block": block(0x11),
    "version 3": block(0x31),
    "an unknown command": block(0x22),
    "an unknown family": block(family=0x41),
    "an unknown transport": block(family=0x13),
    "addresses cut short": block(addresses=ends(CLIENT, SERVER)[:-1]),
    "no addresses": block(addresses=b""),
    "IPv4 in IPv6": block(family=0x21),
    "unix cut short": block(family=0x31, addresses=bytes(215)),
    "too long": block(length=MAX_BLOCK + 1),
    "a vector cut short": block(vectors=b"\x04\x00"),
    "a vector's value cut short": block(vectors=b"\x04\x00\x05abcd"),
    "TLS cut short": block(vectors=vector(0x20, bytes(4))),
    "a wrong checksum": with_sum(sum_=1),
    "a checksum of three bytes": block(vectors=vector(3, bytes(3))),
}


# ---- the grammar


@pytest.mark.parametrize("name", VALID)
def test_a_header_is_understood_in_any_pieces(name: str) -> None:
    data, expected = VALID[name]
    assert parse(data) == expected
    assert parse(data + GET) == expected
    step = max(1, len(data) // 300)
    for end in [*range(0, len(data), step), len(data) - 1]:
        assert parse(data[:end]) is None


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_header_is_refused(name: str) -> None:
    with pytest.raises(MalformedProxyHeader):
        parse(MALFORMED[name])


@pytest.mark.parametrize("data", [b"G", b"PA", b"PROXY\r", b"\r\r", SIGNATURE[:5] + b"x", SIGNATURE + b"\x11"])
def test_and_as_soon_as_it_cannot_become_one(data: bytes) -> None:
    with pytest.raises(MalformedProxyHeader):
        parse(data)


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    for start in (b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\x00\x20"):
        try:
            header = parse(start + data)
        except MalformedProxyHeader:
            continue
        assert header is None or header.size <= len(start + data)


@given(st.sampled_from(sorted(VALID)), st.data())
def test_a_changed_byte_never_does_harm(name: str, draw: st.DataObject) -> None:
    data = bytearray(VALID[name][0][:400])
    data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        header = parse(bytes(data))
    except MalformedProxyHeader:
        return
    if header is not None and header.kind is ProxySource.CLIENT:
        assert header.client is not None
        ipaddress.ip_address(header.client[0])


def verdict(data: bytes) -> ProxyHeader | str | None:
    try:
        return parse(data)
    except MalformedProxyHeader:
        return "malformed"


@given(st.sampled_from(sorted(VALID)), st.binary(max_size=40), st.data())
def test_the_verdict_is_the_same_in_any_pieces(name: str, more: bytes, draw: st.DataObject) -> None:
    """Once there is one it stays, whatever follows; the beginning of a valid header is never malformed."""
    valid, _ = VALID[name]
    data = valid[: draw.draw(st.integers(0, min(len(valid), 400)))] + more
    cut = draw.draw(st.integers(0, len(data)))
    if (first := verdict(data[:cut])) is not None:
        assert verdict(data) == first


# ---- connections


class ProxyServer(HttpServer):
    """The same server behind a balancer."""

    def __init__(self, app: Any, loop_name: str, unix: Path | None = None, **config: Any) -> None:
        config.setdefault("proxy_protocol", True)
        super().__init__(app, loop_name, unix, **config)
        self.balancers = Balancers(self.worker)
        self.made: list[Any] = []

    async def attach(self, client: socket.socket, record: HandOverRecord | None = None) -> Any:
        connection: Any
        if self.worker.config.proxy_protocol and (record is None or record.awaits_proxy):
            connection = ProxyConnection(
                self.worker, self.balancers, record, lambda known, _: Http1Connection(self.worker, known), secure=False
            )
        else:
            connection = Http1Connection(self.worker, record)
        await self.loop.connect_accepted_socket(lambda: connection, client)
        self.made.append(connection)
        self.new_connection.set()
        return connection

    def first(self) -> ProxyConnection:
        """The newest connection that waits for its header."""
        assert self.new_connection.wait(10)
        connection = self.made[-1]
        assert isinstance(connection, ProxyConnection)
        return connection

    def depart(self) -> tuple[ProxyConnection, int, HandOverRecord]:
        """Have the newest connection leave."""
        gone: list[ProxyConnection] = []
        self.worker.hand_over = gone.append

        def retire() -> None:
            self.worker.phase = WorkerPhase.HANDING_OVER
            for connection in list(self.worker.connections):
                connection.retire()

        self.run(retire)
        self.until(lambda: bool(gone))
        return gone[0], *self.run(gone[0].leave)


async def tell(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the ends and the scheme, and closes nothing."""
    await respond(send, repr((scope["client"], scope["server"], scope["scheme"])).encode())


Start = Callable[..., ProxyServer]


@pytest.fixture(params=list(LOOPS))
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    servers: list[ProxyServer] = []

    def make(app: Any = tell, **config: Any) -> ProxyServer:
        servers.append(ProxyServer(app, str(request.param), **config))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def told(client: Client) -> tuple[Any, Any, str]:
    status, _, content = client.answer()
    assert status == 200
    found: tuple[Any, Any, str] = ast.literal_eval(content.decode())
    return found


@pytest.mark.parametrize("name", [name for name in VALID if VALID[name][1].kind is ProxySource.CLIENT])
def test_the_application_sees_the_client(start: Start, name: str) -> None:
    server = start()
    data, header = VALID[name]
    client = server.connect()
    client.send(data + GET)
    seen = (header.client, header.server, "https" if header.secure else "http")
    assert told(client) == seen
    client.send(GET)  # and for as long as the connection lasts
    assert told(client) == seen


@pytest.mark.parametrize("name", [name for name in VALID if VALID[name][1].kind is not ProxySource.CLIENT])
def test_who_is_not_named_is_the_peer(start: Start, name: str) -> None:
    server = start()
    data, header = VALID[name]
    client = server.connect()
    client.send(data)
    client.send(GET)
    assert told(client) == (
        client.sock.getsockname(),
        client.sock.getpeername(),
        "https" if header.secure else "http",
    )


@pytest.mark.parametrize("data", [LINE, with_sum()])
def test_a_header_byte_by_byte(start: Start, data: bytes) -> None:
    server = start()
    client = server.connect()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for index in range(len(data)):
        client.send(data[index : index + 1])
    client.send(GET[:5])
    client.send(GET[5:] + GET)
    assert told(client) == (CLIENT, SERVER, "http")
    assert told(client) == (CLIENT, SERVER, "http")
    assert server.cell(Cell.CONNECTIONS) == 1


def test_the_whole_conversation_in_one_segment_with_its_end(start: Start) -> None:
    server = start()
    client = server.connect()
    client.send(LINE + GET)
    client.end()
    assert client.read_to_end().endswith(b"'http')")
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_header_is_closed_without_an_answer(start: Start, name: str) -> None:
    server = start()
    client = server.connect()
    client.send(MALFORMED[name])
    assert ended(client) == b""
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
    assert server.cell(Cell.REQUESTS) == 0


def ended(client: Client) -> bytes:
    """What came before the end; a reset is an end."""
    try:
        return client.read_to_end()
    except ConnectionResetError:
        return b""


def test_a_second_header_is_not_read(start: Start) -> None:
    server = start()
    client = server.connect()
    client.send(LINE + b"PROXY TCP4 6.6.6.6 6.6.6.6 1 1\r\n" + GET)
    status, _, _ = client.answer()
    assert status == 400


def test_without_the_option_a_header_is_a_bad_request(start: Start) -> None:
    server = start(proxy_protocol=False)
    client = server.connect()
    client.send(LINE + GET)
    assert client.answer()[0] == 400


def test_a_balancer_that_is_not_allowed_is_closed_before_it_says_anything(start: Start) -> None:
    server = start(proxy_protocol_allow_ips="192.0.2.0/24")
    client = server.connect()
    assert ended(client) == b""
    assert server.cell(Cell.REQUESTS) == 0
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)


def test_a_header_has_a_time_limit(start: Start) -> None:
    server = start(proxy_protocol_timeout=0.2)
    silent, half, whole = server.connect(), server.connect(), server.connect()
    half.send(LINE[:20])
    whole.send(LINE)
    assert ended(silent) == b""
    assert ended(half) == b""
    whole.send(GET)  # only the header's time ended there
    assert told(whole) == (CLIENT, SERVER, "http")


def test_what_the_kernel_holds_at_the_deadline_is_still_read(start: Start) -> None:
    server = start()
    client = server.connect()
    connection = server.first()
    server.run(lambda: connection.transport.pause_reading())  # the worker is busy
    client.send(LINE + GET)
    server.until(lambda: is_readable(connection.transport))

    def expire() -> None:
        connection.expire()
        connection.transport.resume_reading()

    server.run(expire)
    assert told(client) == (CLIENT, SERVER, "http")


def test_an_end_in_the_middle_of_a_header_is_an_end(start: Start) -> None:
    server = start()
    client = server.connect()
    client.send(LINE[:9])
    client.end()
    assert client.read_to_end() == b""
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)


def test_a_unix_socket_takes_it_too(start: Start, tmp_path: Path) -> None:
    server = start(unix=tmp_path / "s")
    client = server.connect()
    client.send(LINE + GET)
    assert told(client) == (CLIENT, SERVER, "http")
    client = server.connect()
    client.send(b"PROXY UNKNOWN\r\n" + GET)
    assert told(client) == (None, (str(tmp_path / "s"), None), "http")
    refusing = start(unix=tmp_path / "r", proxy_protocol_allow_ips="127.0.0.1")
    assert ended(refusing.connect()) == b""


@pytest.mark.parametrize(
    ("header", "networks", "client"),
    [
        (LINE, "127.0.0.1", CLIENT),  # a client that writes the field itself
        (LINE, "127.0.0.1,192.0.2.0/24", ("203.0.113.9", 0)),  # a proxy behind the balancer
        (b"PROXY UNKNOWN\r\n", "*", None),
        (block(family=0, addresses=b""), "127.0.0.1", None),
        (block(0x20, 0, b""), "127.0.0.1", ("203.0.113.9", 0)),  # the balancer itself
    ],
)
def test_forwarding_fields_are_believed_by_the_client_that_is_named(
    start: Start, header: bytes, networks: str, client: Address
) -> None:
    server = start(forwarded_allow_ips=networks)
    connection = server.connect()
    connection.send(header + b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n")
    assert told(connection)[0] == (client or connection.sock.getsockname())


def test_the_log_names_one_and_counts_the_others(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    server = start()
    balancers = Balancers(server.worker)
    with caplog.at_level(logging.INFO, "serve"):
        for _ in range(50):
            balancers.report(("192.0.2.1", 1), "it is Monday")
        server.until(lambda: True)
        balancers._line._next = 0.0
        balancers.report(None, "it is Tuesday")
    assert [record.getMessage() for record in caplog.records] == [
        "closed a connection from 192.0.2.1: it is Monday",
        "closed a connection from a unix socket: it is Tuesday; and 49 others since the last such line",
    ]


# ---- hand-over


@pytest.mark.parametrize("data", [LINE, with_sum(vector(4, b"pad"))])
@pytest.mark.parametrize("sent", [0, 1, 13, 20])
def test_half_a_header_travels(start: Start, data: bytes, sent: int) -> None:
    old, new = start(), start()
    client = old.connect()
    connection = old.first()
    if sent:
        client.send(data[:sent])
        old.until(lambda: len(connection._buffer) == sent)
    deadline = connection.deadline
    _, descriptor, record = old.depart()
    assert record == HandOverRecord(
        data[:sent],
        client.sock.getsockname(),
        client.sock.getpeername(),
        deadline,
        0,
        "http",
        trusted=False,
        awaits_proxy=True,
    )
    client.send(data[sent:] + GET)  # lies in the kernel while it travels
    record = HandOverRecord.from_json(record.to_json())
    new.wait_for(new.attach(socket.socket(fileno=descriptor), record))
    assert told(client) == (CLIENT, SERVER, "http")
    old.run(connection.gone)
    assert old.cell(Cell.CONNECTIONS) == 0
    assert new.cell(Cell.CONNECTIONS) == 1


def test_one_that_is_accepted_while_the_worker_retires_leaves_too(start: Start) -> None:
    server = start()
    gone: list[ProxyConnection] = []
    server.worker.hand_over = gone.append
    server.run(lambda: setattr(server.worker, "phase", WorkerPhase.HANDING_OVER))
    server.connect()
    server.until(lambda: bool(gone))
    assert gone == [server.first()]
    server.run(gone[0].remain)  # nobody takes it
    assert server.run(gone[0].can_leave)


def test_a_hand_over_renews_no_time(start: Start) -> None:
    old, new = start(proxy_protocol_timeout=30), start(proxy_protocol_timeout=30)
    old.connect()
    deadline = old.first().deadline
    connection, descriptor, record = old.depart()
    taken = new.wait_for(new.attach(socket.socket(fileno=descriptor), record))
    assert taken.deadline == deadline
    old.run(connection.gone)


def test_one_that_nobody_takes_goes_on(start: Start) -> None:
    server = start()
    client = server.connect()
    server.first()
    client.send(LINE[:10])
    connection, descriptor, _ = server.depart()
    client.send(LINE[10:])
    server.wait_for(asyncio.sleep(0.02))
    assert client.silent()
    socket.socket(fileno=descriptor).close()
    server.run(lambda: setattr(server.worker, "phase", WorkerPhase.CLOSING))
    server.run(connection.stay)
    client.send(GET)
    assert told(client) == (CLIENT, SERVER, "http")


def test_a_client_that_ends_while_it_leaves(start: Start) -> None:
    server = start()
    client = server.connect()
    server.first()
    client.send(LINE[:10])
    connection, descriptor, _ = server.depart()
    client.end()
    server.wait_for(asyncio.sleep(0.02))
    assert connection.state is ConnectionState.LEAVING
    socket.socket(fileno=descriptor).close()
    server.run(connection.stay)
    assert client.read_to_end() == b""


@pytest.mark.parametrize("header", [LINE, block(vectors=TLS), b"PROXY UNKNOWN\r\n", block(0x20, 0, b"")])
def test_what_the_header_said_travels_with_the_idle_connection(start: Start, header: bytes) -> None:
    old, new = start(forwarded_allow_ips="*"), start(forwarded_allow_ips="*")
    client = old.connect()
    asked = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"
    client.send(header + asked)
    before = told(client)
    old.until(
        lambda: all(isinstance(each, Http1Connection) and each.pipeline.requests for each in old.worker.connections)
    )
    connection, descriptor, record = old.depart()
    assert not record.awaits_proxy
    record = HandOverRecord.from_json(record.to_json())
    new.wait_for(new.attach(socket.socket(fileno=descriptor), record))
    old.run(connection.gone)
    client.send(asked)
    assert told(client) == before


def test_a_record_of_an_older_version_is_one_without_a_proxy() -> None:
    values = HandOverRecord(b"", CLIENT, SERVER, 1.0, 2).to_json()
    for name in ("scheme", "trusted", "awaits_proxy"):
        del values[name]
    assert HandOverRecord.from_json(values) == HandOverRecord(b"", CLIENT, SERVER, 1.0, 2)


def test_the_graceful_timeout_cuts_a_header_that_has_begun(start: Start) -> None:
    server = start()
    client = server.connect()
    connection = server.first()
    client.send(LINE[:10])
    server.until(lambda: len(connection._buffer) == 10)
    assert server.run(connection.cut)
    assert ended(client) == b""


def test_the_header_and_what_comes_with_it_count_as_received(start: Start) -> None:
    server = start()
    client = server.connect()
    client.send(LINE + GET)
    assert client.answer()[0] == 200
    assert server.cell(Cell.BYTES_RECEIVED) == len(LINE + GET)
