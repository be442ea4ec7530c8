"""The key log: what one handshake has said, and nothing of the others."""

from __future__ import annotations

import os
import ssl
import subprocess
import threading
from pathlib import Path

from serve_asgi.tls.key_log import KeyLog, open_key_log, secret_of
from serve_asgi.tls.record_protection import SUITES, RecordSealer
from serve_asgi.tls.session import TlsSession, TlsState
from tests.tls.memory import Client, Contexts, client_context, shake_hands


def test_nothing_is_left_of_a_handshake() -> None:
    contexts = Contexts()
    for _ in range(3):
        session = TlsSession(contexts)
        shake_hands(session, Client())
        assert session.can_move
        assert contexts.key_log is not None
        with contexts.key_log.lock:
            assert contexts.key_log.take() == b""


def test_handshakes_in_progress_at_once() -> None:
    """Each step of each connection finds what is its own, whatever the order."""
    contexts = Contexts()
    context = client_context()
    connections = [(TlsSession(contexts), Client(context)) for _ in range(100)]
    for session, client in connections:
        client.step()
        session.receive(client.outgoing.read())
    for session, client in reversed(connections):
        client.incoming.write(session.take_outgoing())
        assert client.step()
        assert session.receive(client.outgoing.read() + client.send(b"%d" % id(client))) == b"%d" % id(client)
    for session, client in connections:
        client.incoming.write(session.take_outgoing())
        assert session.can_move
        assert client.receive(session.send(b"%d" % id(session))) == b"%d" % id(session)


def test_handshakes_in_several_threads() -> None:
    contexts = Contexts()
    context = client_context()
    movable = []

    def connect() -> None:
        for _ in range(20):
            session, client = TlsSession(contexts), Client(context)
            shake_hands(session, client)
            movable.append(session.can_move and client.receive(session.send(b"hello")) == b"hello")

    threads = [threading.Thread(target=connect) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert movable == [True] * 160


def test_a_read_takes_all_there_is() -> None:
    key_log = KeyLog()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key_log.attach(context)
    with open(context.keylog_filename, "ab") as file:
        file.write(b"x" * 10_000)
    assert key_log.take() == b"x" * 10_000
    assert key_log.take() == b""
    key_log.close()


def test_the_pipe_is_closed_on_exec() -> None:
    key_log = KeyLog()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key_log.attach(context)
    own = {os.readlink(f"/proc/self/fd/{end}") for end in (key_log._read_end, key_log._write_end)}
    seen = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True, close_fds=False)
    assert not own & set(seen.stdout.split())
    key_log.close()


def test_without_proc_there_is_none() -> None:
    """A file system without /proc: the connection stays OpenSSL's, which is all that is lost."""
    session, client = TlsSession(Contexts(key_log=False)), Client()
    assert shake_hands(session, client, b"request") == b"request"
    assert session.state is TlsState.OPEN
    assert session.info is not None
    assert session.info.version == 0x0304
    assert not session.can_move
    assert client.receive(session.send(b"response")) == b"response"
    assert open_key_log() is not None


def test_secrets_are_found_by_their_random() -> None:
    lines = (
        b"CLIENT_RANDOM 0102 aa\n"
        b"CLIENT_TRAFFIC_SECRET_0 0103 bb\n"
        b"CLIENT_TRAFFIC_SECRET_0 0102 cc\n"
        b"SERVER_TRAFFIC_SECRET_0 0102 dd\n"
    )
    assert secret_of(lines, b"CLIENT_TRAFFIC_SECRET_0", b"\1\2") == b"\xcc"
    assert secret_of(lines, b"CLIENT_TRAFFIC_SECRET_0", b"\1\3") == b"\xbb"
    assert secret_of(lines, b"CLIENT_TRAFFIC_SECRET_0", b"\1\4") is None
    assert secret_of(lines, b"TRAFFIC_SECRET_0", b"\1\2") is None


def test_key_updates_of_a_connection_that_stays_with_openssl_do_not_fill_the_pipe(tmp_path: Path) -> None:
    """Whoever begins with an empty record stays with OpenSSL, which logs a secret for each KeyUpdate: the pipe would
    be full after some 350 of them, and the worker would wait for ever."""
    contexts, context = Contexts(), client_context()
    context.keylog_filename = str(tmp_path / "secrets")
    session, client = TlsSession(contexts), Client(context)
    client.step()
    hello = client.outgoing.read()
    session.receive(b"\x16\3\1\0\0" + hello)
    client.incoming.write(session.take_outgoing())
    assert client.step()
    session.receive(client.outgoing.read())
    assert session.state is TlsState.OPEN
    assert not session.can_move
    assert session.info is not None
    secret = secret_of((tmp_path / "secrets").read_bytes(), b"CLIENT_TRAFFIC_SECRET_0", hello[11:43])
    assert secret is not None
    sealer = RecordSealer(SUITES[session.info.cipher_suite], secret)
    for _ in range(1000):
        assert session.receive(sealer.seal_key_update(True) + sealer.seal(b"content")) == b"content"
        assert contexts.key_log is not None
        assert contexts.key_log.take() == b""
    assert session.failure is None
    assert client.receive(session.take_outgoing() + session.send(b"response")) == b"response"
