"""A TLS connection in memory, from the handshake to its end, with OpenSSL's client at the other side."""

from __future__ import annotations

import itertools
import ssl
import time
from collections.abc import Iterator

import pytest

from serve_asgi.tls.alerts import Alert
from serve_asgi.tls.moved_session import MovedSession
from serve_asgi.tls.session import MOVED, TRANSITIONS, TlsSession, TlsState
from tests.tls.histories import limited_to
from tests.tls.memory import Client, Contexts, authority, client_context, open_session, shake_hands

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    return Contexts()


@pytest.fixture(scope="module")
def asking() -> Contexts:
    """Clients must have a certificate."""
    contexts = Contexts()
    contexts.context.load_verify_locations(authority().path)
    contexts.context.verify_mode = ssl.CERT_REQUIRED
    return contexts


def state(session: TlsSession) -> TlsState:
    return session.state


def talk(session: TlsSession, client: Client) -> None:
    """A request, a response, and large ones of both."""
    assert session.receive(client.send(REQUEST)) == REQUEST
    assert client.receive(session.send(RESPONSE)) == RESPONSE
    assert session.receive(client.send(REQUEST * 1000)) == REQUEST * 1000
    assert client.receive(session.send(RESPONSE * 1000)) == RESPONSE * 1000
    assert client.receive(b"".join(session.send_pieces((RESPONSE, b"", RESPONSE * 1000)))) == RESPONSE * 1001


def close(session: TlsSession, client: Client) -> None:
    """By the client, politely."""
    assert session.receive(client.close()) == b""
    assert session.peer_closed
    client.incoming.write(session.close_notify())
    assert state(session) is TlsState.CLOSED
    client.object.unwrap()
    assert session.receive(b"anything") == b""
    with pytest.raises(RuntimeError, match="closed"):
        session.send(b"anything")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("piece", [0, 1, 50])
class TestBothVersions:
    def test_a_connection(self, contexts: Contexts, version: ssl.TLSVersion, piece: int) -> None:
        session, client = TlsSession(contexts), Client(client_context(version))
        assert shake_hands(session, client, REQUEST, piece) == REQUEST
        assert state(session) is TlsState.OPEN
        assert session.info is not None
        assert session.info.version == version
        assert session.info.version_name == version.name.replace("_", ".")
        assert session.info.server_name == "localhost"
        assert session.info.alpn == "http/1.1"
        assert session.info.client_certificates == ()
        assert not session.info.resumed
        assert session.can_move is (version is ssl.TLSVersion.TLSv1_3)
        talk(session, client)
        close(session, client)

    def test_we_close_first(self, contexts: Contexts, version: ssl.TLSVersion, piece: int) -> None:
        session, client = TlsSession(contexts), Client(client_context(version))
        shake_hands(session, client, piece=piece)
        last_words = client.send(REQUEST)
        assert client.receive(session.close_notify()) == b""
        assert state(session) is TlsState.CLOSING
        assert session.close_notify() == b""
        with pytest.raises(RuntimeError, match="closing"):
            session.send(b"anything")
        assert session.receive(last_words) == REQUEST
        assert session.receive(client.close()) == b""
        assert state(session) is TlsState.CLOSED

    def test_a_truncation_is_not_taken_for_the_end(
        self, contexts: Contexts, version: ssl.TLSVersion, piece: int
    ) -> None:
        session, client = TlsSession(contexts), Client(client_context(version))
        shake_hands(session, client, piece=piece)
        assert session.receive(client.send(REQUEST)) == REQUEST
        assert not session.peer_closed

    def test_the_client_closes_its_side_first(self, contexts: Contexts, version: ssl.TLSVersion, piece: int) -> None:
        """And gets the answer to what it has sent before (RFC 8446 6.1)."""
        session, client = TlsSession(contexts), Client(client_context(version))
        shake_hands(session, client, piece=piece)
        assert session.receive(client.send(REQUEST) + client.close()) == REQUEST
        assert session.peer_closed
        assert state(session) is TlsState.OPEN
        assert session.receive(b"anything") == b""
        records = session.send(RESPONSE)
        assert client.receive(records) == RESPONSE
        client.incoming.write(session.close_notify())
        assert state(session) is TlsState.CLOSED
        client.object.unwrap()

    def test_the_client_ends_it_with_an_alert(self, contexts: Contexts, version: ssl.TLSVersion, piece: int) -> None:
        session, client = TlsSession(contexts), Client(client_context(version))
        shake_hands(session, client, piece=piece)
        client.incoming.write(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(ssl.SSLError):
            client.object.read(1)
        assert session.receive(client.outgoing.read()) == b""
        assert state(session) is TlsState.FAILED
        assert session.failure is not None
        assert session.failure.alert_received == Alert.BAD_RECORD_MAC
        assert session.failure.reason == "the client ended the connection with the alert bad_record_mac"
        assert session.take_outgoing() == b""

    def test_a_record_that_is_not_authentic(self, contexts: Contexts, version: ssl.TLSVersion, piece: int) -> None:
        session, client = TlsSession(contexts), Client(client_context(version))
        shake_hands(session, client, piece=piece)
        first, second = client.send(REQUEST), bytearray(client.send(REQUEST))
        second[-1] ^= 1
        assert session.receive(first + second) == REQUEST
        assert state(session) is TlsState.FAILED
        assert session.failure is not None
        assert "not authentic" in session.failure.reason
        with pytest.raises(ssl.SSLError, match="SSLV3_ALERT_BAD_RECORD_MAC"):
            client.receive(session.take_outgoing())


def test_a_hello_retry_request(contexts: Contexts) -> None:
    """The client's key share is of another group than the server's (RFC 8446 4.1.4)."""
    other = Contexts()
    other.context.set_ecdh_curve("secp384r1")
    session, client = TlsSession(other), Client()
    client.step()
    session.receive(client.outgoing.read())
    client.incoming.write(session.take_outgoing())
    assert not client.step()
    assert shake_hands(session, client, REQUEST) == REQUEST
    assert session.can_move
    talk(session, client)


@pytest.mark.parametrize("tickets", range(4))
def test_the_number_of_tickets_is_counted(tickets: int) -> None:
    """Each is a record of the server's, and resumption changes how many there are."""
    contexts, context = Contexts(), client_context()
    contexts.context.num_tickets = tickets
    session, client = TlsSession(contexts), Client(context)
    shake_hands(session, client)
    talk(session, client)
    resumed = client.object.session
    for _ in range(3 if tickets else 0):
        session, client = TlsSession(contexts), Client(context, resumed)
        assert shake_hands(session, client, REQUEST) == REQUEST
        assert session.info is not None
        assert session.info.resumed
        talk(session, client)
        resumed = client.object.session


def test_tickets_are_sent_with_the_first_response(contexts: Contexts) -> None:
    """Whatever has not been written yet is before what is sent."""
    session, client = TlsSession(contexts), Client()
    client.step()
    session.receive(client.outgoing.read())
    client.incoming.write(session.take_outgoing())
    client.step()
    assert session.receive(client.outgoing.read() + client.send(REQUEST)) == REQUEST
    assert session.has_outgoing
    assert not session.can_move
    assert client.receive(session.send(RESPONSE)) == RESPONSE
    assert not session.has_outgoing
    assert session.can_move


class TestClientCertificates:
    """Which the server requires."""

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_one_that_is_valid(self, asking: Contexts, version: ssl.TLSVersion) -> None:
        context = client_context(version)
        context.load_cert_chain(authority().issue("ada", "Example, Inc."))
        session, client = TlsSession(asking), Client(context)
        assert shake_hands(session, client, REQUEST) == REQUEST
        info = session.info
        assert info is not None
        assert info.client_name == "O=Example\\, Inc.,CN=ada"
        assert [each[:28] for each in info.client_certificates] == ["-----BEGIN CERTIFICATE-----\n"] * 2
        assert info.client_certificates[0] in (authority().directory / "ada.pem").read_text()
        talk(session, client)
        session, client = TlsSession(asking), Client(context, client.object.session)
        shake_hands(session, client)
        assert session.info is not None
        assert session.info.resumed
        assert session.info.client_name == info.client_name
        assert session.info.client_certificates[0] == info.client_certificates[0]
        talk(session, client)
        if session.can_move:
            moved = MovedSession.from_json(session.move().to_json())
            assert TlsSession(asking, moved).info == session.info

    def test_none(self, asking: Contexts) -> None:
        session, client = TlsSession(asking), Client()
        shake_hands(session, client)
        assert state(session) is TlsState.FAILED
        assert session.failure is not None
        assert "--tls-client-auth" in session.failure.reason
        with pytest.raises(ssl.SSLError, match="TLSV13_ALERT_CERTIFICATE_REQUIRED"):
            client.read()

    def test_one_that_has_expired(self, asking: Contexts) -> None:
        context = client_context()
        context.load_cert_chain(authority().issue("old", days=-1))
        session = TlsSession(asking)
        shake_hands(session, Client(context))
        assert session.failure is not None
        assert session.failure.reason == "the client's certificate is not valid: certificate has expired"

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_one_that_has_expired_since(
        self, asking: Contexts, version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """OpenSSL does not look at it again, and would give the client a new ticket for each that it comes with."""
        context = client_context(version)
        context.load_cert_chain(authority().issue("eve", days=30))
        session, client = TlsSession(asking), Client(context)
        shake_hands(session, client)
        talk(session, client)
        later = time.time() + 31 * 86400
        monkeypatch.setattr(time, "time", lambda: later)
        session, again = TlsSession(asking), Client(context, client.object.session)
        shake_hands(session, again)
        assert session.failure is not None
        assert session.failure.reason == "the client's certificate has expired since its session began"
        if version is ssl.TLSVersion.TLSv1_3:
            assert session.failure.alert_sent == Alert.CERTIFICATE_EXPIRED
            with pytest.raises(ssl.SSLError, match="ALERT_CERTIFICATE_EXPIRED"):
                again.read()


class TestHandshakesThatFail:
    def test_the_client_does_not_know_the_authority(self, contexts: Contexts) -> None:
        session, client = TlsSession(contexts), Client(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(session, client)
        session.receive(client.outgoing.read())
        assert session.failure is not None
        assert session.failure.reason == "the client does not accept the certificate (unknown_ca)"
        assert session.failure.alert_received == Alert.UNKNOWN_CA
        assert session.take_outgoing() == b""

    def test_no_version_in_common(self) -> None:
        contexts = Contexts()
        contexts.context.minimum_version = ssl.TLSVersion.TLSv1_3
        session, client = TlsSession(contexts), Client(client_context(ssl.TLSVersion.TLSv1_2))
        client.step()
        session.receive(client.outgoing.read())
        assert session.failure is not None
        assert "--tls-min-version" in session.failure.reason
        assert session.failure.alert_sent == Alert.PROTOCOL_VERSION
        assert session.take_outgoing() == b"\x15\x03\x03\0\2\2\x46"

    @pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n", b"\0\0\0\0\0\0\0\0", b"\x16\x03\x01\0\5\1\0\0\1\0"])
    def test_what_is_not_tls(self, contexts: Contexts, data: bytes) -> None:
        session = TlsSession(contexts)
        assert session.receive(data) == b""
        assert state(session) is TlsState.FAILED
        assert session.failure is not None
        assert not session.failure.plain_http

    @pytest.mark.parametrize("piece", [1, 100])
    @pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n"])
    def test_plain_http(self, contexts: Contexts, start: bytes, piece: int) -> None:
        session = TlsSession(contexts)
        while start and session.failure is None:
            assert session.receive(start[:piece]) == b""
            start = start[piece:]
        assert state(session) is TlsState.FAILED
        assert session.failure is not None
        assert session.failure.plain_http
        assert session.take_outgoing() == b""

    def test_nothing_can_be_sent_before_it_is_over(self, contexts: Contexts) -> None:
        """0.5-RTT content (RFC 8446 2.3) would be for a client that has shown nothing yet."""
        session, client = TlsSession(contexts), Client()
        client.step()
        session.receive(client.outgoing.read())
        with pytest.raises(RuntimeError, match="handshaking"):
            session.send(RESPONSE)

    def test_given_up_in_the_middle(self, contexts: Contexts) -> None:
        session, client = TlsSession(contexts), Client()
        client.step()
        session.receive(client.outgoing.read())
        session.close_notify()
        assert state(session) is TlsState.CLOSED
        assert session.receive(b"anything") == b""


class TestWhatAClientMayNotSay:
    """After the handshake (RFC 8446 4.6, 5, 6)."""

    @pytest.mark.parametrize(
        ("records", "alert"),
        [
            ([(22, b"\1\0\0\1\0")], Alert.UNEXPECTED_MESSAGE),  # a ClientHello: renegotiation
            ([(22, b"\x0b\0\0\1\0")], Alert.UNEXPECTED_MESSAGE),  # a certificate that nobody has asked for
            ([(22, b"\x14")], Alert.UNEXPECTED_MESSAGE),  # Finished
            ([(22, b"\x18\0\0\1\2")], Alert.ILLEGAL_PARAMETER),
            ([(22, b"\x18\0\0\2\0\0")], Alert.DECODE_ERROR),
            ([(22, b"\x18\0\0\0")], Alert.DECODE_ERROR),
            ([(22, b"\x18\1")], Alert.DECODE_ERROR),
            ([(22, b"\x18\0\0\1\0\0")], Alert.UNEXPECTED_MESSAGE),
            ([(22, b"\x18\0\0\1\0\x18\0\0\1\0")], Alert.UNEXPECTED_MESSAGE),
            ([(22, b"\x18\0\0"), (23, b"content")], Alert.UNEXPECTED_MESSAGE),
            ([(22, b"\x18\0\0"), (21, b"\1\0")], Alert.UNEXPECTED_MESSAGE),
            ([(22, b"\x18\0\0"), (22, b"\1\0\0")], Alert.UNEXPECTED_MESSAGE),
            ([(22, b"")], Alert.UNEXPECTED_MESSAGE),
            ([(21, b"")], Alert.UNEXPECTED_MESSAGE),
            ([(21, b"\1")], Alert.DECODE_ERROR),
            ([(21, b"\1\0\1\0")], Alert.DECODE_ERROR),
            ([(20, b"\1")], Alert.UNEXPECTED_MESSAGE),  # change_cipher_spec, protected
            ([(24, b"\1\0\0")], Alert.UNEXPECTED_MESSAGE),  # heartbeat
        ],
    )
    def test_it(self, contexts: Contexts, records: list[tuple[int, bytes]], alert: Alert) -> None:
        for piece in (1, 1000):
            session, client = open_session(contexts)
            data = client.record(b"content") + b"".join(client.record(content, kind) for kind, content in records)
            data += client.record(b"not read any more")
            pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
            assert b"".join(map(session.receive, pieces)) == b"content"
            assert state(session) is TlsState.FAILED
            assert session.failure is not None
            assert session.failure.alert_sent == alert
            assert client.open(session.take_outgoing()) == [(21, bytes((2, alert)))]

    @pytest.mark.parametrize("moves", [False, True])
    def test_content_within_a_handshake_message(self, contexts: Contexts, moves: bool) -> None:
        """Each record is read on its own, and is as long as those that are opened the short way (RFC 8446 5.1)."""
        session, client = open_session(contexts)
        session.receive(client.record(b"\x18\0\0", 22))
        if moves:
            session = TlsSession(contexts, MovedSession.from_json(session.move().to_json()))
        assert session.receive(client.record(b"content of some length")) == b""
        assert client.open(session.take_outgoing()) == [(21, bytes((2, Alert.UNEXPECTED_MESSAGE)))]

    @pytest.mark.parametrize("record", [b"\x14\3\3\0\1\1", b"\x15\3\3\0\2\1\0", b"\x16\3\3\0\1\1"])
    def test_unprotected_records(self, contexts: Contexts, record: bytes) -> None:
        """Also the change_cipher_spec of middlebox compatibility (D.4), which has its place in the handshake alone."""
        session, client = open_session(contexts)
        assert session.receive(record) == b""
        assert client.open(session.take_outgoing()) == [(21, b"\2\x0a")]

    @pytest.mark.parametrize("number", [40, 80, 255])
    def test_any_other_alert_is_the_end(self, contexts: Contexts, number: int) -> None:
        """Whatever its level (RFC 8446 6)."""
        session, client = open_session(contexts)
        session.receive(client.record(bytes((1, number)), 21))
        assert state(session) is TlsState.FAILED
        assert session.failure is not None
        assert (session.failure.alert_received, session.failure.alert_sent) == (number, None)
        assert not session.has_outgoing

    def test_user_canceled_is_followed_by_close_notify(self, contexts: Contexts) -> None:
        session, client = open_session(contexts)
        assert session.receive(client.record(b"\1\x5a", 21)) == b""
        assert state(session) is TlsState.OPEN
        session.receive(client.record(b"\1\0", 21) + client.record(b"ignored") + b"\x16")
        assert session.peer_closed
        assert session.failure is None
        assert not session.can_move
        assert client.open(session.send(RESPONSE)) == [(23, RESPONSE)]


class TestKeyUpdates:
    def test_in_the_same_read_as_content(self, contexts: Contexts) -> None:
        session, client = open_session(contexts)
        data = client.record(b"before") + client.sealer.seal_key_update(True) + client.record(b"behind")
        assert session.receive(data) == b"beforebehind"
        assert session.has_outgoing
        assert client.open(session.send(RESPONSE)) == [(22, b"\x18\0\0\1\0"), (23, RESPONSE)]

    def test_several_requests_are_answered_once(self, contexts: Contexts) -> None:
        session, client = open_session(contexts)
        assert session.receive(b"".join(client.sealer.seal_key_update(True) for _ in range(10))) == b""
        assert client.open(session.take_outgoing()) == [(22, b"\x18\0\0\1\0")]

    def test_one_that_requests_nothing(self, contexts: Contexts) -> None:
        session, client = open_session(contexts)
        session.receive(client.sealer.seal_key_update(False))
        assert not session.has_outgoing
        assert session.receive(client.record(b"content")) == b"content"

    def test_in_pieces(self, contexts: Contexts) -> None:
        """A handshake message may be cut anywhere, also between two processes."""
        session, client = open_session(contexts)
        for byte in b"\x18\0\0\1\1":
            session.receive(client.record(bytes((byte,)), 22))
            if session.can_move:
                session = TlsSession(contexts, MovedSession.from_json(session.move().to_json()))
        client.sealer.next_generation()
        assert session.receive(client.record(b"content")) == b"content"
        assert client.open(session.take_outgoing()) == [(22, b"\x18\0\0\1\0")]

    def test_after_our_close_notify_none_is_answered(self, contexts: Contexts) -> None:
        session, client = open_session(contexts)
        assert client.open(session.close_notify()) == [(21, b"\1\0")]
        assert session.receive(client.sealer.seal_key_update(True) + client.record(b"content")) == b"content"
        assert not session.has_outgoing


class TestTheUseOfKeysIsLimited:
    """RFC 8446 5.5, with a limit of three records."""

    @pytest.fixture(autouse=True)
    def _limit(self) -> Iterator[None]:
        with limited_to(3):
            yield

    def test_ours_are_changed(self, contexts: Contexts) -> None:
        session, client = open_session(contexts)
        kinds = [kind for _ in range(9) for kind, _ in client.open(session.send(b"content"))]
        assert kinds == [23, 22, 23, 23, 23, 22, 23, 23, 23, 22, 23, 23]  # two tickets were sent before
        assert session.failure is None

    @pytest.mark.parametrize("content", [b"content", b"c"])
    def test_the_client_is_asked_once_to_change_its_own(self, contexts: Contexts, content: bytes) -> None:
        session, client = open_session(contexts)
        for _ in range(2):
            said = []
            for _ in range(10):
                assert session.receive(client.record(content)) == content
                said += client.open(session.take_outgoing())
            assert said == [(22, b"\x18\0\0\1\1")]
            assert session.receive(client.sealer.seal_key_update(False)) == b""

    def test_a_request_is_the_answer_to_another_one(self, contexts: Contexts) -> None:
        session, client = open_session(contexts)
        data = client.record(b"content") * 1 + client.record(b"more") + client.sealer.seal_key_update(True)
        assert session.receive(data) == b"contentmore"
        assert client.open(session.take_outgoing()) == [(22, b"\x18\0\0\1\0")]


class TestMoves:
    def test_in_the_middle_of_a_record(self, contexts: Contexts) -> None:
        session, client = TlsSession(contexts), Client()
        shake_hands(session, client)
        data = client.send(REQUEST)
        for cut in itertools.count(1):
            assert session.receive(data[:cut]) == (REQUEST if cut >= len(data) else b"")
            if cut >= len(data):
                break
            session = TlsSession(contexts, MovedSession.from_json(session.move().to_json()))
            assert session.receive(data[cut:]) == REQUEST
            assert client.receive(session.send(RESPONSE)) == RESPONSE
            data = client.send(REQUEST)

    def test_an_offer_that_is_withdrawn(self, contexts: Contexts) -> None:
        session, client = TlsSession(contexts), Client()
        shake_hands(session, client)
        session.move()
        assert state(session) is MOVED
        assert not session.can_move
        assert session.receive(b"kept by the caller") == b""
        assert session.close_notify() == b""
        with pytest.raises(RuntimeError, match="moved"):
            session.send(b"anything")
        with pytest.raises(RuntimeError, match="cannot move"):
            session.move()
        session.unmove()
        talk(session, client)

    def test_tls_1_2_cannot(self, contexts: Contexts) -> None:
        session, client = TlsSession(contexts), Client(client_context(ssl.TLSVersion.TLSv1_2))
        shake_hands(session, client)
        with pytest.raises(RuntimeError, match="cannot move: it is open"):
            session.move()

    def test_not_while_something_is_to_be_written(self, contexts: Contexts) -> None:
        session, client = open_session(contexts)
        session.receive(client.sealer.seal_key_update(True))
        assert not session.can_move
        session.take_outgoing()
        assert session.can_move

    def test_secrets_are_not_shown(self, contexts: Contexts) -> None:
        session, _ = open_session(contexts)
        moved = session.move()
        shown = repr(moved) + str(moved)
        assert moved.read_secret.hex() not in shown
        assert repr(moved.read_secret) not in shown
        assert repr(moved.write_secret) not in shown
        assert repr(moved.info) in shown

    def test_a_record_of_another_format_is_refused(self, contexts: Contexts) -> None:
        session, _ = open_session(contexts)
        values = session.move().to_json()
        assert MovedSession.from_json({**values, "later": 1, "info": {**values["info"], "later": 1}})
        with pytest.raises(ValueError, match="format 2"):
            MovedSession.from_json({**values, "format": 2})


def test_a_client_with_little_memory(contexts: Contexts) -> None:
    """What is agreed on in the handshake about the size of records holds for ours, also after a move (RFC 8449)."""
    session, client = open_session(contexts)
    moved = session.move()
    small = MovedSession.from_json({**moved.to_json(), "max_fragment": 512})
    session = TlsSession(contexts, small)
    opened = client.open(session.send(b"x" * 1000))
    assert [len(content) for _, content in opened] == [512, 488]
    opened = client.open(b"".join(session.send_pieces((b"x" * 500, b"x" * 1000))))
    assert [len(content) for _, content in opened] == [512, 512, 476]
    opened = client.open(b"".join(session.send_pieces((b"x" * 700, b"x" * 10))))
    assert [len(content) for _, content in opened] == [512, 198]
    assert session.move().max_fragment == 512


def test_the_table_of_states() -> None:
    assert set(TRANSITIONS) == set(TlsState)
