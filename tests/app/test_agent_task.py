"""What `--agent` may name, what is said of what it may not, and agents in a process of their own (local mode)."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi import agent, messenger
from serve_asgi.app.agent_task import AgentTarget, AgentTask, import_agent
from serve_asgi.errors import UsageError

MODULE = """
import contextlib

async def function(): pass
async def with_arguments(scope, receive, send): pass
async def with_default(seconds=3): pass
async def generator(): yield
manager = contextlib.asynccontextmanager(generator)
inside = manager()
not_async = contextlib.nullcontext if False else contextlib.closing(open("/dev/null"))
not_async.__enter__().close()
def plain(): return 3
number = 3

class Prepared:
    async def prepare(self): pass
    async def __aenter__(self): pass
    async def __aexit__(self, *error): pass

class Called:
    async def __call__(self): pass

class PreparedBadly(Called):
    def prepare(self): pass

class NeedsArguments(Called):
    def __init__(self, url): pass

async def prepare(): pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "agent_of_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "agent_of_test"
    sys.modules.pop("agent_of_test", None)


@pytest.mark.parametrize("name", ["function", "with_default", "manager", "inside", "Prepared", "Called"])
def test_what_an_agent_may_be(module: str, name: str) -> None:
    asyncio.run(prepared_entered_and_left(AgentTarget(*import_agent(f"{module}:{name}"))))


async def prepared_entered_and_left(subject: AgentTarget) -> None:
    await subject.prepare()
    life = AgentTask(subject)
    if (raised := await life.enter()) is not None:
        raise raised
    assert await life.finish() is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("functoin", "did you mean 'function'"),
        ("nothing_like_that", "what looks like an agent there: Prepared, function, inside"),
        ("with_arguments", "needs arguments, and an agent gets none"),
        ("NeedsArguments", "needs arguments, and an agent gets none"),
        ("generator", "put @asynccontextmanager above it"),
        ("not_async", "a context manager that is not async"),
        ("number", "of type int, which is not an agent"),
        ("PreparedBadly", "is not async: write it with async def"),
    ],
)
def test_what_an_agent_may_not_be_is_a_sentence(module: str, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        AgentTarget(*import_agent(f"{module}:{name}"))


def test_a_function_that_makes_no_agent_is_found_out_when_it_is_entered(module: str) -> None:
    with pytest.raises(UsageError, match="returned is of type int, not an agent"):
        asyncio.run(prepared_entered_and_left(AgentTarget(*import_agent(f"{module}:plain"))))


@pytest.mark.parametrize(("specification", "said"), [("app", "is not an agent"), ("no_such_mod:x", "no module")])
def test_a_wrong_specification_is_a_sentence(specification: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        AgentTarget(*import_agent(specification))


def test_its_own_prepare_comes_before_the_modules(module: str) -> None:
    imported = sys.modules.get(module) or __import__(module)
    called = []

    async def own() -> None:
        called.append("own")

    async def of_module() -> None:
        called.append("module")

    async def function() -> None:
        pass

    of_module.__module__ = imported.__name__
    imported.prepare = of_module  # type: ignore[attr-defined]
    asyncio.run(AgentTarget(function, "app:agent", imported).prepare())
    function.prepare = own  # type: ignore[attr-defined]
    asyncio.run(AgentTarget(function, "app:agent", imported).prepare())
    of_module.__module__ = "elsewhere"  # an import of that name is not meant
    del function.prepare  # type: ignore[attr-defined]
    asyncio.run(AgentTarget(function, "app:agent", imported).prepare())
    assert called == ["module", "own"]


# In a process of its own


async def in_local_mode() -> None:
    assert agent.here
    assert agent.present
    await agent.wait()
    done: list[str] = []

    @contextlib.asynccontextmanager
    async def counting() -> AsyncIterator[None]:
        async def count(message: Any) -> int:
            return len(message.payload)

        messenger.on("count", count)
        done.append("entered")
        yield
        messenger.off("count", count)
        done.append("left")

    async with agent.running(counting):
        assert await agent.call("count", [1, 2, 3]) == 3
    assert done == ["entered", "left"]


def test_an_agent_runs_in_a_test() -> None:
    asyncio.run(in_local_mode())


def test_what_it_raises_is_raised_after_the_block() -> None:
    async def raises() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("no good")

    async def run() -> None:
        async with agent.running(raises):
            await asyncio.sleep(0.01)

    with pytest.raises(RuntimeError, match="no good"):
        asyncio.run(run())


def test_a_function_is_cancelled_at_the_end_and_may_take_its_time() -> None:
    done = []

    async def runs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            done.append("cleaned up")

    async def run() -> None:
        async with agent.running(runs):
            pass

    asyncio.run(run())
    assert done == ["cleaned up"]


def test_an_entering_that_is_cancelled_is_ended_first() -> None:
    done = []

    @contextlib.asynccontextmanager
    async def never() -> AsyncIterator[None]:
        try:
            await asyncio.Event().wait()
            yield
        finally:
            done.append("ended")

    async def run() -> None:
        life = AgentTask(AgentTarget(never, "app:agent", None))
        entering = asyncio.ensure_future(life.enter())
        await asyncio.sleep(0.01)
        entering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await entering
        assert done == ["ended"]

    asyncio.run(run())


class OwnKind(BaseException):
    pass


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, OwnKind, asyncio.CancelledError, ValueError])
@pytest.mark.parametrize("later", [False, True])
def test_whatever_the_application_raises_is_a_value_and_ends_no_loop(kind: type[BaseException], later: bool) -> None:
    async def leaves() -> None:
        if later:
            await asyncio.sleep(0.01)
        raise kind

    async def run() -> None:
        life = AgentTask(AgentTarget(leaves, "app:agent", None))
        # in a task of its own, out of which an exit would end the loop
        entered = await asyncio.ensure_future(life.enter())
        assert isinstance(await life.wait_ended() if later else entered, kind)
        assert isinstance(await life.finish(), kind)

    asyncio.run(run())


def test_one_that_is_to_finish_before_its_first_step_has_finished() -> None:
    async def never() -> None:
        raise AssertionError

    async def run() -> None:
        life = AgentTask(AgentTarget(never, "app:agent", None))
        entering = asyncio.ensure_future(life.enter())
        await asyncio.sleep(0)  # the task has been made, and comes next
        assert await life.finish() is None
        await entering

    asyncio.run(run())
