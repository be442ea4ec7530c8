"""What the application raises where no client waits: handlers of messages, schedules, the agent, hooks, lifespans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from serve_asgi.cli import control_client
from serve_asgi.cli.control_client import RequestRefused
from tests.running import connect, request, running, until
from tests.test_application_errors import BEGINNING, JSON, LONGEST, RAISED, functions, named, written

pytestmark = pytest.mark.once

HANDLERS = (
    BEGINNING
    + functions("raised")
    + """
from serve_asgi import messenger, schedule

def handler(what):
    async def handle(message): await raised[what]()
    return handle

def run(what):
    async def ran(): await raised[what]()
    ran.__name__ = ran.__qualname__ = what
    return ran

class Odd(dict):
    def __iter__(self): sys.exit("own")
    items = keys = values = __len__ = __bool__ = __iter__

for what in raised:
    messenger.on(what)(handler(what))
    schedule(every="10h", name=what)(run(what))

@schedule(every="10h", name="thread")
def in_a_thread(): raise StopIteration("own")

messenger.on("odd")(lambda message: Odd(a=1))

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError
    try:
        await messenger.call(scope["path"][1:], timeout=20)
        text = "answered"
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[:300]
    body = text.encode()
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
"""
)


def test_handlers_of_messages(tmp_path: Path) -> None:
    """The caller is told at once, the log has one event, and the topic goes on."""
    (tmp_path / "app.py").write_text(HANDLERS)
    with running("app:app", directory=tmp_path, **JSON) as server, connect(server) as connection:
        pids = server.worker_pids()
        for what in [*RAISED, *RAISED, "odd"]:
            status, text = request(connection, f"/{what}")
            assert (status, text[:11]) == (200, b"CallFailed:"), (what, text)
        told = [line["topic"] for line in named(server, "message_handler_failed")]
        assert sorted(told) == sorted([*RAISED, *RAISED, "odd"])
        assert server.worker_pids() == pids
        assert server.stop() == 0
        assert all(len(line) < LONGEST for line in server.log().splitlines())
        assert named(server, "worker_died", "internal_error") == []


def test_schedules(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(HANDLERS)
    with running("app:app", directory=tmp_path, **JSON) as server:
        pids = server.worker_pids()
        for name in [*RAISED, "thread"]:
            with pytest.raises(RequestRefused, match="failed in worker 0"):
                control_client.ask(server.control, "schedule", do="run", name=name)
        assert server.worker_pids() == pids
        assert server.stop() == 0
        assert all(len(line) < LONGEST for line in server.log().splitlines())
        assert named(server, "worker_died", "internal_error") == []


def lifespan(startup: str = "", shutdown: str = "") -> str:
    return f"""{BEGINNING}
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
{written("        ", startup or "pass")}
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
{written("        ", shutdown or "pass")}
        await send({{"type": "lifespan.shutdown.complete"}})
        return
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}})
    await send({{"type": "http.response.body", "body": b"ok"}})
"""


LIFESPANS: Final = {
    "cancelled": "task = asyncio.create_task(asyncio.sleep(9)); task.cancel(); await task",
    "group": RAISED["group"],
    "exit": RAISED["exit"],
    "awaited": RAISED["awaited"],
    "hostile": RAISED["hostile"],
    "long": RAISED["long"],
}


def test_the_startup_of_a_lifespan(tmp_path: Path) -> None:
    """A reload is refused at once, with the traceback; the old code serves on."""
    (tmp_path / "app.py").write_text(lifespan())
    with running("app:app", "--startup-timeout", "300", directory=tmp_path, **JSON) as server:
        pids = server.worker_pids()
        for what, statements in LIFESPANS.items():
            (tmp_path / "app.py").write_text(lifespan(startup=statements))
            with pytest.raises(RequestRefused, match="raised an exception in its lifespan startup") as refused:
                server.reload()
            assert "Traceback" in refused.value.detail, what
            assert len(refused.value.detail) < LONGEST
        (tmp_path / "app.py").write_text("import sys\nraise KeyboardInterrupt('at the import')\n")
        with pytest.raises(RequestRefused, match="cannot be imported"):
            server.reload()
        until(lambda: server.worker_pids() == pids)
        assert server.stop() == 0
        assert all(len(line) < LONGEST for line in server.log().splitlines())


@pytest.mark.parametrize("what", [*LIFESPANS, "all", "task"])
def test_the_shutdown_of_a_lifespan(tmp_path: Path, what: str) -> None:
    """It is told once, and the worker ends in order: what it has collected for the access log is written."""
    others = {
        "all": "for task in asyncio.all_tasks():\n    if task is not asyncio.current_task(): task.cancel()",
        "task": "asyncio.create_task(exits())",
    }
    (tmp_path / "app.py").write_text(lifespan(shutdown=LIFESPANS.get(what) or others[what]))
    with running("app:app", directory=tmp_path, **JSON) as server:
        with connect(server) as connection:
            for number in range(20):
                assert request(connection, f"/r{number}")[0] == 200
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.log().splitlines()]
        assert sum("target" in line for line in lines) == 20
        assert len(named(server, "lifespan_failed")) == (what in LIFESPANS)
        assert len(named(server, "worker_finished")) == 1
        assert named(server, "worker_died", "internal_error") == []


AGENT: Final = """
from contextlib import asynccontextmanager

async def app(scope, receive, send):
    raise RuntimeError

@asynccontextmanager
async def agent():
{before}
    yield
{after}
"""


def agent(before: str = "pass", after: str = "pass") -> str:
    return BEGINNING + AGENT.format(before=written("    ", before), after=written("    ", after))


@pytest.mark.parametrize("what", ["cycle", "cancelled", "exit", "generator", "hostile", "awaited"])
def test_the_agent(tmp_path: Path, what: str) -> None:
    """One that cannot be entered fails the reload; one that does not end in order is told of once."""
    (tmp_path / "app.py").write_text(agent(after=RAISED[what]))
    with running("app:app", "--agent", "app:agent", directory=tmp_path, **JSON) as server:
        server.wait_until(lambda status: [each["state"] for each in status["agents"]] == ["active"])
        (tmp_path / "app.py").write_text(agent(before=RAISED[what]))
        with pytest.raises(RequestRefused) as refused:
            server.reload()
        assert "Traceback" in refused.value.detail
        (tmp_path / "app.py").write_text(agent(after=RAISED[what]))
        server.wait_until(lambda status: [each["state"] for each in status["agents"]] == ["active"])
        assert server.stop() == 0
        assert all(json.loads(line) for line in server.log().splitlines())
        assert len(named(server, "agent_finish_failed")) == 2  # before the reload, and at the end
        assert named(server, "internal_error") == []


def test_an_agent_that_cancels_every_task(tmp_path: Path) -> None:
    """It has failed itself, and the server's own tasks go on."""
    source = "import os\nasync def agent():\n    while not os.path.exists('go'): await asyncio.sleep(0.02)\n"
    source += "    for task in asyncio.all_tasks(): task.cancel()\n"
    (tmp_path / "app.py").write_text(agent().split("@asynccontextmanager")[0] + source + "    await asyncio.sleep(9)\n")
    with running("app:app", "--agent", "app:agent", directory=tmp_path, **JSON) as server:
        server.wait_until(lambda status: [each["state"] for each in status["agents"]] == ["active"])
        (tmp_path / "go").touch()
        until(lambda: named(server, "agent_failed"))
        assert server.stop() == 0
        assert named(server, "internal_error", "agent_died") == []


def test_hooks(tmp_path: Path) -> None:
    """A hook before a reload that raises, whatever it raises, has said no; one that exits well has said yes."""
    (tmp_path / "app.py").write_text(lifespan())
    names = ["cycle", "cancelled", "exit", "interrupt", "generator", "base", "hostile", "long"]
    source = BEGINNING + "".join(f"async def {name}(event):\n{written('    ', RAISED[name])}" for name in names)
    (tmp_path / "hooks.py").write_text(source + "def well(event): sys.exit(0)\n")
    (tmp_path / "serve.toml").write_text("")
    with running("app:app", "--config", "serve.toml", directory=tmp_path, **JSON) as server:
        for name in names:
            (tmp_path / "serve.toml").write_text(f'hook = ["pre_reload=hooks:{name}"]\n')
            with pytest.raises(RequestRefused):
                server.reload()
        (tmp_path / "serve.toml").write_text('hook = ["pre_reload=hooks:well"]\n')
        server.reload()
        assert server.stop() == 0
        assert all(len(line) < LONGEST for line in server.log().splitlines())
