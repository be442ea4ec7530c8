"""One TLS connection of a client, from its first byte to its end, without a socket: bytes in, bytes and content out.

Theory of operation
-------------------
Whose duty is what:

- **OpenSSL does every handshake** (`handshake.py`, `openssl_connection.py`): versions, key exchange, certificates,
  signatures, tickets, and everything that can be got wrong with them. TLS 1.2 stays with it to the end.
- **After a handshake of TLS 1.3 OpenSSL is let go.** Its key log (`key_log.py`) has told the two traffic secrets, and
  what is left of the protocol is small: records that are sealed and opened by the AEADs of `cryptography`
  (`record_protection.py`), KeyUpdate, and alerts. A connection of TLS 1.3 is thus a few numbers, which OpenSSL would
  not give away; an idle one takes a third of the memory, and it can go on in another process.
- **This module** keeps the state of the connection, in which every combination of the above looks the same.
- **The caller** moves bytes: what `receive` returns is the application's; what `send`, `take_outgoing` and
  `close_notify` return must be written, all of it, in the order in which it was returned. It enforces the deadlines.
  An end of the transport without `peer_closed` is a truncation, and what has no end of its own is then not whole
  (RFC 8446 6.1).

What travels in a move (`MovedSession`): the suite, the current secret and the sequence number of each direction, what
has come of a record or of a handshake message that is not whole, and what was negotiated. Of the secrets before a
KeyUpdate nothing travels, as nothing can be done with them. The counts of `record_floods.py` begin anew.

Why that is safe:

- A nonce of an AEAD must never be used twice with one key. It is made of the sequence number, which goes up with each
  record that is sealed, and one process seals at a time: after `move` this object neither seals nor opens, unless
  the offer was withdrawn (`unmove`) before the other side may have begun. That is the rule of the hand-over itself:
  never two readers.
- A record that is opened was sealed by the client for this place in this connection: the sequence number is in the
  nonce. If a move went wrong by a single record, the next one would not open, and the connection would end with
  bad_record_mac; content cannot be lost, doubled or exchanged unnoticed.
- The sequence numbers with which we begin are not guessed: see `handshake.py`. Were they wrong, the same would happen.
- The secrets are in the memory of processes of this server, which run as one user, and nowhere else.
- No key is used for more records than RFC 8446 5.5 allows: a KeyUpdate of ours comes before that, and one is requested
  from the client.

What TLS 1.3 has and this server does not: 0-RTT, client certificates after the handshake, renegotiation. OpenSSL offers
the first two to no client; any handshake message but KeyUpdate after the handshake ends the connection.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

from serve_asgi.tls.alerts import FATAL, WARNING, Alert, TlsFailure, received
from serve_asgi.tls.handshake import HandshakeContexts, OwnRecords, TlsHandshake
from serve_asgi.tls.moved_session import MovedSession, TlsInfo
from serve_asgi.tls.openssl_connection import OpenSslConnection
from serve_asgi.tls.record_floods import THIN, RecordFloods
from serve_asgi.tls.record_protection import (
    ALERT,
    APPLICATION_DATA,
    HANDSHAKE,
    KEY_UPDATE,
    NO_RECORD,
    SHORTEST,
    SUITES,
    RecordError,
    RecordOpener,
    RecordSealer,
)

KEY_UPDATE_HEAD: Final = bytes((KEY_UPDATE, 0, 0, 1))
"""Its type and its length."""


class TlsState(enum.Enum):
    """Where the connection is in its life."""

    HANDSHAKING = "handshaking"
    OPEN = "open"
    CLOSING = "closing"  # our close_notify is sent; content may come until the client's own
    MOVED = "moved"  # another process goes on with it, unless the offer is withdrawn
    CLOSED = "closed"
    FAILED = "failed"  # `failure` says why; an alert may be among the outgoing bytes


# Bound once: an attribute of an enum costs a lookup for each read.
HANDSHAKING: Final = TlsState.HANDSHAKING
OPEN: Final = TlsState.OPEN
CLOSING: Final = TlsState.CLOSING
MOVED: Final = TlsState.MOVED
CLOSED: Final = TlsState.CLOSED
FAILED: Final = TlsState.FAILED

TRANSITIONS: Final[dict[TlsState, frozenset[TlsState]]] = {
    HANDSHAKING: frozenset((OPEN, CLOSED, FAILED)),
    OPEN: frozenset((CLOSING, MOVED, CLOSED, FAILED)),
    CLOSING: frozenset((CLOSED, FAILED)),
    MOVED: frozenset((OPEN,)),
    CLOSED: frozenset(),
    FAILED: frozenset(),
}
"""The only ways from state to state."""


class TlsSession:
    """The server's side of one TLS connection."""

    __slots__ = (
        "_asked",
        "_floods",
        "_handshake",
        "_message",
        "_moved",
        "_opener",
        "_openssl",
        "_outgoing",
        "_owes_key_update",
        "_sealer",
        "failure",
        "has_outgoing",
        "holds_half_a_record",
        "info",
        "peer_closed",
        "state",
    )

    def __init__(self, contexts: HandshakeContexts | None, moved: MovedSession | None = None) -> None:
        """A new connection, or one that another process has given up (`moved`), for which no `contexts` are needed.

        Raises KeyError for a moved one with a cipher suite that this version does not know.
        """
        self.state = HANDSHAKING
        self.info: TlsInfo | None = None
        """What was negotiated, once the connection is open."""
        self.failure: TlsFailure | None = None
        """Why the connection has failed: in the state FAILED only."""
        self.peer_closed = False
        """The client's close_notify has come: nothing more will, and what has come is whole."""
        self.has_outgoing = False
        """`take_outgoing` has something to write."""
        self.holds_half_a_record = False
        """The beginning of a record has come, and not its end; or, where OpenSSL reads them, something of which nothing
        could be read."""
        self._outgoing = b""
        self._handshake: TlsHandshake | None = None
        self._openssl: OpenSslConnection | None = None
        self._opener: RecordOpener | None = None  # None if nothing can come: not yet, or no more
        self._sealer: RecordSealer | None = None  # None if nothing can be sent
        self._moved: tuple[RecordOpener, RecordSealer] | None = None
        self._message = b""
        self._owes_key_update = False
        self._asked = False
        self._floods = RecordFloods()
        if moved is None:
            assert contexts is not None
            self._handshake = TlsHandshake(contexts)
        else:
            suite = SUITES[moved.suite]
            self._opener = RecordOpener(suite, moved.read_secret, moved.read_sequence, moved.partial)
            self._sealer = RecordSealer(suite, moved.write_secret, moved.write_sequence, moved.max_fragment)
            self._begin_message(self._opener, moved.message)
            self.holds_half_a_record = self._opener.holds_part
            self.info = moved.info
            self.state = OPEN

    # ---- what comes in

    def receive(self, data: bytes) -> bytes:
        """The content that can be read now; b"" if there is none, or no more (`peer_closed`, `failure`).

        What the client does wrong raises nothing: it ends the connection, after the content that was right.
        """
        opener = self._opener
        if opener is not None:
            return opener.open_whole(data) or self._receive_records(opener, data)
        if self._handshake is not None:
            return self._receive_handshake(self._handshake, data)
        if self._openssl is not None:
            self._openssl.feed(data)
            content = self._read_openssl(self._openssl)
            self.holds_half_a_record = not content and self._openssl is not None
            return content
        return b""

    def _receive_handshake(self, handshake: TlsHandshake, data: bytes) -> bytes:
        handshake.receive(data)
        self._write_later(handshake.take_outgoing())
        outcome = handshake.outcome
        if outcome is None:
            return b""
        self._handshake = None
        if isinstance(outcome, TlsFailure):
            self._become(FAILED)
            self.failure = outcome
            return b""
        self.info = handshake.info
        self._become(OPEN)
        if isinstance(outcome, OwnRecords):
            suite = SUITES[outcome.suite]
            self._sealer = RecordSealer(suite, outcome.server_secret, outcome.write_sequence, outcome.max_fragment)
            self._opener = RecordOpener(suite, outcome.client_secret)
            return self._receive_records(self._opener, outcome.unread)
        self._openssl = outcome
        return self._read_openssl(outcome)

    def _read_openssl(self, connection: OpenSslConnection) -> bytes:
        content, failure = connection.read()
        self._write_later(connection.take_outgoing())
        if failure is not None:
            self._openssl = None
            self._become(FAILED)
            self.failure = failure
        elif connection.peer_closed and not self.peer_closed:
            self._peer_has_closed()
        return content

    def _receive_records(self, opener: RecordOpener, data: bytes) -> bytes:
        """Any bytes of records, of any kind."""
        contents = []
        opener.feed(data)
        try:
            while not self.peer_closed and (record := opener.open_next()) is not None:
                kind, content = record
                if kind == APPLICATION_DATA:
                    if self._message:
                        raise RecordError(
                            Alert.UNEXPECTED_MESSAGE, "the client sent content within a handshake message"
                        )
                    if len(content) < THIN:
                        self._count_thin(opener, content)
                    if content:
                        contents.append(content)
                else:
                    self._control(opener, kind, content)
                if opener.sequence >= opener.limit:
                    self._request_key_update(opener)
        except RecordError as error:
            self._fail(error)
        if self._owes_key_update and self._sealer is not None:
            self._owes_key_update = False
            self._write_later(self._sealer.seal_key_update(False))
        self.holds_half_a_record = self._opener is not None and opener.holds_part
        return contents[0] if len(contents) == 1 else b"".join(contents)

    def _count_thin(self, opener: RecordOpener, content: bytes) -> None:
        if content:
            self._floods.count_thin(opener.sequence - 1)
        else:
            self._floods.count_control(opener.sequence - 1)

    def _request_key_update(self, opener: RecordOpener) -> None:
        """The client has used its key as often as is good (RFC 8446 5.5): it is asked, once, for the next one."""
        opener.limit = 1 << 64
        if self._sealer is not None:
            self._owes_key_update = False
            self._write_later(self._sealer.seal_key_update(True))

    def _control(self, opener: RecordOpener, kind: int, content: bytes) -> None:
        """A record that is not for the application."""
        if kind not in (HANDSHAKE, ALERT):
            raise RecordError(Alert.UNEXPECTED_MESSAGE, f"the client sent a record of an unknown type ({kind})")
        if not content:  # RFC 8446 5.1
            raise RecordError(Alert.UNEXPECTED_MESSAGE, "the client sent an empty alert or handshake message")
        self._floods.count_control(opener.sequence - 1)
        if kind == ALERT:
            self._alert(content)
        else:
            self._begin_message(opener, self._message + content)
            self._read_message(opener)

    def _begin_message(self, opener: RecordOpener, message: bytes) -> None:
        """So much has come of a handshake message, which no other record may interrupt (RFC 8446 5.1)."""
        self._message = message
        opener.shortest_whole = NO_RECORD if message else SHORTEST

    def _alert(self, content: bytes) -> None:
        """RFC 8446 6: the level means nothing; an alert is either one of two, or the end."""
        if self._message:
            raise RecordError(Alert.UNEXPECTED_MESSAGE, "the client sent an alert within a handshake message")
        if len(content) != 2:
            raise RecordError(Alert.DECODE_ERROR, f"the client sent an alert of {len(content)} bytes")
        number = content[1]
        if number == Alert.CLOSE_NOTIFY:
            self._peer_has_closed()
        elif number != Alert.USER_CANCELED:
            raise PeerFailed(number)

    def _read_message(self, opener: RecordOpener) -> None:
        """Handshake messages, of which KeyUpdate is the only one that a client may send (RFC 8446 4.6.3)."""
        message = self._message
        if message[0] != KEY_UPDATE:
            raise RecordError(
                Alert.UNEXPECTED_MESSAGE, f"the client sent a handshake message after the handshake (type {message[0]})"
            )
        if not KEY_UPDATE_HEAD.startswith(message[:4]):
            raise RecordError(Alert.DECODE_ERROR, "the client sent a KeyUpdate of a wrong length")
        if len(message) < 5:
            return
        if message[4] > 1:
            raise RecordError(Alert.ILLEGAL_PARAMETER, f"the client sent a KeyUpdate with the value {message[4]}")
        if len(message) > 5:  # RFC 8446 5.1: no message spans a change of keys
            raise RecordError(Alert.UNEXPECTED_MESSAGE, "the client sent something behind a KeyUpdate in one record")
        self._begin_message(opener, b"")
        self._floods.new_generation(opener.sequence)
        opener.next_generation()
        if message[4]:
            self._owes_key_update = True  # one is enough for all that are requested until it is sealed

    def _peer_has_closed(self) -> None:
        self.peer_closed = True
        self._opener = None
        if self.state is CLOSING:
            self._openssl = None
            self._become(CLOSED)

    # ---- what goes out

    def send(self, data: bytes | bytearray | memoryview) -> bytes:
        """The records of this content, with whatever else is to be written before them.

        Raises RuntimeError if the connection is not open.
        """
        sealer = self._sealer
        if sealer is not None:
            return self.take_outgoing() + sealer.seal(data) if self.has_outgoing else sealer.seal(data)
        if self.state is not OPEN or self._openssl is None:
            raise RuntimeError(f"nothing can be sent on a TLS connection that is {self.state.value}")
        return self.take_outgoing() + self._openssl.write(data)

    def send_pieces(self, pieces: Sequence[bytes | bytearray | memoryview]) -> list[bytes]:
        """As `send`, for content whose last piece is long: the records, in pieces that are to be written as one."""
        sealer = self._sealer
        if sealer is None:
            return [self.send(b"".join(pieces))]
        records = sealer.seal_long(pieces[-1], b"".join(pieces[:-1]))
        return [self.take_outgoing(), *records] if self.has_outgoing else records

    def take_outgoing(self) -> bytes:
        """Flights of the handshake, alerts and KeyUpdates, which must be written before what `send` returns next."""
        outgoing, self._outgoing = self._outgoing, b""
        self.has_outgoing = False
        return outgoing

    def close_notify(self) -> bytes:
        """Our close_notify, with whatever is to be written before it; nothing can be sent afterwards.

        What the client sends until its own close_notify can still be received. b"" if there is nothing to close.
        """
        if self.state is HANDSHAKING:
            self._handshake = None
            self._become(CLOSED)
        if self.state is OPEN:
            if self._sealer is not None:
                self._write_later(self._sealer.seal_one(bytes((WARNING, Alert.CLOSE_NOTIFY)), ALERT))
                self._sealer = None
            elif self._openssl is not None:
                self._write_later(self._openssl.close_notify())
            self._become(CLOSED if self.peer_closed else CLOSING)
        return self.take_outgoing()

    def _write_later(self, data: bytes) -> None:
        if data:
            self._outgoing += data
            self.has_outgoing = True

    def _fail(self, error: RecordError) -> None:
        """End the connection for what the client has sent."""
        if isinstance(error, PeerFailed):
            self.failure = received(error.number)
        else:
            if self._sealer is not None:
                self._write_later(self._sealer.seal_one(bytes((FATAL, error.alert)), ALERT))
            self.failure = TlsFailure(error.reason, alert_sent=error.alert if self._sealer is not None else None)
        self._opener = self._sealer = None
        self._become(FAILED)

    def _become(self, state: TlsState) -> None:
        assert state in TRANSITIONS[self.state], f"a TLS connection that is {self.state} cannot be {state}"
        self.state = state

    # ---- the move

    @property
    def can_move(self) -> bool:
        """Whether another process could go on from here: TLS 1.3, open on both sides, nothing of ours to be written."""
        return self._sealer is not None and self._opener is not None and not self.has_outgoing and self.state is OPEN

    @property
    def stays_with_openssl(self) -> bool:
        """Whether OpenSSL speaks it to the end, so that it can never move: of a connection that is open."""
        return self._openssl is not None

    def move(self) -> MovedSession:
        """All that another process needs; this object must not be used any more, unless `unmove` says otherwise.

        Raises RuntimeError if the connection cannot move.
        """
        opener, sealer, info = self._opener, self._sealer, self.info
        if not self.can_move or opener is None or sealer is None or info is None:
            raise RuntimeError(f"this TLS connection cannot move: it is {self.state.value}")
        self._become(MOVED)
        self._moved = opener, sealer
        self._opener = self._sealer = None
        return MovedSession(
            suite=info.cipher_suite,
            read_secret=opener.secret,
            read_sequence=opener.sequence,
            write_secret=sealer.secret,
            write_sequence=sealer.sequence,
            info=info,
            partial=opener.partial,
            message=self._message,
            max_fragment=sealer.max_fragment,
        )

    def unmove(self) -> None:
        """The offer is withdrawn, and nobody has read or written anything since: go on here."""
        self._become(OPEN)
        assert self._moved is not None
        (self._opener, self._sealer), self._moved = self._moved, None


class PeerFailed(RecordError):
    """The client has ended the connection with an alert."""

    def __init__(self, number: int) -> None:
        super().__init__(Alert.CLOSE_NOTIFY, "")
        self.number = number
