"""Responses of the server's own to what it does not serve: a request that is none, and one too many.

It owns their bytes, and that they are counted and logged. It must not know the connection, nor why a request is
refused: the verdicts are those of `request_head`, `request_buffer`, `request_body` and `timeouts`.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

from serve_asgi.http.request_head import BadRequest, Head
from serve_asgi.http.response_head import CLOSE, plain_response
from serve_asgi.http.underlying_tls import UnderlyingTls
from serve_asgi.http.worker_context import WorkerContext
from serve_asgi.ipc.peer_address import Address
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.access_log import LoggedRequest, RefusedRequest, ServerResponse

TIMED_OUT: Final = "The request took too long.\n"
RETRY_AFTER: Final = 1
"""Seconds after which a client that found the worker overloaded may come again."""

_REQUESTS: Final = int(Cell.REQUESTS)
_STATUS: Final = int(Cell.STATUS_1XX) - 1
_REFUSED: Final = int(Cell.REFUSED)
_EXCUSED_5XX: Final = int(Cell.EXCUSED_5XX)


class RefusedClient(Protocol):
    """The connection of a client, as far as a line of the access log needs it."""

    @property
    def client(self) -> Address: ...
    @property
    def scheme(self) -> str: ...
    @property
    def tls(self) -> UnderlyingTls | None: ...


def bad_request(worker: WorkerContext, client: RefusedClient, refused: BadRequest, with_body: bool = True) -> bytes:
    """The response to what could not be served; the connection ends after it."""
    text = refused.reason + "\n"
    _count(worker, client, RefusedRequest(), refused.status, len(text) if with_body else 0)
    return plain_response(refused.status, text, worker.default_headers, CLOSE, with_body)


def bad_body(worker: WorkerContext, head: Head, refused: BadRequest) -> bytes:
    """The response to `head`, whose body could not be read; the caller counts and logs it with its response."""
    return plain_response(refused.status, refused.reason + "\n", worker.default_headers, CLOSE, head.method != "HEAD")


def timed_out(worker: WorkerContext, head: Head) -> bytes:
    """The response to `head`, which took too long; the caller counts and logs it with its response."""
    return plain_response(503, TIMED_OUT, worker.default_headers, CLOSE, head.method != "HEAD")


def overloaded(worker: WorkerContext, client: RefusedClient, head: Head, close: bool) -> bytes:
    """The response to `head`: as many requests are in progress as the worker takes, and it may come again soon."""
    lines = (CLOSE if close else worker.keep_alive_lines) + b"retry-after: %d\r\n" % RETRY_AFTER
    text, with_body = "The server is busy; try again soon.\n", head.method != "HEAD"
    _count(worker, client, head, 503, len(text) if with_body else 0)
    return plain_response(503, text, worker.default_headers, lines, with_body)


def _count(worker: WorkerContext, client: RefusedClient, request: LoggedRequest, status: int, size: int) -> None:
    worker.cells[_REQUESTS] += 1
    worker.cells[_STATUS + status // 100] += 1
    worker.cells[_REFUSED] += 1
    if status >= 500:
        worker.cells[_EXCUSED_5XX] += 1
    if worker.access_log is not None:
        tls = None if client.tls is None else client.tls.info
        response = ServerResponse(client.client, client.scheme, tls)
        worker.access_log.record(client.client, request, status, size, time.perf_counter(), response)
