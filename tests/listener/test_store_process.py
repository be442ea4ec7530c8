"""The listener's side of the store: every question is answered once, whatever becomes of the process."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from serve_asgi.config.options import Config
from serve_asgi.hub.state.write_evaluation import StateLimits
from serve_asgi.ipc.channel import pair
from serve_asgi.ipc.frames import Frame, decode, encode, pack_value
from serve_asgi.listener import store_process as store_module
from serve_asgi.listener import store_requests as module
from serve_asgi.listener.helper_processes import HelperProcesses
from serve_asgi.listener.store_process import StoreProcess
from serve_asgi.store.sqlite_state import SqliteState
from serve_asgi.supervisor import actions
from tests.running import PATIENCE

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Hub:
    """What a store is given, and all that it says."""

    def __init__(self, directory: Path, state: str = "state.db") -> None:
        self.processes = HelperProcesses()
        self.frames: list[Frame] = []
        self.troubles: list[str] = []
        self.said: list[actions.LogEvent] = []
        self.news = anyio.Event()
        self.store = StoreProcess(
            Config(state=state), str(directory), self.processes, self.take, self.changed, self.said.append
        )

    def take(self, data: bytes) -> None:
        self.frames.append(decode(data))
        self.news.set()

    def changed(self, trouble: str) -> None:
        self.troubles.append(trouble)
        self.news.set()

    def write(self, *ids: int) -> None:
        for id in ids:
            self.store.send(encode("store.write", {"id": id, "op": "incr", "key": "n", "by": 1}))

    def answers(self) -> dict[int, str]:
        """What came of each write; twice is an error."""
        found: dict[int, str] = {}
        for frame in self.frames:
            if frame.kind in ("store.written", "store.refused"):
                assert frame.head["id"] not in found
                found[frame.head["id"]] = frame.head.get("code", "written")
        return found

    async def answered(self, count: int) -> dict[int, str]:
        """Wait for so many answers."""
        with anyio.fail_after(PATIENCE):
            while len(self.answers()) < count:
                self.news = anyio.Event()
                await self.news.wait()
        return self.answers()

    async def trouble(self, there: bool) -> None:
        """Wait until the store is away, or not."""
        with anyio.fail_after(PATIENCE):
            while not self.troubles or bool(self.troubles[-1]) is not there:
                self.news = anyio.Event()
                await self.news.wait()

    def pid(self) -> int:
        (process,) = self.processes.living()
        return process.pid

    async def reap(self) -> None:
        """As the listener does, of these children only."""
        with anyio.open_signal_receiver(signal.SIGCHLD) as signals:
            async for _ in signals:
                self._reap()

    def _reap(self) -> None:
        for process in self.processes.living():
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                self.processes.reaped(pid, status)


@contextlib.asynccontextmanager
async def running(directory: Path, state: str = "state.db") -> AsyncIterator[Hub]:
    """A store that is there; ended in order, if it has not been."""
    hub = Hub(directory, state)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.reap)
        await anyio.lowlevel.checkpoint()
        tasks.start_soon(hub.store.run)
        try:
            await hub.store.first()
            yield hub
        finally:
            with anyio.CancelScope(shield=True):
                for process in hub.processes.living():
                    process.signal(signal.SIGCONT)
                await hub.store.finish()
                await hub.processes.kill()
            tasks.cancel_scope.cancel()


async def test_what_is_asked_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        assert hub.store.failure is None
        assert [frame.kind for frame in hub.frames] == ["store.snapshot", "store.up"]
        hub.write(*range(300))
        assert set((await hub.answered(300)).values()) == {"written"}
        assert hub.troubles == [""]
    assert not hub.processes.living()


async def test_the_largest_values_pass_where_the_kernels_default_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow() -> tuple[socket.socket, socket.socket]:
        ends = pair()
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        return ends

    monkeypatch.setattr(store_module, "pair", narrow)
    async with running(tmp_path) as hub:
        value = pack_value("x" * 60_000, "a value")
        hub.store.send(encode("store.write", {"id": 1, "op": "set", "key": "k"}, value))
        assert await hub.answered(1) == {1: "written"}
        hub.write(2)
        assert (await hub.answered(2))[2] == "written"


async def test_too_much_is_refused_and_the_rest_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUED", 100)
    async with running(tmp_path) as hub:
        os.kill(hub.pid(), signal.SIGSTOP)
        hub.write(*range(250))
        found = await hub.answered(150)
        assert collections.Counter(found.values()) == {"busy": 150}
        os.kill(hub.pid(), signal.SIGCONT)
        assert collections.Counter((await hub.answered(250)).values()) == {"busy": 150, "written": 100}


async def test_a_dead_process_answers_nothing_and_its_successor_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        hub.write(1)
        await hub.answered(1)
        os.kill(hub.pid(), signal.SIGSTOP)
        hub.write(*range(2, 1000))  # more than the sockets hold: the rest waits here
        with anyio.move_on_after(0.1):
            await anyio.sleep_forever()  # the sockets are filled
        os.kill(hub.pid(), signal.SIGKILL)
        found = collections.Counter((await hub.answered(999)).values())
        assert found["unknown"] > 0
        assert found["unavailable"] > 0
        assert found["unknown"] + found["unavailable"] == 998
        await hub.trouble(True)
        assert not hub.store.connected
        hub.write(1000)  # nobody is there
        assert (await hub.answered(1000))[1000] == "unavailable"
        await hub.trouble(False)
        assert hub.store.connected
        hub.write(1001)
        assert (await hub.answered(1001))[1001] == "written"
        assert [said.event for said in hub.said] == ["store_connected", "store_died", "store_connected"]


async def test_the_end_waits_for_what_was_asked(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        hub.write(*range(500))
        await hub.store.finish()
        assert set((await hub.answered(500)).values()) == {"written"}
        hub.write(500)
        assert (await hub.answered(501))[500] == "unavailable"
    state = SqliteState(str(tmp_path / "state.db"), StateLimits(1000, 1000))
    assert state.version == 500
    state.close()


async def test_a_first_start_that_has_to_wait_says_for_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that takes connections and answers nothing."""
    monkeypatch.setattr(store_module, "SAID_AFTER", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with running(tmp_path, f"redis://127.0.0.1:{silent.getsockname()[1]}?start=0.5") as hub:
            assert hub.said[0].event == "store_awaited"
            assert hub.said[0].text.endswith(", for 0.5 s at most")
            assert hub.store.failure is not None
            assert not hub.store.connected


async def test_a_first_start_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("Dear diary")
    async with running(tmp_path, "diary") as hub:
        assert hub.store.failure is not None
        text, status = hub.store.failure
        assert status == 2
        assert "is not a state file of this server" in text
        assert not hub.processes.living()
