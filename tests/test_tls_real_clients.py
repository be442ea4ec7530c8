"""Clients that people use, each on one TLS connection over two reloads: none of them may notice.

They ask the demonstration who serves them: its answer has the generation and the client's port, so that a client that
connects again behind its caller's back is found out.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser import page
from tests.certificates import Authority
from tests.real_clients import FEW, RELOADS, Secure, client, lines, over_reloads
from tests.running import PATIENCE, running

NODE = """
const https = require("node:https");
const agent = new https.Agent({keepAlive: true, maxSockets: 1, ca: require("node:fs").readFileSync(process.argv[2])});
function ask() {
  https.get(process.argv[1], {agent}, answer => {
    let body = "";
    answer.on("data", piece => body += piece);
    answer.on("end", () => { console.log(body); setTimeout(ask, 10); });
  });
}
ask();
"""
"""Asks for one URL after the other; whatever fails ends it with a traceback."""
JAVA = """
import java.io.FileInputStream;
import java.net.URI;
import java.net.http.*;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.*;

class Asking {
  public static void main(String[] arguments) throws Exception {
    KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
    store.load(null, null);
    var certificates = CertificateFactory.getInstance("X.509");
    store.setCertificateEntry("ca", certificates.generateCertificate(new FileInputStream(arguments[1])));
    TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
    trust.init(store);
    SSLContext context = SSLContext.getInstance("TLSv1.3");
    context.init(null, trust.getTrustManagers(), null);
    HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).sslContext(context).build();
    HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0])).build();
    while (true) {
      System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
      Thread.sleep(10);
    }
  }
}
"""
"""The same."""


@contextlib.contextmanager
def serving(directory: Path, *more: str) -> Iterator[Secure]:
    """A server of its own."""
    authority = Authority()
    certificate, key = authority.server("localhost", "127.0.0.1").write(directory)
    options = ("--workers", "2", "--tls-cert", str(certificate), "--tls-key", str(key), *more)
    with running("serve_asgi.demo:asgi", *options, directory=directory) as server:
        yield Secure(server, authority, directory)
        assert server.stop() == 0
        assert "error" not in server.log()


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    with serving(tmp_path_factory.mktemp("secure")) as secure:
        yield secure


@pytest.mark.needs("curl")
def test_curl(secure: Secure) -> None:
    command = ("curl", "--silent", "--show-error", "--fail", "--no-buffer", "--tlsv1.3", "--cacert", secure.trusted)
    many = ("--http1.1", "--rate", "100/s", "--write-out", "\\n", f"{secure.url}?[1-100000]")
    with client(*command, *many) as process:
        assert len(over_reloads(secure, lines(process))) == 1


@pytest.mark.needs("node")
def test_node(secure: Secure) -> None:
    with client("node", "--eval", NODE, secure.url, secure.trusted) as process:
        assert len(over_reloads(secure, lines(process))) == 1


@pytest.mark.needs("javac")
def test_java(secure: Secure, tmp_path: Path) -> None:
    source = tmp_path / "Asking.java"
    source.write_text(JAVA)
    with client("java", str(source), secure.url, secure.trusted) as process:
        assert len(over_reloads(secure, lines(process))) == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
def test_httpx(secure: Secure, version: ssl.TLSVersion) -> None:
    """It sends nothing twice. A connection of TLS 1.2 is closed at a reload, and no request is lost by that."""
    context = secure.authority.client_context()
    context.maximum_version = version
    limits = httpx.Limits(max_connections=1)

    def ask(session: httpx.Client) -> Iterator[dict[str, Any]]:
        while True:
            answer = session.get(secure.url)
            assert answer.status_code == 200
            yield answer.json()

    with httpx.Client(verify=context, limits=limits, timeout=PATIENCE, trust_env=False) as session:
        connections = over_reloads(secure, ask(session))
    assert len(connections) == 1 if version is ssl.TLSVersion.TLSv1_3 else len(connections) <= 1 + RELOADS


class OpenSsl:
    """`openssl s_client`, whose commands K and k send a KeyUpdate, with and without asking for one in return."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self._said = b""

    def answers(self) -> Iterator[dict[str, Any]]:
        """One after the other, with KeyUpdates between them."""
        self.wait(rb"---\n")
        for command in itertools.cycle((b"", b"K", b"k", b"K")):
            if command:
                self.send(command + b"\n")  # by itself: what comes in one read with it is thrown away
                self.wait(rb"KEYUPDATE\n")
            self.send(b"GET /who HTTP/1.1\r\nhost: localhost\r\n\r\n")
            yield json.loads(self.wait(rb"\r\n\r\n({[^}]*})")[1])

    def send(self, data: bytes) -> None:
        """To its standard input."""
        self._in.write(data)
        self._in.flush()

    def wait(self, pattern: bytes) -> re.Match[bytes]:
        """Until it has said this; what was said before it is forgotten."""
        while (found := re.search(pattern, self._said)) is None:
            piece = os.read(self._out.fileno(), 65536)
            assert piece, self._said.decode(errors="replace")
            self._said += piece
        self._said = self._said[found.end() :]
        return found


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("suite", ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"])
def test_openssl_with_key_updates(secure: Secure, suite: str) -> None:
    command = ("openssl", "s_client", "-connect", f"localhost:{secure.port}", "-CAfile", secure.trusted)
    strict = ("-verify_return_error", "-verify_hostname", "localhost", "-servername", "localhost")
    with client(*command, *strict, "-tls1_3", "-ciphersuites", suite) as process:
        assert len(over_reloads(secure, OpenSsl(process).answers())) == 1


@pytest.mark.needs("chromium")
def test_chromium_over_http1(tmp_path: Path) -> None:
    """The demonstration: its requests, its event stream and its WebSocket keep their connections."""
    with serving(tmp_path, "--http2", "off") as secure:
        kept, counts = demonstrate(secure, tmp_path)
        assert kept
        assert set(counts.values()) == {0}


@pytest.mark.needs("chromium")
def test_chromium_over_http2(tmp_path: Path) -> None:
    """All on one connection, on which its event stream and its WebSocket go on."""
    with serving(tmp_path) as secure:
        kept, counts = demonstrate(secure, tmp_path)
        assert kept
        assert set(counts.values()) == {0}
        assert re.search(r'"CONNECT /socket\S* HTTP/2" 200', secure.server.log())


def demonstrate(secure: Secure, tmp_path: Path) -> tuple[bool, dict[str, int]]:
    """Look at the demonstration over reloads: whether it kept its first connections, and what it has counted."""
    with page(tmp_path / "profile", "--ignore-certificate-errors") as browser:
        browser.open(f"https://localhost:{secure.port}/")
        browser.wait_for("document.getElementById('live').textContent === 'live'")
        generations = secure.generations()
        for _ in range(RELOADS):
            fetches = browser.number("fetches")
            browser.wait_for(f"+document.getElementById('fetches').textContent > {fetches + FEW}")
            generation = next(generations)
            browser.wait_for(f"+document.getElementById('generation').textContent === {generation}")
            browser.wait_for("document.getElementById('live').textContent === 'live'")
        kept = all(browser.text(f"{lane}-kept").startswith("on one ") for lane in ("requests", "stream", "socket"))
        events = [f"{lane}-{what}" for lane in ("stream", "socket") for what in ("missed", "duplicated")]
        counts = {name: browser.number(name) for name in ("failed", *events)}
        browser.open("about:blank")
        return kept, counts
