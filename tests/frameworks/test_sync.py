"""What is asked by views that are not async: under this server, over a reload, and under another one."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.frameworks.driving import APPLICATIONS, Traffic, client, reload, serving
from tests.running import PATIENCE, ROOT, until

pytestmark = pytest.mark.frameworks("flask", "a2wsgi", "starlette", "django", "httpx")
FRAMEWORKS = {"flask": ("--interface", "wsgi"), "starlette": (), "django": ()}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_view_asks_all_there_is_and_nothing_is_lost_over_a_reload(framework: str, tmp_path: Path) -> None:
    numbers: list[int] = []

    def ask(asking: httpx.Client) -> int:
        told = asking.get("/calls").raise_for_status().json()
        numbers.append(told["n"])
        assert told["read"]
        assert told["updated"]
        assert told["heard by"] >= 2
        assert told["doubled"] == [42, False]
        assert told["handled"] == 1
        assert told["schedules"] == ["hourly"]
        assert told["run"] == ["ok"]
        assert told["by loops"][0] >= 2
        assert told["by loops"][1:] == [True, 1]
        assert told["nobody"].startswith("NotSendable")
        assert "shared.sync.incr waits" in told["on the loop"]
        assert "`await shared.incr(" in told["on the loop"]
        return int(told["pid"])

    arguments = ("--factory", "--workers", "2", *FRAMEWORKS[framework])
    with serving(f"sync_app:{framework}", tmp_path, *arguments) as server:
        with Traffic(server, ask, ask, ask) as traffic:
            traffic.answers(10)
            reload(server, lambda: traffic.answers(10))
            traffic.answers(10)
        with client(server) as asking:
            ask(asking)
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
        assert server.stop() == 0


def test_who_is_no_worker_or_none_any_more_is_told_so(tmp_path: Path) -> None:
    arguments = ("--factory", "--interface", "wsgi", "--graceful-timeout", "0.5")
    with serving("sync_app:flask", tmp_path, *arguments) as server, client(server) as asking:
        told = asking.get("/forked").raise_for_status().json()
        assert len(told) == 2
        assert all(text.startswith("LinkClosed: this process was forked") for text in told)
        with ThreadPoolExecutor(1) as threads:
            cut = threads.submit(asking.get, "/hold")
            until((tmp_path / "holds").exists, "the handler has begun")
            server.stop()
            assert isinstance(cut.exception(PATIENCE), httpx.RemoteProtocolError)
        until(lambda: (tmp_path / "held").read_text().startswith("LinkClosed: the event loop of this process"), "so")


@pytest.mark.once
def test_a_view_of_an_asgi_application_under_another_server(tmp_path: Path) -> None:
    """The loop is that of the other server, though nothing asynchronous has used it before."""
    program = f"""
import sys, threading
sys.path.insert(0, {str(APPLICATIONS)!r})
import httpx, uvicorn, sync_app
seen = []
sync_app.messenger.on("news", lambda message: seen.append(threading.current_thread().name))
server = uvicorn.Server(uvicorn.Config({{app}}, port=0, log_level="error"))
thread = threading.Thread(target=server.run, name="the server's", daemon=True)
thread.start()
while not server.started: pass
port = server.servers[0].sockets[0].getsockname()[1]
found = [httpx.get(f"http://127.0.0.1:{{{{port}}}}/calls", timeout=30).raise_for_status().json() for _ in range(3)]
assert [each["n"] for each in found] == [1, 2, 3], found
assert all(each["doubled"] == [42, False] and each["run"] == ["ok"] for each in found), found
assert set(seen) == {{{{"the server's"}}}}, seen
server.should_exit = True
thread.join()
"""
    for app in ("sync_app.starlette()", "sync_app.django()"):
        told = subprocess.run(
            [sys.executable, "-c", program.format(app=app).replace("{{", "{").replace("}}", "}")],
            env={"PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
        )
        assert told.returncode == 0, told.stderr.decode()
