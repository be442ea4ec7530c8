"""`Server`: an application in the test's own process and loop, over every protocol, and nothing of it left behind."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from serve_asgi import Server, retiring
from serve_asgi.errors import StartError, UsageError
from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.in_process import connection_care
from tests.certificates import Authority
from tests.h2_client import H2Client
from tests.in_process.conftest import Run

TEXT = [(b"content-type", b"text/plain")]


async def respond(send: Send, body: bytes, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": TEXT})
    await send({"type": "http.response.body", "body": body})


class Application:
    """Echoes what it is sent; `/wait` responds when it is told to."""

    def __init__(self, *, fails: str = "") -> None:
        self.lives: list[str] = []
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.fails = fails

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(receive, send)
        elif scope["path"] == "/wait":
            self.entered.set()
            await self.go_on.wait()
            await respond(send, b"waited")
        elif scope["path"] == "/raise":
            raise LookupError("in the application")
        else:
            body = b""
            while True:
                message = await receive()
                body += message["body"]
                if not message["more_body"]:
                    break
            told = {"path": scope["path"], "body": body.decode(), "scheme": scope["scheme"]}
            await respond(send, json.dumps(told | {"version": scope["http_version"]}).encode())

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        if self.fails:
            raise RuntimeError(self.fails)
        self.lives.append("up")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.lives.append("down")
        await send({"type": "lifespan.shutdown.complete"})

    async def _websocket(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})


def test_it_serves_and_leaves_nothing(run: Run[None]) -> None:
    application = Application()

    async def main() -> None:
        async with Server(application, port=0) as server:
            assert application.lives == ["up"]
            assert server.started
            assert server.url == f"http://127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=server.url) as client:
                for number in range(3):
                    answer = await client.post("/x", content=f"{number}")
                    assert answer.json() == {"path": "/x", "body": f"{number}", "scheme": "http", "version": "1.1"}
                assert answer.headers["server"] == "serve"
                assert (await client.get("/ping")).json()["status"] == "ok"
                assert (await client.get("/raise")).status_code == 500
        assert application.lives == ["up", "down"]
        assert not server.started
        with pytest.raises(RuntimeError, match="does not run"):
            _ = server.url

    run(main())


def test_it_speaks_websocket(run: Run[None]) -> None:
    async def main() -> None:
        async with Server(Application(), port=0) as server, websockets.connect(server.ws_url) as client:
            await client.send("hello")
            assert await client.recv() == "HELLO"
            await server.stop()
            with pytest.raises(websockets.ConnectionClosed):
                await client.recv()
            assert client.close_code == 1001

    run(main())


def test_it_speaks_http_2(run: Run[None]) -> None:
    async def main() -> None:
        async with Server(Application(), port=0) as server:
            status, body = await asyncio.to_thread(ask_over_http_2, server.port, None)
            assert (status, json.loads(body)["version"]) == (200, "2")

    run(main())


def ask_over_http_2(port: int, tls: ssl.SSLContext | None) -> tuple[int, bytes]:
    client = H2Client.to(("127.0.0.1", port), tls)
    try:
        return client.ask()
    finally:
        client.socket.close()


def test_it_speaks_tls(run: Run[None], tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.server("localhost").write(tmp_path)

    async def main() -> None:
        async with Server(Application(), host="localhost", port=0, tls_cert=certificate, tls_key=key) as server:
            trusting = authority.client_context()
            url = f"https://localhost:{server.port}"
            async with httpx.AsyncClient(base_url=url, verify=trusting) as client:
                assert (await client.get("/")).json()["scheme"] == "https"
            h2 = authority.client_context()
            h2.set_alpn_protocols(["h2"])
            status, body = await asyncio.to_thread(ask_over_http_2, server.port, h2)
            assert (status, json.loads(body)["version"]) == (200, "2")

    run(main())


def test_plain_addresses_redirect_to_the_one_that_speaks_tls(run: Run[None], tmp_path: Path) -> None:
    certificate, key = Authority().server("localhost").write(tmp_path)

    async def main() -> None:
        bind = ["https://127.0.0.1:0", "http://127.0.0.1:0"]
        async with Server(
            Application(), bind=bind, ssl_certfile=certificate, ssl_keyfile=key, https_redirect=True
        ) as server:  # the names that others have for them
            secure, plain = server.urls
            async with httpx.AsyncClient() as client:
                answer = await client.get(plain + "/x")
            assert (answer.status_code, answer.headers["location"]) == (308, secure + "/x")

    run(main())


def test_limits_are_those_of_serve(run: Run[None]) -> None:
    async def main() -> None:
        async with (
            Server(Application(), port=0, max_body_size=10, health=False) as server,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            assert (await client.post("/", content=b"x" * 11)).status_code == 413
            assert (await client.get("/ping")).json()["path"] == "/ping"

    run(main())


def test_a_request_in_progress_ends_before_the_server(run: Run[None]) -> None:
    async def main() -> None:
        application = Application()
        async with Server(application, port=0) as server, httpx.AsyncClient(base_url=server.url) as client:
            answer = asyncio.create_task(client.get("/wait"))
            await application.entered.wait()
            stopping = asyncio.create_task(server.stop())
            while server.started:
                await asyncio.sleep(0)
            async with httpx.AsyncClient(base_url=client.base_url) as late:
                with pytest.raises(httpx.ConnectError):
                    await late.get("/")
            assert application.lives == ["up"]
            application.go_on.set()
            assert (await answer).text == "waited"
            await stopping
        assert application.lives == ["up", "down"]

    run(main())


def test_a_request_that_does_not_end_is_cut(run: Run[None], caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        application = Application()
        async with Server(application, port=0, graceful_timeout=0.2) as server:
            client = httpx.AsyncClient(base_url=server.url)
            answer = asyncio.create_task(client.get("/wait"))
            await application.entered.wait()
        with pytest.raises(httpx.HTTPError):
            await answer
        await client.aclose()
        assert application.lives == ["up", "down"]

    run(main())
    assert "cut 1 requests" in caplog.text


def test_a_cancelled_block_ends_the_server_all_the_same(run: Run[None]) -> None:
    async def main() -> None:
        application = Application()
        began = asyncio.Event()

        async def block() -> None:
            async with Server(application, port=0) as server, httpx.AsyncClient(base_url=server.url) as client:
                began.set()
                await client.get("/wait")

        task = asyncio.create_task(block())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert application.lives == ["up", "down"]

    run(main())


def test_a_startup_that_fails_is_raised_with_its_traceback(run: Run[None]) -> None:
    async def main() -> None:
        with pytest.raises(StartError, match="lifespan startup") as raised:
            async with Server(Application(fails="no database"), port=0):
                pytest.fail("it has started")
        assert "RuntimeError: no database" in raised.value.__notes__[0]

    run(main())


def test_a_startup_that_hangs_is_ended(run: Run[None]) -> None:
    async def hanging(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.Event().wait()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await Server(hanging, port=0, startup_timeout=0.1).start()

    run(main())


def test_an_address_in_use_is_a_sentence(run: Run[None]) -> None:
    async def main() -> None:
        async with Server(Application(), port=0) as server:
            with pytest.raises(UsageError, match=f"port {server.port} of 127.0.0.1 is in use"):
                await Server(Application(), port=server.port).start()

    run(main())


def test_a_unix_socket_and_a_descriptor(run: Run[None], tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        async with Server(Application(), bind=f"unix:{path}"):
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                assert (await client.get("/a")).json()["path"] == "/a"
        assert os.listdir(tmp_path) in ([], ["socket.lock"])
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))
            async with Server(Application(), fd=own.fileno()) as server:
                assert server.port == own.getsockname()[1]
                async with httpx.AsyncClient(base_url=server.url) as client:
                    assert (await client.get("/")).status_code == 200

    run(main())


def test_more_clients_than_max_connections_wait(run: Run[None]) -> None:
    async def main() -> None:
        application = Application()
        async with (
            Server(application, port=0, max_connections=1) as server,
            httpx.AsyncClient(base_url=server.url) as first,
            httpx.AsyncClient(base_url=server.url) as second,
        ):
            await first.get("/")
            waiting = asyncio.create_task(second.get("/second"))
            await first.get("/")
            assert not waiting.done()
            await first.aclose()
            assert (await waiting).status_code == 200

    run(main())


class AcceptingLoop(asyncio.SelectorEventLoop):
    """As the default loop on Windows: it does not tell who waits, and accepts clients by itself."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError


def test_a_loop_that_accepts_by_itself() -> None:
    async def main() -> None:
        async with Server(Application(), port=0) as server, httpx.AsyncClient(base_url=server.url) as client:
            assert (await client.get("/")).status_code == 200

    with asyncio.Runner(loop_factory=AcceptingLoop) as runner:
        runner.run(main())


def test_several_servers_in_one_process(run: Run[None]) -> None:
    seen: dict[str, str | None] = {}

    def telling(name: str) -> Any:
        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == "/wait":
                await send({"type": "http.response.start", "status": 200, "headers": TEXT})
                await send({"type": "http.response.body", "body": b"begun", "more_body": True})
                seen[name] = await retiring.wait()
                await send({"type": "http.response.body", "body": b" ended"})
            else:
                await respond(send, f"{name} {retiring()} {retiring.reason}".encode())

        return application

    async def main() -> None:
        async with (
            Server(telling("a"), port=0, lifespan="off") as a,
            Server(telling("b"), port=0, lifespan="off") as b,
            httpx.AsyncClient() as client,
        ):
            assert (await client.get(b.url)).text == "b False None"
            async with client.stream("GET", a.url + "/wait") as begun:
                chunks = begun.aiter_bytes()
                assert await anext(chunks) == b"begun"
                await a.stop()
                assert [each async for each in chunks] == [b" ended"]
            assert seen == {"a": "stop"}
            assert (await client.get(b.url)).text == "b False None"
        assert not retiring()

    run(main())


def test_a_program_that_stood_still_punishes_nobody(run: Run[None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_care, "PERIOD", 0.05)
    monkeypatch.setattr(connection_care, "STOOD_STILL", 0.2)

    async def main() -> None:
        async with Server(Application(), port=0, head_timeout=0.3) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\n")
            await asyncio.sleep(0.1)
            writer.write(b"host: x\r\nconnection: close\r\n\r\n")
            time.sleep(0.5)  # noqa: ASYNC251 - as a breakpoint would
            assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
            writer.close()

    run(main())


def test_a_server_is_started_once(run: Run[None]) -> None:
    async def main() -> None:
        server = Server(Application(), port=0)
        await server.stop()  # which was never started
        async with server:
            with pytest.raises(RuntimeError, match="once"):
                await server.start()
        await server.stop()

    run(main())


def test_serve_ends_when_it_is_asked_to(run: Run[None]) -> None:
    async def main() -> None:
        application = Application()
        server = Server(application, port=0)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        server.ask_to_stop()
        await serving
        assert application.lives == ["up", "down"]

    run(main())


def test_the_application_may_be_named(run: Run[None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_application.py").write_text(
        "def make():\n"
        "    async def app(scope, receive, send):\n"
        "        await send({'type': 'http.response.start', 'status': 204, 'headers': []})\n"
        "        await send({'type': 'http.response.body'})\n"
        "    return app\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    async def main() -> None:
        async with (
            Server("named_application:make", factory=True, lifespan="off", port=0) as server,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            assert (await client.get("/")).status_code == 204

    run(main())


@pytest.mark.parametrize("given", [{"interface": "asgi2"}, {"factory": True}])
def test_what_cannot_be_an_application(run: Run[None], given: dict[str, Any]) -> None:
    async def main() -> None:
        with pytest.raises(UsageError):
            await Server(Application(), port=0, **given).start()

    run(main())


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, serve_asgi; print('asyncio' in sys.modules, 'typing' in sys.modules)"
    source = {"PYTHONPATH": "server"}
    told = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=source)
    assert told.stdout.split() == ["False", "False"], told.stderr


def test_an_access_log_if_it_is_asked_for(run: Run[None], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def ask(server: Server) -> None:
        async with server, httpx.AsyncClient(base_url=server.url) as client:
            await client.get("/x")

    log = tmp_path / "access.log"
    run(ask(Server(Application(), port=0)))
    run(ask(Server(Application(), port=0, access_log=True, access_log_file=log)))
    assert '"target":"/x"' in log.read_text()
    assert "/x" not in capfd.readouterr().out
    run(ask(Server(Application(), port=0, access_log=True, access_log_format="common")))
    assert '"GET /x HTTP/1.1" 200' in capfd.readouterr().out


def test_files_are_served_without_the_application(run: Run[None], tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "app.3f2a9c1b.js").write_text("hashed")
    (tmp_path / "public" / "large.bin").write_bytes(b"x" * 1_000_000)
    (tmp_path / "secret").write_text("secret")

    async def main() -> None:
        options: Any = {"static": f"/static={tmp_path}/public", "static_max_age": 60, "root_path": "/api"}
        async with (
            Server(Application(), port=0, **options) as server,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            hashed = await client.get("/static/app.3f2a9c1b.js")
            assert (hashed.text, hashed.headers["cache-control"]) == (
                "hashed",
                "public, max-age=31536000, immutable",
            )
            large = await client.get("/static/large.bin")
            assert (large.content, large.headers["cache-control"]) == (b"x" * 1_000_000, "public, max-age=60")
            assert (await client.get("/static/large.bin", headers={"range": "bytes=-2"})).content == b"xx"
            known = await client.get("/static/large.bin", headers={"if-none-match": large.headers["etag"]})
            assert known.status_code == 304
            assert (await client.get("/static/%2e%2e/secret")).text != "secret"

    run(main())


def test_a_directory_of_files_that_is_not_there_refuses_the_start(run: Run[None], tmp_path: Path) -> None:
    async def main() -> None:
        server = Server(Application(), port=0, static=(f"/a={tmp_path}", "/b=/nowhere"))
        with pytest.raises(UsageError, match=r"--static: the directory /nowhere .* cannot be opened: No such file"):
            await server.start()

    run(main())


def test_one_in_a_thread_for_code_that_blocks() -> None:
    before = threading.active_count()
    with Server.in_thread(Application(), port=0) as server:
        assert httpx.get(f"{server.url}/x").status_code == 200
    assert threading.active_count() == before
    with pytest.raises(StartError), Server.in_thread(Application(fails="startup"), port=0):
        pass
    with pytest.raises(TypeError, match="workers"), Server.in_thread(Application(), workers=2):  # type: ignore[call-arg]
        pass
