"""TLS as clients see it: what is spoken, what applications are told, and what a reload does to a connection."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.running import PATIENCE, RunningServer, running, until

APPLICATION = """
import asyncio, json, os

LARGE = bytes(range(256)) * 4096

def open_files():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink("/proc/self/fd/" + name))
        except FileNotFoundError:  # what the directory was read by
            pass
    return found

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": json.dumps([scope["scheme"], scope["extensions"]["tls"]])})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        return
    body = b""
    if scope["path"] == "/pid":
        body = b"%d" % os.getpid()
    elif scope["path"] == "/scope":
        body = json.dumps([scope["scheme"], scope["extensions"].get("tls"), scope["client"]]).encode()
    elif scope["path"] == "/large":
        body = LARGE
    elif scope["path"] == "/echo":
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
    elif scope["path"] == "/file":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1048576")]})
        await send({"type": "http.response.pathsend", "path": os.path.abspath("file")})
        return
    elif scope["path"] == "/until-close":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        for _ in range(10):
            await send({"type": "http.response.body", "body": LARGE[:1000], "more_body": True})
        if scope["query_string"] == b"raise":
            raise RuntimeError("half way")
        await send({"type": "http.response.body"})
        return
    elif scope["path"] == "/wait":
        while not os.path.exists("go"):
            await asyncio.sleep(0.01)
    elif scope["path"] == "/open-files":
        body = json.dumps(open_files()).encode()
    elif scope["path"] == "/open-files-of-a-fork":
        read_end, write_end = os.pipe()
        if (pid := os.fork()) == 0:
            os.write(write_end, json.dumps(open_files()).encode())
            os._exit(0)
        os.close(write_end)
        body = os.read(read_end, 65536)
        os.close(read_end)
        os.waitpid(pid, 0)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
LARGE = bytes(range(256)) * 4096


class Client:
    """A client on one TLS connection."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, first: bytes = b"", **more: Any) -> None:
        """`first` is sent in plain text before the handshake."""
        plain = socket.create_connection(address, PATIENCE)
        plain.sendall(first)
        self.socket = context.wrap_socket(plain, server_hostname="localhost", **more)
        self.file = self.socket.makefile("rb")

    def ask(self, target: str, body: bytes = b"") -> bytes:
        """The body of the response to a request."""
        return self.exchange(target, body)[1]

    def exchange(self, target: str, body: bytes = b"") -> tuple[dict[str, str], bytes]:
        """The headers and the body of the response to a request."""
        method = "POST" if body else "GET"
        self.socket.sendall(
            f"{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        return self.response()

    def response(self) -> tuple[dict[str, str], bytes]:
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 200"), line
        headers: dict[str, str] = {}
        while (field := self.file.readline().strip()) != b"":
            name, _, value = field.decode().partition(": ")
            headers[name] = value
        return headers, self.file.read(int(headers.get("content-length", -1)))

    def close(self) -> None:
        self.file.close()
        self.socket.close()


AUTHORITY = Authority()


def trusting(version: str = "") -> ssl.SSLContext:
    """A client's context, of one version of TLS alone if one is named."""
    context = AUTHORITY.client_context()
    if version:
        context.minimum_version = context.maximum_version = {
            "1.2": ssl.TLSVersion.TLSv1_2,
            "1.3": ssl.TLSVersion.TLSv1_3,
        }[version]
    return context


@contextlib.contextmanager
def serving(directory: Path, *arguments: str, **more: Any) -> Iterator[RunningServer]:
    """A server that speaks TLS on its first address."""
    (directory / "app.py").write_text(APPLICATION)
    (directory / "file").write_bytes(LARGE)
    cert, key = AUTHORITY.server("localhost").write(directory)
    with running(
        "app:app", "--tls-cert", str(cert), "--tls-key", str(key), *arguments, directory=directory, **more
    ) as s:
        yield s


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("tls"), "--workers", "2") as server:
        yield server


@contextlib.contextmanager
def client(server: RunningServer, version: str = "", **more: Any) -> Iterator[Client]:
    made = Client(server.address(), trusting(version), **more)
    try:
        yield made
    finally:
        made.close()


VERSIONS = pytest.mark.parametrize("version", ["1.3", "1.2"])


@VERSIONS
def test_requests_of_every_size(server: RunningServer, version: str) -> None:
    with client(server, version) as connected:
        assert connected.ask("/echo", b"x") == b"x"
        assert connected.ask("/echo", LARGE) == LARGE
        assert connected.ask("/large") == LARGE
        assert connected.ask("/file") == LARGE
        assert connected.socket.version() == f"TLSv{version}"


@VERSIONS
def test_what_an_application_is_told(server: RunningServer, version: str) -> None:
    with client(server, version) as connected:
        scheme, tls, peer = json.loads(connected.ask("/scope"))
        assert scheme == "https"
        assert tls["tls_version"] == {"1.3": 0x0304, "1.2": 0x0303}[version]
        assert tls["cipher_suite"] in (0x1301, 0x1302, 0x1303, 0xC02B, 0xC02C, 0xCCA9)
        assert tls["server_cert"].strip() == (server.directory / "server.pem").read_text().strip()
        assert tls["client_cert_chain"] == []
        assert (tls["client_cert_name"], tls["client_cert_error"]) == (None, None)
        assert tuple(peer) == connected.socket.getsockname()


@VERSIONS
def test_pipelined_requests(server: RunningServer, version: str) -> None:
    with client(server, version) as connected:
        connected.socket.sendall(b"GET /pid HTTP/1.1\r\nhost: localhost\r\n\r\n" * 50)
        pids = {connected.response()[1] for _ in range(50)}
        assert len(pids) == 1


@VERSIONS
def test_a_websocket(server: RunningServer, version: str) -> None:
    from websockets.sync.client import connect

    host, port = server.address()
    with connect(
        f"wss://localhost:{port}/", ssl=trusting(version), sock=socket.create_connection((host, port))
    ) as peer:
        scheme, tls = json.loads(peer.recv())
        assert scheme == "wss"
        assert tls["tls_version"] == {"1.3": 0x0304, "1.2": 0x0303}[version]
        for size in (0, 1, 1000, 100_000):
            peer.send("x" * size)
            assert peer.recv() == "x" * size


@VERSIONS
def test_a_body_until_the_end_is_whole_after_close_notify_alone(server: RunningServer, version: str) -> None:
    with client(server, version, suppress_ragged_eofs=False) as connected:
        connected.socket.sendall(b"GET /until-close HTTP/1.0\r\nhost: localhost\r\n\r\n")
        received = b""
        while data := connected.socket.recv(65536):
            received += data
        assert len(received.partition(b"\r\n\r\n")[2]) == 10_000
    with client(server, version, suppress_ragged_eofs=False) as connected:
        connected.socket.sendall(b"GET /until-close?raise HTTP/1.0\r\nhost: localhost\r\n\r\n")
        with pytest.raises(OSError):  # noqa: PT011 a reset, or an end without close_notify
            b"".join(iter(lambda: connected.socket.recv(65536), b""))


def test_plain_http_gets_an_answer_in_plain_text(server: RunningServer) -> None:
    with socket.create_connection(server.address(), PATIENCE) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        received = b"".join(iter(lambda: plain.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"speaks HTTPS" in received


def test_what_is_no_tls_gets_an_alert(server: RunningServer) -> None:
    with socket.create_connection(server.address(), PATIENCE) as plain:
        plain.sendall(b"\x16\x03\x01\x00\x05hello" + bytes(100))
        received = b"".join(iter(lambda: plain.recv(65536), b""))
    assert received[:2] == b"\x15\x03"


def test_a_client_that_does_not_believe_the_certificate_is_told_of_in_the_log(server: RunningServer) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        Client(server.address(), ssl.create_default_context())


# ---- reloads


def test_a_tls_1_3_connection_goes_on_over_reloads(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as server, client(server, "1.3") as connected:
        pids = {connected.ask("/pid")}
        for _ in range(5):
            server.reload()
            server.wait_for_workers(2)
            pids.add(connected.ask("/pid"))
            assert connected.ask("/echo", LARGE) == LARGE
            assert json.loads(connected.ask("/scope"))[1]["tls_version"] == 0x0304
        assert len(pids) == 6


class PieceByPiece:
    """A client that says how its records are cut."""

    def __init__(self, server: RunningServer) -> None:
        self.plain = socket.create_connection(server.address(), PATIENCE)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trusting("1.3").wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._converse(self._shake_hands)

    def _shake_hands(self) -> bool:
        self._tls.do_handshake()
        return True

    def _converse(self, step: Any) -> Any:
        while True:
            try:
                found = step()
            except ssl.SSLWantReadError:
                found = None
            if self._outgoing.pending:
                self.plain.sendall(self._outgoing.read())
            if found is not None:
                return found
            received = self.plain.recv(65536)
            if received:
                self._incoming.write(received)
            else:
                self._incoming.write_eof()

    def record(self, content: bytes) -> bytes:
        self._tls.write(content)
        return self._outgoing.read()

    def read(self) -> bytes:
        found: bytes = self._converse(lambda: self._tls.read(65536))
        return found


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_half_a_record_and_half_a_head_move_as_well(tmp_path: Path, loop: str, http: str) -> None:
    with serving(tmp_path, "--loop", loop, "--http", http) as server:
        peer = PieceByPiece(server)
        peer.plain.sendall(peer.record(b"GET /pid HTTP/1.1\r\nhost: localhost\r\n\r\n"))
        before = peer.read().rpartition(b"\r\n\r\n")[2]
        peer.plain.sendall(peer.record(b"GET /pid HT"))
        record = peer.record(b"TP/1.1\r\nhost: localhost\r\n\r\n")
        peer.plain.sendall(record[:20])
        server.reload()
        server.wait_for_workers(1)
        peer.plain.sendall(record[20:])
        after = peer.read().rpartition(b"\r\n\r\n")[2]
        assert int(after) != int(before)
        peer.plain.close()


def test_half_a_record_is_waited_for_by_a_worker_that_stops(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        peer = PieceByPiece(server)
        peer.plain.sendall(peer.record(b"GET /pid HTTP/1.1\r\nhost: localhost\r\n\r\n"))
        peer.read()
        record = peer.record(b"GET /pid HTTP/1.1\r\nhost: localhost\r\n\r\n")
        peer.plain.sendall(record[:20])
        server.signal(signal.SIGTERM)
        server.wait_until(lambda status: status["workers"][0]["state"] == "retiring")
        peer.plain.settimeout(0.5)
        with pytest.raises(TimeoutError):
            peer.plain.recv(1)
        peer.plain.settimeout(PATIENCE)
        peer.plain.sendall(record[20:])
        response = peer.read()
        assert response.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in response
        peer.plain.close()


@pytest.mark.parametrize("request_", [b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n"])
def test_a_refused_request_is_logged_with_what_was_negotiated(tmp_path: Path, request_: bytes) -> None:
    """The second one is TLS within TLS: that the address speaks none would be wrong to say."""
    fields = ("--access-log-format", "json:status,scheme,tls_version,tls_cipher,tls_resumed")
    with serving(tmp_path, *fields, "--access-log-file", "access.log") as server, client(server, "1.3") as it:
        it.socket.sendall(request_)
        assert it.file.readline() == b"HTTP/1.1 400 Bad Request\r\n"
        it.file.read()
        cipher = it.socket.cipher()
        assert cipher is not None
        until((tmp_path / "access.log").read_text)
        assert json.loads((tmp_path / "access.log").read_text()) == {
            "status": 400,
            "scheme": "https",
            "tls_version": "TLSv1.3",
            "tls_cipher": cipher[0],
            "tls_resumed": "no",
        }


def test_why_a_connection_was_ended_is_logged(server: RunningServer) -> None:
    peer = PieceByPiece(server)
    peer.plain.sendall(peer.record(b"GET /pid HTTP/1.1\r\nhost: localhost\r\n\r\n")[:-1] + b"?")
    assert peer.plain.recv(65536)  # the tickets, or the alert
    server.logged("a record of the client is not authentic")
    peer.plain.close()


def test_a_request_in_progress_ends_where_it_began(tmp_path: Path) -> None:
    with serving(tmp_path) as server, client(server, "1.3") as connected:
        before = connected.ask("/pid")
        connected.socket.sendall(b"GET /wait HTTP/1.1\r\nhost: localhost\r\n\r\n")
        reload = threading.Thread(target=server.reload)
        reload.start()
        server.wait_until(lambda status: status["generation"] == 2)
        (tmp_path / "go").touch()
        headers, _ = connected.response()
        assert headers["connection"] == "keep-alive"
        reload.join(PATIENCE)
        server.wait_for_workers(1)  # the old one has handed the connection over
        assert connected.ask("/pid") != before


def test_a_tls_1_3_connection_that_its_client_ends_is_not_counted_as_one_that_could_not_move(tmp_path: Path) -> None:
    with serving(tmp_path) as server, client(server, "1.3") as connected:
        connected.socket.sendall(b"GET /wait HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        reload = threading.Thread(target=server.reload)
        reload.start()
        server.wait_until(lambda status: status["generation"] == 2)
        (tmp_path / "go").touch()
        connected.response()
        reload.join(PATIENCE)
        server.wait_for_workers(1)
        assert server.status()["totals"]["tls_not_moved"] == 0


def test_a_tls_1_2_connection_is_told_of_its_end_by_its_next_response(tmp_path: Path) -> None:
    with serving(tmp_path) as server, client(server, "1.2") as connected:
        before = connected.ask("/pid")
        reload = threading.Thread(target=server.reload)
        reload.start()
        server.wait_until(lambda status: status["generation"] == 2)
        headers, after = connected.exchange("/pid")
        assert (headers["connection"], after) == ("close", before)
        assert connected.file.read() == b""
        reload.join(PATIENCE)
        server.wait_for_workers(1)


def test_an_idle_tls_1_2_connection_is_closed_when_time_is_up(tmp_path: Path) -> None:
    with serving(tmp_path, "--graceful-timeout", "2") as server, client(server, "1.2") as connected:
        connected.ask("/pid")
        server.reload()
        assert connected.file.read() == b""
        server.wait_for_workers(1)
        assert "0 requests cut" in server.log()


def test_a_new_version_serves_what_was_resumed_by_its_session(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as server:
        for version in ("1.3", "1.2"):
            context = trusting(version)
            first = Client(server.address(), context)
            first.ask("/pid")
            session = first.socket.session
            first.close()
            server.reload()
            second = Client(server.address(), context, session=session)
            assert second.socket.session_reused
            second.ask("/pid")
            second.close()


# ---- other addresses


def addresses(server: RunningServer) -> dict[str, tuple[str, int]]:
    """By scheme."""
    found = {}
    for each in server.status()["listening"]:
        scheme, _, where = each.partition("://")
        host, _, port = where.rpartition(":")
        found[scheme] = (host, int(port))
    return found


def exchange(address: tuple[str, int], head: str) -> bytes:
    with socket.create_connection(address, PATIENCE) as plain:
        plain.sendall(head.encode())
        return b"".join(iter(lambda: plain.recv(65536), b""))


def test_plain_addresses_beside_it_redirect(tmp_path: Path) -> None:
    binds = ("--bind", "https://127.0.0.1:0", "--bind", "http://127.0.0.1:0")
    with serving(tmp_path, *binds, "--https-redirect", bind="") as server:
        where = addresses(server)
        port = where["https"][1]
        close = "connection: close\r\n\r\n"
        got = exchange(where["http"], f"GET /a%20b?c=d HTTP/1.1\r\nhost: localhost:80\r\n{close}")
        assert got.startswith(b"HTTP/1.1 308 ")
        assert f"location: https://localhost:{port}/a%20b?c=d\r\n".encode() in got
        assert exchange(where["http"], f"GET /ping HTTP/1.1\r\nhost: localhost\r\n{close}").startswith(b"HTTP/1.1 200 ")
        token = f"GET /.well-known/acme-challenge/x HTTP/1.1\r\nhost: localhost\r\n{close}"
        assert exchange(where["http"], token).startswith(b"HTTP/1.1 200 ")
        connected = Client(where["https"], trusting())
        connected.ask("/pid")
        connected.close()


def test_tls_at_a_plain_address_is_closed_with_a_sentence(tmp_path: Path) -> None:
    binds = ("--bind", "https://127.0.0.1:0", "--bind", "http://127.0.0.1:0")
    with serving(tmp_path, *binds, bind="") as server:
        with pytest.raises(OSError):  # noqa: PT011 which of several, OpenSSL decides
            Client(addresses(server)["http"], trusting())
        server.logged("TLS")


def test_behind_the_proxy_protocol(tmp_path: Path) -> None:
    with serving(tmp_path, "--proxy-protocol") as server:
        line = b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 443\r\n"
        connected = Client(server.address(), trusting("1.3"), first=line)
        scheme, _, peer = json.loads(connected.ask("/scope"))
        assert (scheme, peer) == ("https", ["192.0.2.7", 1234])
        server.reload()
        server.wait_for_workers(1)
        assert json.loads(connected.ask("/scope"))[2] == ["192.0.2.7", 1234]
        connected.close()


# ---- limits


def test_who_says_nothing_is_closed(tmp_path: Path) -> None:
    with serving(tmp_path, "--tls-handshake-timeout", "1") as server:
        with socket.create_connection(server.address(), PATIENCE) as silent:
            assert silent.recv(1) == b""
        server.logged("TLS handshake took too long")


def test_a_worker_stops_while_handshakes_are_under_way(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        silent = [socket.create_connection(server.address(), PATIENCE) for _ in range(20)]
        until(lambda: sum(worker["connections"] for worker in server.workers()) == 20)
        assert server.stop() == 0
        for each in silent:
            each.close()


def test_clients_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.pem)
    with serving(tmp_path, "--tls-client-ca", str(tmp_path / "ca.pem"), "--workers", "1") as server:
        context = trusting("1.3")
        context.load_cert_chain(*AUTHORITY.client("ada").write(tmp_path, "client"))
        connected = Client(server.address(), context)
        first = json.loads(connected.ask("/scope"))[1]
        assert "CN=ada" in first["client_cert_name"]
        assert first["client_cert_chain"][0].startswith("-----BEGIN CERTIFICATE-----")
        server.reload()
        server.wait_for_workers(1)
        assert json.loads(connected.ask("/scope"))[1] == first
        connected.close()
        anonymous = Client(server.address(), trusting("1.3"))
        with pytest.raises(OSError):  # noqa: PT011
            anonymous.ask("/scope")
        anonymous.close()


def test_a_killed_worker_costs_its_connections_alone(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as server:
        kept: Sequence[Client] = [Client(server.address(), trusting("1.3")) for _ in range(20)]
        pids = [int(each.ask("/pid")) for each in kept]
        victim = pids[0]
        os.kill(victim, signal.SIGKILL)
        for each, pid in zip(kept, pids, strict=True):
            if pid == victim:
                with pytest.raises((OSError, AssertionError)):
                    each.ask("/pid")
            else:
                assert int(each.ask("/pid")) == pid
            each.close()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_forked_child_has_neither_connections_nor_the_key_log(tmp_path: Path, loop: str) -> None:
    with serving(tmp_path, "--loop", loop) as server, client(server) as connected:
        parents: list[str] = json.loads(connected.ask("/open-files"))
        childs: list[str] = json.loads(connected.ask("/open-files-of-a-fork"))
        sockets = {each for each in parents if each.startswith("socket:")}
        key_log = {each for each in parents if each.startswith("pipe:") and parents.count(each) >= 3}
        assert sockets
        assert key_log
        assert not (sockets | key_log) & set(childs)


def test_a_name_that_is_none_costs_no_line_of_the_log(tmp_path: Path) -> None:
    """The standard library would write a traceback for each, where there are several certificates."""
    other, other_key = AUTHORITY.server("example.org").write(tmp_path, "other")
    with serving(tmp_path, "--tls-cert", str(other), "--tls-key", str(other_key)) as server:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read().replace(b"localhost", b"local\xffost")
        with socket.create_connection(server.address(), PATIENCE) as plain:
            plain.sendall(hello)
            assert plain.recv(1) == b"\x16"
        with client(server) as connected:
            connected.ask("/pid")
        assert "Traceback" not in server.log()
