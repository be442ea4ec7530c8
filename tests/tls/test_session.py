"""A TLS connection in memory, from the handshake to its end, with OpenSSL's client at the other side."""

from __future__ import annotations

import ssl

import pytest

from serve_asgi.tls.moved_session import MovedSession
from serve_asgi.tls.session import TlsSession, TlsState
from tests.tls.memory import Client, Contexts, client_context, shake_hands


def state(session: TlsSession) -> TlsState:
    return session.state


REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    return Contexts()


def test_a_connection_of_tls_1_3(contexts: Contexts) -> None:
    session, client = TlsSession(contexts), Client()
    assert shake_hands(session, client, REQUEST) == REQUEST
    assert state(session) is TlsState.OPEN
    assert session.info is not None
    assert session.info.version == 0x0304
    assert session.info.server_name == "localhost"
    assert session.info.alpn == "http/1.1"
    assert session.can_move
    assert client.receive(session.send(b"x" * 100_000)) == b"x" * 100_000
    assert session.receive(client.send(b"y" * 100_000)) == b"y" * 100_000
    assert session.receive(client.close()) == b""
    assert session.peer_closed
    client.incoming.write(session.close_notify())
    assert state(session) is TlsState.CLOSED
    client.object.unwrap()


def test_a_connection_of_tls_1_2(contexts: Contexts) -> None:
    session, client = TlsSession(contexts), Client(client_context(ssl.TLSVersion.TLSv1_2))
    assert shake_hands(session, client, REQUEST) == REQUEST
    assert session.info is not None
    assert session.info.version == 0x0303
    assert session.info.cipher_suite in (0xC02B, 0xC02C)
    assert not session.can_move
    assert client.receive(session.send(b"x" * 100_000)) == b"x" * 100_000
    assert session.receive(client.send(b"y" * 100_000)) == b"y" * 100_000
    assert session.receive(client.close()) == b""
    assert session.peer_closed
    client.incoming.write(session.close_notify())
    assert state(session) is TlsState.CLOSED
    client.object.unwrap()


def test_a_move(contexts: Contexts) -> None:
    session, client = TlsSession(contexts), Client()
    shake_hands(session, client)
    data = client.send(REQUEST)
    assert session.receive(data[:20]) == b""
    moved = MovedSession.from_json(session.move().to_json())
    assert state(session) is TlsState.MOVED
    session = TlsSession(contexts, moved)
    assert session.receive(data[20:]) == REQUEST
    assert client.receive(session.send(b"hello")) == b"hello"
