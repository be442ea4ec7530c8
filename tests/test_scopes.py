"""Scopes of all kinds: plain data, as the ASGI texts allow it, and each call's own at every depth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from websockets.sync.client import connect as open_websocket

from tests.running import answer, connect, running

APPLICATION = '''
import json

ALLOWED = (bytes, str, int, float, bool, type(None))  # asgi, "Events"; no subclasses of them


def strange(value, where):
    """What ASGI does not have, as sentences."""
    if type(value) is dict:
        for key, inner in value.items():
            if type(key) is not str:
                yield f"{where}: the key {key!r} is a {type(key).__name__}"
            yield from strange(inner, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):  # the text has lists; tuples are what it calls iterables of two items
        for number, inner in enumerate(value):
            yield from strange(inner, f"{where}[{number}]")
    elif type(value) not in ALLOWED:
        yield f"{where} is a {type(value).__name__}"


def marked(value, where):
    """Marks of an earlier call, at any depth; below the state lies what the application itself has put there."""
    if type(value) is dict:
        if "mark" in value:
            yield where
        if where != "scope['state']":
            for key, inner in value.items():
                yield from marked(inner, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        if "mark" in value:
            yield where
        for number, inner in enumerate(value):
            yield from marked(inner, f"{where}[{number}]")


def mark(value, inside=True):
    if type(value) is dict:
        for key, inner in value.items():
            if inside:
                mark(inner, key != "state")
        value["mark"] = 1
    elif type(value) in (list, tuple):
        for inner in value:
            mark(inner)
        if type(value) is list:
            value.append("mark")


def tell(scope):
    told = {"strange": list(strange(scope, "scope")), "marked": list(marked(scope, "scope"))}
    told["dumped"] = json.dumps(scope, default=bytes.decode)
    mark(scope)
    return told


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        told = tell(scope)
        del scope["state"]["mark"]  # what is in it at the end of the startup is every request's
        scope["state"]["lifespan"] = told
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    lifespan = scope["state"]["lifespan"]
    text = json.dumps({**tell(scope), "lifespan": lifespan})
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": text})
        await send({"type": "websocket.close"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text.encode()})
'''
REQUESTS = (
    b"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\n"
    b"X-Forwarded-Prefix: /p\r\n\r\n",
    b"POST /%C3%A9 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n-",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: 1\r\n\r\n",
)


@pytest.mark.parametrize("arguments", [(), ("--early-hints", "--request-id", "generate", "--root-path", "/root")])
def test_a_scope_is_plain_data_and_the_calls_own_at_every_depth(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    told = []
    with running("app:app", *arguments, directory=tmp_path) as server:
        for _ in range(2):
            with connect(server) as connection:
                for request in REQUESTS:
                    connection.sendall(request)
                    status, body = answer(connection)
                    assert status == 200
                    told.append(json.loads(body))
        for _ in range(2):
            host, port = server.address()
            with open_websocket(f"ws://{host}:{port}/w?x", subprotocols=["a", "b"]) as websocket:  # type: ignore[list-item]
                told.append(json.loads(websocket.recv()))
        assert server.stop() == 0
    for each in (*told, *(one["lifespan"] for one in told)):
        assert each["strange"] == []
        assert each["marked"] == []
    of_http, of_websocket = json.loads(told[0]["dumped"]), json.loads(told[-1]["dumped"])
    for scope in (of_http, of_websocket):
        scope["extensions"]["serve"].pop("connection", None)
        assert scope["extensions"]["serve"] == {"generation": 1, "slot": 0}
    assert ("http.response.early_hint" in of_http["extensions"]) is ("--early-hints" in arguments)
    assert of_websocket["subprotocols"] == ["a", "b"]
    assert json.loads(told[0]["lifespan"]["dumped"])["asgi"] == {"version": "3.0", "spec_version": "2.0"}
