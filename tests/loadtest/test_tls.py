"""The strict client over TLS, against a server that ends its connections in each way that TLS tells apart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from pathlib import Path

import pytest

from loadtest.client import UNANNOUNCED, Client, Load
from loadtest.kinds import post
from loadtest.ledger import Cause, Ledger, Left
from loadtest.tls import VERSIONS, Certificate, ClientTls, make_certificate, renew
from tests.loadtest.test_connection import Script, keeping, right, saying

HEAD = b"HTTP/1.0 200 OK\r\nx-id: 1\r\nx-pid: 7\r\nx-generation: 1\r\n\r\n"
"""Of a response that ends with the connection."""
BODY = post(1, b"").answer


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(params=list(VERSIONS))
def client(request: pytest.FixtureRequest, certificate: Certificate) -> ClientTls:
    return ClientTls(certificate, request.param)


def serving(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.path, certificate.key)
    return context


def exchange(
    script: Script,
    certificate: Certificate,
    shared: ClientTls,
    requests: int = 1,
    connections: int = 1,
    close: bool = False,
) -> Ledger:
    """Run the script for each connection, send so many requests on each, return the ledger."""

    async def main() -> Ledger:
        ended = asyncio.Semaphore(0)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                await script(reader, writer)
                writer.close()
                await writer.wait_closed()
            ended.release()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=serving(certificate))
        host, port = server.sockets[0].getsockname()
        ledger = Ledger()
        client = Client(Load(host, port, ledger, tls=shared), "keep-alive")
        for _ in range(connections):
            for _ in range(requests):
                await client.exchange(lambda number: post(number, b"", close=close))
            client.leave()
            await ended.acquire()
        server.close()
        await server.wait_closed()
        return ledger

    return asyncio.run(main())


def after(data: bytes, wrong: bytes = b"", number: int = socket.SHUT_WR) -> Script:
    """Answer with `data`, then write `wrong` and end below TLS, without close_notify."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        below = writer.get_extra_info("socket")
        os.write(below.fileno(), wrong)
        below.shutdown(number)
        await reader.read()

    return script


def test_requests_on_one_connection(certificate: Certificate, client: ClientTls) -> None:
    ledger = exchange(keeping, certificate, client, requests=2)
    assert [entry.cause for entry in ledger.entries] == [None, None]
    assert (ledger.connections, client.handshakes, ledger.reconnects) == (1, 1, [])
    assert not ledger.oddities


def test_an_end_that_was_announced_is_a_reconnect(certificate: Certificate, client: ClientTls) -> None:
    ledger = exchange(saying(right(1), b""), certificate, client, requests=2)
    assert [entry.cause for entry in ledger.entries] == [None, Cause.EOF]
    assert [reconnect.left for reconnect in ledger.reconnects] == [Left.EOF]
    assert not ledger.oddities


def test_a_body_that_the_connection_delimits_is_whole_after_close_notify(
    certificate: Certificate, client: ClientTls
) -> None:
    ledger = exchange(saying(HEAD + BODY), certificate, client)
    assert [entry.cause for entry in ledger.entries] == [None]
    assert not ledger.oddities


def test_a_body_that_the_connection_delimits_is_cut_short_without_close_notify(
    certificate: Certificate, client: ClientTls
) -> None:
    ledger = exchange(after(HEAD + BODY), certificate, client)
    assert [entry.cause for entry in ledger.entries] == [Cause.TRUNCATED]
    assert [reconnect.left for reconnect in ledger.reconnects] == [Left.TRUNCATION]
    assert ledger.oddities[UNANNOUNCED] == 1


def test_an_end_without_close_notify_is_odd_after_a_whole_response_too(
    certificate: Certificate, client: ClientTls
) -> None:
    ledger = exchange(after(right(1, b"connection: close\r\n")), certificate, client, close=True)
    assert [entry.cause for entry in ledger.entries] == [None]
    assert ledger.reconnects == []
    assert ledger.oddities[UNANNOUNCED] == 1


def test_a_record_that_is_wrong_is_told(certificate: Certificate, client: ClientTls) -> None:
    ledger = exchange(after(b"", b"\x17\x03\x03\x00\x20" + bytes(32)), certificate, client)
    assert [entry.cause for entry in ledger.entries] == [Cause.TLS]
    assert [reconnect.left for reconnect in ledger.reconnects] == [Left.ALERT]


def test_a_failed_handshake_is_a_lost_request(certificate: Certificate, tmp_path: Path) -> None:
    stranger = ClientTls(make_certificate(tmp_path), "1.3")
    ledger = Ledger()

    async def main() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            raise AssertionError("the handshake should have failed")

        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=serving(certificate))
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        host, port = server.sockets[0].getsockname()
        client = Client(Load(host, port, ledger, tls=stranger), "keep-alive")
        await client.exchange(lambda number: post(number, b""))
        server.close()

    asyncio.run(main())
    assert [(entry.cause, entry.detail) for entry in ledger.entries] == [(Cause.CONNECT, "CERTIFICATE_VERIFY_FAILED")]


def test_tickets_are_offered_and_their_fate_is_counted(certificate: Certificate, client: ClientTls) -> None:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        number = int(head.partition(b"?id=")[2].split(b" ")[0])
        writer.write(right(number))
        await reader.read()

    ledger = exchange(one, certificate, client, connections=40)
    assert {entry.cause for entry in ledger.entries} == {None}
    assert client.handshakes == 40
    assert 0 < client.offered < 40
    assert client.resumed == client.offered


@pytest.mark.parametrize("version", list(VERSIONS))
def test_who_shows_which_certificate_is_counted_once_it_was_replaced(tmp_path: Path, version: str) -> None:
    first = make_certificate(tmp_path)
    old = Certificate(tmp_path / "old.pem", tmp_path / "old.key")
    for place, copy in ((first.path, old.path), (first.key, old.key)):
        copy.write_bytes(place.read_bytes())
    client = ClientTls(first, version)
    exchange(keeping, first, client, requests=2)
    client.trust(renew(first, 1))
    exchange(keeping, first, client, requests=2)  # already the new one, of which nothing was promised yet
    assert (client.shown_new, client.shown_old) == (0, 0)
    client.renewed()
    assert first.path.is_symlink()
    assert first.path.read_bytes() != old.path.read_bytes()
    client.session = lambda: None  # type: ignore[method-assign]
    exchange(keeping, first, client, requests=2)
    assert (client.shown_new, client.shown_old) == (1, 0)
    exchange(keeping, old, client, requests=2)
    assert (client.shown_new, client.shown_old) == (1, 1)
