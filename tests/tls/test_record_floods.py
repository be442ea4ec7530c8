"""Records without use: as many as anybody needs, and no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from serve_asgi.tls.alerts import Alert
from serve_asgi.tls.record_floods import (
    CONTROL_RATE,
    CONTROL_RECORDS,
    CONTROL_SHARE,
    THIN_RECORDS,
    RecordFloods,
)
from serve_asgi.tls.session import TlsSession
from tests.tls.memory import Contexts, OwnClient, open_session


class Clock:
    """A time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connection(clock: Clock) -> tuple[TlsSession, OwnClient]:
    session, client = open_session(Contexts())
    session._floods = RecordFloods(clock)
    return session, client


def empty(client: OwnClient) -> bytes:
    return client.record(b"", padding=3)


def key_update(client: OwnClient) -> bytes:
    return client.sealer.seal_key_update(True)


def warning(client: OwnClient) -> bytes:
    return client.record(b"\1\x5a", 21)


Kind = Callable[[OwnClient], bytes]
KINDS: list[Kind] = [empty, key_update, warning]


def refused(session: TlsSession) -> bool:
    if session.failure is None:
        return False
    assert session.failure.alert_sent == Alert.UNEXPECTED_MESSAGE
    assert "records without content" in session.failure.reason or "records of a few bytes" in session.failure.reason
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [False, True])
def test_in_a_row(connection: tuple[TlsSession, OwnClient], kind: Kind, at_once: bool) -> None:
    session, client = connection
    records = [kind(client) for _ in range(CONTROL_RECORDS)]
    for piece in [b"".join(records)] if at_once else records:
        assert session.receive(piece) == b""
        session.take_outgoing()
    assert not refused(session)
    session.receive(b"".join(kind(client) for _ in range(CONTROL_RECORDS // 8)))
    assert refused(session)


def test_of_different_kinds_in_a_row(connection: tuple[TlsSession, OwnClient]) -> None:
    session, client = connection
    for number in range(CONTROL_RECORDS):
        session.receive(KINDS[number % 3](client))
    assert not refused(session)
    for _ in range(CONTROL_RECORDS // 8):
        session.receive(empty(client))
    assert refused(session)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_refused_who_sends_one_now_and_then(
    connection: tuple[TlsSession, OwnClient], clock: Clock, kind: Kind
) -> None:
    """For as long as the connection lives, and without any content between them."""
    session, client = connection
    for _ in range(2000):
        clock.now += 1 / CONTROL_RATE
        assert session.receive(kind(client)) == b""
        session.take_outgoing()
    assert not refused(session)


@pytest.mark.parametrize("kind", KINDS)
def test_one_for_each_record_of_content_is_too_many(connection: tuple[TlsSession, OwnClient], kind: Kind) -> None:
    session, client = connection
    count = 0
    while not refused(session):
        count += 1
        session.receive(client.record(b"content") + kind(client))
        session.take_outgoing()
    assert count == pytest.approx(CONTROL_RECORDS / (1 - 2 / CONTROL_SHARE), abs=2)


def test_their_share_may_be_used_for_ever(connection: tuple[TlsSession, OwnClient]) -> None:
    session, client = connection
    for number in range(200 * CONTROL_SHARE):
        if number % CONTROL_SHARE == 0:
            session.receive(KINDS[number % 3](client))
            session.take_outgoing()
        assert session.receive(client.record(b"content")) == b"content"
    assert not refused(session)


def test_thin_records(connection: tuple[TlsSession, OwnClient]) -> None:
    """A body that is sent byte by byte is let through up to a bound, which is large."""
    session, client = connection
    assert session.receive(client.record(b"c")) == b"c"
    session._floods._thin.level = THIN_RECORDS - 10
    for _ in range(20):
        assert session.receive(client.record(b"c")) == b"c"
    for _ in range(10):
        session.receive(client.record(b"c"))
    assert refused(session)


def test_nobody_is_refused_who_types(connection: tuple[TlsSession, OwnClient], clock: Clock) -> None:
    """A client that writes the head, the mask and the content of a WebSocket's frame in records of their own."""
    session, client = connection
    assert session.receive(client.record(b"c")) == b"c"
    session._floods._thin.level = THIN_RECORDS - 10
    for _ in range(1000):
        clock.now += 0.01
        for piece in (b"\x81\x81", b"mask", b"x"):
            assert session.receive(client.record(piece)) == piece
    assert session._floods._thin.level < THIN_RECORDS - 10


def test_messages_of_a_websocket_are_not_thin(connection: tuple[TlsSession, OwnClient]) -> None:
    """The shortest frame of a client is six bytes: an empty one with its mask."""
    session, client = connection
    session._floods._thin.level = THIN_RECORDS
    for _ in range(100):
        assert session.receive(client.record(b"\x89\x80mask")) == b"\x89\x80mask"
    assert not refused(session)
