"""The accounts of connections that survive, and their clients against a server whose connections have several lives."""

from __future__ import annotations

import pytest

import loadtest.app
from loadtest.kinds import SURVIVING
from loadtest.reload import run
from loadtest.report import table
from loadtest.result import Settings
from loadtest.surviving import Numbers, Survivor, problems, rows
from tests.loadtest import several_lives


@pytest.mark.parametrize(
    ("seen", "count", "lost", "duplicated", "out_of_order"),
    [
        ([1, 2, 3], 3, 0, 0, 0),
        ([1, 3], 3, 1, 0, 0),
        ([1, 2], 3, 1, 0, 0),
        ([], 2, 2, 0, 0),
        ([1, 2, 2, 3], 3, 0, 1, 0),
        ([1, 3, 2], 3, 0, 0, 1),
        ([1, 3, 2, 2], 4, 1, 1, 1),
    ],
)
def test_numbers(seen: list[int], count: int, lost: int, duplicated: int, out_of_order: int) -> None:
    numbers = Numbers()
    for number in seen:
        numbers.saw(number)
    numbers.end(count)
    assert (numbers.lost, numbers.duplicated, numbers.out_of_order) == (lost, duplicated, out_of_order)
    assert numbers.count == len(set(seen))


def test_what_must_not_be_is_said() -> None:
    survivor = Survivor("surviving WebSocket")
    survivor.lived(1, 1)
    assert problems([survivor], 0) == []
    assert problems([survivor], 1) == ["no surviving WebSocket has survived a reload"]
    survivor.lived(2, 2)
    assert problems([survivor], 1) == []
    survivor.lived(1, 1)
    survivor.received.saw(2)
    survivor.ended = "close code 1012"
    assert problems([survivor], 1) == [
        "1 numbers were lost on connections that survive",
        "a surviving WebSocket, in life 2: life 1 speaks after life 2",
        "a surviving WebSocket was ended in life 2: close code 1012",
    ]
    assert rows([survivor])[1] == ["surviving WebSocket", *["1", "2", "2", "2", "0", "1", "1", "0", "0", "1", "1"]]


FAULT = """
number = 'tick' if 'tick' in state else 'next'
state[number] += 1 if state[number] % 2 else -1
"""


@pytest.mark.parametrize(
    ("fault", "said"), [("", ["nothing was noticed"]), (FAULT, ["numbers were lost", "numbers came twice"])]
)
def test_the_clients_notice_what_a_life_forgets(monkeypatch: pytest.MonkeyPatch, fault: str, said: list[str]) -> None:
    """Against a server whose connections are handed over to the same process again and again."""
    monkeypatch.setattr(loadtest.app, "__file__", several_lives.__file__)
    monkeypatch.setenv("TEST_FAULT", fault)
    result = run(Settings(kinds=SURVIVING[:2], workers=1, reloads=0, scale=2.0, stretch=0.1, warmup=0.8))
    assert all(each in table(result) for each in said), table(result)
    assert result.spotless is not bool(fault), table(result)
    for kind in {each.kind for each in result.ledger.survivors}:
        mine = [each for each in result.ledger.survivors if each.kind == kind]
        assert max(each.lives for each in mine) > 2, table(result)
        assert bool(fault) is any(each.lost or each.duplicated for each in mine), table(result)
