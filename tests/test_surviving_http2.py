"""Streams and WebSockets of HTTP/2 connections that survive deploys, with their connections: nothing is opened anew."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from serve_asgi.http.h2.error_codes import ErrorCode
from tests.browser import page
from tests.http.http_server import Client
from tests.http2.http2_server import NO_LIMIT, Http2Client
from tests.plain_and_tls import AUTHORITY, addresses, secure
from tests.running import PATIENCE, RunningServer, running, until
from tests.test_surviving_streams import APPLICATION, EVENT, FRAMEWORKS, QUICK, deploy
from tests.test_surviving_websockets import APPLICATION as WEBSOCKETS

PATHS = ("numbers", "numbers/length", "sends", "messages", "by_itself", "starlette/stream", "starlette/sse", "fastapi")
NUMBERS = ("numbers", "numbers", "messages", "by_itself")
LONG = """
async def long(scope, receive, send):
    await begin(send)
    await say(send, b"begun")
    while not os.path.exists("end of long"):
        await asyncio.sleep(0.02)
    await say(send, b"ended", more=False)


HANDLERS = {"long": long, **{
"""
WITH_LONG = APPLICATION.replace("\nHANDLERS = {\n", LONG).replace('asks".split()\n}', 'asks".split()\n}}')


class LockedClient(Http2Client):
    """One thread reads, another one writes: never both at once, since an SSLSocket is not made for that."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(Client(sock))
        self._lock = threading.RLock()

    def send(self, *data: bytes) -> None:
        with self._lock:
            super().send(*data)

    def read_some(self) -> None:
        if select.select([self.sock], [], [], 0.05)[0]:
            with self._lock:
                super().read_some()
                while isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
                    super().read_some()


class Streams:
    """A client with several streams on one connection, read in a thread; `short` asks for something besides."""

    def __init__(self, sock: socket.socket, paths: tuple[str, ...]) -> None:
        sock.settimeout(PATIENCE)
        self.client = LockedClient(sock)
        self.client.begin({4: 1 << 22}, NO_LIMIT)
        self.paths = {self.client.get(f"/{path}".encode()): path for path in paths}
        self.failure: OSError | None = None
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while not self.client.closed:
                self.client.read_some()
        except OSError as error:
            self.failure = error

    def wait(self, condition: Callable[[], bool]) -> None:
        until(lambda: condition() or not self._thread.is_alive())
        assert condition(), (self.failure, self.client.frames[-5:])

    def short(self) -> None:
        """A request that is answered at once."""
        stream_id = self.client.get(b"/short")
        self.wait(lambda: self.client.answers[stream_id].over)
        assert bytes(self.client.answers[stream_id].content) == b"short"

    def wait_for(self, stream_id: int, content: bytes) -> None:
        """Wait until this has come on the stream."""
        self.wait(lambda: bytes(self.client.answers[stream_id].content) == content)

    def wait_for_goaways(self) -> None:
        """Both of them."""
        self.wait(lambda: len(self.client.goaways()) == 2)

    def wait_for_the_end(self) -> None:
        """The server closes."""
        self.wait(lambda: self.client.closed)

    def version(self, stream_id: int) -> int:
        """Of the latest event that has come."""
        found = EVENT.findall(bytes(self.client.answers[stream_id].content[-2000:]))
        return int(found[-1][1]) if found else 0

    def all_of(self, version: int) -> None:
        """Wait for an event of this version on each stream."""
        self.wait(lambda: all(self.version(stream_id) == version for stream_id in self.paths))

    def check(self, versions: int) -> None:
        """Wait for the ends. Nothing lost, doubled or out of order, from every version."""
        self.wait(lambda: all(self.client.answers[stream_id].over for stream_id in self.paths))
        for stream_id, path in self.paths.items():
            answer = self.client.answers[stream_id]
            assert answer.reset is None, path
            found = EVENT.findall(bytes(answer.content).replace(b"\r\n", b"\n"))
            assert [int(number) for number, _ in found] == list(range(len(found))), path
            assert sorted({int(version) for _, version in found}) == list(range(1, versions + 1)), path

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.client.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.client.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APPLICATION)
    (tmp_path / "frameworks.py").write_text(FRAMEWORKS)
    return tmp_path


@contextlib.contextmanager
def clients(server: RunningServer, paths: tuple[str, ...], tls: bool = True, count: int = 1) -> Iterator[list[Streams]]:
    """So many, in clear text, and over TLS."""
    found: list[Streams] = []
    context = AUTHORITY.client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        for _ in range(count):
            found.append(Streams(socket.create_connection(addresses(server)["http"]), paths))
            if tls:
                found.append(Streams(secure(server, context), paths))
        yield found
    finally:
        for client in found:
            client.close()


@contextlib.contextmanager
def serving(directory: Path, *options: str) -> Iterator[RunningServer]:
    cert, key = AUTHORITY.server("localhost").write(directory)
    binds = ("--bind", "http://127.0.0.1:0", "--bind", "https://127.0.0.1:0")
    files = ("--workers", "2", "--tls-cert", str(cert), "--tls-key", str(key))
    with running("app:app", *binds, *files, *QUICK, *options, directory=directory, bind="") as server:
        yield server


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_streams_go_on_over_three_deploys(loop: str, directory: Path) -> None:
    """Eight of them on each of four connections, beside short requests."""
    with serving(directory, "--loop", loop) as server, clients(server, PATHS, count=2) as found:
        for version in range(1, 5):
            if version > 1:
                deploy(server, version)
            for client in found:
                client.all_of(version)
                client.short()
        (directory / "stop").touch()
        for client in found:
            client.check(4)
            client.short()
            assert client.client.goaways() == []
        totals = server.status()["totals"]
        assert totals["survived"] >= 3 * len(PATHS) * len(found)
        assert totals["not_survived"] == 0


def test_beside_a_long_request_the_client_opens_another_connection_and_no_stream_is_lost(directory: Path) -> None:
    (directory / "app.py").write_text(WITH_LONG)
    with serving(directory) as server, clients(server, (*NUMBERS, "long")) as found:
        long = list(found[0].paths)[-1]  # everywhere the same
        for client in found:
            del client.paths[long]
            client.all_of(1)
            client.wait_for(long, b"begun")
        (directory / "app.py").write_text(WITH_LONG.replace("VERSION = 1", "VERSION = 2"))
        server.reload()
        for client in found:
            client.wait_for_goaways()
            assert {client.version(stream_id) for stream_id in client.paths} == {1}
        (directory / "end of long").touch()
        for client in found:
            client.all_of(2)
        (directory / "stop").touch()
        for client in found:
            client.check(2)
            client.wait_for_the_end()
            assert {code for _, code in client.client.goaways()} == {ErrorCode.NO_ERROR}
            assert bytes(client.client.answers[long].content) == b"begunended"


def test_roll_back_brings_them_home(directory: Path) -> None:
    with serving(directory, "--keep-previous", "60") as server, clients(server, NUMBERS) as found:
        for client in found:
            client.all_of(1)
        deploy(server, 2)
        for client in found:
            client.all_of(2)
        control_client.ask(server.control, "rollback")
        for client in found:
            client.all_of(1)
        (directory / "stop").touch()
        for client in found:
            client.check(2)
            assert client.client.goaways() == []


BROWSER = '''
async def page(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": PAGE})


async def events(scope, receive, send):
    kept = survive(scope)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    gone = asyncio.ensure_future(until_gone(receive))
    while not gone.done():
        number = kept.state.get("number", 0) + 1
        await send({"type": "http.response.body", "body": b"data: %d %d\\n\\n" % (VERSION, number), "more_body": True})
        kept.state["number"] = number
        await asyncio.wait([gone], timeout=0.02)


async def until_gone(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def numbers(scope, receive, send):
    """Echoes, and says over what it speaks."""
    kept = survive(scope)
    await accept(receive, send)
    number = kept.state.get("number", 0)
    while (message := await receive())["type"] == "websocket.receive":
        number += 1
        await say(send, VERSION, number, message["text"], scope["http_version"])
        kept.state["number"] = number


PAGE = b"""<!doctype html><title>-</title><link rel=icon href=data:,><p id=version>0</p><p id=answers>0</p><script>
const told = {opened: 0, ended: 0, wrong: [], http: new Set(), events: 0, begun: 0};
const show = (name, value) => document.getElementById(name).textContent = value;
function open(path) {
  const socket = new WebSocket(`wss://${location.host}/${path}`);
  let sent = 0, received = 0;
  const ask = () => socket.send(++sent);
  socket.onopen = () => { told.opened++; ask(); ask(); };
  socket.onclose = socket.onerror = () => told.ended++;
  socket.onmessage = ({data}) => {
    const [version, number, text, http] = data.split(" ");
    if (+number !== ++received || +text !== received) told.wrong.push(data);
    told.http.add(http);
    versions[path] = +version;
    show("version", Math.min(...Object.values(versions)));
    show("answers", +document.getElementById("answers").textContent + 1);
    setTimeout(ask, 5);
  };
}
const versions = {"numbers/1": 0, "numbers/2": 0, events: 0};
for (const path in versions) if (path !== "events") open(path);
const source = new EventSource("/events");
source.onopen = () => told.begun++;
source.onmessage = ({data}) => {
  const [version, number] = data.split(" ");
  if (+number !== ++told.events) told.wrong.push(data);
  versions.events = +version;
};
</script>"""


HANDLERS = {
    **{name: globals()[name] for name in ("page", "events", "numbers")},
'''


@pytest.mark.needs("chromium")
def test_chromiums_websockets_and_event_stream_over_three_deploys(directory: Path) -> None:
    """On one connection."""
    code = WEBSOCKETS.replace("\nHANDLERS = {\n", BROWSER, 1).replace(
        "    name: globals()[name]\n    for name in (", "    **{name: globals()[name] for name in (", 1
    )
    code = code.replace('none".split()\n    )\n}', 'none".split()\n    )}\n}')
    (directory / "app.py").write_text(code)
    with serving(directory) as server, page(directory / "profile", "--ignore-certificate-errors") as browser:
        browser.open(f"https://localhost:{addresses(server)['https'][1]}/page")
        for version in range(1, 5):
            if version > 1:
                (directory / "app.py").write_text(code.replace("VERSION = 1", f"VERSION = {version}"))
                server.reload()
            browser.wait_for(f"+document.getElementById('version').textContent === {version}")
            enough = browser.number("answers") + 20
            browser.wait_for(f"+document.getElementById('answers').textContent > {enough}")
        told = browser.evaluate("({...told, http: [...told.http]})")
        totals = server.status()["totals"]
        browser.open("about:blank")
    assert told["wrong"] == []
    assert (told["opened"], told["ended"], told["begun"], told["http"]) == (2, 0, 1, ["2"])
    assert totals["survived"] >= 9
    assert (totals["not_survived"], totals["http2_goaways"]) == (0, 0)
