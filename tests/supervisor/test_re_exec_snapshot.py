"""What a supervisor knows, written for the program that takes the listener's place, and read by it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.hand_over_pairs import PairFate
from serve_asgi.supervisor.lifecycles import Policy, WorkerState
from serve_asgi.supervisor.re_exec_snapshot import at_rest, from_state, to_state
from tests.supervisor.shell import Shell
from tests.supervisor.test_agents import AgentShell


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


def test_a_drain_goes_on_in_the_next_program() -> None:
    shell = Shell().up()
    shell.send(e.DrainAsked(on=True))
    replaced = from_state(json.loads(json.dumps(to_state(shell.supervisor))))
    assert replaced.drain.on == shell.supervisor.drain.on is not None
    assert any(isinstance(action, actions.SetDrain) for action in replaced.handle(e.DrainAsked(on=False), shell.now))


def test_the_offers_of_a_worker_that_died_are_kept_by_the_next_program() -> None:
    shell = Shell().up()
    shell.reload()
    older = next(worker for worker in shell.workers() if worker.state is WorkerState.RETIRING)
    pairs = shell.supervisor.retiring.pairs.all
    number = next(number for number, pair in pairs.items() if pair.sender is older)
    shell.send(e.WorkerDied(older, "signal 9"))
    replaced = from_state(json.loads(json.dumps(to_state(shell.supervisor))))
    pair = replaced.retiring.pairs.all[number]
    assert (pair.sender.id, pair.fate) == (older.id, PairFate.ORPHANED)
    (verdict,) = replaced.handle(e.PairOrphaned(pair.receiver, number), shell.now)
    assert verdict == actions.TellVerdict(pair.receiver, number, keep=True)


def test_what_an_earlier_program_did_not_write_has_its_default() -> None:
    """And what this one does not know is ignored."""
    shell = Shell().up()
    state = to_state(shell.supervisor)
    for field in dataclasses.fields(Policy):
        if field.default is not dataclasses.MISSING:
            del state["policy"][field.name]
    state["policy"]["of_tomorrow"] = 1
    assert from_state(state).processes.policy == shell.policy
