"""Variables that were meant for the server are told from those of others."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from serve_asgi.config.options import environment_names, options
from serve_asgi.config.unknown_options import misspelt, told_of
from tests.applications import info
from tests.running import running


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SERVE_WORKERZ", "SERVE_WORKERS"),
        ("SERVE_WORKER", "SERVE_WORKERS"),
        ("serve_workers", "SERVE_WORKERS"),
        ("SERVE_GRACEFULL_TIMEOUT", "SERVE_GRACEFUL_TIMEOUT"),
        ("SERVE_KEEPALIVE", "SERVE_KEEP_ALIVE"),
        ("SERVE_GRACEFUL-TIMEOUT", "SERVE_GRACEFUL_TIMEOUT"),
        ("SERVE_APPS", "SERVE_APP"),
    ],
)
def test_what_is_nearly_one_of_ours(name: str, meant: str) -> None:
    assert misspelt({name: "4"}) == {name: meant}


@pytest.mark.parametrize(
    "name",
    [
        *(name for option, (_, defined) in options().items() for name in environment_names(option, defined)),
        "SERVE_APP",
        "SERVE_EVENT",
        "SERVE_EVENT_REASON",
        "SERVE_LISTENER_PID",
        "SERVE_MODEL_PATH",
        "SERVE_SERVICE_HOST",
        "SERVE_SERVICE_PORT_HTTP",
        "SERVE_PORT_80_TCP",
        "SERVE_PORT_80_TCP_ADDR",
        "SERVE_ADMIN_SERVICE_HOST",
        "SERVER_WORKERS",
        "WORKERS",
    ],
)
def test_what_is_ours_or_somebody_elses(name: str) -> None:
    assert misspelt({name: "4"}) == {}


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_an_address_that_kubernetes_sets_is_none_of_ours(protocol: str) -> None:
    assert misspelt({"SERVE_ROOT_PORT": f"{protocol}://10.0.0.7:80"}) == {}


def test_options_of_other_servers_are_told_as_on_the_command_line() -> None:
    told = told_of(
        {"SERVE_QUIC_BIND": "1", "SERVE_SSL_KEYFILE": "k", "SERVE_UDS": "/a", "SERVE_WORKERZ": "2", "HOME": "/"}
    )
    assert [text.partition(":")[0] for text in told] == [
        f"the environment variable {name} does nothing"
        for name in ("SERVE_QUIC_BIND", "SERVE_SSL_KEYFILE", "SERVE_UDS", "SERVE_WORKERZ")
    ]
    assert "there is no HTTP/3" in told[0]
    assert told[1].endswith("SERVE_SSL_KEYFILE is SERVE_TLS_KEY=k here")
    assert told[2].endswith("SERVE_UDS is SERVE_BIND=unix:/a here")
    assert told[3].endswith("did you mean SERVE_WORKERS?")


def test_the_operator_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.py").write_text(info())
    monkeypatch.setenv("SERVE_WORKERZ", "2")
    with running("app:app", directory=tmp_path) as server:
        told = "the environment variable SERVE_WORKERZ does nothing: did you mean SERVE_WORKERS?"
        assert told in server.log()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_the_variables_of_the_compiled_core_are_known() -> None:
    assert told_of({"SERVE_ASGI_PURE_PYTHON": "1", "SERVE_ASGI_COMPILE": "never"}) == []
    assert "did you mean SERVE_ASGI_PURE_PYTHON" in told_of({"SERVE_ASGI_PURE_PYTHN": "1"})[0]
