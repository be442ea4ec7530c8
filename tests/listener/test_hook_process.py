"""Single hooks, as the listener runs them: what they may do wrong, and what they are given."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from serve_asgi.config.hook_events import read_hook
from serve_asgi.config.options import Config
from serve_asgi.config.release import Release, resolve
from serve_asgi.listener import hook_process
from serve_asgi.listener.helper_processes import HelperProcesses
from serve_asgi.listener.hook_process import KEPT, HookOutcome, command_of, run
from serve_asgi.listener.hooks import Hooks
from serve_asgi.supervisor import actions
from tests.running import PATIENCE, ROOT, state_of

CALLABLES = """
import os, signal, sys

def says_and_is_ended(event):
    print("first")
    print("second", file=sys.stderr)
    print("third \\udc80")
    os.kill(os.getpid(), signal.SIGKILL)

def fails(event):
    print("about to fail")
    raise ValueError("no")

def none(): pass
def two(event, other): pass
def defaults(event, other=1): pass
async def yields(event): yield
"""


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(hook_process, "TERM_TIME", 0.1)
    (tmp_path / "callables.py").write_text(CALLABLES)
    return resolve(Config(app="app:app", chdir=str(tmp_path)), str(ROOT))


@contextlib.asynccontextmanager
async def reaping() -> AsyncIterator[HelperProcesses]:
    """Processes that are reaped as the listener does it."""
    processes = HelperProcesses()

    def reap() -> None:
        for process in processes.living():
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                processes.reaped(pid, status)

    async def watch(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGCHLD) as signals:
            task_status.started()
            async for _ in signals:
                reap()

    async with anyio.create_task_group() as tasks:
        await tasks.start(watch)
        yield processes
        tasks.cancel_scope.cancel()


def run_hook(release: Release, command: str, timeout: float = PATIENCE, **variables: str) -> HookOutcome:
    async def main() -> HookOutcome:
        async with reaping() as processes:
            hook = read_hook(f"post_reload={command}")
            found = command_of(hook, release, Config(app="app:app"))
            return await run(found, processes, release, variables, {"event": "post_reload"}, timeout)

    return anyio.run(main)


def pid_in(path: Path) -> int:
    deadline = time.monotonic() + PATIENCE
    while not path.exists() or not path.read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(path.read_text())


def test_of_a_flood_of_output_the_end_is_kept(release: Release) -> None:
    outcome = run_hook(release, "sh -c 'head -c 30000000 /dev/zero; echo; echo the end'")
    assert not outcome.trouble
    assert len(outcome.output) <= KEPT
    assert outcome.output.endswith("\nthe end")


def test_a_daemon_that_keeps_the_output_open_holds_up_nothing(release: Release, tmp_path: Path) -> None:
    outcome = run_hook(release, 'sh -c "setsid sleep 300 & echo $! > daemon; echo started"')
    daemon = pid_in(tmp_path / "daemon")
    try:
        assert outcome == HookOutcome("", "started")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGKILL)


def test_one_that_ignores_what_it_is_told_is_killed_with_its_group(release: Release, tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 300 & echo $! > child; echo here; exec <&-; while :; do sleep 0.05; done"
    outcome = run_hook(release, f'sh -c "{script}"', 1.0)
    assert outcome == HookOutcome("it had not ended after 1 s (--hook-timeout)", "here")
    child = pid_in(tmp_path / "child")
    deadline = time.monotonic() + PATIENCE
    while state_of(child) not in ("", "Z"):  # it has been killed; a busy machine takes its time with that
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stopped_one_has_its_end(release: Release) -> None:
    assert "it had not ended" in run_hook(release, "sh -c 'kill -STOP $$'", 0.2).trouble


@pytest.mark.parametrize("directory", ["plain", "a=b"])
def test_a_script_without_its_first_line(release: Release, tmp_path: Path, directory: str) -> None:
    script = tmp_path / directory / "hook"
    script.parent.mkdir()
    script.write_text('echo "$1 in $(pwd)"; exit 3\n')
    script.chmod(0o755)
    assert run_hook(release, f"{script} 'x  y'") == HookOutcome("exit status 3", f"x  y in {tmp_path}")


def test_one_that_is_gone_by_now(release: Release, tmp_path: Path) -> None:
    async def main() -> HookOutcome:
        async with reaping() as processes:
            return await run([str(tmp_path / "gone")], processes, release, {}, {}, PATIENCE)

    outcome = anyio.run(main)
    assert outcome.trouble == "exit status 127"
    assert "No such file" in outcome.output


def test_what_a_callable_prints_is_kept_in_order_when_it_is_ended(release: Release) -> None:
    outcome = run_hook(release, "callables:says_and_is_ended")
    assert outcome == HookOutcome("signal SIGKILL", "first\nsecond\nthird \\udc80")


def test_a_callable_that_fails_shows_its_own_frames(release: Release) -> None:
    said, *traceback = run_hook(release, "callables:fails").output.splitlines()
    assert said == "about to fail"
    assert traceback[-1] == "ValueError: no"
    assert not any("server/serve_asgi/worker/hook_runner.py" in line for line in traceback)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("callables:none", "callables:none cannot be called with the event alone: too many positional arguments"),
        ("callables:two", "callables:two cannot be called with the event alone: missing a required argument: 'other'"),
        ("callables:yields", "callables:yields is a generator: calling it runs nothing; remove the yield"),
        ("exits:f", "SystemExit: 0"),
        ("callables:defaults", ""),
    ],
)
def test_callables_that_cannot_be_called(release: Release, tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    outcome = run_hook(release, name)
    assert outcome.output.endswith(sentence) if sentence else outcome == HookOutcome("", "")
    assert bool(outcome.trouble) is bool(sentence)


def test_whatever_an_event_says_reaches_the_hook(release: Release, tmp_path: Path) -> None:
    """An exception's text has any length, and any characters; execve(2) does not take them all."""
    said: list[actions.LogEvent] = []
    text = "\ud800\0\n" + 300_000 * "ü"

    async def main() -> None:
        config = Config(app="app:app", hook=("reload_refused=sh -c 'printenv SERVE_EVENT_REASON > text; cat > event'",))
        async with reaping() as processes, anyio.create_task_group() as tasks:
            hooks = Hooks(config, processes, said.append, lambda: release, lambda: None)
            hooks.tasks = tasks
            record: dict[str, Any] = {"event": "reload_refused", "reason": text, "text": text, "detail": 10 * text}
            hooks.happened(record)
            hooks.happened(record)
            await hooks.finish()

    anyio.run(main)
    assert [(each.event, each.detail) for each in said] == 2 * [("hook_finished", "")]
    assert (tmp_path / "text").read_text().startswith("\\ud800 \nüü")
    assert json.loads((tmp_path / "event").read_bytes())["reason"] == text


def test_hooks_leave_no_descriptors_and_no_processes(release: Release) -> None:
    async def main() -> None:
        async with reaping() as processes:
            before = os.listdir("/proc/self/fd")
            for _ in range(100):
                await run(["/bin/true"], processes, release, {}, {}, PATIENCE)
            assert len(os.listdir("/proc/self/fd")) == len(before)
            assert not processes.living()

    anyio.run(main)


def test_when_the_server_has_ended_no_further_hook_is_asked(release: Release, tmp_path: Path) -> None:
    commands = ('pre_drain=sh -c "touch begun; exec sleep 300"', "pre_drain=touch second")
    config = Config(app="app:app", hook=commands, hook_timeout=60.0)

    async def main() -> None:
        async with reaping() as processes, anyio.create_task_group() as tasks:
            hooks = Hooks(config, processes, lambda said: None, lambda: release, lambda: None)
            tasks.start_soon(hooks.before, "pre_drain", {})
            while not (tmp_path / "begun").exists():
                await anyio.sleep(0.01)
            await hooks.finish()

    anyio.run(main)
    assert not (tmp_path / "second").exists()


def test_a_flood_of_events_and_a_slow_hook(release: Release, tmp_path: Path) -> None:
    said: list[actions.LogEvent] = []
    commands = (
        "server_started=sh -c 'touch begun; exec sleep 300'",
        "server_started=sh -c 'cat >> told; echo >> told'",
    )
    config = Config(app="app:app", hook=commands, hook_timeout=60.0)

    async def main() -> None:
        async with reaping() as processes, anyio.create_task_group() as tasks:
            hooks = Hooks(config, processes, said.append, lambda: release, lambda: None)
            hooks.tasks = tasks
            for number in range(150):
                hooks.happened({"event": "server_started", "number": number})
                assert len(processes.living()) <= 2
            while not (tmp_path / "begun").exists() or len(said) < 2 + 100:  # the quick one is held up by nothing
                await anyio.sleep(0.01)
            hooks.hurry()
            await hooks.finish()

    anyio.run(main)
    slow = [each.text for each in said if each.about["hook"].startswith("sh -c 'touch")]
    assert slow[0].endswith("is too slow: 100 events wait for it, and further ones are dropped")
    assert [text.rpartition(": ")[2] for text in slow[1:-1]] == ["it was ended with the server"]
    assert re.match(r"(49|50) events were dropped for the hook server_started=sh", slow[-1])
    lines = [json.loads(line)["number"] for line in (tmp_path / "told").read_text().splitlines() if line]
    assert lines == list(range(100))


def test_the_end_waits_for_hooks_no_longer_than_their_time(release: Release, tmp_path: Path) -> None:
    said: list[actions.LogEvent] = []
    stubborn = "server_stopped=sh -c \"trap '' TERM; echo $$ > stubborn; while :; do sleep 0.1; done\""
    config = Config(app="app:app", hook=(stubborn, "server_stopped=touch told"), hook_timeout=1.0)

    async def main() -> None:
        async with reaping() as processes, anyio.create_task_group() as tasks:
            hooks = Hooks(config, processes, said.append, lambda: release, lambda: None)
            hooks.tasks = tasks
            hooks.happened({"event": "server_stopped"})
            await hooks.finish()
            assert not processes.living()

    anyio.run(main)
    assert state_of(pid_in(tmp_path / "stubborn")) == ""
    assert (tmp_path / "told").exists()
    assert any(each.text.endswith("failed: it had not ended after 1 s (--hook-timeout)") for each in said)
