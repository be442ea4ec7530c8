"""The request that asks for a WebSocket: the scope that its application is called with, and how logs name it.

It owns what is known of the client before the handshake is answered, that the response is counted and logged, and how
long all took. It must not know the connection's life, nor what is sent over it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from bisect import bisect_left
from typing import Any, Final

from serve_asgi.http.forwarded import Forwarded
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.request_head import Head
from serve_asgi.http.request_receive import ASGI_VERSION
from serve_asgi.http.response import CLIENT_GONE
from serve_asgi.http.survival_record import head_bytes
from serve_asgi.http.underlying_tls import TlsDetails, tls_extension
from serve_asgi.http.worker_context import Message, Scope, WorkerContext
from serve_asgi.ipc.peer_address import Address
from serve_asgi.ipc.scoreboard import DURATION_BOUNDS, WEBSOCKET_BOUNDS, Cell
from serve_asgi.logs.access_log import LoggedTls
from serve_asgi.logs.exceptions import exc_info, was_told
from serve_asgi.logs.request_ids import named, of_request, traceparent
from serve_asgi.logs.server_log import about

WEBSOCKET_SPEC_VERSION: Final = "2.4"
"""Of the WebSocket part of ASGI: from 2.4 on, send() after the client has gone raises an OSError."""

REQUESTS: Final = int(Cell.REQUESTS)
STATUS_1XX: Final = int(Cell.STATUS_1XX)

_log: Final = logging.getLogger("serve.error")


class WebSocketRequest:
    """One request; to the access log a `serve_asgi.logs.access_log.LoggedResponse`."""

    __slots__ = (
        "_begun",
        "_forwarded",
        "_identity",
        "_peer",
        "_scheme",
        "_server",
        "_tls",
        "_worker",
        "answered",
        "client",
        "head",
        "opened",
        "status",
        "subprotocol",
    )

    def __init__(
        self,
        worker: WorkerContext,
        head: Head,
        client: Address,
        server: Address,
        scheme: str,
        forwarded: Forwarded | None,
        tls: TlsDetails | None = None,
    ) -> None:
        """`scheme` and `tls` are the connection's; `forwarded` is what trusted proxies say of the request."""
        self._worker = worker
        self._begun = time.perf_counter()
        self.head = head
        self.client = client if forwarded is None else forwarded.client
        """Whose request it is."""
        self._peer = client
        self._server = server
        self._scheme = scheme
        self._tls = tls
        self._forwarded = forwarded
        self._identity = ""
        self.answered = False
        """Whether it has got its response: the 101 or a whole HTTP response."""
        self.status = 0
        """Of that response; 0 if there was none."""
        self.opened = 0.0
        """When it was accepted, in whichever worker (CLOCK_MONOTONIC, s), or 0."""
        self.subprotocol: str | None = None
        """What was agreed on with it."""

    def scope(self, subprotocols: list[str], number: int, survival: dict[str, Any]) -> Scope:
        """ASGI www, "WebSocket Connection Scope", with the subprotocols that the client offers.

        `number` is the connection's, `survival` what is said of an earlier life.
        """
        head, worker = self.head, self._worker
        root_path = worker.root_path
        path, raw_path = head.text, head.path
        if root_path and not (path + "/").startswith(root_path + "/"):
            # A proxy may or may not have taken the mount point off; the application always sees the whole path.
            path = root_path + path
            raw_path = worker.raw_root_path + raw_path
        headers = head.headers.copy()  # the head is shared with equal requests
        if worker.request_ids.generates:
            self._identity = worker.request_ids.keep_or_generate(headers)
        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": ASGI_VERSION, "spec_version": WEBSOCKET_SPEC_VERSION},
            "http_version": head.version,
            "scheme": "wss" if self._scheme == "https" else "ws",
            "path": path,
            "raw_path": raw_path,
            "query_string": head.query,
            "root_path": root_path,
            "headers": headers,
            "client": self.client,
            "server": self._server,
            "subprotocols": subprotocols,
            "state": worker.state.copy(),
            "extensions": {
                "serve": {"generation": worker.generation, "slot": worker.slot, "connection": number},
                "websocket.http.response": {},
                "serve.survive": survival,
            },
        }
        if self._tls is not None:
            scope["extensions"]["tls"] = tls_extension(self._tls)
        if self._forwarded is not None:
            self._forwarded.apply(scope)
        return scope

    def own_lines(self, message: Message) -> bytes:
        """The server's own headers of the response: with the request's id, where that is echoed."""
        worker, identity = self._worker, self._identity
        ids, given = worker.request_ids, message.get("headers") or ()
        if not ids.echoes or any(bytes(name).lower() == ids.name for name, _ in given):
            return worker.default_headers
        return worker.default_headers + b"%b: %b\r\n" % (ids.name, identity.encode())

    def moved_head(self) -> bytes:
        """The head for another life, in which it is the same request to the application and in the logs."""
        return head_bytes(self.head, self._worker.request_ids.name, self._identity)

    def hand_over_record(self, leftover: bytes, trusted: bool) -> HandOverRecord:
        """What is known of the connection, which survives."""
        record = HandOverRecord(leftover, self._peer, self._server, math.inf, 1, self._scheme, trusted)
        return dataclasses.replace(record, survives=True)

    def report(self, what: str, event: str, error: BaseException | None = None) -> None:
        """Log what the application did wrong, and at which request."""
        path = self.head.path.decode("latin-1")
        request_id, trace = self.identity(), traceparent(self.head.headers)
        _log.error(
            "The application %s the WebSocket %s%s",
            what,
            path,
            named(request_id, trace),
            exc_info=None if error is None or was_told(error) else exc_info(error),
            extra=about(event, **of_request(self.head.method, path, request_id, trace)),
        )

    def count(self, status: int, size: int) -> None:
        """Count and log the response; status 0: nobody has had a whole one."""
        self.answered, self.status = True, status
        worker = self._worker
        worker.cells[REQUESTS] += 1
        if status:
            worker.cells[STATUS_1XX + status // 100 - 1] += 1
        if worker.access_log is not None:
            worker.access_log.record(self.client, self.head, status or CLIENT_GONE, size, self._begun, self)

    def count_opened(self, status: int) -> None:
        """The application has accepted: count that, and how long it took."""
        self.count(status, 0)
        self.opened = time.monotonic()
        took, cells = time.perf_counter() - self._begun, self._worker.cells
        cells[Cell.WEBSOCKETS_OPENED] += 1
        cells[Cell.WEBSOCKET_ACCEPT_TOTAL] += int(took * 1e9)
        cells[Cell.WEBSOCKET_ACCEPT_0 + bisect_left(DURATION_BOUNDS, took)] += 1

    def opened_elsewhere(self, record: dict[str, Any]) -> None:
        """It has survived another worker, which may be of a version that does not say when it was accepted.

        Raises TypeError or ValueError if that is no number.
        """
        now, opened = time.monotonic(), float(record.get("opened", 0.0))
        self.opened = opened if 0.0 < opened <= now else now

    def count_ended(self) -> None:
        """An open WebSocket has ended: count how long it was open."""
        took, cells = time.monotonic() - self.opened, self._worker.cells
        cells[Cell.WEBSOCKET_TIME_TOTAL] += int(took * 1e9)
        cells[Cell.WEBSOCKET_TIME_0 + bisect_left(WEBSOCKET_BOUNDS, took)] += 1

    # What some formats of the access log ask for

    def peer(self) -> Address:
        """Who is connected."""
        return self._peer

    def client_scheme(self) -> str:
        """What the client speaks."""
        said = None if self._forwarded is None else self._forwarded.secure
        secure = self._scheme == "https" if said is None else said
        return "wss" if secure else "ws"

    def tls(self) -> LoggedTls | None:
        """What was negotiated."""
        return self._tls

    def identity(self) -> str:
        """The request's id, or ""."""
        return self._identity or self._worker.request_ids.carried(self.head.headers)

    def response_header(self, name: bytes) -> bytes:
        """Not kept for WebSockets."""
        return b""
