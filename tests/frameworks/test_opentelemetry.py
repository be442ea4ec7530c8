"""Spans of requests, WebSockets and reloads, with the SDK that the application sets up; sent as workers retire."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import websockets.sync.client

from serve_asgi.cli import control_client
from serve_asgi.cli.control_client import RequestRefused
from tests.frameworks.driving import reload, serving, url
from tests.running import PATIENCE, ROOT, connect, request

pytestmark = pytest.mark.frameworks("opentelemetry.sdk", "starlette")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("forked", [False, True])
def test_spans_have_the_incoming_context_and_none_is_lost_with_its_worker(tmp_path: Path, forked: bool) -> None:
    more = ("--preload", "strict") if forked else ()
    environment = {"FORKED": "1" if forked else "", "OTEL_SDK_DISABLED": "false"}
    with serving("traced_app:app", tmp_path, "--opentelemetry", *more, environment=environment) as server:
        with connect(server) as client:
            traced: dict[str, Any] = {"traceparent": f"00-{TRACE}-{PARENT}-01", "user_agent": "test/1"}
            assert request(client, "/items/7?a=b", **traced)[0] == 200
            assert request(client, "/fail")[0] == 500
            assert request(client, "/nothing")[0] == 404
            client.sendall(b"PURGE /items/7 HTTP/1.1\r\nhost: shop:80\r\n\r\n")
            assert client.recv(65536)
        with websockets.sync.client.connect(url(server, "/socket", "ws"), open_timeout=PATIENCE) as socket:
            assert socket.recv() == "hello"
        reload(server)
        spans = read(tmp_path)
        assert server.stop() == 0
    named = {span["name"]: span for span in spans}
    assert sorted(named) == [
        "GET",
        "GET /fail",
        "GET /items/{number}",
        "GET /socket",
        "HTTP /items/{number}",
        "look up",
    ]
    item = named["GET /items/{number}"]
    assert item["context"]["trace_id"] == f"0x{TRACE}"
    assert item["parent_id"] == f"0x{PARENT}"
    assert named["look up"]["parent_id"] == item["context"]["span_id"]
    assert item["kind"] == "SpanKind.SERVER"
    host, port = server_address(item)
    assert item["attributes"] == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/items/{number}",
        "url.scheme": "http",
        "url.path": "/items/7",
        "url.query": "a=b",
        "network.protocol.version": "1.1",
        "user_agent.original": "test/1",
        "server.address": host,
        "client.address": "127.0.0.1",
        "client.port": port,
        "serve.generation": 1,
        "serve.slot": 0,
    }
    assert item["status"]["status_code"] == "UNSET"
    failed = named["GET /fail"]
    assert (failed["attributes"]["error.type"], failed["attributes"]["http.response.status_code"]) == (
        "RuntimeError",
        500,
    )
    assert failed["status"]["status_code"] == "ERROR"
    assert [event["attributes"]["exception.message"] for event in failed["events"]] == ["on purpose"]
    assert (named["GET"]["attributes"]["http.response.status_code"], named["GET"]["status"]["status_code"]) == (
        404,
        "UNSET",
    )
    other = named["HTTP /items/{number}"]["attributes"]
    assert (other["http.request.method"], other["http.request.method_original"]) == ("_OTHER", "PURGE")
    assert (other["server.address"], other["server.port"]) == ("shop", 80)
    socket_span = named["GET /socket"]["attributes"]
    assert (socket_span["url.scheme"], socket_span["http.response.status_code"]) == ("ws", 101)
    (reloaded,) = [span for span in read(tmp_path) if span["name"] == "serve.reload"]
    assert reloaded["attributes"] == {"serve.generation": 2, "serve.slot": 0, "serve.reload.outcome": "done"}
    assert reloaded["start_time"] < reloaded["end_time"]


def test_a_reload_that_is_refused_or_taken_back_is_an_error(tmp_path: Path) -> None:
    """The generation that serves on, or again, makes the span."""
    more, environment = ("--keep-previous", "60", "--workers", "2"), {"OTEL_SDK_DISABLED": "false"}
    with serving("traced_app:app", tmp_path, "--opentelemetry", *more, environment=environment) as server:
        (tmp_path / "bad").touch()
        with pytest.raises(RequestRefused):
            server.reload()
        (tmp_path / "bad").unlink()
        server.reload()
        control_client.ask(server.control, "rollback")
        assert server.stop() == 0
    reloads = sorted((each for each in read(tmp_path) if each["name"] == "serve.reload"), key=lambda s: s["end_time"])
    outcomes = [
        (each["attributes"]["serve.reload.outcome"], each["attributes"]["serve.generation"]) for each in reloads
    ]
    assert outcomes == [("refused", 1), ("done", 3), ("rolled_back", 1)]
    assert [each["status"]["status_code"] for each in reloads] == ["ERROR", "UNSET", "ERROR"]
    assert "cannot be imported" in reloads[0]["status"]["description"]
    assert all(each["start_time"] < each["end_time"] for each in reloads)


def read(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "spans").read_text().splitlines()]


def server_address(span: dict[str, Any]) -> tuple[str, int]:
    """What differs from run to run."""
    return span["attributes"]["server.address"], span["attributes"]["client.port"]


def test_without_the_package_it_is_said_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import sys; sys.modules['opentelemetry'] = None\nasync def app(*_): ...\n")
    command = [sys.executable, "-m", "serve_asgi", "app:app", "--bind", "127.0.0.1:0", "--opentelemetry", "on"]
    found = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert found.returncode != 0
    assert "pip install opentelemetry-api" in found.stdout + found.stderr
