"""Agents of real servers that finish: in order, badly, too late, or while others wait for them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import signal
from pathlib import Path

import pytest

from tests.agent_process.agent_server import agent_states, diary, gaps, noted, wait_for, wait_for_log, write
from tests.running import RunningServer, connect, request, running


def test_an_agent_that_does_not_finish_is_killed_and_the_reload_goes_on(tmp_path: Path) -> None:
    write(tmp_path)
    options = ("--agent", "app:hangs", "--agent-timeout", "0.5")
    with running("app:app", *options, directory=tmp_path) as server:
        assert "generation 2 serves" in server.reload()
        assert "had not finished after 0.5 s (--agent-timeout)" in server.log()
        assert agent_states(server.status()) == ["active"]
        assert server.stop() == 0
    assert len(gaps(tmp_path)) == 1


WITH_HANDLER = """
@messenger.on("hang")
async def hang(message):
    note("hanging")
    await asyncio.Event().wait()

@contextlib.asynccontextmanager
async def handles():
    await messenger.send_to_agent("hang")
    yield
    note("leave")
"""


def test_in_a_quick_stop_an_agent_is_left_in_order_although_a_handler_hangs(tmp_path: Path) -> None:
    write(tmp_path, more=WITH_HANDLER)
    with running("app:app", "--agent", "app:handles", "--agent-timeout", "60", directory=tmp_path) as server:
        wait_for(tmp_path, "hanging")
        server.signal(signal.SIGQUIT)
        assert server.wait() == 0
        assert "is killed" not in server.log()
    assert noted(tmp_path, "leave") == ["leave"]


HANDS_OUT = """
@messenger.on("errand")
async def errand(message):
    pass

async def hands_out():
    note("enter")
    try:
        while True:
            await messenger.send_to_any("errand", ack=True)
            note("beat")
    finally:
        note("leave")

@messenger.on("linger")
async def linger(message):
    await retiring.wait()
    await asyncio.sleep(0.2)
    note("lingered")

asks = app

async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/slow":
        note("slow")
        await retiring.wait()
        await messenger.send_to_agent("linger")
        await asyncio.sleep(1.5)  # a message waits for 1 s where nobody can take it
    await asks(scope, receive, send)
"""


def test_an_agent_that_hands_out_work_waits_for_the_end_of_a_stop(tmp_path: Path) -> None:
    write(tmp_path, more=HANDS_OUT)
    with running("app:app", "--agent", "app:hands_out", directory=tmp_path) as server:
        with contextlib.closing(connect(server)) as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(request, client, "/slow")
            wait_for(tmp_path, "slow")
            assert server.stop() == 0
            assert answer.result()[0] == 200
        assert "agent_failed" not in server.log()
        assert "Traceback" not in server.log()
    assert noted(tmp_path, "enter", "leave", "lingered") == ["enter", "leave", "lingered"]


FINISHES_BADLY = """
async def finishes_badly():
    note("enter")
    try:
        await asyncio.Event().wait()
    finally:
        raise ValueError("the door is stuck")


@contextlib.asynccontextmanager
async def leaves_badly():
    note("enter")
    yield
    raise ValueError("the door is stuck")
"""


@pytest.mark.parametrize("name", ["finishes_badly", "leaves_badly"])
def test_what_goes_wrong_when_an_agent_finishes_is_logged(tmp_path: Path, name: str) -> None:
    write(tmp_path, more=FINISHES_BADLY)
    with running("app:app", "--agent", f"app:{name}", directory=tmp_path) as server:
        assert "generation 2 serves" in server.reload()
        assert f"the agent app:{name} did not finish cleanly: ValueError: the door is stuck" in server.log()
        assert "server/" not in server.log().partition("did not finish")[2].partition("has finished")[0]
        assert server.stop() == 0


ENTERS_LATE = """
class Late:
    async def __aenter__(self):
        note("enter")
        while not os.path.exists(os.path.dirname(__file__) + "/go"):
            time.sleep(0.01)

    async def __aexit__(self, kind, *_):
        note(f"left-{kind}")

late = Late()
"""


def test_one_that_is_told_to_finish_at_the_moment_when_it_is_entered_is_left_in_order(tmp_path: Path) -> None:
    write(tmp_path, more=ENTERS_LATE)
    server = RunningServer("app:app", "--agent", "app:late", "--block-warning", "0", directory=tmp_path)
    try:
        wait_for(tmp_path, "enter")
        server.signal(signal.SIGTERM)
        wait_for_log(server, "stopped before the first start was complete")
        (tmp_path / "go").touch()
        assert server.wait() == 0
    finally:
        print(server.log())
        server.close()
    assert diary(tmp_path)[-1].what == "left-None"
