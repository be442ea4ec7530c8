"""Trials as tables of events and actions: some workers of a new generation serve, are judged, and stay or go back."""

from __future__ import annotations

import pytest

from serve_asgi.ipc.latency_histogram import BUCKETS, LatencyHistogram, bucket
from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.canary import canary_share, canary_size
from serve_asgi.supervisor.canary_verdict import TrafficSample
from serve_asgi.supervisor.lifecycles import GenerationState, Worker, WorkerState
from tests.supervisor.shell import POLICY, Shell

GOOD = e.CanaryObserved(TrafficSample(2000, 0), TrafficSample(8000, 4))
BAD = e.CanaryObserved(TrafficSample(20, 20), TrafficSample(80, 0))
FEW = e.CanaryObserved(TrafficSample(2, 0), TrafficSample(8, 0))


def on_trial(**policy: float) -> tuple[Shell, list[Worker], list[Worker]]:
    """A server of four workers with a canary on trial: the shell, the old workers and the canary's."""
    shell = Shell(workers=4, canary=True, **policy).up()
    old = shell.workers()
    shell.send(e.ReloadAsked(ticket=7))
    shell.make_ready()
    shell.accept()
    canary = [worker for worker in shell.workers() if worker not in old]
    assert shell.supervisor.candidate is not None
    assert shell.supervisor.candidate.state is GenerationState.CANARY
    assert {worker.state for worker in canary} == {WorkerState.SERVING}
    return shell, old, canary


@pytest.mark.parametrize(
    ("share", "size", "workers", "gets"),
    [(0.0, 4, 1, 0.2), (0.0, 1, 1, 0.5), (0.1, 4, 1, 0.1), (0.2, 4, 1, 0.2), (0.25, 4, 2, 0.25), (0.9, 4, 4, 0.5)],
)
def test_the_share_says_how_many_workers_are_on_trial(share: float, size: int, workers: int, gets: float) -> None:
    policy = Shell(canary_share=share).policy
    assert canary_size(policy, size) == workers
    assert canary_share(policy, size) == pytest.approx(gets)


def test_a_canary_serves_beside_the_current_generation_which_lends_to_it() -> None:
    shell, old, canary = on_trial(canary_share=0.1)
    assert len(canary) == 1
    assert not shell.of(actions.TellRetire)
    (limit,) = shell.of(actions.LimitAccepting)
    assert limit.share == 0.1
    assert {(each.worker, each.share) for each in shell.of(actions.TellLend)} == {(each, 0.1) for each in old}
    assert {(each.sender, each.receiver) for each in shell.of(actions.ConnectPair)} == {(o, canary[0]) for o in old}
    assert shell.of(actions.WatchCanary) == [actions.WatchCanary(canary[0].generation)]
    assert not shell.of(actions.AnswerReload), "the outcome is not known"


def test_the_agent_and_the_next_agent_wait_for_the_promotion() -> None:
    shell = Shell(canary=True, agent=True)
    agent = shell.supervisor.agents
    shell.send(e.AgentPrepared(next(iter(agent.all.values()))))
    shell.send(e.AgentEntered(next(iter(agent.all.values()))))
    shell.up()
    shell.send(e.ReloadAsked())
    shell.make_ready()
    shell.accept()
    assert len(agent.all) == 1
    assert not shell.of(actions.TellFinish)
    shell.send(e.PromotionAsked("a test", lambda ok, _: None))
    assert len(agent.all) == 2, "now the new one is prepared"


def test_a_good_canary_is_promoted_and_the_rest_follows() -> None:
    shell, old, canary = on_trial()
    shell.send(GOOD)
    assert shell.workers(WorkerState.STARTING) == []
    shell.tick_at_deadline()
    rest = [worker for worker in shell.workers() if worker not in old and worker not in canary]
    assert sorted(worker.slot for worker in rest) == [1, 2, 3]
    assert shell.of(actions.WatchCanary)[-1] == actions.WatchCanary(None)
    assert shell.of(actions.TellPromoted) == [actions.TellPromoted(canary[0])]
    shell.make_ready()
    assert {each.worker for each in shell.of(actions.TellServe)} == {*canary, *rest}
    assert not shell.of(actions.TellRetire)
    shell.accept()
    assert {each.worker for each in shell.of(actions.TellRetire)} == set(old)
    assert [(each.ticket, each.ok) for each in shell.of(actions.AnswerReload)] == [(7, True)]


def refused(shell: Shell, why: str) -> None:
    """The reload has been answered with this reason, and what was on trial retires."""
    (answer,) = shell.of(actions.AnswerReload)
    assert not answer.ok
    assert why in answer.text
    assert "generation 1 serves on" in answer.text
    assert [each.event for each in shell.of(actions.LogEvent) if each.event.startswith("canary_w")] == [
        "canary_withdrawn"
    ]
    assert shell.of(actions.WatchCanary)[-1] == actions.WatchCanary(None)


def test_a_bad_canary_goes_back_by_the_same_hand_over() -> None:
    shell, old, (canary,) = on_trial()
    shell.forget()
    shell.send(BAD)
    refused(shell, "20 of 20")
    assert [(each.worker, each.reason) for each in shell.of(actions.TellRetire)] == [(canary, "rollback")]
    assert {(each.sender, each.receiver) for each in shell.of(actions.ConnectPair)} == {(canary, o) for o in old}
    assert {(each.worker, each.share) for each in shell.of(actions.TellLend)} == {(each, 0.0) for each in old}
    shell.reap(WorkerState.RETIRING)
    assert set(shell.supervisor.generations) == {1}
    shell.forget()
    shell.send(BAD)  # the last observation may come late
    assert shell.done == []


@pytest.mark.parametrize("what", ["crash", "blocked", "memory", "application", "check"])
def test_one_fault_is_enough(what: str) -> None:
    shell, _, (canary,) = on_trial()
    events: dict[str, e.Event] = {
        "crash": e.WorkerDied(canary, "signal SIGSEGV", 1),
        "blocked": e.WorkerWantsReplacement(canary, "its event loop has been blocked", blocked=5.0),
        "memory": e.WorkerWantsReplacement(canary, "it uses 900 MiB of memory", too_large=True),
        "application": e.CanaryRefused("the orders do not add up", "Traceback", canary),
        "check": e.CanaryRefused("the check says no"),
    }
    shell.send(events[what])
    why = ("SIGSEGV", "blocked", "900 MiB", "orders", "check says")
    refused(shell, dict(zip(events, why, strict=True))[what])


def test_the_old_workers_have_no_vote_and_may_be_recycled() -> None:
    shell, old, (canary,) = on_trial()
    shell.send(e.CanaryRefused("I am old", "", old[0]))
    shell.send(e.WorkerWantsReplacement(canary, "it has served 10 requests (--max-requests)"))
    shell.send(e.WorkerWantsReplacement(old[1], "it uses 900 MiB of memory", too_large=True))
    shell.forget()
    shell.make_ready()
    shell.accept()
    assert [each.worker for each in shell.of(actions.TellRetire)] == [old[1]]
    (replacement,) = [each for each in shell.workers(WorkerState.SERVING) if each not in [*old, canary]]
    lends = [(each.worker, each.share) for each in shell.of(actions.TellLend)]
    assert lends == [(old[1], 0.0), (replacement, 0.2)], "who comes later lends as well"
    about = [each for each in shell.done if old[1] in (getattr(each, "worker", None), getattr(each, "sender", None))]
    kinds = [type(each) for each in about if not isinstance(each, actions.LogEvent)]
    end, retire = kinds.index(actions.TellLend), kinds.index(actions.TellRetire)
    assert set(kinds[end + 1 : retire]) == {actions.ConnectPair}, "it closes its pairs before it gets those for its end"


def test_a_canary_of_all_workers_is_current_as_soon_as_it_is_promoted() -> None:
    shell = Shell(canary=True, canary_share=50)
    while starting := shell.workers(WorkerState.STARTING):
        shell.send(e.WorkerReady(starting[0]))
    shell.up()
    shell.send(e.ReloadAsked(ticket=1))
    while starting := shell.workers(WorkerState.STARTING):
        shell.send(e.WorkerReady(starting[0]))
    shell.accept()
    assert len(shell.workers(WorkerState.SERVING)) == 4
    shell.send(e.PromotionAsked("serve promote", lambda *_: None))
    assert shell.supervisor.current is not None
    assert shell.supervisor.current.number == 2
    assert {worker.generation.number for worker in shell.workers(WorkerState.RETIRING)} == {1}


def test_too_few_requests_are_said_and_promoted_or_held() -> None:
    shell, old, _ = on_trial()
    shell.send(FEW)
    shell.tick_at_deadline()
    shell.make_ready()
    shell.accept()
    assert {each.worker for each in shell.of(actions.TellRetire)} == set(old)
    shell, old, (canary,) = on_trial(canary_hold=True)
    shell.send(FEW)
    shell.tick_at_deadline()
    assert shell.supervisor.candidate is not None
    assert shell.supervisor.candidate.state is GenerationState.HELD
    said = [each.event for each in shell.of(actions.LogEvent)]
    assert "canary_undecided" in said
    shell.send(e.CanaryObserved(TrafficSample(500, 0), TrafficSample(2000, 0)), after=3600.0)
    assert shell.supervisor.candidate.state is GenerationState.HELD
    shell.send(e.WorkerDied(canary, "signal SIGKILL"))
    refused(shell, "SIGKILL")


def test_a_canary_that_still_starts_is_not_promoted_and_the_operator_is_told_so() -> None:
    told: list[tuple[bool, str]] = []
    shell = Shell(workers=4, canary=True).up()
    shell.send(e.ReloadAsked())
    shell.send(e.PromotionAsked("serve promote", lambda *answer: told.append(answer)))
    ((accepted, text),) = told
    assert not accepted
    assert "still starts" in text
    shell.make_ready()
    shell.accept()
    shell.send(e.PromotionAsked("serve promote", lambda *answer: told.append(answer)))
    assert told[1][0]


def test_an_operator_promotes_it_or_deploys_something_newer() -> None:
    told: list[tuple[bool, str]] = []
    shell, old, _ = on_trial(canary_hold=True)
    shell.send(e.PromotionAsked("serve promote", lambda *answer: told.append(answer)))
    assert told[0][0]
    shell.make_ready()
    shell.accept()
    assert {each.worker for each in shell.of(actions.TellRetire)} == set(old)
    shell.send(e.PromotionAsked("serve promote", lambda *answer: told.append(answer)))
    assert not told[1][0]
    shell, old, (canary,) = on_trial()
    shell.policy = POLICY
    shell.send(e.ReloadAsked(ticket=8))
    assert [(each.worker, each.reason) for each in shell.of(actions.TellRetire)] == [(canary, "failed")]
    shell.make_ready()
    shell.accept()
    assert sorted((each.ticket, each.ok) for each in shell.of(actions.AnswerReload)) == [(7, True), (8, True)]


def test_a_request_may_want_a_trial_or_none() -> None:
    shell = Shell(workers=4).up()
    shell.send(e.ReloadAsked(canary=e.CanaryWish(share=0.25, time=5.0)))
    assert len(shell.workers(WorkerState.STARTING)) == 2
    shell, _, _ = on_trial()
    shell.send(e.ReloadAsked(canary=e.CanaryWish(on=False)))
    shell.make_ready()
    assert shell.supervisor.candidate is not None
    assert shell.supervisor.candidate.state is GenerationState.SWITCHING


def test_the_first_generation_is_never_on_trial() -> None:
    shell = Shell(canary=True).up()
    assert shell.supervisor.current is not None


def test_a_stop_takes_it_along() -> None:
    shell, old, canary = on_trial()
    shell.send(e.StopAsked())
    shell.send(e.ShutOutDone())
    assert {each.worker for each in shell.of(actions.TellRetire)} == {*old, *canary}
    assert [each.ok for each in shell.of(actions.AnswerReload)] == [False]


def test_a_vote_after_the_trial_changes_nothing() -> None:
    shell, _, (canary,) = on_trial()
    shell.send(e.PromotionAsked("a test", lambda ok, _: None))
    shell.forget()
    shell.send(e.CanaryRefused("too late", "", canary))
    assert shell.done == []


def timed(requests: int, seconds: float) -> TrafficSample:
    """So many requests that took so long each."""
    counts = tuple(requests if each == bucket(seconds) else 0 for each in range(BUCKETS))
    return TrafficSample(requests, 0, LatencyHistogram(counts, requests * seconds))


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_a_slow_canary_is_said_once_or_taken_back_as_configured(factor: float) -> None:
    shell, _, _ = on_trial(canary_latency=factor)
    for second in range(1, 40):
        shell.send(e.CanaryObserved(timed(50 * second, 0.3), timed(200 * second, 0.03)), after=1.0)
    said = [each.event for each in shell.of(actions.LogEvent) if each.event.startswith("canary_")]
    assert said == ["canary_started", "canary_withdrawn" if factor else "canary_slowed"]


def test_its_status_tells_of_the_trial() -> None:
    shell, _, _ = on_trial()
    assert shell.supervisor.trials.status(shell.now) == {
        "generation": 2,
        "state": "canary",
        "share": 0.2,
        "seconds_left": 60.0,
    }
    shell.send(GOOD, after=10.0)
    told = shell.supervisor.trials.status(shell.now)
    assert told is not None
    assert told["canary"] == {"requests": 2000, "errors": 0}
    assert told["seconds_left"] == 50.0
    shell.send(BAD)
    assert shell.supervisor.trials.status(shell.now) is None
