"""RFC 7692 case by case: every kind of offer and what it is answered with, and messages under what was agreed.

The numbers are those of Autobahn|Testsuite's sections 12 and 13.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator

import pytest

from tests.compliance.test_websocket import BINARY, CLOSE, CONT, PING, PONG, TEXT, echo
from tests.websocket.websocket_server import RawClient, WebSocketServer, frame, serving

HEADER = "sec-websocket-extensions: "
TAIL = b"\0\0\xff\xff"


@pytest.fixture(scope="module", params=["uvloop", "asyncio", "uvloop over HTTP/2"])
def server(request: pytest.FixtureRequest) -> Iterator[WebSocketServer]:
    with serving(echo, request.param) as running:
        yield running


class Peer:
    """A client that compresses, with zlib alone, by what the server has agreed to."""

    def __init__(self, client: RawClient, offer: str) -> None:
        self.client = client
        head = client.open("/", f"Sec-WebSocket-Extensions: {offer}")
        lines = [line[len(HEADER) :] for line in head.split("\r\n") if line.lower().startswith(HEADER)]
        assert len(lines) <= 1
        self.agreed = lines[0].split("; ") if lines else []
        parameters = dict(item.partition("=")[::2] for item in self.agreed[1:])
        self.server_bits = int(parameters.get("server_max_window_bits", 15))
        self.client_bits = int(parameters.get("client_max_window_bits", 15))
        self.server_takeover = "server_no_context_takeover" not in parameters
        self.client_takeover = "client_no_context_takeover" not in parameters
        self.compressor = self._compressor()
        self.decompressor = zlib.decompressobj(-self.server_bits)

    def _compressor(self) -> zlib._Compress:
        return zlib.compressobj(wbits=-max(9, self.client_bits))

    def compressed(self, payload: bytes) -> bytes:
        if not self.client_takeover:
            self.compressor = self._compressor()
        data = self.compressor.compress(payload) + self.compressor.flush(zlib.Z_SYNC_FLUSH)
        assert data.endswith(TAIL)
        return data[:-4]

    def receive(self) -> tuple[int, bytes]:
        """A message of the server, which is one frame, with RSV1 as it should be."""
        first = self.client.exactly(1)[0]
        length = self.client.exactly(1)[0]
        if length == 126:
            (length,) = struct.unpack("!H", self.client.exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.client.exactly(8))
        data = self.client.exactly(length)
        opcode = first & 0x0F
        assert first == 0x80 | opcode | (0x40 if self.agreed and opcode in (TEXT, BINARY) else 0)
        if first & 0x40:
            if not self.server_takeover:
                self.decompressor = zlib.decompressobj(-self.server_bits)
            data = self.decompressor.decompress(data + TAIL)
        return opcode, data


BOTH = "server_max_window_bits=12", "client_max_window_bits=12"
OFFERS: dict[str, tuple[str, ...]] = {  # and the parameters of the answer; () stands for no extension
    "permessage-deflate": ("server_max_window_bits=12",),
    "permessage-deflate; client_max_window_bits": BOTH,
    "permessage-deflate; client_max_window_bits=15": BOTH,
    "permessage-deflate; client_max_window_bits=9": ("server_max_window_bits=12", "client_max_window_bits=9"),
    "permessage-deflate; client_max_window_bits=8": ("server_max_window_bits=12", "client_max_window_bits=8"),
    'permessage-deflate; client_max_window_bits="10"': ("server_max_window_bits=12", "client_max_window_bits=10"),
    "permessage-deflate; server_max_window_bits=15": ("server_max_window_bits=12",),
    "permessage-deflate; server_max_window_bits=9": ("server_max_window_bits=9",),
    "permessage-deflate; server_no_context_takeover": ("server_no_context_takeover", "server_max_window_bits=12"),
    "permessage-deflate; client_no_context_takeover": ("client_no_context_takeover", "server_max_window_bits=12"),
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=9;"
    " client_max_window_bits=9": (
        "server_no_context_takeover",
        "client_no_context_takeover",
        "server_max_window_bits=9",
        "client_max_window_bits=9",
    ),
    # RFC 7692 5.1: of several offers the first that can be taken
    "permessage-deflate; server_max_window_bits=8, permessage-deflate": ("server_max_window_bits=12",),
    "permessage-deflate; unknown=1, permessage-deflate; server_max_window_bits=10": ("server_max_window_bits=10",),
    "x-unknown; a=b, permessage-deflate": ("server_max_window_bits=12",),
    # RFC 7692 7.1: an offer that is not valid is declined
    "permessage-deflate; server_max_window_bits=8": (),  # zlib has no stream for it
    "permessage-deflate; server_max_window_bits": (),
    "permessage-deflate; server_max_window_bits=7": (),
    "permessage-deflate; server_max_window_bits=16": (),
    "permessage-deflate; server_max_window_bits=09": (),
    "permessage-deflate; client_max_window_bits=16": (),
    "permessage-deflate; client_max_window_bits=x": (),
    "permessage-deflate; server_no_context_takeover=1": (),
    "permessage-deflate; client_no_context_takeover; client_no_context_takeover": (),
    "permessage-deflate; unknown": (),
    "x-webkit-deflate-frame": (),
}


@pytest.mark.parametrize("offer", OFFERS)
def test_offers(server: WebSocketServer, offer: str) -> None:
    """13.*: the answer to an offer, and messages of many sizes under it."""
    with RawClient(server.port) as client:
        peer = Peer(client, offer)
        agreed = OFFERS[offer]
        assert set(peer.agreed) == ({"permessage-deflate", *agreed} if agreed else set())
        rsv = 4 if agreed else 0
        for size in (0, 1, 64, 1024, 5000, 20_000):
            text = (json.dumps({"key": list(range(size))}) * 2)[:size].encode()
            for opcode, payload in ((TEXT, text), (BINARY, os.urandom(size)), (TEXT, text)):
                client.send(opcode, peer.compressed(payload) if agreed else payload, rsv=rsv)
                assert peer.receive() == (opcode, payload)


OFFER = "permessage-deflate; client_max_window_bits"


@pytest.mark.parametrize("size", [16, 1024, 65536])
def test_fragments(server: WebSocketServer, size: int) -> None:
    """12.*: a compressed message may be cut anywhere; RSV1 stands on its first frame alone (RFC 7692 6.1)."""
    with RawClient(server.port) as client:
        peer = Peer(client, OFFER)
        for _ in range(3):
            text = os.urandom(size // 2).hex().encode()
            data = peer.compressed(text)
            step = max(1, len(data) // 7)
            parts = [data[i : i + step] for i in range(0, len(data), step)]
            client.send(TEXT, parts[0], rsv=4, fin=False)
            for part in parts[1:]:
                client.send(CONT, part, fin=False)
                client.send(PING, b"between")
            client.send(CONT)
            for _ in parts[1:]:
                assert peer.receive() == (PONG, b"between")
            assert peer.receive() == (TEXT, text)


def test_messages_that_are_not_compressed(server: WebSocketServer) -> None:
    """RFC 7692 6: each message says for itself whether it is."""
    with RawClient(server.port) as client:
        peer = Peer(client, OFFER)
        for number in range(6):
            text = b"message %d" % number
            if number % 2:
                client.send(TEXT, text)
            else:
                client.send(TEXT, peer.compressed(text), rsv=4)
            assert peer.receive() == (TEXT, text)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(BINARY, b"\xff" * 50, rsv=4), 1002),
        (frame(BINARY, b"x", rsv=4, fin=False) + frame(CONT, b"x", rsv=4), 1002),
        (frame(PING, b"x", rsv=4), 1002),
        (frame(CLOSE, b"\x03\xe8", rsv=4), 1002),
        (frame(BINARY, b"x", rsv=6), 1002),
        (frame(BINARY, b"x", rsv=1), 1002),
        (frame(TEXT, zlib.compress(b"\xff\xfe", wbits=-12), rsv=4), 1007),
    ],
    ids=["no DEFLATE", "rsv1 on a continuation", "on a ping", "on a close", "rsv2 as well", "rsv3", "text not UTF-8"],
)
def test_violations(server: WebSocketServer, sent: bytes, code: int) -> None:
    with RawClient(server.port) as client:
        client.open("/", f"Sec-WebSocket-Extensions: {OFFER}")
        client.socket.sendall(sent)
        assert client.close_code() == code


def test_wrong_text_is_refused_before_its_last_fragment(server: WebSocketServer) -> None:
    with RawClient(server.port) as client:
        peer = Peer(client, OFFER)
        client.socket.sendall(frame(TEXT, peer.compressed(b"fine so far \xf5 " * 100) + TAIL, rsv=4, fin=False))
        assert client.close_code() == 1007


@pytest.mark.parametrize("fragments", [1, 50])
def test_bomb_is_refused_at_the_limit(server: WebSocketServer, fragments: int) -> None:
    """20 MiB of zeros in 20 KiB: refused with 1009 once more than 16 MiB have come out."""
    compressor = zlib.compressobj(wbits=-12)
    zeros = b"\0" * (1 << 20)
    bomb = b"".join(compressor.compress(zeros) for _ in range(20))
    step = len(bomb) // fragments + 1
    with RawClient(server.port) as client:
        client.open("/", f"Sec-WebSocket-Extensions: {OFFER}")
        try:
            for number, start in enumerate(range(0, len(bomb), step)):
                client.send(CONT if number else BINARY, bomb[start : start + step], rsv=0 if number else 4, fin=False)
        except ConnectionError:
            pass  # refused in the meantime
        assert client.close_code() == 1009
