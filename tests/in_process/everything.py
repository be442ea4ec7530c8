"""A program that serves in process over everything that is spoken, and says which modules it has imported.

Run by tests/in_process/test_elsewhere.py as on another platform: `everything.py CERTIFICATE KEY`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import sys
import tempfile
from pathlib import Path
from typing import Any

import serve_asgi
from serve_asgi import messenger, schedule, shared
from serve_asgi.http.worker_context import Receive, Scope, Send

TEXT = [(b"content-type", b"text/plain")]
LARGE = b"0123456789" * 20_000
ticked = asyncio.Event()


@messenger.on("everything.job")
async def job(message: serve_asgi.Message) -> int:
    return int(message.payload) + 1


@schedule(every=0.1)
async def tick() -> None:
    ticked.set()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})
        return
    await send({"type": "http.response.start", "status": 200, "headers": TEXT})
    if scope["path"].startswith("/file"):
        await send({"type": "http.response.pathsend", "path": scope["query_string"].decode()})
    else:
        count = await shared.incr("count")
        answer = await messenger.call("everything.job", count)
        await send({"type": "http.response.body", "body": f"{scope['http_version']} {answer}".encode()})


def get(port: int, path: str, trusting: ssl.SSLContext | None) -> bytes:
    client: Any
    if trusting is None:
        client = http.client.HTTPConnection("localhost", port, timeout=10)
    else:
        client = http.client.HTTPSConnection("localhost", port, timeout=10, context=trusting)
    client.request("GET", path)
    body: bytes = client.getresponse().read()
    client.close()
    return body


def echo(port: int) -> bytes:
    """A WebSocket by hand: `hi`, masked with zeros."""
    with socket.create_connection(("localhost", port), 10) as client:
        client.sendall(
            b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        received = b""
        while b"\r\n\r\n" not in received:
            received += client.recv(4096)
        client.sendall(b"\x81\x82\0\0\0\0hi")
        return client.recv(4096)


def write_large(directory: str) -> Path:
    path = Path(directory, "large")
    path.write_bytes(LARGE)
    return path


async def main(certificate: str, key: str) -> None:
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    bind = ["http://127.0.0.1:0", "https://127.0.0.1:0"]
    with tempfile.TemporaryDirectory() as directory:
        large = write_large(directory)
        async with serve_asgi.Server(
            application, bind=bind, tls_cert=certificate, tls_key=key, static=f"/static={directory}"
        ) as server:
            plain, secure = (int(url.rpartition(":")[2]) for url in server.urls)
            assert await asyncio.to_thread(get, plain, "/", None) == b"1.1 2"
            assert await asyncio.to_thread(get, secure, "/", trusting) == b"1.1 3"
            for port, trust in ((plain, None), (secure, trusting)):
                assert await asyncio.to_thread(get, port, f"/file?{large}", trust) == LARGE
                assert await asyncio.to_thread(get, port, "/static/large", trust) == LARGE
            assert await asyncio.to_thread(echo, plain) == b"\x81\x02HI"
            await ticked.wait()


asyncio.run(main(*sys.argv[1:]))
print(json.dumps([name for name in sys.modules if name.startswith("serve_asgi")]))
