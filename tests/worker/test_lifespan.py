"""The lifespan: what an application may do in it, and what the worker makes of that."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_asgi.errors import StartError
from serve_asgi.http.worker_context import ASGIApplication, Message, Receive, Scope, Send
from serve_asgi.logs.exceptions import is_a
from serve_asgi.worker.lifespan import Lifespan
from tests.raising import Graph, graphs

COMPLETE: Message = {"type": "lifespan.startup.complete"}


def run(app: ASGIApplication, mode: str = "auto") -> dict[str, Any]:
    """Start and shut down; return the namespace that the application filled."""
    state: dict[str, Any] = {}

    async def main() -> None:
        lifespan = Lifespan(app, mode, state)
        with anyio.fail_after(10):
            await lifespan.startup()
            state["served"] = True
            await lifespan.shutdown()

    anyio.run(main)
    return state


async def good(scope: Scope, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    scope["state"]["pool"] = "open"
    await send(COMPLETE)
    assert (await receive())["type"] == "lifespan.shutdown"
    scope["state"]["pool"] = "closed"
    await send({"type": "lifespan.shutdown.complete"})


async def ignorant(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError(f"unknown scope {scope['type']}")


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    return


async def says_failed(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def raises(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    raise RuntimeError("no database")


async def says_and_raises(scope: Scope, receive: Receive, send: Send) -> None:
    await says_failed(scope, receive, send)
    raise RuntimeError("as Starlette does")


async def ends_early(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send(COMPLETE)


async def fails_late(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send(COMPLETE)
    await receive()
    await send({"type": "lifespan.shutdown.failed", "message": "too bad"})


async def raises_late(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send(COMPLETE)
    await receive()
    raise RuntimeError("too bad")


async def confused(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def takes_it_for_a_request(scope: Scope, receive: Receive, send: Send) -> None:
    assert (await receive())["body"] == b""


async def answers_it_as_a_request(scope: Scope, receive: Receive, send: Send) -> None:
    (await receive()).get("body", b"")
    await send({"type": "http.response.start", "status": 200})


def test_state_is_shared_from_startup_to_shutdown() -> None:
    assert run(good) == {"pool": "closed", "served": True}


@pytest.mark.parametrize(
    "app",
    [ignorant, silent, takes_it_for_a_request, answers_it_as_a_request, ends_early, fails_late, raises_late],
)
def test_what_is_served(app: ASGIApplication) -> None:
    assert run(app)["served"]


@pytest.mark.parametrize("app", [says_failed, raises, says_and_raises, confused])
def test_what_has_failed_to_start(app: ASGIApplication) -> None:
    with pytest.raises(StartError) as failed:
        run(app)
    if app is not confused:
        assert "no database" in failed.value.detail


@pytest.mark.parametrize("app", [ignorant, silent, takes_it_for_a_request, answers_it_as_a_request])
def test_on_demands_the_protocol(app: ASGIApplication) -> None:
    with pytest.raises(StartError, match="--lifespan auto"):
        run(app, "on")


def test_off_does_not_call_the_application() -> None:
    assert run(raises, "off") == {"served": True}


def test_what_an_application_says_of_being_cancelled_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Starlette says that its shutdown has failed when the end of the process cancels its lifespan."""

    async def starlette_like(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(COMPLETE)
        try:
            await receive()
        except BaseException:
            await send({"type": "lifespan.shutdown.failed", "message": "cancelled"})
            raise

    async def main() -> None:
        await Lifespan(starlette_like, "auto", {}).startup()

    anyio.run(main)  # which cancels what has not ended
    assert caplog.records == []


@settings(max_examples=100, deadline=None)
@given(graph=graphs(), before=st.booleans(), later=st.booleans())
def test_whatever_the_startup_raises_is_a_failure_at_once(graph: Graph, before: bool, later: bool) -> None:
    """Only an Exception from one that has asked for nothing says that it does not know the protocol."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if not before:
            await receive()
        if later:
            await anyio.lowlevel.checkpoint()
        raise graph.error

    if before and is_a(graph.error, Exception):
        assert run(application)["served"]
        return
    with pytest.raises(StartError) as failed:
        run(application)
    assert 0 < len(failed.value.detail) < 200_000


@settings(max_examples=100, deadline=None)
@given(graph=graphs(), later=st.booleans())
def test_whatever_the_shutdown_raises_is_told_and_ends_it(graph: Graph, later: bool) -> None:
    told: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.__dict__)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(COMPLETE)
        await receive()
        if later:
            await anyio.lowlevel.checkpoint()
        raise graph.error

    logger, handler = logging.getLogger("serve"), Handler()
    logger.addHandler(handler)
    try:
        assert run(application)["served"]
    finally:
        logger.removeHandler(handler)
    assert [record["event"] for record in told] == ["lifespan_failed"]
    assert 0 < len(told[0]["about"]["detail"]) < 200_000


def test_one_that_cancels_itself_has_failed() -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep_forever()

    with pytest.raises(StartError, match="raised an exception in its lifespan startup"):
        run(application)


@pytest.mark.parametrize("event", ["lifespan.startup", "lifespan.shutdown"])
def test_one_that_returns_without_an_answer_is_told_of(event: str, caplog: pytest.LogCaptureFixture) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != event:
            await send(COMPLETE)

    assert run(application)["served"]
    (record,) = caplog.records
    assert getattr(record, "event", "") == "lifespan_unanswered"
    assert event in record.getMessage()
