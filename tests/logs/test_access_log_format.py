"""Access log formats that a person puts together, as they are found where they were written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from serve_asgi.config.options import Config
from serve_asgi.logs.access_log_format import ATOMS, compile_format
from serve_asgi.logs.access_log_standard import AccessLog, RefusedRequest, open_access_log
from serve_asgi.tls.moved_session import TlsInfo
from tests.applications import info
from tests.logs.test_access_log import AT, CLIENT, Asked, ago
from tests.running import connect, request, running

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEADERS = [
    (b"referer", b"http://a/"),
    (b"user-agent", b"curl/8"),
    (b"x-foo", b"1"),
    (b"x-foo", b'"2\n'),
    (b"x-request-id", b"me"),
    (b"traceparent", TRACE.encode()),
]


class Answer:
    """What else is known of an answered request."""

    def peer(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def client_scheme(self) -> str:
        return "https"

    def tls(self) -> TlsInfo:
        return TlsInfo(0x0304, 0x1301, "TLS_AES_128_GCM_SHA256", resumed=True)

    def identity(self) -> str:
        return "made"

    def response_header(self, name: bytes) -> bytes:
        return b"text/plain" if name == b"content-type" else b""


def written(path: Path, style: str, *, times: int = 1, **more: str) -> list[str]:
    """The lines of one request, logged so many times."""
    log = open_log(path, style, **more)
    asked = Asked("/x?y=1", headers=HEADERS)
    for _ in range(times):
        log.record(CLIENT, asked, 200, 12, ago(0.25), Answer())
    log.close()
    return path.read_text().splitlines()


def open_log(path: Path, style: str, **more: str) -> AccessLog:
    log = open_access_log(Config(access_log_file=str(path), access_log_format=style, **more), 7, 2)  # type: ignore[arg-type]
    assert log is not None
    return log


@pytest.mark.parametrize(
    ("style", "line"),
    [
        ('%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s', rf'10\.0\.0\.1 - - {AT} "GET /x\?y=1 HTTP/1\.1" 200 12'),
        ('"%(f)s" "%(a)s"', '"http://a/" "curl/8"'),
        ("%(m)s %(U)s %(q)s %(H)s", "GET /x y=1 HTTP/1.1"),
        ("%(target)s %(version)s", r"/x\?y=1 1\.1"),
        ("%(L)s %(T)s %(M)s %(D)s", r"0\.2[5-9]\d{4} 0 2[5-9]\d 2[5-9]\d{4}"),
        ("%(B)s%%%(size)s", "12%12"),
        ("%(p)s %(generation)s.%(slot)s", r"\d+ 7\.2"),
        ("%({X-Foo}i)s|%({x-bar}i)s", r'1, \\"2\\x0a\|-'),
        ("%({Content-Type}o)s|%({x-bar}o)s", r"text/plain\|-"),
        ("%(client)s %(peer)s %(scheme)s", r"10\.0\.0\.1 127\.0\.0\.1 https"),
        ("%(tls_version)s %(tls_cipher)s %(tls_resumed)s", "TLSv1.3 TLS_AES_128_GCM_SHA256 yes"),
        ("%(request-id)s %(traceparent)s", f"me {TRACE}"),
    ],
)
def test_fields_of_a_line(tmp_path: Path, style: str, line: str) -> None:
    lines = written(tmp_path / "a", style, times=2)
    assert len(lines) == 2
    for found in lines:
        assert re.fullmatch(line, found)


def test_every_atom_of_gunicorn_is_understood(tmp_path: Path) -> None:
    style = " ".join(f"%({letter})s" for letter in [*ATOMS, "l", "u"])
    assert "%" not in written(tmp_path / "a", style)[0]


def test_a_made_id_is_the_answers_own(tmp_path: Path) -> None:
    assert written(tmp_path / "a", "%(request_id)s %(s)s", request_id="generate") == ["made 200"]


def test_a_size_of_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path / "a", "%(b)s %(B)s")
    log.record(CLIENT, Asked("/"), 304, 0, ago(0))
    log.close()
    assert (tmp_path / "a").read_text() == "- 0\n"


def test_json_with_fields(tmp_path: Path) -> None:
    style = (
        "json:time, client,peer,scheme,status,size,seconds,microseconds,slot,{x-foo}i,{content-type}o,request_id,query"
    )
    (line,) = written(tmp_path / "a", style)
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert 0.25 <= found.pop("seconds") < 10
    assert found.pop("microseconds") >= 250_000
    assert found == {
        "client": "10.0.0.1",
        "peer": "127.0.0.1",
        "scheme": "https",
        "status": 200,
        "size": 12,
        "slot": 2,
        "x-foo": '1, "2\n',
        "response.content-type": "text/plain",
        "request_id": "me",
        "query": "y=1",
    }


@pytest.mark.parametrize("style", ["%(h)s %(r)s %({x}i)s %({y}o)s", "json:client,request,{x}i,{y}o"])
def test_no_request_writes_a_line_of_its_own(tmp_path: Path, style: str) -> None:
    bad = b'/\n\r\x1b"\\\x85\xff'

    class Echo(Answer):
        def response_header(self, name: bytes) -> bytes:
            return bad

    log = open_log(tmp_path / "a", style)
    asked = Asked(bad.decode("latin-1"), headers=[(b"x", bad)])
    for _ in range(2):
        log.record((bad.decode("latin-1"), 1), asked, 200, 1, ago(0), Echo())
    log.record(None, RefusedRequest(), 400, 1, ago(0))
    log.close()
    data = (tmp_path / "a").read_bytes()
    assert data.count(b"\n") == 3
    assert all(0x20 <= byte < 0x7F for byte in data.replace(b"\n", b""))


@pytest.mark.parametrize(
    ("style", "sentence"),
    [
        ("comon", "'comon' is not a format of the access log: write auto, common, combined, json, a line"),
        ("%(z)s", "'z' is not a field of the access log; there are: client, "),
        ("%(h)d", "'%(h)d' is not a field"),
        ("%(h)s 100%", "'%' is not a field of the access log: write %"),
        ("%({a b}i)s", "not a field of the access log: {NAME}i is a request"),
        ("%({x}e)s", "not a field of the access log: {NAME}i is a request"),
        ("json:", "'' is not a field"),
        ("json:client,client", "names a field twice"),
        ("%(h)s\n", "holds a character that cannot be printed"),
    ],
)
def test_a_format_that_cannot_be(style: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        compile_format(style)


def test_a_chosen_line_of_a_server_behind_a_proxy(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    style = '%(h)s %(peer)s %(scheme)s "%(r)s" %(s)s %(B)s "%({x-tenant}i)s" %({Content-Length}o)s %(generation)s'
    access = tmp_path / "access"
    with running(
        "app:app", "--access-log-format", style, "--access-log-file", str(access), directory=tmp_path
    ) as server:
        with connect(server) as connection:
            status, body = request(connection, "/a", x_forwarded_for="1.2.3.4", x_forwarded_proto="https", x_tenant="t")
            assert status == 200
            request(connection, "/b")
            connection.sendall(b"nonsense\r\n\r\n")
            assert b" 400 " in connection.recv(65536)
        assert server.stop() == 0
    first, second, third = access.read_text().splitlines()
    assert first == f'1.2.3.4 127.0.0.1 https "GET /a HTTP/1.1" 200 {len(body)} "t" {len(body)} 1'
    assert re.fullmatch(r'127\.0\.0\.1 127\.0\.0\.1 http "GET /b HTTP/1\.1" 200 (\d+) "-" \1 1', second)
    assert re.fullmatch(r'127\.0\.0\.1 127\.0\.0\.1 http "- - HTTP/1\.1" 400 \d+ "-" - 1', third)
