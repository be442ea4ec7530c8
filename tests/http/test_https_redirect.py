"""--https-redirect: where clients of plain addresses are sent, and what is served all the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_asgi.http.https_redirect import HttpsRedirect
from serve_asgi.http.worker_context import Message, Receive, Scope, Send


async def served(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def answer(port: int = 443, host: bytes | None = b"a.example", **more: Any) -> tuple[int, str]:
    """The status of the response, and where it sends its client."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is to be read")

    scope = {
        "type": "http",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "path": "/x",
        "raw_path": b"/x",
        "query_string": b"",
        "headers": [] if host is None else [(b"host", host)],
        **more,
    }
    asyncio.run(HttpsRedirect(served, port)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]).get(b"location", b"").decode()


@pytest.mark.parametrize(
    ("host", "port", "target"),
    [
        (b"a.example", 443, "https://a.example/x"),
        (b"a.example:80", 443, "https://a.example/x"),
        (b"a.example:8080", 8443, "https://a.example:8443/x"),
        (b"[::1]", 443, "https://[::1]/x"),
        (b"[::1]:8080", 8443, "https://[::1]:8443/x"),
    ],
)
def test_the_host_stays_and_the_port_is_that_of_tls(host: bytes, port: int, target: str) -> None:
    assert answer(port, host) == (308, target)


def test_path_and_query_stay_as_they_were_written() -> None:
    assert answer(raw_path=b"/a%2Fb", path="/a/b", query_string=b"c=%20") == (308, "https://a.example/a%2Fb?c=%20")


def test_a_client_that_names_no_host_cannot_be_sent_anywhere() -> None:
    assert answer(host=None) == (400, "")
    assert answer(host=b"") == (400, "")


def test_a_websocket_is_sent_there_too() -> None:
    assert answer(type="websocket", scheme="ws") == (308, "https://a.example/x")


@pytest.mark.parametrize(
    "more",
    [
        {"scheme": "https"},
        {"type": "websocket", "scheme": "wss"},
        {"server": ("/run/serve.sock", None)},
        {"server": None},
        {"path": "/.well-known/acme-challenge/token"},
        {"type": "lifespan", "scheme": None},
    ],
    ids=str,
)
def test_what_is_served(more: dict[str, Any]) -> None:
    assert answer(**more) == (200, "")


def test_a_path_beside_that_of_acme_is_not_served() -> None:
    assert answer(path="/.well-known/acme-challenge")[0] == 308
