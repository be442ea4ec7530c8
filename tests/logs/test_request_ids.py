"""What names a request in several programs' logs: what is believed, and where it is seen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from serve_asgi.config.options import Config
from serve_asgi.logs.request_ids import RequestIds, traceparent
from tests.running import PATIENCE, RunningServer, connect, running

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MADE = rb"[0-9a-f]{32}"

ECHO = """
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": repr(scope["headers"])})
        await send({"type": "websocket.close"})
    elif scope["type"] == "http":
        ids = [value for name, value in scope["headers"] if name == b"x-request-id"]
        own = [(b"X-Request-Id", b"own")] if scope["path"] == "/own" else []
        body = b" ".join(ids)
        await send({"type": "http.response.start", "status": 200, "headers": own})
        await send({"type": "http.response.body", "body": body})
"""


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (TRACE, True),
        (TRACE.upper(), False),
        (TRACE + b"-x", False),  # version 00 ends with the flags
        (b"01" + TRACE[2:], True),
        (b"cc" + TRACE[2:] + b"-what-comes", True),
        (b"cc" + TRACE[2:] + b".what", False),
        (b"ff" + TRACE[2:], False),
        (b"00-" + b"0" * 32 + TRACE[35:], False),
        (TRACE[:36] + b"0" * 16 + b"-01", False),
        (b"cc-" + b"0" * 32 + TRACE[35:], False),
        (TRACE[:-1], False),
        (b"", False),
    ],
)
def test_what_a_traceparent_is(value: bytes, valid: bool) -> None:
    assert traceparent([(b"host", b"x"), (b"traceparent", value)]) == (value.decode() if valid else "")


def test_a_traceparent_stands_once() -> None:
    assert traceparent([(b"traceparent", TRACE)] * 2) == ""
    assert traceparent([]) == ""


@pytest.mark.parametrize(
    ("value", "valid"),
    [(b"a", True), (b"!" * 128, True), (b"a" * 129, False), (b"", False), (b"a b", False), (b"\xe9", False)],
)
def test_what_an_id_is(value: bytes, valid: bool) -> None:
    ids = RequestIds(Config())
    assert ids.carried([(b"x-request-id", value)]) == (value.decode("latin-1") if valid else "")
    assert ids.carried([(b"x-request-id", value)] * 2) == ""
    assert RequestIds(Config(request_id="off")).carried([(b"x-request-id", value)]) == ""


def test_what_was_no_id_is_replaced() -> None:
    ids = RequestIds(Config(request_id="generate", request_id_header="X-Correlation"))
    headers = [(b"x-correlation", b"a b"), (b"host", b"x")]
    made = ids.keep_or_generate(headers)
    assert re.fullmatch(MADE.decode(), made)
    assert headers == [(b"host", b"x"), (b"x-correlation", made.encode())]
    assert ids.keep_or_generate(headers) == made
    assert len({ids.keep_or_generate([]) for _ in range(100)}) == 100


# ---- seen in a server


def exchange(server: RunningServer, *lines: bytes) -> bytes:
    """One request; all that is answered until the server closes."""
    with connect(server) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(b"\r\n".join([*lines, b"host: x", b"connection: close", b"", b""]))
        answered = b""
        while piece := connection.recv(65536):
            answered += piece
        return answered


def test_an_id_is_made_seen_by_the_application_logged_and_returned(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(ECHO)
    options = ("--request-id", "echo", "--access-log-format", "json", "--access-log-file", str(tmp_path / "access"))
    with running("app:app", *options, directory=tmp_path) as server:
        answered = exchange(server, b"GET /made HTTP/1.1")
        made = re.findall(rb"\r\nx-request-id: (" + MADE + rb")\r\n", answered)
        assert made == re.findall(rb"\r\n\r\n(" + MADE + rb")$", answered)
        assert len(made) == 1
        answered = exchange(server, b"GET /kept HTTP/1.1", b"x-request-id: mine")
        assert b"\r\nx-request-id: mine\r\n" in answered
        assert answered.endswith(b"\r\n\r\nmine")
        answered = exchange(server, b"GET /own HTTP/1.1", b"X-Request-Id: mine")
        assert re.findall(rb"(?i)x-request-id: (\w+)", answered) == [b"own"]
        assert server.stop() == 0
    logged = {line["target"]: line for line in map(json.loads, (tmp_path / "access").read_text().splitlines())}
    assert logged["/made"]["request_id"] == made[0].decode()
    assert logged["/kept"]["request_id"] == "mine"
    assert list(logged["/made"]) == [
        *("time", "client", "method", "target", "version", "status", "size", "seconds", "referer", "user_agent"),
        *("request_id", "traceparent", "generation", "slot", "pid"),
    ]


def test_a_websocket_has_an_id_as_well(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(ECHO)
    style = "%(request_id)s %(scheme)s %(s)s"
    options = ("--request-id", "echo", "--access-log-format", style, "--access-log-file", str(tmp_path / "access"))
    with running("app:app", *options, directory=tmp_path) as server, connect(server) as connection:
        connection.sendall(
            b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        answered = b""
        connection.settimeout(PATIENCE)
        while b"\x88" not in answered:
            answered += connection.recv(65536)
        (made,) = re.findall(rb"\r\nx-request-id: (" + MADE + rb")\r\n", answered)
        assert b"(b'x-request-id', b'" + made + b"')" in answered
        connection.close()
        assert server.stop() == 0
    assert (tmp_path / "access").read_text() == f"{made.decode()} ws 101\n"


def test_nothing_is_made_or_returned_unasked(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(ECHO)
    with running("app:app", directory=tmp_path) as server:
        assert b"request-id" not in exchange(server, b"GET / HTTP/1.1")
        answered = exchange(server, b"GET / HTTP/1.1", b"x-request-id: mine")
        assert b"request-id" not in answered
        assert answered.endswith(b"\r\n\r\nmine")
