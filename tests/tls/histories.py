"""Random histories of TLS 1.3 connections, judged by OpenSSL: `python -m tests.tls.histories --count 100000 --seed 1`.

One history is a connection from its handshake to its end. Its client is OpenSSL's, which refuses every record that is
not what it should be, so that whatever is read at either end has been authentic, in order and whole. What happens in
between is drawn: sizes from 0 to beyond a record's, cuts of the stream anywhere, KeyUpdates of both sides (OpenSSL's
client begins none of its own, but answers those that we request; for its side of the limits of RFC 8446 5.5 these are
lowered to a few records), moves to another session by way of JSON, also in the middle of a record, and offers of a move
that are withdrawn; at the end a close by either side, a truncation, or a record that was changed, lost, repeated or
made up. The same seed gives the same history but for what the handshake draws.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import random
import ssl
import time
from collections.abc import Iterator
from typing import Final
from unittest import mock

import pytest

from serve_asgi.tls import record_protection, session
from serve_asgi.tls.moved_session import MovedSession
from serve_asgi.tls.openssl_library import set_tls_1_3_suites
from serve_asgi.tls.record_protection import SUITES
from serve_asgi.tls.session import TlsSession, TlsState
from tests.tls.memory import Client, Contexts, client_context, shake_hands

SIZES: Final = (0, 1, 2, 5, 6, 7, 100, 1000, 2047, 2048, 2049, 16383, 16384, 16385, 40000)
ENDS: Final = ("client", "server", "both", "truncated", "changed", "lost", "repeated", "plain", "oversized")
LIMITS: Final = (3, 7, 50, 1 << 24)
ALERTS: Final = {
    "changed": "SSLV3_ALERT_BAD_RECORD_MAC",
    "lost": "SSLV3_ALERT_BAD_RECORD_MAC",
    "repeated": "SSLV3_ALERT_BAD_RECORD_MAC",
    "plain": "SSLV3_ALERT_UNEXPECTED_MESSAGE",
    "oversized": "TLSV1_ALERT_RECORD_OVERFLOW",
}


@functools.cache
def contexts() -> Contexts:
    return Contexts()


@functools.cache
def client_of(suite: int) -> ssl.SSLContext | None:
    """A context of a client that speaks this suite alone; None where that cannot be had from OpenSSL."""
    context = client_context()
    return context if set_tls_1_3_suites(context, SUITES[suite].name) else None


@contextlib.contextmanager
def limited_to(limit: int) -> Iterator[None]:
    """Keys are good for so many records."""
    suites = {number: dataclasses.replace(suite, record_limit=limit) for number, suite in SUITES.items()}
    with mock.patch.object(session, "SUITES", suites), mock.patch.object(record_protection, "SUITES", suites):
        yield


class History:
    """One connection."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        suite = chance.choice(tuple(SUITES))
        context = client_of(suite)
        with limited_to(chance.choice(LIMITS)):
            self.session = TlsSession(contexts())
            self.client = Client(context)
            self.to_server = b"" if chance.random() < 0.5 else chance.randbytes(chance.choice(SIZES))
            self.at_server = shake_hands(self.session, self.client, self.to_server, chance.choice((0, 0, 0, 7, 200)))
            self.to_client = self.at_client = b""
            assert self.session.info is not None
            assert context is None or self.session.info.cipher_suite == suite
            self.moves = 0
            self.wire = b""  # from the client to the server
            for _ in range(chance.randrange(30)):
                chance.choice((self.client_sends, self.server_sends, self.arrives, self.arrives, self.moves_on))()
            self.arrives_all()
            assert self.at_server == self.to_server
            self.ends(chance.choice(ENDS))
        assert self.at_client == self.to_client

    def client_sends(self) -> None:
        content = self.chance.randbytes(self.chance.choice(SIZES))
        self.to_server += content
        if content:
            self.wire += self.client.send(content)

    def server_sends(self) -> None:
        content = self.chance.randbytes(self.chance.choice(SIZES))
        self.to_client += content
        if self.chance.random() < 0.1:
            self.session._request_key_update(self.session._opener)  # type: ignore[arg-type]
        if self.chance.random() < 0.3:
            cut = self.chance.randrange(len(content) + 1)
            records = b"".join(self.session.send_pieces((content[:cut], content[cut:])))
        else:
            records = self.session.send(content)
        cut = self.chance.randrange(len(records) + 1)
        self.reaches_client(records[:cut])
        self.reaches_client(records[cut:])

    def reaches_client(self, records: bytes) -> None:
        self.at_client += self.client.receive(records)
        self.wire += self.client.outgoing.read()  # answers to KeyUpdates

    def arrives(self) -> None:
        """Some of what is on its way."""
        self.receive(self.chance.choice((1, 5, self.chance.randrange(30), len(self.wire), len(self.wire))))

    def receive(self, size: int) -> None:
        piece, self.wire = self.wire[:size], self.wire[size:]
        self.at_server += self.session.receive(piece)
        if self.session.has_outgoing and self.session.failure is None and self.chance.random() < 0.9:
            self.reaches_client(self.session.take_outgoing())

    def arrives_all(self) -> None:
        while self.wire:
            self.receive(self.chance.randrange(1, len(self.wire) + 1))

    def moves_on(self) -> None:
        if not self.session.can_move:
            assert self.session.has_outgoing
            self.reaches_client(self.session.take_outgoing())
        moved = self.session.move()
        assert self.session.receive(b"anything") == b""
        if self.chance.random() < 0.2:
            self.session.unmove()
            return
        self.moves += 1
        self.session = TlsSession(contexts(), MovedSession.from_json(json.loads(json.dumps(moved.to_json()))))

    def ends(self, how: str) -> None:
        the_session, client = self.session, self.client
        if how == "truncated":
            assert not the_session.peer_closed
            return
        if how in ALERTS:
            self.breaks(how)
            return
        if how == "server":
            self.reaches_client(the_session.close_notify())
            assert client.object.pending() == 0
            self.client_sends()  # half-closed: it may still say something
            self.arrives_all()
            assert the_session.state is TlsState.CLOSING
        if how == "both":
            self.server_sends()
            self.reaches_client(the_session.close_notify())
        self.wire += client.close()
        self.arrives_all()
        assert the_session.peer_closed
        assert self.at_server == self.to_server
        if how == "client":
            assert the_session.state is TlsState.OPEN
            client.incoming.write(the_session.close_notify())
        assert the_session.state is TlsState.CLOSED
        client.object.unwrap()

    def breaks(self, how: str) -> None:
        """What the client sends is not what it should be."""
        self.to_server += b"right"
        self.wire += self.client.send(b"right")  # with an answer to a KeyUpdate, if it owes one
        record = self.client.send(b"content" * 10)
        if how == "changed":
            place = self.chance.choice((1, 2, *range(5, len(record))))
            record = record[:place] + bytes((record[place] ^ 1 << self.chance.randrange(8),)) + record[place + 1 :]
        elif how == "lost":
            record = self.client.send(b"content")
        elif how == "repeated":
            self.to_server += b"content" * 10
            record *= 2
        elif how == "plain":
            record = bytes((self.chance.choice((20, 21, 22, 24)),)) + record[1:]
        else:
            record = b"\x17\x03\x03" + self.chance.randrange(16641, 65536).to_bytes(2)
        self.wire += record
        self.arrives_all()
        assert self.session.state is TlsState.FAILED
        assert self.session.failure is not None
        assert self.at_server == self.to_server
        with pytest.raises(ssl.SSLError) as error:
            self.client.receive(self.session.take_outgoing())
        assert error.value.reason == ALERTS[how]


def main() -> None:
    """Run them all; the seed of one that fails is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first; each next one has the next")
    options = parser.parse_args()
    began = time.monotonic()
    moves = 0
    for seed in range(options.seed, options.seed + options.count):
        try:
            moves += History(seed).moves
        except BaseException:
            print(f"seed {seed}")
            raise
    print(f"{options.count} histories, {moves} moves, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
