"""OpenSSL's own program as the client, over a real socket: its KeyUpdates, while the connection moves on and on."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from typing import IO

import pytest

from serve_asgi.tls.moved_session import MovedSession
from serve_asgi.tls.record_protection import SUITES
from serve_asgi.tls.session import TlsSession
from tests.tls.memory import Contexts, authority


def echo(listening: socket.socket) -> None:
    """Send back what comes, each time as another session of the same connection."""
    contexts = Contexts()
    connection, _ = listening.accept()
    with connection:
        session = TlsSession(contexts)
        while data := connection.recv(1 << 16):
            content = session.receive(data)
            connection.sendall(session.take_outgoing())
            if session.failure is not None:
                return
            if content:
                connection.sendall(session.send(content))
            if session.peer_closed:
                connection.sendall(session.close_notify())
                return
            if session.can_move:
                session = TlsSession(contexts, MovedSession.from_json(json.loads(json.dumps(session.move().to_json()))))


def until(stream: IO[bytes], line: bytes) -> None:
    while (read := stream.readline()) and line not in read:
        pass
    assert read, f"no {line!r}"


@pytest.mark.once
@pytest.mark.needs("openssl")
@pytest.mark.parametrize("suite", [suite.name for suite in SUITES.values()])
def test_key_updates_of_s_client(suite: str) -> None:
    """K: its own keys, and ours are requested; k: its own alone."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = threading.Thread(target=echo, args=(listening,))
    server.start()
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{listening.getsockname()[1]}", "-tls1_3"]
    command += ["-servername", "localhost", "-verify_return_error", "-CAfile", str(authority().path)]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "-ciphersuites", suite], stdin=pipe, stdout=pipe, stderr=pipe) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stderr is not None
        until(client.stdout, suite.encode())
        for number, update in enumerate(("K", "k", "K", "K", "k")):
            client.stdin.write(b"message %d\n" % number)
            client.stdin.flush()
            until(client.stdout, b"message %d" % number)
            client.stdin.write(update.encode() + b"\n")
            client.stdin.flush()
            until(client.stderr, b"KEYUPDATE")
        client.stdin.write(b"the last message\n")
        client.stdin.flush()
        until(client.stdout, b"the last message")
        client.stdin.write(b"Q\n")
        client.stdin.flush()
        client.stdin.close()
        client.stdout.read()
        client.stderr.read()
    server.join()
    listening.close()
    assert client.returncode == 0


@pytest.mark.once
@pytest.mark.needs("openssl")
def test_a_renegotiation_is_refused() -> None:
    """TLS 1.2 has it, and s_client begins one with R."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = threading.Thread(target=echo, args=(listening,))
    server.start()
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{listening.getsockname()[1]}", "-tls1_2"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "-servername", "localhost"], stdin=pipe, stdout=pipe, stderr=pipe) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stderr is not None
        client.stdin.write(b"the first message\n")
        client.stdin.flush()
        until(client.stdout, b"the first message")
        client.stdin.write(b"R\n")
        client.stdin.flush()
        until(client.stderr, b"no renegotiation")
        client.stdin.close()
        client.stdout.read()
    server.join()
    listening.close()
