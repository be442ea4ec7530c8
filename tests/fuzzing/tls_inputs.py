"""What is checked of any bytes on a TLS connection: the invariants of a session.

An input is one byte for the target state, one that says how the rest is cut, and the rest. A handshake is fed with the
bytes themselves, or with a real ClientHello that the bytes have damaged; an open connection with records that the bytes
describe and that are sealed as its client would, so that what is behind the encryption is reached too, with the bytes
as they are behind them.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterable

from serve_asgi.tls.moved_session import MovedSession
from serve_asgi.tls.session import TlsSession, TlsState
from tests.tls.memory import Client, Contexts, OwnClient, open_session

LONG = 2000
"""Bytes from which on a stream is not cut byte by byte: it would take the time of many others."""
KINDS = (23, 23, 23, 22, 21, 20, 24, 0)


@functools.cache
def contexts() -> Contexts:
    return Contexts()


@functools.cache
def hello() -> bytes:
    """A real one."""
    client = Client()
    client.step()
    return client.outgoing.read()


@functools.cache
def open_connection() -> MovedSession:
    """After a real handshake; every input begins there."""
    return open_session(contexts())[0].move()


def pieces_of(stream: bytes, seed: int) -> list[bytes]:
    """The stream in a few pieces (byte by byte for some seeds, if it is short), always the same for the same seed."""
    chance = random.Random(seed)
    if seed % 8 == 7 and len(stream) <= LONG:
        places = list(range(len(stream) + 1))
    else:
        places = sorted({0, len(stream), *(chance.randrange(len(stream) + 1) for _ in range(seed % 8))})
    return [stream[start:end] for start, end in itertools.pairwise(places)]


def check_tls(data: bytes) -> None:
    """One input of the fuzzer."""
    if len(data) < 3:
        return
    if data[0] & 1:
        check_open(data[2:], data[1], bool(data[0] & 2))
    elif data[0] & 2:
        check_handshake(damaged(hello(), data[2:]), data[1])
    else:
        check_handshake(data[2:], data[1])


def damaged(stream: bytes, damage: bytes) -> bytes:
    """Each four bytes of the damage: where, how much is taken out, how much of what follows is put in."""
    while len(damage) > 3:
        at = int.from_bytes(damage[:2]) % (len(stream) + 1)
        size = damage[3] % 8
        stream = stream[:at] + damage[4 : 4 + size] + stream[at + damage[2] % 8 :]
        damage = damage[4 + size :]
    return stream


def check_handshake(stream: bytes, seed: int) -> None:
    """Whatever comes, and however it is cut: no exception, and the same verdict."""
    verdicts = []
    for pieces in ([stream], pieces_of(stream, seed)):
        session = TlsSession(contexts())
        for piece in pieces:
            assert session.receive(piece) == b""
            check_state(session)
        flights = session.take_outgoing()
        check_records(flights)
        failure = session.failure
        verdicts.append((session.state, failure, flights[:1]))
        if failure is not None and failure.alert_sent is not None:
            assert flights[-7:] == b"\x15\x03" + flights[-5:-4] + b"\0\2\2" + bytes((failure.alert_sent,))
    assert verdicts[0] == verdicts[1], f"{stream!r} depends on its cuts: {verdicts}"


def sealed(script: bytes, client: OwnClient) -> bytes:
    """The records that a script describes: a byte for type and padding, a byte for the size, the content."""
    stream = b""
    while len(script) > 1:
        kind, size = script[0], script[1]
        if kind & 0x40:  # as they are
            stream += script[2 : 2 + size]
        else:
            content = (script[2 : 2 + size] * (1000 if kind & 0xF0 == 0x80 else 1))[:16390]  # a bit more than may be
            stream += client.record(content, KINDS[kind & 7], kind >> 3 & 7)
            if KINDS[kind & 7] == 22 and content[:5] in (b"\x18\0\0\1\0", b"\x18\0\0\1\1"):
                client.sealer.next_generation()
        script = script[2 + size :]
    return stream


def check_open(script: bytes, seed: int, moves: bool) -> None:
    """However it is cut, and whether or not it moves: the same content, the same verdict, and an alert that arrives."""
    stream = sealed(script, OwnClient(open_connection()))
    chance = random.Random(seed)
    verdicts = []
    for pieces in ([stream], pieces_of(stream, seed)):
        session, client = TlsSession(contexts(), open_connection()), OwnClient(open_connection())
        got = b""
        said = []
        for piece in pieces:
            got += session.receive(piece)
            check_state(session)
            if session.has_outgoing and session.state is TlsState.OPEN:
                said += client.open(session.take_outgoing())
            if moves and session.can_move and chance.random() < 0.5:
                session = TlsSession(contexts(), MovedSession.from_json(session.move().to_json()))
        said += client.open(session.take_outgoing())
        verdicts.append((session.state, session.failure, session.peer_closed, got))
        check_said(session, said)
        if session.state is TlsState.OPEN:
            assert client.open(session.send(b"response")) == [(23, b"response")]
            assert client.open(session.close_notify()) == [(21, b"\1\0")]
    if not any(verdict[1] is not None and "too many" in verdict[1].reason for verdict in verdicts):  # a matter of time
        assert verdicts[0] == verdicts[1], f"{script!r} depends on its cuts: {verdicts}"


def check_said(session: TlsSession, said: Iterable[tuple[int, bytes]]) -> None:
    """KeyUpdates that request nothing, and at the end the alert that the failure names."""
    alerts = [content for kind, content in said if kind == 21]
    assert all(content == b"\x18\0\0\1\0" for kind, content in said if kind != 21)
    expected = session.failure.alert_sent if session.failure is not None else None
    assert alerts == ([] if expected is None else [bytes((2, expected))])


def check_state(session: TlsSession) -> None:
    """What is said together fits together."""
    assert (session.failure is not None) == (session.state is TlsState.FAILED)
    assert session.state is not TlsState.OPEN or session.info is not None
    assert not session.can_move or not session.peer_closed


def check_records(flights: bytes) -> None:
    """What goes out is whole records."""
    while flights:
        assert flights[0] in (20, 21, 22, 23)
        size = int.from_bytes(flights[3:5])
        assert len(flights) >= 5 + size
        flights = flights[5 + size :]
