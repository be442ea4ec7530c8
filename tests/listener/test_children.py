"""Starting processes, where the machine does not let the listener."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

import anyio
import pytest

from serve_asgi.config.options import Config
from serve_asgi.config.release import Release
from serve_asgi.hub.core import HubSettings
from serve_asgi.ipc.scoreboard import Scoreboard
from serve_asgi.listener.children import Children
from serve_asgi.listener.hub_links import HubLinks
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import Policy
from serve_asgi.supervisor.supervisor import Supervisor

POLICY = Policy(1, 1, 3, 60.0, 30.0, 10.0, 0.0)


@contextlib.contextmanager
def descriptors(spare: int) -> Iterator[None]:
    """So many more files can be opened, and then none (EMFILE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_one = os.dup(0)
    os.close(next_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def children_of(posted: list[e.Event]) -> tuple[Children, Supervisor]:
    board = Scoreboard.create(8, 4)
    links = HubLinks(HubSettings(), board, lambda said: None, lambda member, why: None)
    supervisor = Supervisor(POLICY)
    supervisor.start(0.0)
    links.follow(supervisor)
    return Children([], posted.append, links, board, lambda process, why: None), supervisor


@pytest.mark.parametrize("spare", range(16))
def test_no_process_is_started_without_its_link(spare: int) -> None:
    """One without a link to the hub would take itself for the whole server: the accidents would be back."""

    async def main() -> None:
        posted: list[e.Event] = []
        children, supervisor = children_of(posted)
        (worker,) = supervisor.workers.values()
        release = Release(python="/bin/true", directory="/", app_dir="/", environment={})
        async with anyio.create_task_group() as children.tasks:
            with descriptors(spare):
                children.start(worker, release, Config())
            if children.by_pid:
                (child,) = children.by_pid.values()
                assert str(worker.id) in children.links.to_state([])["links"]
                children.reaped(*os.waitpid(child.pid, 0))  # noqa: ASYNC222, it ends at once
            assert isinstance(posted[-1], e.WorkerDied)
            children.tasks.cancel_scope.cancel()
        for event in posted:
            supervisor.handle(event, 1.0)
        children.links.follow(supervisor)
        children.links.close()
        children.scoreboard.close()

    anyio.run(main)
