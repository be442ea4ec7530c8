"""What a connection begins with, or goes on with: the first protocol of each transport of a client.

It owns the choice between HTTP, a TLS handshake, a PROXY protocol header, and a connection of another worker's in any
of these states. Rule: who has no TLS pays nothing for it, not even the import. It must not know sockets, nor what any
of these protocols do.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from typing import TYPE_CHECKING, Any

from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.proxy_protocol_connection import Balancers, ProxyConnection
from serve_asgi.http.survival_record import SurvivalRecord
from serve_asgi.http.underlying_tls import TlsDetails
from serve_asgi.http.worker_context import WorkerContext
from serve_asgi.ipc import packets
from serve_asgi.ipc.peer_address import Address
from serve_asgi.logs.server_log import about
from serve_asgi.websocket.connection import next_life

if TYPE_CHECKING:
    from serve_asgi.tls.server_contexts import ServerContexts
    from serve_asgi.worker.tls_handshakes import TlsHandshakes

log = logging.getLogger("serve")


class ConnectionOpening:
    """Of one worker."""

    def __init__(self, worker: WorkerContext, contexts: ServerContexts | None) -> None:
        """`contexts` are for the addresses that speak TLS; None if there are none."""
        self._worker = worker
        self._balancers = Balancers(worker) if worker.config.proxy_protocol else None
        if worker.config.http2 == "on":  # now, and not while the first client of it waits
            importlib.import_module("serve_asgi.http2.connection")
        self._handshakes: TlsHandshakes | None = None
        if contexts is not None:
            from serve_asgi.worker.tls_handshakes import TlsHandshakes

            self._handshakes = TlsHandshakes(worker, contexts)

    def accepted(self, client: Address, server: Address, secure: bool) -> asyncio.Protocol:
        """The protocol of a client that was accepted; `secure`: at an address that speaks TLS."""
        connection: Any
        if self._balancers is not None:
            connection = ProxyConnection(self._worker, self._balancers, None, self.follow, secure)
        elif secure and self._handshakes is not None:
            connection = self._handshakes.connection()
        else:
            connection = Http1Connection(self._worker)
        connection.client, connection.server = client, server
        return connection  # type: ignore[no-any-return]

    def arrived(self, record: HandOverRecord) -> asyncio.Protocol:
        """The protocol of a connection that another worker has handed over, and that this one `understands`."""
        if record.awaits_proxy:  # also where --proxy-protocol has been taken away since: its header has begun to come
            balancers = self._balancers or Balancers(self._worker)
            return ProxyConnection(self._worker, balancers, record, self.follow, record.awaits_tls)
        if record.tls is None:
            return self._above(record, None)
        from serve_asgi.tls.moved_session import MovedSession
        from serve_asgi.tls.session import TlsSession
        from serve_asgi.tls.transport import TlsTransport

        session = TlsSession(None, MovedSession.from_json(record.tls))
        return TlsTransport(session, self._above(record, session.info))

    def _above(self, record: HandOverRecord, tls: TlsDetails | None) -> asyncio.Protocol:
        """HTTP, or what the connection has become."""
        if record.http2 is not None:
            from serve_asgi.http2.connection import Http2Connection

            return Http2Connection(self._worker, record)
        if not record.survives:
            return Http1Connection(self._worker, record)
        survival = SurvivalRecord.from_bytes(record.leftover)
        if survival.websocket is None:
            return Http1Connection(self._worker, record, survival)
        return next_life(self._worker, record, survival, tls)

    def understands(self, record: HandOverRecord) -> bool:
        """Whether this worker can go on with a connection that another one offers."""
        if record.awaits_tls and self._handshakes is None:
            return False
        if record.http2 is not None and not self._understands_http2(record.http2):
            return False
        if record.tls is None:
            return True
        from serve_asgi.tls.moved_session import MovedSession
        from serve_asgi.tls.session import TlsSession

        try:
            TlsSession(None, MovedSession.from_json(record.tls))
        except (LookupError, ValueError) as error:
            log.warning("refused a TLS connection of another worker: %s", error, extra=about("handover_refused"))
            return False
        return True

    def _understands_http2(self, state: dict[str, Any]) -> bool:
        if self._worker.config.http2 == "off":
            return False
        from serve_asgi.http.h2.connection_core import ConnectionCore
        from serve_asgi.http.h2.connection_value import import_connection

        try:
            packets.check_http2_state(state)
            import_connection(ConnectionCore(self._worker.config.max_head_size, lambda head: None), state)
        except (LookupError, TypeError, ValueError) as error:
            log.warning("refused an HTTP/2 connection of another worker: %s", error, extra=about("handover_refused"))
            return False
        return True

    def follow(self, record: HandOverRecord, secure: bool) -> asyncio.Protocol:
        """The protocol behind a PROXY protocol header."""
        if secure and self._handshakes is not None:
            return self._handshakes.connection(record)
        return Http1Connection(self._worker, record)
