"""Records without use: as many as anybody needs, and no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from serve_asgi.tls.alerts import Alert
from serve_asgi.tls.record_floods import CONTROL_SHARE, FREE_CONTROL_RECORDS, FREE_THIN_RECORDS, MAX_IN_A_ROW
from serve_asgi.tls.session import TlsSession
from tests.tls.memory import Contexts, OwnClient, open_session


@pytest.fixture
def connection() -> tuple[TlsSession, OwnClient]:
    return open_session(Contexts())


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
    records = [kind(client) for _ in range(MAX_IN_A_ROW)]
    for piece in [b"".join(records)] if at_once else records:
        assert session.receive(piece) == b""
        session.take_outgoing()
    assert not refused(session)
    session.receive(kind(client))
    assert refused(session)


def test_of_different_kinds_in_a_row(connection: tuple[TlsSession, OwnClient]) -> None:
    session, client = connection
    for number in range(MAX_IN_A_ROW):
        session.receive(KINDS[number % 3](client))
    assert not refused(session)
    session.receive(empty(client))
    assert refused(session)


@pytest.mark.parametrize("kind", KINDS)
def test_content_between_them_begins_a_new_row(connection: tuple[TlsSession, OwnClient], kind: Kind) -> None:
    session, client = connection
    for _ in range(3):
        session.receive(b"".join(kind(client) for _ in range(MAX_IN_A_ROW // 2)))
        session.take_outgoing()
        assert session.receive(client.record(b"content")) == b"content"
    assert not refused(session)


@pytest.mark.parametrize("kind", KINDS)
def test_one_for_each_record_of_content_is_too_many(connection: tuple[TlsSession, OwnClient], kind: Kind) -> None:
    session, client = connection
    count = 0
    while not refused(session):
        count += 1
        session.receive(client.record(b"content") + kind(client))
        session.take_outgoing()
    assert count == pytest.approx(FREE_CONTROL_RECORDS / (1 - 2 / CONTROL_SHARE), abs=2)


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
    session._floods._thin = FREE_THIN_RECORDS - 10
    for _ in range(10):
        assert session.receive(client.record(b"c")) == b"c"
    for _ in range(30):
        session.receive(client.record(b"c"))
    assert refused(session)


def test_messages_of_a_websocket_are_not_thin(connection: tuple[TlsSession, OwnClient]) -> None:
    """The shortest frame of a client is six bytes: an empty one with its mask."""
    session, client = connection
    session._floods._thin = FREE_THIN_RECORDS
    for _ in range(100):
        assert session.receive(client.record(b"\x89\x80mask")) == b"\x89\x80mask"
    assert not refused(session)
