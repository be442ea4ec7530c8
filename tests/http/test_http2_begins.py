"""HTTP/2 in clear text with prior knowledge, on a connection that HTTP/1.1 has accepted."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from h2.connection import H2Connection

from serve_asgi.http.worker_context import Receive, Scope, Send
from tests.connection_server import TIMEOUT
from tests.http.http_server import HttpServer, echo

Serve = Callable[..., HttpServer]

FIELDS = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")]


def client() -> H2Connection:
    core = H2Connection()
    core.initiate_connection()
    return core


def test_a_preface_that_comes_byte_by_byte(serve: Serve) -> None:
    """Whoever reads it, HTTP/1.1 or HTTP/2: the server's SETTINGS are the answer."""
    core = client()
    connection = serve(echo).connect()
    for byte in core.data_to_send():
        connection.send(bytes((byte,)))
    assert core.receive_data(connection.read(9 + 6 * 5))


@pytest.mark.parametrize("end", [False, True], ids=["with more to come", "whole"])
def test_the_application_hears_of_a_reset_that_comes_with_the_request(serve: Serve, end: bool) -> None:
    told = threading.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        told.set()

    core = client()
    core.send_headers(1, FIELDS, end_stream=end)
    core.reset_stream(1)
    server = serve(wait)
    server.connect().send(core.data_to_send())
    assert told.wait(TIMEOUT)
