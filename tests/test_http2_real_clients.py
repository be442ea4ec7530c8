"""Clients that people use, speaking HTTP/2 over two reloads, in clear text and over TLS: none of them may notice.

Each of them has short requests, so that its connection goes over; what lasts longer than `--h2-hold` (a stream of gRPC)
ends where it is, and what comes after it goes to another connection.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser import page
from tests.certificates import Authority
from tests.http2_application import CALLS
from tests.real_clients import FEW, RELOADS, Secure, Serving, client, lines, over_reloads
from tests.running import PATIENCE, running
from tests.test_proxies import free_port, haproxy

HOLD = ("--h2-hold", "2")
"""Longer than it is, as the machine may have other things to do."""
NODE = """
const http2 = require("node:http2"), fs = require("node:fs");
const [url, authority] = process.argv.slice(1);
const session = http2.connect(new URL(url).origin, authority ? {ca: fs.readFileSync(authority)} : {});
session.on("goaway", code => { console.log("GOAWAY", code); process.exit(1); });
function ask() {
  const stream = session.request({":path": "/who"});
  let body = "";
  stream.setEncoding("utf8");
  stream.on("data", piece => body += piece);
  stream.on("end", () => { console.log(body); setTimeout(ask, 10); });
}
for (let atOnce = 0; atOnce < 4; atOnce++) ask();
"""
"""Asks on one session, four at once; whatever fails ends it with a traceback."""


def serve_app(directory: Path, *options: str) -> Any:
    """The server, whose processes note calls of gRPC in the file `calls` in this directory."""
    environment = {CALLS: str(directory / "calls")}
    options = ("--workers", "2", *HOLD, *options)
    return running("tests.http2_application:app", *options, directory=directory, environment=environment)


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serve_app(tmp_path_factory.mktemp("clear")) as server:
        yield Serving(server)
        assert server.stop() == 0
        assert "error" not in server.log()


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    directory = tmp_path_factory.mktemp("secure")
    authority = Authority()
    certificate, key = authority.server("localhost", "127.0.0.1").write(directory)
    with serve_app(directory, "--tls-cert", str(certificate), "--tls-key", str(key)) as server:
        yield Secure(server, authority, directory)
        assert server.stop() == 0
        assert "error" not in server.log()


@pytest.fixture(params=["clear", "secure"])
def serving(request: pytest.FixtureRequest) -> Serving:
    """In clear text, and over TLS."""
    found: Serving = request.getfixturevalue(request.param)
    return found


def speaking_http2(answers: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same, if HTTP/2 was spoken."""
    for answer in answers:
        assert answer["version"] == "2"
        yield answer


CURL = ("curl", "--silent", "--show-error", "--fail", "--no-buffer", "--write-out", "\\n")


@pytest.mark.needs("curl")
def test_curl(secure: Secure) -> None:
    many = ("--http2", "--cacert", secure.trusted, "--rate", "100/s", f"{secure.url}?[1-100000]")
    with client(*CURL, *many) as process:
        assert len(over_reloads(secure, speaking_http2(lines(process)))) == 1


@pytest.mark.needs("curl")
def test_curl_in_clear_text(clear: Serving) -> None:
    """A connection for each request: curl 7.88 fails at the second one on a connection, whoever the server is."""

    def ask() -> Iterator[dict[str, Any]]:
        while True:
            with client(*CURL, "--http2-prior-knowledge", clear.url) as process:
                yield next(lines(process))

    over_reloads(clear, speaking_http2(ask()))


@pytest.mark.needs("node")
def test_node(serving: Serving) -> None:
    trusted = (serving.trusted,) if isinstance(serving, Secure) else ()
    with client("node", "--eval", NODE, serving.url, *trusted) as process:
        answers = speaking_http2(lines(process))
        assert len(over_reloads(serving, sorted_by_generation(answers))) == 1


def sorted_by_generation(answers: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of several at once, without the stragglers that the older worker has answered and that were read later."""
    newest = 0
    for answer in answers:
        if answer["generation"] >= newest:
            newest = answer["generation"]
            yield answer


def test_httpx(serving: Serving) -> None:
    """It sends nothing twice."""
    verify = serving.authority.client_context() if isinstance(serving, Secure) else True

    def ask(session: httpx.Client) -> Iterator[dict[str, Any]]:
        while True:
            answer = session.get(serving.url)
            assert answer.status_code == 200
            yield answer.json()

    with httpx.Client(verify=verify, http1=False, http2=True, timeout=PATIENCE, trust_env=False) as session:
        assert len(over_reloads(serving, speaking_http2(ask(session)))) == 1


def reloads_while(serving: Serving, command: list[str]) -> str:
    """What a client says that has ended well, and during which the server was reloaded."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        list(serving.generations())
        assert process.poll() is None, "it has ended before the last reload"
        output = process.communicate(timeout=2 * PATIENCE)[0].decode()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.mark.needs("h2load")
def test_h2load(serving: Serving) -> None:
    """4 connections with 8 requests at once each; it connects to each of them once."""
    output = reloads_while(serving, ["h2load", "-c4", "-m8", "-D12", "--rps", "100", serving.url])
    total, done, succeeded, failed = (
        int(re.search(rf"(\d+) {what},", output)[1])  # type: ignore[index]
        for what in ("total", "done", "succeeded", "failed")
    )
    assert total >= done == succeeded > 100, output
    assert failed == 0, output
    assert re.search(r"0 errored, 0 timeout", output), output


@pytest.mark.needs("nghttp")
def test_nghttp(serving: Serving) -> None:
    """Many requests at once on one connection, three times in a row while the server is reloaded."""
    command = f"for round in $(seq 20); do nghttp --no-verify-peer -ns -m 300 {serving.url} || exit; sleep 0.2; done"
    output = reloads_while(serving, ["sh", "-c", command])
    statuses = Counter(re.findall(r"^ *\d+ +\+\S+ +\S+ +\S+ +(\S+)", output, re.MULTILINE))
    assert statuses == {"200": 20 * 300}, output


@pytest.mark.needs("chromium")
def test_chromium(secure: Secure, tmp_path: Path) -> None:
    """Four requests at once all the time."""
    with page(tmp_path / "profile", "--ignore-certificate-errors") as browser:
        browser.open(f"https://localhost:{secure.port}/page")
        for generation in itertools.chain([0], secure.generations()):
            browser.wait_for(f"+document.getElementById('generation').textContent >= {generation}")
            enough = browser.number("answers") + FEW
            browser.wait_for(f"+document.getElementById('answers').textContent > {enough}")
        told = browser.evaluate("told")
        browser.open("about:blank")
    assert told["version"] == "2"
    assert told["failures"] == []
    assert len(told["connections"]) == 1


@pytest.mark.needs("haproxy")
def test_behind_haproxy(clear: Serving, tmp_path: Path) -> None:
    """It speaks HTTP/2 to the server, and keeps its connections over reloads."""
    port = free_port()
    body = (
        f"listen http\n  mode http\n  bind 127.0.0.1:{port}\n  http-reuse always\n"
        f"  server app 127.0.0.1:{clear.port} proto h2\n"
    )
    with haproxy(tmp_path, "http2", body, port), httpx.Client(timeout=PATIENCE, trust_env=False) as session:

        def ask() -> Iterator[dict[str, Any]]:
            while True:
                answer = session.get(f"http://127.0.0.1:{port}/who")
                assert answer.status_code == 200
                yield answer.json()

        assert len(over_reloads(clear, speaking_http2(ask()))) == 1


class Service:
    """A client of gRPC that tries nothing again (https://grpc.io/docs/guides/retry/)."""

    def __init__(self, grpc: Any, serving: Serving) -> None:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        target = f"localhost:{serving.port}"
        if isinstance(serving, Secure):
            credentials = grpc.ssl_channel_credentials(Path(serving.trusted).read_bytes())
            self.channel = grpc.secure_channel(target, credentials, options)
        else:
            self.channel = grpc.insecure_channel(target, options)
        self.say: Callable[..., bytes] = self.channel.unary_unary("/test.Test/Say")
        self.count: Callable[..., Iterator[bytes]] = self.channel.unary_stream("/test.Test/Count")
        self.missing: Callable[..., bytes] = self.channel.unary_unary("/test.Test/Missing")

    def answers(self, name: str) -> Iterator[dict[str, Any]]:
        """Of unary calls, one after another."""
        for number in itertools.count():
            message = f"{name} {number}"
            said = json.loads(self.say(message.encode(), timeout=PATIENCE))
            assert said["message"] == message
            yield said


@pytest.fixture
def service(serving: Serving) -> Iterator[Service]:
    grpc = pytest.importorskip("grpc")
    service = Service(grpc, serving)
    yield service
    service.channel.close()


def test_unary_calls_of_grpc(serving: Serving, service: Service) -> None:
    assert len(over_reloads(serving, speaking_http2(service.answers("unary")))) == 1
    executed = Counter((serving.server.directory / "calls").read_text().splitlines())
    assert set(executed.values()) == {1}


def test_a_stream_of_grpc_ends_where_it_is(serving: Serving, service: Service) -> None:
    """It lasts over the reloads; calls that begin after them go elsewhere, and nothing fails."""
    total = 500
    numbers = service.count(b"%d" % total, timeout=2 * PATIENCE)
    assert next(numbers) == b"0"
    assert len(over_reloads(serving, speaking_http2(service.answers("beside")))) <= 1 + RELOADS
    assert [int(number) for number in numbers] == list(range(1, total))


def test_a_method_that_grpc_does_not_find(serving: Serving, service: Service) -> None:
    grpc = pytest.importorskip("grpc")
    with pytest.raises(grpc.RpcError) as raised:
        service.missing(b"", timeout=PATIENCE)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
