"""What a worker has loaded: nothing of what its options do not ask for, for each worker would hold it in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import connect, request, running

APPLICATION = """
import sys

async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": " ".join(sys.modules).encode()})
"""
NOT_FOR_ALL = {
    "argparse",
    "cryptography",
    "difflib",
    "hpack",
    "h11",
    "logging.config",
    "opentelemetry",
    "prometheus_client",
    "serve_asgi.admin",
    "serve_asgi.app.messenger",
    "serve_asgi.app.metrics",
    "serve_asgi.app.request_tracing",
    "serve_asgi.app.schedule",
    "serve_asgi.app.wsgi",
    "serve_asgi.cli",
    "serve_asgi.config.sources",
    "serve_asgi.config.unknown_options",
    "serve_asgi.demo",
    "serve_asgi.http.https_redirect",
    "serve_asgi.http.static_files",
    "serve_asgi.http2",
    "serve_asgi.hub",
    "serve_asgi.in_process",
    "serve_asgi.listener",
    "serve_asgi.logs.log_config",
    "serve_asgi.logs.statsd",
    "serve_asgi.store",
    "serve_asgi.supervisor",
    "serve_asgi.tls",
    "tomllib",
    "yaml",
}


def test_a_worker_loads_only_what_its_options_ask_for(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    with running("app:app", "--http2", "off", directory=tmp_path) as server, connect(server) as client:
        loaded = set(request(client)[1].decode().split())
    assert "serve_asgi.worker.worker" in loaded
    assert not NOT_FOR_ALL & loaded


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--channel", "x")])
def test_who_starts_one_by_hand_is_told_what_to_run(arguments: tuple[str, ...]) -> None:
    command = (sys.executable, "-m", "serve_asgi.worker", *arguments)
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        1,
        "serve_asgi.worker is started by the listener, not by hand: run serve\n",
    )
