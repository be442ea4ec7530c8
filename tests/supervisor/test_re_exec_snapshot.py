"""What a supervisor knows, written for the program that takes the listener's place, and read by it."""

from __future__ import annotations

import json

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import WorkerState
from serve_asgi.supervisor.re_exec_snapshot import at_rest, from_state, to_state
from tests.supervisor.test_agents import AgentShell
from tests.supervisor.test_supervisor import Shell


@pytest.mark.parametrize("kind", [Shell, AgentShell])
def test_the_next_program_knows_and_decides_the_same(kind: type[Shell]) -> None:
    shell = kind()
    assert not at_rest(shell.supervisor)
    shell.up()
    shell.send(e.ReloadAsked(ticket=1))
    shell.make_ready()
    if isinstance(shell, AgentShell):
        shell.prepare()
        shell.finish()
        shell.enter()
    shell.accept()  # the older workers retire, with pairs over which they hand over
    assert at_rest(shell.supervisor)
    assert shell.supervisor.has_agent is isinstance(shell, AgentShell)
    state = json.loads(json.dumps(to_state(shell.supervisor)))
    replaced = from_state(state)
    assert to_state(replaced) == to_state(shell.supervisor)
    assert replaced.next_deadline() == shell.supervisor.next_deadline()
    older = next(worker for worker in shell.workers() if worker.state is WorkerState.RETIRING)
    decided = shell.supervisor.handle(e.WorkerDied(older, "exit status 0"), shell.now)
    same = replaced.handle(e.WorkerDied(replaced.workers[older.id], "exit status 0"), shell.now)
    assert [type(action) for action in same] == [type(action) for action in decided]
    assert not any(isinstance(action, actions.StartWorker) for action in same)
