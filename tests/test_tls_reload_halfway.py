"""Reloads that change what addresses speak, while half a PROXY header or half a ClientHello has come.

Whether an address speaks TLS cannot change while the server runs; whether a PROXY header comes first can, and a
connection goes on with what it began with.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from serve_asgi.cli.control_client import RequestRefused
from tests.plain_and_tls import AUTHORITY, CutRecords, addresses
from tests.running import RunningServer, request, running

APPLICATION = """
import json

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    generation = scope["extensions"]["serve"]["generation"]
    body = json.dumps([scope["scheme"], scope["client"][0], generation]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""
HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 443\r\n"
TLS = 'tls-cert = "server.pem"\ntls-key = "server.key"\n'
PROXY = "proxy-protocol = true\nproxy-protocol-timeout = 60\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APPLICATION)
    AUTHORITY.server("localhost").write(tmp_path)
    return tmp_path


def asked(connection: socket.socket) -> list[object]:
    """Scheme, client and generation, as the application has them."""
    status, body = request(connection)
    assert status == 200
    found: list[object] = json.loads(body)
    return found


def waiting(server: RunningServer, count: int) -> None:
    """The server has so many connections."""
    server.wait_until(lambda status: sum(worker["connections"] for worker in status["workers"]) == count)


def configure(project: Path, *parts: str) -> None:
    (project / "serve.toml").write_text("".join(parts))


def test_tls_cannot_be_taken_away_and_the_proxy_protocol_can(project: Path) -> None:
    configure(project, PROXY, TLS)
    with running("app:app", directory=project) as server:
        where = addresses(server)["https"]
        half_header = [CutRecords(where, first=HEADER[:20]) for _ in range(3)]
        half_hello = [CutRecords(where, first=HEADER) for _ in range(2)]
        hellos = [client.hello() for client in half_hello]
        for client, hello in zip(half_hello, hellos, strict=True):
            client.send_raw(hello[:100])
        waiting(server, 5)

        configure(project, PROXY)
        with pytest.raises(RequestRefused, match="a reload cannot turn TLS on or off"):
            server.reload()
        client = half_header.pop()
        client.send_raw(HEADER[20:])
        assert asked(client.shake_hands()) == ["https", "192.0.2.7", 1]
        client.close()
        client = half_hello.pop()
        client.send_raw(hellos.pop()[100:])
        assert asked(client.shake_hands()) == ["https", "192.0.2.7", 1]
        client.close()

        configure(project, TLS)
        server.reload()
        server.wait_until(lambda status: status["totals"]["handed_over"] == 2)
        client = half_header.pop()
        client.send_raw(HEADER[20:] + client.hello())
        assert asked(client.shake_hands()) == ["https", "192.0.2.7", 2]
        client.close()
        client = half_header.pop()
        client.send_raw(HEADER[20:] + b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert socket.socket.recv(client, 65536).startswith(b"HTTP/1.1 400 ")  # plain HTTP, where TLS is spoken
        client.close()
        client = half_hello.pop()
        client.send_raw(hellos.pop()[100:])
        assert asked(client.shake_hands())[:2] == ["https", "192.0.2.7"]
        server.wait_for_workers(1)
        assert asked(client) == ["https", "192.0.2.7", 2]
        client.close()
        with CutRecords(where) as client:
            assert asked(client.shake_hands()) == ["https", "127.0.0.1", 2]
        assert server.stop() == 0
        assert "Traceback" not in server.log()


def test_tls_cannot_be_added_and_the_proxy_protocol_can(project: Path) -> None:
    configure(project)
    with running("app:app", directory=project) as server:
        half_head, hello = (socket.create_connection(server.address()) for _ in range(2))
        half_head.sendall(b"GET / HT")
        hello.sendall(b"\x16\x03\x01\x02\x00")
        waiting(server, 1)  # the other was no HTTP

        configure(project, TLS)
        with pytest.raises(RequestRefused, match="a reload cannot turn TLS on or off"):
            server.reload()
        configure(project, PROXY)
        server.reload()
        server.wait_for_workers(1)
        half_head.sendall(b"TP/1.1\r\nhost: localhost\r\n\r\n")
        assert b'["http", "127.0.0.1", 2]' in half_head.recv(65536)
        with socket.create_connection(server.address()) as fresh:
            fresh.sendall(HEADER)
            assert asked(fresh) == ["http", "192.0.2.7", 2]
        half_head.close()
        hello.close()
        assert server.stop() == 0
        assert "Traceback" not in server.log()
