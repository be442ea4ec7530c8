"""The developer's loop (`--reload`) with real servers and files: a change is served soon, and nothing holds it up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.config.sources import read
from serve_asgi.errors import UsageError
from serve_asgi.listener.reload_on_change import require
from tests import browser
from tests.applications import info
from tests.running import PATIENCE, RunningServer, connect, request, running, state_of

STREAM = """    if scope["path"] == "/events":
        import asyncio
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        while True:
            await send({"type": "http.response.body", "body": b"data: %s\\n\\n" % VERSION.encode(), "more_body": True})
            await asyncio.sleep(0.05)
    more = True
"""


def version(number: object) -> str:
    """An application that says its version, and streams it without end at /events."""
    return info(str(number)).replace("    more = True\n", STREAM, 1)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with an application in it."""
    (tmp_path / "app.py").write_text(version(1))
    return tmp_path


@contextlib.contextmanager
def developing(project: Path, *arguments: str, **more: Any) -> Iterator[RunningServer]:
    """A server that watches by the time that the block begins."""
    with running("app:app", "--reload", *arguments, directory=project, **more) as server:
        server.wait_until(lambda _: "watching for changes" in server.log())
        yield server
        assert server.stop() == 0


def served(server: RunningServer) -> str:
    """The version that a new client gets."""
    with connect(server) as connection:
        return str(json.loads(request(connection)[1])["version"])


def wait_for(server: RunningServer, wanted: Callable[[], bool]) -> None:
    server.wait_until(lambda _: wanted())


def test_what_a_developer_does_in_a_day(project: Path) -> None:
    app, helper = project / "app.py", project / "helper.py"
    with developing(project) as server:
        app.write_text(version(2))
        wait_for(server, lambda: served(server) == "2")

        app.write_text(version(3) + "def (\n")  # a mistake: told once, and the old code serves on
        server.wait_until(lambda status: status["failed_reloads"] == 1)
        assert server.log().count("SyntaxError: invalid syntax") == 1
        assert re.search(r"reload refused, generation \d+ serves on: .*app:app cannot be imported", server.log())
        assert served(server) == "2"
        app.write_text(version(3))
        wait_for(server, lambda: served(server) == "3")

        app.write_text("while True:\n    pass\n")  # never ready: corrected, it is not waited for
        server.wait_until(lambda status: any(w["state"] == "starting" for w in status["workers"]))
        app.write_text(version(4))
        wait_for(server, lambda: served(server) == "4")

        helper.write_text("VERSION = 'from a new file'\n")
        app.write_text("from helper import VERSION\n" + version(4).replace("VERSION = '4'", ""))
        wait_for(server, lambda: served(server) == "from a new file")
        failed = server.status()["failed_reloads"]
        helper.unlink()
        server.wait_until(lambda status: status["failed_reloads"] == failed + 1)
        assert "No module named 'helper'" in server.log()
        assert served(server) == "from a new file"
        helper.write_text("VERSION = 'again'\n")
        wait_for(server, lambda: served(server) == "again")

        package = project / "parts"  # a directory that comes with all that is in it
        (project / ".hidden").mkdir()
        (project / ".hidden" / "__init__.py").write_text("VERSION = 'a part'\n")
        app.write_text("from parts import VERSION\n" + version(5).replace("VERSION = '5'", ""))
        server.wait_until(lambda status: status["failed_reloads"] == failed + 2)
        (project / ".hidden").rename(package)
        wait_for(server, lambda: served(server) == "a part")


@pytest.mark.once
def test_the_servers_own_files_count_and_what_tools_write_does_not(project: Path) -> None:
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "env").write_text("A=1\n")
    (project / "src").mkdir()
    (project / "app.py").rename(project / "src" / "app.py")
    options = ("--app-dir", "src", "--env-file", "elsewhere/env", "--reload-include", "*.html")
    with developing(project, *options, "--reload-exclude", "gen*") as server:
        started = server.status()["reloads"]
        (project / "src" / "__pycache__").mkdir(exist_ok=True)
        for name in ("__pycache__/x.py", "notes.txt", "generated.py"):
            (project / "src" / name).write_text("")
        (project / "serve.toml").write_text("workers = 2\n")
        server.wait_for_workers(2)
        (elsewhere / "env").write_text("A=2\n")
        server.wait_until(lambda status: status["reloads"] == started + 2)
        (project / "src" / "page.html").write_text("")
        server.wait_until(lambda status: status["reloads"] == started + 3)
        (project / "serve.toml").write_text("workers = many\n")
        server.wait_until(lambda status: status["failed_reloads"] == 1)
        assert "serve.toml is not valid TOML" in server.log()


@pytest.mark.once
def test_a_storm_of_saves_gives_few_generations(project: Path) -> None:
    with developing(project) as server:
        for number in range(200):
            (project / f"module_{number % 50}.py").write_text(f"x = {number}\n")
            (project / "app.py").write_text(version(number))
        wait_for(server, lambda: served(server) == "199")
        server.wait_until(lambda status: len(status["generations"]) == 1)
        assert server.status()["reloads"] <= 4


class Tab(threading.Thread):
    """A browser's tab that shows a stream of events: it connects again whenever it is cut off."""

    def __init__(self, server: RunningServer) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.address = server.address()
        self.closing = threading.Event()
        self.seen: list[str] = []
        self.connections = 0

    def run(self) -> None:
        while not self.closing.is_set():
            with contextlib.suppress(OSError), socket.create_connection(self.address, timeout=PATIENCE) as connection:
                self.connections += 1
                connection.sendall(b"GET /events HTTP/1.1\r\nhost: t\r\n\r\n")
                while not self.closing.is_set() and (data := connection.recv(65536)):
                    self.seen += [text.decode() for text in re.findall(rb"data: (\w+)", data)][-1:]


LISTEN = """
    const shown = document.body.appendChild(document.createElement("output"));
    shown.id = "version";
    window.tab = new EventSource("/events");
    tab.onmessage = (event) => { shown.textContent = event.data; };
"""


@pytest.mark.needs("chromium")
@pytest.mark.once
def test_open_streams_hold_no_change_up(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A browser's tab and three plain clients listen to streams without end over ten changes."""
    with developing(project) as server, browser.page(tmp_path_factory.mktemp("profile")) as page:
        tabs = [Tab(server) for _ in range(3)]
        for tab in tabs:
            tab.start()
        page.open("http://{}:{}/".format(*server.address()))
        page.wait_for("document.body.textContent.includes('version')")
        page.evaluate(LISTEN)
        page.wait_for("document.getElementById('version').textContent == '1'")
        wait_for(server, lambda: all(tab.seen for tab in tabs))
        alive = 0
        for number in range(2, 12):
            (project / "app.py").write_text(version(number))
            wait_for(server, lambda number=number: served(server) == str(number))  # type: ignore[misc]
            alive = max(alive, len(server.status()["generations"]))
        wait_for(server, lambda: all(tab.seen[-1] == "11" for tab in tabs))
        page.wait_for("document.getElementById('version').textContent == '11'")
        assert server.status()["reloads"] == 10
        assert "reload waits" not in server.log()
        assert alive > 1  # old ones were still streaming meanwhile
        assert all(2 <= tab.connections <= 11 for tab in tabs)
        page.evaluate("tab.close()")
        for tab in tabs:
            tab.closing.set()
        server.wait_until(lambda status: len(status["generations"]) == 1)


def test_a_first_start_that_fails_waits_for_a_change(project: Path) -> None:
    (project / "app.py").write_text("def (\n")
    server = RunningServer("app:app", "--reload", directory=project)
    try:
        wait_for_log(server, "waiting for a change of a file")
        assert server.log().count("SyntaxError") == 1
        (project / "app.py").write_text(version(1))
        server.ready()
        assert served(server) == "1"
        assert server.stop() == 0
    finally:
        print(server.log())
        server.close()


@pytest.mark.once
def test_a_first_start_that_names_what_is_not_there_waits_too(project: Path) -> None:
    (project / "app.py").rename(project / "later.py")
    server = RunningServer("app:app", "--reload", directory=project)
    try:
        wait_for_log(server, "waiting for a change of a file")
        assert "there is no module app" in server.log()
        (project / "later.py").rename(project / "app.py")
        server.ready()
        assert server.stop() == 0
    finally:
        print(server.log())
        server.close()


@pytest.mark.once
def test_a_change_while_the_first_start_fails_is_not_missed(project: Path) -> None:
    (project / "app.py").write_text(
        "import os, time\nprint('begun', flush=True)\nwhile not os.path.exists('go on'):\n    time.sleep(0.01)\n1 / 0\n"
    )
    server = RunningServer("app:app", "--reload", directory=project)
    try:
        wait_for_log(server, "watching for changes")
        wait_for_log(server, "begun")
        (project / "app.py").write_text(version(2))
        wait_for_log(server, "app.py has changed")
        (project / "go on").touch()
        server.ready()
        assert served(server) == "2"
        assert server.stop() == 0
    finally:
        print(server.log())
        server.close()


CORRECTS_ITSELF = """
import os
from pathlib import Path
import text
if text.VERSION == "1":
    Path(text.__file__).write_text("VERSION = '2'\\n")
    os.utime(text.__file__, (1, 1))
    if os.environ.get("FAILS"):
        raise RuntimeError("not yet")
"""


@pytest.mark.parametrize("fails", ["", "yes"])
def test_a_save_while_the_application_is_imported_for_the_first_time_is_not_missed(project: Path, fails: str) -> None:
    (project / "text.py").write_text("VERSION = '1'\n")
    os.utime(project / "text.py", (1, 1))
    (project / "app.py").write_text(CORRECTS_ITSELF + version(0).replace("VERSION = '0'", "VERSION = text.VERSION"))
    with developing(project, environment={"FAILS": fails}) as server:
        wait_for(server, lambda: served(server) == "2")


@pytest.mark.once
def test_what_the_server_writes_itself_is_no_change(project: Path) -> None:
    """Although all files count: a reload is logged, and a log that counted would lead to the next one."""
    files = ("--log-file", "server.log", "--access-log-file", "access.log", "--pid-file", "serve.pid")
    with running("app:app", "--reload", "--reload-include", "*", *files, directory=project) as server:
        server.wait_until(lambda _: "watching for changes" in (project / "server.log").read_text())
        (project / "app.py").write_text(version(2))
        wait_for(server, lambda: served(server) == "2")
        (project / "page").write_text("other")
        wait_for(server, lambda: "page has changed" in (project / "server.log").read_text())
        assert server.stop() == 0
        log = (project / "server.log").read_text()
        assert not re.search(r"(server\.log|access\.log|serve\.pid)[^\n]* changed", log)


@pytest.mark.once
def test_another_directory_of_the_application_is_watched_once_it_is_in_force(project: Path) -> None:
    for name in ("a", "b"):
        (project / name).mkdir()
        (project / name / "app.py").write_text(version(name))
    (project / "serve.toml").write_text("app-dir = 'a'\n")
    with developing(project) as server:
        (project / "serve.toml").write_text("app-dir = 'b'\n")
        wait_for(server, lambda: served(server) == "b")
        server.wait_until(lambda _: f"development): {project}/b" in server.log())
        (project / "b" / "app.py").write_text(version("c"))
        wait_for(server, lambda: served(server) == "c")


@pytest.mark.once
@pytest.mark.parametrize("text", [version(1), "def (\n"], ids=["serving", "waiting"])
def test_a_terminal_that_is_closed_ends_it(project: Path, text: str) -> None:
    (project / "app.py").write_text(text)
    terminal, inside = os.openpty()
    command = (sys.executable, "-c", LOGIN, str(inside), sys.executable, "-m", "serve_asgi")
    server = RunningServer("app:app", "--reload", directory=project, command=command, pass_fds=(inside,))
    os.close(inside)
    try:
        seen = b""
        while (b"watching for changes" not in seen or b"generation 1 serves" not in seen) and b"waiting" not in seen:
            seen += os.read(terminal, 65536)
        pids = server.worker_pids()
        assert pids
        os.close(terminal)
        server.wait()
        assert [state_of(pid) for pid in pids] == [""] * len(pids)
    finally:
        server.close()


LOGIN = """
import fcntl, os, sys, termios
inside = int(sys.argv[1])
os.setsid()
fcntl.ioctl(inside, termios.TIOCSCTTY, 0)
for descriptor in range(3):
    os.dup2(inside, descriptor)
os.close(inside)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Make a terminal the controlling one, as it is of what a person starts in it."""


def wait_for_log(server: RunningServer, text: str) -> None:
    """Until the server has written it; it answers nobody yet."""
    deadline = threading.Event()
    for _ in range(int(PATIENCE / 0.05)):
        if text in server.log():
            return
        deadline.wait(0.05)
    raise AssertionError(server.log())


@pytest.mark.once
def test_the_watcher_is_started_again_and_ends_with_the_listener(project: Path) -> None:
    with running("app:app", "--reload", directory=project) as server:
        server.wait_until(lambda _: "watching for changes" in server.log())
        watcher = watcher_of(server)
        os.kill(watcher, signal.SIGKILL)
        server.wait_until(lambda _: server.log().count("watching for changes") == 2)
        assert "the process that watches files ended (signal SIGKILL)" in server.log()
        (project / "app.py").write_text(version(2))
        wait_for(server, lambda: served(server) == "2")
        watcher = watcher_of(server)
        server.process.kill()
        server.process.wait()
        deadline = threading.Event()
        for _ in range(int(PATIENCE / 0.05)):
            if state_of(watcher) in ("", "Z"):
                break
            deadline.wait(0.05)
        assert state_of(watcher) in ("", "Z")


@pytest.mark.once
def test_the_listener_outlives_the_watcher_that_it_kills(project: Path) -> None:
    with running("app:app", "--reload", directory=project) as server:
        server.wait_until(lambda _: "watching for changes" in server.log())
        watcher = watcher_of(server)
        assert server.stop() == 0
        assert state_of(watcher) == ""


@pytest.mark.once
def test_a_directory_that_is_replaced_is_watched_again(project: Path) -> None:
    """Also while there is none: the old code serves on."""
    source = project / "src"
    source.mkdir()
    (project / "app.py").rename(source / "app.py")
    with developing(project, "--app-dir", "src") as server:
        source.rename(project / "old")
        server.wait_until(lambda _: "files are not being watched" in server.log())
        assert served(server) == "1"
        (project / "old" / "app.py").write_text(version(2))
        (project / "old").rename(source)
        wait_for(server, lambda: served(server) == "2")
        server.wait_until(lambda _: server.log().count("watching for changes") == 2)
        (source / "app.py").write_text(version(3))
        wait_for(server, lambda: served(server) == "3")


def watcher_of(server: RunningServer) -> int:
    """The PID of the process that watches."""
    (found,) = [
        pid
        for pid in server.worker_pids()
        if b"serve_asgi.listener.file_watcher" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return found


def test_without_the_package_the_files_are_looked_at(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    blocker = tmp_path_factory.mktemp("blocker")
    (blocker / "sitecustomize.py").write_text("import sys\nsys.modules['watchfiles'] = None\n")
    environment = {"PYTHONPATH": f"{blocker}:{Path(__file__).parent.parent.parent}"}
    with developing(project, environment=environment) as server:
        assert "by looking at the files twice a second" in server.log()
        (project / "app.py").write_text(version(22))
        server.wait_until(lambda _: served(server) == "22")
        assert "app.py has changed" in server.log()


def test_wrong_directories_are_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("PWD", str(project))
    for directory, sentence in (
        ("nowhere", f"--reload-dir: there is no directory {project}/nowhere"),
        ("/", "--reload would watch the whole file system: name what to watch by --reload-dir"),
    ):
        with pytest.raises(UsageError, match=re.escape(sentence)):
            require(read("app:app", {"reload": True, "reload_dir": (directory,)}, {}))


def test_this_modes_defaults_yield_to_what_is_asked_for(project: Path) -> None:
    settings = read("app:app", {"reload": True, "max_generations": "2"}, {"SERVE_SHUTDOWN_TIMEOUT": "3"})
    config = settings.config
    assert (config.graceful_timeout, config.shutdown_timeout, config.max_generations) == (1.0, 3.0, 2)
    told = {row["name"]: (row["source"], row["place"]) for row in settings.told()["options"]}
    assert told["graceful-timeout"] == ("default", "--reload")
    assert read("app:app", {}, {}).config.graceful_timeout == 30.0
