"""A Model Context Protocol server over streamable HTTP, with the protocol's own client, before and after sessions."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from tests.frameworks.driving import reload, serving, url
from tests.running import PATIENCE, RunningServer

pytestmark = pytest.mark.frameworks("mcp")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving("mcp_app:app", tmp_path_factory.mktemp("mcp")) as server:
        yield server


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_tools_are_called_over_a_reload(server: RunningServer, mode: str) -> None:
    from mcp import Client

    before = set(server.worker_pids())
    seen: list[int] = []

    async def call(client: Client) -> None:
        answer = await client.call_tool("pid")
        seen.append(int(answer.content[0].text))  # type: ignore[union-attr]
        answer = await client.call_tool("add", {"a": len(seen), "b": 1})
        assert answer.content[0].text == str(len(seen) + 1)  # type: ignore[union-attr]

    async def main() -> None:
        async with Client(url(server, "/mcp"), mode=mode) as client:
            tools = await client.list_tools()
            assert {tool.name for tool in tools.tools} == {"pid", "add", "long"}
            await call(client)
            reloaded = anyio.Event()

            async def reloading() -> None:
                await anyio.to_thread.run_sync(reload, server)
                reloaded.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(reloading)
                while not reloaded.is_set():
                    await call(client)
                    await anyio.sleep(0.01)
            await call(client)

    anyio.run(main)
    assert seen[0] in before
    assert seen[-1] not in before


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_long_answer_of_events_over_a_reload(server: RunningServer, mode: str) -> None:
    """Progress is told all the while, by the worker that began, and its result comes when the new one serves."""
    from mcp import Client

    before = set(server.worker_pids())
    steps: list[float] = []

    async def main() -> None:
        first, more = anyio.Event(), anyio.Event()

        async def told(progress: float, total: float | None, message: str | None) -> None:
            steps.append(progress)
            assert (total, message) == (1_000_000, f"step {progress:.0f}")
            first.set()
            if more.is_set():
                (server.directory / "enough").touch()

        async def reloading() -> None:
            await first.wait()
            await anyio.to_thread.run_sync(reload, server, lambda: anyio.from_thread.run_sync(more.set))

        async with Client(url(server, "/mcp"), mode=mode) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(reloading)
            with anyio.fail_after(PATIENCE):
                answer = await client.call_tool("long", progress_callback=told)
            text = answer.content[0].text  # type: ignore[union-attr]
            assert int(text.split()[2]) in before
            assert steps == [float(step) for step in range(1, len(steps) + 1)]

    try:
        anyio.run(main)
    finally:
        (server.directory / "enough").unlink(missing_ok=True)
