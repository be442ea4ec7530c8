"""What a template says, which is not trusted: a process in its place says what none would."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from serve_asgi.config.options import Config
from serve_asgi.config.release import Release
from serve_asgi.ipc.channel import Channel, pair
from serve_asgi.ipc.scoreboard import Row
from serve_asgi.listener.child import Child
from serve_asgi.listener.spawning import unborn
from serve_asgi.listener.template import StartRequest, Template, TemplateState
from serve_asgi.listener.templates import Templates
from serve_asgi.logs.child_output import ChildOutput
from serve_asgi.supervisor.actions import LogEvent
from serve_asgi.supervisor.lifecycles import Policy, Worker
from serve_asgi.supervisor.supervisor import Supervisor
from tests.running import PATIENCE, state_of


def spawned(program: str, *arguments: str) -> int:
    """A child of this process."""
    return os.posix_spawn(f"/bin/{program}", [program, *arguments], {})


def reaped(pid: int) -> tuple[int, int]:
    """Wait for a child that is about to end; its PID and wait status."""
    return os.waitpid(pid, 0)


class User:
    """Takes the place of `Children`: writes down what it is told."""

    tasks: TaskGroup

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.known: set[int] = set()

    def knows(self, pid: int) -> bool:
        return pid in self.known

    def start_forked(self, request: StartRequest, template: Template) -> None:
        counts, row = Row.create()
        os.close(row)
        child, theirs = unborn(request.worker, 0, counts)
        template.fork(child, theirs)
        self.told.append(("forked from", template.generation))

    def start_fresh(self, request: StartRequest) -> None:
        self.told.append(("fresh", request.worker.id))

    def born(self, child: Child, pid: int, ended: int | None) -> None:
        child.close()
        self.told.append(("born", child.worker.id, pid, ended))

    def not_born(self, child: Child, message: str) -> None:
        child.close()
        self.told.append(("not born", child.worker.id, message))

    def not_started(self, worker: Worker, message: str, detail: str = "", usage: bool = False) -> None:
        self.told.append(("not started", worker.id, message, usage))


class Stage:
    """A template that the test speaks for, and a worker that waits for it."""

    def __init__(self) -> None:
        self.user = User()
        self.said: list[LogEvent] = []
        self.templates = Templates(self.user, self.said.append)
        ours, self.theirs = pair()
        self.pid = spawned("sleep", "1000")
        self.template = Template(1, self.pid, Channel(ours, descriptors=0), ChildOutput(None))
        self.templates.by_pid[self.pid] = self.template
        supervisor = Supervisor(Policy(1, 1, 3, 60.0, 30.0, 10.0, 0.0))
        supervisor.start(0.0)
        (self.worker,) = supervisor.workers.values()
        self.number = self.worker.id

    def start(self, **options: Any) -> None:
        release = Release(python="/bin/true", directory="/", app_dir="/", environment={})
        self.templates.start(StartRequest(self.worker, release, Config(**options)))

    async def say(self, kind: str, **what: Any) -> None:
        """Say something, and let it be heard."""
        told, said = len(self.user.told), len(self.said)
        self.theirs.send(json.dumps({"type": kind, **what}).encode())
        with anyio.move_on_after(PATIENCE):
            while (len(self.user.told), len(self.said)) == (told, said):
                await anyio.sleep(0.001)

    def asked(self) -> dict[str, Any]:
        """What it has been asked."""
        data, descriptors, _, _ = socket.recv_fds(self.theirs, 200_000, 20)
        for each in descriptors:
            os.close(each)
        found: dict[str, Any] = json.loads(data)
        return found

    @property
    def killed(self) -> bool:
        return self.template.state is TemplateState.ENDING and reaped(self.pid) == (self.pid, signal.SIGKILL)


def staged(test: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a test with a stage."""

    async def main() -> None:
        stage = Stage()
        async with anyio.create_task_group() as stage.user.tasks:
            stage.templates.attend(stage.template)
            try:
                await test(stage)
            finally:
                stage.user.tasks.cancel_scope.cancel()
                stage.theirs.close()
                stage.template.close()
                if state_of(stage.pid) not in ("", "Z"):
                    os.kill(stage.pid, signal.SIGKILL)
                    reaped(stage.pid)

    anyio.run(main)


def test_a_worker_waits_is_forked_and_has_its_pid() -> None:
    async def test(stage: Stage) -> None:
        stage.start()
        assert stage.templates.busy
        await stage.say("imported")
        assert stage.asked() == {"type": "fork", "number": stage.number, "output": []}
        child = spawned("sleep", "1000")
        await stage.say("forked", number=stage.number, pid=child)
        os.kill(child, signal.SIGKILL)
        reaped(child)
        assert stage.user.told == [("forked from", 1), ("born", stage.number, child, None)]
        assert not stage.templates.busy

    staged(test)


def test_a_worker_that_was_reaped_before_its_pid_was_known() -> None:
    async def test(stage: Stage) -> None:
        stage.start()
        await stage.say("imported")
        child = spawned("true")
        assert not stage.templates.reaped(*reaped(child))
        await stage.say("forked", number=stage.number, pid=child)
        assert stage.user.told[-1] == ("born", stage.number, child, 0)

    staged(test)


@pytest.mark.parametrize("whose", ["nobody's", "its own", "a helper's", "another's number"])
def test_a_pid_that_cannot_be_a_workers_ends_the_template(whose: str) -> None:
    async def test(stage: Stage) -> None:
        stage.start()
        await stage.say("imported")
        helper = spawned("sleep", "1000")
        stage.user.known.add(helper)
        pid = {"nobody's": os.getppid(), "its own": stage.pid}.get(whose, helper)
        await stage.say("forked", number=stage.number + (whose == "another's number"), pid=pid)
        await anyio.lowlevel.checkpoint()
        os.kill(helper, signal.SIGKILL)
        reaped(helper)
        with anyio.fail_after(PATIENCE):
            while stage.template.state is not TemplateState.ENDING:
                await anyio.sleep(0.001)
        assert stage.killed
        assert stage.user.told[-1][:2] == ("not born", stage.number)
        assert not any(each[0] == "born" for each in stage.user.told)
        assert stage.said[-1].event == "template_killed"

    staged(test)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("forked", {"number": 1, "pid": 1}),
        ("forked", {"number": -1, "pid": 100}),
        ("imported", {"findings": [1]}),
        ("imported", {"findings": ["x"] * 101}),
        ("failed", {}),
    ],
)
def test_what_is_no_packet_ends_the_template(kind: str, what: dict[str, Any]) -> None:
    async def test(stage: Stage) -> None:
        stage.start()
        await stage.say(kind, **what)
        assert stage.killed
        assert stage.user.told[-1][:2] == ("not started", stage.number)

    staged(test)


def test_findings_make_fresh_interpreters_or_with_strict_none() -> None:
    async def on(stage: Stage) -> None:
        stage.start(preload="on")
        await stage.say("imported", findings=["the thread t"])
        assert stage.user.told == [("fresh", stage.number)]
        assert [each.event for each in stage.said] == ["preload_refused"]
        assert not stage.templates.wanted(stage.worker.generation, Config(preload="on"))
        stage.templates.forget(stage.worker.generation)
        assert stage.killed

    async def strict(stage: Stage) -> None:
        stage.start(preload="strict")
        await stage.say("imported", findings=["the thread t"])
        ((what, _, message, usage),) = stage.user.told
        assert (what, usage) == ("not started", True)
        assert message.endswith("(--preload=strict): the thread t")
        assert stage.templates.wanted(stage.worker.generation, Config(preload="strict"))

    staged(on)
    staged(strict)


def test_a_worker_that_is_no_longer_wanted() -> None:
    async def before_the_import(stage: Stage) -> None:
        stage.start()
        assert stage.templates.withdraw(stage.worker) == []
        assert stage.killed  # nobody waits for it

    async def before_its_pid_is_known(stage: Stage) -> None:
        stage.start()
        await stage.say("imported")
        found = stage.templates.withdraw(stage.worker)
        assert found is not None
        found[0].close()
        child = spawned("true")
        stage.theirs.send(json.dumps({"type": "forked", "number": stage.number, "pid": child}).encode())
        with anyio.fail_after(PATIENCE):
            while stage.template.withdrawn:
                await anyio.sleep(0.001)
        reaped(child)
        assert stage.user.told == [("forked from", 1)]
        assert stage.template.state is TemplateState.READY

    async def when_its_time_is_over(stage: Stage) -> None:
        stage.start()
        await stage.say("imported")
        found = stage.templates.withdraw(stage.worker, kill=True)
        assert found is not None
        found[0].close()
        assert stage.killed
        assert stage.templates.withdraw(stage.worker) is None

    for test in (before_the_import, before_its_pid_is_known, when_its_time_is_over):
        staged(test)


def test_the_death_of_a_template_fails_what_depended_on_it() -> None:
    async def test(stage: Stage) -> None:
        stage.start()
        await stage.say("imported")
        os.kill(stage.pid, signal.SIGKILL)
        assert stage.templates.reaped(*reaped(stage.pid))
        assert stage.user.told[-1] == ("not born", stage.number, "its template died: signal SIGKILL")
        assert [each.event for each in stage.said] == ["template_imported", "template_died"]
        assert not stage.templates.by_pid

    staged(test)
