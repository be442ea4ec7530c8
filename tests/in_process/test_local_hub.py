"""Messages, shared state, schedules and the agent of a server in process, and that nothing of them outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator

import httpx

from serve_asgi import Message, Server, agent, messenger, schedule, shared
from serve_asgi.app import hub_link
from serve_asgi.app.background_work import work
from serve_asgi.http.worker_context import Receive, Scope, Send
from tests.in_process.conftest import Run
from tests.in_process.test_server import respond


@contextlib.contextmanager
def handler(topic: str, function: Callable[[Message], object]) -> Iterator[None]:
    messenger.on(topic, function)
    try:
        yield
    finally:
        messenger.off(topic, function)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Counts in the shared state, and says what it has sent to itself."""
    count = await shared.incr("count")
    receipt = await messenger.send_to_any("local.job", count, ack=True)
    told = {"count": count, "attempts": receipt.attempts, "agent": agent.here}
    await respond(send, json.dumps(told).encode())


def test_each_server_begins_with_an_empty_hub(run: Run[None]) -> None:
    handled: list[int] = []

    async def ask() -> dict[str, object]:
        async with (
            Server(application, port=0, lifespan="off") as server,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            answer: dict[str, object] = (await client.get("/")).json()
            return answer

    async def main() -> None:
        with handler("local.job", lambda message: handled.append(message.payload)):
            for _ in range(2):
                assert await ask() == {"count": 1, "attempts": 1, "agent": True}
                assert hub_link.current_or_none() is None
                assert not work.tasks
                assert not work.retiring
        assert handled == [1, 1]

    run(main())


def test_the_servers_of_a_loop_share_one_hub(run: Run[None]) -> None:
    async def main() -> None:
        async with (
            Server(application, port=0, lifespan="off") as one,
            httpx.AsyncClient() as client,
        ):
            with handler("local.job", lambda _: None):
                await client.get(one.url)
                async with Server(application, port=0, lifespan="off") as other:
                    assert (await client.get(other.url)).json()["count"] == 2
                assert (await client.get(one.url)).json()["count"] == 3

    run(main())


def test_a_hub_of_the_program_goes_on(run: Run[None]) -> None:
    async def main() -> None:
        await shared.set("kept", "here")
        async with Server(application, port=0, lifespan="off"):
            assert shared.get("kept") == "here"
        assert shared.get("kept") == "here"

    run(main())


def test_a_handler_in_progress_ends_before_the_server(run: Run[None]) -> None:
    begun, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handle(_: object) -> None:
        begun.set()
        await go_on.wait()
        ended.set()

    async def main() -> None:
        with handler("local.slow", handle):
            async with Server(application, port=0, lifespan="off") as server:
                await messenger.send_to_any("local.slow")
                await begun.wait()
                stopping = asyncio.create_task(server.stop())
                while server.started:
                    await asyncio.sleep(0)
                go_on.set()
                await stopping
                assert ended.is_set()

    run(main())


def test_schedules_run_and_end_with_the_server(run: Run[None]) -> None:
    ran = asyncio.Event()

    async def main() -> None:
        @schedule(every=0.1, name="in process")
        async def tick() -> None:
            ran.set()

        try:
            async with Server(application, port=0, lifespan="off"):
                await ran.wait()
            ran.clear()
            await asyncio.sleep(0.2)
            assert not ran.is_set()
        finally:
            del schedule._registered["in process"]  # an application's are for good

    run(main())


def test_an_agent_runs_beside_it(run: Run[None]) -> None:
    async def main() -> None:
        seen: list[object] = []

        async def consume() -> None:
            with handler("local.price", lambda message: seen.append(message.payload)):
                await asyncio.Event().wait()

        async with Server(application, port=0, lifespan="off"), agent.running(consume):
            await agent.send("local.price", 7)
        assert seen == [7]

    run(main())
