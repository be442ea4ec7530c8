"""Verdicts on orphaned offers, as tables: what is known of the sender when, and what the receiver is told."""

from __future__ import annotations

import pytest

from serve_asgi.supervisor.actions import Action, TellVerdict
from serve_asgi.supervisor.hand_over_pairs import HandOverPairs
from serve_asgi.supervisor.lifecycles import Cause, Generation, Policy, Worker

POLICY = Policy(3, 1, 3, 60.0, 30.0, 10.0, 0.0)
GENERATION = Generation(1, POLICY, 3, 0, [], 0.0)


def worker(number: int) -> Worker:
    return Worker(number, GENERATION, number, Cause.GENERATION)


@pytest.mark.parametrize(
    ("history", "keep"),
    [
        (["asks", "sender dies"], True),
        (["sender dies", "asks"], True),
        (["asks", "withdraws"], False),
        (["withdraws", "asks"], False),
        (["withdraws", "sender dies", "asks"], False),
        (["withdraws", "withdraws", "asks"], False),
        (["asks", "withdraws", "sender dies"], False),
        (["sender dies", "receiver dies"], None),
        (["asks", "receiver dies", "sender dies"], None),
        (["asks"], None),
        (["withdraws"], None),
        (["another withdraws", "asks"], None),
        (["another dies", "asks"], None),
    ],
)
def test_verdicts(history: list[str], keep: bool | None) -> None:
    """`keep` is the one verdict that is given, or None while there is none."""
    pairs = HandOverPairs()
    sender, receiver, another = worker(1), worker(2), worker(3)
    pair = pairs.connect(sender, receiver)
    given: list[Action] = []
    for what in history:
        match what:
            case "asks":
                given += pairs.orphaned(receiver, pair)
            case "withdraws":
                given += pairs.withdrawn(sender, pair)
            case "another withdraws":
                given += pairs.withdrawn(another, pair)
            case "sender dies":
                given += pairs.died(sender)
            case "receiver dies":
                given += pairs.died(receiver)
            case "another dies":
                given += pairs.died(another)
    assert given == ([] if keep is None else [TellVerdict(receiver, pair, keep)])


def test_a_question_about_a_pair_that_is_not_the_askers_is_answered_with_no() -> None:
    pairs = HandOverPairs()
    sender, receiver = worker(1), worker(2)
    pair = pairs.connect(sender, receiver)
    assert pairs.orphaned(sender, pair) == [TellVerdict(sender, pair, keep=False)]
    assert pairs.orphaned(receiver, 99) == [TellVerdict(receiver, 99, keep=False)]


def test_a_withdrawn_pair_no_longer_counts_as_an_introduction() -> None:
    pairs = HandOverPairs()
    sender, receiver = worker(1), worker(2)
    pair = pairs.connect(sender, receiver)
    assert pairs.connected(sender, receiver)
    assert not pairs.connected(receiver, sender)
    pairs.withdrawn(sender, pair)
    assert not pairs.connected(sender, receiver)
