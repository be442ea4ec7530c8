"""WebSockets that survive a deploy: one connection, and new code on the other side of it.

Over HTTP/2 a client is the same one, with `tests.http2.websocket_bridge` in between. What is another there, several on
one connection, is in tests/test_surviving_http2.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect, unix_connect
from websockets.typing import Subprotocol

from serve_asgi.cli import control_client
from tests.http2.websocket_bridge import WebSocketBridge
from tests.plain_and_tls import AUTHORITY, TRUSTING, addresses, serving_both
from tests.running import PATIENCE, RunningServer, running, until

APPLICATION = '''
import asyncio
from serve_asgi import retiring, survive

VERSION = 1


def note(text):
    with open("notes", "a") as notes:
        notes.write(f"{text}\\n")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    await HANDLERS[scope["path"].partition("/")[2].partition("/")[0]](scope, receive, send)


async def accept(receive, send, **more):
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", **more})


async def say(send, *words):
    await send({"type": "websocket.send", "text": " ".join(map(str, words))})


async def echo(scope, receive, send):
    """Numbers the messages, over all lives."""
    kept = survive(scope, version=VERSION)
    await accept(receive, send)
    number = kept.state.get("number", 0)
    while (message := await receive())["type"] == "websocket.receive":
        number += 1
        text = message.get("text")
        data = {"bytes": message["bytes"]} if text is None else {"text": f"{VERSION} {number} {text}"}
        await send({"type": "websocket.send", **data})
        kept.state["number"] = number
    assert message["code"] == 1012 and message["reason"] == "handed over" or not retiring(), message


async def sink(scope, receive, send):
    """Takes nothing for a while, then tells what has come."""
    kept = survive(scope)
    await accept(receive, send)
    if not kept.resumed:
        await say(send, "here")
        await retiring.wait()
        return
    for _ in range(3):
        await say(send, (await receive())["text"])


async def ticks(scope, receive, send):
    """Sends and never receives."""
    kept = survive(scope)
    await accept(receive, send)
    number = kept.state.get("number", 0)
    while True:
        await say(send, VERSION, number + 1)
        number = kept.state["number"] = number + 1
        await asyncio.sleep(0.002)


async def messages(scope, receive, send):
    """By plain messages of ASGI."""
    extension = scope["extensions"]["serve.survive"]
    await accept(receive, send)
    await send({"type": "serve.survive", "state": ["said", extension.get("state")], "version": 7})
    await say(send, extension)
    while (await receive())["type"] == "websocket.receive":
        pass


async def last_words(scope, receive, send):
    kept = survive(scope)
    await accept(receive, send)
    await say(send, "hello" if not kept.resumed else kept.state["last"])
    message = await receive()
    if message["type"] == "websocket.disconnect" and not kept.resumed:
        await say(send, "goodbye")
        await send({"type": "websocket.close"})  # as code cleans up that takes it for closed
        kept.state["last"] = "the last words"
        asyncio.get_running_loop().call_soon(asyncio.create_task, too_late(send))


async def too_late(send):
    try:
        while True:
            await say(send, "too late")
            await asyncio.sleep(0)
    except OSError as error:
        note(f"{type(error).__name__}: {error}")


async def by_itself(scope, receive, send):
    kept = survive(scope)
    await accept(receive, send)
    await say(send, kept.resumed)
    await retiring.wait()


async def raises(scope, receive, send):
    survive(scope)
    await accept(receive, send)
    while (await receive())["type"] == "websocket.receive":
        pass
    raise ValueError("no")


class WebSocketDisconnect(Exception):
    def __init__(self, code, reason):
        self.code, self.reason = code, reason


async def framework(scope, receive, send):
    """Lets through what a framework makes of the disconnect."""
    kept = survive(scope)
    await accept(receive, send)
    await say(send, kept.resumed)
    while (message := await receive())["type"] == "websocket.receive":
        pass
    raise ExceptionGroup("tasks", [WebSocketDisconnect(message["code"], message["reason"])])


async def hangs(scope, receive, send):
    survive(scope)
    await accept(receive, send)
    while True:
        await receive()
        await asyncio.sleep(0.05)


async def unfit(scope, receive, send):
    kept = survive(scope)
    await accept(receive, send)
    kept.state = {"socket": object()} if scope["path"] == "/unfit" else "x" * 65536
    while (await receive())["type"] == "websocket.receive":
        pass


async def wrong(scope, receive, send):
    await accept(receive, send)
    for state in ({1, 2}, "x" * 65536):
        try:
            await send({"type": "serve.survive", "state": state})
        except ValueError as error:
            await say(send, error)
    await receive()


async def refuses(scope, receive, send):
    kept = survive(scope, version=VERSION)
    await accept(receive, send)
    if kept.resumed and kept.version != VERSION:
        kept.refuse("the state is too old")
    while (await receive())["type"] == "websocket.receive":
        pass


async def route(scope, receive, send):
    """Only the first version has it."""
    if VERSION > 1:
        assert (await receive())["type"] == "websocket.connect"
        if scope["path"].endswith("/denied"):
            await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
        await send({"type": "websocket.close"})
        return
    await echo(scope, receive, send)


async def returns(scope, receive, send):
    if VERSION == 1:
        await echo(scope, receive, send)


async def subprotocol(scope, receive, send):
    survive(scope)
    await accept(receive, send, subprotocol=scope["subprotocols"][VERSION - 1])
    while (await receive())["type"] == "websocket.receive":
        pass


async def as_before(scope, receive, send):
    """Chooses the same subprotocol in each life."""
    kept = survive(scope)
    await accept(receive, send, subprotocol=scope["subprotocols"][0])
    await say(send, kept.resumed)
    while (await receive())["type"] == "websocket.receive":
        pass


async def plain(scope, receive, send):
    await accept(receive, send)
    await say(send, "extension" if survive({**scope, "extensions": {}}) is None else "?")
    while (await receive())["type"] == "websocket.receive":
        pass


async def none(scope, receive, send):
    await accept(receive, send)
    await say(send, survive(scope))


HANDLERS = {
    name: globals()[name]
    for name in (
        "echo sink ticks messages last_words by_itself raises framework hangs unfit wrong refuses route returns "
        "subprotocol as_before plain none".split()
    )
}
'''
QUICK = ("--survive-window", "0", "--survive-timeout", "1", "--ws-retire", "early", "--ws-retire-window", "0")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APPLICATION)
    return tmp_path


class Bridges:
    """What stands between clients and server: nothing, or for HTTP/2 a bridge to each address of a server."""

    def __init__(self, version: str) -> None:
        self._http2 = version == "HTTP/2"
        self._bridges: dict[int, WebSocketBridge] = {}

    def to(self, port: int, secure: bool = False, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> int:
        """The port that a client connects to; a bridge speaks TLS of this version if the server's is `secure`."""
        if not self._http2:
            return port
        if port not in self._bridges:
            context = None
            if secure:
                context = AUTHORITY.client_context()
                context.minimum_version = context.maximum_version = version
                context.set_alpn_protocols(["h2"])
            self._bridges[port] = WebSocketBridge(port, context)
        return self._bridges[port].port

    def stop(self) -> None:
        for bridge in self._bridges.values():
            bridge.stop()


class Clients:
    """Of one server."""

    def __init__(self, bridges: Bridges, server: RunningServer) -> None:
        self._bridges = bridges
        self.server = server

    def open(self, path: str, **more: Any) -> ClientConnection:
        host, port = self.server.address()
        peer: ClientConnection = connect(f"ws://{host}:{self._bridges.to(port)}/{path}", **more)
        return peer


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def bridges(request: pytest.FixtureRequest) -> Iterator[Bridges]:
    bridges = Bridges(request.param)
    yield bridges
    bridges.stop()


@pytest.fixture(params=["uvloop", "asyncio"])
def clients(directory: Path, request: pytest.FixtureRequest, bridges: Bridges) -> Iterator[Clients]:
    with running("app:app", "--workers", "1", "--loop", request.param, *QUICK, directory=directory) as server:
        yield Clients(bridges, server)


@pytest.fixture
def one(directory: Path, bridges: Bridges) -> Iterator[Clients]:
    with running("app:app", "--workers", "1", *QUICK, directory=directory) as server:
        yield Clients(bridges, server)


def deploy(server: RunningServer, version: int) -> str:
    (server.directory / "app.py").write_text(APPLICATION.replace("VERSION = 1", f"VERSION = {version}"))
    return server.reload()


def received(peer: ClientConnection) -> str:
    message = peer.recv(PATIENCE)
    assert isinstance(message, str)
    return message


def ended(peer: ClientConnection) -> int | None:
    """The code with which it ends."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            peer.recv(PATIENCE)
    return peer.protocol.close_code


def counts(server: RunningServer) -> tuple[int, int]:
    """Next lives begun, and connections that were to have one."""
    metrics = server.status()["totals"]
    return metrics["survived"], metrics["not_survived"]


@contextlib.contextmanager
def client(way: str, directory: Path, bridges: Bridges) -> Iterator[tuple[RunningServer, ClientConnection]]:
    loop, compression, where = way.split()
    options = ("--workers", "2", "--loop", loop, *QUICK)
    deflate: Any = {"compression": None if compression == "plain" else "deflate"}
    if where == "unix":
        path = str(directory / "here.sock")
        with (
            running("app:app", *options, directory=directory, bind="unix:here.sock") as server,
            unix_connect(path, "ws://localhost/echo", **deflate) as peer,
        ):
            yield server, peer
    elif where == "tls":
        with serving_both(directory, *options) as server:
            port = addresses(server)["https"][1]
            if (to := bridges.to(port, secure=True)) == port:
                peer = connect(f"wss://localhost:{port}/echo", ssl=TRUSTING, **deflate)
            else:
                peer = connect(f"ws://localhost:{to}/echo", **deflate)
            with peer:
                yield server, peer
    else:
        with (
            running("app:app", *options, directory=directory) as server,
            Clients(bridges, server).open("echo", **deflate) as peer,
        ):
            yield server, peer


@pytest.mark.parametrize(
    ("way", "bridges"),
    [
        ("uvloop deflate tcp", "HTTP/1.1"),
        ("asyncio plain tcp", "HTTP/1.1"),
        ("uvloop plain tls", "HTTP/1.1"),
        ("asyncio deflate tls", "HTTP/1.1"),
        ("uvloop deflate unix", "HTTP/1.1"),
        ("asyncio deflate tcp", "HTTP/2"),
        ("uvloop deflate tls", "HTTP/2"),
        ("asyncio plain tls", "HTTP/2"),
    ],
    indirect=["bridges"],
)
def test_every_message_goes_both_ways_once_and_in_order_over_three_deploys(
    way: str, bridges: Bridges, directory: Path
) -> None:
    with client(way, directory, bridges) as (server, peer):
        versions: list[str] = []
        stop = threading.Event()
        failed: list[BaseException] = []

        def talk() -> None:
            number = 0
            with contextlib.suppress(ConnectionClosed):
                while not stop.is_set():
                    number += 1
                    sent = f"message {number} " + "x" * (number * 37 % 3000)
                    peer.send(sent)
                    version, _, rest = received(peer).partition(" ")
                    if rest != f"{number} {sent}":
                        failed.append(AssertionError(f"{rest[:60]!r} for number {number}"))
                        return
                    if [version] != versions[-1:]:
                        versions.append(version)

        thread = threading.Thread(target=talk)
        thread.start()
        for version in (2, 3, 4):
            until(lambda version=version: str(version - 1) in versions or failed, "the version before")  # type: ignore[misc]
            deploy(server, version)
        until(lambda: "4" in versions or failed, "the last version")
        stop.set()
        thread.join()
        assert not failed
        assert versions == ["1", "2", "3", "4"]


def test_a_half_received_message_and_pings_travel(clients: Clients) -> None:
    with clients.open("echo") as peer:
        pongs: list[threading.Event] = []

        def pieces() -> Iterator[str]:
            yield "a" * 70_000
            pongs.append(peer.ping())
            deploy(clients.server, 2)
            yield "é" * 1000
            clients.server.wait_until(lambda status: status["workers"][0]["generation"] == 2)
            pongs.append(peer.ping())
            yield "z"

        peer.send(pieces())
        assert received(peer) == "2 1 " + "a" * 70_000 + "é" * 1000 + "z"
        assert all(pong.wait(PATIENCE) for pong in pongs)


def test_what_the_first_life_has_not_received_the_second_does(clients: Clients) -> None:
    with clients.open("sink") as peer:
        assert received(peer) == "here"
        for text in ("one", "two", "three"):
            peer.send(text)
        deploy(clients.server, 2)
        assert [received(peer) for _ in range(3)] == ["one", "two", "three"]
        assert ended(peer) == 1000


def test_an_application_that_only_sends_is_told_by_send(clients: Clients) -> None:
    with clients.open("ticks") as peer:
        number = 0
        versions = set()
        for version in (1, 2, 3):
            if version > 1:
                deploy(clients.server, version)
            while version not in versions:
                found, _, counted = received(peer).partition(" ")
                versions.add(int(found))
                number += 1
                assert int(counted) == number


def test_plain_messages_of_asgi_do_it_too(one: Clients) -> None:
    with one.open("messages") as peer:
        assert received(peer) == "{}"
        deploy(one.server, 2)
        assert received(peer) == str({"resumed": True, "state": ["said", None], "version": 7})
    with one.open("wrong") as peer:
        assert "cannot be written as JSON" in received(peer)
        assert "65538 bytes as JSON" in received(peer)


def test_last_words_go_out_before_anything_of_the_next_life_and_nothing_after_them(one: Clients) -> None:
    with one.open("last_words") as peer:
        assert received(peer) == "hello"
        deploy(one.server, 2)
        assert received(peer) == "goodbye"
        assert received(peer) == "the last words"
        notes = one.server.directory / "notes"
        until(notes.exists, "the application was told")
        assert "ClientDisconnected: The connection goes on in another worker" in notes.read_text()


@pytest.mark.parametrize("path", ["by_itself", "framework", "as_before"])
def test_a_handler_may_end_by_itself_and_let_its_frameworks_exception_through(one: Clients, path: str) -> None:
    with one.open(path, subprotocols=[Subprotocol("one"), Subprotocol("two")]) as peer:
        assert received(peer) == "False"
        deploy(one.server, 2)
        assert received(peer) == "True"
        assert counts(one.server) == (1, 0)
        assert "failed at" not in one.server.log()


ENDS = {
    "raises": "its application failed",
    "hangs": "its application did not end its part within --survive-timeout",
    "unfit": "the state cannot be written as JSON",
    "unfit/large": "the state has 65538 bytes",
    "refuses": "the state is too old",
    "route": "the new version of the application does not accept it",
    "route/denied": "the new version of the application does not accept it",
    "returns": "its application failed",
    "subprotocol": "the new version of the application chose the subprotocol 'two'",
}
"""What is logged of each path, whose connections do not survive."""


def test_what_cannot_go_on_has_the_ordinary_end(one: Clients) -> None:
    with contextlib.ExitStack() as stack:
        offers = [Subprotocol("one"), Subprotocol("two")]
        peers = {path: stack.enter_context(one.open(path, subprotocols=offers)) for path in ENDS}
        deploy(one.server, 2)
        assert {path: ended(peer) for path, peer in peers.items()} == dict.fromkeys(ENDS, 1012)
    one.server.wait_until(lambda status: status["totals"]["not_survived"] == len(ENDS))


@pytest.mark.parametrize("path", ["raises", "unfit", "route", "subprotocol"])
def test_it_is_logged_why_one_did_not_survive(one: Clients, path: str) -> None:
    with one.open(path, subprotocols=[Subprotocol("one"), Subprotocol("two")]) as peer:
        deploy(one.server, 2)
        assert ended(peer) == 1012
        assert one.server.logged("a WebSocket did not survive: " + re.escape(ENDS[path]))


def test_who_has_not_asked_for_it_is_treated_as_always(one: Clients) -> None:
    with one.open("plain") as peer:
        assert received(peer) == "extension"
        deploy(one.server, 2)
        assert ended(peer) == 1012
        assert counts(one.server) == (0, 0)


def test_at_a_stop_it_ends_as_always(one: Clients) -> None:
    with one.open("echo") as peer:
        peer.send("x")
        assert received(peer) == "1 1 x"
        one.server.signal(signal.SIGTERM)
        assert ended(peer) == 1001
    assert one.server.wait() == 0
    assert "did not survive" not in one.server.log()


def test_a_connection_of_a_version_that_is_taken_back_comes_home(directory: Path, bridges: Bridges) -> None:
    options = ("--workers", "1", "--keep-previous", "60", *QUICK)
    with (
        running("app:app", *options, directory=directory) as server,
        Clients(bridges, server).open("echo") as peer,
    ):
        deploy(server, 2)
        server.wait_until(lambda status: {w["state"] for w in status["workers"]} == {"serving", "standby"})
        peer.send("x")
        assert received(peer) == "2 1 x"
        time.sleep(1)
        control_client.ask(server.control, "rollback")
        peer.send("y")
        while (answered := received(peer)).startswith("2 "):
            peer.send("y")
        assert answered.startswith("1 ")


@pytest.mark.parametrize("outcome", ["rollback", "promote"])
def test_a_canarys_connections_come_home_or_stay(directory: Path, bridges: Bridges, outcome: str) -> None:
    options = ("--workers", "2", "--canary", "--canary-share", "50", "--canary-time", "60", *QUICK)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running("app:app", *options, directory=directory))
        (directory / "app.py").write_text(APPLICATION.replace("VERSION = 1", "VERSION = 2"))
        server.signal(signal.SIGHUP)
        server.wait_until(lambda status: status["canary"] is not None and status["canary"]["share"])  # all serve
        peers: dict[str, tuple[ClientConnection, int]] = {}
        while peers.keys() != {"1", "2"}:  # until there is one of either version
            peer = stack.enter_context(Clients(bridges, server).open("echo"))
            peer.send("x")
            peers.setdefault(received(peer).partition(" ")[0], (peer, 1))
        control_client.ask(server.control, outcome)
        version = "1" if outcome == "rollback" else "2"
        for peer, said in peers.values():
            number, answered = said, ""
            while not answered.startswith(version):
                number += 1
                peer.send("x")
                answered = received(peer)
                assert answered.split() == [answered[0], str(number), "x"]
        assert counts(server)[1] == 0


def test_a_client_that_takes_nothing_holds_its_hand_over_up_and_loses_nothing(
    directory: Path, bridges: Bridges
) -> None:
    with running("app:app", "--workers", "1", *QUICK, directory=directory) as server:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.address()
        raw.connect((host, bridges.to(port)))
        with connect(f"ws://{host}:{port}/echo", sock=raw, max_size=None, max_queue=1) as peer:
            sent = [os.urandom(200_000) for _ in range(20)]

            def send_all() -> None:
                for each in sent:
                    peer.send(each)

            thread = threading.Thread(target=send_all)
            thread.start()
            deploy(server, 2)
            assert [peer.recv(PATIENCE) for _ in sent] == sent
            thread.join()
            server.wait_until(lambda status: [w["generation"] for w in status["workers"]] == [2])
            peer.send("x")
            assert received(peer) == "2 21 x"


def test_over_tls_1_2_nobody_survives(directory: Path, bridges: Bridges) -> None:
    context = AUTHORITY.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with serving_both(directory, "--workers", "1", *QUICK) as server:
        port = addresses(server)["https"][1]
        to = bridges.to(port, secure=True, version=ssl.TLSVersion.TLSv1_2)
        secure: dict[str, Any] = {"ssl": context} if to == port else {}
        scheme = "wss" if secure else "ws"
        with (
            connect(f"{scheme}://localhost:{to}/none", **secure) as peer,
            connect(f"{scheme}://localhost:{to}/messages", **secure) as asking,
        ):
            assert received(peer) == "None"
            assert received(asking) == "{}"
            deploy(server, 2)
            assert (ended(peer), ended(asking)) == (1000, 1012)
