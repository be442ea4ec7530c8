"""The transport of a TLS connection, where only its own part is asked: what can move."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.ipc.packets import FROM_SENDER, Offer, members
from serve_asgi.tls.moved_session import TLS_1_3, MovedSession, TlsInfo
from serve_asgi.tls.session import TlsSession
from serve_asgi.tls.transport import MOST_CERTIFICATES, TlsTransport


def transport(*certificates: str) -> TlsTransport:
    """One of a client that has shown these certificates."""
    info = TlsInfo(TLS_1_3, 0x1301, "TLS_AES_128_GCM_SHA256", client_certificates=certificates)
    moved = MovedSession(0x1301, os.urandom(32), 1, os.urandom(32), 2, info)
    return TlsTransport(TlsSession(None, moved), asyncio.Protocol())


@pytest.mark.parametrize("certificates", [(), ("c" * 2000,) * 3, ("c" * MOST_CERTIFICATES,), ("c" * 700,) * 90])
def test_what_travels_fits_into_a_packet_and_is_understood(certificates: tuple[str, ...]) -> None:
    tls = transport(*certificates)
    assert tls.can_move()
    assert not tls.stays()
    record = HandOverRecord(b"h" * 65536, ("192.0.2.1", 1), None, 1.0, 1, "https", tls=tls.move().to_json())
    packet = json.dumps({"type": "offer", "offer": 1, "record": record.to_json()}).encode()
    assert len(packet) < 212_960
    offer = FROM_SENDER.decode(packet)
    assert isinstance(offer, Offer)
    arrived = HandOverRecord.from_json(members(offer.record))
    assert arrived.tls is not None
    assert MovedSession.from_json(arrived.tls).info.client_certificates == certificates


def test_a_client_with_too_many_certificates_stays_where_it_is() -> None:
    """What does not fit would be offered again and again, and nobody behind it."""
    tls = transport("c" * MOST_CERTIFICATES, "c")
    assert not tls.can_move()
    assert tls.stays()
