"""The ASGI specification, sentence by sentence, as far as a server can be held to it.

The texts are those of asgiref: "asgi" (3.0), "www" (2.5), "lifespan" (2.0) and "extensions". Each row and each test
quotes what it checks. Where the server deliberately does otherwise, docs/reference/asgi.md says why, and the row
says "but".
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from serve_asgi.http.dropped_messages import ClientDisconnected
from serve_asgi.http.worker_context import ASGIApplication, Message, Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.worker.lifespan import Lifespan
from tests.http.http_server import GET, Client, HttpServer, body, respond, start

RESET = b"\x01\0\0\0\0\0\0\0"
Serve = Callable[..., HttpServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, `serve(app, **config)`, that are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def begin(app: ASGIApplication, **config: Any) -> HttpServer:
            server = HttpServer(app, "uvloop", **config)
            stack.callback(server.stop)
            return server

        yield begin


def ask(server: HttpServer, data: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, the application's own fields, and content as sent (chunks included) of one answer up to its end."""
    lines = data.split(b"\r\n", 1)
    raw = server.ask(lines[0] + b"\r\nconnection: close\r\n" + lines[1])
    head, _, content = raw.partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    pairs = [(name, value) for name, _, value in (field.partition(b": ") for field in fields)]
    servers_own = (b"date", b"server", b"connection", b"keep-alive")
    return int(status.split()[1]), [pair for pair in pairs if pair[0] not in servers_own], content


class Kept:
    """An application that answers `ok` and keeps its scopes."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
        else:
            await respond(send, b"ok")


# ---- the scope of a request (www, "HTTP Connection Scope")

TARGET = b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n"
SCOPE = [
    ("type", GET, "http"),
    ("http_version", GET, "1.1"),
    ("http_version", b"GET / HTTP/1.0\r\n\r\n", "1.0"),
    ("method", GET, "GET"),
    ("method", b"DELETE / HTTP/1.1\r\nhost: a\r\n\r\n", "DELETE"),
    ("scheme", GET, "http"),
    # "HTTP request target excluding any query string, with percent-encoded sequences and UTF-8 byte sequences decoded
    # into characters"
    ("path", TARGET % b"/a%20b/%C3%A9?q=1", "/a b/é"),
    ("path", TARGET % b"/%2F%25", "//%"),
    ("path", TARGET % b"http://other:1/x?y", "/x"),
    ("path", b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", "*"),
    # "The original HTTP path component, excluding any query string, unmodified from the bytes that were received"
    ("raw_path", TARGET % b"/a%20b/%C3%A9?q=1", b"/a%20b/%C3%A9"),
    # "URL portion after the ?, percent-encoded"
    ("query_string", TARGET % b"/?a=%20&b?c", b"a=%20&b?c"),
    ("query_string", GET, b""),
    ("root_path", GET, ""),
    # "Order of header values must be preserved … Duplicates are possible and must be preserved in the message as
    # received. Header names should be lowercased"
    (
        "headers",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-B: 1\r\nCookie: c=d; e\r\nx-b:  2 \r\n\r\n",
        [(b"host", b"a"), (b"x-b", b"1"), (b"cookie", b"c=d; e"), (b"x-b", b"2")],
    ),
    ("state", GET, {}),
]


@pytest.mark.parametrize(("key", "request_", "expected"), SCOPE)
def test_the_scope_of_a_request(serve: Serve, key: str, request_: bytes, expected: object) -> None:
    app = Kept()
    server = serve(app)
    client = server.connect()
    client.send(request_)
    client.answer()
    found = app.scopes[0][key]
    assert found == expected
    assert type(found) is type(expected)


def test_versions(serve: Serve) -> None:
    """ "The key scope["asgi"] will also be present as a dictionary containing a scope["asgi"]["version"] key"; "Version
    of the ASGI HTTP spec this server understands". But HTTP says 2.3, for the reason in docs/reference/asgi.md."""
    app = Kept()
    server = serve(app)
    ask(server, GET)
    with websocket(server) as client, pytest.raises(ConnectionClosed):
        client.recv()
    assert [scope["asgi"] for scope in app.scopes] == [
        {"version": "3.0", "spec_version": "2.3"},
        {"version": "3.0", "spec_version": "2.4"},
    ]


def test_addresses(serve: Serve, tmp_path: Path) -> None:
    """ "A two-item iterable of [host, port]" for client and server, "or [path, None] where path is that of the unix
    socket"."""
    app = Kept()
    server = serve(app)
    client = server.connect()
    client.send(GET)
    client.answer()
    assert tuple(app.scopes[0]["client"]) == client.sock.getsockname()
    assert tuple(app.scopes[0]["server"]) == client.sock.getpeername()
    server = serve(app, unix=tmp_path / "s")
    ask(server, GET)
    assert tuple(app.scopes[1]["server"]) == (str(tmp_path / "s"), None)
    assert app.scopes[1]["client"] is None


def test_root_path(serve: Serve) -> None:
    """ "The root path this application is mounted at"; "PATH_INFO can be derived by stripping root_path from path": so
    `path` holds it, whether the proxy in front has taken it off or not."""
    app = Kept()
    server = serve(app, root_path="/mounted")
    ask(server, TARGET % b"/mounted/a%20b")
    ask(server, TARGET % b"/a%20b")
    for scope in app.scopes:
        assert (scope["root_path"], scope["path"]) == ("/mounted", "/mounted/a b")
        assert scope["raw_path"] == b"/mounted/a%20b"


def test_a_scope_is_the_requests_own(serve: Serve) -> None:
    """ "The server will ensure that a shallow copy of the namespace is passed into each subsequent request/response
    call"; "changes may leak upstream otherwise" must not come to pass between requests."""
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append({name: value.copy() if hasattr(value, "copy") else value for name, value in scope.items()})
        scope["state"]["mine"] = scope["extensions"]["mine"] = {}
        scope["headers"].append((b"mine", b""))
        scope["path"] = "/mine"
        scope["asgi"]["mine"] = ""
        scope["state"]["shared"].append(1)
        await respond(send, b"ok")

    server = serve(app)
    server.worker.state["shared"] = []
    client = server.connect()
    for _ in range(3):
        client.send(GET)
        client.answer()
    assert seen[0]["state"] == {"shared": [1, 1, 1]}
    assert seen[0] == seen[1] == seen[2]


# ---- the messages of a request (www, "Request - receive event")

CHUNKED_POST = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
CONTENT = [
    (GET, b""),
    (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
    # "A request with a chunked encoded body should be automatically de-chunked by the server"
    (
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nt: x\r\n\r\n",
        b"hello",
    ),
]


@pytest.mark.parametrize(("request_", "content"), CONTENT)
def test_request_messages(serve: Serve, request_: bytes, content: bytes) -> None:
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not messages or messages[-1]["more_body"]:
            messages.append(await receive())
        await respond(send, b"ok")
        # "Sent to the application if receive is called after a response has been sent"
        messages.append(await receive())
        messages.append(await receive())

    server = serve(app)
    client = server.connect()
    client.send(request_)
    client.answer()
    server.until(lambda: not server.worker.tasks and len(messages) > 2)
    assert messages[-2:] == [{"type": "http.disconnect"}] * 2
    assert b"".join(message["body"] for message in messages[:-2]) == content
    for message in messages[:-2]:
        assert (message["type"], type(message["body"])) == ("http.request", bytes)
    assert [message["more_body"] for message in messages[:-2]] == [True] * (len(messages) - 3) + [False]


# ---- the messages of a response (www, "Response Start", "Response Body")

CHUNKED = [(b"transfer-encoding", b"chunked")]
HEAD = b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
LENGTH_2 = [(b"content-length", b"2")]
ANSWERS: list[tuple[str, bytes, list[Message], tuple[int, list[tuple[bytes, bytes]], bytes]]] = [
    ("a whole response", GET, [start(), body(b"ok")], (200, LENGTH_2, b"ok")),
    (
        '"headers: Optional; if missing defaults to an empty list"; "body: Optional; if missing defaults to b"""',
        GET,
        [{"type": "http.response.start", "status": 201}, {"type": "http.response.body"}],
        (201, [(b"content-length", b"0")], b""),
    ),
    (
        '"Order must be preserved in the HTTP response"',
        GET,
        [start(200, (b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3"), *LENGTH_2), body(b"ok")],
        (200, [(b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3"), *LENGTH_2], b"ok"),
    ),
    (
        '"an iterable of [name, value] two-item iterables"',
        GET,
        [{"type": "http.response.start", "status": 200, "headers": ([n, v] for n, v in [(b"x-a", b"1")])}, body(b"ok")],
        (200, [(b"x-a", b"1"), *LENGTH_2], b"ok"),
    ),
    (
        '"Header names must be lowercased": names that are not are lowercased',
        GET,
        [start(200, (b"X-A", b"1")), body(b"ok")],
        (200, [(b"x-a", b"1"), *LENGTH_2], b"ok"),
    ),
    (
        '"Concatenated onto any previous body values"; "may opt to use Transfer-Encoding: chunked if the application '
        'presents a response that has no Content-Length set"',
        GET,
        [start(), body(b"o", True), body(b"", True), body(b"k")],
        (200, CHUNKED, b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n"),
    ),
    (
        '"You may send a Transfer-Encoding header in this message, but the server must ignore it"',
        OLD,
        [start(200, *CHUNKED), body(b"ok")],
        (200, LENGTH_2, b"ok"),
    ),
    (
        "but to an HTTP/1.1 client it asks for chunks",
        GET,
        [start(200, *CHUNKED), body(b"ok")],
        (200, CHUNKED, b"2\r\nok\r\n0\r\n\r\n"),
    ),
    (
        "the length that is given is kept",
        GET,
        [start(200, *LENGTH_2), body(b"o", True), body(b"k")],
        (200, LENGTH_2, b"ok"),
    ),
    ("HTTP/1.0 has no chunks", OLD, [start(), body(b"o", True), body(b"k")], (200, [], b"ok")),
    ("HEAD has no content", HEAD, [start(200, *LENGTH_2), body(b"ok")], (200, LENGTH_2, b"")),
    ("HEAD has no content, in pieces too", HEAD, [start(), body(b"o", True), body(b"k")], (200, [], b"")),
    ("204 has neither content nor length", GET, [start(204), body()], (204, [], b"")),
    (
        '"the presence of additional keys in the event dictionary should not raise"',
        GET,
        [{**start(), "new": 1}, {**body(b"ok"), "new": 1}],
        (200, LENGTH_2, b"ok"),
    ),
    (
        '"only send the trailing headers in case the client has sent the TE: trailers header": none are waited for',
        GET,
        [start(200, trailers=True), body(b"ok"), {"type": "http.response.trailers", "headers": [(b"t", b"1")]}],
        (200, CHUNKED, b"2\r\nok\r\n0\r\n\r\n"),
    ),
    (
        '"the server must wait until it receives a http.response.trailers message after the Response Body event"',
        b"GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n",
        [
            start(200, (b"trailer", b"t"), trailers=True),
            body(b"ok"),
            {"type": "http.response.trailers", "headers": [(b"t", b"1")], "more_trailers": True},
            {"type": "http.response.trailers", "headers": [(b"t", b"2")]},
        ],
        (200, [(b"trailer", b"t"), *CHUNKED], b"2\r\nok\r\n0\r\nt: 1\r\nt: 2\r\n\r\n"),
    ),
]


@pytest.mark.parametrize(("request_", "messages", "expected"), [pytest.param(*row[1:], id=row[0]) for row in ANSWERS])
def test_a_response(serve: Serve, request_: bytes, messages: list[Message], expected: object) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            assert await send(message) is None  # type: ignore[func-returns-value]

    assert ask(serve(app), request_) == expected


def test_the_head_waits_for_the_first_content(serve: Serve) -> None:
    """ "Protocol servers need not flush the data generated by this event to the send buffer until the first Response
    Body event is processed. This may give them more leeway to replace the response with an error response" """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"x-a", b"1")))
        raise ValueError

    assert ask(serve(app), GET)[0] == 500


def test_each_piece_goes_out_before_the_next_is_made(serve: Serve) -> None:
    """ "Protocol servers must flush any data passed to them into the send buffer before returning from a send call": or
    with the end of that turn of the loop, so that what one turn writes is one packet."""
    go_on = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"one", True))
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        await send(body(b"two"))

    client = serve(app).connect()
    client.send(GET)
    client.read_until(b"3\r\none\r\n")
    go_on.set()
    client.read_until(b"3\r\ntwo\r\n0\r\n\r\n")


# ---- errors (asgi, "Error Handling")

START: Message = start()
PIECE: Message = body(b"x", True)
WRONG: list[tuple[list[Message], Message]] = [
    # "having an unknown type, missing keys an event type should have, or with wrong Python types"
    ([], {"type": "http.response.unknown"}),
    ([], {"type": "websocket.accept"}),
    ([], {"type": "http.response.start"}),
    ([], {"type": "http.response.start", "status": "200"}),
    ([], {"type": "http.response.start", "status": 101}),
    ([], start(200, ("x-a", b"1"))),  # type: ignore[arg-type]
    ([], start(200, (b"x-a", "1"))),  # type: ignore[arg-type]
    ([], start(200, (b"x-a", b"1\r\nx-b: 2"))),
    ([], start(200, (b"x a", b"1"))),
    # "Needs to be followed by at least one response content message"
    ([], body(b"x")),
    ([], {"type": "http.response.trailers"}),
    ([START], START),
    ([START], {"type": "http.response.body", "body": "text"}),
    ([START], {"type": "http.response.trailers"}),
    ([start(200, (b"content-length", b"1"))], body(b"xx")),
    ([start(200, (b"content-length", b"3"))], body(b"xx")),
    ([START, PIECE], START),
    ([START, body(b"x")], body(b"y")),
    ([START, body(b"x")], START),
]


@pytest.mark.parametrize(("before", "wrong"), WRONG)
def test_a_wrong_message_raises(serve: Serve, before: list[Message], wrong: Message) -> None:
    """ "If a server receives an invalid event dictionary … it should raise an exception out of the send awaitable back
    to the application": and what was right before and is right after is served as if nothing had been."""
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in before:
            await send(message)
        try:
            await send(wrong)
        except (RuntimeError, TypeError, ValueError) as error:
            raised.append(error)
        if not before:
            await send(start(202))
        if len(before) < 2 and (not before or "content-length" not in str(before[0]["headers"])):
            await send(body(b"x", True))
        if len(before) < 2 or before[1]["more_body"]:
            headers = dict(before[0]["headers"]) if before else {}
            await send(body(b"x" * int(headers.get(b"content-length", b"1"))))

    status, _, content = ask(serve(app), GET)
    assert len(raised) == 1
    assert str(raised[0])
    assert status == (200 if before else 202)
    assert content[-5:] in (b"0\r\n\r\n", b"x", b"xxx")


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_application_that_fails(serve: Serve, begun: bool, error: BaseException) -> None:
    """ "they must terminate the application instance and its associated connection if this happens": 500 where that is
    still possible, else an end that cannot be taken for the response's."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            await send(start())
            await send(body(b"x", True))
        raise error

    status, _, content = ask(serve(app), GET)
    assert (status, content) == ((200, b"1\r\nx\r\n") if begun else (500, b"Internal Server Error"))


# ---- a client that leaves (www, "Disconnect", "Disconnected Client")


def leave(client: Client) -> None:
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close() if hasattr(client, "close") else client.sock.close()


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves(serve: Serve, begun: bool, caplog: pytest.LogCaptureFixture) -> None:
    """ "Sent to the application if receive is called … after the HTTP connection has been closed"; "If send() is called
    on a closed connection the server should raise a server-specific subclass of OSError": but only after a second; "and
    should not log it as an error". The task is not cancelled."""
    told: list[Message] = []
    raised: list[BaseException] = []
    dropped = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal dropped
        await receive()
        if begun:
            await send(start())
            await send(PIECE)
        told.append(await receive())
        if not begun:
            await send(start())
        try:
            while True:
                await send(PIECE)
                dropped += 1
        except OSError as error:
            raised.append(error)
            raise

    server = serve(app)
    client = server.connect()
    client.send(GET)
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 1)
    leave(client)
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)
    assert told == [{"type": "http.disconnect"}]
    assert dropped > 0
    assert isinstance(raised[0], ClientDisconnected)
    assert isinstance(raised[0], OSError)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_shuts_down_its_side_alone(serve: Serve) -> None:
    """It may be reading still, and cannot be told from one that has left: `receive` says http.disconnect, but a second
    later, so that a framework which ends its work at that has answered."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        gone = asyncio.ensure_future(receive())
        working = asyncio.ensure_future(asyncio.sleep(0.1 if scope["path"] == "/quick" else 60))
        await asyncio.wait((gone, working), return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        await respond(send, b"answered" if not gone.done() else b"ended")

    server = serve(app)
    for path, expected in ((b"/quick", b"answered"), (b"/slow", b"ended")):
        client = server.connect()
        client.send(TARGET % path)
        client.end()
        assert client.answer()[2] == expected


# ---- WebSocket


@contextlib.contextmanager
def websocket(server: HttpServer, path: str = "/", **more: Any) -> Iterator[websockets.sync.client.ClientConnection]:
    host, port = server.address
    with websockets.sync.client.connect(f"ws://{host}:{port}{path}", proxy=None, **more) as client:
        yield client


class Talk:
    """A WebSocket application that accepts, does what it is told to, and keeps what it receives."""

    def __init__(self, *messages: Message, listens: bool = True) -> None:
        self.messages = messages
        self.listens = listens
        self.scope: Scope = {}
        self.received: list[Message] = []
        self.raised: list[BaseException] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.received.append(await receive())
        for message in self.messages:
            try:
                await send(message)
            except (RuntimeError, TypeError, ValueError) as error:
                self.raised.append(error)
        while self.listens and self.received[-1]["type"] != "websocket.disconnect":
            self.received.append(await receive())


ACCEPT: Message = {"type": "websocket.accept"}


def test_the_scope_of_a_websocket(serve: Serve) -> None:
    """www, "Websocket Connection Scope": subprotocols are those that "the client advertised"."""
    app = Talk({**ACCEPT, "subprotocol": "b", "headers": [(b"x-a", b"1"), (b"x-a", b"2")]})
    server = serve(app, root_path="/m")
    with websocket(server, "/a%20b?q=%20", subprotocols=["a", "b"]) as client:
        assert client.subprotocol == "b"
        assert client.response is not None
        assert client.response.headers.get_all("x-a") == ["1", "2"]
        address = client.local_address
    scope = app.scope
    names = ("type", "http_version", "scheme", "path", "raw_path", "query_string", "root_path", "subprotocols", "state")
    assert {name: scope[name] for name in names} == {
        "type": "websocket",
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/m/a b",
        "raw_path": b"/m/a%20b",
        "query_string": b"q=%20",
        "root_path": "/m",
        "subprotocols": ["a", "b"],
        "state": {},
    }
    assert tuple(scope["client"]) == address
    assert tuple(scope["server"]) == server.address
    assert (b"upgrade", b"websocket") in scope["headers"]
    assert "websocket.http.response" in scope["extensions"]


def test_websocket_messages(serve: Serve) -> None:
    """ "Sent to the application when the client initially opens a connection"; "Exactly one of bytes or text must be
    non-None"; "deliver complete messages"; "code: the WebSocket close code", "reason"."""
    app = Talk(ACCEPT)
    server = serve(app)
    with websocket(server) as client:
        client.send("text")
        client.send(b"bytes")
        client.send(["in ", "pieces"])
        client.close(3001, "enough")
    server.until(lambda: not server.worker.tasks)
    assert app.received == [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "text"},
        {"type": "websocket.receive", "bytes": b"bytes"},
        {"type": "websocket.receive", "text": "in pieces"},
        {"type": "websocket.disconnect", "code": 3001, "reason": "enough"},
    ]


def test_a_websocket_whose_client_gives_no_code_or_is_lost(serve: Serve) -> None:
    """ "If no code was received in the frame from the client, the server should set this to 1005"; 1006 for "loss of
    the socket" (RFC 6455 7.1.5)."""
    app = Talk(ACCEPT)
    server = serve(app)
    with websocket(server) as client:
        client.protocol.send_close()
        client.socket.sendall(b"".join(client.protocol.data_to_send()))
        server.until(lambda: not server.worker.tasks)
    assert app.received[-1] == {"type": "websocket.disconnect", "code": 1005, "reason": ""}
    with websocket(server) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.socket.close()
    server.until(lambda: not server.worker.tasks)
    assert app.received[-1] == {"type": "websocket.disconnect", "code": 1006, "reason": ""}


SENT: list[tuple[Message, str | bytes]] = [
    ({"type": "websocket.send", "text": "é"}, "é"),
    ({"type": "websocket.send", "bytes": b"\0"}, b"\0"),
    ({"type": "websocket.send", "text": "x", "bytes": None}, "x"),
    ({"type": "websocket.send", "text": None, "bytes": b"x"}, b"x"),
    ({"type": "websocket.send", "text": "", "new": 1}, ""),
]


@pytest.mark.parametrize(("message", "expected"), SENT)
def test_what_a_websocket_sends(serve: Serve, message: Message, expected: object) -> None:
    with websocket(serve(Talk(ACCEPT, message))) as client:
        assert client.recv(10) == expected


CLOSES: list[tuple[list[Message], int, str]] = [
    # "the server must close the socket with the close code passed in the message (or 1000 if none is specified)"
    ([ACCEPT, {"type": "websocket.close"}], 1000, ""),
    ([ACCEPT, {"type": "websocket.close", "code": 3000, "reason": "r"}], 3000, "r"),
    ([ACCEPT, {"type": "websocket.close", "code": 1001, "reason": None}], 1001, ""),
    # "if the application dies the socket should be closed"
    ([ACCEPT], 1000, ""),
]


@pytest.mark.parametrize(("messages", "code", "reason"), CLOSES)
def test_how_a_websocket_closes(serve: Serve, messages: list[Message], code: int, reason: str) -> None:
    app = Talk(*messages, listens=len(messages) > 1)
    server = serve(app)
    with websocket(server) as client, pytest.raises(ConnectionClosed) as closed:
        client.recv(10)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)
    server.until(lambda: not server.worker.tasks)
    if app.listens:  # "either connection to the client is lost, … the server closing the connection"
        assert app.received[-1] == {"type": "websocket.disconnect", "code": code, "reason": reason}


DENIALS: list[tuple[list[Message], int, bytes | None]] = [
    # "If this is sent before the socket is accepted, the server must close the connection with a HTTP 403 error code"
    ([{"type": "websocket.close", "code": 4000}], 403, None),
    # extensions, "Websocket Denial Response"
    (
        [
            {"type": "websocket.http.response.start", "status": 418, "headers": [(b"x-a", b"1")]},
            {"type": "websocket.http.response.body", "body": b"no ", "more_body": True},
            {"type": "websocket.http.response.body", "body": b"tea"},
        ],
        418,
        b"no tea",
    ),
]


@pytest.mark.parametrize(("messages", "status", "content"), DENIALS)
def test_how_a_websocket_is_denied(serve: Serve, messages: list[Message], status: int, content: bytes | None) -> None:
    app = Talk(*messages)
    server = serve(app)
    with pytest.raises(InvalidStatus) as denied, websocket(server):
        pass
    assert denied.value.response.status_code == status
    if content is not None:
        assert denied.value.response.body == content
    server.until(lambda: not server.worker.tasks)
    assert app.received[-1]["type"] == "websocket.disconnect"
    assert app.raised == []


WRONG_ON_WEBSOCKETS: list[tuple[list[Message], Message]] = [
    ([], {"type": "websocket.send", "text": "x"}),
    ([], {"type": "http.response.start", "status": 200}),
    ([], {**ACCEPT, "subprotocol": b"x"}),
    ([], {**ACCEPT, "headers": [("x", "y")]}),
    # "Must not include a header named sec-websocket-protocol"
    ([], {**ACCEPT, "headers": [(b"sec-websocket-protocol", b"x")]}),
    ([ACCEPT], ACCEPT),
    ([ACCEPT], {"type": "websocket.unknown"}),
    ([ACCEPT], {"type": "websocket.http.response.start", "status": 200}),
    ([ACCEPT], {"type": "websocket.send"}),
    ([ACCEPT], {"type": "websocket.send", "text": None, "bytes": None}),
    ([ACCEPT], {"type": "websocket.send", "text": b"x"}),
    ([ACCEPT], {"type": "websocket.send", "bytes": "x"}),
    ([ACCEPT], {"type": "websocket.close", "code": 99}),
    ([ACCEPT], {"type": "websocket.close", "reason": "x" * 200}),
]


@pytest.mark.parametrize(("before", "wrong"), WRONG_ON_WEBSOCKETS)
def test_a_wrong_message_on_a_websocket_raises(serve: Serve, before: list[Message], wrong: Message) -> None:
    after = [] if before else [ACCEPT]
    app = Talk(*before, wrong, *after, {"type": "websocket.send", "text": "as if nothing had been"})
    with websocket(serve(app)) as client:
        assert client.recv(10) == "as if nothing had been"
    assert len(app.raised) == 1


def test_a_websocket_whose_application_fails(serve: Serve) -> None:
    """ "they must terminate the application instance and its associated connection": 1011 (RFC 6455 7.4.1)."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(ACCEPT)
        raise ValueError

    with websocket(serve(app)) as client, pytest.raises(ConnectionClosed) as closed:
        client.recv(10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011


def test_sending_to_a_websocket_that_has_ended(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """ "If send() is called on a closed connection the server should raise a server-specific subclass of OSError": but
    only after a second, so that an application in the middle of something comes to its websocket.disconnect."""
    raised: list[BaseException] = []
    told: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(ACCEPT)
        while server.worker.cells[Cell.CONNECTIONS]:  # busy while its client leaves
            await asyncio.sleep(0.001)
        await send({"type": "websocket.send", "text": "x"})
        told.append(await receive())
        try:
            while True:
                await send({"type": "websocket.send", "text": "x"})
        except OSError as error:
            raised.append(error)
            raise

    server = serve(app)
    with websocket(server) as client:
        client.close(3000)
    server.until(lambda: not server.worker.tasks)
    assert told == [{"type": "websocket.disconnect", "code": 3000, "reason": ""}]
    assert isinstance(raised[0], ClientDisconnected)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# ---- extensions

NOT_OFFERED = ("http.response.push", "http.response.debug", "tls")


def test_which_extensions_are_offered(serve: Serve) -> None:
    """ "it should place an entry into the extensions dictionary under the extension's name, and the value of that
    entry should itself be a dict"; the trailers "only … in case the client has sent TE: trailers"; debug: "ASGI
    servers should not implement it"; tls: "For non-TLS connections, the ASGI server is forbidden from providing this
    extension"."""
    app = Kept()
    server = serve(app)
    ask(server, GET)
    ask(server, b"GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n")
    plain, with_trailers = (scope["extensions"] for scope in app.scopes)
    for each in (plain, with_trailers):
        del each["serve"]["connection"]  # each connection's own number
    assert with_trailers == {**plain, "http.response.trailers": {}}
    assert {"http.response.pathsend", "http.response.zerocopysend"} <= set(plain)
    assert not set(NOT_OFFERED) & set(plain)
    assert all(type(entry) is dict for entry in with_trailers.values())


@pytest.mark.parametrize("length", [True, False])
def test_path_send(serve: Serve, tmp_path: Path, length: bool) -> None:
    """ "The string representation of the absolute file path to be sent by the server"; "It can be called just one time
    in one response"; "behave the same as ordinary http.response.body"."""
    data = bytes(range(256)) * 4000
    (tmp_path / "f").write_bytes(data)
    fields = [(b"content-length", str(len(data)).encode())] if length else []
    messages = [start(200, *fields), {"type": "http.response.pathsend", "path": str(tmp_path / "f")}]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    assert ask(serve(app), GET) == (200, [(b"content-length", str(len(data)).encode())], data)
    assert ask(serve(app), HEAD) == (200, [(b"content-length", str(len(data)).encode())], b"")


def test_path_send_is_not_mixed_with_content(serve: Serve, tmp_path: Path) -> None:
    """ "cannot be mixed with http.response.body" """
    (tmp_path / "f").write_bytes(b"file")
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"x", True))
        try:
            await send({"type": "http.response.pathsend", "path": str(tmp_path / "f")})
        except RuntimeError as error:
            raised.append(error)
        await send(body(b"y"))

    assert ask(serve(app), GET) == (200, CHUNKED, b"1\r\nx\r\n1\r\ny\r\n0\r\n\r\n")
    assert len(raised) == 1


def test_zero_copy_send(serve: Serve, tmp_path: Path) -> None:
    """ "can be mixed with http.response.body … called multiple times in one response"; "offset"; "count … If omitted,
    the file will be read until its end"; "Otherwise, it will be read from the current position of file"."""
    (tmp_path / "f").write_bytes(b"0123456789")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        zero_copy = {"type": "http.response.zerocopysend", "more_body": True}
        with (tmp_path / "f").open("rb") as file:
            file.seek(7)
            await send(start(200, (b"content-length", b"12")))
            await send({**zero_copy, "file": file, "offset": 1, "count": 3})
            await send(body(b"--", True))
            await send({**zero_copy, "file": file})
            await send({**zero_copy, "file": file, "offset": 6, "more_body": False})
            assert not file.closed  # "ASGI servers are not responsible for closing descriptors"

    assert ask(serve(app), GET) == (200, [(b"content-length", b"12")], b"123--7896789")


def test_early_hints(serve: Serve) -> None:
    """ "This message can be sent at any time (and multiple times) after the Response Start message but before the final
    Response Body message"; "The server may decide to ignore this message", as it must behind the head."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hint = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload", b"</b.js>; rel=preload"]}
        if "http.response.early_hint" not in scope["extensions"]:
            await respond(send, b"ok")
            return
        await send(start())
        await send(hint)
        await send(body(b"o", True))
        await send(hint)
        await send(body(b"k"))

    hinted = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.js>; rel=preload\r\n\r\n"
    raw = serve(app, early_hints=True).ask(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    assert raw.startswith(hinted + b"HTTP/1.1 200 OK\r\n")
    assert raw.endswith(b"\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n")
    assert serve(app, early_hints=True).ask(OLD).startswith(b"HTTP/1.1 200 OK\r\n")  # an HTTP/1.0 client gets none


# ---- lifespan

COMPLETE: Message = {"type": "lifespan.startup.complete"}


def test_lifespan(caplog: pytest.LogCaptureFixture) -> None:
    """lifespan, all events: the scope's `state` is "an empty namespace"; startup, then shutdown, each once."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append({**scope, "state": dict(scope["state"])})
        scope["state"]["pool"] = "open"
        seen.append(await receive())
        await send(COMPLETE)
        seen.append(await receive())
        await send({"type": "lifespan.shutdown.failed", "message": "as it must"})

    state: dict[str, Any] = {}

    async def main() -> None:
        lifespan = Lifespan(app, "auto", state)
        await lifespan.startup()
        assert state == {"pool": "open"}
        assert len(seen) == 2  # "A server must wait for this message before it starts processing connections"
        await lifespan.shutdown()

    asyncio.run(main())
    scope, *events = seen
    assert scope == {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    assert events == [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    (failed,) = [vars(record) for record in caplog.records if "shutdown failed" in record.getMessage()]
    assert "as it must" in str(failed)  # "it should log/print the message provided and then terminate"
