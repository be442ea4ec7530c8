"""HTTP/2 as an operator sets it up: on and off, over a reload too, behind what comes before it on a connection."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from h2.events import RemoteSettingsChanged
from h2.settings import SettingCodes

from serve_asgi.cli import control_client
from tests.certificates import Authority
from tests.h2_client import H2Client
from tests.running import PATIENCE, RunningServer, connect, running

ROOT = Authority("Test root")
TLS = ("--tls-cert", "server.pem", "--tls-key", "server.key")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PROXIED = b"PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\n"

TELL = """
import asyncio, json


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    told = {name: scope[name] for name in ("client", "server", "scheme", "http_version")}
    told |= {"generation": scope["extensions"]["serve"]["generation"], "tls": "tls" in scope["extensions"]}
    data = json.dumps(told).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]})
    await send({"type": "http.response.body", "body": data})
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(TELL)
    ROOT.server("localhost").write(tmp_path)
    return tmp_path


def agreed(server: RunningServer, *offered: str) -> str | None:
    """The protocol that a new connection gets by ALPN, and speaks."""
    client = ROOT.client_context()
    if offered:
        client.set_alpn_protocols(list(offered))
    with client.wrap_socket(connect(server), server_hostname="localhost") as secure:
        if (protocol := secure.selected_alpn_protocol()) == "h2":
            assert H2Client(secure).told()["http_version"] == "2"
        else:
            secure.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert b'"http_version": "1.1"' in b"".join(iter(lambda: secure.recv(65536), b""))
        return protocol


def reload(server: RunningServer) -> None:
    """Until only the new worker is left."""
    server.reload()
    server.wait_for_workers(1)


def refused(connection: socket.socket) -> bytes:
    """What an end that speaks no HTTP/2 answers to its preface, to the end of the connection."""
    connection.sendall(PREFACE)
    return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.once
@pytest.mark.parametrize(
    ("said", "protocol"), [((), "h2"), (("--http2", "on"), "h2"), (("--http2", "off"), "http/1.1")]
)
def test_which_protocol_tls_agrees_on(project: Path, said: tuple[str, ...], protocol: str) -> None:
    with running("app:app", *TLS, *said, directory=project) as server:
        assert agreed(server, "http/1.1", "h2") == protocol
        assert agreed(server, "h2") == ("h2" if protocol == "h2" else None)
        assert agreed(server, "http/1.1") == "http/1.1"
        assert agreed(server, "h3", "h2c") is None
        assert agreed(server) is None
        for offered in ([], ["http/1.1"]):  # where HTTP/1.1 was agreed on, HTTP/2 does not begin
            client = ROOT.client_context()
            client.set_alpn_protocols(offered)
            with client.wrap_socket(connect(server), server_hostname="localhost") as secure:
                assert refused(secure).startswith(b"HTTP/1.1 505 ")
        assert server.stop() == 0


def test_off_means_off_and_a_reload_changes_it(project: Path) -> None:
    (project / "serve.toml").write_text("http2 = false\n")
    with running("app:app", directory=project) as server:
        with connect(server) as plain:
            assert refused(plain).startswith(b"HTTP/1.1 505 ")
        (project / "serve.toml").write_text("http2 = true\nh2-max-streams = 7\n")
        reload(server)
        with H2Client.to(server.address()) as client:
            told = client.told()
            assert (told["http_version"], told["scheme"], told["generation"]) == ("2", "http", 2)
            said = client.wait(RemoteSettingsChanged).changed_settings
            assert said[SettingCodes.MAX_CONCURRENT_STREAMS].new_value == 7
            reload(server)
            assert client.told()["generation"] == 3  # on the same connection
            slow = client.begin("/slow")
            (project / "serve.toml").write_text("http2 = false\n")
            server.reload()
            assert json.loads(client.response(slow)[1])["generation"] == 3
            assert {code for _, code in client.ended()} == {0}  # nobody of the new generation takes it
        with connect(server) as plain:
            assert refused(plain).startswith(b"HTTP/1.1 505 ")
        assert server.stop() == 0


def served_and_told_to_leave(client: H2Client, generation: int) -> None:
    """It is told at once, the graceful timeout is far away; what it begins before it has read that is served."""
    stream = client.begin()
    assert json.loads(client.response(stream)[1])["generation"] == generation
    assert client.ended() == [((1 << 31) - 1, 0), (stream, 0)]


@pytest.mark.parametrize("rolled_back", [False, True], ids=["reload", "rollback"])
def test_where_the_next_generation_has_it_off_clients_are_told_at_once(project: Path, rolled_back: bool) -> None:
    configuration = project / "serve.toml"
    configuration.write_text(f"http2 = {'false' if rolled_back else 'true'}\n")
    arguments = ("--graceful-timeout", "600", "--keep-previous", "600")
    with running("app:app", *arguments, directory=project) as server:
        if rolled_back:
            configuration.write_text("http2 = true\n")
            server.reload()
        with H2Client.to(server.address()) as client, connect(server) as plain:
            now = client.told()["generation"]
            plain.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert plain.recv(65536).startswith(b"HTTP/1.1 200 ")
            if rolled_back:
                control_client.ask(server.control, "rollback")
            else:
                configuration.write_text("http2 = false\n")
                server.reload()
            served_and_told_to_leave(client, now)
            plain.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")  # which goes on with the others
            assert f'"generation": {1 if rolled_back else 2}'.encode() in plain.recv(65536)
        assert server.status()["totals"]["http2_goaways"] == 1


def test_clients_of_a_canary_that_is_taken_back_are_told_at_once_where_the_others_have_it_off(project: Path) -> None:
    (project / "serve.toml").write_text("http2 = false\n")
    trial = ("--canary", "--canary-time", "600", "--canary-share", "50")
    with running("app:app", "--graceful-timeout", "600", *trial, directory=project) as server:
        (project / "serve.toml").write_text("http2 = true\n")
        server.signal(signal.SIGHUP)
        server.wait_until(lambda status: bool((status["canary"] or {}).get("seconds_left")))
        while (client := H2Client(connect(server))).socket.recv(9, socket.MSG_PEEK).startswith(b"HTTP/1.1"):
            client.socket.close()  # another generation's
        with client:
            assert client.told()["generation"] == 2
            (project / "serve.toml").write_text("http2 = false\n")
            control_client.ask(server.control, "reload", canary={"on": False})  # which ends the trial
            served_and_told_to_leave(client, 2)


def test_behind_the_proxy_protocol(project: Path) -> None:
    with running("app:app", "--proxy-protocol", directory=project) as server:
        plain = connect(server)
        plain.sendall(PROXIED)
        with H2Client(plain) as client:
            told = client.told()
            assert (told["client"], told["http_version"], told["scheme"]) == (["192.0.2.7", 1234], "2", "http")
            reload(server)
            assert client.told() == {**told, "generation": 2}
        assert server.stop() == 0


def test_behind_the_proxy_protocol_and_tls(project: Path) -> None:
    with running("app:app", "--proxy-protocol", *TLS, directory=project) as server:
        plain = connect(server)
        plain.sendall(PROXIED)
        context = ROOT.client_context()
        context.set_alpn_protocols(["h2"])
        secure = context.wrap_socket(plain, server_hostname="localhost")
        assert secure.selected_alpn_protocol() == "h2"
        with H2Client(secure) as client:
            told = client.told()
            assert (told["client"], told["http_version"], told["scheme"]) == (["192.0.2.7", 1234], "2", "https")
            assert told["tls"]
            reload(server)
            assert client.told() == {**told, "generation": 2}
        assert server.stop() == 0


def test_over_a_unix_socket(project: Path) -> None:
    with running("app:app", directory=project, bind="unix:app.sock") as server:
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(str(project / "app.sock"))
        with H2Client(plain) as client:
            told = client.told()
            assert (told["http_version"], told["client"], told["generation"]) == ("2", None, 1)
            reload(server)
            assert client.told()["generation"] == 2
            totals = server.status()["totals"]
            assert (totals["http2_connections"], totals["http2_streams"], totals["http2_moved"]) == (1, 2, 1)
            assert (totals["http2_faults"], totals["http2_goaways"]) == (0, 0)
        assert server.stop() == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_over_each_version_of_tls_and_a_reload(project: Path, version: ssl.TLSVersion) -> None:
    with running("app:app", *TLS, directory=project) as server:
        context = ROOT.client_context()
        context.maximum_version = version
        with H2Client.to(server.address(), context) as client:
            assert client.told()["generation"] == 1
            server.reload()
            if version is ssl.TLSVersion.TLSv1_3:
                server.wait_for_workers(1)
                assert client.told()["generation"] == 2
            else:  # which stays with its worker, and is told to leave
                assert client.told()["generation"] == 1
                assert {code for _, code in client.ended()} == {0}
        assert server.stop() == 0


@pytest.mark.once
def test_the_redirect_to_https(project: Path) -> None:
    arguments = ("--bind", "http://127.0.0.1:0", "--https-redirect", *TLS)
    with running("app:app", *arguments, directory=project, bind="https://127.0.0.1:0") as server:
        port = int(server.status()["listening"][1].rpartition(":")[2])
        with H2Client.to(("127.0.0.1", port)) as plain:
            assert plain.ask("/x")[0] == 308
        with H2Client.to(server.address(), ROOT.client_context()) as secure:
            assert secure.ask("/x")[0] == 200
        assert server.stop() == 0


@pytest.mark.once
def test_the_help_has_its_options() -> None:
    command = [sys.executable, "-m", "serve_asgi", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    for option in ("--http2", "--h2-max-streams", "--h2-hold"):
        assert option in done.stdout
