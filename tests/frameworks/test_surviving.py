"""Frameworks over deploys, each client on one connection."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import pytest

from tests.frameworks.driving import reload, serving, url
from tests.frameworks.surviving import QUICK, RELOADS, counts, event_source, over_reloads, socketio, stream, websocket
from tests.running import PATIENCE, RunningServer


@pytest.mark.frameworks("starlette", "httpx", "sse_starlette")
def test_starlette(tmp_path: Path) -> None:
    with serving("surviving_starlette_app:app", tmp_path, *QUICK) as server:
        over_reloads(
            server,
            *map(stream, ("/lines", "/asking", "/events", "/stamped/lines", "/stamped/asking", "/stamped/events")),
            *map(websocket, ("/echo", "/raising", "/stamped/echo")),
            *([event_source] if shutil.which("chromium") else []),
        )


@pytest.mark.frameworks("fastapi", "httpx")
def test_fastapi(tmp_path: Path) -> None:
    question = {"method": "POST", "json": {"text": "the question"}}
    with serving("surviving_fastapi_app:app", tmp_path, *QUICK) as server:
        over_reloads(server, stream("/lines"), stream("/answer", **question), websocket("/echo"))


@pytest.mark.frameworks("litestar", "httpx")
def test_litestar(tmp_path: Path) -> None:
    with serving("surviving_litestar_app:app", tmp_path, *QUICK) as server:
        over_reloads(server, stream("/lines"), stream("/events"), websocket("/echo"))


@pytest.mark.frameworks("quart", "httpx")
def test_quart(tmp_path: Path) -> None:
    with serving("surviving_quart_app:app", tmp_path, *QUICK) as server:
        over_reloads(server, stream("/lines"), websocket("/echo"))


@pytest.mark.frameworks("django", "channels", "httpx")
def test_django_and_channels(tmp_path: Path) -> None:
    with serving("surviving_django_app:app", tmp_path, *QUICK) as server:
        over_reloads(server, stream("/lines"), websocket("/echo"), websocket("/threaded"))


@pytest.mark.frameworks("socketio", "requests", "websocket")
def test_socketio(tmp_path: Path) -> None:
    with serving("surviving_socketio_app:app", tmp_path, *QUICK) as server:
        over_reloads(server, socketio)


@pytest.mark.frameworks("mcp")
def test_mcp_client_that_listens(tmp_path: Path) -> None:
    from mcp import Client

    async def main(server: RunningServer) -> None:
        changes = [f"test://{number}" for number in range(RELOADS + 1)]
        pids = []
        async with (
            Client(url(server, "/mcp"), mode="auto") as client,
            client.listen(resource_subscriptions=changes) as heard,
        ):
            for past, change in enumerate(changes):
                if past:
                    await anyio.to_thread.run_sync(reload, server)
                answer = await client.call_tool("change", {"number": past})
                pids.append(answer.content[0].text)  # type: ignore[union-attr]
                with anyio.fail_after(PATIENCE):
                    assert (await anext(heard)).uri == change  # type: ignore[union-attr]
        assert len(set(pids)) == len(pids)

    with serving("surviving_mcp_app:app", tmp_path, *QUICK) as server:
        anyio.run(main, server)
        assert counts(server) == (RELOADS, 0)
