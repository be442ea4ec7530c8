"""Hooks around what happens to real servers: when they run, what they are told, and that they hold up nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from serve_asgi.config.hook_events import read_hook
from serve_asgi.config.options import Config
from serve_asgi.config.release import resolve
from serve_asgi.listener.hook_process import command_of, environment_of
from serve_asgi.listener.hooks import trouble_at_start
from tests.applications import info
from tests.running import PATIENCE, ROOT, RunningServer, connect, request, running, state_of, until

TELLS = "sh -c 'cat >> told'"
"""A command that writes down the events it is given."""

CALLABLES = """
import json, os, sys

def write(event):
    with open("told", "a") as file:
        file.write(json.dumps(event) + "\\n")

async def write_later(event):
    write({**event, "cwd": os.getcwd(), "variable": os.environ["SERVE_EVENT"]})

def objects(event):
    print("not on a Friday")
    return False
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(info())
    (tmp_path / "callables.py").write_text(CALLABLES)
    return tmp_path


def told(project: Path) -> list[dict[str, Any]]:
    """The events that have been written down."""
    try:
        lines = (project / "told").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def hooks(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--hook", text)]


def pid_in(path: Path) -> int:
    until(lambda: path.exists() and path.read_text().strip())
    return int(path.read_text())


# ---- at the start


def test_one_that_is_missing_is_an_error_at_the_start(project: Path) -> None:
    server = RunningServer("app:app", "--hook", "post_reload=./no-such", directory=project)
    try:
        assert server.wait() == 2
        expected = r"serve: the hook post_reload=\./no-such cannot be run: there is no program .*/\./no-such; name one"
        assert re.match(expected, server.log()), server.log()
    finally:
        server.close()


@pytest.mark.parametrize(
    ("hook", "sentence"),
    [
        ("post_reload=no-such-program -x", "there is no program no-such-program (looked for in PATH)"),
        ("post_reload=no_module:f", "the hook post_reload=no_module:f cannot be run: there is no module no_module in"),
        ("post_reload=callables:writ", "callables has no writ; did you mean write?"),
        ("post_reload=broken:f", "SyntaxError"),
        ("post_reload=unset:f", "line 2, in <module>"),
        ("post_reload=callables:write", ""),
    ],
)
def test_what_is_looked_for_at_the_start(
    project: Path, monkeypatch: pytest.MonkeyPatch, hook: str, sentence: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (project / "broken.py").write_text("def f(:\n")
    (project / "unset.py").write_text("import os\nos.environ['NOT_SET']\n")
    config = Config(app="app:app", chdir=str(project), hook=(hook,), hook_timeout=PATIENCE)
    trouble = trouble_at_start(config, resolve(config, str(ROOT)))
    assert (sentence in trouble) if sentence else not trouble, trouble
    assert ("; name a callable as module:callable" in trouble) == ("no module no_module" in trouble)


def test_python_is_the_interpreter_of_the_release(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a service manager, whose PATH does not have the virtual environment."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    python = project / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    found = resolve(config := Config(app="app:app", chdir=str(project)), str(ROOT))
    release = dataclasses.replace(found, python=str(python))
    assert command_of(read_hook("pre_reload=python manage.py check"), release, config)[0] == str(python)
    assert environment_of(release)["PATH"] == f"{python.parent}:/usr/bin:/bin"


# ---- after something has happened


def test_what_a_hook_is_told_and_where_it_runs(project: Path) -> None:
    options = hooks(
        f"post_reload={TELLS}",
        "worker_died=callables:write",
        "post_reload=callables:write_later",
        "drain_started=sh -c 'echo draining; exit 3'",
        f'reload_started=sh -c "{sys.executable} -m serve_asgi status --json > asked.part; mv asked.part asked"',
    )
    with running("app:app", *options, directory=project) as server:
        server.reload()
        until(lambda: len(told(project)) == 2)
        by_command, by_callable = sorted(told(project), key=lambda event: "cwd" in event)
        assert (by_callable["cwd"], by_callable["variable"]) == (str(project), "post_reload")
        for event in (by_command, by_callable):
            assert (event["event"], event["generation"], event["level"]) == ("post_reload", 2, "info")
            assert event["server"]["pid"] == server.pid
            assert event["server"]["app"] == "app:app"
        until((project / "asked").exists)
        assert json.loads((project / "asked").read_text())["pid"] == server.pid
        server.wait_for_workers(1)
        until(lambda: len(server.worker_pids()) == 1)  # hooks are children as well
        (victim,) = server.worker_pids()
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(told(project)) == 3)
        died = told(project)[2]
        assert (died["event"], died["slot"], died["generation"]) == ("worker_died", 0, 2)
        assert (died["pid"], died["reason"]) == (victim, "signal SIGKILL")
        assert "SIGKILL; lost: 0 requests; perhaps out of memory" in died["text"]
        server.wait_for_workers(1)
        server.signal(signal.SIGUSR2)
        until(lambda: "exit status 3\n  draining" in server.log())
        assert server.stop() == 0


# ---- before something happens


OBJECTIONS = [
    ('sh -c "echo the schema is behind; exit 7"', "exit status 7", "the schema is behind"),
    ("callables:objects", "exit status 1", "not on a Friday"),
]


def test_a_hook_before_a_reload_may_object(project: Path) -> None:
    file = project / "serve.toml"
    file.write_text("")
    with running("app:app", directory=project) as server:
        for hook, why, said in OBJECTIONS:
            file.write_text(f"[hooks]\npre_reload = '{hook}'\n")
            command = [sys.executable, "-m", "serve_asgi", "reload", "--control", str(server.control)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
            assert done.returncode == 1
            *before, sentence = done.stderr.splitlines()
            objects = f"the hook pre_reload={hook} objects: {why}"
            assert sentence == f"serve: reload refused, generation 1 serves on: {objects}"
            assert any(said in line for line in before)
        assert server.status()["generation"] == 1
        assert server.stop() == 0


def test_hooks_before_a_reload_run_one_after_another_in_the_new_release(project: Path) -> None:
    for number in (1, 2):
        release = project / str(number)
        release.mkdir()
        (release / "app.py").write_text(info(str(number)))
        (release / "check.py").write_text(f"def check(event): print('checked by {number}')\n")
    (project / "current").symlink_to("1")
    options = [*hooks("pre_reload=sh -c 'echo one >> order'", "pre_reload=check:check"), "--chdir", "current"]
    with running("app:app", *options, directory=project) as server:
        (project / "next").symlink_to("2")
        (project / "next").rename(project / "current")
        server.reload()
        assert "  checked by 2\n" in server.log()
        assert "checked by 1" not in server.log()
        assert (project / "2" / "order").read_text() == "one\n"
        assert server.stop() == 0


def test_all_else_goes_on_while_a_hook_before_a_reload_hangs(project: Path) -> None:
    options = [*hooks('pre_reload=sh -c "echo $$ > hook; exec sleep 300"'), "--hook-timeout", "200", "--workers", "2"]
    with running("app:app", *options, directory=project) as server:
        server.signal(signal.SIGHUP)
        hook = pid_in(project / "hook")
        server.signal(signal.SIGUSR2)
        server.wait_until(lambda status: status["draining"] is not None)
        worker = next(pid for pid in server.worker_pids() if pid != hook)
        os.kill(worker, signal.SIGKILL)
        until(lambda: "died: signal SIGKILL" in server.log())
        server.wait_for_workers(2)
        with connect(server) as connection:
            assert request(connection)[0] == 200
        assert server.stop() == 0
        assert state_of(hook) == ""


def test_a_stop_waits_for_its_hooks_and_serves_meanwhile(project: Path) -> None:
    os.mkfifo(project / "go")
    with running("app:app", *hooks('pre_stop=sh -c "echo x > begun; cat go"'), directory=project) as server:
        server.signal(signal.SIGTERM)
        until((project / "begun").exists)
        with connect(server) as connection:
            assert request(connection)[0] == 200
        server.reload()
        assert server.status()["state"] == "running"
        (project / "go").write_text("done\n")
        assert server.wait() == 0


def test_each_further_signal_ends_what_the_end_waits_for(project: Path) -> None:
    options = [*hooks('pre_stop=sh -c "echo $$ > before; exec sleep 300"'), "--hook-timeout", "200"]
    options += hooks('post_stop=sh -c "echo $$ > after; exec sleep 300"')
    with running("app:app", *options, directory=project) as server:
        server.signal(signal.SIGTERM)
        before = pid_in(project / "before")
        server.signal(signal.SIGTERM)
        after = pid_in(project / "after")
        assert state_of(before) == ""
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert state_of(after) == ""
        assert "quick stop" not in server.log()


def test_a_drain_waits_for_its_hooks_and_is_not_lost(project: Path) -> None:
    os.mkfifo(project / "go")
    options = hooks('pre_drain=sh -c "echo x >> begun; cat go; exit 1"', f"post_drain={TELLS}")
    with running("app:app", *options, directory=project) as server:
        server.signal(signal.SIGUSR2)
        until((project / "begun").exists)
        assert server.status()["draining"] is None
        reload = threading.Thread(target=server.reload)
        reload.start()  # asked for behind the drain, which it therefore ends
        (project / "go").write_text("done\n")
        reload.join()
        log = server.log()
        assert log.index("drain: ") < log.index("reload: generation 2 starts") < log.index("drain ended: ")
        assert log.count("drain: ") == 1
        until(lambda: [event["event"] for event in told(project)] == ["post_drain"])

        writer = threading.Thread(target=(project / "go").write_text, args=("done\n",))
        writer.start()
        control_client.ask(server.control, "drain")
        writer.join()
        assert server.status()["draining"]["until"] == "`serve drain --off`"
        assert server.stop() == 0


# ---- in the file


def test_hooks_of_the_file_are_those_of_the_last_reload(project: Path) -> None:
    file = project / "serve.toml"
    file.write_text(f'[hooks]\npost_reload = ["{TELLS}", "true"]\n')
    with running("app:app", directory=project) as server:
        server.reload()
        until(lambda: len(told(project)) == 1)
        file.write_text('[hooks]\npost_reload = "no-such-program"\n')
        with pytest.raises(control_client.RequestRefused, match="there is no program no-such-program"):
            server.reload()
        file.write_text('[hooks]\npost_relaod = "true"\n')
        with pytest.raises(control_client.RequestRefused, match="did you mean post_reload"):
            server.reload()
        file.write_text(f'[hooks]\npre_reload = "sh -c \'echo new\'"\nworkers_scaled = "{TELLS}"\n')
        server.reload()
        assert "  new\n" in server.log()
        control_client.ask(server.control, "scale", to=2)
        until(lambda: [event["event"] for event in told(project)] == ["post_reload", "workers_scaled"])
        assert server.stop() == 0


# ---- the example


@contextlib.contextmanager
def chat() -> Iterator[tuple[str, list[str]]]:
    """A chat's incoming webhook: its address, and what has been posted."""
    posted: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hooks/x", posted
        finally:
            server.shutdown()
            thread.join()


def test_the_example_posts_to_a_chat(project: Path) -> None:
    example = f"{sys.executable} {ROOT / 'examples/hooks/chat_webhook.py'}"
    options = hooks(f"post_reload={example}", f"reload_refused={example}")
    with chat() as (url, posted):
        environment = {"CHAT_WEBHOOK_URL": url, "no_proxy": "127.0.0.1"}
        with running("app:app", *options, directory=project, environment=environment) as server:
            server.reload()
            (project / "app.py").write_text("1 / 0\n")
            with pytest.raises(control_client.RequestRefused):
                server.reload()
            until(lambda: len(posted) == 2)
            assert server.stop() == 0
    done, refused = posted
    assert re.search(r"\*app:app\* on \S+: generation 2 serves, 1 worker", done)
    assert "reload refused, generation 2 serves on" in refused
    assert refused.endswith("ZeroDivisionError: division by zero\n```")
